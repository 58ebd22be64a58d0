"""The relative pose of two rigs of cameras from the deepest features of their images (EINet's PoseNet)."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.ops.rigid import axis_angle_to_matrix, rigid_matrix

_SCALE = 0.01  # of radians and metres: poses begin near the identity


class PoseNet(nn.Module):
    """(B, N, h, w, C) features of a query's cameras, the same of another place → (B, 4, 4) query_T_other.

    The mean over the cameras of `camera_mask` (B, N), squeezed to `width` channels frame by frame; both
    frames together through two 3x3 convolutions and a 1x1 to an axis-angle vector (rad) and a translation
    (m), averaged over the image.
    """

    width: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, query: jax.Array, query_mask: jax.Array, other: jax.Array, other_mask: jax.Array
    ) -> jax.Array:
        squeeze = nn.Conv(self.width, (1, 1), dtype=self.dtype, name="squeeze")
        frames = [
            nn.relu(squeeze(_camera_mean(features, mask)))
            for features, mask in ((query, query_mask), (other, other_mask))
        ]
        x = jnp.concatenate(frames, axis=-1)
        for i in range(2):
            x = nn.relu(nn.Conv(self.width, (3, 3), padding=1, dtype=self.dtype, name=f"conv{i + 1}")(x))
        x = nn.Conv(6, (1, 1), dtype=self.dtype, name="out")(x)
        pose = _SCALE * x.astype(jnp.float32).mean(axis=(1, 2))
        return rigid_matrix(axis_angle_to_matrix(pose[:, :3]), pose[:, 3:])


def _camera_mean(features: jax.Array, mask: jax.Array) -> jax.Array:
    """(B, N, h, w, C), (B, N) → (B, h, w, C) mean over the cameras that are there; zeros without any."""
    weight = mask[..., None, None, None].astype(features.dtype)
    return (features * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1)
