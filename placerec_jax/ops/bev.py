"""Bird's-eye-view grids: pooling frustum points into cells, and warping by a planar pose."""

import jax
import jax.numpy as jnp

from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import se2_apply, se2_inverse


def cell_ids(ego_xyz: jax.Array, grid: Grid2D, z_range: tuple[float, float]) -> jax.Array:
    """(..., 3) points in metres → (...) int32 row-major cell numbers; rows·columns marks a point outside.

    Cells are floor((p - lower) / cell): truncation would pull points up to one cell below the lower border
    into the grid.
    """
    rows, columns = grid.shape
    index = jnp.floor((ego_xyz[..., :2] - jnp.asarray(grid.lower)) / grid.cell)
    row, column, z = index[..., 0], index[..., 1], ego_xyz[..., 2]
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    inside &= (z >= z_range[0]) & (z < z_range[1])
    ids = jnp.where(inside, row * columns + column, rows * columns)
    return ids.astype(jnp.int32)


def splat_segment_sum(context: jax.Array, depth: jax.Array, ids: jax.Array, grid: Grid2D) -> jax.Array:
    """Lifts features along their depth distribution and sums them in the cells they fall into.

    Args:
      context: (B, N, h, w, C) features of N cameras.
      depth: (B, N, h, w, D) weights over the depth bins.
      ids: (B, N, h, w, D) cell numbers of `cell_ids`; rows·columns drops the point.
      grid: the cells.

    Returns:
      (B, rows, columns, C) float32 sums: sum over points p in a cell of depth_p · context_p.
    """
    batch, channels = context.shape[0], context.shape[-1]
    rows, columns = grid.shape
    cells = rows * columns + 1  # one more than the grid: where dropped points go
    lifted = depth.astype(jnp.float32)[..., None] * context.astype(jnp.float32)[..., None, :]
    offset_ids = ids.reshape(batch, -1) + jnp.arange(batch, dtype=jnp.int32)[:, None] * cells
    sums = jax.ops.segment_sum(
        lifted.reshape(-1, channels), offset_ids.reshape(-1), num_segments=batch * cells
    )
    return sums.reshape(batch, cells, channels)[:, :-1].reshape(batch, rows, columns, channels)


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
