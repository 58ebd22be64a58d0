"""Samples, their files and the projection of sweeps into images are those of the official nuscenes-devkit."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from data_prep import appearance
from data_prep import nusc_pr_records as records
from data_prep.city import generate
from data_prep.raw import nuscenes

pytestmark = [pytest.mark.interop, pytest.mark.slow]

PROBE = Path(__file__).with_name("nuscenes_projection_probe.py")


def compare(root: Path, interop_python: str, folder: Path) -> int:
    """Ours against the devkit's, sample by sample; how many samples there are."""
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
            assert at.seen.sum() == count, camera.channel
            np.testing.assert_allclose(
                [at.u[at.seen].mean(), at.v[at.seen].mean()], [u / count, v / count], atol=0.5
            )
    return len(frames)


def test_city(interop_python, tmp_path):
    generate.main(
        ["--out", str(tmp_path / "city"), "--size", "tiny", "--formats", "nuscenes", "--workers", "1"]
    )
    assert compare(tmp_path / "city" / "nuscenes", interop_python, tmp_path) == 24


@pytest.mark.real_data
def test_real_keyframe(interop_python, real_data, tmp_path):
    assert compare(real_data / "nuscenes", interop_python, tmp_path) == 1
