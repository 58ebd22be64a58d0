"""A LiDAR sweep as a range image with the colours that the cameras saw: EINet's appearance rendering.

A point's colour is read from the image that shows it nearest to its middle. The range image is that of
`placerec_jax.ops.range_image`: without what is on the car and what is far, the nearest point of a cell
winning, and the winner's colour is the cell's, black where no camera saw it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from placerec_jax.ops import range_image
from placerec_jax.ops.range_image import SphericalGrid
from placerec_jax.ops.rigid import rigid_apply

NEAREST = 1.0  # m along the optical axis: what is nearer belongs to the car
BORDER = 1.0  # pixels at the edge of an image in which nothing is looked up


class Picture(NamedTuple):
    """One camera's image, its calibration for it, and where it is to the LiDAR at its own time."""

    rgb: np.ndarray  # (H, W, 3) uint8
    intrinsics: np.ndarray  # (3, 3)
    camera_T_lidar: np.ndarray  # (4, 4)


class Projection(NamedTuple):
    """Where points (N,) fall in an image: pixels from its outer corner, and metres along the optical axis."""

    u: np.ndarray
    v: np.ndarray
    depth: np.ndarray
    seen: np.ndarray  # bool: in front of the camera and inside the image; of others u and v mean nothing


def project(
    lidar_xyz: np.ndarray, camera_T_lidar: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]
) -> Projection:
    """(N, 3) points → their pixels in an image of `size` (height, width); what hides a point is not asked.

    Points count from NEAREST on and more than BORDER inside the image, as in the nuScenes devkit.
    """
    xyz = rigid_apply(np.asarray(camera_T_lidar, np.float64), np.asarray(lidar_xyz, np.float64))
    depth = xyz[:, 2]
    scaled = xyz @ np.asarray(intrinsics, np.float64).T
    u, v = (scaled[:, axis] / np.where(depth > NEAREST, depth, 1.0) for axis in (0, 1))
    height, width = size
    seen = (depth > NEAREST) & (u > BORDER) & (u < width - BORDER) & (v > BORDER) & (v < height - BORDER)
    return Projection(u, v, depth, seen)


def colours(lidar_xyz: np.ndarray, pictures: Sequence[Picture]) -> np.ndarray:
    """(N, 3) points → (N, 3) uint8 RGB, bilinear between pixel centres; black where no image shows them."""
    result = np.zeros((len(lidar_xyz), 3), np.uint8)
    nearest_to_middle = np.full(len(lidar_xyz), np.inf)
    for picture in pictures:
        size = picture.rgb.shape[:2]
        where = project(lidar_xyz, picture.camera_T_lidar, picture.intrinsics, size)
        aside = np.where(where.seen, np.abs(where.u - size[1] / 2) / size[1], np.inf)
        better = np.flatnonzero(aside < nearest_to_middle)
        nearest_to_middle[better] = aside[better]
        result[better] = _bilinear(picture.rgb, where.u[better] - 0.5, where.v[better] - 0.5)
    return result


def _bilinear(rgb: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 at (N,) places between whole-numbered pixels → (N, 3) uint8."""
    left, top = np.floor(column).astype(int), np.floor(row).astype(int)
    right, down = (column - left)[:, None], (row - top)[:, None]
    upper = rgb[top, left] * (1 - right) + rgb[top, left + 1] * right
    lower = rgb[top + 1, left] * (1 - right) + rgb[top + 1, left + 1] * right
    return np.rint(upper * (1 - down) + lower * down).astype(np.uint8)


def render(
    lidar_xyz: np.ndarray, pictures: Sequence[Picture], grid: SphericalGrid
) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) points in LiDAR axes (x right, y forward) → the range image and its colours.

    Returns (height, width) float32 metres, range_image.EMPTY without a point, and (height, width, 3) uint8.
    """
    xyz = np.asarray(lidar_xyz, np.float32)
    kept = range_image.kept_points(xyz, np.ones(len(xyz), bool), range_image.NEAR, range_image.FAR)
    xyz = xyz[kept]
    seen = range_image.pixels(range_image.forward_left(xyz), grid)
    cell = range_image.cells(seen, grid, np.ones(len(xyz), bool), "clamp")
    order = np.lexsort((seen.distance, cell))  # stable: of points equally near the first wins
    filled, first = np.unique(cell[order], return_index=True)
    winner = order[first]
    ranges = np.full(grid.height * grid.width, range_image.EMPTY, np.float32)
    ranges[filled] = seen.distance[winner]
    rgb = np.zeros((grid.height * grid.width, 3), np.uint8)
    rgb[filled] = colours(xyz[winner], pictures)
    return ranges.reshape(grid.shape), rgb.reshape(*grid.shape, 3)
