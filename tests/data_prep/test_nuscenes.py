"""The nuScenes reader: what it reads, and what it says of damage."""

import json
import subprocess

import numpy as np
import pytest

from data_prep.errors import InputError
from data_prep.raw import nuscenes, nuscenes_splits
from placerec_jax.ops import rigid

from .conftest import LOCATION, VERSION, TinyRoot


def read(tiny: TinyRoot) -> list[nuscenes.Frame]:
    tiny.write()
    return nuscenes.read_frames(tiny.root, VERSION)


def test_frames(tiny):
    frames = read(tiny)
    assert [f.token for f in frames] == [f"sample-{s}-{i}" for s in range(3) for i in range(2)]
    frame = frames[3]
    assert (frame.scene, frame.location, frame.timestamp) == ("scene-0003", LOCATION, 1_001_000)
    np.testing.assert_allclose(frame.map_pose_ego, [602.0, 500.0, 0.31])
    assert [c.channel for c in frame.cameras] == list(nuscenes.CAMERAS)
    camera = frame.cameras[2]
    np.testing.assert_allclose(camera.ego_T_camera[:3, 3], [1.0, 0.2, 1.5])
    np.testing.assert_allclose(rigid.yaw_of(camera.ego_T_camera[:3, :3]), np.deg2rad(120))
    np.testing.assert_allclose(camera.intrinsics, [[50, 0, 32], [0, 50, 18], [0, 0, 1]])
    np.testing.assert_allclose(camera.map_T_ego[:3, 3], [602.01, 500.0, 0.0])
    assert nuscenes.check_files(frames) > 0


def test_tables_are_streamed_across_chunks(tiny, monkeypatch):
    expected = read(tiny)
    monkeypatch.setattr(nuscenes, "_CHUNK", 300)
    monkeypatch.setattr(nuscenes, "_LONGEST_RECORD", 1000)
    found = nuscenes.read_frames(tiny.root, VERSION)
    assert [f.token for f in found] == [f.token for f in expected]
    np.testing.assert_array_equal(found[-1].map_pose_ego, expected[-1].map_pose_ego)


def test_drivable_area(tiny):
    ((exterior, hole),) = nuscenes.read_drivable_area(tiny.root, LOCATION)
    np.testing.assert_array_equal(exterior, [[200, 490], [1200, 490], [1200, 510], [200, 510]])
    np.testing.assert_array_equal(hole, [[400, 495], [420, 495], [420, 505]])


def _set(table, index, **values):
    return lambda tiny: tiny.tables[table][index].update(values)


def _delete(table, index, field):
    return lambda tiny: tiny.tables[table][index].pop(field)


NOT_UNIT = [1.0, 0.2, 0.0, 0.0]

