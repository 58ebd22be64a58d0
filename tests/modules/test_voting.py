"""The pose-voting module: its map prior stands where the ego would."""

import jax
import jax.numpy as jnp
import numpy as np

from placerec_jax.modules.voting import PoseVoting
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.voting import PoseLattice

MAP = Grid2D((-8.0, 8.0, -8.0, 8.0), 1.0)
LATTICE = PoseLattice(reach=4.0, cell=1.0, turn=0.2, step=0.1)


def test_without_a_view_the_maps_preference_decides():
    """Nothing seen, one bright corner of four cells at (3, -2): the ego is there, at any heading."""
    voting = PoseVoting(4, MAP, MAP, LATTICE)
    query = jnp.zeros((1, *MAP.shape, 2))
    reference = np.zeros((1, *MAP.shape, 2), np.float32)
    near = np.linalg.norm(MAP.centers() - [3.0, -2.0], axis=-1) < 0.8
    reference[0, near, 1] = 20.0
    variables = voting.init(jax.random.key(0), query, jnp.asarray(reference))
    params = {**variables["params"], "prior": {"kernel": jnp.asarray([[0.0], [1.0]])}}
    probability = np.exp(voting.apply({"params": params}, query, jnp.asarray(reference)))[0]
    np.testing.assert_allclose(probability.sum(), 1.0, rtol=1e-4)
    turn, row, column = np.unravel_index(np.argmax(probability), probability.shape)
    assert (LATTICE.shifts[row], LATTICE.shifts[column]) == (3.0, -2.0)
    np.testing.assert_allclose(probability[:, row, column], probability[turn, row, column], rtol=1e-4)
