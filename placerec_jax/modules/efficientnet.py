"""EfficientNet-B0 (Tan and Le, arXiv 1905.11946) without its head, as TensorFlow or torch compute it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.errors import ConfigError
from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.ops.depthwise import Padding, depthwise_convolution


class Stage(NamedTuple):
    """A row of the paper's table 1."""

    kernel: int
    stride: int
    expansion: int
    features: int
    blocks: int


STAGES = (
    Stage(3, 1, 1, 16, 1),
    Stage(3, 2, 6, 24, 2),
    Stage(5, 2, 6, 40, 2),
    Stage(3, 2, 6, 80, 3),
    Stage(5, 1, 6, 112, 3),
    Stage(5, 2, 6, 192, 4),
    Stage(3, 1, 6, 320, 1),
)
STEM_FEATURES = 32
SQUEEZE_RATIO = 0.25


class Convention(NamedTuple):
    """In what implementations differ, and for which one therefore needs to know whence weights are."""

    padding: str  # at stride 2: 'SAME' pads even inputs on the far side only, 'symmetric' on all sides
    epsilon: float  # of batch normalisation


CONVENTIONS = {
    "tensorflow": Convention("SAME", 1e-3),  # the released weights; timm's tf_efficientnet_b0
    "torch": Convention("symmetric", 1e-5),  # torchvision's and timm's efficientnet_b0
}


class EfficientNetB0(nn.Module):
    """Images (B, H, W, 3) -> {'reduction_1': (B, H/2, W/2, 16), ..., 'reduction_5': (B, H/32, W/32, 320)}.

    A tap is the last feature map of its resolution: 16, 24, 40, 112 and 320 channels. The probability that a
    residual branch is skipped in training rises linearly with the depth, up to (almost) `drop_path_rate`; rng
    stream 'dropout'. `convention` is one of `CONVENTIONS`. 3,595,388 parameters.
    """

    drop_path_rate: float = 0.2
    dtype: jnp.dtype = jnp.float32
    convention: str = "tensorflow"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> dict[str, jax.Array]:
        if self.convention not in CONVENTIONS:
            raise ConfigError(
                f"EfficientNetB0: convention is {self.convention!r}; expected one of {sorted(CONVENTIONS)}"
            )
        convention = CONVENTIONS[self.convention]
        x = _conv(STEM_FEATURES, 3, 2, self.dtype, convention, name="stem_conv")(x)
        x = constrain_batch(nn.silu(_batch_norm(train, self.dtype, convention, name="stem_bn")(x)))
        total = sum(stage.blocks for stage in STAGES)
        taps, reduction, index = {}, 1, 0
        for stage in STAGES:
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                if stride == 2:
                    reduction += 1
                x = MBConv(
                    stage.features,
                    stage.kernel,
                    stride,
                    stage.expansion,
                    self.drop_path_rate * index / total,
                    self.dtype,
                    convention,
                    name=f"block{index}",
                )(x, train)
                taps[f"reduction_{reduction}"] = x
                index += 1
        return taps


class MBConv(nn.Module):
    """Inverted bottleneck with squeeze-and-excitation: (B, H, W, C) -> (B, H / stride, W / stride, features).

    Where the shape does not change the input is added, and the branch is dropped per example with
    `drop_path`.
    """

    features: int
    kernel: int
    stride: int
    expansion: int
    drop_path: float = 0.0
    dtype: jnp.dtype = jnp.float32
    convention: Convention = CONVENTIONS["tensorflow"]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inputs, channels, how = x, x.shape[-1], self.convention
        hidden = channels * self.expansion
        if self.expansion != 1:
            x = _conv(hidden, 1, 1, self.dtype, how, name="expand_conv")(x)
            x = nn.silu(_batch_norm(train, self.dtype, how, name="expand_bn")(x))
        x = DepthwiseConv(self.kernel, self.stride, self.dtype, how, name="depthwise_conv")(x)
        x = nn.silu(_batch_norm(train, self.dtype, how, name="depthwise_bn")(x))
        squeezed = max(1, int(channels * SQUEEZE_RATIO))  # of the block's input, not of the hidden width
        x = SqueezeExcite(squeezed, self.dtype, name="se")(x)
        x = _conv(self.features, 1, 1, self.dtype, how, name="project_conv")(x)
        x = _batch_norm(train, self.dtype, how, name="project_bn")(x)
        if self.stride == 1 and channels == self.features:
            # One draw per example: the branch is dropped whole, and scaled by 1 / (1 - p) when kept.
            x = nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3))(x, deterministic=not train)
            x = inputs.astype(x.dtype) + x
        return constrain_batch(x)


class SqueezeExcite(nn.Module):
    """(B, H, W, C) -> (B, H, W, C): every channel times a gate in (0, 1) that sees all channel means."""

    squeezed: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gate = x.mean(axis=(1, 2), dtype=jnp.float32)
        gate = nn.silu(nn.Dense(self.squeezed, dtype=self.dtype, name="reduce")(gate))
        gate = nn.sigmoid(nn.Dense(x.shape[-1], dtype=self.dtype, name="expand")(gate))
        return x * gate[:, None, None, :]


class DepthwiseConv(nn.Module):
    """(B, H, W, C) → (B, H / stride, W / stride, C): every channel with its own filter, no bias."""

    kernel: int
    stride: int
    dtype: jnp.dtype
    convention: Convention

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # The released initialisation: the number of outputs a weight feeds, and a depthwise filter feeds one.
        initial = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
        kernel = self.param("kernel", initial, (self.kernel, self.kernel, 1, x.shape[-1]))
        padding = _padding(self.convention, x.shape[1:3], self.kernel, self.stride)
        return depthwise_convolution(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding)


def _padding(convention: Convention, size: tuple[int, ...], kernel: int, stride: int) -> Padding:
    if convention.padding == "symmetric":
        return ((kernel // 2, kernel // 2),) * 2
    return tuple(jax.lax.padtype_to_pads(size, (kernel, kernel), (stride, stride), convention.padding))


def _conv(
    features: int, kernel: int, stride: int, dtype: jnp.dtype, convention: Convention, name: str
) -> nn.Conv:
    symmetric = ((kernel // 2, kernel // 2),) * 2
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=symmetric if convention.padding == "symmetric" else convention.padding,
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal"),
        name=name,
    )


def _batch_norm(
    train: bool, dtype: jnp.dtype, convention: Convention, name: str | None = None
) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train, momentum=0.99, epsilon=convention.epsilon, dtype=dtype, name=name
    )
