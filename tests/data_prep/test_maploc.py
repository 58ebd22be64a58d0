"""The converter for map localization, from raw files to a prepared folder."""

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy.spatial.transform import Rotation

from data_prep import geodesy, maploc, splits, tables
from data_prep.errors import InputError
from data_prep.raw import nuscenes

from .conftest import LOCATION, TinyRoot, osm_xml


def convert(tiny: TinyRoot, out: Path, **changes: Any) -> dict[str, Any]:
    options = {"version": None, "workers": 1, "limit": None, "image_width": 48, "osm_files": [tiny.osm]}
    return maploc.convert(tiny.root, out=out, **{**options, **changes})


def read_table(out: Path, name: str) -> list[dict[str, Any]]:
    builder = tfds.builder_from_directory(str(out / name))
    return list(tfds.as_numpy(builder.as_dataset(split=name, shuffle_files=False)))


def read_split(out: Path, scheme: str) -> dict[str, list[int]]:
    with np.load(out / "splits" / f"{scheme}.npz") as arrays:
        return {name: arrays[name].tolist() for name in arrays.files}


def content(out: Path) -> dict[str, str]:
    """Path → hash of every file."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def test_frames_and_maps(tiny, tmp_path):
    out = tmp_path / "out"
    manifest = convert(tiny, out)
    assert manifest["cameras"] == list(nuscenes.CAMERAS)
    assert manifest["counts"]["frames"] == 6
    assert manifest["source"]["built_in_city"] is False
    assert manifest["source"]["osm"][0]["snapshot"] == "2024-05-06T00:00:00Z"
    assert read_split(out, "official") == {"train": [0, 1], "val": [2, 3], "test": [4, 5]}

    frames = read_table(out, "frames")
    raw = nuscenes.read_frames(tiny.root, "v1.0-trainval")
    for stored, frame in zip(frames, raw, strict=True):
        assert stored["token"].decode() == frame.token
        assert stored["scene"].decode() == frame.scene
        assert stored["timestamp"] == frame.timestamp
        np.testing.assert_array_equal(stored["map_pose_ego"], frame.map_pose_ego)
        assert stored["map_pose_ego"].dtype == np.float64
        # On level ground a camera is where the calibration says, moved by the drive since its image: the
        # poses of the images lie 1 cm ahead along map x, and the vehicle heads 0.3 rad and more off it.
        moved = np.stack([c.ego_T_camera for c in frame.cameras])
        yaw = frame.map_pose_ego[2]
        moved[:, :2, 3] += 0.01 * np.array([np.cos(yaw), -np.sin(yaw)])
        np.testing.assert_allclose(stored["ego_T_camera"], moved, atol=1e-6)
        assert stored["images"].shape == (6, 27, 48, 3)
        factor = 48 / 64
        np.testing.assert_allclose(
            stored["intrinsics"][2], [[50 * factor, 0, 24], [0, 50 * factor, 13.5], [0, 0, 1]]
        )

    (stored,) = read_table(out, "maps")
    assert stored["location"].decode() == LOCATION
    # Drives from x = 300 to 902 and at y = 500, with 136 m about them.
    np.testing.assert_array_equal(stored["origin"], [164.0, 364.0])
    assert stored["raster"].shape == ((1038 - 164) * 2, (636 - 364) * 2, 4)

    def at(x: float, y: float) -> list[int]:
        i, j = ((np.array([x, y]) - stored["origin"]) / stored["cell"]).astype(int)
        return stored["raster"][i, j].tolist()

    assert at(500.1, 500.1) == [1, 0, 0, 1]  # on the road
    assert at(315.1, 530.1) == [0, 1, 0, 0]  # in the building
    assert at(418.1, 497.1) == [0, 0, 0, 0]  # in the hole of the drivable area
    assert at(500.1, 505.1) == [0, 0, 0, 1]
    assert at(500.1, 515.1) == [0, 0, 0, 0]

    assert manifest["osm_classes"] == {k: list(v) for k, v in maploc.OSM_CLASSES.items()}
    assert stored["classes"].shape == (*stored["raster"].shape[:2], 3)

    def names_at(x: float, y: float) -> list[str | None]:
        i, j = ((np.array([x, y]) - stored["origin"]) / stored["cell"]).astype(int)
        planes = zip(stored["classes"][i, j], manifest["osm_classes"].values(), strict=True)
        return [[None, *names][index] for index, names in planes]

    assert names_at(500.1, 500.1) == [None, "road", None]
    assert names_at(315.1, 530.1) == ["building", None, None]
    # The wall at x = 300 runs between two cells and is one cell wide.
    assert "building_outline" in (names_at(299.9, 530.1)[1], names_at(300.1, 530.1)[1])
    assert names_at(500.1, 515.1) == [None, None, None]


def test_a_tilted_vehicle_tilts_its_cameras(tiny, tmp_path):
    """A point seen by a camera lies, through the stored calibration, where it is in the level frame."""
    roll, pitch = 0.03, -0.05
    for record in tiny.tables["ego_pose"]:
        yaw = 2 * np.arctan2(record["rotation"][3], record["rotation"][0])
        turn = Rotation.from_euler("ZYX", [yaw, pitch, roll])
        record["rotation"] = turn.as_quat(scalar_first=True).tolist()
        record["translation"][2] = 7.0  # above the map's zero
    tiny.write()
    convert(tiny, tmp_path / "out")
    frame, stored = (
        nuscenes.read_frames(tiny.root, "v1.0-trainval")[0],
        read_table(tmp_path / "out", "frames")[0],
    )
    x, y, yaw = stored["map_pose_ego"]
    assert yaw == pytest.approx(0.3)
    camera_xyz = np.array([1.0, 2.0, 30.0])
    for camera, level_T_camera in zip(frame.cameras, stored["ego_T_camera"], strict=True):
        *map_xyz, _ = camera.map_T_ego @ camera.ego_T_camera @ [*camera_xyz, 1.0]
        level = Rotation.from_euler("z", -yaw).apply(np.array(map_xyz) - [x, y, 7.0])
        np.testing.assert_allclose(level_T_camera @ [*camera_xyz, 1.0], [*level, 1.0], atol=1e-4)
    # The tilt is not lost: the first camera's z axis, level in its calibration, is off by degrees.
    assert abs(stored["ego_T_camera"][0][2, 0]) > 0.01


def test_alignment_is_stored_and_applied_on_request(tiny, tmp_path):
    """OSM is drawn 4 m too far north: the fit says so, and moves it only where it was asked to."""
    xml = tiny.osm.read_text()
    tiny.osm.write_text(re.sub(r'lat="([0-9.]+)"', lambda m: f'lat="{float(m[1]) + 4 / 110574:.7f}"', xml))
    rows = {}
    for mode in maploc.ALIGN_MODES:
        manifest = convert(tiny, tmp_path / mode, align=mode)
        (stored,) = read_table(tmp_path / mode, "maps")
        fit = manifest["alignment"][LOCATION]
        assert fit["applied"] is (mode == "apply")
        assert fit["problem"] is None
        assert fit["inside_before"] == pytest.approx(stored["alignment_inside"][0], abs=1e-6)
        assert stored["alignment_samples"] == fit["samples"] > 200
        moved = stored["alignment"] @ [700.0, 504.0, 1.0]
        # The area is 20 m wide and straight: the middle is found to a metre.
        np.testing.assert_allclose(moved[1], 500.0, atol=1.2)
        j = np.flatnonzero(stored["raster"][round((700 - stored["origin"][0]) / 0.5), :, 0])
        rows[mode] = stored["origin"][1] + 0.5 * (j.mean() + 0.5)
    assert rows["report"] == pytest.approx(504, abs=0.3)
    assert rows["apply"] == pytest.approx(500, abs=1.2)


def test_a_map_without_drivable_area_is_converted_and_says_so(tiny, tmp_path):
    tiny.drivable["drivable_area"] = []
    tiny.write()
    manifest = convert(tiny, tmp_path / "out")
    assert "no drivable area" in manifest["alignment"][LOCATION]["statement"]
    assert manifest["alignment"][LOCATION]["inside_before"] is None
    (stored,) = read_table(tmp_path / "out", "maps")
    assert np.isnan(stored["alignment_inside"]).all()
    np.testing.assert_array_equal(stored["alignment"], [[1, 0, 0], [0, 1, 0]])


def test_workers_do_not_change_the_bytes(make_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(maploc, "FRAMES_PER_SHARD", 4)
    tiny = make_tiny(frames_per_scene=5)
    one = convert(tiny, tmp_path / "one", workers=1)
    two = convert(tiny, tmp_path / "two", workers=2)
    assert one == two
    assert one["tables"]["frames"]["shards"] == 4
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_an_error_in_a_worker_arrives_and_nothing_half_is_left(make_tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(maploc, "FRAMES_PER_SHARD", 4)
    tiny = make_tiny(frames_per_scene=5)
    image = next((tiny.root / "samples/CAM_BACK").iterdir())
    whole = image.read_bytes()
    image.write_bytes(whole[:-20])
    with pytest.raises(
        InputError, match=r"CAM_BACK/image\.jpg: expected a whole JPEG image, found \d+ bytes"
    ):
        convert(tiny, tmp_path / "out", workers=2)
    assert not (tmp_path / "out" / tables.MANIFEST).exists()
    assert not list((tmp_path / "out").rglob(f"*{tables.INCOMPLETE}"))


def test_limit_spreads_over_scenes_and_keeps_their_splits(make_tiny, tmp_path):
    tiny = make_tiny(frames_per_scene=10)
    out = tmp_path / "out"
    convert(tiny, out, limit=6)
    scenes = [frame["scene"].decode() for frame in read_table(out, "frames")]
    assert sorted(scenes) == sorted(["scene-0001", "scene-0003", "scene-0077"] * 2)
    numbers = read_split(out, "official")
    assert [len(numbers[s]) for s in splits.SPLITS] == [2, 2, 2]
    assert all(scenes[i] == "scene-0003" for i in numbers["val"])


def test_the_built_in_city_says_so(tiny, tmp_path):
    (tiny.root / nuscenes.CITY_MARKER).write_text("{}")
    assert convert(tiny, tmp_path / "out")["source"]["built_in_city"] is True


class TestOsmCoverage:
    def far_osm(self, tiny: TinyRoot, x_max: float) -> None:
        body = '<way id="1" version="1"><nd ref="1"/><nd ref="2"/><tag k="highway" v="road"/></way>'
        tiny.osm.write_text(osm_xml({1: (200, 500), 2: (x_max, 500)}, body))

    def test_elsewhere(self, tiny, tmp_path):
        self.far_osm(tiny, 210)
        with pytest.raises(
            InputError,
            match=r"map\.osm.*64 m of 0\.0% of its 6 frames.*latitude 1\.28552 to 1\.309.*103\.78206 to",
        ):
            convert(tiny, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_in_part(self, tiny, tmp_path):
        self.far_osm(tiny, 500)
        with pytest.raises(InputError, match=r"33\.3% of its 6 frames"):
            convert(tiny, tmp_path / "out")

    def test_a_folder_of_extracts(self, tiny, tmp_path):
        out = tmp_path / "out"
        maploc.main(
            ["--raw", str(tiny.root), "--osm", str(tiny.osm.parent), "--out", str(out), "--workers", "1"]
        )
        assert (out / tables.MANIFEST).exists()
        with pytest.raises(InputError, match=r"raw: expected extracts \(\.osm.*found none"):
            maploc.main(["--raw", str(tiny.root), "--osm", str(tiny.root), "--out", str(tmp_path / "other")])

    def test_several_extracts_cover_together(self, tiny, tmp_path):
        self.far_osm(tiny, 620)
        other = tmp_path / "other.osm"
        body = '<way id="1" version="1"><nd ref="1"/><nd ref="2"/><tag k="highway" v="road"/></way>'
        other.write_text(osm_xml({1: (620, 500), 2: (1200, 500)}, body))
        manifest = convert(tiny, tmp_path / "out", osm_files=[tiny.osm, other])
        assert manifest["counts"]["osm_coverage_by_location"] == {LOCATION: 1.0}
        (stored,) = read_table(tmp_path / "out", "maps")
        row = round((500 - stored["origin"][1]) / 0.5)
        assert stored["raster"][round((200 - stored["origin"][0]) / 0.5) :, row, 0].all()

    def test_one_extract_covers_several_locations(self, tiny, tmp_path):
        """A second log in Queenstown, whose map overlaps that of one-north."""
        xy = geodesy.wgs84_to_map(geodesy.map_to_wgs84((900.0, 500.0), LOCATION), "singapore-queenstown")
        tiny.tables["log"].append({"token": "log2", "location": "singapore-queenstown"})
        tiny.record("scene", token="scene-0077")["log_token"] = "log2"
        for record in tiny.tables["ego_pose"]:
            if record["token"].startswith("pose-sample-2"):
                record["translation"] = [*xy, 0.0]
        tiny.write()
        expansion = nuscenes.map_expansion_file(tiny.root, LOCATION)
        nuscenes.map_expansion_file(tiny.root, "singapore-queenstown").write_text(expansion.read_text())
        manifest = convert(tiny, tmp_path / "out")
        assert manifest["counts"]["frames_by_location"] == {LOCATION: 4, "singapore-queenstown": 2}
        maps = {m["location"].decode(): m for m in read_table(tmp_path / "out", "maps")}
        queenstown = maps["singapore-queenstown"]
        i, j = ((xy - queenstown["origin"]) / queenstown["cell"]).astype(int)
        assert queenstown["raster"][i, j, 0] == 1


def _truncate_image(tiny: TinyRoot) -> None:
    path = next((tiny.root / "samples/CAM_FRONT").iterdir())
    path.write_bytes(path.read_bytes()[:-100])


def _image_of_other_size(tiny: TinyRoot) -> None:
    path = next((tiny.root / "samples/CAM_FRONT").iterdir())
    cv2.imwrite(str(path), np.zeros((20, 30, 3), np.uint8))


def _image_that_is_none(tiny: TinyRoot) -> None:
    next((tiny.root / "samples/CAM_FRONT").iterdir()).write_bytes(b"not a JPEG")


def _drop_sweep(tiny: TinyRoot) -> None:
    next((tiny.root / "samples/LIDAR_TOP").iterdir()).unlink()


def _truncate_table(tiny: TinyRoot) -> None:
    path = tiny.table("sample_data")
    path.write_text(path.read_text()[:-500])


def _unofficial_scene(tiny: TinyRoot) -> None:
    tiny.record("scene", token="scene-0077")["name"] = "my-drive"
    tiny.write()


def _far_pose(tiny: TinyRoot) -> None:
    tiny.record("ego_pose", token="pose-sample-1-0-LIDAR_TOP")["translation"] = [1e7, 0.0, 0.0]
    tiny.write()


def _osm_out_of_range(tiny: TinyRoot) -> None:
    tiny.osm.write_text(tiny.osm.read_text().replace('lat="1.', 'lat="100.', 1))


BAD_INPUTS: dict[str, tuple[Callable[[TinyRoot], Any], str]] = {
    "missing table": (
        lambda tiny: tiny.table("log").unlink(),
        r"v1\.0-trainval: expected the tables.*missing: log\.json",
    ),
    "truncated table": (_truncate_table, r"sample_data\.json: expected a whole JSON array.*truncated"),
    "missing image": (
        lambda tiny: next((tiny.root / "samples/CAM_BACK").iterdir()).unlink(),
        r"CAM_BACK/image\.jpg: expected the CAM_BACK file of sample sample-0-0.*found no file",
    ),
    "missing sweep": (_drop_sweep, r"sweep\.pcd\.bin: expected the LIDAR_TOP file.*found no file"),
    "truncated image": (
        _truncate_image,
        r"CAM_FRONT/image\.jpg: expected a whole JPEG image, found \d+ bytes",
    ),
    "image of another size": (_image_of_other_size, r"image\.jpg: expected 64 x 36 pixels.*found 30 x 20"),
    "no image": (_image_that_is_none, r"image\.jpg: expected a whole JPEG image, found 10 bytes"),
    "unofficial scene": (
        _unofficial_scene,
        r"expected scene names of the official splits.*found 1 others: my-drive",
    ),
    "position off the map": (
        _far_pose,
        r"frame sample-1-0 .*x in \[0\.0, 1585\.6\].*found 10000000\.0, 0\.0",
    ),
    "no map expansion": (
        lambda tiny: nuscenes.map_expansion_file(tiny.root, LOCATION).unlink(),
        r"singapore-onenorth\.json: expected the map expansion.*no file",
    ),
    "not OSM": (lambda tiny: tiny.osm.write_text("hello"), r"map\.osm: expected an OpenStreetMap extract"),
    "no OSM": (lambda tiny: tiny.osm.unlink(), r"map\.osm: expected an OpenStreetMap extract, found no file"),
    "OSM out of range": (_osm_out_of_range, r"map\.osm: node 1: expected \|latitude\| <= 90.*found 100\."),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_leaves_nothing_that_looks_whole(tiny, tmp_path, case):
    damage, expected = BAD_INPUTS[case]
    damage(tiny)
    out = tmp_path / "out"
    with pytest.raises(InputError, match=expected):
        convert(tiny, out)
    assert not (out / tables.MANIFEST).exists()
    assert not list(out.rglob(f"*{tables.INCOMPLETE}")) if out.exists() else True


class TestCommand:
    def arguments(self, tiny: TinyRoot, out: Path, *more: object) -> list[str]:
        return ["-m", "data_prep", "maploc", "--raw", tiny.root, "--osm", tiny.osm, "--out", out, *more]

    def test_runs_and_says_what_it_made(self, tiny, tmp_path, run_command):
        done = run_command(*self.arguments(tiny, tmp_path / "out", "--image-width", 48))
        assert "6 frames, 1 maps" in done.stdout
        assert "record/s" in done.stderr  # the progress bar
        assert "tensorflow" not in done.stderr.lower()

    def test_bad_input_is_one_line_without_a_traceback(self, tiny, tmp_path, run_command):
        tiny.table("scene").unlink()
        done = run_command(*self.arguments(tiny, tmp_path / "out"), expect=1)
        assert done.stderr.startswith("error: ")
        assert "scene.json" in done.stderr
        assert "Traceback" not in done.stderr

    def test_a_missing_package_is_named_with_what_to_install(self, tiny, tmp_path, run_command):
        """As on a machine made for training alone: a module that cannot be found, before the real one."""
        arguments = [str(a) for a in self.arguments(tiny, tmp_path / "out")[2:]]
        hide = "import sys; sys.modules['osmium'] = None; from data_prep.__main__ import main; "
        done = run_command("-c", f"{hide}sys.exit(main({arguments}))", expect=1)
        assert done.stderr.startswith("error: expected the package 'osmium', which maploc needs")
        assert "[prep]" in done.stderr
        assert "Traceback" not in done.stderr

    def test_unknown_command_lists_the_known(self, run_command):
        done = run_command("-m", "data_prep", "nonsense", expect=2)
        assert "'nonsense'" in done.stderr
        assert "maploc" in done.stdout
        assert "check" in done.stdout

    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
    def test_ended_at_any_time_it_continues_to_the_same_bytes(
        self, make_tiny, tmp_path, command_environment, run_command, end
    ):
        tiny = make_tiny(frames_per_scene=100, image_size=(400, 225))
        out, whole = tmp_path / "out", tmp_path / "whole"
        command = [sys.executable, *map(str, self.arguments(tiny, out, "--image-width", 48, "--workers", 2))]
        process = subprocess.Popen(
            command, env=command_environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 60
        while (
            not list(out.glob("frames/*-of-*[0-9]"))
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        process.send_signal(end)
        errors = process.communicate()[1].decode()
        assert process.returncode != 0
        assert not (out / tables.MANIFEST).exists()
        if end == signal.SIGTERM:
            assert process.returncode == 130
            assert "Run the same command again" in errors
            assert not list(out.rglob(f"*{tables.INCOMPLETE}"))
        run_command(*self.arguments(tiny, out, "--image-width", 48, "--workers", 2))
        run_command(*self.arguments(tiny, whole, "--image-width", 48, "--workers", 1))
        assert content(out) == content(whole)


@pytest.mark.real_data
def test_real_keyframe(real_data, tmp_path):
    out = tmp_path / "out"
    manifest = maploc.convert(
        real_data / "nuscenes", [real_data / "osm/singapore-onenorth.osm"], out, None, 1, None, 400
    )
    assert manifest["splits"]["official"] == {"train": 1, "val": 0, "test": 0}
    (frame,) = read_table(out, "frames")
    assert frame["images"].shape == (6, 225, 400, 3)
    np.testing.assert_allclose(frame["intrinsics"][1][0, 0], 1266.417 / 4, atol=1e-3)
    (stored,) = read_table(out, "maps")
    x, y, _ = frame["map_pose_ego"]
    i, j = ((np.array([x, y]) - stored["origin"]) / stored["cell"]).astype(int)
    assert stored["raster"][i, j, 3] == 1  # the vehicle is on drivable ground
    # The geodesy puts OSM's roads on the drivable area; shifted by 60 m they are not.
    road, drivable = stored["raster"][..., 0], stored["raster"][..., 3]
    inside = (road & drivable).sum() / road.sum()
    shifted = (np.roll(road, 120, axis=0) & drivable).sum() / road.sum()
    assert inside > 0.6
    assert inside > 2 * shifted
    json.dumps(manifest)