BAD_RECORDS = {
    "dangling sensor": (
        _set("calibrated_sensor", 0, sensor_token="gone"),
        r"calibrated_sensor\.json: .*'calibrated-CAM_FRONT_LEFT'.*'sensor_token' is 'gone'.*sensor\.json",
    ),
    "dangling log": (_set("scene", 0, log_token="gone"), r"scene\.json: .*'log_token' is 'gone'.*log\.json"),
    "dangling scene": (
        _set("sample", 0, scene_token="gone"),
        r"sample\.json: .*'scene_token' is 'gone'.*scene\.json",
    ),
    "dangling sample": (
        _set("sample_data", 0, sample_token="gone"),
        r"sample_data\.json: .*'sample_token' is 'gone'.*sample\.json",
    ),
    "dangling calibration": (
        _set("sample_data", 0, calibrated_sensor_token="gone"),
        r"sample_data\.json: .*'calibrated_sensor_token' is 'gone'.*calibrated_sensor\.json",
    ),
    "dangling pose": (
        _set("sample_data", 0, ego_pose_token="gone"),
        r"sample_data\.json: .*'ego_pose_token' is 'gone'",
    ),
    "no keyframe of a camera": (
        _set("sample_data", 1, is_key_frame=False),
        r"sample_data\.json: sample sample-0-0 \(scene-0001\).*missing: CAM_FRONT\b",
    ),
    "two keyframes of a camera": (
        _set("sample_data", 1, calibrated_sensor_token="calibrated-CAM_FRONT_LEFT"),
        "expected one keyframe of CAM_FRONT_LEFT in sample sample-0-0, found a second",
    ),
    "quaternion": (
        _set("ego_pose", 0, rotation=NOT_UNIT),
        r"ego_pose\.json: .*'rotation'.*unit length, found length 1\.0198",
    ),
    "quaternion of zeros": (_set("ego_pose", 0, rotation=[0.0] * 4), "found length 0"),
    "NaN": (
        _set("ego_pose", 0, translation=[float("nan"), 0, 0]),
        "'translation': expected 3 finite numbers.*nan",
    ),
    "too short": (_set("ego_pose", 0, translation=[0, 0]), r"expected 3 finite numbers, found \[0, 0\]"),
    "text for numbers": (_set("ego_pose", 0, translation=["a", 0, 0]), "expected 3 finite numbers"),
    "no intrinsics": (
        _set("calibrated_sensor", 0, camera_intrinsic=[]),
        r"'camera_intrinsic': expected 3 x 3 finite numbers, found \[\]",
    ),
    "negative focal length": (
        _set("calibrated_sensor", 0, camera_intrinsic=[[-1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        "positive focal lengths",
    ),
    "wrong type": (_set("sample", 0, timestamp="noon"), "'timestamp': expected int, found str 'noon'"),
    "bool for int": (_set("sample_data", 0, width=True), "'width': expected int, found bool"),
    "no field": (
        _delete("sample_data", 0, "filename"),
        r"sample_data\.json: record 'data-.*expected the field 'filename'",
    ),
    "no size": (_set("sample_data", 0, width=0), "expected a positive width and height, found 0 x 36"),
    "file outside": (
        _set("sample_data", 0, filename="../../etc/passwd"),
        "expected a path inside the root, found '../../etc",
    ),
    "unknown location": (
        _set("log", 0, location="atlantis"),
        r"log\.json: .*unknown location 'atlantis'.*singapore-onenorth",
    ),
    "no samples": (
        lambda tiny: tiny.tables.update(sample=[], sample_data=[]),
        "at least one sample, found none",
    ),
    "not objects": (
        lambda tiny: tiny.tables.update(scene=[1]),
        r"scene\.json: expected a whole JSON array of objects; found a int",
    ),
}


@pytest.mark.parametrize("case", BAD_RECORDS)
def test_bad_records(tiny, case):
    damage, expected = BAD_RECORDS[case]
    damage(tiny)
    with pytest.raises(InputError, match=expected):
        read(tiny)


@pytest.mark.parametrize("name", nuscenes.TABLES)
def test_missing_table(tiny, name):
    tiny.table(name).unlink()
    with pytest.raises(InputError, match=rf"missing: {name}\.json"):
        nuscenes.read_frames(tiny.root, VERSION)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("name", nuscenes.TABLES)
def test_truncated_table(tiny, name, kept):
    content = tiny.table(name).read_text()
    tiny.table(name).write_text(content[: int(kept * len(content))])
    with pytest.raises(InputError, match=rf"{name}\.json: expected a whole JSON array.*truncated"):
        nuscenes.read_frames(tiny.root, VERSION)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"token": 1}', "at its start"),
        ("[] []", "more text after its end"),
        ('[{"a": 1} {"b": 2}]', "instead of a comma"),
        ('[{"a": 1},]', "expecting value"),
    ],
)
def test_damaged_json(tmp_path, content, expected):
    (tmp_path / "table.json").write_text(content)
    with pytest.raises(InputError, match=expected):
        list(nuscenes.read_records(tmp_path / "table.json"))


class TestFiles:
    @pytest.mark.parametrize("channel", [nuscenes.CAMERAS[3], nuscenes.LIDAR])
    def test_missing(self, tiny, channel):
        (path,) = (tiny.root / "samples" / channel).iterdir()
        path.unlink()
        with pytest.raises(
            InputError, match=f"expected the {channel} file of sample sample-0-0.*no file"
        ) as error:
            nuscenes.check_files(read(tiny))
        assert str(path) in str(error.value)

    def test_truncated_sweep(self, tiny):
        (path,) = (tiny.root / "samples" / nuscenes.LIDAR).iterdir()
        path.write_bytes(bytes(47))
        with pytest.raises(InputError, match="whole points of 20 bytes, found 47 bytes"):
            nuscenes.check_files(read(tiny))

    def test_empty_image(self, tiny):
        (path,) = (tiny.root / "samples" / nuscenes.CAMERAS[0]).iterdir()
        path.write_bytes(b"")
        with pytest.raises(InputError, match="found 0 bytes"):
            nuscenes.check_files(read(tiny))


