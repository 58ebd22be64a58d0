"""The learned layout: turns, what it looks at, nothing at all."""

import jax
import numpy as np
import pytest

from placerec_jax.modules.ring_layout import RingLayout
from placerec_jax.ops.grid import Grid2D

GRID = Grid2D((-16.0, 16.0, -16.0, 16.0), 0.5)
LAYOUT = RingLayout(GRID, channel=1, rings=8, azimuths=48, frequencies=6, channels=2, hidden=4)


@pytest.fixture(scope="module")
def variables():
    found = jax.jit(LAYOUT.init)(jax.random.key(0), np.zeros((1, *GRID.shape, 3), np.float32))
    # As after training: nothing is 0, and no two weights are equal.
    leaves, tree = jax.tree.flatten(found)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(tree, [leaf + 0.3 * rng.normal(size=leaf.shape) for leaf in leaves])


def scans(count: int = 3) -> np.ndarray:
    """(count, H, W, 3): a few posts in the disc that all headings show."""
    rng = np.random.default_rng(1)
    bev = np.zeros((count, *GRID.shape, 3), np.float32)
    for scan in bev:
        for row, column in rng.integers(14, 50, (40, 2)):
            scan[row, column] = rng.uniform(0.2, 1, 3)
    return bev


DESCRIBE = jax.jit(LAYOUT.apply)


def test_a_turn_changes_nothing(variables):
    bev = scans()
    found = DESCRIBE(variables, bev)
    assert found.shape == (3, 7 * 6 * 2 * 2)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    for quarters in (1, 2, 3):
        turned = DESCRIBE(variables, np.rot90(bev, quarters, axes=(1, 2)).copy())
        np.testing.assert_allclose(turned, found, atol=2e-3)
    assert np.linalg.norm(found[0] - found[1]) > 0.3
    mirrored = DESCRIBE(variables, bev[:, ::-1].copy())
    assert np.linalg.norm(mirrored - found, axis=1).min() > 0.1


def test_other_channels_reach_the_gate_alone(variables):
    """Where the weighed channel is empty nothing is seen, whatever the others show."""
    bev = scans()
    changed = bev.copy()
    changed[..., 2] *= 0.3
    assert np.abs(DESCRIBE(variables, changed) - DESCRIBE(variables, bev)).max() > 1e-3
    bev[..., 1] = 0
    np.testing.assert_array_equal(DESCRIBE(variables, bev), 0.0)


def test_an_empty_scan_has_a_slope(variables):
    bev = np.zeros((1, *GRID.shape, 3), np.float32)
    slopes = jax.jit(jax.grad(lambda v: LAYOUT.apply(v, bev).sum()))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
