"""The lenses of the city's cameras, by the equations of the models written out ray by ray."""

import math

import numpy as np
import pytest

from data_prep.city import sensors, write_kitti360
from data_prep.city.lenses import PINHOLE, Mei

# As KITTI-360 publishes them of its two fisheyes.
LEFT = Mei(2.2134047507854890, 0.016798235660113681, 1.6548773243373522, 98.5)
RIGHT = Mei(2.5535139132482758, 0.049370396274089505, 4.5068455478645308, 98.5)


def on_the_plane(lens: Mei, direction: np.ndarray) -> tuple[float, float]:
    """The MEI model of one ray, forwards."""
    x, y, z = direction / math.sqrt(sum(v * v for v in direction))
    x, y = x / (z + lens.xi), y / (z + lens.xi)
    square = x * x + y * y
    return tuple(v * (1 + lens.k1 * square + lens.k2 * square * square) for v in (x, y))


@pytest.mark.parametrize("lens", [LEFT, RIGHT, Mei(0.8, -0.2, 0.05, 80.0), Mei(1.0, 0.0, 0.0, 100.0)])
def test_mei_lifts_what_the_model_projects(lens):
    rng = np.random.default_rng(0)
    angle = np.radians(lens.half_aperture) * np.append(rng.random(200), [0, 1e-6, 1])
    around = rng.uniform(-np.pi, np.pi, len(angle))
    rays = np.stack([np.sin(angle) * np.cos(around), np.sin(angle) * np.sin(around), np.cos(angle)], 1)
    plane = np.array([on_the_plane(lens, ray) for ray in rays])
    assert np.all(np.hypot(*plane.T) <= lens.rim * (1 + 1e-12))
    np.testing.assert_allclose(lens.lift(plane), rays, atol=1e-9)


@pytest.mark.parametrize("lens", [PINHOLE, LEFT, RIGHT])
def test_spread_is_the_angle_of_a_small_step_in_the_middle(lens):
    middle, beside = lens.lift(np.array([[0.0, 0.0], [1e-4, 0.0]]))
    assert np.arccos(middle @ beside / np.linalg.norm(beside)) / 1e-4 == pytest.approx(lens.spread, rel=1e-3)


@pytest.fixture(scope="module")
def rig() -> sensors.Rig:
    return sensors.make_rig((352, 94), np.random.default_rng(3), write_kitti360.RIG, fisheye_side=200)


def test_fisheyes_see_a_circle_of_more_than_185_degrees(rig):
    for channel in ("image_02", "image_03"):
        camera = rig.camera(channel)
        seen = camera.seen.reshape(200, 200)
        rays = camera.rays() @ camera.ego_T_camera[:3, :3]
        assert len(rays) == seen.sum()
        assert not seen[[0, 0, -1, -1], [0, -1, 0, -1]].any()
        # The circle fills the image: 700 of 1400 pixels from the middle, as in the real ones.
        assert 0.74 < seen.mean() < 0.80
        angle = np.degrees(np.arccos(rays[:, 2]))
        assert 97.5 < angle.max() <= 98.5
        assert angle.min() < 1
        # Each ray comes back to the middle of its pixel.
        rows, columns = np.nonzero(seen)
        (gamma1, _, u0), (_, gamma2, v0), _ = camera.intrinsics
        for k in range(0, len(rays), 997):
            x, y = on_the_plane(camera.lens, rays[k].astype(np.float64))
            assert gamma1 * x + u0 == pytest.approx(columns[k] + 0.5, abs=1e-3)
            assert gamma2 * y + v0 == pytest.approx(rows[k] + 0.5, abs=1e-3)


def test_fisheyes_look_to_the_sides_and_scale_with_their_image(rig):
    for channel, side in (("image_02", 1), ("image_03", -1)):
        camera = rig.camera(channel)
        assert camera.ego_T_camera[1, 2] * side > np.cos(np.radians(3))  # the axis
        assert camera.ego_T_camera[2, 1] < -0.99  # rows run downwards
        assert camera.ego_T_camera[1, 3] * side > 0.4
        large = sensors.make_rig((1408, 376), np.random.default_rng(3), write_kitti360.RIG, 1400)
        np.testing.assert_allclose(camera.intrinsics[:2] * 7, large.camera(channel).intrinsics[:2])
        mount = write_kitti360.RIG.cameras[channel]
        np.testing.assert_allclose(large.camera(channel).intrinsics[0, 0], mount.focal[0], atol=20)
        # No two cameras are the same, and none is as it was meant to be.
        assert not np.allclose(camera.intrinsics[0, 0] * 7, mount.focal[0], atol=0.01)


def test_the_right_perspective_camera_is_rectified_with_the_left(rig):
    left, right = rig.camera("image_00"), rig.camera("image_01")
    np.testing.assert_array_equal(left.intrinsics, right.intrinsics)
    left_T_right = np.linalg.inv(left.ego_T_camera) @ right.ego_T_camera
    moved = np.eye(4)
    moved[0, 3] = 0.594
    np.testing.assert_allclose(left_T_right, moved, atol=1e-12)


def test_pinholes_see_with_all_of_their_pixels():
    (camera, *_) = sensors.make_rig((160, 90), np.random.default_rng(0)).cameras
    assert camera.seen.all()
    assert camera.rays().shape == (160 * 90, 3)
    assert camera.pixel_angle == pytest.approx(10 / 1272.6, rel=0.02)
