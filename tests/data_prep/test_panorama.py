"""Panoramas: the published mapping pixel by pixel, the layout, the calibrated one by rays, and damage."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_prep import panorama
from data_prep.errors import InputError
from data_prep.panorama import Stitcher, azimuths, elevations
from data_prep.raw import kitti360_cameras
from data_prep.raw.kitti360_cameras import FisheyeCamera
from tests.data_prep import scan_trees


@pytest.fixture
def cameras(tmp_path) -> tuple[FisheyeCamera, FisheyeCamera]:
    tree = scan_trees.write_kitti360(tmp_path, fisheyes=True)
    left, right = (kitti360_cameras.read_fisheye(tree.root, name) for name in kitti360_cameras.FISHEYES)
    return left, right


def pictures(width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    left, right = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    return left, right


def published(left: np.ndarray, right: np.ndarray, height: int, width: int) -> np.ndarray:
    """The converter as its authors describe it, pixel by pixel; then mirrored."""
    side = left.shape[1], left.shape[0]
    aperture = math.radians(185)
    merged = np.zeros((height, width, 3), np.uint8)
    for row, column in itertools.product(range(height), range(width)):
        source, facing = (right, column + width // 2) if column < width // 2 else (left, column)
        longitude = (2 * facing / width - 1) * math.pi
        latitude = (2 * row / height - 1) * math.pi / 2
        x = math.cos(latitude) * math.cos(longitude)
        y = math.cos(latitude) * math.sin(longitude)
        z = math.sin(latitude)
        radius = 2 * math.atan2(math.hypot(x, z), y) / aperture
        around = math.atan2(z, x)
        u = (radius * math.cos(around) + 1) / 2 * side[0]
        v = (radius * math.sin(around) + 1) / 2 * side[1]
        merged[row, column] = source[min(math.floor(v), side[1] - 1), min(math.floor(u), side[0] - 1)]
    return merged[:, ::-1]


def views(cameras: Sequence[FisheyeCamera]) -> list[np.ndarray]:
    """What the fisheyes see of a far sphere painted with `colour_of`, by the inverse of the camera model."""
    images = []
    for camera in cameras:
        grid = np.stack(np.meshgrid(np.arange(camera.size[0]), np.arange(camera.size[1])), -1)
        rays, valid = kitti360_cameras.unproject(camera, grid)
        lidar_rays = rays @ camera.lidar_T_camera[:3, :3].T
        images.append(np.where(valid[..., None], colour_of(lidar_rays), 0).astype(np.uint8))
    return images


def colour_of(rays: np.ndarray) -> np.ndarray:
    """(..., 3) unit rays → (..., 3) a colour that tells the direction, smooth all over the sphere."""
    return 128 + 100 * rays


def test_the_published_mapping_pixel_by_pixel():
    left, right = pictures(30, 30)
    stitched = Stitcher("equidistant185", (30, 30), (30, 30), (30, 60))(left, right)
    np.testing.assert_array_equal(stitched, published(left, right, 30, 60))


def test_a_part_of_the_rows_is_that_part_of_the_whole():
    left, right = pictures(40, 40)
    part = Stitcher("equidistant185", (40, 40), (40, 40), (32, 80), rows=(0.1, 0.9))(left, right)
    np.testing.assert_array_equal(part, published(left, right, 40, 80)[4:36])


def test_the_smallest_part_is_one_row(cameras):
    for method in panorama.METHODS:
        stitcher = Stitcher(method, *cameras, (1, 64), rows=(0.99, 1.0))
        assert stitcher(*pictures(*scan_trees.FISHEYE_SIZE)).shape == (1, 64, 3)


def test_smaller_panoramas_are_means_over_areas():
    """Shrinking by 4: each pixel the mean of 4 x 4 nearest pixels of the full resolution."""
    left, right = pictures(40, 40)
    small = Stitcher("equidistant185", (40, 40), (40, 40), (10, 20))(left, right)
    full = published(left, right, 40, 80).astype(float)
    means = full.reshape(10, 4, 20, 4, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(small, means, atol=0.51)


def test_larger_panoramas_and_odd_sizes():
    left, right = pictures(30, 28)
    for method in ("equidistant185", "v360"):
        for size in ((64, 90), (21, 33), (1, 1)):
            panorama_ = Stitcher(method, (30, 28), (30, 28), size)(left, right)
            assert panorama_.shape == (*size, 3)
            assert panorama_.dtype == np.uint8


@pytest.mark.parametrize("method", panorama.METHODS)
def test_halves_and_their_order(cameras, method):
    """02 on the left and 03 on the right, each as its camera sees it: what is left in it stays left."""
    width, height = scan_trees.FISHEYE_SIZE
    left, right = (np.zeros((height, width, 3), np.uint8) for _ in range(2))
    left[..., 0], right[..., 1] = 200, 200
    left[:, width // 2 :, 2] = 100  # the right half of each image, which looks forward in 02, back in 03
    right[:, width // 2 :, 2] = 100
    stitched = Stitcher(method, *cameras, (32, 64))(left, right)[12:20].astype(int)  # about the horizon
    assert (stitched[:, 2:30, 0] > 190).all()
    assert (stitched[:, 2:30, 1] == 0).all()
    assert (stitched[:, 34:62, 1] > 190).all()
    assert (stitched[:, 34:62, 0] == 0).all()
    for middle in (16, 48):
        assert (stitched[:, middle - 12 : middle - 4, 2] == 0).all()
        assert (stitched[:, middle + 4 : middle + 12, 2] > 90).all()


@pytest.mark.parametrize("method", panorama.METHODS)
def test_up_is_up(cameras, method):
    width, height = scan_trees.FISHEYE_SIZE
    image = np.zeros((height, width, 3), np.uint8)
    image[: height // 2] = 200
    stitched = Stitcher(method, *cameras, (32, 64))(image, image)
    assert (stitched[3:12, 8:24] == 200).all()
    assert (stitched[20:29, 40:56] == 0).all()


def test_calibrated_panorama_shows_the_azimuths_of_the_lidar(cameras):
    """Of a far sphere whose colour is the direction, seen through both lenses, 3° and 2° off their sides."""
    large = [
        dataclasses.replace(c, size=(450, 450), gamma1=5 * c.gamma1, gamma2=5 * c.gamma1, u0=225.0, v0=224.0)
        for c in cameras
    ]
    stitched = Stitcher("mei", *large, (90, 180))(*views(large)).astype(float)
    azimuth, elevation = azimuths(180), elevations(90)[:, None]
    rays = np.stack(
        np.broadcast_arrays(
            np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)
        ),
        axis=-1,
    )
    off = np.abs(stitched - colour_of(rays)).max(axis=-1)
    assert np.median(off) < 1
    # A hundredth of the circle would be 6 colours. Only seams and what no lens sees may be off.
    assert (off < 2.5).mean() > 0.97
    assert off[30:60].max() < 2.5


def test_each_ray_from_the_camera_that_looks_nearer(cameras):
    """Both turned forward by 40°: the seam in front stays there, and what neither sees behind is black."""
    width, height = scan_trees.FISHEYE_SIZE
    turned = []
    for camera, yaw in zip(cameras, (-43, 37), strict=True):  # their axes are at 93° and -87°
        lidar_T_camera = camera.lidar_T_camera.copy()
        turn = Rotation.from_euler("z", yaw, degrees=True).as_matrix()
        lidar_T_camera[:3, :3] = turn @ lidar_T_camera[:3, :3]
        turned.append(dataclasses.replace(camera, lidar_T_camera=lidar_T_camera))
    red, green = (np.full((height, width, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 255, 0)))
    horizon = Stitcher("mei", *turned, (64, 128))(red, green)[30:34].astype(int)
    assert (horizon[:, 8:63, 0] > 250).all()
    assert (horizon[:, 65:-8, 1] > 250).all()
    np.testing.assert_array_equal(horizon[:, [0, -1]], 0)


def test_azimuths_and_elevations():
    np.testing.assert_allclose(np.degrees(azimuths(4)), [135, 45, -45, -135])
    np.testing.assert_allclose(np.degrees(elevations(2)), [45, -45])
    np.testing.assert_allclose(np.degrees(elevations(2, (0.25, 0.75))), [22.5, -22.5])


def test_files_as_rgb(tmp_path):
    tree = scan_trees.write_kitti360(tmp_path, fisheyes=True)
    files = [kitti360_cameras.fisheye_file(tree.root, "0003", name, 6) for name in kitti360_cameras.FISHEYES]
    size = scan_trees.FISHEYE_SIZE
    stitched = Stitcher("equidistant185", size, size, (16, 32)).stitch_files(*files)
    for column, name in ((8, "image_02"), (24, "image_03")):
        np.testing.assert_array_equal(stitched[8, column], scan_trees.FISHEYE_COLOURS[name])


def break_missing(path):
    path.unlink()


def break_truncated(path):
    path.write_bytes(path.read_bytes()[:-20])


def break_empty(path):
    path.write_bytes(b"")


def break_size(path):
    scan_trees.write_image(path, (64, 24))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (
            break_missing,
            r"image_03.*expected the image of a pair.*partner.*image_02.*is there.*leave this frame",
        ),
        (break_truncated, r"image_03.*expected a whole PNG image"),
        (break_empty, r"image_03.*expected a whole PNG image, found 0 bytes"),
        (break_size, r"image_03.*expected 90 x 88 pixels, .*found 64 x 24"),
    ],
)
def test_damaged_pairs(tmp_path, damage, complaint):
    tree = scan_trees.write_kitti360(tmp_path, fisheyes=True)
    files = [kitti360_cameras.fisheye_file(tree.root, "0003", name, 6) for name in kitti360_cameras.FISHEYES]
    damage(files[1])
    size = scan_trees.FISHEYE_SIZE
    with pytest.raises(InputError, match=complaint):
        Stitcher("equidistant185", size, size, (16, 32)).stitch_files(*files)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"method": "ffmpeg"}, r"--pano: expected one of equidistant185, v360, mei, found 'ffmpeg'"),
        ({"method": "mei"}, r"--pano mei: expected the calibration of image_02 and image_03"),
        ({"right": (30, 31)}, r"expected images of one size.*found 30 x 30 and 30 x 31"),
        ({"size": (0, 10)}, r"--image-size: expected a height and a width"),
        ({"size": (10, 100_000)}, r"--image-size: expected a height and a width of 1 to 8192 pixels"),
        ({"left": (30_000, 30_000), "right": (30_000, 30_000)}, r"at most 8192 pixels a side, found 30000 x"),
        ({"rows": (0.5, 0.5001)}, r"rows: expected a part of the height"),
        ({"rows": (0.9, 0.1)}, r"rows: expected a part of the height"),
    ],
)
def test_options_that_do_not_fit(changes, complaint):
    options = {"method": "equidistant185", "left": (30, 30), "right": (30, 30), "size": (15, 30)} | changes
    with pytest.raises(InputError, match=complaint):
        Stitcher(**options)


@pytest.mark.parametrize("shape", [(30, 31, 3), (30, 30), (30, 30, 4)])
def test_arrays_of_another_size(shape):
    stitcher = Stitcher("equidistant185", (30, 30), (30, 30), (15, 30))
    with pytest.raises(InputError, match=r"image_03: expected 30 x 30 pixels in 8-bit colour"):
        stitcher(np.zeros((30, 30, 3), np.uint8), np.zeros(shape, np.uint8))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


@pytest.mark.real_data
@pytest.mark.parametrize(("method", "at_least"), [("equidistant185", 0.975), ("v360", 0.998)])
def test_the_published_panorama_of_the_real_pair(real_data, method, at_least):
    """Rows 10 % to 90 % at 700x280; both halves, and neither way round when mirrored."""
    folder = real_data / "kitti360"
    files = [folder / f"drive0003_{name}_0000000000.png" for name in kitti360_cameras.FISHEYES]
    expected = cv2.imread(str(folder / "drive0003_pano_0000000000_resize.png"), cv2.IMREAD_COLOR_RGB)
    found = Stitcher(method, (1400, 1400), (1400, 1400), (280, 700), rows=(0.1, 0.9)).stitch_files(*files)
    assert correlation(found[:, :350], expected[:, :350]) > at_least
    assert correlation(found[:, 350:], expected[:, 350:]) > at_least
    assert correlation(found[:, ::-1], expected) < 0.2
