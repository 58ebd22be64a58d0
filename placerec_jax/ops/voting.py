"""Exhaustive voting for a planar pose: a query grid is laid on a map grid in every pose of a lattice.

score(T) = mean over the query's cells q that fall on the map of <query(q), map(T·q)>, as OrienterNet
(arXiv 2304.02009) matches a bird's-eye view with a map.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft

from placerec_jax.ops.bev import warp_se2
from placerec_jax.ops.grid import Grid2D

CORRELATIONS = ("fft", "conv")


@dataclasses.dataclass(frozen=True)
class PoseLattice:
    """Offsets ±reach (m) at every `cell` (m) on both axes and ±turn (rad) at every `step` (rad).

    Both ranges are rounded up to whole steps. Frozen and hashable: a static argument.
    """

    reach: float
    cell: float
    turn: float
    step: float

    @property
    def half(self) -> tuple[int, int]:
        """(shifts, turns) on either side of zero."""
        return int(np.ceil(self.reach / self.cell - 1e-6)), int(np.ceil(self.turn / self.step - 1e-6))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(turns, shifts in x, shifts in y)."""
        shifts, turns = self.half
        return 2 * turns + 1, 2 * shifts + 1, 2 * shifts + 1

    @property
    def turns(self) -> np.ndarray:
        """(turns,) radians."""
        return np.arange(-self.half[1], self.half[1] + 1) * self.step

    @property
    def shifts(self) -> np.ndarray:
        """(shifts,) metres."""
        return np.arange(-self.half[0], self.half[0] + 1) * self.cell

    def index(self, pose: jax.Array) -> jax.Array:
        """(..., 3) poses (m, m, rad) → (..., 3) fractional (turn, x, y) indices."""
        shifts, turns = self.half
        return jnp.stack(
            [
                pose[..., 2] / self.step + turns,
                pose[..., 0] / self.cell + shifts,
                pose[..., 1] / self.cell + shifts,
            ],
            axis=-1,
        )

    def poses(self) -> np.ndarray:
        """(turns, shifts, shifts, 3) float32 (m, m, rad)."""
        turn, x, y = np.meshgrid(self.turns, self.shifts, self.shifts, indexing="ij")
        return np.stack([x, y, turn], axis=-1).astype(np.float32)


def vote(
    query: jax.Array,
    reference: jax.Array,
    query_grid: Grid2D,
    reference_grid: Grid2D,
    lattice: PoseLattice,
    correlation: str = "fft",
    known: jax.Array | None = None,
) -> jax.Array:
    """Mean match of a query laid on a map in every pose of `lattice`.

    Args:
      query: (N, *query_grid.shape, C).
      reference: (N, *reference_grid.shape, C).
      query_grid, reference_grid: grids with the lattice's cell.
      lattice: the poses.
      correlation: 'fft', or 'conv' where Fourier transforms are slow (TPU).
      known: (N, *reference_grid.shape, 1), 0 where the map grid holds nothing; all of it is known by default.

    Returns:
      (N, *lattice.shape) float32; poses under which no cell falls on the map score 0.
    """
    if not query_grid.cell == reference_grid.cell == lattice.cell:
        raise ValueError(
            f"vote: the grids' cells ({query_grid.cell}, {reference_grid.cell} m) and the lattice's "
            f"({lattice.cell} m) must be equal"
        )
    if correlation not in CORRELATIONS:
        raise ValueError(f"vote: correlation is {correlation!r}; expected one of {CORRELATIONS}")
    correlate = {"fft": _correlate_fft, "conv": _correlate_conv}[correlation]
    templates = _templates(query.astype(jnp.float32), query_grid, reference_grid, lattice)
    seen = _templates(jnp.ones((1, *query_grid.shape, 1)), query_grid, reference_grid, lattice)
    match = correlate(templates, reference.astype(jnp.float32), lattice)
    if known is None:
        known = jnp.ones((1, *reference_grid.shape, 1))
    cells = correlate(jnp.broadcast_to(seen, (len(known), *seen.shape[1:])), known, lattice)
    return jnp.where(cells > 0.5, match / jnp.maximum(cells, 0.5), 0.0)


def _templates(
    query: jax.Array, query_grid: Grid2D, reference_grid: Grid2D, lattice: PoseLattice
) -> jax.Array:
    """(N, H, W, C) → (N, turns, H', W', C): the query turned about the ego, on the map's grid."""
    turns = jnp.asarray(lattice.turns, jnp.float32)
    pose = jnp.stack([jnp.zeros_like(turns), jnp.zeros_like(turns), turns], axis=-1)
    count = query.shape[0]

    def one_turn(own: jax.Array) -> jax.Array:
        return warp_se2(query, jnp.broadcast_to(own, (count, 3)), query_grid, reference_grid)

    return jnp.moveaxis(jax.lax.map(one_turn, pose), 0, 1)


