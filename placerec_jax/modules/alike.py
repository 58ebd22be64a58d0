"""A light backbone for key points, after ALIKE (Zhao et al., TMM 2022): score and feature for every cell.

ALIKE's last layer is a 1x1 convolution without bias on the full-size map, half of all the work, of which only
the features at a few hundred cells are ever read. A backbone here is therefore called for a `map` and a
score, and `read` turns what was gathered from the map into features: the same numbers for a fraction of the
work.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.modules.conv import ConvBatchNormReLU, batch_norm, conv, surround
from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.ops.keypoints import gather
from placerec_jax.ops.resize import upsample_bilinear


class AlikeSize(NamedTuple):
    """Channels of the four blocks and of a feature, and whether one more 1x1 layer precedes the head."""

    widths: tuple[int, int, int, int]
    dim: int
    extra_layer: bool = False


SIZES = {
    "t": AlikeSize((8, 16, 32, 64), 64),
    "s": AlikeSize((8, 16, 48, 96), 96),
    "n": AlikeSize((16, 32, 64, 128), 128),
    "l": AlikeSize((32, 64, 128, 128), 128, extra_layer=True),
}

_POOLS = (2, 4, 4)  # before blocks 2, 3 and 4
STRIDE = 32  # of block 4: both sides of the input are multiples of it


class ResidualBlock(nn.Module):
    """(B, H, W, C) → (B, H, W, features): two 3x3 convolutions beside a 1x1 convolution with bias."""

    features: int
    padding: str = "zeros"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = ConvBatchNormReLU(self.features, dtype=self.dtype, padding=self.padding, name="first")(x, train)
        y, border = surround(y, 1, self.padding)
        y = conv(self.features, 3, 1, self.dtype, "second", border)(y)
        y = batch_norm(train, self.dtype, name="second_bn")(y)
        return nn.relu(y + nn.Conv(self.features, (1, 1), dtype=self.dtype, name="shortcut")(x))


class Alike(nn.Module):
    """(B, H, W, C) → (B, H, W, dim) map for `read`, (B, H, W) float32 score in (0, 1).

    H and W are multiples of `STRIDE`. `padding` is that of `modules.conv.surround`: with 'replicate' a
    constant input gives a constant map.
    """

    size: AlikeSize
    padding: str = "zeros"
    dtype: jnp.dtype = jnp.float32

    @property
    def stride(self) -> int:
        """What both sides of the input are multiples of."""
        return STRIDE

    def setup(self) -> None:
        first, *later = self.size.widths
        self.stem = [
            ConvBatchNormReLU(first, dtype=self.dtype, padding=self.padding, name=f"stem{i}")
            for i in range(2)
        ]
        self.blocks = [
            ResidualBlock(width, self.padding, self.dtype, name=f"block{i}")
            for i, width in enumerate(later, 2)
        ]
        self.laterals = [conv(self.size.dim // 4, 1, 1, self.dtype, name=f"lateral{i}") for i in range(1, 5)]
        if self.size.extra_layer:
            self.extra = conv(self.size.dim, 1, 1, self.dtype)
        # One 1x1 layer of dim + 1 outputs in ALIKE; apart, so that each is computed where it is needed.
        self.feature_head = nn.Dense(self.size.dim, use_bias=False, dtype=self.dtype)
        # Float32 whatever the rest: bfloat16 has few numbers, and neighbours that tie all become key points.
        exact = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
        self.score_head = nn.Dense(1, use_bias=False, dtype=self.dtype, dot_general=exact)

    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        features = self.encode(x, train)
        return features, nn.sigmoid(self.score_head(features)[..., 0])

    def encode(self, x: jax.Array, train: bool) -> jax.Array:
        """The map alone."""
        if x.shape[1] % STRIDE or x.shape[2] % STRIDE:
            raise ValueError(f"Alike: the input is {x.shape[1:3]} cells; expected multiples of {STRIDE}")
        for layer in self.stem:
            x = layer(x, train)
        levels = [constrain_batch(x)]
        for pool, block in zip(_POOLS, self.blocks, strict=True):
            x = block(nn.max_pool(x, (pool, pool), strides=(pool, pool)), train)
            levels.append(constrain_batch(x))
        height = levels[0].shape[1]
        enlarged = [
            upsample_bilinear(nn.relu(lateral(level)), height // level.shape[1], align_corners=True)
            for lateral, level in zip(self.laterals, levels, strict=True)
        ]
        features = jnp.concatenate(enlarged, axis=-1)
        return nn.relu(self.extra(features)) if self.size.extra_layer else features

    def read(self, values: jax.Array) -> jax.Array:
        """(..., dim) entries of the map → (..., dim) float32 features, not normalised."""
        return self.feature_head(values).astype(jnp.float32)

    def features_at(self, values: jax.Array, cell: jax.Array) -> jax.Array:
        """(B, H, W, dim) map and (B, K) flat cells → (B, K, dim) float32 features, not normalised."""
        return self.read(gather(values, cell))
