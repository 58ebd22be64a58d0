"""LCPR (Zhou et al., RA-L 2024): images and a range image that attend to each other at four scales."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.errors import ConfigError
from placerec_jax.modules.conv import batch_norm
from placerec_jax.modules.netvlad import LoupeNetVLAD
from placerec_jax.modules.resnet import ResNetStage, ResNetStem, resnet_variant, stem_pool
from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.modules.transformer import MultiHeadAttention
from placerec_jax.ops.unit_norm import unit_norm


class ColumnTokens(nn.Module):
    """(B, H, W, C) → (B, W, features): the maximum over the rows, then convolutions along the columns."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        hidden = channels // 2
        x = nn.sigmoid(nn.Dense(channels, dtype=self.dtype, name="weigh")(x))
        x = nn.Dense(channels, dtype=self.dtype, name="weighed")(x).max(axis=1)
        x = nn.Dense(hidden, use_bias=False, dtype=self.dtype, name="reduce")(x)
        x = y = nn.relu(batch_norm(train, self.dtype, "reduce_bn")(x))
        for i in range(2):
            y = nn.Conv(hidden, (3,), padding=1, use_bias=False, dtype=self.dtype, name=f"conv{i + 1}")(y)
            y = nn.relu(batch_norm(train, self.dtype, f"bn{i + 1}")(y))
        x = nn.Dense(self.features, dtype=self.dtype, name="out")(x + y)
        return nn.relu(batch_norm(train, self.dtype, "out_bn")(x))


class ColumnAttention(nn.Module):
    """What images (B, N, H, W, C) and range image (B, h, w, C) learn of each other, in the shape of each.

    Columns of all N cameras side by side and of the range image are one sequence, which attends to itself.
    What a column learns is the same for all its rows. Cameras out of `camera_mask` (B, N) are not looked at.
    """

    heads: int = 4
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, camera_mask: jax.Array, ranges: jax.Array, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        batch, cameras, _, columns, channels = images.shape
        seen = ColumnTokens(channels, self.dtype, name="images")(side_by_side(images), train)
        measured = ColumnTokens(channels, self.dtype, name="ranges")(ranges, train)
        x = jnp.concatenate([seen, measured], axis=1)
        mask = jnp.concatenate(
            [jnp.repeat(camera_mask, columns, axis=1), jnp.ones((batch, measured.shape[1]), bool)], axis=1
        )
        x = constrain_batch(x + MultiHeadAttention(self.heads, self.dtype, name="attention")(x, x, mask))
        seen, measured = x[:, : cameras * columns], x[:, cameras * columns :]
        return seen.reshape(batch, cameras, 1, columns, channels), measured[:, None]


class LCPR(nn.Module):
    """(B, N, H, W, 3) images, (B, N) mask, (B, h, w, 1) range images → (B, 2 · half) float32 of unit length.

    A ResNet for the images; the range image joins by a 1x1 convolution after the first stage and goes through
    stages of its own. After each of the four stages both exchange what their columns know. One NetVLAD for
    either, side by side, weighed channel by channel. Missing cameras are black and not attended to.
    """

    variant: str = "resnet18"
    heads: int = 4
    clusters: int = 32
    half: int = 128
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, images: jax.Array, camera_mask: jax.Array, ranges: jax.Array, train: bool
    ) -> jax.Array:
        batch, cameras, height, width, _ = images.shape
        if height % 32 or width % 32:
            raise ConfigError(f"LCPR: images are {height} x {width}; expected sides that are multiples of 32")
        sizes = resnet_variant(self.variant)
        x = jnp.where(camera_mask[..., None, None, None], images, 0.0)
        x = x.reshape(batch * cameras, height, width, -1)
        x = stem_pool(ResNetStem(sizes.stem, self.dtype, name="stem")(x, train))
        y = nn.Dense(sizes.widths[0], dtype=self.dtype, name="range_stem")(ranges)
        for i, (features, blocks) in enumerate(zip(sizes.widths, sizes.blocks, strict=True)):
            stride = 1 if i == 0 else 2
            x = ResNetStage(features, blocks, stride, self.dtype, name=f"layer{i + 1}")(x, train)
            if i > 0:
                y = ResNetStage(features, blocks, stride, self.dtype, name=f"range_layer{i + 1}")(y, train)
            rigs = x.reshape(batch, cameras, *x.shape[1:])
            learned = ColumnAttention(self.heads, self.dtype, name=f"fusion{i + 1}")
            from_images, from_ranges = learned(rigs, camera_mask, y, train)
            x = (rigs + from_images).reshape(x.shape)
            y = y + from_ranges
        halves = []
        rigs = x.reshape(batch, cameras, *x.shape[1:])
        for name, feature in (("images", side_by_side(rigs)), ("ranges", y)):
            tokens = ColumnTokens(sizes.widths[-1] // 2, self.dtype, name=f"{name}_columns")(feature, train)
            vlad = LoupeNetVLAD(
                self.clusters, self.half, self.dtype, batch_norm=True, unit=False, name=f"{name}_vlad"
            )
            halves.append(vlad(tokens, train))
        return unit_norm(ChannelAttention(name="channels")(jnp.concatenate(halves, axis=-1)))


class ChannelAttention(nn.Module):
    """(B, C) → (B, C): times the sigmoid of a convolution along the channels (ECA, arXiv 1910.03151)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weight = nn.Conv(1, (3,), padding=1, use_bias=False, name="conv")(x[..., None])
        return x * nn.sigmoid(weight[..., 0])


def side_by_side(images: jax.Array) -> jax.Array:
    """(B, N, H, W, C) → (B, H, N·W, C): the cameras in their order, left to right."""
    batch, cameras, height, width, channels = images.shape
    return jnp.swapaxes(images, 1, 2).reshape(batch, height, cameras * width, channels)
