"""Depth differences: two points by hand, and what must add exactly nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.ops.depth_supervision import depth_differences

HEIGHT, WIDTH = 6, 10
INTRINSICS = np.array([[5, 0, 5], [0, 5, 3], [0, 0, 1]], np.float32)
CAMERA = np.eye(4, dtype=np.float32)  # the LiDAR frame is the camera's: x right, y down, z ahead


def point(u, v, z):
    """The point at pixel (u, v) and depth z."""
    return [(u - 5) / 5 * z, (v - 3) / 5 * z, z]


def differences(points, depth, mask=None, camera_mask=None, cameras=1):
    points = np.asarray(points, np.float32)[None]
    mask = np.ones(points.shape[:2], bool) if mask is None else np.asarray(mask)[None]
    camera_mask = np.ones((1, cameras), bool) if camera_mask is None else np.asarray(camera_mask)[None]
    tiled = np.broadcast_to(INTRINSICS, (1, cameras, 3, 3)), np.broadcast_to(CAMERA, (1, cameras, 4, 4))
    return jax.jit(depth_differences)(points, mask, depth, *tiled, camera_mask)


def test_two_points_by_hand():
    """(3.7, 2.2) reads pixel (3, 2), (8.9, 4.99) pixel (8, 4): floors, not the nearest."""
    depth = np.full((1, 1, HEIGHT, WIDTH), 99.0, np.float32)
    depth[0, 0, 2, 3], depth[0, 0, 4, 8] = 7.5, 12.0
    total, count = differences([point(3.7, 2.2, 10.0), point(8.9, 4.99, 11.0)], depth)
    np.testing.assert_allclose(total, [2.5 + 1.0], rtol=1e-5)
    assert count[0] == 2


OUT = {
    "left of the image": point(-0.5, 3, 10),
    "below the image": point(4, 6.5, 10),
    "on the left border": point(0.5, 3, 10),
    "on the right border": point(9.5, 3, 10),
    "on the upper border": point(4, 0.9, 10),
    "on the lower border": point(4, 5.1, 10),
    "behind": point(4, 3, -10),
    "at the camera": [0.0, 0.0, 0.0],
    "too near": point(4, 3, 0.9),
    "too far": point(4, 3, 80.1),
}


@pytest.mark.parametrize("where", OUT)
def test_point_that_does_not_count_adds_nothing_and_has_no_gradient(where):
    depth = np.full((1, 1, HEIGHT, WIDTH), 3.0, np.float32)

    def total(depth):
        sums, count = differences([OUT[where]], depth)
        return sums[0], count[0]

    (value, count), gradient = jax.value_and_grad(total, has_aux=True)(depth)
    assert (value, count) == (0, 0)
    assert not gradient.any()


def test_padding_and_missing_cameras_add_nothing():
    depth = jnp.full((1, 2, HEIGHT, WIDTH), 3.0)
    inside = [point(4.5, 3.5, 10.0)] * 3
    mask, camera_mask = [True, False, True], [False, True]
    gradient, (value, count) = jax.grad(
        lambda d: (lambda s, c: (s[0], (s[0], c[0])))(*differences(inside, d, mask, camera_mask, 2)),
        has_aux=True,
    )(depth)
    np.testing.assert_allclose((value, count), (14.0, 2))
    expected = np.zeros((1, 2, HEIGHT, WIDTH))
    expected[0, 1, 3, 4] = -2.0
    np.testing.assert_array_equal(gradient, expected)


def test_nothing_seen_is_zero_and_finite():
    nothing = [[np.nan] * 3], np.full((1, 1, HEIGHT, WIDTH), 3.0, np.float32)
    assert differences(*nothing, mask=[False])[0][0] == 0
    assert not jax.grad(lambda d: differences(nothing[0], d, mask=[False])[0][0])(nothing[1]).any()
