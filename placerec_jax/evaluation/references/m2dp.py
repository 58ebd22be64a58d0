"""M2DP: how the points spread over 64 planes, reduced to the first singular vectors.

He, Wang and Zhang, "M2DP: A novel 3D point cloud descriptor and its application in loop closure detection",
IROS 2016. Written from the description: 4 × 16 planes, 16 sectors × 8 rings in each.
"""

import functools

import numpy as np

from placerec_jax.evaluation.reference_inputs import Stack, check_points, check_stacks

NEEDS = "points"

AZIMUTHS = 4
ELEVATIONS = 16
SECTORS = 16
RINGS = 8
VOXEL = 0.5  # m: of a Velodyne scan's 120,000 points 9,000 remain, 16 ms instead of 190 on one core
FARTHEST = 2.0  # of two scans that share nothing: both pairs of unit vectors are orthogonal


def describe(points: np.ndarray, *, voxel: float | None = VOXEL) -> Stack:
    """(N, 3) points (m) → `descriptor` (192,) float32: left (64) and right (128) singular vector.

    Points are first averaged in voxels of `voxel` m (None: taken as they are). Fewer than three points, or
    points all in one place, give zeros.
    """
    points = check_points(points).astype(np.float64)
    if voxel is not None:
        points = _thin(points, voxel)
    points = points - points.mean(axis=0) if len(points) else points
    if len(points) < 3 or not np.abs(points).max() > 0:
        return {"descriptor": np.zeros(AZIMUTHS * ELEVATIONS + SECTORS * RINGS, np.float32)}
    left, _, right = np.linalg.svd(_signature(points @ _principal_axes(points)), full_matrices=False)
    # The matrix has no negative part, so its first singular vectors have none either, but for their sign.
    return {"descriptor": np.abs(np.concatenate([left[:, 0], right[0]])).astype(np.float32)}


def distances(queries: Stack, database: Stack, allowed: np.ndarray | None = None) -> np.ndarray:
    """(Q, D) float32 Euclidean distances; an empty scan is at the greatest distance, 2, from every other."""
    check_stacks(queries, database, "descriptor", allowed)
    query, base = (stack["descriptor"].astype(np.float64) for stack in (queries, database))
    squares = [(rows**2).sum(axis=1) for rows in (query, base)]
    squared = squares[0][:, None] + squares[1] - 2 * query @ base.T
    result = np.sqrt(np.maximum(squared, 0)).astype(np.float32)
    result[squares[0] == 0] = FARTHEST
    result[:, squares[1] == 0] = FARTHEST
    if allowed is not None:
        result[~np.asarray(allowed, bool)] = np.inf
    return result


def _thin(points: np.ndarray, voxel: float) -> np.ndarray:
    """(N, 3) → (M, 3): the mean of the points in each voxel."""
    if not len(points):
        return points
    index = np.floor(points / voxel).astype(np.int64)
    index -= index.min(axis=0)
    size = index.max(axis=0) + 1
    number = (index[:, 0] * size[1] + index[:, 1]) * size[2] + index[:, 2]
    _, voxel_of, count = np.unique(number, return_inverse=True, return_counts=True)
    return np.stack([np.bincount(voxel_of, axis) for axis in points.T], axis=1) / count[:, None]


def _principal_axes(points: np.ndarray) -> np.ndarray:
    """(N, 3) centred points → (3, 3) right-handed axes as columns, by falling variance.

    An axis of a covariance has no sign: the first two point to the side of the longer tail (third moment
    above zero), the third follows from them, so that a place is never taken for its mirror image.
    """
    _, axes = np.linalg.eigh(points.T @ points)
    first, second = axes[:, 2], axes[:, 1]
    first = first * _sign(((points @ first) ** 3).sum())
    second = second * _sign(((points @ second) ** 3).sum())
    return np.stack([first, second, np.cross(first, second)], axis=1)


def _sign(value: float) -> float:
    return 1.0 if value >= 0 else -1.0


@functools.cache
def _planes() -> tuple[np.ndarray, np.ndarray]:
    """Two (3, 64) arrays: the x and y axis of every plane.

    The x axis is the cloud's own, laid into the plane; no plane is orthogonal to it, as no azimuth is 0.
    """
    azimuth = np.repeat(np.linspace(-np.pi / 2, np.pi / 2, AZIMUTHS), ELEVATIONS)
    elevation = np.tile(np.linspace(0, np.pi / 2, ELEVATIONS), AZIMUTHS)
    normal = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    )
    x = np.array([[1.0], [0.0], [0.0]]) - normal * normal[0]
    x /= np.linalg.norm(x, axis=0)
    return x, np.cross(normal, x, axis=0)


def _signature(points: np.ndarray) -> np.ndarray:
    """(N, 3) points in their principal frame → (64, 128): share of the points in each bin of each plane.

    Ring i ends at ρ_max (i / 8)², with ρ_max the distance of the farthest point from the centroid.
    """
    farthest = np.sqrt((points**2).sum(axis=1).max())
    x, y = ((points @ axis / farthest).astype(np.float32) for axis in _planes())
    ring = np.minimum((np.sqrt(np.hypot(x, y)) * RINGS).astype(np.int32), RINGS - 1)
    turn = np.arctan2(y, x) * np.float32(SECTORS / (2 * np.pi))  # −8 to 8
    sector = np.floor(turn).astype(np.int32) % SECTORS
    bins = SECTORS * RINGS
    number = np.arange(x.shape[1], dtype=np.int32) * bins + ring * SECTORS + sector
    count = np.bincount(number.ravel(), minlength=x.shape[1] * bins)
    return count.reshape(-1, bins) / len(points)
