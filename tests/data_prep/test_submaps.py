"""Voxels, outliers, ground and crops against loops over single points."""

import numpy as np
import pytest

from data_prep import submaps
from tests.data_prep import scan_trees


def voxels_by_hand(points: np.ndarray, size: float) -> list[list[float]]:
    """Means of the points of each cell, cells in order, from a dictionary of lists."""
    cells: dict[tuple[int, ...], list[np.ndarray]] = {}
    for point in points:
        cells.setdefault(tuple(int(np.floor(c / size)) for c in point[:3]), []).append(point)
    return [list(np.mean(cells[cell], axis=0)) for cell in sorted(cells)]


def distances_by_hand(xyz: np.ndarray, cloud: np.ndarray, neighbours: int, reach: float) -> list[float]:
    """Every distance computed; each beyond `reach`, and each that is lacking, counts as `reach`."""
    found = []
    for point in xyz.astype(np.float64):
        distances = np.sqrt(((point - cloud) ** 2).sum(axis=1))
        nearest = [*sorted(np.minimum(distances, reach).tolist()), *[reach] * neighbours][:neighbours]
        found.append(sum(nearest) / neighbours)
    return found


class TestVoxels:
    def test_means_against_a_dictionary(self):
        rng = np.random.default_rng(0)
        points = rng.normal(0, 1.0, (500, 4))
        np.testing.assert_allclose(
            submaps.voxel_means(points, 0.4), voxels_by_hand(points, 0.4), rtol=1e-12, atol=1e-12
        )

    def test_of_nothing(self):
        assert submaps.voxel_means(np.zeros((0, 4)), 0.1).shape == (0, 4)

    def test_borders_belong_to_the_upper_voxel(self):
        index = submaps.voxel_index(np.array([[0.0, 0.5, -0.5], [0.25, 0.49, -0.01]]), 0.5)
        np.testing.assert_array_equal(index, [[0, 1, -1], [0, 0, -1]])

    def test_keys_turn_back_and_sort_as_voxels(self):
        rng = np.random.default_rng(1)
        index = rng.integers(-(2**19) + 1, 2**19, (300, 3))
        key = submaps.pack(index)
        np.testing.assert_array_equal(submaps.unpack(key), index)
        np.testing.assert_array_equal(np.argsort(key), np.lexsort(index.T[::-1]))

    def test_voxels_too_far_are_refused(self):
        with pytest.raises(ValueError, match="524288"):
            submaps.pack(np.array([[0, 0, 2**19]]))


class TestOutliers:
    @pytest.mark.parametrize("reach", [0.7, 3.0, 20.0])
    def test_distances_against_all_pairs(self, reach):
        """With neighbours near, beyond the first look of 2 m, beyond the reach, and too few of them."""
        rng = np.random.default_rng(2)
        cloud = np.concatenate(
            [rng.normal(0, 0.3, (60, 3)), rng.uniform(-6, 6, (40, 3)), [[90.0, 0, 0], [90.5, 0, 0]]]
        ).astype(np.float32)
        np.testing.assert_allclose(
            submaps.mean_neighbour_distances(cloud, cloud, 8, reach),
            distances_by_hand(cloud, cloud, 8, reach),
            rtol=1e-6,
        )

    def test_fewer_points_than_neighbours(self):
        cloud = np.array([[0.0, 0, 0], [1.0, 0, 0]])
        # Of three neighbours: itself at 0, the other at 1, and none, which counts as the reach of 5.
        np.testing.assert_allclose(submaps.mean_neighbour_distances(cloud, cloud, 3, 5.0), [2.0, 2.0])

    def test_threshold_is_mean_and_deviation(self):
        values = np.array([1.0, 2.0, 4.0, 9.0])
        found = submaps.outlier_threshold(4, values.sum(), (values**2).sum(), 0.3)
        assert found == pytest.approx(values.mean() + 0.3 * values.std(ddof=1))
        assert submaps.outlier_threshold(1, 3.0, 9.0, 0.3) == np.inf
        assert submaps.outlier_threshold(3, 0.3, 0.03, 0.3) == pytest.approx(0.1)  # no spread: never NaN

    def test_removes_by_the_definition(self):
        rng = np.random.default_rng(3)
        points = np.concatenate([rng.normal(0, 0.2, (150, 3)), rng.uniform(-8, 8, (20, 3))])
        distance = np.array(distances_by_hand(points, points, 10, 20.0))
        expected = distance <= distance.mean() + 0.3 * distance.std(ddof=1)
        stays = submaps.remove_outliers(points, 10, 0.3)
        np.testing.assert_array_equal(stays, expected)
        assert 0 < (~stays).sum() < 60


