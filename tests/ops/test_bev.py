"""Splatting against a double loop, and warping against analytic displacements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from placerec_jax.ops import bev
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import se2_inverse

GRID = Grid2D((-4.0, 4.0, -3.0, 3.0), 0.5)
Z_RANGE = (-2.0, 2.0)


def splat_by_loops(context, depth, xyz, camera_mask):
    """Sums every point into its cell, one at a time."""
    result = np.zeros((context.shape[0], *GRID.shape, context.shape[-1]))
    for b, n, v, u, d in np.ndindex(*depth.shape):
        x, y, z = xyz[b, n, v, u, d]
        row, column = int(np.floor((x + 4.0) / 0.5)), int(np.floor((y + 3.0) / 0.5))
        inside = 0 <= row < GRID.shape[0] and 0 <= column < GRID.shape[1] and Z_RANGE[0] <= z < Z_RANGE[1]
        if inside and camera_mask[b, n]:
            result[b, row, column] += depth[b, n, v, u, d] * context[b, n, v, u]
    return result


@pytest.mark.parametrize("seed", range(3))
def test_splat_is_the_double_loop(seed: int):
    rng = np.random.default_rng(seed)
    context = rng.normal(size=(2, 2, 3, 4, 5)).astype(np.float32)
    depth = rng.uniform(size=(2, 2, 3, 4, 6)).astype(np.float32)
    xyz = rng.uniform([-5, -4, -3], [5, 4, 3], (2, 2, 3, 4, 6, 3)).astype(np.float32)
    xyz[0, 0, 0, 0, 0] = [-4.0 - 0.3 * 0.5, 0.0, 0.0]  # -0.3 cells: floor drops it, truncation would keep it
    mask = np.array([[True, False], [True, True]])
    ids = bev.cell_ids(jnp.asarray(xyz), GRID, Z_RANGE)
    ids = jnp.where(mask[:, :, None, None, None], ids, GRID.shape[0] * GRID.shape[1])
    result = jax.jit(bev.splat_segment_sum, static_argnums=3)(context, depth, ids, GRID)
    np.testing.assert_allclose(result, splat_by_loops(context, depth, xyz, mask), atol=1e-5)


def test_points_just_outside_are_dropped():
    just_below = jnp.asarray([[-4.15, 0.0, 0.0], [0.0, -3.15, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    outside = GRID.shape[0] * GRID.shape[1]
    np.testing.assert_array_equal(bev.cell_ids(just_below, GRID, Z_RANGE), [outside] * 4)


def test_splat_gradient_is_the_finite_difference():
    rng = np.random.default_rng(0)
    context = jnp.asarray(rng.normal(size=(1, 1, 2, 2, 3)), jnp.float32)
    depth = jnp.asarray(rng.uniform(size=(1, 1, 2, 2, 4)), jnp.float32)
    ids = bev.cell_ids(jnp.asarray(rng.uniform(-4, 4, (1, 1, 2, 2, 4, 3))), GRID, Z_RANGE)

    def objective(context, depth):
        return jnp.sum(jnp.sin(bev.splat_segment_sum(context, depth, ids, GRID)))

    check_grads(objective, (context, depth), order=1, modes=["rev"], atol=1e-2, rtol=1e-2)


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
