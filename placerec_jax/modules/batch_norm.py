"""Batch normalisation over what is real, with the running statistics of torch."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class MaskedBatchNorm(nn.Module):
    """(..., C), mask (...) or None → (..., C) float32: every channel normalised over all real entries.

    As torch's BatchNorm: normalised by the biased variance, while the running variance is the unbiased one
    (Flax keeps the biased: three quarters of it for a batch of four). Masked entries count for nothing in the
    statistics. Of a single entry the spread is unknown: the running variance stays as it was; without
    any both stay.

    Attributes:
        momentum: share of the new batch in the running statistics (torch's meaning, not Flax's).
    """

    momentum: float = 0.1
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        channels = x.shape[-1]
        x = x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        if train:
            mean, var, count = masked_moments(x, mask)
            if not self.is_initializing():
                unbiased = var * count / jnp.maximum(count - 1, 1)
                self._follow(running_mean, mean, count >= 1)
                self._follow(running_var, unbiased, count >= 2)
        else:
            mean, var = running_mean.value, running_var.value
        return (x - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias

    def _follow(self, running: nn.Variable, new: jax.Array, known: jax.Array) -> None:
        step = jnp.where(known, self.momentum, 0.0)
        running.value = running.value + step * (jax.lax.stop_gradient(new) - running.value)


def masked_moments(x: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(..., C), mask (...) or None → (C,) mean, (C,) biased variance, () how many entries are real."""
    axes = tuple(range(x.ndim - 1))
    if mask is None:
        count = jnp.float32(x.size // x.shape[-1])
        mean = x.mean(axes)
        return mean, jnp.square(x - mean).mean(axes), count
    real = mask[..., None]
    count = mask.sum().astype(jnp.float32)
    mean = jnp.where(real, x, 0.0).sum(axes) / jnp.maximum(count, 1)
    return mean, jnp.where(real, jnp.square(x - mean), 0.0).sum(axes) / jnp.maximum(count, 1), count
