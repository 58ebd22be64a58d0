"""Attention between all cameras of a rig, at one level of the image encoder (SurroundDepth)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from placerec_jax.errors import ConfigError
from placerec_jax.modules.sharding import constrain_batch

# Stride of a level → (kernel, dilation) of the transposed convolution that brings it back.
TAPS = {16: (3, 7), 8: (3, 3), 4: (3, 1), 2: (1, 1), 1: (1, 1)}


class CrossViewTransformer(nn.Module):
    """(B, N, H, W, C) features of N cameras → (B, N, H, W, C), what the others add; the caller adds it.

    Every `stride`-th feature becomes a token, those of all cameras one sequence; after `blocks` pre-norm
    blocks every token spreads over the stride x stride cells it stands for. Position in the image is encoded,
    alike for all cameras; which camera it is, is not. Cameras out of `camera_mask` (B, N) are not looked at.

    The released code reads the tokens back with channels and space exchanged; here they stay in place.

    Attributes:
        stride: of TAPS; 16, 8, 4, 2, 1 for the five levels, so that all have the grid of the deepest.
        remat: compute every block again in the backward pass. The weights of attention alone are 56 MB a
            block and frame at the paper's size, and are never kept.
    """

    stride: int
    blocks: int = 4
    heads: int = 8
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, camera_mask: jax.Array | None = None) -> jax.Array:
        batch, cameras, height, width, dim = x.shape
        if self.stride not in TAPS or height % self.stride or width % self.stride:
            raise ConfigError(
                f"CrossViewTransformer: features are {height} x {width}, the stride is {self.stride}; "
                f"expected a stride of {sorted(TAPS)} that divides both"
            )
        y = x[:, :, :: self.stride, :: self.stride]
        y = y * self.param("reduce", nn.initializers.ones, (dim,)).astype(y.dtype)
        y = nn.Dense(dim, use_bias=False, dtype=self.dtype, name="reduce_pointwise")(y)

        rows, columns = y.shape[2:4]
        position = np.tile(sine_position(rows, columns, dim).reshape(-1, dim), (cameras, 1))
        mask = None if camera_mask is None else jnp.repeat(camera_mask, rows * columns, axis=1)
        tokens = y.reshape(batch, cameras * rows * columns, dim)
        block = nn.remat(CrossViewBlock) if self.remat else CrossViewBlock
        for i in range(self.blocks):
            tokens = block(self.heads, self.dtype, name=f"block{i}")(tokens, position, mask)

        y = self._spread(tokens.reshape(batch, cameras, rows, columns, dim))
        y = nn.Dense(dim, use_bias=False, dtype=self.dtype, name="spread_pointwise")(y)
        return constrain_batch(y)

    def _spread(self, y: jax.Array) -> jax.Array:
        """(B, N, h, w, C) → (B, N, stride·h, stride·w, C): a depthwise transposed convolution, with bias.

        Its taps do not reach the next token's cells, so that it is a product with one pattern.
        """
        batch, cameras, rows, columns, dim = y.shape
        kernel, dilation = TAPS[self.stride]
        fan_in = kernel * kernel
        taps = self.param("spread", nn.initializers.normal(fan_in**-0.5), (kernel, kernel, dim))
        bias = self.param("spread_bias", nn.initializers.zeros, (dim,))
        reached = dilation * np.arange(kernel)
        pattern = jnp.zeros((self.stride, self.stride, dim)).at[reached[:, None], reached].set(taps)
        y = y[:, :, :, None, :, None] * pattern[:, None].astype(y.dtype) + bias.astype(y.dtype)
        return y.reshape(batch, cameras, rows * self.stride, columns * self.stride, dim)


class CrossViewBlock(nn.Module):
    """(B, T, C) tokens, (T, C) position, (B, T) mask or None → (B, T, C): attention and MLP, both pre-norm.

    The position is added to what asks and what is asked (after the norm), not to what is answered.
    """

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, position: np.ndarray, mask: jax.Array | None) -> jax.Array:
        dim = x.shape[-1]
        if dim % self.heads:
            raise ConfigError(f"CrossViewTransformer: {dim} channels cannot be split by {self.heads} heads")
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        project = functools.partial(
            nn.DenseGeneral, (self.heads, dim // self.heads), use_bias=False, dtype=self.dtype
        )
        # The (heads x T x T) weights are computed again in the backward pass instead of being kept for it.
        attend = jax.checkpoint(jax.nn.dot_product_attention)
        y = norm(name="norm1")(x)
        placed = y + jnp.asarray(position, y.dtype)
        attended = attend(
            project(name="query")(placed),
            project(name="key")(placed),
            project(name="value")(y),
            mask=None if mask is None else mask[:, None, None, :],
        )
        x = x + nn.DenseGeneral(dim, axis=(-2, -1), dtype=self.dtype, name="out")(attended)
        y = nn.Dense(4 * dim, dtype=self.dtype, name="expand")(norm(name="norm2")(x))
        y = nn.Dense(dim, dtype=self.dtype, name="contract")(nn.gelu(y, approximate=False))
        return constrain_batch(x + y)


def sine_position(rows: int, columns: int, dim: int, temperature: float = 1e4) -> np.ndarray:
    """(rows, columns, dim) float32: dim/2 channels for the row, then dim/2 for the column.

    Rows and columns are counted from 1. Sine and cosine alternate, with the angular frequencies
    temperature^(−2k / (dim/2)), k = 0 … dim/4 − 1 (Carion et al., arXiv 2005.12872, not normalised).
    """
    if dim % 4:
        raise ConfigError(
            f"sine_position: dim must be a multiple of 4 (sine and cosine of two axes), found {dim}"
        )
    frequency = temperature ** (-2 * np.arange(dim // 4) / (dim // 2))

    def along(count: int) -> np.ndarray:
        angle = np.arange(1, count + 1)[:, None] * frequency
        return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(count, dim // 2)

    down = np.broadcast_to(along(rows)[:, None], (rows, columns, dim // 2))
    across = np.broadcast_to(along(columns)[None], (rows, columns, dim // 2))
    return np.concatenate([down, across], axis=-1).astype(np.float32)
