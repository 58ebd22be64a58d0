"""M2DP against loops over planes, rings and sectors, and its invariances."""

import numpy as np
import pytest

from placerec_jax.evaluation.reference_inputs import turn
from placerec_jax.evaluation.references import m2dp


def a_cloud(seed: int, count: int = 4000) -> np.ndarray:
    """(count, 3) float32 points, longest along x, with long tails, so that its own frame is well defined."""
    rng = np.random.default_rng(seed)
    return (rng.gamma(1.5, 1.0, (count, 3)) * [20, 8, 1] * rng.choice([0.3, 1.0], (count, 1))).astype(
        np.float32
    )


def plain_signature(points: np.ndarray) -> np.ndarray:
    """(64, 128) the plain way: one plane, one point after the other, edges compared as published."""
    edges = np.linspace(0, np.sqrt(np.linalg.norm(points, axis=1).max()), 9) ** 2
    rows = []
    for azimuth in np.linspace(-np.pi / 2, np.pi / 2, 4):
        for elevation in np.linspace(0, np.pi / 2, 16):
            normal = np.array(
                [
                    np.cos(elevation) * np.cos(azimuth),
                    np.cos(elevation) * np.sin(azimuth),
                    np.sin(elevation),
                ]
            )
            x = np.array([1, 0, 0]) - normal[0] * normal
            x /= np.linalg.norm(x)
            y = np.cross(normal, x)
            bins = np.zeros((8, 16))
            for point in points:
                a, b = point @ x, point @ y
                ring = min(int(np.searchsorted(edges, np.hypot(a, b), side="right")) - 1, 7)
                sector = int((np.arctan2(b, a) + 2 * np.pi) % (2 * np.pi) / (2 * np.pi / 16)) % 16
                bins[ring, sector] += 1 / len(points)
            rows.append(bins.ravel())
    return np.array(rows)


def test_signature_agrees_with_loops() -> None:
    points = np.random.default_rng(0).normal(0, [10, 5, 1], (60, 3))
    found = m2dp._signature(points)
    # A point within rounding of an edge may fall to either side of it.
    assert np.abs(found - plain_signature(points)).sum() <= 2 * 2 / 60
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_descriptor_is_the_first_pair_of_singular_vectors() -> None:
    points = a_cloud(0).astype(np.float64)
    centred = points - points.mean(axis=0)
    matrix = m2dp._signature(centred @ m2dp._principal_axes(centred))
    found = m2dp.describe(points, voxel=None)["descriptor"].astype(np.float64)
    left, right = found[:64], found[64:]
    assert np.linalg.norm(left) == pytest.approx(1, abs=1e-6)
    assert np.linalg.norm(right) == pytest.approx(1, abs=1e-6)
    # No rank-one matrix comes nearer to it, and both vectors point the positive way.
    greatest = np.sqrt(np.linalg.eigvalsh(matrix @ matrix.T)[-1])
    assert left @ matrix @ right == pytest.approx(greatest, rel=1e-6)
    assert (found >= 0).all()


@pytest.mark.parametrize("yaw", [0.1, np.pi / 2, 2.5, np.pi])
def test_turning_about_z_changes_nothing(yaw: float) -> None:
    points = a_cloud(1)
    still, turned, elsewhere = (
        m2dp.describe(cloud, voxel=None)["descriptor"] for cloud in (points, turn(points, yaw), a_cloud(2))
    )
    other = np.linalg.norm(still - elsewhere)
    assert np.linalg.norm(still - turned) < 0.02 * other
    thinned = [m2dp.describe(cloud)["descriptor"] for cloud in (points, turn(points, yaw))]
    assert np.linalg.norm(thinned[0] - thinned[1]) < 0.5 * other  # the voxels do not turn with the cloud


def test_order_and_position_change_nothing() -> None:
    points = a_cloud(3)
    shuffled = np.random.default_rng(0).permutation(points)
    for voxel in (None, 0.5):
        first, second = (m2dp.describe(cloud, voxel=voxel)["descriptor"] for cloud in (points, shuffled))
        np.testing.assert_allclose(first, second, atol=2e-3)
    moved = m2dp.describe(points + np.float32([64, -32, 2]), voxel=None)["descriptor"]
    np.testing.assert_allclose(moved, m2dp.describe(points, voxel=None)["descriptor"], atol=2e-3)


def test_a_mirrored_place_is_another_place() -> None:
    """Were the third axis signed by its tail as well, both would be described alike."""
    points = a_cloud(4)
    still, mirrored = (
        m2dp.describe(cloud, voxel=None)["descriptor"] for cloud in (points, points * np.float32([1, -1, 1]))
    )
    assert np.linalg.norm(still - mirrored) > 0.05
    assert np.linalg.det(m2dp._principal_axes(points - points.mean(axis=0))) == pytest.approx(1, abs=1e-5)


def test_voxels_hold_the_mean_of_their_points() -> None:
    points = np.array([[0.1, 0.1, 0.1], [0.3, 0.1, 0.2], [-0.1, 0.1, 0.1], [0.1, 5.0, 0.1]])
    found = m2dp._thin(points, 0.5)
    expected = [[-0.1, 0.1, 0.1], [0.1, 5.0, 0.1], [0.2, 0.1, 0.15]]
    np.testing.assert_allclose(found[np.lexsort(found.T[::-1])], expected, atol=1e-12)


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.ones((1, 3)), np.ones((50, 3))])
def test_degenerate_clouds_give_zeros(points: np.ndarray) -> None:
    assert not m2dp.describe(points)["descriptor"].any()


def test_a_line_of_points_is_described() -> None:
    line = np.stack([np.arange(40.0) ** 1.2, np.zeros(40), np.zeros(40)], axis=1)
    descriptor = m2dp.describe(line)["descriptor"]
    assert np.isfinite(descriptor).all()
    assert np.linalg.norm(descriptor) == pytest.approx(np.sqrt(2), rel=1e-5)


def test_distances_agree_with_a_double_loop() -> None:
    rng = np.random.default_rng(5)
    queries, database = rng.random((4, 192)).astype(np.float32), rng.random((5, 192)).astype(np.float32)
    found = m2dp.distances({"descriptor": queries}, {"descriptor": database})
    expected = [[np.linalg.norm(q - d) for d in database] for q in queries]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
