"""CVTNet (Ma et al., arXiv 2302.01665): a LiDAR scan from the side and from above, fused column by column."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.modules.modality_fusion import ModalityFusion
from placerec_jax.modules.netvlad import LoupeNetVLAD
from placerec_jax.modules.overlap_transformer import RangeImageEncoder


class CVTNet(nn.Module):
    """(B, h, W, 1 + bands) range views and height views (`ops.scan_views`) → (B, 3 · descriptor) float32.

    Three descriptors of unit length side by side: of the range views, of both, of the height views. As
    released, the first and the last come from one head.
    """

    leg: str = "auto"
    dim: int = 128
    width: int = 256
    mlp_dim: int = 1024
    leg_width: int = 128
    clusters: int = 64
    descriptor: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ranges: jax.Array, heights: jax.Array) -> jax.Array:
        def tokens(views: jax.Array, name: str) -> jax.Array:
            return RangeImageEncoder(
                self.leg,
                self.dim,
                self.width,
                mlp_dim=self.mlp_dim,
                leg_width=self.leg_width,
                dtype=self.dtype,
                name=name,
            )(views)

        fusion = ModalityFusion(mlp_dim=self.mlp_dim, dtype=self.dtype, name="fusion")
        both, (of_heights, of_ranges) = fusion(tokens(heights, "heights"), tokens(ranges, "ranges"))
        fused_vlad = LoupeNetVLAD(self.clusters, self.descriptor, self.dtype, name="fused_vlad")
        own_vlad = LoupeNetVLAD(self.clusters, self.descriptor, self.dtype, name="own_vlad")
        return jnp.concatenate([own_vlad(of_ranges), fused_vlad(both), own_vlad(of_heights)], axis=-1)
