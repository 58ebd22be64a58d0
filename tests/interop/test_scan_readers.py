"""The readers of KITTI and KITTI-360 against pykitti and kitti360scripts, on trees by hand and real scans."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_prep.raw import kitti, kitti360, kitti360_cameras
from data_prep.raw.scans import ScanSequence
from tests.data_prep import scan_trees

pytestmark = [pytest.mark.interop, pytest.mark.slow]

PROBES = Path(__file__).parent


@pytest.fixture
def probe(interop_python, tmp_path) -> Callable[..., dict[str, np.ndarray]]:
    """`probe(name, root, sequence …)`: the arrays that tests/interop/<name>_probe.py writes of a root."""

    def run(name: str, root: Path, *sequences: str) -> dict[str, np.ndarray]:
        out = tmp_path / f"{name}.npz"
        command = [interop_python, PROBES / f"{name}_probe.py", root, out, *sequences]
        subprocess.run(list(map(str, command)), check=True, cwd=tmp_path, timeout=600)
        with np.load(out) as file:
            return dict(file)

    return run


def assert_same_as_pykitti(sequence: ScanSequence, answers: dict[str, np.ndarray]) -> None:
    """Frame by frame: pose, time, points and the pixels of the points."""
    name = sequence.name
    to_camera = answers[f"{name}/camera0_T_lidar"]
    for place, scan in enumerate(sequence.scans):
        pose = np.linalg.inv(to_camera) @ answers[f"{name}/poses"][scan.frame_id] @ to_camera
        np.testing.assert_allclose(scan.map_T_lidar, pose, atol=1e-6)
        assert answers[f"{name}/scan_names"][place] == scan.path.name
        points = kitti.read_points(scan.path)
        np.testing.assert_array_equal(points, answers[f"{name}/scan{place}"])
        assert scan.time == pytest.approx(answers[f"{name}/times"][scan.frame_id], abs=1e-6)


def test_pykitti_reads_the_same_of_a_tree(tmp_path, probe):
    tree = scan_trees.write_kitti(tmp_path / "kitti")
    answers = probe("pykitti", tree.dataset, "03")
    (sequence,) = kitti.read_sequences(tree.root)
    assert len(sequence.scans) == len(answers["03/times"]) == len(answers["03/poses"]) == 6
    assert_same_as_pykitti(sequence, answers)
    for place, scan in enumerate(sequence.scans):
        assert answers["03/image_names"][place] == scan.image.path.name
        assert tuple(answers["03/image_shapes"][place]) == (scan.image.height, scan.image.width, 3)
        np.testing.assert_array_equal(scan.image.intrinsics, answers["03/K2"])
        points = np.column_stack([kitti.read_points(scan.path)[:, :3].astype(float), np.ones(20)])
        expected = points @ (answers["03/P2"] @ answers["03/camera0_T_lidar"]).T
        found = (points @ scan.image.camera_T_lidar.T)[:, :3] @ scan.image.intrinsics.T
        np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.real_data
def test_pykitti_reads_the_same_of_real_sequences(real_data, tmp_path, probe):
    """The real folder has no times, which pykitti insists on: these are made up."""
    real = real_data / "kitti_odometry" / "dataset"
    names = ("00", "08")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "poses").symlink_to(real / "poses")
    for name in names:
        folder = tmp_path / "dataset" / "sequences" / name
        folder.mkdir(parents=True)
        for part in ("velodyne", "calib.txt"):
            (folder / part).symlink_to(real / "sequences" / name / part)
        frames = len((real / "poses" / f"{name}.txt").read_text().splitlines())
        (folder / "times.txt").write_text("".join(f"{0.1 * i:.6e}\n" for i in range(frames)))
    answers = probe("pykitti", tmp_path / "dataset", *names)
    sequences = kitti.read_sequences(tmp_path)
    assert [sequence.name for sequence in sequences] == list(names)
    for sequence in sequences:
        assert_same_as_pykitti(sequence, answers)


@pytest.mark.parametrize("camera", ["image_00", "image_01"])
def test_kitti360scripts_reads_the_same_of_a_tree(tmp_path, probe, camera):
    tree = scan_trees.write_kitti360(tmp_path / "kitti360")
    if camera == "image_01":
        tree.images.parent.rename(tree.images.parent.with_name(camera))
    answers = {key.removeprefix("0003/"): array for key, array in probe("kitti360", tree.root, "3").items()}
    (by_imu,) = kitti360.read_sequences(tree.root, camera=camera)
    (by_camera,) = kitti360.read_sequences(tree.root, pose_source="cam0_to_world")
    k = int(camera[-1])
    assert answers["frames"].tolist() == [0, 1, 2, 3, 4, 6, 7]
    rows = {int(frame): row for row, frame in enumerate(answers[f"camera{k}/frames"])}
    for scan, other in zip(by_imu.scans, by_camera.scans, strict=True):
        # Their pose of a rectified camera, carried on to the LiDAR by their own calibration.
        row = rows[scan.frame_id]
        pose = answers[f"camera{k}/to_world"][row] @ answers[f"camera{k}/rectified_T_lidar"]
        np.testing.assert_allclose(scan.map_T_lidar, pose, atol=1e-9)
        np.testing.assert_allclose(other.map_T_lidar, pose, atol=1e-9)
        points = kitti.read_points(scan.path)
        np.testing.assert_array_equal(points, answers[f"scan{scan.frame_id}"])
        np.testing.assert_array_equal(scan.image.intrinsics, answers[f"camera{k}/K"][:3, :3])
        assert (scan.image.width, scan.image.height) == tuple(answers[f"camera{k}/size"])
        homogeneous = np.column_stack([points[:, :3].astype(float), np.ones(len(points))])
        u, v, depth = scan.image.intrinsics @ (scan.image.camera_T_lidar @ homogeneous.T)[:3]
        theirs = answers[f"camera{k}/pixels{scan.frame_id}"]
        ahead = depth > 0.5
        assert ahead.sum() >= 3
        np.testing.assert_allclose(depth, theirs[:, 2], atol=1e-6)
        found = np.stack([u[ahead], v[ahead]], 1) / depth[ahead, None]
        assert np.abs(found - theirs[ahead, :2]).max() <= 0.5 + 1e-6  # they round to whole pixels


def test_kitti360scripts_sees_the_same_through_fisheyes(tmp_path, probe):
    """Calibration, the model's pixels, and where the cameras are in the world."""
    tree = scan_trees.write_kitti360(tmp_path / "kitti360", fisheyes=True)
    answers = probe("kitti360_fisheye", tree.root, "3")
    (sequence,) = kitti360.read_sequences(tree.root)
    for name in kitti360_cameras.FISHEYES:
        camera = kitti360_cameras.read_fisheye(tree.root, name)
        theirs = {
            key: answers[f"0003/camera{name[-1]}/{key}"]
            for key in ("size", "frames", "poses", "points", "pixels")
        }
        assert camera.size == tuple(theirs["size"])
        pixels, valid = kitti360_cameras.project(camera, theirs["points"])
        assert valid.sum() > 200
        np.testing.assert_allclose(pixels, theirs["pixels"], atol=1e-9)
        rows = {int(frame): row for row, frame in enumerate(theirs["frames"])}
        for scan in sequence.scans:
            pose = theirs["poses"][rows[scan.frame_id]]
            np.testing.assert_allclose(scan.map_T_lidar @ camera.lidar_T_camera, pose, atol=1e-9)
