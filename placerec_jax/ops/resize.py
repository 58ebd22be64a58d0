"""Enlarging feature maps."""

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
    # The position of an output cell between two input cells depends only on its number modulo `factor`.
    # Blending whole shifted copies, one per remainder, needs neither a gather (its gradient is a scatter) nor
    # a dense matrix.
    n = x.shape[axis]
    widths = [(0, 0)] * x.ndim
    widths[axis] = (1, 1)
    padded = jnp.pad(x, widths, mode="edge")
    phases = []
    for phase in range(factor):
        position = (phase + 0.5) / factor - 0.5
        first = int(np.floor(position))
        weight = position - first
        low = jax.lax.slice_in_dim(padded, first + 1, first + 1 + n, axis=axis)
        high = jax.lax.slice_in_dim(padded, first + 2, first + 2 + n, axis=axis) if weight else low
        phases.append(low * (1 - weight) + high * weight if weight else low)
    shape = (*x.shape[:axis], n * factor, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis=axis + 1).reshape(shape)


def _upsample_axis_aligned(x: jax.Array, axis: int, factor: int) -> jax.Array:
    # No period here, hence an interpolation matrix (outputs, inputs) with two entries a row.
    n = x.shape[axis]
    position = np.linspace(0, n - 1, n * factor)
    matrix = np.maximum(0, 1 - np.abs(position[:, None] - np.arange(n)))
    product = jnp.tensordot(x, jnp.asarray(matrix, x.dtype), axes=[[axis], [1]])
    return jnp.moveaxis(product, -1, axis)
