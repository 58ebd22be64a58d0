"""The cameras of KITTI-360: files as published, the chain to the LiDAR, the model MEI, and damage."""

import dataclasses
import math
import re

import numpy as np
import pytest

from data_prep.errors import InputError
from data_prep.raw import kitti360_cameras
from data_prep.raw.kitti360_cameras import FisheyeCamera, project, unproject
from tests.data_prep import scan_trees


@pytest.fixture
def tree(tmp_path) -> scan_trees.Kitti360Tree:
    return scan_trees.write_kitti360(tmp_path, fisheyes=True)


@pytest.fixture
def left(tree) -> FisheyeCamera:
    return kitti360_cameras.read_fisheye(tree.root, "image_02")


def reference_pixel(camera: FisheyeCamera, point: tuple[float, float, float]) -> tuple[float, float]:
    """The model, number by number."""
    x, y, z = (coordinate / math.hypot(*point) for coordinate in point)
    x, y = x / (z + camera.xi), y / (z + camera.xi)
    square = x * x + y * y
    factor = 1 + camera.k1 * square + camera.k2 * square * square
    return camera.gamma1 * factor * x + camera.u0, camera.gamma2 * factor * y + camera.v0


def test_a_fisheye_is_read_as_published(left):
    """With the first line that is no YAML, nested keys, and no space after one colon."""
    expected = scan_trees.FISHEYES["image_02"]
    assert {key: getattr(left, key) for key in expected} == expected
    assert (left.name, left.size) == ("image_02", scan_trees.FISHEYE_SIZE)
    assert all(isinstance(side, int) for side in left.size)


@pytest.mark.parametrize("name", kitti360_cameras.FISHEYES)
def test_chain_from_fisheye_to_lidar(tree, name):
    """cam0_to_velo · cam0_to_pose⁻¹ · camk_to_pose, which is where the tree's rig has them."""
    camera = kitti360_cameras.read_fisheye(tree.root, name)
    np.testing.assert_allclose(camera.imu_T_camera, scan_trees.IMU_T_FISHEYE[name], atol=1e-12)
    expected = (
        scan_trees.LIDAR_T_CAMERA0 @ np.linalg.inv(scan_trees.IMU_T_CAMERA0) @ scan_trees.IMU_T_FISHEYE[name]
    )
    np.testing.assert_allclose(camera.lidar_T_camera, expected, atol=1e-9)
    side = {"image_02": 1.0, "image_03": -1.0}[name]
    assert side * camera.lidar_T_camera[1, 2] > 0.99  # the optical axis along ± y of the LiDAR
    assert side * camera.lidar_T_camera[1, 3] > 0


def test_perspective_cameras(tree):
    """Both rectified ones, as the reader of scans has them as well."""
    camera = kitti360_cameras.read_perspective(tree.root, "image_00")
    np.testing.assert_array_equal(camera.intrinsics, scan_trees.K)
    assert camera.size == scan_trees.IMAGE_SIZE
    rectify = np.eye(4)
    rectify[:3, :3] = scan_trees.RECTIFY
    np.testing.assert_allclose(camera.camera_T_lidar, rectify @ scan_trees.CAMERA0_T_LIDAR, atol=1e-9)
    right = kitti360_cameras.read_perspective(tree.root, "image_01")
    np.testing.assert_allclose(
        np.linalg.norm((camera.camera_T_lidar @ np.linalg.inv(right.camera_T_lidar))[:3, 3]), 0.6
    )


def test_the_optical_axis_is_the_principal_point(left):
    pixels, valid = project(left, np.array([[0, 0, 1.0], [0, 0, 17.0]]))
    np.testing.assert_allclose(pixels, [[left.u0, left.v0]] * 2, rtol=0, atol=0)
    assert valid.all()


