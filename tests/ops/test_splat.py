"""Every splat mode against a double loop over the points, on rigs that look everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from placerec_jax.ops import splat
from placerec_jax.ops.grid import Grid2D

GRID = Grid2D((-4.0, 4.0, -3.0, 3.0), 0.5)
Z_RANGE = (-1.0, 2.5)
IMAGE, FEATURES, DEPTHS = (40, 60), (5, 6), (0.5, 5.0, 0.5)
EXACT = ("segment_sum", "sorted_cumsum", "table")
POLAR = ("polar", "polar_matmul")


def rig(rng: np.random.Generator, batch: int, cameras: int, pitch: float = 0.0, level: bool = False):
    """Cameras at 1 m, looking in random directions; not `level`: turned about all axes."""
    intrinsics = np.zeros((batch, cameras, 3, 3), np.float32)
    intrinsics[:] = [[35.0, 0.0, 31.0], [0.0, 33.0, 19.0], [0.0, 0.0, 1.0]]
    poses = np.tile(np.eye(4, dtype=np.float32), (batch, cameras, 1, 1))
    optical = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    for index in np.ndindex(batch, cameras):
        yaw = rng.uniform(-np.pi, np.pi)
        turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
        tilt = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
        if not level:
            tilt = np.linalg.qr(np.eye(3) + 0.2 * rng.normal(size=(3, 3)))[0]
            tilt *= np.sign(np.diag(tilt))
        poses[index][:3, :3] = turn @ tilt @ optical
        poses[index][:3, 3] = [*rng.uniform(-0.5, 0.5, 2), 1.0]
    mask = np.ones((batch, cameras), np.bool_)
    return splat.View(IMAGE, DEPTHS, jnp.asarray(intrinsics), jnp.asarray(poses), jnp.asarray(mask))


def features(rng: np.random.Generator, batch: int, cameras: int, channels: int = 4):
    bins = len(np.arange(*DEPTHS))
    context = rng.normal(size=(batch, cameras, *FEATURES, channels)).astype(np.float32)
    depth = rng.uniform(size=(batch, cameras, *FEATURES, bins)).astype(np.float32)
    return jnp.asarray(context), jnp.asarray(depth)


def by_loops(context, depth, view) -> np.ndarray:
    """Unprojects and sums every point into its cell, one at a time, in float64."""
    context, depth = np.asarray(context, np.float64), np.asarray(depth, np.float64)
    result = np.zeros((context.shape[0], *GRID.shape, context.shape[-1]))
    u_of, v_of = np.linspace(0, IMAGE[1] - 1, FEATURES[1]), np.linspace(0, IMAGE[0] - 1, FEATURES[0])
    for b, n, v, u, d in np.ndindex(*depth.shape):
        distance = np.arange(*DEPTHS)[d]
        ray = np.linalg.inv(np.asarray(view.intrinsics[b, n], np.float64)) @ [u_of[u], v_of[v], 1.0]
        pose = np.asarray(view.ego_T_camera[b, n], np.float64)
        x, y, z = pose[:3, :3] @ (ray * distance) + pose[:3, 3]
        row, column = int(np.floor((x + 4.0) / 0.5)), int(np.floor((y + 3.0) / 0.5))
        inside = 0 <= row < GRID.shape[0] and 0 <= column < GRID.shape[1] and Z_RANGE[0] <= z < Z_RANGE[1]
        if inside and view.camera_mask[b, n]:
            result[b, row, column] += depth[b, n, v, u, d] * context[b, n, v, u]
    return result


def run(mode: str, context, depth, view: splat.View) -> np.ndarray:
    def pool(context, depth, intrinsics, ego_T_camera, camera_mask):
        own = splat.View(IMAGE, DEPTHS, intrinsics, ego_T_camera, camera_mask)
        return splat.MODES[mode](context, depth, own, GRID, Z_RANGE)

    return np.asarray(jax.jit(pool)(context, depth, view.intrinsics, view.ego_T_camera, view.camera_mask))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", EXACT)
def test_exact_modes_are_the_double_loop(mode: str, seed: int):
    rng = np.random.default_rng(seed)
    view = rig(rng, 2, 3)
    view = view._replace(camera_mask=jnp.asarray([[True, False, True], [True, True, True]]))
    context, depth = features(rng, 2, 3)
    np.testing.assert_allclose(run(mode, context, depth, view), by_loops(context, depth, view), atol=1e-4)


@pytest.mark.parametrize("mode", POLAR)
def test_polar_is_the_double_loop_for_level_cameras(mode: str):
    rng = np.random.default_rng(0)
    view = rig(rng, 2, 3, level=True)
    view = view._replace(camera_mask=jnp.asarray([[True, False, True], [True, True, True]]))
    context, depth = features(rng, 2, 3)
    np.testing.assert_allclose(run(mode, context, depth, view), by_loops(context, depth, view), atol=1e-4)


@pytest.mark.parametrize("mode", POLAR)
def test_polar_moves_points_little_under_two_degrees_of_pitch(mode: str):
    """The centre of all pooled weight moves by centimetres, and no weight is lost but at the borders."""
    rng = np.random.default_rng(1)
    view = rig(rng, 1, 2, pitch=np.deg2rad(2.0), level=True)
    context, depth = features(rng, 1, 2)
    context = jnp.ones_like(context)
    found, true = run(mode, context, depth, view)[..., 0], by_loops(context, depth, view)[..., 0]
    center = [(image[..., None] * GRID.centers()).sum((1, 2)) / image.sum() for image in (found, true)]
    assert np.linalg.norm(center[0] - center[1]) < 0.1
    assert found.sum() == pytest.approx(true.sum(), rel=0.05)
    assert np.abs(found - true).max() > 0  # not exact: the test would else compare the same thing


def test_points_just_outside_are_dropped():
    just_below = jnp.asarray([[-4.15, 0.0, 0.0], [0.0, -3.15, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 2.5]])
    outside = GRID.shape[0] * GRID.shape[1]
    np.testing.assert_array_equal(splat.cell_ids(just_below, GRID, Z_RANGE), [outside] * 4)


@pytest.mark.parametrize("mode", sorted(splat.MODES))
def test_gradients_are_finite_differences(mode: str):
    rng = np.random.default_rng(2)
    view = rig(rng, 1, 1, level=True)
    context, depth = features(rng, 1, 1, channels=2)

    def objective(context, depth):
        return jnp.sum(jnp.sin(splat.MODES[mode](context, depth, view, GRID, Z_RANGE)))

    check_grads(objective, (context, depth), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_an_overfull_cell_of_the_table_is_loud(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(3)
    view = rig(rng, 1, 2)
    context, depth = features(rng, 1, 2)
    true = by_loops(context, depth, view)
    monkeypatch.setattr(splat, "TABLE_CAPACITY", 2)
    found = np.asarray(splat.table(context, depth, view, GRID, Z_RANGE))
    assert np.isnan(found).any()
    whole = np.isfinite(found).all(-1)
    np.testing.assert_allclose(found[whole], true[whole], atol=1e-4)


@pytest.mark.parametrize("mode", sorted(splat.MODES))
def test_a_masked_camera_adds_nothing(mode: str):
    rng = np.random.default_rng(4)
    view = rig(rng, 1, 2, level=True)
    context, depth = features(rng, 1, 2)
    masked = view._replace(camera_mask=jnp.asarray([[True, False]]))
    alone = splat.View(
        IMAGE, DEPTHS, view.intrinsics[:, :1], view.ego_T_camera[:, :1], jnp.ones((1, 1), bool)
    )
    np.testing.assert_allclose(
        run(mode, context, depth, masked), run(mode, context[:, :1], depth[:, :1], alone), atol=1e-5
    )


def test_pull_reads_a_cell_where_it_is_seen():
    """Constant context and a distribution that is linear in depth: a cell holds the depth at which it is."""
    rng = np.random.default_rng(5)
    view = rig(rng, 1, 1, level=True)
    bins = np.arange(*DEPTHS)
    depth = jnp.asarray(np.broadcast_to(bins, (1, 1, *FEATURES, len(bins))).astype(np.float32))
    context = jnp.ones((1, 1, *FEATURES, 1))
    found = run("pull", context, depth, view)[0, ..., 0]
    expected = np.zeros(GRID.shape)
    for z in (z for z in splat.PULL_HEIGHTS if Z_RANGE[0] <= z < Z_RANGE[1]):
        points = np.insert(GRID.centers().reshape(-1, 2).astype(np.float64), 2, z, axis=1)
        pose = np.asarray(view.ego_T_camera[0, 0], np.float64)
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        pixels = local @ np.asarray(view.intrinsics[0, 0], np.float64).T
        with np.errstate(divide="ignore", invalid="ignore"):
            u, v = pixels[:, 0] / pixels[:, 2], pixels[:, 1] / pixels[:, 2]
        seen = (local[:, 2] >= bins[0]) & (local[:, 2] <= bins[-1])
        seen &= (u >= 0) & (u <= IMAGE[1] - 1) & (v >= 0) & (v <= IMAGE[0] - 1)
        expected += np.where(seen, local[:, 2], 0.0).reshape(GRID.shape)
    assert (expected > 0).sum() > 10
    # Float32 may see a cell on the very edge of the image differently.
    assert np.mean(np.abs(found - expected) > 1e-3) < 0.01
