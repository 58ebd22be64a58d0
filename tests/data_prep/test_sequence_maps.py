"""The map on disk against one that is made in memory by loops; it depends on nothing but the scans."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from data_prep import sequence_maps
from data_prep.errors import InputError
from data_prep.raw import kitti
from data_prep.raw.scans import Scan
from data_prep.submaps import MapRecipe
from data_prep.worker_pool import WorkerPool
from tests.data_prep import scan_trees
from tests.data_prep.test_submaps import distances_by_hand, voxels_by_hand

RECIPE = MapRecipe(voxel=0.25, neighbours=5)  # tiles of 50 m
PLACE = np.array([4000.0, -3000.0, 120.0])  # far from the origin of the world, as the dataset's are


@pytest.fixture
def scans(tmp_path) -> tuple[Scan, ...]:
    """Six scans of a short drive over a corner of tiles, their points in clusters."""
    poses = scan_trees.drive(6)
    poses[:, :3, 3] += PLACE
    scans = []
    for number, pose in enumerate(poses):
        rng = np.random.default_rng(number)
        centres = rng.uniform(-30, 30, (12, 3)) * (1, 1, 0.1)
        xyz = np.concatenate([rng.normal(centre, 0.4, (14, 3)) for centre in centres])
        xyz = np.concatenate([xyz, rng.uniform(-40, 40, (10, 3)), rng.uniform(-2.5, 2.5, (9, 3))])
        path = tmp_path / "velodyne" / f"{number:010d}.bin"
        path.parent.mkdir(exist_ok=True)
        np.column_stack([xyz, rng.random(len(xyz))]).astype(np.float32).tofile(path)
        scans.append(Scan("0003", number, 0.0, path, pose))
    return tuple(scans)


def map_by_hand(scans: tuple[Scan, ...], recipe: MapRecipe = RECIPE) -> np.ndarray:
    """(N, 4) in the world, from the definitions: voxels of each scan, then of all, then the statistics."""
    means = []
    for scan in scans:
        points = np.fromfile(scan.path, np.float32).reshape(-1, 4).astype(np.float64)
        own = (np.abs(points[:, 0]) <= 3) & (np.abs(points[:, 1]) <= 3)
        points = points[~own]
        world = np.column_stack([points[:, :3], np.ones(len(points))]) @ scan.map_T_lidar.T
        means += voxels_by_hand(np.column_stack([world[:, :3], points[:, 3]]), recipe.voxel)
    voxels = np.array(voxels_by_hand(np.array(means), recipe.voxel))
    distance = np.array(distances_by_hand(voxels[:, :3], voxels[:, :3], recipe.neighbours, 20.0))
    return voxels[distance <= distance.mean() + recipe.deviations * distance.std(ddof=1)]


def build(folder: Path, scans: tuple[Scan, ...], recipe: MapRecipe = RECIPE) -> sequence_maps.MapJob:
    job = sequence_maps.job_of(folder, scans, recipe)
    sequence_maps.build_maps([job], WorkerPool(1))
    return job


def in_order(points: np.ndarray) -> np.ndarray:
    return points[np.lexsort(points[:, :3].round(3).T)]


def test_map_and_submaps_against_loops(scans, tmp_path):
    job = build(tmp_path / "maps", scans)
    expected = map_by_hand(scans)
    stored = sequence_maps.TiledPoints.open(job.folder, "map")
    assert len(stored.starts) > 3  # several tiles
    world = np.array(stored.points, np.float64)
    world[:, :3] += job.folder.origin
    assert len(world) == len(expected)
    np.testing.assert_allclose(in_order(world), in_order(expected), atol=1e-4)
    for scan in (scans[0], scans[4]):
        lidar = np.column_stack([expected[:, :3], np.ones(len(expected))]) @ np.linalg.inv(scan.map_T_lidar).T
        inside = (np.abs(lidar[:, :2]) < 20).all(axis=1)
        found = sequence_maps.submap(job.folder, scan.map_T_lidar, 20.0)
        assert 20 < len(found) < len(expected)
        wanted = np.column_stack([lidar[inside, :3], expected[inside, 3]])
        np.testing.assert_allclose(in_order(found), in_order(wanted), atol=1e-4)


def test_report_counts(scans, tmp_path):
    job = sequence_maps.job_of(tmp_path / "maps", scans, RECIPE)
    report = sequence_maps.build_maps([job], WorkerPool(1))["0003"]
    kept = len(map_by_hand(scans))
    assert report["voxels"] - report["outliers"] == kept
    assert report["outliers"] > 10
    assert report["scans_without_ground_plane"] == 0


def test_runs_of_scans_tiles_and_workers_change_nothing(scans, tmp_path, monkeypatch):
    whole = (build(tmp_path / "a", scans).folder.path / "map.npy").read_bytes()
    jobs = [sequence_maps.job_of(tmp_path / name, scans, RECIPE) for name in "bc"]
    with WorkerPool(2) as pool:
        sequence_maps.build_maps(jobs, pool)
    for job in jobs:
        assert (job.folder.path / "map.npy").read_bytes() == whole
    monkeypatch.setattr(sequence_maps, "TILES_PER_TASK", 1)
    assert (build(tmp_path / "d", scans).folder.path / "map.npy").read_bytes() == whole
    monkeypatch.setattr(sequence_maps, "SCANS_PER_CHUNK", 2)
    found = sequence_maps.TiledPoints.open(build(tmp_path / "e", scans).folder, "map").points
    wanted = np.frombuffer(whole, "<f4").reshape(-1, 4)
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # sums in another order


def test_goes_on_where_it_was_stopped(scans, tmp_path, monkeypatch):
    whole = (build(tmp_path / "a", scans).folder.path / "map.npy").read_bytes()
    job = sequence_maps.job_of(tmp_path / "b", scans, RECIPE)
    with monkeypatch.context() as patch:
        patch.setattr(sequence_maps, "write_map", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sequence_maps.build_maps([job], WorkerPool(1))
    assert not job.done
    shutil.rmtree(tmp_path / "velodyne")  # what is done is not done again
    sequence_maps.build_maps([job], WorkerPool(1))
    assert (job.folder.path / "map.npy").read_bytes() == whole
    assert sorted(path.name for path in job.folder.path.iterdir()) == ["map.json", "map.npy"]


def test_another_recipe_is_another_map(scans, tmp_path):
    paths = {
        sequence_maps.job_of(tmp_path, scans[:n], recipe).folder.path
        for n, recipe in ((6, RECIPE), (5, RECIPE), (6, MapRecipe(voxel=0.25, neighbours=6)))
    }
    assert len(paths) == 3


def test_ground_is_taken_out_of_scans(tmp_path):
    rng = np.random.default_rng(0)
    road = np.column_stack([rng.uniform(-30, 30, (3000, 2)), np.full(3000, -1.7)])
    poles = np.column_stack([np.repeat(rng.uniform(8, 20, (20, 2)), 40, axis=0), rng.uniform(0, 2, 800)])
    points = np.column_stack([np.concatenate([road, poles]), np.full(3800, 0.5)]).astype(np.float32)
    path = tmp_path / "0000000000.bin"
    points.tofile(path)
    scan = Scan("0003", 0, 0.0, path, np.eye(4))
    recipe = MapRecipe(voxel=0.1, neighbours=5, deviations=5.0, remove_ground=True)
    job = build(tmp_path / "maps", (scan,), recipe)
    submap = sequence_maps.submap(job.folder, np.eye(4), 25.0)
    assert len(submap) > 200
    assert submap[:, 2].min() > -1.4
    wall = points[3000:]
    wall.tofile(path)  # no ground at all
    job = sequence_maps.job_of(tmp_path / "maps", (scan,), recipe)
    report = sequence_maps.build_maps([job], WorkerPool(1))["0003"]
    assert report["scans_without_ground_plane"] == 1


def test_a_scan_of_the_car_alone_makes_an_empty_map(tmp_path):
    path = tmp_path / "0000000000.bin"
    np.zeros((5, 4), np.float32).tofile(path)
    scan = Scan("0003", 0, 0.0, path, np.eye(4))
    job = build(tmp_path / "maps", (scan,))
    assert sequence_maps.submap(job.folder, np.eye(4), 20.0).shape == (0, 4)


def test_poses_of_another_world_are_refused(scans, tmp_path):
    pose = scans[1].map_T_lidar.copy()
    pose[0, 3] += 70_000
    odd = (scans[0], Scan("0003", 1, 0.0, scans[1].path, pose))
    with pytest.raises(InputError, match="frame 1 70 km from the first"):
        build(tmp_path / "maps", odd)


def test_submap_of_a_tilted_pose_holds_what_is_high(tmp_path):
    """A LiDAR on a 20 % slope sees the top of a 60 m mast 12 m away from its foot."""
    path = tmp_path / "0000000000.bin"
    mast = np.column_stack([np.full(600, 19.0), np.full(600, 0.0), np.linspace(0, 60, 600), np.ones(600)])
    mast.astype(np.float32).tofile(path)
    slope = np.arctan(0.2)
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(slope), 0, np.sin(slope)], [0, 1, 0], [-np.sin(slope), 0, np.cos(slope)]]
    recipe = MapRecipe(deviations=100.0)
    job = build(tmp_path / "maps", (Scan("0003", 0, 0.0, path, pose),), recipe)
    found = sequence_maps.submap(job.folder, pose, 20.0)
    assert len(found) > 580
    np.testing.assert_allclose(np.linalg.norm(found[:, :3], axis=1).max(), np.hypot(19, 60), atol=0.06)


@pytest.mark.real_data
def test_two_real_scans_make_one_map(real_data, tmp_path):
    """KITTI 00, frames 94 and 95, a metre apart: what both saw of the street lies in the same voxels."""
    (sequence,) = kitti.read_sequences(real_data / "kitti_odometry", ["00"], camera=None)
    scans = tuple(scan for scan in sequence.scans if scan.frame_id in (94, 95))
    assert len(scans) == 2
    alone = [build(tmp_path / str(scan.frame_id), (scan,), MapRecipe()) for scan in scans]
    both = build(tmp_path / "both", scans, MapRecipe())
    pose = scans[0].map_T_lidar
    first, second = (sequence_maps.submap(job.folder, pose, 20.0)[:, :3] for job in alone)
    together = sequence_maps.submap(both.folder, pose, 20.0)
    assert len(first) > 10_000
    assert (np.abs(together[:, :2]) < 20).all()
    distance, _ = cKDTree(first).query(second)
    assert np.median(distance) < 0.08
    moved, _ = cKDTree(first).query(second + np.array([0.0, 0.0, 0.5]))
    assert np.median(moved) > 2 * np.median(distance)
    assert len(together) < 0.95 * (len(first) + len(second))
