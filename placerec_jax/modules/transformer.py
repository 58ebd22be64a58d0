"""Transformer layers (Vaswani et al., arXiv 1706.03762) with ReLU, post-norm or pre-norm.

The arithmetic is that of torch's `nn.TransformerEncoderLayer` and `nn.TransformerDecoderLayer`: layer-norm
eps 1e-5, biases everywhere, dropout after the attention, inside the MLP and after it. Dropout of single
attention weights is not done: it would force the (tokens x tokens) matrix into memory and rule out fused
attention.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.modules.sharding import constrain_batch

NORMS = ("post", "pre")


class MultiHeadAttention(nn.Module):
    """Queries (B, T, D) attend to a memory (B, S, E) -> (B, T, D); `mask` (B, S) is True at real keys."""

    heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: jax.Array, memory: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        dim = queries.shape[-1]
        if dim % self.heads:
            raise ValueError(f"MultiHeadAttention: {dim} channels cannot be split among {self.heads} heads")
        # The (heads x T x S) weights are computed again in the backward pass instead of being kept for it.
        attend = jax.checkpoint(jax.nn.dot_product_attention)
        project = functools.partial(
            nn.DenseGeneral,
            features=(self.heads, dim // self.heads),
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
        )
        attended = attend(
            project(name="query")(queries),
            project(name="key")(memory),
            project(name="value")(memory),
            mask=None if mask is None else mask[:, None, None, :],
        )
        return nn.DenseGeneral(dim, axis=(-2, -1), dtype=self.dtype, name="out")(attended)


class FeedForward(nn.Module):
    """(B, T, D) -> (B, T, D): linear to `mlp_dim`, ReLU, dropout, linear back."""

    mlp_dim: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        dim = x.shape[-1]
        x = nn.relu(nn.Dense(self.mlp_dim, dtype=self.dtype, name="linear1")(x))
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(dim, dtype=self.dtype, name="linear2")(x)


class Residual(nn.Module):
    """(B, T, D) -> norm(x + dropout(branch(x))) for norm 'post', x + dropout(branch(norm(x))) for 'pre'."""

    dropout: float = 0.0
    norm: str = "post"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, branch: Callable[[jax.Array], jax.Array], train: bool) -> jax.Array:
        if self.norm not in NORMS:
            raise ValueError(f"transformer norm is {self.norm!r}; expected one of {NORMS}")
        norm = nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")
        y = branch(norm(x) if self.norm == "pre" else x)
        y = x + nn.Dropout(self.dropout)(y, deterministic=not train)
        return norm(y) if self.norm == "post" else y


class TransformerEncoderLayer(nn.Module):
    """(B, T, D) -> (B, T, D): self-attention, then the MLP; `mask` (B, T) is True where a token is real."""

    heads: int
    mlp_dim: int
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32
    norm: str = "post"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        attention = MultiHeadAttention(self.heads, self.dtype, name="self_attention")
        feed_forward = FeedForward(self.mlp_dim, self.dropout, self.dtype, name="mlp")
        residual = functools.partial(Residual, self.dropout, self.norm, self.dtype)
        x = residual(name="self_attention_residual")(x, lambda y: attention(y, y, mask), train)
        x = residual(name="mlp_residual")(x, lambda y: feed_forward(y, train), train)
        return constrain_batch(x)


class TransformerDecoderLayer(nn.Module):
    """Queries (B, T, D), memory (B, S, E) -> (B, T, D): self-attention, attention to the memory, the MLP.

    Without `self_attention` it is a cross-attention layer. `mask` (B, S) is True where a memory token is
    real.
    """

    heads: int
    mlp_dim: int
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32
    norm: str = "post"
    self_attention: bool = True

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: jax.Array, train: bool, mask: jax.Array | None = None
    ) -> jax.Array:
        cross_attention = MultiHeadAttention(self.heads, self.dtype, name="cross_attention")
        feed_forward = FeedForward(self.mlp_dim, self.dropout, self.dtype, name="mlp")
        residual = functools.partial(Residual, self.dropout, self.norm, self.dtype)
        if self.self_attention:
            attention = MultiHeadAttention(self.heads, self.dtype, name="self_attention")
            x = residual(name="self_attention_residual")(x, lambda y: attention(y, y), train)
        x = residual(name="cross_attention_residual")(x, lambda y: cross_attention(y, memory, mask), train)
        x = residual(name="mlp_residual")(x, lambda y: feed_forward(y, train), train)
        return constrain_batch(x)


class TransformerEncoder(nn.Module):
    """`layers` encoder layers: (B, T, D) -> (B, T, D), with a last norm when they are pre-norm."""

    layers: int
    heads: int
    mlp_dim: int
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32
    norm: str = "post"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        for i in range(self.layers):
            x = TransformerEncoderLayer(
                self.heads, self.mlp_dim, self.dropout, self.dtype, self.norm, name=f"layer{i}"
            )(x, train, mask)
        return nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x) if self.norm == "pre" else x
