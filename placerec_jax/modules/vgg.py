"""The convolutions of VGG-16 (Simonyan and Zisserman, arXiv 1409.1556, configuration D), no normalisation."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.modules.conv import surround
from placerec_jax.modules.sharding import constrain_batch

CONVOLUTIONS = (2, 2, 3, 3, 3)
DEPTHS = {"conv4_3": 4, "conv5_3": 5}


class VGG16Trunk(nn.Module):
    """(B, H, W, C) -> [(B, H, W, widths[0]), (B, H/2, W/2, widths[1]), ...]: the output of every block.

    Four blocks for `depth` 'conv4_3' (strides 1, 2, 4, 8), five for 'conv5_3' (and 16); 2x2 max-pooling
    between.
    """

    depth: str = "conv4_3"
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    dtype: jnp.dtype = jnp.float32
    padding: str = "zeros"  # or replicate

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        if self.depth not in DEPTHS:
            raise ValueError(f"VGG16Trunk: depth is {self.depth!r}; expected one of {sorted(DEPTHS)}")
        blocks = DEPTHS[self.depth]
        if len(self.widths) < blocks:
            raise ValueError(f"VGG16Trunk: depth {self.depth!r} needs {blocks} widths, found {self.widths}")
        levels = []
        for block in range(blocks):
            if block > 0:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for i in range(CONVOLUTIONS[block]):
                name = f"conv{block + 1}_{i + 1}"
                x, border = surround(x, 1, self.padding)
                convolution = nn.Conv(
                    self.widths[block],
                    (3, 3),
                    padding=border,
                    dtype=self.dtype,
                    # Without normalisation the variance must survive thirteen ReLU layers by itself.
                    kernel_init=nn.initializers.he_normal(),
                    name=name,
                )
                x = nn.relu(convolution(x))
            x = constrain_batch(x)
            levels.append(x)
        return levels
