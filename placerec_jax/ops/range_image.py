"""Range images: what surrounds a sensor on a cylinder of azimuth and elevation, the nearest point winning.

Columns run clockwise as seen from above, from the rear over the left, forward (the middle) and the right back
to the rear; rows run from `fov_up` down to `fov_down`. A cell holds metres, EMPTY where nothing was seen.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from placerec_jax.ops.rigid import rigid_apply

Array = Any  # numpy.ndarray or jax.Array

EMPTY = -1.0
NEAR, FAR = 2.0, 80.0  # metres: half the box that holds the car itself, and how far a scan is trusted
_TINY = 1e-12
_FARTHEST = np.int32(np.iinfo(np.int32).max)  # larger than the bits of any float32


@dataclasses.dataclass(frozen=True)
class SphericalGrid:
    """`height` x `width` cells over elevations from `fov_down` to `fov_up` (degrees, up positive)."""

    height: int
    width: int
    fov_up: float = 10.0
    fov_down: float = -30.0

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(
                f"SphericalGrid: {self.height} x {self.width} cells; expected at least one row and column"
            )
        if not -90 <= self.fov_down < self.fov_up <= 90:
            raise ValueError(
                f"SphericalGrid: elevations from {self.fov_down}° to {self.fov_up}°; expected "
                "-90 <= fov_down < fov_up <= 90"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.height, self.width


class Pixels(NamedTuple):
    """Where points (...) lie in a range image; cell i covers the coordinates [i, i + 1)."""

    row: Array  # below 0 above the field of view, from `height` on below it
    column: Array  # in [0, width]
    distance: Array  # metres
    inside: Array  # bool: within the field of view


def forward_left(xyz: Array) -> Array:
    """(..., 3) points in nuScenes' LiDAR axes (x right, y forward) → x forward, y left."""
    xp = np if isinstance(xyz, np.ndarray) else jnp
    return xp.stack([xyz[..., 1], -xyz[..., 0], xyz[..., 2]], axis=-1)


def pixels(xyz: Array, grid: SphericalGrid) -> Pixels:
    """(..., 3) metres, x forward and y left → continuous row and column, distance, and whether it is in view.

    NumPy arrays are answered in NumPy, in their own precision.
    """
    xp = np if isinstance(xyz, np.ndarray) else jnp
    x, y, z = xyz[..., 0], xyz[..., 1], xyz[..., 2]
    # At the sensor and straight above it a root has no slope; nothing of it may become NaN.
    planar = xp.maximum(x * x + y * y, _TINY)
    distance = xp.sqrt(planar + z * z)
    elevation = xp.arctan2(z, xp.sqrt(planar))  # asin(z / distance), exact near the zenith, too
    down, up = np.deg2rad(grid.fov_down), np.deg2rad(grid.fov_up)
    row = grid.height * (1.0 - (elevation - down) / (up - down))
    column = grid.width * 0.5 * (1.0 - xp.arctan2(y, x) / np.pi)
    return Pixels(row, column, distance, (row >= 0) & (row < grid.height))


def cells(seen: Pixels, grid: SphericalGrid, valid: Array, outside: str) -> Array:
    """Places, (...) bool → (...) int32 row-major cells; height · width marks what is left out.

    `outside` says what becomes of points above and below the field of view: "clamp" puts them into the first
    and the last row, "drop" leaves them out.
    """
    if outside not in ("clamp", "drop"):
        raise ValueError(f"range image: outside is {outside!r}; expected 'clamp' or 'drop'")
    xp = np if isinstance(seen.row, np.ndarray) else jnp
    row = xp.clip(xp.floor(seen.row), 0, grid.height - 1).astype(np.int32)
    column = xp.clip(xp.floor(seen.column), 0, grid.width - 1).astype(np.int32)
    kept = valid & seen.inside if outside == "drop" else valid
    return xp.where(kept, row * grid.width + column, grid.height * grid.width).astype(np.int32)


# --- The nearest point of every cell


def nearest(index: jax.Array, distance: jax.Array, count: int) -> jax.Array:
    """(B, P) int32 cells, (B, P) float32 distances ≥ 0 → (B, count) the least of every cell, EMPTY without.

    Cells from `count` on are nobody's. The gradient of a cell goes to its nearest point alone; of points
    equally near, to the first.
    """
    return _nearest(count, index, distance)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _nearest(count: int, index: jax.Array, distance: jax.Array) -> jax.Array:
    return _metres(_least(count, index, _bits(distance)))


