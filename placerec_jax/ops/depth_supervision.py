"""Depth of cameras judged by the LiDAR points they see."""

import jax
import jax.numpy as jnp

from placerec_jax.ops.projection import ego_to_pixels

NEAREST, FARTHEST = 1.0, 80.0  # metres along the optical axis within which a point counts
BORDER = 1.0  # pixels at every edge of the image in which none counts


def depth_differences(
    points: jax.Array,
    point_mask: jax.Array,
    depth: jax.Array,
    intrinsics: jax.Array,
    lidar_T_camera: jax.Array,
    camera_mask: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Σ |d_i − D_j(u_i, v_i)| over the points i that camera j sees (EINet, equation 1).

    d_i is the point's depth in camera j and D_j is read at (⌊u⌋, ⌊v⌋): pixel (u, v) covers [u, u + 1), as the
    rays of `range_image.from_depth` do. A point counts in every camera that sees it. Points behind a camera,
    outside or at the border of its image, nearer or farther than NEAREST and FARTHEST, or masked, add exactly
    0 and have no gradient.

    Args:
      points: (B, P, 3) metres, LiDAR frame.
      point_mask: (B, P) which are real.
      depth: (B, N, H, W) metres along the optical axis.
      intrinsics: (B, N, 3, 3) of images of H x W.
      lidar_T_camera: (B, N, 4, 4).
      camera_mask: (B, N).

    Returns:
      (B,) sums of absolute differences in metres, (B,) float32 how many there are.
    """
    batch, cameras, height, width = depth.shape
    points = jnp.where(point_mask[..., None], points.astype(jnp.float32), 0.0)
    there = camera_mask[..., None, None]
    intrinsics = jnp.where(there, intrinsics, jnp.eye(3))
    transform = jnp.where(there, lidar_T_camera, jnp.eye(4))
    seen = ego_to_pixels(points[:, None], intrinsics, transform)
    u, v, z = seen[..., 0], seen[..., 1], seen[..., 2]
    valid = point_mask[:, None] & camera_mask[..., None] & (z > NEAREST) & (z < FARTHEST)
    valid &= (u > BORDER) & (u < width - BORDER) & (v > BORDER) & (v < height - BORDER)
    pixel = jnp.floor(v) * width + jnp.floor(u)
    pixel = jnp.where(valid, pixel, 0).astype(jnp.int32)
    read = jnp.take_along_axis(
        depth.astype(jnp.float32).reshape(batch, cameras, height * width), pixel, axis=-1
    )
    difference = jnp.where(valid, jnp.abs(z - read), 0.0)
    return difference.sum(axis=(1, 2)), valid.sum(axis=(1, 2)).astype(jnp.float32)