def _correlate_fft(templates: jax.Array, reference: jax.Array, lattice: PoseLattice) -> jax.Array:
    """sum_p template(p) · reference(p + t) over cells and channels → (N, *lattice.shape)."""
    shifts, _ = lattice.half
    # Zeros of at least the largest shift between the copies of a circular correlation.
    size = [scipy.fft.next_fast_len(n + shifts, real=True) for n in reference.shape[1:3]]
    spectrum = jnp.fft.rfft2(reference, size, axes=(1, 2))

    def one_turn(template: jax.Array) -> jax.Array:
        own = jnp.fft.rfft2(template, size, axes=(1, 2))
        match = jnp.fft.irfft2((jnp.conj(own) * spectrum).sum(-1), size, axes=(1, 2))
        rows = jnp.concatenate([match[:, size[0] - shifts :], match[:, : shifts + 1]], axis=1)
        return jnp.concatenate([rows[:, :, size[1] - shifts :], rows[:, :, : shifts + 1]], axis=2)

    # One turn at a time, and again in the backward pass: the spectra of all would be the largest arrays of
    # the network.
    return jnp.moveaxis(jax.lax.map(jax.checkpoint(one_turn), jnp.moveaxis(templates, 1, 0)), 0, 1)


def _correlate_conv(templates: jax.Array, reference: jax.Array, lattice: PoseLattice) -> jax.Array:
    """As `_correlate_fft`, as a dense convolution with the templates as kernels."""
    shifts, _ = lattice.half
    padding = ((shifts, shifts), (shifts, shifts))

    def one(template: jax.Array, reference: jax.Array) -> jax.Array:
        match = jax.lax.conv_general_dilated(
            reference[None],
            jnp.moveaxis(template, 0, -1),
            (1, 1),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision="highest",
        )
        return jnp.moveaxis(match[0], -1, 0)

    return jax.vmap(one)(templates, reference)


def log_posterior(scores: jax.Array) -> jax.Array:
    """(N, turns, x, y) scores → log-probabilities over all poses of an example."""
    return jax.nn.log_softmax(scores.reshape(scores.shape[0], -1), axis=-1).reshape(scores.shape)


def interpolate(volume: jax.Array, index: jax.Array) -> jax.Array:
    """(N, turns, x, y), (N, 3) fractional indices → (N,) trilinear; beyond the border, the border's value."""
    last = jnp.asarray(volume.shape[1:], jnp.float32) - 1

    def one(volume: jax.Array, index: jax.Array) -> jax.Array:
        return jax.scipy.ndimage.map_coordinates(volume, list(index[:, None]), order=1, mode="nearest")[0]

    return jax.vmap(one)(volume, jnp.clip(index, 0.0, last))


def contains(lattice: PoseLattice, pose: jax.Array) -> jax.Array:
    """(..., 3) poses → (...) whether they lie within the lattice."""
    index, last = lattice.index(pose), jnp.asarray(lattice.shape, jnp.float32) - 1
    return jnp.all((index >= -1e-3) & (index <= last + 1e-3), axis=-1)


def mode_pose(log_probability: jax.Array, lattice: PoseLattice, radius: int = 2) -> jax.Array:
    """(N, *lattice.shape) → (N, 3): the mean pose of the probability within `radius` steps of the maximum.

    The mean about one maximum, not over all: between two likely places there is none.
    """
    flat = log_probability.reshape(log_probability.shape[0], -1)
    best = jnp.stack(jnp.unravel_index(jnp.argmax(flat, axis=-1), lattice.shape), axis=-1)
    axes = [jnp.arange(n) for n in lattice.shape]
    near = jnp.ones_like(log_probability, dtype=bool)
    for axis, places in enumerate(axes):
        shape = [1, 1, 1, 1]
        shape[axis + 1] = len(places)
        near &= jnp.abs(places.reshape(shape) - best[:, axis].reshape(-1, 1, 1, 1)) <= radius
    weight = jax.nn.softmax(jnp.where(near, log_probability, -jnp.inf).reshape(flat.shape), axis=-1)
    return jnp.matmul(weight, jnp.asarray(lattice.poses().reshape(-1, 3)), precision="highest")