@_nearest.defjvp
def _nearest_tangent(
    count: int, primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # Who won is looked up only where a derivative is asked for; it is all that the backward pass keeps.
    least, winner = _nearest_and_winner(count, *primals)
    tangent = jnp.pad(tangents[1], ((0, 0), (0, 1)))
    return _metres(least), jnp.take_along_axis(tangent, winner, axis=1)


def winners(index: jax.Array, distance: jax.Array, count: int) -> jax.Array:
    """(B, P) int32 cells, (B, P) distances → (B, count) int32 number of the nearest point of every cell.

    Of points equally near the first wins; P says that the cell is empty.
    """
    return _nearest_and_winner(count, index, jax.lax.stop_gradient(distance))[1]


def _nearest_and_winner(count: int, index: jax.Array, distance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(B, P), (B, P) → (B, count) bits of the least distance, (B, count) int32 who has it (P: nobody)."""
    bits = _bits(distance)
    least = _least(count, index, bits)
    points = index.shape[1]
    # A compiler may compute a distance twice, once for each scatter, and round it differently: an exact
    # comparison could find no winner. Within these few last places the first point is as good as any.
    bound = jnp.pad(jnp.where(least == _FARTHEST, 0, least), ((0, 0), (0, 1))) + 4
    own = jnp.take_along_axis(bound, jnp.minimum(index, count), axis=1)
    number = jnp.where(bits <= own, jnp.arange(points, dtype=jnp.int32), points)
    return least, jnp.minimum(_least(count, index, number), points)


def _least(count: int, index: jax.Array, value: jax.Array) -> jax.Array:
    """(B, P) cells, (B, P) int32 → (B, count) least value of every cell, _FARTHEST without."""

    # Batched, not folded into the cells' numbers: the partitioner can then leave examples where they are.
    def one(index: jax.Array, value: jax.Array) -> jax.Array:
        return jnp.full((count,), _FARTHEST).at[index].min(value, mode="drop")

    return jax.vmap(one)(index, value)


def _bits(distance: jax.Array) -> jax.Array:
    """Float32 ≥ 0 → int32 in the same order: accelerators have an atomic minimum of whole numbers alone."""
    return jax.lax.bitcast_convert_type(distance.astype(jnp.float32), jnp.int32)


def _metres(bits: jax.Array) -> jax.Array:
    return jnp.where(bits == _FARTHEST, EMPTY, jax.lax.bitcast_convert_type(bits, jnp.float32))


# --- From points


def kept_points(xyz: Array, mask: Array, near: float, far: float) -> Array:
    """(..., 3) metres about the sensor, (...) mask → (...): beyond ±`near` m, nearer than `far`."""
    xp = np if isinstance(xyz, np.ndarray) else jnp
    own = (xp.abs(xyz[..., 0]) < near) & (xp.abs(xyz[..., 1]) < near)
    return mask & ~own & (xp.sum(xyz * xyz, axis=-1) < far * far)


def from_points(
    xyz: jax.Array,
    mask: jax.Array,
    values: jax.Array | None,
    grid: SphericalGrid,
    *,
    outside: str = "clamp",
    near: float = NEAR,
    far: float = FAR,
) -> tuple[jax.Array, jax.Array | None]:
    """Range images of point clouds.

    Args:
      xyz: (B, P, 3) metres in LiDAR axes (x right, y forward); differentiable.
      mask: (B, P) which of them are real.
      values: (B, P, C) what the nearest point shall leave beside its range, or None.
      grid: the cells.
      outside: as in `cells`.
      near, far: points in the box |x|, |y| < `near` (the car itself), and from `far` metres on, are left out.

    Returns:
      (B, height, width) float32 metres, EMPTY without a point; (B, height, width, C) values of the same
      points, 0 without, or None.
    """
    xyz = jnp.where(mask[..., None], xyz.astype(jnp.float32), 0.0)
    seen = pixels(forward_left(xyz), grid)
    index = cells(seen, grid, kept_points(xyz, mask, near, far), outside)
    count = grid.height * grid.width
    ranges = nearest(index, seen.distance, count).reshape(-1, *grid.shape)
    if values is None:
        return ranges, None
    won = winners(index, seen.distance, count)
    with_none = jnp.pad(values, ((0, 0), (0, 1), (0, 0)))
    taken = jnp.take_along_axis(with_none, won[..., None], axis=1)
    return ranges, taken.reshape(*ranges.shape, values.shape[-1])


# --- From depth


def from_depth(
    depth: jax.Array,
    intrinsics: jax.Array,
    lidar_T_camera: jax.Array,
    camera_mask: jax.Array,
    grid: SphericalGrid,
) -> jax.Array:
    """Depth of surrounding cameras → (B, height, width) metres about the LiDAR, EMPTY where none looks.

    Every pixel is a point at depth · K⁻¹ (u + ½, v + ½, 1). The nearest of a cell wins; its range is
    differentiable with respect to its depth, which cell a point falls into is not. What lies above or below
    the field of view is left out.

    Rays are affine in the pixel, so a point is depth · (a + u·b + v·c) + t with four vectors a camera:
    nothing is read but the depth, and no array of points need exist.

    Args:
      depth: (B, N, H, W) metres along the optical axis.
      intrinsics: (B, N, 3, 3) of images of H x W.
      lidar_T_camera: (B, N, 4, 4), LiDAR axes x right, y forward.
      camera_mask: (B, N) which cameras are there; of others nothing is read.
      grid: the cells.
    """
    batch, _, height, width = depth.shape
    there = camera_mask[..., None, None]
    depth = jnp.where(there, depth.astype(jnp.float32), 1.0)
    intrinsics = jnp.where(there, intrinsics, jnp.eye(3))
    transform = jnp.where(there, lidar_T_camera, jnp.eye(4))
    v, u = jnp.arange(height, dtype=jnp.float32)[:, None], jnp.arange(width, dtype=jnp.float32)
    axes = forward_left(jnp.swapaxes(transform[..., :3, :], -1, -2))  # (B, N, 4, 3): images of the axes, t
    fx, skew, cx = (intrinsics[..., 0, i, None, None] for i in range(3))
    fy, cy = intrinsics[..., 1, 1, None, None], intrinsics[..., 1, 2, None, None]
    ray_y = (v + 0.5 - cy) / fy
    ray_x = (u + 0.5 - cx - skew * ray_y) / fx

    def along(axis: int) -> jax.Array:
        right, below, ahead, origin = (axes[..., i, axis, None, None] for i in range(4))
        return depth * (right * ray_x + below * ray_y + ahead) + origin

    seen = pixels(jnp.stack([along(axis) for axis in range(3)], axis=-1), grid)
    index = cells(seen, grid, jnp.broadcast_to(there, depth.shape), "drop")
    flat = nearest(index.reshape(batch, -1), seen.distance.reshape(batch, -1), grid.height * grid.width)
    return flat.reshape(batch, *grid.shape)


# --- How well one scan explains another, moved


def scatter_difference(
    query_xyz: jax.Array,
    query_mask: jax.Array,
    other_xyz: jax.Array,
    other_mask: jax.Array,
    query_T_other: jax.Array,
    grid: SphericalGrid,
) -> tuple[jax.Array, jax.Array]:
    """|S(T·P) − S(P_q)| over the cells that both scans fill, S the range image of a scan.

    Points are (B, P, 3) in LiDAR axes with masks (B, P), `query_T_other` (B, 4, 4) moves LiDAR frame to LiDAR
    frame. → (B,) sums, (B,) how many cells. The gradient reaches T through the ranges alone, and of a turn
    about the sensor no range changes: it learns hardly any rotation.
    """
    query = from_points(query_xyz, query_mask, None, grid)[0]
    own = kept_points(other_xyz, other_mask, NEAR, FAR)  # the other's own car is no part of the scene
    moved = from_points(rigid_apply(query_T_other, other_xyz), own, None, grid)[0]
    both = (query > 0) & (moved > 0)
    return jnp.where(both, jnp.abs(moved - query), 0.0).sum((1, 2)), both.sum((1, 2)).astype(jnp.float32)


def sample_difference(
    query_xyz: jax.Array,
    query_mask: jax.Array,
    other_xyz: jax.Array,
    other_mask: jax.Array,
    query_T_other: jax.Array,
    grid: SphericalGrid,
) -> tuple[jax.Array, jax.Array]:
    """|‖T·p‖ − R_q(T·p)| over the moved points that lie between four filled cells of the query's image R_q.

    R_q is read bilinearly, its columns closed to a ring. As `scatter_difference`, but a sum over points, and
    a turn has a gradient where ranges differ from cell to cell.
    """
    query = from_points(query_xyz, query_mask, None, grid)[0]
    own = kept_points(other_xyz, other_mask, NEAR, FAR)
    moved = rigid_apply(query_T_other, jnp.where(own[..., None], other_xyz, 1.0))
    seen = pixels(forward_left(moved), grid)
    read, filled = jax.vmap(_between_cells)(query, seen.row - 0.5, seen.column - 0.5)
    used = kept_points(moved, own, NEAR, FAR) & filled
    return jnp.where(used, jnp.abs(seen.distance - read), 0.0).sum(1), used.sum(1).astype(jnp.float32)


def _between_cells(image: jax.Array, row: jax.Array, column: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(h, w), (P,), (P,) places, whole at the centres → (P,) bilinear, (P,) whether all four are filled."""
    height, width = image.shape
    top, left = jnp.floor(jax.lax.stop_gradient(row)), jnp.floor(jax.lax.stop_gradient(column))
    filled = (top >= 0) & (top + 1 < height)
    read = 0.0
    for down in (0, 1):
        for right in (0, 1):
            line = jnp.clip(top + down, 0, height - 1).astype(jnp.int32)
            value = image[line, (left + right).astype(jnp.int32) % width]
            filled &= value > 0
            weight = (1 - jnp.abs(row - top - down)) * (1 - jnp.abs(column - left - right))
            read += weight * value
    return read, filled


# By `config.model.reproj_mode`.
DIFFERENCES = {"scatter": scatter_difference, "sample": sample_difference}
