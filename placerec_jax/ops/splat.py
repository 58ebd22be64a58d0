"""Camera features to bird's-eye-view cells: the lift-and-splat of Philion and Fidler (arXiv 2008.05711).

A point of a camera's frustum carries depth weight times context. Every mode sums the points (or reads the
cameras) into the same cells and is called the same way, `MODES[mode](context, depth, view, grid, z_range)`:

| mode            | how                                                    | is the plain sum               |
|-----------------|--------------------------------------------------------|--------------------------------|
| `segment_sum`   | scatter of all points                                  | yes                            |
| `sorted_cumsum` | sort by cell, running sum, differences at the borders  | yes, to float32 rounding       |
| `table`         | a padded list of points of every cell, gather and sum  | yes, to TABLE_CAPACITY a cell  |
| `polar`         | image rows summed first, then a scatter                | where cameras are level        |
| `polar_matmul`  | the same by one-hot matrix products, no scatter (TPU)  | where cameras are level        |
| `pull`          | every cell looks itself up in the cameras              | no, another model              |
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.projection import ego_to_pixels, frustum, pixels_to_ego

TABLE_CAPACITY = 128  # points a cell; the fullest of a nuScenes rig has 32 at the paper's size, 80 at `cpu`'s
PULL_HEIGHTS = (0.0, 1.0, 2.0, 4.0)  # metres above the ground at which a cell looks itself up


class View(NamedTuple):
    """What N cameras see, for B rigs.

    `image_size` (height, width) pixels; `depths` (first, last excluded, step) metres; `intrinsics` (B, N, 3,
    3) of the image the network sees; `ego_T_camera` (B, N, 4, 4); `camera_mask` (B, N), False: not there.
    """

    image_size: tuple[int, int]
    depths: tuple[float, float, float]
    intrinsics: jax.Array
    ego_T_camera: jax.Array
    camera_mask: jax.Array


Splat = Callable[[jax.Array, jax.Array, View, Grid2D, tuple[float, float]], jax.Array]


def frustum_points(view: View, feature_size: tuple[int, int]) -> jax.Array:
    """(B, N, h, w, D, 3) ego_xyz in metres of every feature at every depth."""
    points = frustum(view.image_size, feature_size, view.depths)
    return pixels_to_ego(points, view.intrinsics, view.ego_T_camera)


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


def point_ids(
    view: View, feature_size: tuple[int, int], grid: Grid2D, z_range: tuple[float, float]
) -> jax.Array:
    """(B, N, h, w, D) int32 cell of every frustum point; points of masked cameras are outside."""
    ids = cell_ids(frustum_points(view, feature_size), grid, z_range)
    return jnp.where(view.camera_mask[:, :, None, None, None], ids, grid.shape[0] * grid.shape[1])


def segment_sum(
    context: jax.Array, depth: jax.Array, view: View, grid: Grid2D, z_range: tuple[float, float]
) -> jax.Array:
    """Lifts features along their depth distribution and sums them in the cells they fall into.

    Args:
      context: (B, N, h, w, C) features of N cameras.
      depth: (B, N, h, w, D) weights over the depth bins.
      view: geometry of the cameras.
      grid: the cells.
      z_range: heights (lower, upper excluded) in metres that count.

    Returns:
      (B, rows, columns, C) float32 sums: sum over points p in a cell of depth_p · context_p.
    """
    ids = point_ids(view, depth.shape[2:4], grid, z_range)
    return _scatter(_lift(context, depth), ids, grid)


def sorted_cumsum(
    context: jax.Array, depth: jax.Array, view: View, grid: Grid2D, z_range: tuple[float, float]
) -> jax.Array:
    """As `segment_sum`, without a scatter: points sorted by cell, then differences of their running sum."""
    ids = point_ids(view, depth.shape[2:4], grid, z_range).reshape(depth.shape[0], -1)
    lifted = _lift(context, depth)

    def one(lifted: jax.Array, ids: jax.Array) -> jax.Array:
        order, borders = _by_cell(ids, grid)
        running = jnp.cumsum(lifted[order], axis=0)
        running = jnp.concatenate([jnp.zeros_like(running[:1]), running])
        return running[borders[1:]] - running[borders[:-1]]

    return jax.vmap(one)(lifted, ids).reshape(depth.shape[0], *grid.shape, -1)


def table(
    context: jax.Array, depth: jax.Array, view: View, grid: Grid2D, z_range: tuple[float, float]
) -> jax.Array:
    """As `segment_sum`, by reading for every cell the points in it, without a scatter.

    A cell with more than TABLE_CAPACITY points becomes NaN: training then stops and names it, where
    leaving points out would go unnoticed.
    """
    ids = point_ids(view, depth.shape[2:4], grid, z_range).reshape(depth.shape[0], -1)
    bins = depth.shape[-1]

    def one(context: jax.Array, depth: jax.Array, ids: jax.Array) -> jax.Array:
        points, real, overfull = point_table(ids, grid, TABLE_CAPACITY)
        features = context.reshape(-1, context.shape[-1])

        def add(sums: jax.Array, slot: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            point, is_real = slot
            weight = jnp.where(is_real, depth.reshape(-1)[point], 0.0)
            return sums + weight[:, None] * features[point // bins], None

        # Slot by slot, and again in the backward pass: all at once would be the largest array of the network.
        start = jnp.zeros((points.shape[0], features.shape[-1]))
        sums, _ = jax.lax.scan(jax.checkpoint(add), start, (points.T, real.T))
        return jnp.where(overfull[:, None], jnp.nan, sums)

    sums = jax.vmap(one)(context.astype(jnp.float32), depth.astype(jnp.float32), ids)
    return sums.reshape(depth.shape[0], *grid.shape, -1)


def point_table(ids: jax.Array, grid: Grid2D, capacity: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(P,) cell of every point → (cells, capacity) point numbers, which of them are real, (cells,) overfull.

    It depends on the calibration only: a fixed rig may compute it once.
    """
    order, borders = _by_cell(ids, grid)
    slot = borders[:-1, None] + jnp.arange(capacity)
    real = slot < borders[1:, None]
    points = order[jnp.minimum(slot, len(ids) - 1)]
    return points, real, borders[1:] - borders[:-1] > capacity


