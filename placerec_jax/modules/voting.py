"""Exhaustive matching of two feature grids as a Flax module."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from placerec_jax.ops.bev import sample_bilinear
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.voting import PoseLattice, log_posterior, vote


class PoseVoting(nn.Module):
    """(N, H, W, C), (N, H', W', C') → (N, *lattice.shape) log-probabilities of every pose of the lattice.

    Both grids are projected to `dim` channels; the mean match over the cells that fall on the map, times a
    learned factor, is added to a learned preference of the map for the place of the ego ("on a road").
    `known` (N, H', W', 1) is 0 where the map grid holds nothing.
    """

    dim: int
    query_grid: Grid2D
    reference_grid: Grid2D
    lattice: PoseLattice
    correlation: str = "fft"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, query: jax.Array, reference: jax.Array, known: jax.Array | None = None) -> jax.Array:
        match = vote(
            nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name="query")(query),
            nn.Dense(self.dim, use_bias=False, dtype=self.dtype, name="reference")(reference),
            self.query_grid,
            self.reference_grid,
            self.lattice,
            self.correlation,
            known,
        )
        # A mean over some thousand cells is small: begin with a factor under which poses already differ.
        factor = jnp.exp(self.param("log_factor", nn.initializers.constant(np.log(30.0)), ()))
        prior = nn.Dense(1, use_bias=False, dtype=self.dtype, name="prior")(reference).astype(jnp.float32)
        return log_posterior(factor * match + self._at_shifts(prior)[:, None])

    def _at_shifts(self, values: jax.Array) -> jax.Array:
        """(N, H', W', 1) → (N, shifts, shifts): the map's values where the ego would stand."""
        shifts = self.lattice.shifts
        row = (shifts - self.reference_grid.lower[0]) / self.reference_grid.cell - 0.5
        column = (shifts - self.reference_grid.lower[1]) / self.reference_grid.cell - 0.5
        row, column = (jnp.asarray(i, jnp.float32) for i in np.meshgrid(row, column, indexing="ij"))
        return jax.vmap(lambda v: sample_bilinear(v, row, column))(values)[..., 0]
