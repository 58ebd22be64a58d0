"""Convolution, batch normalisation, ReLU: the unit that decoders and necks are made of."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class ConvBatchNormReLU(nn.Module):
    """(B, H, W, C) -> (B, H / stride, W / stride, features); kernel // 2 zeros around, as in torch.

    The convolution has no bias: batch normalisation would remove it.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = conv(self.features, self.kernel, self.stride, self.dtype, name="conv")(x)
        return nn.relu(batch_norm(train, self.dtype, name="bn")(x))


def conv(features: int, kernel: int, stride: int, dtype: jnp.dtype, name: str | None = None) -> nn.Conv:
    """A convolution without bias and with padding kernel // 2 on every side.

    Flax's 'SAME' would differ at stride 2: it pads even inputs on the far side only.
    """
    padding = (kernel // 2, kernel // 2)
    return nn.Conv(
        features,
        (kernel, kernel),
        (stride, stride),
        padding=(padding, padding),
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
