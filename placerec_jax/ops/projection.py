"""Pinhole geometry between camera pixels, camera frustums and the ego frame."""

import jax
import jax.numpy as jnp


def frustum(
    image_size: tuple[int, int], feature_size: tuple[int, int], depths: tuple[float, float, float]
) -> jax.Array:
    """(h, w, D, 3) points (u, v, depth) of a feature map in the pixels of the image the network sees.

    `depths` = (first, last, step) in metres, `last` excluded. Pixels run from 0 to size - 1 inclusive over
    the feature map, as in Lift, Splat, Shoot (arXiv 2008.05711), not through the centres of the strides.
    """
    height, width = image_size
    rows, columns = feature_size
    v = jnp.linspace(0.0, height - 1.0, rows)
    u = jnp.linspace(0.0, width - 1.0, columns)
    depth = jnp.arange(*depths)
    v, u, depth = jnp.meshgrid(v, u, depth, indexing="ij")
    return jnp.stack([u, v, depth], axis=-1).astype(jnp.float32)


def pixels_to_ego(points: jax.Array, intrinsics: jax.Array, ego_T_camera: jax.Array) -> jax.Array:
    """(h, w, D, 3) pixels with depth, (..., 3, 3), (..., 4, 4) → (..., h, w, D, 3) ego_xyz in metres.

    `intrinsics` maps camera rays to pixels of the image the network sees: an image resized, cropped or
    flipped by the pixel homography A has the intrinsics A·K, so that augmentation needs no undoing of its
    own.
    """
    u, v, depth = points[..., 0], points[..., 1], points[..., 2]
    scaled = jnp.stack([u * depth, v * depth, depth], axis=-1)
    ego_R_pixel = jnp.einsum(
        "...ij,...jk->...ik", ego_T_camera[..., :3, :3], jnp.linalg.inv(intrinsics), precision="highest"
    )
    ego_xyz = jnp.einsum("...ij,hwdj->...hwdi", ego_R_pixel, scaled, precision="highest")
    return ego_xyz + ego_T_camera[..., None, None, None, :3, 3]


def ego_to_pixels(ego_xyz: jax.Array, intrinsics: jax.Array, ego_T_camera: jax.Array) -> jax.Array:
    """(..., N, 3) ego_xyz, (..., 3, 3), (..., 4, 4) → (..., N, 3) (u, v, depth); depth <= 0 is behind."""
    rotation, translation = ego_T_camera[..., :3, :3], ego_T_camera[..., :3, 3]
    camera_xyz = jnp.einsum(
        "...ji,...nj->...ni", rotation, ego_xyz - translation[..., None, :], precision="highest"
    )
    pixels = jnp.einsum("...ij,...nj->...ni", intrinsics, camera_xyz, precision="highest")
    depth = pixels[..., 2:]
    safe_depth = jnp.where(jnp.abs(depth) < 1e-6, 1e-6, depth)
    return jnp.concatenate([pixels[..., :2] / safe_depth, depth], axis=-1)