def test_projection_against_the_formula(left):
    points = np.random.default_rng(0).normal(size=(50, 3)) * 10
    pixels, valid = project(left, points)
    expected = [reference_pixel(left, tuple(point)) for point in points]
    np.testing.assert_allclose(pixels, expected, atol=1e-9)
    np.testing.assert_array_equal(project(left, 3 * points)[1], valid)  # rays, not distances
    behind = points[:, 2] < -np.linalg.norm(points, axis=1) / left.xi
    assert behind.any()
    assert not valid[behind].any()
    # The image's width and height are what 185 degrees of the lens fill.
    assert valid[points[:, 2] > 0].all()


@pytest.mark.parametrize(
    ("xi", "k1", "k2"),
    [(2.2134, 0.0168, 1.6549), (2.5535, 0.0494, 4.5068), (0.9, -0.2, 0.05), (0.0, 0.0, 0.0)],
)
def test_round_trips(left, xi, k1, k2):
    """Also for ξ < 1, for a distortion that turns back, and for a pinhole."""
    camera = dataclasses.replace(
        left, xi=xi, k1=k1, k2=k2, size=(4000, 4000), u0=2000.0, v0=2000.0, gamma1=700.0, gamma2=690.0
    )
    rays = np.random.default_rng(1).normal(size=(4000, 3))
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    pixels, valid = project(camera, rays)
    assert 0.3 < valid.mean() < 0.9
    again, reached = unproject(camera, pixels[valid])
    assert reached.all()
    np.testing.assert_allclose(again, rays[valid], atol=1e-6)
    grid = np.stack(np.meshgrid(np.linspace(0, 3999, 40), np.linspace(0, 3999, 40)), -1)
    rays, reached = unproject(camera, grid)
    assert reached.any()
    pixels, valid = project(camera, rays[reached])
    np.testing.assert_allclose(pixels[valid], grid[reached][valid], atol=1e-4)
    assert valid.all()


def test_what_the_model_folds_back_is_not_valid(left):
    """Strong negative distortion: the radius grows, then shrinks: a pixel's second ray is no view."""
    camera = dataclasses.replace(left, xi=1.0, k1=-1.0, k2=0.0, size=(9000, 9000), u0=4500.0, v0=4500.0)
    angles = np.linspace(0, np.pi - 0.2, 300)
    rays = np.stack([np.sin(angles), np.zeros(300), np.cos(angles)], -1)
    pixels, valid = project(camera, rays)
    assert valid[0]
    assert not valid[-1]
    assert (np.diff(pixels[valid, 0]) > 0).all()
    assert np.flatnonzero(valid).max() == valid.sum() - 1
    radius = np.tan(angles[valid].max() / 2)  # ξ = 1: ρ = tan(θ/2); the turn is at 1 - 3ρ² = 0
    assert radius == pytest.approx(1 / math.sqrt(3), abs=0.01)


def test_nothing_and_nan_are_not_valid(left):
    _, valid = project(left, np.array([[0, 0, 0], [np.nan, 0, 1], [0, 0, 1.0]]))
    np.testing.assert_array_equal(valid, [False, False, True])


def test_files_of_images(tree):
    path = kitti360_cameras.fisheye_file(tree.root, "0003", "image_03", 12)
    folder = tree.root / "data_2d_raw" / "2013_05_28_drive_0003_sync"
    assert path == folder / "image_03" / "data_rgb" / "0000000012.png"


