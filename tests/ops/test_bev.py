"""Warping against analytic displacements."""

import jax
import jax.numpy as jnp
import numpy as np

from placerec_jax.ops import bev
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import se2_inverse


def blob(grid: Grid2D, x: float, y: float, width: float) -> np.ndarray:
    distance = np.square(grid.centers() - [x, y]).sum(-1)
    return np.exp(-distance / (2 * width**2))[None, ..., None].astype(np.float32)


def centroid(image: np.ndarray, grid: Grid2D) -> np.ndarray:
    weight = np.asarray(image)[0, ..., 0]
    return (grid.centers() * weight[..., None]).sum((0, 1)) / weight.sum()


PAPER_BEV = Grid2D((-64.0, 64.0, -32.0, 32.0), 0.5)
PAPER_MAP = Grid2D((-64.0, 64.0, -64.0, 64.0), 0.5)


def test_warp_moves_a_landmark_to_where_the_pose_puts_it():
    """T·q for q = (10.25, 5.25) and T = (6, -3, 10°) is (15.18, 3.95)."""
    pose = jnp.asarray([[6.0, -3.0, np.deg2rad(10.0)]])
    moved = bev.warp_se2(jnp.asarray(blob(PAPER_BEV, 10.25, 5.25, 1.0)), pose, PAPER_BEV, PAPER_MAP)
    np.testing.assert_allclose(centroid(moved, PAPER_MAP), [15.18, 3.95], atol=0.02)


def test_warp_by_the_identity_is_exact_and_zero_outside():
    features = jnp.asarray(np.random.default_rng(0).normal(size=(1, *PAPER_BEV.shape, 2)), jnp.float32)
    moved = bev.warp_se2(features, jnp.zeros((1, 3)), PAPER_BEV, PAPER_MAP)
    np.testing.assert_array_equal(moved[:, :, 64:192], features)
    assert not np.any(moved[:, :, :64])
    assert not np.any(moved[:, :, 192:])


def test_inverse_warp_restores_a_smooth_image():
    pose = jnp.asarray([[3.3, -2.1, 0.3]])
    smooth = jnp.asarray(blob(PAPER_MAP, 5.0, -8.0, 4.0))
    there = bev.warp_se2(smooth, pose, PAPER_MAP, PAPER_MAP)
    back = bev.warp_se2(there, se2_inverse(pose), PAPER_MAP, PAPER_MAP)
    np.testing.assert_allclose(back, smooth, atol=0.01)


def test_warp_gradient_points_towards_the_target():
    """Moving x forward raises the overlap with a blob that lies further forward."""
    image, target = blob(PAPER_MAP, 0.0, 0.0, 3.0), blob(PAPER_MAP, 2.0, -1.0, 3.0)

    def overlap(pose):
        return jnp.sum(bev.warp_se2(jnp.asarray(image), pose[None], PAPER_MAP, PAPER_MAP) * target)

    gradient = jax.grad(overlap)(jnp.zeros(3))
    assert gradient[0] > 0 > gradient[1]
