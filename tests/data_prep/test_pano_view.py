"""The view of a panorama: the scan's points lie where the panorama shows what they were measured of."""

import cv2
import numpy as np
import pytest

from data_prep import pano_view
from data_prep.__main__ import main
from data_prep.panorama import METHODS, Stitcher
from data_prep.raw import kitti360_cameras
from tests.data_prep import scan_trees

SIZE = (128, 256)


@pytest.fixture
def tree(tmp_path) -> scan_trees.Kitti360Tree:
    return scan_trees.write_kitti360(tmp_path / "kitti360", fisheyes=True)


@pytest.fixture
def cameras(tree) -> tuple[kitti360_cameras.FisheyeCamera, ...]:
    return tuple(kitti360_cameras.read_fisheye(tree.root, name) for name in kitti360_cameras.FISHEYES)


@pytest.mark.parametrize("azimuth", [170, 120, 60, 10, -30, -90, -150])
@pytest.mark.parametrize("up", [-0.6, 0.0, 0.5])
def test_a_dot_of_an_image_is_at_its_point(cameras, azimuth, up):
    """A far point, painted into the image that sees it best; then found again in the calibrated panorama."""
    point = 1000 * np.array([[np.cos(np.radians(azimuth)), np.sin(np.radians(azimuth)), up]])
    images = []
    for camera in cameras:
        camera_xyz = (point - camera.lidar_T_camera[:3, 3]) @ camera.lidar_T_camera[:3, :3]
        (pixel,), (valid,) = kitti360_cameras.project(camera, camera_xyz)
        image = np.zeros((camera.size[1], camera.size[0], 3), np.uint8)
        if valid:
            column, row = np.round(pixel).astype(int)
            image[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = 255
        images.append(image)
    stitched = Stitcher("mei", *cameras, SIZE)(*images)[..., 0]
    (column,), (row,), (metres,) = pano_view.seen_at(point, "mei", cameras, SIZE)
    assert stitched[round(row), round(column)] > 120
    assert metres == pytest.approx(1000 * np.hypot(1, up), abs=1)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.calibrated])
def test_optical_axes_are_in_the_middles_of_the_halves(cameras, method):
    for camera, expected in zip(cameras, (64, 192), strict=True):
        on_axis = camera.lidar_T_camera[:3, 3] + 5 * camera.lidar_T_camera[:3, 2]
        right_of_it = on_axis + 2 * camera.lidar_T_camera[:3, 0]
        columns, rows, metres = pano_view.seen_at(np.stack([on_axis, right_of_it]), method, cameras, SIZE)
        assert (columns[0], rows[0], metres[0]) == pytest.approx((expected - 0.5, 63.5, 5))
        assert columns[1] > columns[0] + 10


def test_command(tree, tmp_path, capsys):
    out = tmp_path / "new" / "view.png"
    arguments = ["pano_view", "--raw", str(tree.root), "--out", str(out)]
    assert main([*arguments, "--pano", "mei", "--frame", "6", "--compensate-motion"]) == 0
    assert "mei, sequence 0003, frame 6" in capsys.readouterr().out
    assert min(cv2.imread(str(out)).shape[:2]) > 800
    assert main([*arguments, "--frame", "4"]) == 1
    assert "--frame: expected one of the 5 frames 1 to 7" in capsys.readouterr().err
    (tree.calibration / "image_03.yaml").unlink()
    assert main(arguments) == 1
    assert "image_03.yaml: expected this file, found none" in capsys.readouterr().err
