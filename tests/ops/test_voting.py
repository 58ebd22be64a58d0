"""Exhaustive voting against a loop over poses, and what a posterior must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.ops import bev, voting
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import se2_inverse
from placerec_jax.ops.voting import PoseLattice

QUERY = Grid2D((-8.0, 8.0, -4.0, 4.0), 1.0)
MAP = Grid2D((-8.0, 8.0, -8.0, 8.0), 1.0)
LATTICE = PoseLattice(reach=3.0, cell=1.0, turn=np.deg2rad(20.0), step=np.deg2rad(10.0))


def grids(seed: int, count: int = 2, channels: int = 3):
    rng = np.random.default_rng(seed)
    query = rng.normal(size=(count, *QUERY.shape, channels)).astype(np.float32)
    return jnp.asarray(query), jnp.asarray(rng.normal(size=(count, *MAP.shape, channels)), jnp.float32)


def by_loops(query: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Turns the query, then lays it on the map shift by shift."""
    result = np.zeros((len(query), *LATTICE.shape))
    ones = jnp.ones((1, *QUERY.shape, 1))
    for t, turn in enumerate(LATTICE.turns):
        pose = jnp.asarray([[0.0, 0.0, turn]], jnp.float32)
        seen = np.asarray(bev.warp_se2(ones, pose, QUERY, MAP))[0, ..., 0]
        for n in range(len(query)):
            template = np.asarray(bev.warp_se2(query[n : n + 1], pose, QUERY, MAP))[0]
            for i, j in np.ndindex(*LATTICE.shape[1:]):
                dx, dy = int(LATTICE.shifts[i]), int(LATTICE.shifts[j])
                total, cells = 0.0, 0.0
                for row, column in np.ndindex(*MAP.shape):
                    r, c = row + dx, column + dy
                    if 0 <= r < MAP.shape[0] and 0 <= c < MAP.shape[1]:
                        total += template[row, column] @ np.asarray(reference)[n, r, c]
                        cells += seen[row, column]
                result[n, t, i, j] = total / cells if cells > 0.5 else 0.0
    return result


@pytest.mark.parametrize("correlation", voting.CORRELATIONS)
def test_votes_are_the_loop_over_poses(correlation: str):
    query, reference = grids(0, count=2)
    found = jax.jit(voting.vote, static_argnums=(2, 3, 4, 5))(
        query, reference, QUERY, MAP, LATTICE, correlation
    )
    np.testing.assert_allclose(found, by_loops(query, reference), atol=1e-4)


def test_the_true_pose_wins():
    """A query cut from the map at a pose of the lattice scores highest there, and is read off to the step."""
    rng = np.random.default_rng(1)
    reference = jnp.asarray(rng.normal(size=(4, *MAP.shape, 6)), jnp.float32)
    turn = np.deg2rad(10.0)
    pose = jnp.asarray(
        [[2.0, -1.0, 0.0], [-3.0, 1.0, turn], [0.0, 0.0, -turn], [1.0, 2.0, 2 * turn]], jnp.float32
    )
    query = bev.warp_se2(reference, se2_inverse(pose), MAP, QUERY)
    posterior = voting.log_posterior(100 * voting.vote(query, reference, QUERY, MAP, LATTICE))
    np.testing.assert_allclose(voting.mode_pose(posterior, LATTICE, radius=1), pose, atol=0.05)
    np.testing.assert_allclose(jnp.exp(posterior).sum((1, 2, 3)), 1.0, rtol=1e-4)


def test_interpolation_hits_the_lattice_and_halves_between():
    rng = np.random.default_rng(2)
    volume = jnp.asarray(rng.normal(size=(1, *LATTICE.shape)), jnp.float32)
    poses = LATTICE.poses()
    index = LATTICE.index(jnp.asarray(poses[1, 2, 4]))[None]
    assert float(voting.interpolate(volume, index)[0]) == pytest.approx(float(volume[0, 1, 2, 4]), abs=1e-4)
    between = (poses[1, 2, 4] + poses[1, 3, 4]) / 2
    half = float(volume[0, 1, 2, 4] + volume[0, 1, 3, 4]) / 2
    assert float(voting.interpolate(volume, LATTICE.index(jnp.asarray(between))[None])[0]) == pytest.approx(
        half, abs=1e-4
    )


def test_the_mode_is_not_the_mean_of_two_places():
    volume = np.full((1, *LATTICE.shape), -20.0, np.float32)
    volume[0, 2, 0, 0] = 0.0
    volume[0, 2, 6, 6] = -0.1
    found = voting.mode_pose(voting.log_posterior(jnp.asarray(volume)), LATTICE)
    np.testing.assert_allclose(found[0], [-3.0, -3.0, 0.0], atol=1e-3)


def test_what_the_lattice_contains():
    poses = jnp.asarray([[3.0, -3.0, np.deg2rad(20)], [3.1, 0, 0], [0, 0, np.deg2rad(21)]])
    np.testing.assert_array_equal(voting.contains(LATTICE, poses), [True, False, False])


def test_what_the_map_does_not_know_is_not_counted():
    """Half of the map unknown: the mean is over the other half, not pulled to zero."""
    query, reference = jnp.ones((1, *QUERY.shape, 1)), jnp.ones((1, *MAP.shape, 1))
    known = jnp.ones((1, *MAP.shape, 1)).at[:, :8].set(0.0)
    votes = voting.vote(query, reference * known, QUERY, MAP, LATTICE, "fft", known)
    np.testing.assert_allclose(votes, 1.0, atol=0.05)
    assert float(voting.vote(query, reference * known, QUERY, MAP, LATTICE).max()) < 0.8


def test_cells_must_agree():
    query, reference = grids(3)
    with pytest.raises(ValueError, match="must be equal"):
        voting.vote(query, reference, QUERY, MAP, PoseLattice(3.0, 0.5, 0.3, 0.1))
