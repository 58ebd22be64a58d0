"""Heads that regress a planar offset from two feature grids which share a frame and a cell size.

All see a query grid (N, H, W, C), which may be narrower than the map grid (N, H, W', C) and is centred on it
alike, and give an offset (N, 3) in the unit of their training target, and tokens. The last layer starts at
zero: training starts at the identity.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from placerec_jax.modules.position import sinusoidal_encoding_2d
from placerec_jax.modules.transformer import TransformerDecoderLayer, TransformerEncoder


class TokenEmbedding(nn.Module):
    """(N, H, W, C) → (N, T, D): a strided 7x7 convolution, GELU, and an origin-centred position code.

    `pool=2` averages 2x2 cells before, so that a grid of twice the resolution gives as many tokens.
    """

    dim: int
    stride: int = 4
    pool: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.pool > 1:
            window = (self.pool, self.pool)
            x = nn.avg_pool(x, window, strides=window)
        x = nn.Conv(
            self.dim,
            (7, 7),
            strides=(self.stride, self.stride),
            padding=((3, 3), (3, 3)),
            dtype=self.dtype,
            name="conv",
        )(x)
        x = nn.gelu(x, approximate=False)
        count, rows, columns, _ = x.shape
        x = x + sinusoidal_encoding_2d(rows, columns, self.dim).astype(x.dtype)
        return x.reshape(count, rows * columns, self.dim)


class OffsetHead(nn.Module):
    """(N, D) → (N, 3): `scale` times an MLP with two hidden layers, the last layer starting at zero."""

    scale: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dim = x.shape[-1]
        x = x.astype(jnp.float32)
        for _ in range(2):
            x = nn.relu(nn.Dense(dim)(x))
        return self.scale * nn.Dense(3, kernel_init=nn.initializers.zeros, name="offset")(x)


def pad_to_width(query: jax.Array, width: int) -> jax.Array:
    """(N, H, W, C) → (N, H, width, C): zeros on both sides, so that the ego stays centred."""
    side = (width - query.shape[2]) // 2
    return jnp.pad(query, ((0, 0), (0, 0), (side, side), (0, 0)))


class _Registration(nn.Module):
    """Settings that the heads share; see `modules.transformer` for layers, heads, mlp_dim, dropout, norm."""

    dim: int
    layers: int
    heads: int
    mlp_dim: int
    dropout: float
    scale: float = 1.0
    stride: int = 4
    norm: str = "post"
    pool: int = 1
    dtype: Any = jnp.float32

    def embedding(self, name: str) -> TokenEmbedding:
        return TokenEmbedding(self.dim, self.stride, self.pool, self.dtype, name=name)

    def decode(self, x: jax.Array, memory: jax.Array, train: bool, self_attention: bool) -> jax.Array:
        """Decoder layers over a memory, with a last norm when they are pre-norm; in the caller's scope."""
        for i in range(self.layers):
            x = TransformerDecoderLayer(
                self.heads,
                self.mlp_dim,
                self.dropout,
                self.dtype,
                self.norm,
                self_attention=self_attention,
                name=f"layer{i}",
            )(x, memory, train)
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x) if self.norm == "pre" else x


class FusedRegression(_Registration):
    """Query and map embedded together, an encoder over the tokens, their mean (MapLocNet's 'FR').

    `earlier` (N, T, D), the tokens of a stage before, are added to the embedding (C2FViT, arXiv 2203.15216).
    """

    @nn.compact
    def __call__(
        self, query: jax.Array, reference: jax.Array, train: bool, earlier: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        both = jnp.concatenate([pad_to_width(query, reference.shape[2]), reference], axis=-1)
        x = self.embedding("embed")(both)
        if earlier is not None:
            x = x + earlier
        tokens = TransformerEncoder(
            self.layers, self.heads, self.mlp_dim, self.dropout, self.dtype, self.norm, name="encoder"
        )(x, train)
        return OffsetHead(self.scale, name="head")(jnp.mean(tokens.astype(jnp.float32), axis=1)), tokens


class QueryRegression(_Registration):
    """Query and map embedded together are the memory of one learned pose query (after DETR)."""

    @nn.compact
    def __call__(self, query: jax.Array, reference: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        both = jnp.concatenate([pad_to_width(query, reference.shape[2]), reference], axis=-1)
        memory = self.embedding("embed")(both)
        pose = self.param("pose_query", nn.initializers.normal(0.02), (1, 1, self.dim))
        start = jnp.broadcast_to(pose, (memory.shape[0], 1, self.dim)).astype(memory.dtype)
        tokens = self.decode(start, memory, train, self_attention=True)
        return OffsetHead(self.scale, name="head")(tokens[:, 0]), tokens


class CrossRegression(_Registration):
    """Query tokens attend to map tokens, each embedded for itself; their mean (MapLocNet's 'CA').

    The query grid is not padded: its position code is centred on the ego as the map's is.
    """

    @nn.compact
    def __call__(self, query: jax.Array, reference: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        memory = self.embedding("embed_map")(reference)
        tokens = self.decode(self.embedding("embed_query")(query), memory, train, self_attention=False)
        return OffsetHead(self.scale, name="head")(jnp.mean(tokens.astype(jnp.float32), axis=1)), tokens
