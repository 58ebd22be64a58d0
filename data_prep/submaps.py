"""Point clouds of many scans: voxels, outliers, ground, and the piece about one pose.

The steps of SaliencyI2PLoc's submaps, as Open3D defines them: a voxel keeps the mean of its points, and the
distance of a point to its neighbours is the mean over the nearest `neighbours`, itself among them. Voxels lie
on whole multiples of their size in the world; Open3D starts its grid at the corner of each cloud.
"""

import dataclasses

import numpy as np
import scipy.spatial

_GROUND_TRIES = 5
_PLANES = 1000  # hypotheses a try
_SCORED_POINTS = 4000  # points that hypotheses are scored on
_INDEX_BITS = 20  # an axis of a voxel's index, about zero

HIGHEST = 100.0  # m above and below the LiDAR: what a submap surely holds
OUTLIER_REACH = 20.0  # m: a neighbour that is farther, or not there, counts as this far
_FIRST_REACH = 2.0  # m: where most points have all of their neighbours


@dataclasses.dataclass(frozen=True)
class MapRecipe:
    """How scans become the map of a sequence.

    `own_box` (m): points with |x| and |y| up to it belong to the car. `voxel` (m). An outlier's mean distance
    to its `neighbours` (itself one of them) exceeds the map's mean by more than `deviations` of its standard
    deviations. `remove_ground` takes each scan's ground plane out, to `ground_distance` (m).
    """

    own_box: float = 3.0
    voxel: float = 0.1
    neighbours: int = 40
    deviations: float = 0.3
    remove_ground: bool = False
    ground_distance: float = 0.2
    compensate_motion: bool = False


def outside_own_box(points: np.ndarray, half: float) -> np.ndarray:
    """(N, 3 or more) points in LiDAR axes → those that lie not on the car: |x| or |y| above `half` metres."""
    return points[(np.abs(points[:, :2]) > half).any(axis=1)]


def voxel_index(xyz: np.ndarray, size: float) -> np.ndarray:
    """(N, 3) metres → (N, 3) int64 voxel: floor of the coordinates over `size`."""
    return np.floor(np.asarray(xyz, np.float64) / size).astype(np.int64)


def pack(index: np.ndarray) -> np.ndarray:
    """(N, 3) voxels within ±2¹⁹ → (N,) int64 that sort as the voxels do by x, then y, then z."""
    half = 1 << (_INDEX_BITS - 1)
    if len(index) and (np.abs(index) >= half).any():
        raise ValueError(f"voxels: expected indices within ±{half}, found {np.abs(index).max()}")
    x, y, z = (index + half).T
    return (x << 2 * _INDEX_BITS) | (y << _INDEX_BITS) | z


def unpack(key: np.ndarray) -> np.ndarray:
    """(N,) of `pack` → (N, 3) int64 voxels."""
    half, mask = 1 << (_INDEX_BITS - 1), (1 << _INDEX_BITS) - 1
    return np.stack([key >> 2 * _INDEX_BITS, key >> _INDEX_BITS & mask, key & mask], axis=-1) - half


