"""The expanding half of a U-Net (Ronneberger et al., arXiv 1505.04597) with bilinear upsampling."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.modules.conv import ConvBatchNormReLU
from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.ops.resize import upsample_bilinear


class UNetDecoder(nn.Module):
    """Skips [(B, H, W, C0), (B, H/2, W/2, C1), ...], finest first -> the decoded levels, finest first.

    The coarsest skip is the start; each level is: enlarge twice, concatenate the next finer skip, one 3x3
    convolution. `widths` go from coarse to fine, one per level, so that n widths need n + 1 skips; output i
    has the resolution of skip i.
    """

    widths: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32
    padding: str = "zeros"

    @nn.compact
    def __call__(self, skips: Sequence[jax.Array], train: bool) -> list[jax.Array]:
        if len(skips) != len(self.widths) + 1:
            raise ValueError(
                f"UNetDecoder: {len(self.widths)} widths need one skip more than that, found {len(skips)}"
            )
        *finer, x = skips
        levels = []
        for i, (skip, width) in enumerate(zip(reversed(finer), self.widths, strict=True)):
            if skip.shape[1:3] != (2 * x.shape[1], 2 * x.shape[2]):
                raise ValueError(
                    f"UNetDecoder: level {i} enlarges {x.shape} twice, but the skip is {skip.shape}; "
                    "choose an input size that every pooling divides evenly"
                )
            x = jnp.concatenate([upsample_bilinear(x, 2), skip.astype(x.dtype)], axis=-1)
            x = constrain_batch(
                ConvBatchNormReLU(width, padding=self.padding, dtype=self.dtype, name=f"level{i}")(x, train)
            )
            levels.append(x)
        return levels[::-1]
