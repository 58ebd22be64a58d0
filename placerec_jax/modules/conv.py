"""Convolution, batch normalisation, ReLU: the unit that decoders and necks are made of."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class ConvBatchNormReLU(nn.Module):
    """(B, H, W, C) -> (B, H / stride, W / stride, features); kernel // 2 cells of `padding` around.

    The convolution has no bias: batch normalisation would remove it.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    dtype: jnp.dtype = jnp.float32
    padding: str = "zeros"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x, border = surround(x, self.kernel // 2, self.padding)
        x = conv(self.features, self.kernel, self.stride, self.dtype, "conv", border)(x)
        return nn.relu(batch_norm(train, self.dtype, name="bn")(x))


Border = tuple[tuple[int, int], tuple[int, int]]  # zeros (before, after) rows and columns


def surround(x: jax.Array, width: int, padding: str) -> tuple[jax.Array, Border]:
    """(B, H, W, C) and the zeros a convolution is to add, so that it sees `width` cells of `padding` around.

    'replicate' repeats the cells at the border; 'zeros' is left to the convolution.
    """
    if padding == "zeros":
        return x, ((width, width), (width, width))
    if padding == "replicate":
        return jnp.pad(x, ((0, 0), (width, width), (width, width), (0, 0)), mode="edge"), ((0, 0), (0, 0))
    raise ValueError(f"padding is {padding!r}; expected 'zeros' or 'replicate'")


def conv(
    features: int,
    kernel: int,
    stride: int,
    dtype: jnp.dtype,
    name: str | None = None,
    border: Border | None = None,
) -> nn.Conv:
    """A convolution without bias; without `border`, kernel // 2 zeros on every side.

    Flax's 'SAME' would differ at stride 2: it pads even inputs on the far side only.
    """
    half = (kernel // 2, kernel // 2)
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=border or (half, half),
        use_bias=False,
        dtype=dtype,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal"),
        name=name,
    )


def batch_norm(train: bool, dtype: jnp.dtype, name: str | None = None) -> nn.BatchNorm:
    """Batch normalisation with torch's defaults: eps 1e-5, and 0.1 of the new statistics a step.

    Statistics are float32 and, because the batch is one sharded array, over the global batch.
    """
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name)
