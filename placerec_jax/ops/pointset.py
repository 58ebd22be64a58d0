"""Point sets of varying size, padded and masked: farthest points, nearest neighbours, groups of both."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

NEAR_ORIGIN = math.sqrt(1e-3)  # m: what the usual CUDA kernel of farthest-point sampling never selects within

STARTS = ("first", "farthest")


class Groups(NamedTuple):
    """Neighbourhoods that cover a point set."""

    offsets: jax.Array  # (B, G, k, 3) m, from the centre
    centres: jax.Array  # (B, G, 3) m
    mask: jax.Array  # (B, G): False where the points ran out and the centre is one of before


def farthest_points(
    xyz: jax.Array, mask: jax.Array, count: int, exclude_radius: float = 0.0, start: str = "first"
) -> jax.Array:
    """(N, 3) points, (N,) mask → (count,) int32: each the point farthest from those chosen before it.

    Among equals the lowest index wins. No point is chosen twice while another is left; with n selectable
    points, picks from the n-th on repeat (see `selectable`). Of an empty set all picks are 0.

    Args:
        exclude_radius: points this near to the origin, in metres, are never chosen, the start excepted.
        start: "first", the first real point, which depends on the order of the points; "farthest", the one
            farthest from their mean, which does not.
    """
    xyz = jnp.where(mask[:, None], xyz, 0.0)  # padding may be NaN, which would win every comparison
    first = _start(xyz, mask, start)
    allowed = selectable(xyz, mask, exclude_radius, start)
    distance = jnp.where(allowed, jnp.inf, -jnp.inf)

    def choose(i: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        distance, chosen = state
        last = chosen[i - 1]
        offset = xyz - xyz[last]
        distance = jnp.minimum(distance, jnp.sum(offset * offset, axis=-1))
        # Below any distance, so that a double of it comes first; above what may not be chosen at all.
        distance = distance.at[last].min(-1.0)
        return distance, chosen.at[i].set(jnp.argmax(distance).astype(jnp.int32))

    chosen = jnp.zeros(count, jnp.int32).at[0].set(first)
    return jax.lax.fori_loop(1, count, choose, (distance, chosen))[1]


def selectable(
    xyz: jax.Array, mask: jax.Array, exclude_radius: float = 0.0, start: str = "first"
) -> jax.Array:
    """(N, 3) points, (N,) mask → (N,) bool: what `farthest_points` may choose with these arguments."""
    if not exclude_radius:
        return mask
    far = jnp.sum(xyz * xyz, axis=-1) > exclude_radius**2
    return mask & (far | (jnp.arange(len(xyz)) == _start(xyz, mask, start)))


def _start(xyz: jax.Array, mask: jax.Array, start: str) -> jax.Array:
    if start not in STARTS:
        raise ValueError(f"farthest_points: start is {start!r}; expected one of {STARTS}")
    if start == "first":
        return jnp.argmax(mask).astype(jnp.int32)
    real = jnp.where(mask[:, None], xyz, 0.0)
    offset = xyz - real.sum(axis=0) / jnp.maximum(mask.sum(), 1)
    return jnp.argmax(jnp.where(mask, jnp.sum(offset * offset, axis=-1), -jnp.inf)).astype(jnp.int32)


def nearest_neighbours(
    centres: jax.Array, xyz: jax.Array, mask: jax.Array, k: int, chunk: int = 256
) -> jax.Array:
    """(..., G, 3) centres, (..., N, 3) points, (..., N) mask → (..., G, k) int32: nearest first.

    With fewer than k real points the rest of a row repeats the nearest. Coordinates are subtracted before
    they are squared, which stays exact far from the origin; `chunk` centres at a time bound the memory to
    chunk × N distances.
    """
    count, points = centres.shape[-2], xyz.shape[-2]
    chunk, absent = min(chunk, count), max(k - points, 0)

    def of_chunk(some: jax.Array) -> jax.Array:
        offset = xyz[..., None, :, :] - some[..., None, :]
        closeness = jnp.where(mask[..., None, :], -jnp.sum(offset * offset, axis=-1), -jnp.inf)
        # A matrix whose top k nothing cuts further: otherwise XLA on a CPU sorts every row whole instead.
        found = jax.lax.top_k(closeness.reshape(-1, points), k - absent)
        best, index = jax.lax.optimization_barrier(found)
        best = jnp.pad(best, ((0, 0), (0, absent)), constant_values=-jnp.inf)
        index = jnp.where(best > -jnp.inf, jnp.pad(index, ((0, 0), (0, absent))), index[:, :1])
        return index.reshape(*some.shape[:-1], k)

    filled = -(-count // chunk) * chunk
    padding = [(0, 0)] * (centres.ndim - 2) + [(0, filled - count), (0, 0)]
    chunks = jnp.pad(centres, padding).reshape(*centres.shape[:-2], filled // chunk, chunk, 3)
    nearest = jnp.moveaxis(jax.lax.map(of_chunk, jnp.moveaxis(chunks, -3, 0)), 0, -3)
    return nearest.reshape(*centres.shape[:-2], filled, k)[..., :count, :]


def group_points(
    xyz: jax.Array,
    mask: jax.Array,
    groups: int,
    k: int,
    exclude_radius: float = 0.0,
    start: str = "first",
    chunk: int = 256,
) -> Groups:
    """(B, N, 3) points, (B, N) mask → the k nearest points around each of `groups` farthest points.

    The centre is its own nearest neighbour. With n selectable points only the first n groups are real; of an
    empty set none is. No gradient reaches the points.
    """

    # What stands in the padding is nobody's promise: it may be NaN.
    xyz = jax.lax.stop_gradient(jnp.where(mask[..., None], xyz, 0.0).astype(jnp.float32))

    def centres_of(xyz: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        chosen = farthest_points(xyz, mask, groups, exclude_radius, start)
        return xyz[chosen], jnp.arange(groups) < selectable(xyz, mask, exclude_radius, start).sum()

    centres, real = jax.vmap(centres_of)(xyz, mask)
    index = nearest_neighbours(centres, xyz, mask, k, chunk)
    neighbours = jax.vmap(lambda points, chosen: points[chosen])(xyz, index)
    return Groups(neighbours - centres[:, :, None], centres, real)