def sums_by_key(key: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) keys and (N, C) values → (M,) ascending keys, each once, and (M, C) float64 sums over them.

    Equal keys are added in the order they stand in.
    """
    if not len(key):
        return key, np.zeros((0, values.shape[1]))
    order = np.argsort(key, kind="stable")
    key = key[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return key[first], np.add.reduceat(values[order].astype(np.float64), first, axis=0)


def voxel_means(points: np.ndarray, size: float) -> np.ndarray:
    """(N, C) with x, y, z first → (M, C) float64: the mean of the points in each voxel, by voxel."""
    key = pack(voxel_index(points[:, :3], size))
    _, sums = sums_by_key(key, np.concatenate([points, np.ones((len(points), 1))], axis=1))
    return sums[:, :-1] / sums[:, -1:]


def mean_neighbour_distances(
    xyz: np.ndarray, cloud: np.ndarray, neighbours: int, reach: float = OUTLIER_REACH
) -> np.ndarray:
    """(M, 3) points of a (N, 3) cloud → (M,) float64 mean distance to the nearest `neighbours`.

    The point itself is one of them, at distance 0. A neighbour farther than `reach` metres, or lacking,
    counts as `reach`: so that what is farther away than that need not be looked at.
    """
    distance = np.empty(len(xyz))
    left = np.arange(len(xyz))
    for bound in (min(_FIRST_REACH, reach), reach):
        if not len(left):
            break
        lower, upper = xyz[left].min(axis=0) - bound, xyz[left].max(axis=0) + bound
        near = cloud[((cloud >= lower) & (cloud <= upper)).all(axis=1)]
        # For points as even as voxels a plain tree is made three times as fast, and answers no slower.
        tree = scipy.spatial.cKDTree(near, leafsize=32, balanced_tree=False, compact_nodes=False)
        found, _ = tree.query(
            xyz[left], k=np.arange(1, neighbours + 1), distance_upper_bound=np.nextafter(bound, np.inf)
        )
        distance[left] = np.minimum(found, reach).mean(axis=1)
        left = left[~np.isfinite(found[:, -1])]
    return distance


def outlier_threshold(count: int, total: float, total_of_squares: float, deviations: float) -> float:
    """Mean plus `deviations` standard deviations (n - 1) of distances given by their number and sums."""
    if count < 2:
        return np.inf
    mean = total / count
    variance = max(0.0, (total_of_squares - count * mean**2) / (count - 1))
    return mean + deviations * np.sqrt(variance)


def remove_outliers(points: np.ndarray, neighbours: int, deviations: float) -> np.ndarray:
    """(N, C) with x, y, z first → (N,) bool: whether each stays, by the statistics of this cloud."""
    distance = mean_neighbour_distances(points[:, :3], points[:, :3], neighbours)
    return distance <= outlier_threshold(len(distance), distance.sum(), np.square(distance).sum(), deviations)


def ground_points(xyz: np.ndarray, distance: float, rng: np.random.Generator) -> np.ndarray | None:
    """(N, 3) of one scan, z up → (N,) bool: on the ground plane to `distance` metres; None without one.

    The plane with most points, by RANSAC and refined on its points. One that is more wall than ground, its
    normal's largest component not z, is set aside with its points and the next is looked for, 5 times in all.
    """
    left = np.arange(len(xyz))
    for _ in range(_GROUND_TRIES):
        if len(left) < 3:
            break
        plane = _largest_plane(xyz[left].astype(np.float64), distance, rng)
        if plane is None:
            break
        normal, offset = plane
        on_it = np.abs(xyz[left] @ normal + offset) < distance
        if np.argmax(np.abs(normal)) == 2:
            ground = np.zeros(len(xyz), bool)
            ground[left[on_it]] = True
            return ground
        left = left[~on_it]
    return None


def _largest_plane(
    xyz: np.ndarray, distance: float, rng: np.random.Generator
) -> tuple[np.ndarray, float] | None:
    """Unit normal and offset of normal·x + offset = 0; None where all points lie on a line."""
    corners = xyz[rng.integers(len(xyz), size=(_PLANES, 3))]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1)
    usable = length > 1e-6
    if not usable.any():
        return None
    normals = normals[usable] / length[usable, None]
    offsets = -np.einsum("ij,ij->i", normals, corners[usable, 0])
    scored = xyz if len(xyz) <= _SCORED_POINTS else xyz[rng.choice(len(xyz), _SCORED_POINTS, replace=False)]
    best = np.argmax((np.abs(scored @ normals.T + offsets) < distance).sum(axis=0))
    on_it = xyz[np.abs(xyz @ normals[best] + offsets[best]) < distance]
    if len(on_it) < 3:
        return normals[best], float(offsets[best])
    middle = on_it.mean(axis=0)
    normal = np.linalg.eigh(np.cov((on_it - middle).T))[1][:, 0]
    return normal, float(-normal @ middle)


def crop(map_points: np.ndarray, map_T_lidar: np.ndarray, half: float) -> np.ndarray:
    """(N, 4) float32 points in the map, (4, 4) → (M, 4) float32 in LiDAR axes with |x|, |y| < `half` metres.

    There is no limit in z, but where the LiDAR is tilted what is beyond HIGHEST may be missing. Columns
    behind x, y, z stay. In float32: to half a millimetre some kilometres from the map's origin.
    """
    reach = crop_reach(map_T_lidar, half)
    place = map_T_lidar[:3, 3].astype(np.float32)
    near = (np.abs(map_points[:, 0] - place[0]) < reach) & (np.abs(map_points[:, 1] - place[1]) < reach)
    points = map_points[near]
    # Not a matrix product: for three columns the threads of the matrix library cost more than they do.
    dx, dy, dz = (points[:, :3] - place).T
    rotation = map_T_lidar[:3, :3].astype(np.float32)
    lidar_xyz = np.stack([c[0] * dx + c[1] * dy + c[2] * dz for c in rotation.T], axis=-1)
    inside = (np.abs(lidar_xyz[:, 0]) < half) & (np.abs(lidar_xyz[:, 1]) < half)
    return np.concatenate([lidar_xyz[inside], points[inside, 3:]], axis=1).astype(np.float32)


def crop_reach(map_T_lidar: np.ndarray, half: float) -> float:
    """How far from the pose, in x and in y of the map, the points of `crop` can lie, m."""
    return float(np.sqrt(2.0) * half + HIGHEST * np.hypot(*map_T_lidar[:2, 2]))
