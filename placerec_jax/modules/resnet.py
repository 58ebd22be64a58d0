"""ResNets of basic blocks (He et al., arXiv 1512.03385), NHWC, and a light image backbone made of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.errors import ConfigError
from placerec_jax.modules.conv import ConvBatchNormReLU, batch_norm, conv
from placerec_jax.modules.sharding import constrain_batch


class BasicBlock(nn.Module):
    """(B, H, W, C) -> (B, H / stride, W / stride, features): two 3x3 convolutions beside a shortcut.

    The shortcut is the identity, or a strided 1x1 convolution with normalisation where the shape changes.
    """

    features: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = conv(self.features, 3, self.stride, self.dtype, name="conv1")(x)
        y = nn.relu(batch_norm(train, self.dtype, name="bn1")(y))
        y = conv(self.features, 3, 1, self.dtype, name="conv2")(y)
        y = batch_norm(train, self.dtype, name="bn2")(y)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv(self.features, 1, self.stride, self.dtype, name="shortcut_conv")(x)
            x = batch_norm(train, self.dtype, name="shortcut_bn")(x)
        return constrain_batch(nn.relu(x.astype(y.dtype) + y))


class ResNetStage(nn.Module):
    """(B, H, W, C) -> (B, H / stride, W / stride, features): `blocks` basic blocks, the first strided."""

    features: int
    blocks: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(self.blocks):
            stride = self.stride if i == 0 else 1
            x = BasicBlock(self.features, stride, self.dtype, name=f"block{i}")(x, train)
        return x


class ResNetTrunk(nn.Module):
    """Images (B, H, W, 3) -> taps 'reduction_1' (B, H/2, W/2, stem), 'reduction_2' (B, H/4, W/4, widths[0]).

    Every stage halves the resolution and adds a tap. A backbone for small configurations; its taps are named
    as EfficientNet's.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    stem: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        if len(self.widths) != len(self.blocks):
            raise ValueError(
                f"ResNetTrunk: one number of blocks per width, found {self.widths=} {self.blocks=}"
            )
        x = ConvBatchNormReLU(self.stem, 3, 2, self.dtype, name="stem")(x, train)
        taps = {"reduction_1": constrain_batch(x)}
        for i, (features, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            x = ResNetStage(features, blocks, 2, self.dtype, name=f"stage{i + 1}")(x, train)
            taps[f"reduction_{i + 2}"] = x
        return taps


class ResNetVariant(NamedTuple):
    """The sizes of a published ResNet, or of a small one of ours."""

    stem: int
    widths: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int]


RESNETS = {
    "resnet18": ResNetVariant(64, (64, 128, 256, 512), (2, 2, 2, 2)),
    "resnet34": ResNetVariant(64, (64, 128, 256, 512), (3, 4, 6, 3)),
    "resnet_mini": ResNetVariant(16, (16, 32, 64, 64), (1, 1, 1, 1)),
    "resnet_test": ResNetVariant(8, (8, 8, 16, 16), (1, 1, 1, 1)),
}


def resnet_variant(name: str) -> ResNetVariant:
    """Sizes of the ResNet called `name`; ConfigError lists those there are."""
    if name not in RESNETS:
        raise ConfigError(f"the ResNet {name!r} is unknown; expected one of {sorted(RESNETS)}")
    return RESNETS[name]


class ResNetStem(nn.Module):
    """(B, H, W, C) -> (B, H/2, W/2, features): 7x7 convolution of stride 2, normalisation, ReLU."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = conv(self.features, 7, 2, self.dtype, name="conv1")(x)
        return constrain_batch(nn.relu(batch_norm(train, self.dtype, name="bn1")(x)))


def stem_pool(x: jax.Array) -> jax.Array:
    """(B, H, W, C) -> (B, H/2, W/2, C): the 3x3 maximum of stride 2 between the stem and the first stage."""
    return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class ResNetLevels(nn.Module):
    """Images (B, H, W, C) -> five levels of strides 2, 4, 8, 16, 32: the stem, then the four stages.

    torchvision's network of this name without its classifier. Sides must be multiples of 32.

    Attributes:
        variant: of RESNETS.
        remat: compute every stage again in the backward pass instead of keeping what it made.
    """

    variant: str = "resnet34"
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> list[jax.Array]:
        if x.shape[1] % 32 or x.shape[2] % 32:
            raise ConfigError(
                f"ResNet: images are {x.shape[1]} x {x.shape[2]}; expected sides that are multiples of 32"
            )
        sizes = resnet_variant(self.variant)
        stage = nn.remat(ResNetStage, static_argnums=(2,)) if self.remat else ResNetStage
        x = ResNetStem(sizes.stem, self.dtype, name="stem")(x, train)
        levels = [x]
        x = stem_pool(x)
        for i, (width, blocks) in enumerate(zip(sizes.widths, sizes.blocks, strict=True)):
            x = stage(width, blocks, 1 if i == 0 else 2, self.dtype, name=f"layer{i + 1}")(x, train)
            levels.append(x)
        return levels