def polar(
    context: jax.Array, depth: jax.Array, view: View, grid: Grid2D, z_range: tuple[float, float]
) -> jax.Array:
    """As `segment_sum` after summing the image rows, which see one place at one depth if the camera is level.

    Otherwise a point is put at the mean place of its rows: up to some decimetres away at 2° of pitch.
    """
    columns, ids = _columns(context, depth, view, grid, z_range)
    return _scatter(columns, ids, grid)


def polar_matmul(
    context: jax.Array, depth: jax.Array, view: View, grid: Grid2D, z_range: tuple[float, float]
) -> jax.Array:
    """As `polar` with one-hot matrix products, camera by camera: a TPU scatters row after row."""
    columns, ids = _columns(context, depth, view, grid, z_range)
    batch, cameras = depth.shape[:2]
    cells = grid.shape[0] * grid.shape[1]
    by_camera = (
        jnp.moveaxis(columns.reshape(batch, cameras, -1, columns.shape[-1]), 1, 0),
        jnp.moveaxis(ids.reshape(batch, cameras, -1), 1, 0),
    )

    def add(sums: jax.Array, camera: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        values, own_ids = camera
        one_hot = jax.nn.one_hot(own_ids, cells, dtype=jnp.float32)
        return sums + jnp.einsum("bpk,bpc->bkc", one_hot, values, precision="highest"), None

    start = jnp.zeros((batch, cells, columns.shape[-1]), jnp.float32)
    sums, _ = jax.lax.scan(jax.checkpoint(add), start, by_camera)
    return sums.reshape(batch, *grid.shape, -1)


def pull(
    context: jax.Array, depth: jax.Array, view: View, grid: Grid2D, z_range: tuple[float, float]
) -> jax.Array:
    """Every cell reads the cameras that see it, at several heights within `z_range`, and sums.

    Context is read bilinearly at the cell's pixel, and weighted by the depth distribution read there at the
    cell's depth. Another model than the sums above: a far cell between two rays is filled, too.
    """
    heights = [z for z in PULL_HEIGHTS if z_range[0] <= z < z_range[1]]
    centers = grid.centers().reshape(-1, 2)
    places = np.stack([np.insert(centers, 2, z, axis=1) for z in heights]).reshape(-1, 3)
    height, width = view.image_size
    rows, columns, bins = depth.shape[2:5]
    first, _, step = view.depths

    def one_camera(
        context: jax.Array, depth: jax.Array, intrinsics: jax.Array, ego_T_camera: jax.Array
    ) -> jax.Array:
        pixels = ego_to_pixels(jnp.asarray(places, jnp.float32), intrinsics, ego_T_camera)
        # Features lie over the image as in `frustum`: the first on the first pixel, the last on the last.
        row = pixels[:, 1] * (rows - 1) / (height - 1)
        column = pixels[:, 0] * (columns - 1) / (width - 1)
        level = (pixels[:, 2] - first) / step
        seen = (row >= 0) & (row <= rows - 1) & (column >= 0) & (column <= columns - 1)
        seen &= (level >= 0) & (level <= bins - 1)
        row, column, level = (jnp.where(seen, index, 0.0) for index in (row, column, level))
        weight = jnp.where(seen, _interpolate(depth[..., None], (row, column, level))[:, 0], 0.0)
        values = weight[:, None] * _interpolate(context, (row, column))
        return values.reshape(len(heights), len(centers), -1).sum(0)

    cameras = jax.vmap(one_camera)

    def add(sums: jax.Array, camera: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        context, depth, intrinsics, ego_T_camera, present = camera
        read = cameras(context, depth, intrinsics, ego_T_camera)
        return sums + jnp.where(present[:, None, None], read, 0.0), None

    by_camera = (
        context.astype(jnp.float32),
        depth.astype(jnp.float32),
        view.intrinsics,
        view.ego_T_camera,
        view.camera_mask,
    )
    start = jnp.zeros((depth.shape[0], len(centers), context.shape[-1]), jnp.float32)
    sums, _ = jax.lax.scan(
        jax.checkpoint(add), start, jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), by_camera)
    )
    return sums.reshape(depth.shape[0], *grid.shape, -1)