class TestGround:
    def ground(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """A road 1.7 m below that falls by 3 %, to 3 cm."""
        xy = rng.uniform(-30, 30, (n, 2))
        return np.column_stack([xy, -1.7 - 0.03 * xy[:, 0] + rng.normal(0, 0.03, n)])

    def test_the_plane_is_found_and_nothing_else(self):
        rng = np.random.default_rng(4)
        poles = np.column_stack([rng.uniform(-20, 20, (400, 2)), rng.uniform(0.0, 4.0, 400)])
        xyz = np.concatenate([self.ground(rng, 2000), poles]).astype(np.float32)
        found = submaps.ground_points(xyz, 0.2, np.random.default_rng(0))
        np.testing.assert_array_equal(found[:2000], True)
        # Where the road falls the poles begin higher above it; at the upper end they stand in it.
        height = poles[:, 2] + 1.7 + 0.03 * poles[:, 0]
        np.testing.assert_array_equal(found[2000:], height < 0.2)

    def test_walls_with_more_points_are_passed_over(self):
        """What is on the wall's plane goes with it; the mask is of the whole cloud, not of what is left."""
        rng = np.random.default_rng(5)
        wall = np.column_stack([rng.uniform(-30, 30, 3000), np.full(3000, 8.0), rng.uniform(-1, 9, 3000)])
        road = self.ground(rng, 1000)
        found = submaps.ground_points(np.concatenate([wall, road]), 0.2, np.random.default_rng(0))
        np.testing.assert_array_equal(found[3000:], np.abs(road[:, 1] - 8.0) >= 0.2)
        assert found[:3000].mean() < 0.05

    @pytest.mark.parametrize("points", [0, 2])
    def test_too_few_points(self, points):
        assert submaps.ground_points(np.ones((points, 3)), 0.2, np.random.default_rng(0)) is None

    def test_walls_alone_are_no_ground(self):
        rng = np.random.default_rng(6)
        wall = np.column_stack([rng.uniform(-30, 30, 500), np.full(500, 8.0), rng.uniform(-1, 9, 500)])
        assert submaps.ground_points(wall, 0.2, np.random.default_rng(0)) is None

    def test_points_on_a_line_have_no_plane(self):
        line = np.linspace(0, 1, 50)[:, None] * [1.0, 2.0, 0.5]
        assert submaps.ground_points(line, 0.2, np.random.default_rng(0)) is None


def test_the_own_box_is_taken_out():
    """Out only where both |x| and |y| are within: the border belongs to the box."""
    points = np.array([[3.0, 3.0, 0], [3.01, 0, 0], [0, -3.01, 5], [-2, 2, 1], [40, 1, 0]])
    np.testing.assert_array_equal(submaps.outside_own_box(points, 3.0), points[[1, 2, 4]])


def test_crop_against_a_loop():
    """A tilted pose: what is inside the square in LiDAR axes is there, in those axes, and nothing else."""
    rng = np.random.default_rng(7)
    pose = scan_trees.drive(9)[8]
    points = np.column_stack([rng.uniform(-40, 40, (800, 3)), rng.random(800)])
    points[:, :3] += pose[:3, 3]
    expected = []
    for point in points.astype(np.float32):
        x, y, z, _ = np.linalg.inv(pose) @ [*point[:3].astype(np.float64), 1.0]
        if abs(x) < 20 and abs(y) < 20:
            expected.append([x, y, z, point[3]])
    assert 100 < len(expected) < 700
    np.testing.assert_allclose(submaps.crop(points.astype(np.float32), pose, 20.0), expected, atol=2e-4)
