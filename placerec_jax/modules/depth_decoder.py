"""Depth of single cameras from the levels of an image encoder, from coarse to fine (SurroundDepth)."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.errors import ConfigError
from placerec_jax.modules.sharding import constrain_batch

CHANNELS = (16, 32, 64, 128, 256)  # from the image's resolution down to a sixteenth of it
SCALES = (0, 1, 2, 3)  # of which a head may be asked: the image's resolution, halved so often
NEAREST, FARTHEST = 0.1, 80.0  # metres that a disparity of 1 and of 0 stand for, before focal scaling
FOCAL = 500.0  # pixels of a 640 pixels wide image for which those metres hold
_FOCAL_WIDTH = 640.0


class DepthDecoder(nn.Module):
    """Levels (B, H/2, W/2, ·) … (B, H/32, W/32, ·) → {scale s: (B, H/2^s, W/2^s) disparity in (0, 1)}.

    From the deepest level on: convolution, twice the size (nearest), the encoder's next level beside it,
    convolution; both with mirrored borders and ELU.

    Attributes:
        channels: after every convolution, finest first.
        scales: which heads there are; only the finest is needed for one map a camera.
        start: metres (at FOCAL) about which the depths of a fresh decoder lie; 0.2 is a disparity of a half.
        remat: compute every step again in the backward pass instead of keeping what it made.
    """

    channels: tuple[int, ...] = CHANNELS
    scales: tuple[int, ...] = (0,)
    start: float = 0.2
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, levels: list[jax.Array]) -> dict[int, jax.Array]:
        if not self.scales or set(self.scales) - set(SCALES):
            raise ConfigError(f"DepthDecoder: scales are {self.scales}; expected some of {SCALES}")
        convolution = nn.remat(ConvELU) if self.remat else ConvELU
        if not NEAREST < self.start < FARTHEST:
            raise ConfigError(
                f"DepthDecoder: start is {self.start} m; expected a depth between {NEAREST} and {FARTHEST} m"
            )
        share = (1 / self.start - 1 / FARTHEST) / (1 / NEAREST - 1 / FARTHEST)
        start = nn.initializers.constant(math.log(share / (1 - share)))
        x, disparity = levels[-1], {}
        for i in reversed(range(len(levels))):
            x = convolution(self.channels[i], self.dtype, name=f"upconv{i}_0")(x)
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            if i > 0:
                x = jnp.concatenate([x, levels[i - 1].astype(x.dtype)], axis=-1)
            x = constrain_batch(convolution(self.channels[i], self.dtype, name=f"upconv{i}_1")(x))
            if i in self.scales:
                logits = _mirrored_conv(1, self.dtype, f"head{i}", start)(_mirror(x))
                disparity[i] = nn.sigmoid(logits[..., 0].astype(jnp.float32))
        return disparity


class ConvELU(nn.Module):
    """(B, H, W, C) → (B, H, W, features): 3x3 convolution with mirrored borders, ELU."""

    features: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.elu(_mirrored_conv(self.features, self.dtype, "conv")(_mirror(x)))


def _mirror(x: jax.Array) -> jax.Array:
    # A border of one cell cannot be mirrored about itself in a map of one row or column: repeated there.
    mode = "reflect" if min(x.shape[1:3]) > 1 else "edge"
    return jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)


def _mirrored_conv(
    features: int, dtype: jnp.dtype, name: str, bias: nn.initializers.Initializer = nn.initializers.zeros
) -> nn.Conv:
    return nn.Conv(features, (3, 3), padding="VALID", bias_init=bias, dtype=dtype, name=name)


def depth_from_disparity(disparity: jax.Array, focal: jax.Array, width: int) -> jax.Array:
    """(B, N, h, w) in (0, 1), (B, N) focal lengths fx in pixels of images `width` wide → metres, float32.

    1 / (1/80 + (1/0.1 − 1/80) σ) for a focal length of 500 pixels at a width of 640; a longer lens shows the
    same thing larger, hence farther in proportion.
    """
    inverse = 1 / FARTHEST + (1 / NEAREST - 1 / FARTHEST) * disparity.astype(jnp.float32)
    scale = focal * (_FOCAL_WIDTH / width) / FOCAL
    return scale[..., None, None] / inverse
