"""Samples, their files, the projection of sweeps into images and the supervised division of NUSC-PR, against
the official nuscenes-devkit and scikit-learn."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from data_prep import appearance, nusc_pr
from data_prep import nusc_pr_records as records
from data_prep import place_recognition as places
from data_prep.city import generate
from data_prep.raw import nuscenes

pytestmark = [pytest.mark.interop, pytest.mark.slow]

PROBE = Path(__file__).with_name("nuscenes_projection_probe.py")
RULES_PROBE = Path(__file__).with_name("nusc_pr_rules_probe.py")


def compare(root: Path, interop_python: str, folder: Path, edge: float) -> int:
    """Ours against the devkit's, sample by sample, but for points within `edge` pixels of an image's border.

    Returns how many samples there are.
    """
    answers = folder / "answers.json"
    subprocess.run([interop_python, PROBE, root, answers], check=True, cwd=folder, timeout=600)
    expected = json.loads(answers.read_text())
    frames = [frame for scene in nuscenes.read_scenes(root, "v1.0-trainval") for frame in scene.frames]
    assert [frame.token for frame in frames] == [sample["token"] for sample in expected]
    for frame, sample in zip(frames, expected, strict=True):
        assert (frame.scene, frame.location) == (sample["scene"], sample["location"])
        assert frame.timestamp == sample["timestamp"]
        files = {camera.channel: camera.path for camera in frame.cameras}
        files[nuscenes.LIDAR] = frame.lidar.path
        assert {channel: str(path.relative_to(root)) for channel, path in files.items()} == sample["files"]
        points = records.read_sweep(frame)
        for camera in frame.cameras:
            at = appearance.project(
                points,
                records.camera_T_lidar(frame, camera),
                camera.intrinsics,
                (camera.height, camera.width),
            )
            count, u, v = sample["seen"][camera.channel]
            inside = np.stack([at.u - 1, camera.width - 1 - at.u, at.v - 1, camera.height - 1 - at.v]).min(0)
            # The devkit moves float32 points through a map of kilometres: a point at the edge may fall off.
            unsure = ((np.abs(inside) < edge) & (at.depth > 1)).sum()
            assert abs(int(at.seen.sum()) - count) <= unsure, camera.channel
            ours = [at.u[at.seen].mean(), at.v[at.seen].mean()]
            np.testing.assert_allclose(ours, [u / count, v / count], atol=0.5)
    return len(frames)


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("city")
    generate.main(["--out", str(out), "--size", "tiny_revisited", "--formats", "nuscenes", "--workers", "1"])
    return out / "nuscenes"


def test_city(city, interop_python, tmp_path):
    assert compare(city, interop_python, tmp_path, edge=0.01) == 72


@pytest.mark.parametrize(("delta", "gamma"), [(1.0, 105.0), (4.0, 150.0)])
def test_supervised_division(delta, gamma, city, interop_python, tmp_path):
    answers = tmp_path / "answers.json"
    arguments = [city, "boston-seaport", str(delta), str(gamma), answers]
    subprocess.run([interop_python, RULES_PROBE, *arguments], check=True, cwd=tmp_path, timeout=600)
    expected = json.loads(answers.read_text())
    frames = nusc_pr.arrays_of(nuscenes.read_scenes(city, "v1.0-trainval"))
    rule = places.SupervisedRule(interval=delta, gamma={}, other_gamma=gamma)
    division = places.supervised(frames, rule)["boston-seaport"]
    tokens = frames.tokens
    assert tokens[division.database].tolist() == expected["database"]
    assert tokens[division.train_query].tolist() == expected["train"]
    pool = np.sort(np.concatenate([division.val_query, division.test_query]))
    assert tokens[pool].tolist() == expected["pool"]
    assert len(pool) > 10
    truth = places.ground_truth(frames, division, 9.0, 2)
    for query, entries in zip(division.test_query, truth, strict=True):
        assert set(tokens[entries]) == set(expected["near"][tokens[query]])
    rows = zip(division.train_query, division.train_positives, division.train_negatives, strict=True)
    for query, positives, negatives in rows:
        assert set(tokens[positives]) <= set(expected["near"][tokens[query]])
        assert set(tokens[negatives]) <= set(expected["far"][tokens[query]])


@pytest.mark.real_data
def test_real_keyframe(interop_python, real_data, tmp_path):
    assert compare(real_data / "nuscenes", interop_python, tmp_path, edge=0.0) == 1
