"""A LiDAR scan as CVTNet sees it: from the side and from above, whole and in bands (arXiv 2302.01665)."""

import jax
import jax.numpy as jnp

from placerec_jax.ops.range_image import (
    EMPTY,
    NEAR,
    SphericalGrid,
    cells,
    forward_left,
    kept_points,
    nearest,
    pixels,
)

RANGE_BANDS = (0.0, 15.0, 30.0, 45.0, 60.0)  # metres from the sensor
HEIGHT_BANDS = (-4.0, 0.0, 4.0, 8.0, 12.0)  # metres above the sensor; published for another LiDAR
_LIFT = 2.0  # metres added to heights, so that the ground is not far from 0


def range_views(
    xyz: jax.Array, mask: jax.Array, grid: SphericalGrid, bands: tuple[float, ...] = RANGE_BANDS
) -> jax.Array:
    """(B, P, 3) metres in LiDAR axes, (B, P) mask → (B, h, w, 1 + bands) metres, EMPTY where nothing is.

    First the nearest point of all bands, then that of every band alone: what stands behind is seen as well.
    """
    xyz = jnp.where(mask[..., None], xyz.astype(jnp.float32), 0.0)
    seen = pixels(forward_left(xyz), grid)
    cell = cells(seen, grid, kept_points(xyz, mask, NEAR, bands[-1]), "clamp")
    views = _banded(cell, seen.distance, seen.distance, grid, bands)
    whole = jnp.where(views == EMPTY, jnp.inf, views).min(axis=-1, keepdims=True)
    return jnp.concatenate([jnp.where(jnp.isinf(whole), EMPTY, whole), views], axis=-1)


def height_views(
    xyz: jax.Array,
    mask: jax.Array,
    grid: SphericalGrid,
    bands: tuple[float, ...] = HEIGHT_BANDS,
    reach: float = RANGE_BANDS[-1],
) -> jax.Array:
    """(B, P, 3), (B, P) → (B, h, w, 1 + bands) metres above the sensor plus 2, 0 where nothing is.

    Seen from above in polar coordinates: columns are azimuths as in the range image, rows go from the sensor
    out to `reach` metres on the ground plane. The highest point of all bands, then that of every band.
    """
    xyz = jnp.where(mask[..., None], xyz.astype(jnp.float32), 0.0)
    planar = jnp.sqrt(jnp.sum(xyz[..., :2] ** 2, axis=-1))
    seen = pixels(forward_left(xyz), grid)
    outward = seen._replace(row=planar / reach * grid.height, inside=planar < reach)
    cell = cells(outward, grid, kept_points(xyz, mask, NEAR, jnp.inf), "drop")
    below = jnp.maximum(bands[-1] - xyz[..., 2], 0.0)  # the highest has the least
    views = _banded(cell, xyz[..., 2], below, grid, bands)
    heights = jnp.where(views == EMPTY, -jnp.inf, bands[-1] - views)
    heights = jnp.concatenate([heights.max(axis=-1, keepdims=True), heights], axis=-1)
    return jnp.where(jnp.isinf(heights), 0.0, heights + _LIFT)


def _banded(
    cell: jax.Array, value: jax.Array, least: jax.Array, grid: SphericalGrid, bands: tuple[float, ...]
) -> jax.Array:
    """(B, P) cells, values that choose the band, what the nearest has least of → (B, h, w, bands) of it."""
    count, last = grid.height * grid.width, len(bands) - 1
    edges = jnp.asarray(bands)
    band = jnp.searchsorted(edges, value, side="right") - 1
    inside = (band >= 0) & (band < last) & (cell < count)
    index = jnp.where(inside, cell * last + band, count * last).astype(jnp.int32)
    return nearest(index, least, count * last).reshape(-1, *grid.shape, last)
