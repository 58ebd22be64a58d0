"""Key points of a score map: selection, what lies at them, and how they lie to one another."""

import functools

import jax
import jax.numpy as jnp

_RECOVERIES = 2


def non_maximum_suppression(score: jax.Array, radius: int) -> jax.Array:
    """(B, H, W) scores ≥ 0 → (B, H, W): the score where it is a local maximum, 0 elsewhere.

    A cell is kept if it is the largest of its (2·radius + 1)² window. Cells near a kept one are then struck
    out, and what is the largest of the remainder is kept as well, twice (as in SuperPoint and ALIKE): else a
    maximum would be lost to a larger neighbour that is none itself. Cells of one window with equal scores are
    all kept.
    """
    kept = score == _window_maximum(score, radius)
    for _ in range(_RECOVERIES):
        near_kept = _window_maximum(kept.astype(score.dtype), radius) > 0
        remainder = jnp.where(near_kept, 0.0, score)
        kept |= (remainder == _window_maximum(remainder, radius)) & ~near_kept
    return jnp.where(kept, score, 0.0)


def top_keypoints(
    score: jax.Array, occupied: jax.Array, k: int, radius: int = 2, border: int = 3
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(B, H, W) scores, (B, H, W) bool → (B, k) int32 flat cell, (B, k) mask, (B, k) score, best first.

    Empty cells and the `border` cells at every side never become key points. Fewer than k maxima: the rest is
    masked (index of some cell of score 0, score 0). No gradient passes the selection.
    """
    cells = score.shape[1] * score.shape[2]
    if k > cells:
        raise ValueError(f"top_keypoints: k = {k} key points of a map of {cells} cells; lower k")
    score = jnp.where(occupied, jax.lax.stop_gradient(score), 0.0)
    maxima = non_maximum_suppression(score, radius)
    height, width = score.shape[1:]
    row, column = jnp.arange(height), jnp.arange(width)
    inner_row, inner_column = (
        (index >= border) & (index < size - border) for index, size in ((row, height), (column, width))
    )
    maxima = jnp.where(inner_row[:, None] & inner_column, maxima, 0.0)
    best, index = jax.lax.top_k(maxima.reshape(len(maxima), cells), k)
    return index.astype(jnp.int32), best > 0, best


def gather(features: jax.Array, index: jax.Array) -> jax.Array:
    """(B, H, W, C) map, (B, K) flat cells → (B, K, C) what lies there."""
    flat = features.reshape(features.shape[0], -1, features.shape[-1])
    return jnp.take_along_axis(flat, index[..., None], axis=1)


def distance_histogram(xy: jax.Array, mask: jax.Array, bins: int, reach: float) -> jax.Array:
    """(B, K, 2) positions (m), (B, K) mask → (B, K, bins): how far every key point has it to the others.

    Hard bins of reach/bins metres over [0, reach); what is farther counts into the last. A row sums to 1; it
    is 0 where the point is masked or has no other. No gradient reaches the positions.
    """
    return jax.vmap(functools.partial(_histogram, bins=bins, reach=reach))(jax.lax.stop_gradient(xy), mask)


def _histogram(xy: jax.Array, mask: jax.Array, bins: int, reach: float) -> jax.Array:
    count = len(xy)
    difference = xy[:, None] - xy
    distance = jnp.sqrt(jnp.sum(difference * difference, axis=-1))
    place = jnp.clip(jnp.floor(distance * (bins / reach)), 0, bins - 1).astype(jnp.int32)
    pair = mask[:, None] & mask & ~jnp.eye(count, dtype=bool)
    row = jnp.broadcast_to(jnp.arange(count)[:, None], pair.shape)
    counts = jnp.zeros((count, bins), jnp.float32).at[row, place].add(pair.astype(jnp.float32))
    return counts / jnp.maximum(mask.sum() - 1, 1)


def _window_maximum(x: jax.Array, radius: int) -> jax.Array:
    """(B, H, W) → the maximum over the (2·radius + 1)² window of every cell, cut off at the map's edges."""
    side = 2 * radius + 1
    for window in ((1, side, 1), (1, 1, side)):
        x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, (1, 1, 1), "SAME")
    return x
