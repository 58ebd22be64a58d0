"""What the training-free references take, checked in one place: scans, and stacks of their descriptors.

A scan is points (N, 3) in the lidar frame (m; x forward, y left, z up), a bird's-eye-view density image
(H, W) with the sensor in the middle, rows increasing with x and columns with y, or a range image (H, W), rows
from the highest elevation down and columns around the sensor, 0 where empty.
"""

import cv2
import numpy as np

from placerec_jax.errors import UserError
from placerec_jax.ops.grid import Grid2D

# 151 cells of 0.4 m with the sensor at the centre of the middle one: the grid of pre-rendered folders.
DENSITY_GRID = Grid2D((-30.2, 30.2, -30.2, 30.2), 0.4)

Stack = dict[str, np.ndarray]


class DescriptorError(UserError, ValueError):
    """A scan, or a stack of descriptors, that no reference can work with."""


def check_points(points: np.ndarray) -> np.ndarray:
    """(N, 3) finite float32 points (m); N may be 0, further columns are refused.

    Raises:
        DescriptorError: another shape, or NaN or infinite coordinates.
    """
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 3:
        raise DescriptorError(
            f"points: expected (N, 3) coordinates in metres, found shape {points.shape}. Cut off further "
            "columns such as reflectance."
        )
    points = points.astype(np.float32, copy=False)
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        raise DescriptorError(
            f"points: {len(points) - finite.sum()} of {len(points)} are NaN or infinite (first: number "
            f"{np.argmin(finite)}). Drop them first."
        )
    return points


def is_points(scan: np.ndarray) -> bool:
    """Whether the array is points (N, 3) rather than an image (H, W) or (H, W, 1)."""
    return np.ndim(scan) == 2 and np.shape(scan)[1] == 3


def density_image(scan: np.ndarray, grid: Grid2D = DENSITY_GRID) -> np.ndarray:
    """(H, W) float32 in [0, 1] from an image (H, W[, 1]) of any scale, or from points over `grid`.

    Points: a cell counts its occupied cubes of the cell's size, less one, so that bare ground (one layer)
    counts nothing and near ground no more than far. On real KITTI scans 7 to 9 % of the cells then hold
    something, in the pre-rendered images of `kitti_bev` 6 %. Either way the greatest value becomes 1.

    Raises:
        DescriptorError: neither points nor a square image, or values that are negative or not finite.
    """
    density = _cubes_above_ground(check_points(scan), grid) if is_points(scan) else _check_image(scan)
    greatest = density.max()
    return density / greatest if greatest > 0 else density


def check_range_image(image: np.ndarray) -> np.ndarray:
    """(H, W) float32 ranges of any unit, 0 where empty.

    Raises:
        DescriptorError: another shape, or ranges that are negative or not finite.
    """
    image = np.asarray(image)
    if image.ndim != 2 or not image.size:
        raise DescriptorError(f"range image: expected (H, W) ranges, found shape {image.shape}.")
    image = image.astype(np.float32)
    if not (image >= 0).all() or not np.isfinite(image).all():
        raise DescriptorError("range image: expected finite values from 0 up, 0 where empty, found others.")
    return image


def turn(scan: np.ndarray, yaw: float) -> np.ndarray:
    """The same scan with its content turned by `yaw` (rad, counter-clockwise): x' = R(yaw) x.

    Of an image the corners beyond the inscribed disc turn out of sight or come in empty; references that
    take images look at the disc only.
    """
    cosine, sine = np.cos(yaw), np.sin(yaw)
    if is_points(scan):
        rotation = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]], np.float32)
        return check_points(scan) @ rotation
    image = _check_image(scan)
    # OpenCV's coordinates are (column, row) = (y, x): the same rotation with its axes exchanged.
    rotation = np.array([[cosine, sine], [-sine, cosine]])
    middle = np.full(2, (len(image) - 1) / 2)
    matrix = np.column_stack([rotation, middle - rotation @ middle])
    return cv2.warpAffine(image, matrix, image.shape[::-1], flags=cv2.INTER_LINEAR)


def check_stacks(queries: Stack, database: Stack, key: str, allowed: np.ndarray | None) -> None:
    """Raises DescriptorError unless both hold `key` with equal trailing shapes and `allowed` is (Q, D)."""
    for role, stack in (("queries", queries), ("database", database)):
        if key not in stack:
            raise DescriptorError(f"{role}: expected the array {key!r} of describe(), found {sorted(stack)}.")
        if np.ndim(stack[key]) < 2:
            raise DescriptorError(
                f"{role}: expected {key!r} stacked over scans, found shape {np.shape(stack[key])}. Put a "
                "single scan's descriptor in a stack of one."
            )
    query_shape, database_shape = queries[key].shape, database[key].shape
    if query_shape[1:] != database_shape[1:]:
        raise DescriptorError(
            f"{key!r} is {query_shape[1:]} in the queries and {database_shape[1:]} in the database. Describe "
            "both with the same settings."
        )
    expected = (query_shape[0], database_shape[0])
    if allowed is not None and np.shape(allowed) != expected:
        raise DescriptorError(f"allowed: expected shape (Q, D) = {expected}, found {np.shape(allowed)}.")


def _check_image(image: np.ndarray) -> np.ndarray:
    """(H, H) float32 from (H, H) or (H, H, 1) finite, non-negative values."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim != 2 or image.shape[0] != image.shape[1] or len(image) < 2:
        raise DescriptorError(
            f"expected points (N, 3) or a square density image (H, H) with the sensor in its middle, found "
            f"shape {image.shape}."
        )
    image = image.astype(np.float32)
    if not (image >= 0).all() or not np.isfinite(image).all():
        raise DescriptorError("density image: expected finite values from 0 up, found others.")
    return image


def _cubes_above_ground(points: np.ndarray, grid: Grid2D) -> np.ndarray:
    """(H, W) float32: occupied cubes in each cell's column, less one."""
    lower = np.array([*grid.lower, 0.0], np.float32)
    cube = np.floor((points - lower) / np.float32(grid.cell)).astype(np.int64)
    rows, columns = grid.shape
    inside = (cube[:, :2] >= 0).all(axis=1) & (cube[:, 0] < rows) & (cube[:, 1] < columns)
    cube = cube[inside]
    cell = cube[:, 0] * columns + cube[:, 1]
    if not len(cube):
        return np.zeros(grid.shape, np.float32)
    layers = int(np.ptp(cube[:, 2])) + 1
    occupied = np.unique(cell * layers + cube[:, 2] - cube[:, 2].min())
    count = np.bincount(occupied // layers, minlength=rows * columns)
    return np.maximum(count - 1, 0).reshape(grid.shape).astype(np.float32)
