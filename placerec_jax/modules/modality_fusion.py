"""Two token sequences that ask each other: the cross transformer of CVTNet (arXiv 2302.01665) and EINet."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.modules.transformer import FeedForward, MultiHeadAttention
from placerec_jax.ops.unit_norm import unit_norm


class TokenNorm(nn.Module):
    """(..., C) → (..., C) float32: (x − mean) / (deviation + 1e-6) · scale + bias, the deviation unbiased."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.sum(centred * centred, axis=-1, keepdims=True) / (channels - 1)
        # Under the root, because a root has no slope at 0; far below the 1e-6 beside it.
        return centred / (jnp.sqrt(variance + 1e-14) + 1e-6) * scale + bias


class FusionStage(nn.Module):
    """Tokens (B, T, C) ask a memory (B, S, C) → (B, T, C): x = norm(q + attention(q, memory)); x + MLP(x)."""

    heads: int = 4
    mlp_dim: int = 1024
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, memory: jax.Array) -> jax.Array:
        attended = MultiHeadAttention(self.heads, self.dtype, name="attention")(tokens, memory)
        x = TokenNorm(name="norm")(tokens + attended)
        x = x + FeedForward(self.mlp_dim, 0.0, self.dtype, name="mlp")(x, train=False)  # dropout 0
        return constrain_batch(x)


class ModalityFusion(nn.Module):
    """Tokens of two modalities, (B, T, C) and (B, S, C) → (B, T + S, 2C) float32 of unit length each.

    Both are brought to unit length and through one shared norm. In either direction `stages` follow each
    other with weights of their own; every stage asks the other modality as it came, not as it was enriched.
    What they found stands beside what they came with. `own` gives the two normed inputs as well.
    """

    heads: int = 4
    mlp_dim: int = 1024
    stages: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, first: jax.Array, second: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        norm = TokenNorm(name="norm")
        own = norm(unit_norm(first)), norm(unit_norm(second))
        found = []
        for side, name in enumerate(("first", "second")):
            x = own[side]
            for stage in range(self.stages):
                layer = FusionStage(self.heads, self.mlp_dim, self.dtype, name=f"{name}_stage{stage}")
                x = layer(x, own[1 - side])
            found.append(x)
        together = [jnp.concatenate([x, y], axis=-1) for x, y in zip(found, own, strict=True)]
        return unit_norm(jnp.concatenate(together, axis=1)), own