@pytest.mark.parametrize(
    ("file", "before", "after", "complaint"),
    [
        ("image_02.yaml", "xi:", "eta:", "expected the key xi, found %YAML, model_type, camera_name"),
        ("image_02.yaml", "model_type: MEI", "model_type: KANNALA_BRANDT", "expected the camera model MEI"),
        ("image_02.yaml", "k1:", "k1: .Nan #", "expected 1 finite numbers after k1:, found '.Nan"),
        ("image_02.yaml", "gamma1:", "gamma1: nan #", "expected 1 finite numbers after gamma1:"),
        ("image_02.yaml", "gamma2:", "gamma2: -5 #", "positive gamma1 and gamma2"),
        ("image_02.yaml", "image_width:", "image_width: 0 #", "a width and a height in pixels"),
        ("image_02.yaml", "image_height:", "image_height: 700.5 #", "a width and a height in pixels"),
        (
            "calib_cam_to_pose.txt",
            "image_02:",
            "camera2:",
            "expected the key image_02, found image_00, image_01",
        ),
        (
            "calib_cam_to_pose.txt",
            "image_02: ",
            "image_02: nan ",
            "expected 12 finite numbers after image_02",
        ),
        ("calib_cam_to_pose.txt", "image_00: ", "image_00: 3 4", "expected"),
    ],
)
def test_damage_names_the_file_and_the_key(tree, file, before, after, complaint):
    path = tree.calibration / file
    text = path.read_text()
    assert before in text
    changed = text.replace(before, after, 1)
    if after.endswith("#"):  # the old number behind a comment sign would be a second word
        changed = re.sub(r" #.*", "", changed)
    path.write_text(changed)
    with pytest.raises(InputError, match=re.escape(complaint)) as caught:
        kitti360_cameras.read_fisheye(tree.root, "image_02")
    assert file in str(caught.value)
    assert "calibration.zip" in str(caught.value)


@pytest.mark.parametrize("file", ["image_03.yaml", "calib_cam_to_pose.txt", "calib_cam_to_velo.txt"])
def test_missing_files(tree, file):
    (tree.calibration / file).unlink()
    with pytest.raises(
        InputError, match=rf"{file}: expected this file, found none\. Unpack calibration\.zip"
    ):
        kitti360_cameras.read_fisheye(tree.root, "image_03")


def test_cut_off_anywhere_is_an_error_or_whole(tree):
    """Whatever part of the file is there: no other exception, and no camera with numbers missing."""
    path = tree.calibration / "image_02.yaml"
    text = path.read_text().rstrip()
    last = text.rindex(" ")  # from here on the last number alone is shorter
    for end in range(0, last, 7):
        path.write_text(text[:end])
        with pytest.raises(InputError, match=r"image_02\.yaml: expected"):
            kitti360_cameras.read_fisheye(tree.root, "image_02")


@pytest.mark.parametrize(("reader", "name"), [("read_fisheye", "image_00"), ("read_perspective", "image_02")])
def test_cameras_of_the_other_kind(tree, reader, name):
    with pytest.raises(InputError, match=f"camera: expected one of .*found '{name}'"):
        getattr(kitti360_cameras, reader)(tree.root, name)


@pytest.mark.real_data
def test_the_real_calibration(real_data, tmp_path):
    """Published numbers: the axis is the principal point, the rim of 185° lies within the image's border."""
    values = dict(
        line.rsplit(": ", 1)
        for line in (real_data / "kitti360" / "calib_values.txt").read_text().splitlines()
        if ": " in line
    )
    tree = scan_trees.write_kitti360(tmp_path, fisheyes=True)
    names = ("xi", "k1", "k2", "p1", "p2", "gamma1", "gamma2", "u0", "v0")
    for name in kitti360_cameras.FISHEYES:
        (text,) = (numbers for key, numbers in values.items() if key.startswith(name))
        numbers = dict(zip(names, map(float, text.split()), strict=True))
        scan_trees.write_fisheye(tree.calibration, name, numbers, (1400, 1400))
        camera = kitti360_cameras.read_fisheye(tree.root, name)
        pixel, valid = project(camera, np.array([0, 0, 1.0]))
        np.testing.assert_array_equal(pixel, [numbers["u0"], numbers["v0"]])
        assert valid
        half = np.radians(185 / 2)
        rim, valid = project(
            camera, np.array([[-np.sin(half), 0, np.cos(half)], [np.sin(half), 0, np.cos(half)]])
        )
        radius = np.abs(rim[:, 0] - camera.u0)
        assert ((radius > 640) & (radius < 740)).all()
