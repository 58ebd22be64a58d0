"""What passes between a bird's-eye view and a camera image: converters, generator, fusion (Yue et al., RA-L).

Tokens are (B, T, D) with a mask (B, T) that is True where a token is real.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.modules.transformer import MultiHeadAttention


class PixelPool(nn.Module):
    """(B, N, R, C) features of pixels, (B, N, R) mask → (B, N, dim): linear, then the maximum of the real.

    A cell without any pixel gives zeros, and passes no gradient.
    """

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: jax.Array, mask: jax.Array, dim: int) -> jax.Array:
        pixels = nn.Dense(dim, dtype=self.dtype, name="linear")(pixels).astype(jnp.float32)
        largest = jnp.max(jnp.where(mask[..., None], pixels, -jnp.inf), axis=2)
        return jnp.where(mask.any(axis=2)[..., None], largest, 0.0)


class Converter(nn.Module):
    """(B, T, D) → (B, T, D) features of the other modality.

    Self-attention with residual and norm, then two linear layers over single tokens: the order of the tokens
    does not matter, which differs between cells seen by the camera and key points.
    """

    heads: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        dim = tokens.shape[-1]
        x = tokens + MultiHeadAttention(self.heads, self.dtype, name="attention")(tokens, tokens, mask)
        x = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        x = nn.relu(nn.Dense(dim, dtype=self.dtype, name="first")(x))
        return nn.Dense(dim, dtype=self.dtype, name="second")(x).astype(jnp.float32) * mask[..., None]


class Generator(nn.Module):
    """(B, N, D) tokens with the real ones first, (B, N) mask → (B, count, D) features of key points.

    Self-attention, a transposed convolution that doubles the tokens, and an average over `count` windows of
    what is real of them. Without any token the result is zero.
    """

    heads: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, count: int) -> jax.Array:
        batch, length, dim = tokens.shape
        x = MultiHeadAttention(self.heads, self.dtype, name="attention")(tokens, tokens, mask)
        x = nn.relu(nn.Dense(dim, dtype=self.dtype, name="first")(x))
        # A transposed convolution of stride and kernel 2: every token gives two.
        x = nn.Dense(2 * dim, dtype=self.dtype, name="double")(x).reshape(batch, 2 * length, dim)
        x = nn.Dense(dim, dtype=self.dtype, name="second")(x)
        pooled = adaptive_average(x.astype(jnp.float32), 2 * mask.sum(axis=1), count)
        generated = nn.Dense(dim, dtype=self.dtype, name="out")(pooled).astype(jnp.float32)
        return generated * mask.any(axis=1)[:, None, None]


def adaptive_average(x: jax.Array, length: jax.Array, count: int) -> jax.Array:
    """(B, T, D), (B,) int32 lengths ≤ T → (B, count, D): means over windows of the first `length` tokens.

    Window i is [floor(i·L/count), ceil((i+1)·L/count)), as in torch's AdaptiveAvgPool1d. Zeros where L is 0.
    """
    sums = jnp.cumsum(x, axis=1)
    sums = jnp.pad(sums, ((0, 0), (1, 0), (0, 0)))  # sums[:, t] is that of the tokens before t
    window = jnp.arange(count)
    start = window * length[:, None] // count
    end = ((window + 1) * length[:, None] + count - 1) // count
    total = jnp.take_along_axis(sums, end[..., None], axis=1) - jnp.take_along_axis(
        sums, start[..., None], axis=1
    )
    return total / jnp.maximum(end - start, 1)[..., None]


def sort_tokens(tokens: jax.Array, mask: jax.Array, score: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(B, N, D), (B, N) mask, (B, N) score → tokens, real ones first, the best of them first; their mask."""
    order = jnp.argsort(jnp.where(mask, -jax.lax.stop_gradient(score), jnp.inf), axis=1)
    return jnp.take_along_axis(tokens, order[..., None], axis=1), jnp.take_along_axis(mask, order, axis=1)


class Fusion(nn.Module):
    """Key points (B, K, D) seen from several sides → (B, K, D).

    `sources` (B, K, M, D) with their own mask (B, M) are the BEV feature and what imitates it: attention
    among the M of every key point, their maximum, then attention to `memory` (B, K, D), the same key points
    as an image shows them, where it is given; concatenated with the BEV feature and reduced.
    """

    heads: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: jax.Array,
        sources: jax.Array,
        source_mask: jax.Array,
        memory: jax.Array | None,
        mask: jax.Array,
    ) -> jax.Array:
        batch, points, count, dim = sources.shape
        source_mask = jnp.broadcast_to(source_mask[:, None], (batch, points, count)).reshape(-1, count)
        tokens = sources.reshape(batch * points, count, dim)
        x = MultiHeadAttention(self.heads, self.dtype, name="among_sources")(tokens, tokens, source_mask)
        x = jnp.max(jnp.where(source_mask[..., None], x, -jnp.inf), axis=1).reshape(batch, points, dim)
        if memory is not None:
            x = MultiHeadAttention(self.heads, self.dtype, name="to_image")(x, memory, mask)
        both = jnp.concatenate([features, x.astype(jnp.float32)], axis=-1)
        return nn.Dense(dim, dtype=self.dtype, name="out")(both).astype(jnp.float32)
