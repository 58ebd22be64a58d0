"""Feature maps between their cells: enlarged, or read at points."""

import jax
import jax.numpy as jnp
import numpy as np


def upsample_bilinear(x: jax.Array, factor: int, align_corners: bool = False) -> jax.Array:
    """(B, H, W, C) -> (B, factor H, factor W, C), bilinear, borders clamped.

    With `align_corners` the centres of the corner cells coincide; otherwise the outer edges of the two grids
    do (half-pixel centres), so that cell i of the input covers the cells [factor i, factor (i + 1)) of the
    output.
    """
    if factor < 1:
        raise ValueError(f"upsample_bilinear: factor must be at least 1, found {factor}")
    if factor == 1:
        return x
    upsample_axis = _upsample_axis_aligned if align_corners else _upsample_axis_half_pixel
    return upsample_axis(upsample_axis(x, 1, factor), 2, factor)


def _upsample_axis_half_pixel(x: jax.Array, axis: int, factor: int) -> jax.Array:
    # Every input cell becomes `factor` output cells, and each blends it with its neighbour on one side by a
    # weight that is the same along the axis. Whole shifted copies need neither a gather, whose gradient is a
    # scatter, nor a dense interpolation matrix.
    before, after = _shift(x, axis, -1), _shift(x, axis, 1)
    phases = []
    for phase in range(factor):
        offset = (phase + 0.5) / factor - 0.5  # from the centre of the input cell, in input cells
        neighbour = before if offset < 0 else after
        phases.append((1 - abs(offset)) * x + abs(offset) * neighbour)
    shape = (*x.shape[:axis], x.shape[axis] * factor, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis=axis + 1).reshape(shape)


def _shift(x: jax.Array, axis: int, step: int) -> jax.Array:
    """y[i] = x[i + step] for a step of 1 or -1; the cell at the border stands in for what is beyond it."""
    n = x.shape[axis]
    first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    last = jax.lax.slice_in_dim(x, n - 1, n, axis=axis)
    if step > 0:
        return jnp.concatenate([jax.lax.slice_in_dim(x, 1, n, axis=axis), last], axis)
    return jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis)


def _upsample_axis_aligned(x: jax.Array, axis: int, factor: int) -> jax.Array:
    # No period here, hence an interpolation matrix (outputs, inputs) with two entries a row.
    n = x.shape[axis]
    position = np.linspace(0, n - 1, n * factor)
    matrix = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(n)))
    product = jnp.tensordot(x, jnp.asarray(matrix, x.dtype), axes=[[axis], [1]])
    return jnp.moveaxis(product, -1, axis)


def sample_bilinear(x: jax.Array, place: jax.Array) -> jax.Array:
    """(B, H, W, C) maps and (B, K, 2) places (row, column) in cells, whole at their centres → (B, K, C).

    Places beyond the outermost centres read the border.
    """
    last = jnp.array([x.shape[1] - 1, x.shape[2] - 1], jnp.float32)
    place = jnp.clip(place, 0.0, last)
    first = jnp.minimum(jnp.floor(place), jnp.maximum(last - 1, 0)).astype(jnp.int32)
    share = (place - first).astype(x.dtype)
    flat = x.reshape(x.shape[0], -1, x.shape[-1])
    total = 0.0
    for row in (0, 1):
        for column in (0, 1):
            index = jnp.minimum(first + jnp.array([row, column]), last.astype(jnp.int32))
            weight = jnp.abs(1 - row - share[..., 0]) * jnp.abs(1 - column - share[..., 1])
            number = index[..., 0] * x.shape[2] + index[..., 1]
            total += weight[..., None] * jnp.take_along_axis(flat, number[..., None], axis=1)
    return total
