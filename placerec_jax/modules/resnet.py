"""ResNet-18 blocks (He et al., arXiv 1512.03385), NHWC, and a light image backbone made of them."""

import jax
import jax.numpy as jnp
from flax import linen as nn

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
