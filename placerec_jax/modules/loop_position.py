"""Where a key point lies among the others, whatever the rotation and translation of the scan."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.ops.keypoints import distance_histogram


class PositionEncoder(nn.Module):
    """(B, K, D) features, (B, K, 2) positions (m), (B, K) mask → (B, K, D) features that know their place.

    A linear map of the histogram of distances to the other key points, `bins` bins over [0, reach) metres, is
    added. No gradient reaches the positions.
    """

    reach: float
    bins: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, xy: jax.Array, mask: jax.Array) -> jax.Array:
        histogram = distance_histogram(xy, mask, self.bins, self.reach)
        place = nn.Dense(features.shape[-1], dtype=self.dtype, name="linear")(histogram)
        return features + place.astype(jnp.float32)
