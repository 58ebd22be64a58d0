"""A small PointNet makes one token of every group of points (Point-BERT's embedder, arXiv 2111.14819)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.modules.batch_norm import MaskedBatchNorm
from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.modules.vit import token_init
from placerec_jax.ops.pointset import Groups
from placerec_jax.ops.unit_norm import unit_norm


class GroupPointNet(nn.Module):
    """(B, G, k, 3) offsets (m), (B, G) mask → (B, G, widths[3]); the order within a group does not matter.

    Every point is lifted alone, sees the maximum over its group beside itself, is lifted again, and the
    maximum is the group's. Batch statistics leave out masked groups.
    """

    widths: tuple[int, int, int, int] = (128, 256, 512, 1024)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, offsets: jax.Array, mask: jax.Array, train: bool) -> jax.Array:
        real = jnp.broadcast_to(mask[..., None], offsets.shape[:-1])
        x = self._dense(0, "first1")(offsets.astype(self.dtype))
        x = nn.relu(MaskedBatchNorm(name="first_bn")(x, train, real)).astype(self.dtype)
        x = self._dense(1, "first2")(x)
        x = TwoPartDense(self.widths[2], self.dtype, name="second1")(x.max(axis=2, keepdims=True), x)
        x = nn.relu(MaskedBatchNorm(name="second_bn")(x, train, real)).astype(self.dtype)
        return self._dense(3, "second2")(x).max(axis=2)

    def _dense(self, i: int, name: str) -> nn.Dense:
        return nn.Dense(self.widths[i], dtype=self.dtype, kernel_init=token_init, name=name)


class TwoPartDense(nn.Module):
    """(..., 1, D), (..., k, D) → (..., k, features): a linear layer on [first, second], never concatenated.

    The first part is the same for all k, so its product is computed once instead of k times.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, first: jax.Array, second: jax.Array) -> jax.Array:
        split = first.shape[-1]
        kernel = self.param("kernel", token_init, (split + second.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel, bias = kernel.astype(self.dtype), bias.astype(self.dtype)
        return first @ kernel[:split] + second @ kernel[split:] + bias


class PointTokenizer(nn.Module):
    """Groups of a point set → (B, G, width) float32 tokens of unit length.

    Attributes:
        widths: of the PointNet's four layers.
        remat: compute the PointNet again in the backward pass; its activations are B · G · k · 1024 numbers.
    """

    width: int = 384
    widths: tuple[int, int, int, int] = (128, 256, 512, 1024)
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, groups: Groups, train: bool) -> jax.Array:
        net = nn.remat(GroupPointNet, static_argnums=(3,)) if self.remat else GroupPointNet
        x = net(self.widths, self.dtype, name="pointnet")(groups.offsets, groups.mask, train)
        x = nn.Dense(self.width, dtype=self.dtype, kernel_init=token_init, name="reduce")(unit_norm(x))
        return constrain_batch(unit_norm(x))
