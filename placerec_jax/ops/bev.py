"""Bird's-eye-view grids warped by a planar pose."""

import jax
import jax.numpy as jnp

from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import se2_apply, se2_inverse


def sample_bilinear(features: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """(H, W, C) features at (...) fractional indices → (..., C); cell centres are whole, outside is zero."""
    height, width = features.shape[:2]
    flat = features.reshape(height * width, -1)
    row0, column0 = jnp.floor(row), jnp.floor(column)
    result = 0.0
    for row_step in (0, 1):
        for column_step in (0, 1):
            r, c = row0 + row_step, column0 + column_step
            weight = (1 - jnp.abs(row - r)) * (1 - jnp.abs(column - c))
            inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
            index = jnp.where(inside, r * width + c, 0).astype(jnp.int32)
            result += jnp.where(inside, weight, 0.0)[..., None] * flat[index]
    return result


def warp_se2(features: jax.Array, pose: jax.Array, source: Grid2D, target: Grid2D) -> jax.Array:
    """Moves features by a planar pose: F'(q) = F(pose⁻¹·q), MapLocNet (arXiv 2407.08561) after eq. 3.

    Args:
      features: (B, *source.shape, C) on the grid `source`.
      pose: (B, 3) target_T_source (m, m, rad).
      source, target: the grids before and after; cells of `target` that come from outside `source` are zero.

    Returns:
      (B, *target.shape, C) bilinear samples.
    """
    centers = jnp.asarray(target.centers())

    def warp_one(feature: jax.Array, target_T_source: jax.Array) -> jax.Array:
        source_xy = se2_apply(se2_inverse(target_T_source)[None, None], centers)
        index = (source_xy - jnp.asarray(source.lower)) / source.cell - 0.5
        return sample_bilinear(feature, index[..., 0], index[..., 1])

    return jax.vmap(warp_one)(features, pose)