MODES: dict[str, Splat] = {
    "segment_sum": segment_sum,
    "sorted_cumsum": sorted_cumsum,
    "table": table,
    "polar": polar,
    "polar_matmul": polar_matmul,
    "pull": pull,
}


def _lift(context: jax.Array, depth: jax.Array) -> jax.Array:
    """(B, N, h, w, C), (B, N, h, w, D) → (B, N·h·w·D, C) float32."""
    lifted = depth.astype(jnp.float32)[..., None] * context.astype(jnp.float32)[..., None, :]
    return lifted.reshape(depth.shape[0], -1, context.shape[-1])


def _scatter(values: jax.Array, ids: jax.Array, grid: Grid2D) -> jax.Array:
    """(B, P, C) values at (B, ...) cells, P in all → (B, rows, columns, C) sums."""
    batch, _, channels = values.shape
    cells = grid.shape[0] * grid.shape[1] + 1  # one more than the grid: where dropped points go

    # Batched, not folded into the cells' numbers: the partitioner can then leave examples where they are.
    def one(values: jax.Array, ids: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(values, ids, num_segments=cells)[:-1]

    return jax.vmap(one)(values, ids.reshape(batch, -1)).reshape(batch, *grid.shape, channels)


def _by_cell(ids: jax.Array, grid: Grid2D) -> tuple[jax.Array, jax.Array]:
    """(P,) cells → (P,) point numbers in the order of their cells, (cells + 1,) where each cell begins."""
    order = jnp.argsort(ids)
    borders = jnp.searchsorted(ids[order], jnp.arange(grid.shape[0] * grid.shape[1] + 1))
    return order, borders


def _columns(
    context: jax.Array, depth: jax.Array, view: View, grid: Grid2D, z_range: tuple[float, float]
) -> tuple[jax.Array, jax.Array]:
    """Image columns by depth: (B, N·w·D, C) summed over the rows within `z_range`, and their cells."""
    xyz = frustum_points(view, depth.shape[2:4])
    level = (xyz[..., 2] >= z_range[0]) & (xyz[..., 2] < z_range[1])
    weight = jnp.where(level, depth.astype(jnp.float32), 0.0)
    values = jnp.einsum("bnhwd,bnhwc->bnwdc", weight, context.astype(jnp.float32), precision="highest")
    counted = level[..., None].astype(jnp.float32)
    place = (xyz[..., :2] * counted).sum(axis=2) / jnp.maximum(counted.sum(axis=2), 1.0)
    ground = jnp.concatenate([place, jnp.full((*values.shape[:-1], 1), z_range[0])], -1)
    ids = cell_ids(ground, grid, z_range)
    ids = jnp.where(view.camera_mask[:, :, None, None], ids, grid.shape[0] * grid.shape[1])
    return values.reshape(depth.shape[0], -1, context.shape[-1]), ids.reshape(depth.shape[0], -1)


def _interpolate(array: jax.Array, index: tuple[jax.Array, ...]) -> jax.Array:
    """(n0, ..., C) array at fractional indices (P,) within it, one for every axis → (P, C), multilinear."""
    axes = array.shape[: len(index)]
    low = [
        jnp.clip(jnp.floor(i), 0, max(n - 2, 0)).astype(jnp.int32) for i, n in zip(index, axes, strict=True)
    ]
    result = 0.0
    for corner in np.ndindex(*(min(2, n) for n in axes)):
        weight, flat = 1.0, 0
        for i, start, step, n in zip(index, low, corner, axes, strict=True):
            weight = weight * (1 - jnp.abs(i - (start + step)))
            flat = flat * n + start + step
        result += weight[:, None] * array.reshape(-1, array.shape[-1])[flat]
    return result