class TestMapExpansion:
    @pytest.mark.parametrize("version", ["1.2", None, "x", 1])
    def test_old_version(self, tiny, version):
        tiny.drivable["version"] = version
        tiny.write()
        with pytest.raises(InputError, match=rf"{LOCATION}\.json: expected map expansion version 1\.3"):
            nuscenes.read_drivable_area(tiny.root, LOCATION)

    def test_a_hole_without_nodes_is_none(self, tiny):
        tiny.drivable["polygon"][0]["holes"].append({"node_tokens": []})
        tiny.write()
        assert [len(p) for p in nuscenes.read_drivable_area(tiny.root, LOCATION)] == [2]

    def test_missing(self, tiny):
        nuscenes.map_expansion_file(tiny.root, LOCATION).unlink()
        with pytest.raises(InputError, match=r"no file.*Download the nuScenes map expansion"):
            nuscenes.read_drivable_area(tiny.root, LOCATION)

    def test_truncated(self, tiny):
        path = nuscenes.map_expansion_file(tiny.root, LOCATION)
        path.write_text(path.read_text()[:100])
        with pytest.raises(InputError, match=r"singapore-onenorth\.json: expected JSON, found damage"):
            nuscenes.read_drivable_area(tiny.root, LOCATION)

    @pytest.mark.parametrize(
        ("layer", "values", "expected"),
        [
            ("polygon", {"exterior_node_tokens": ["n0", "n1", "gone"]}, "polygon|'p'.*'gone'.*node"),
            ("polygon", {"exterior_node_tokens": ["n0", "n1"]}, "3 nodes or more, found 2"),
            ("drivable_area", {"polygon_tokens": ["gone"]}, "'polygon_tokens' is 'gone'"),
            ("node", {"x": float("inf")}, "'x': expected a finite number, found inf"),
        ],
    )
    def test_bad_records(self, tiny, layer, values, expected):
        tiny.drivable[layer][0].update(values)
        tiny.write()
        with pytest.raises(InputError, match=expected):
            nuscenes.read_drivable_area(tiny.root, LOCATION)


class TestVersions:
    def test_the_only_one(self, tiny):
        assert nuscenes.find_version(tiny.root, None) == VERSION

    def test_several_need_a_choice(self, tiny):
        (tiny.root / "v1.0-mini").mkdir()
        with pytest.raises(InputError, match=r"found v1\.0-trainval, v1\.0-mini.*--version"):
            nuscenes.find_version(tiny.root, None)
        assert nuscenes.find_version(tiny.root, "v1.0-mini") == "v1.0-mini"

    def test_absent(self, tiny, tmp_path):
        with pytest.raises(InputError, match=r"v1\.0-test.*found v1\.0-trainval"):
            nuscenes.find_version(tiny.root, "v1.0-test")
        with pytest.raises(InputError, match="no such folder"):
            nuscenes.find_version(tmp_path / "nowhere", None)


class TestOfficialSplits:
    def test_sizes(self):
        splits = list(nuscenes_splits.split_of_scene("v1.0-trainval").values())
        assert [splits.count(s) for s in ("train", "val", "test")] == [700, 150, 150]
        assert len(nuscenes_splits.split_of_scene("v1.0-mini")) == 10

    @pytest.mark.interop
    def test_are_the_devkits(self, interop_python):
        code = (
            "import json; from nuscenes.utils.splits import create_splits_scenes as f; print(json.dumps(f()))"
        )
        done = subprocess.run([interop_python, "-c", code], capture_output=True, text=True, check=True)
        theirs = json.loads(done.stdout.splitlines()[-1])
        for version, prefix in (("v1.0-trainval", ""), ("v1.0-mini", "mini_")):
            ours = nuscenes_splits.split_of_scene(version)
            for split in set(ours.values()):
                assert {name for name, s in ours.items() if s == split} == set(theirs[prefix + split])


@pytest.mark.real_data
def test_real_keyframe(real_data):
    root = real_data / "nuscenes"
    (frame,) = nuscenes.read_frames(root, nuscenes.find_version(root, None))
    assert frame.location == "singapore-onenorth"
    np.testing.assert_allclose(frame.map_pose_ego[:2], [411.304, 1180.890], atol=1e-3)
    np.testing.assert_allclose(np.rad2deg(frame.map_pose_ego[2]), -110.217, atol=1e-2)
    front = frame.cameras[1]
    assert (front.channel, front.width, front.height) == ("CAM_FRONT", 1600, 900)
    np.testing.assert_allclose(front.intrinsics[0, 0], 1266.417, atol=1e-3)
    # The optical axis of the front camera points forward, of the back camera backward.
    assert front.ego_T_camera[0, 2] > 0.99
    assert frame.cameras[4].ego_T_camera[0, 2] < -0.99
    nuscenes.check_files([frame])
    assert len(nuscenes.read_drivable_area(root, frame.location)) == 7
