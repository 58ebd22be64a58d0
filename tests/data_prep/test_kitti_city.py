"""The KITTI and KITTI-360 layouts of the built-in city: read back, they are the world that was driven."""

import json
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
import shapely
import shapely.affinity
from scipy.spatial.distance import pdist

from data_prep.city import generate, loops, recording, write_kitti, write_kitti360
from data_prep.city.loops import LoopDrive
from data_prep.city.sensors import RayCaster
from data_prep.city.sizes import KITTI_SIZES
from data_prep.city.streets import Street, StreetGraph
from data_prep.city.world import World
from data_prep.raw import kitti, kitti360, kitti360_cameras
from data_prep.raw.scan_files import check_files
from data_prep.raw.scans import Scan, ScanSequence

WRITERS = {"kitti": write_kitti, "kitti360": write_kitti360}
FRAMES = 150  # of a sequence of size `tiny`


class City(NamedTuple):
    """A root on disk beside what was planned."""

    root: Path
    sequences: tuple[ScanSequence, ...]
    planned: dict[str, tuple[World, LoopDrive]]
    town: RayCaster  # without parked cars and those who move

    def drive(self, sequence: ScanSequence) -> tuple[World, LoopDrive]:
        """The plan of a sequence, by the reader's name of it."""
        return next(plan for name, plan in self.planned.items() if sequence.name in name)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("city")
    generate.main(["--out", str(folder), "--size", "tiny", "--formats", "kitti,kitti360", "--workers", "1"])
    return folder


def read(out: Path, name: str) -> City:
    reader = {"kitti": kitti, "kitti360": kitti360}[name]
    ((world, drives),) = generate.plan_sequences(name, "tiny", 0)
    planned = {drive.sequence: (world, drive) for drive in drives}
    return City(out / name, reader.read_sequences(out / name), planned, RayCaster(world.mesh))


@pytest.fixture(scope="module")
def odometry(out) -> City:
    return read(out, "kitti")


@pytest.fixture(scope="module")
def suburb(out) -> City:
    return read(out, "kitti360")


@pytest.fixture(scope="module", params=["odometry", "suburb"])
def city(request) -> City:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def small() -> list[tuple[World, list[LoopDrive]]]:
    """The small city's sequences of KITTI's; nothing is rendered."""
    return generate.plan_sequences("kitti", "small", 0)


def poses_of(world: World, drive: LoopDrive, rig: np.ndarray | None = None) -> np.ndarray:
    """(N, 4, 4) planned map_T_ego of a drive's frames, but for the jitter of their times."""
    times = drive.start + (np.arange(round(drive.seconds / drive.frame_seconds)) * drive.frame_seconds * 1e6)
    return recording.map_poses(world, drive, times.astype(np.int64), write_kitti.RIG)


# The files


def test_sequences_are_whole_and_numbered_as_published(odometry, suburb):
    assert [s.name for s in odometry.sequences] == ["00", "01", "08"]
    for sequence in odometry.sequences:
        assert [scan.frame_id for scan in sequence.scans] == list(range(FRAMES))
    assert [s.name for s in suburb.sequences] == ["0000", "0002", "0010"]
    for sequence in suburb.sequences:
        ids = np.array([scan.frame_id for scan in sequence.scans])
        # As published: some frames have no pose, the first among them, and every frame has a scan.
        assert ids[0] == 1
        assert 0.85 < len(ids) / FRAMES < 0.99
        assert np.diff(ids).max() > 3
        assert sequence.scans_without_pose == FRAMES - len(ids)
    for city in (odometry, suburb):
        check_files(city.sequences)
        assert all(scan.image is not None for sequence in city.sequences for scan in sequence.scans)


def test_the_marker_names_districts_and_loops(city):
    marker = json.loads((city.root / generate.MARKER).read_text())
    assert "built-in city" in marker["what"]
    assert sorted(marker["sequences"].values()) == ["test", "train", "val"]
    for name, district in marker["sequences"].items():
        world, drive = city.planned[name]
        assert drive.district == district
        assert {world.graph.streets[leg.street].district for leg in drive.legs} == {district}
    for sequence in city.sequences:
        told = next(v for name, v in marker["loops"].items() if sequence.name in name)
        counted = loops.count_loops(np.stack([scan.map_T_lidar for scan in sequence.scans]))
        assert told == counted
        assert counted["frames"] == len(sequence.scans)
        assert counted["same"] + counted["lane"] + counted["reverse"] >= 20


def test_a_finished_city_is_kept(out, city, capsys):
    name = city.root.name
    generate.main(["--out", str(out), "--size", "tiny", "--formats", name])
    assert "already there" in capsys.readouterr().out


def test_times_are_those_of_a_drive(city):
    for sequence in city.sequences:
        _, drive = city.drive(sequence)
        times, ids = np.array([(scan.time, scan.frame_id) for scan in sequence.scans]).T
        np.testing.assert_allclose(np.diff(times), np.diff(ids) * drive.frame_seconds, atol=0.002)
        speed = np.linalg.norm(np.diff([s.map_T_lidar[:3, 3] for s in sequence.scans], axis=0), axis=1)
        speed /= np.diff(times)
        assert 4 < np.median(speed) < 11
        assert speed.max() < 12


# The scans


def test_scans_are_those_of_a_64_beam_lidar(city):
    sequence = city.sequences[0]
    points = np.concatenate([kitti.read_points(scan.path) for scan in sequence.scans[::30]])
    x, y, z, reflectance = points.T.astype(np.float64)
    elevation = np.degrees(np.arctan2(z, np.hypot(x, y)))
    assert -25.0 < elevation.min() < -23.0
    assert 0.5 < elevation.max() < 2.2
    assert 0 <= reflectance.min() < 0.1
    assert 0.3 < reflectance.max() <= np.float32(0.99)
    assert np.hypot(x, y).max() > 40
    near = (np.hypot(x, y) < 8) & (np.abs(y) < 2)
    assert abs(np.median(z[near]) + 1.73) < 0.08  # the road below the sensor
    most = KITTI_SIZES["tiny"].lidar_azimuths * 64
    assert all(0.5 * most < scan.path.stat().st_size / 16 < most for scan in sequence.scans)
    # Rounded to 0.1°, a level scan shows its beams: all of them, the lower half in steps of 0.5°.
    assert len(write_kitti.BEAMS) == 64
    assert np.all(np.diff(write_kitti.BEAMS) > 0.3)


def test_the_car_drives_where_x_points_to(city):
    for sequence in city.sequences:
        for scan, following in zip(sequence.scans[::7], sequence.scans[1::7], strict=False):
            step = np.linalg.inv(scan.map_T_lidar) @ following.map_T_lidar
            assert step[0, 3] > 0.3
            assert abs(step[1, 3]) < 0.5 * step[0, 3]
            assert abs(step[2, 3]) < 0.15 * step[0, 3]


def on_the_town(town: RayCaster, points: np.ndarray, map_T_lidar: np.ndarray) -> float:
    """The share of points (N, 3) above the ground where a ray from the LiDAR meets the town, to 15 cm.

    By the points on the ground one pose is as good as another.
    """
    ends = points[points[:, 2] > -1.2] @ map_T_lidar[:3, :3].T
    distance = np.linalg.norm(ends, axis=1)
    origin = np.broadcast_to(map_T_lidar[:3, 3] - np.append(town.mesh.centre, 0.0), ends.shape)
    rays = (ends / distance[:, None]).astype(np.float32)
    hits = town.cast(origin.astype(np.float32), rays)
    return float((np.abs(hits.distance - distance) < 0.15).mean())


def test_points_lie_on_the_town_by_the_poses_of_odometry(odometry):
    """Calibration, poses and scans together; the map is the first frame's LiDAR."""
    right, wrong = [], []
    for sequence in odometry.sequences:
        world, drive = odometry.drive(sequence)
        rig = recording.log_rig(drive, "tiny", 0, write_kitti.LAYOUT)
        first = write_kitti.sweep_times(drive, rig, 0)[0]
        start = recording.map_poses(world, drive, first, write_kitti.RIG) @ rig.ego_T_lidar
        for scan in sequence.scans[5::24]:
            points = kitti.read_points(scan.path)[:, :3].astype(np.float64)
            right.append(on_the_town(odometry.town, points, start @ scan.map_T_lidar))
            inverse = np.linalg.inv(scan.map_T_lidar)
            wrong.append(on_the_town(odometry.town, points, start @ inverse))
    assert np.mean(right) > 0.6  # the rest is on cars and people
    assert np.mean(wrong) < 0.3


def compensated(scan: Scan) -> np.ndarray:
    points = kitti.read_points(scan.path).astype(np.float64)
    return kitti360.compensate_motion(points, scan.sweep_motion)[:, :3]


def test_points_lie_on_the_town_once_the_motion_is_taken_out(suburb):
    """KITTI-360's scans are as the turning LiDAR measured them, and its map is the town's."""
    shares = []
    for scan in [scan for sequence in suburb.sequences for scan in sequence.scans[5::24]]:
        points = kitti.read_points(scan.path)[:, :3].astype(np.float64)
        back = kitti360.compensate_motion(points, np.linalg.inv(scan.sweep_motion))
        shares.append(
            [on_the_town(suburb.town, p, scan.map_T_lidar) for p in (compensated(scan), points, back)]
        )
    straight, raw, wrong = np.mean(shares, axis=0)
    assert straight > 0.6  # the rest is on cars and people
    assert raw < straight - 0.1
    assert wrong < raw


# The camera


def test_images_look_as_the_calibration_says(odometry, suburb):
    for city, size, view in ((odometry, (138, 42), 81.4), (suburb, (156, 42), 103.7)):
        for sequence in city.sequences:
            scan = sequence.scans[70]
            image = cv2.imread(str(scan.image.path))
            assert image.shape == (size[1], size[0], 3)
            assert (scan.image.width, scan.image.height) == size
            angle = 2 * np.degrees(np.arctan(size[0] / 2 / scan.image.intrinsics[0, 0]))
            assert angle == pytest.approx(view, abs=1.5)
            assert image.std() > 15


def test_points_are_seen_in_the_image_at_their_depth(city):
    """The town's depth along the ray of a projected point is the point's, but for those who move."""
    agreed = []
    for sequence in city.sequences:
        world, drive = city.drive(sequence)
        layout = WRITERS[city.root.name].LAYOUT
        rig = recording.log_rig(drive, "tiny", 0, layout)
        times = np.concatenate([recording.timestamps(drive, s, rig, 0) for s in drive.scenes])
        for scan in sequence.scans[9::40]:
            points = kitti.read_points(scan.path).astype(np.float64)
            if city.root.name == "kitti360":
                points = kitti360.compensate_motion(points, scan.sweep_motion)
            in_camera = points[:, :3] @ scan.image.camera_T_lidar[:3, :3].T + scan.image.camera_T_lidar[:3, 3]
            pixel = in_camera @ scan.image.intrinsics.T
            pixel = pixel[:, :2] / pixel[:, 2:]
            inside = (in_camera[:, 2] > 0.5) & (pixel > 0).all(1)
            inside &= (pixel < [scan.image.width, scan.image.height]).all(1)
            assert inside.sum() > 300
            rays = np.concatenate([pixel[inside], np.ones((inside.sum(), 1))], axis=1)
            rays = rays @ np.linalg.inv(rig.cameras[0].intrinsics).T
            pose = recording.map_poses(world, drive, times[scan.frame_id, 1], layout.rig)
            map_T_camera = pose @ rig.cameras[0].ego_T_camera
            length = np.linalg.norm(rays, axis=1)
            directions = (rays / length[:, None]) @ map_T_camera[:3, :3].T
            origin = map_T_camera[:3, 3] - np.append(world.centre, 0.0)
            hits = city.town.cast(
                np.broadcast_to(origin, directions.shape).astype(np.float32), directions.astype(np.float32)
            )
            agreed.append(np.abs(hits.distance / length - in_camera[inside, 2]) < 0.3)
    assert np.concatenate(agreed).mean() > 0.88


def test_kitti360_has_four_cameras_with_times_and_images_of_every_frame(suburb):
    for _, drive in suburb.planned.values():
        for channel in write_kitti360.RIG.cameras:
            folder = suburb.root / "data_2d_raw" / drive.sequence / channel
            fisheye = channel in kitti360_cameras.FISHEYES
            images = sorted((folder / ("data_rgb" if fisheye else "data_rect")).iterdir())
            assert [path.name for path in images] == [f"{k:010d}.png" for k in range(FRAMES)]
            shape = cv2.imread(str(images[70])).shape
            assert shape == ((80, 80, 3) if fisheye else (42, 156, 3))
            times = np.array(
                (folder / "timestamps.txt").read_text().replace(" ", "T").split(), "datetime64[ns]"
            )
            assert len(times) == FRAMES
            step = np.diff(times) / np.timedelta64(1, "s")
            np.testing.assert_allclose(step, drive.frame_seconds, atol=0.004)


def test_fisheyes_are_black_beyond_the_rim_of_the_lens_alone(suburb):
    for name in kitti360_cameras.FISHEYES:
        camera = kitti360_cameras.read_fisheye(suburb.root, name)
        assert camera.size == (80, 80)
        pixels = np.stack(np.meshgrid(np.arange(80.0), np.arange(80.0)), -1)
        rays, reached = kitti360_cameras.unproject(camera, pixels)
        lit = reached & (rays[..., 2] >= np.cos(np.radians(98.5)))
        for sequence in suburb.sequences:
            file = kitti360_cameras.fisheye_file(suburb.root, sequence.name, name, 71)
            image = cv2.imread(str(file))
            np.testing.assert_array_equal(image.any(-1), lit)
            assert image[lit].std() > 15


def test_the_calibration_of_fisheyes_gives_the_rays_that_were_cast(suburb):
    """Through the middles of the pixels, in the LiDAR's frame."""
    _, drive = next(iter(suburb.planned.values()))
    rig = recording.log_rig(drive, "tiny", 0, write_kitti360.LAYOUT)
    for name in kitti360_cameras.FISHEYES:
        cast = rig.camera(name)
        camera = kitti360_cameras.read_fisheye(suburb.root, name)
        pixels = np.stack(np.meshgrid(np.arange(80.0), np.arange(80.0)), -1).reshape(-1, 2)[cast.seen]
        rays, reached = kitti360_cameras.unproject(camera, pixels)
        assert reached.all()
        by_file = rays @ camera.lidar_T_camera[:3, :3].T
        np.testing.assert_allclose(by_file, cast.rays() @ rig.ego_T_lidar[:3, :3], atol=1e-6)
        lidar_T_camera = np.linalg.inv(rig.ego_T_lidar) @ cast.ego_T_camera
        np.testing.assert_allclose(camera.lidar_T_camera, lidar_T_camera, atol=1e-8)


def test_points_are_seen_in_the_fisheyes_at_their_distance(suburb):
    """By what is on disk alone: the town stands as far away along the ray of a point's pixel as the point
    does, but for those who move and what is hidden from the camera.
    """
    agreed = []
    for name in kitti360_cameras.FISHEYES:
        camera = kitti360_cameras.read_fisheye(suburb.root, name)
        for scan in [scan for sequence in suburb.sequences for scan in sequence.scans[9::40]]:
            local = (compensated(scan) - camera.lidar_T_camera[:3, 3]) @ camera.lidar_T_camera[:3, :3]
            metres = np.linalg.norm(local, axis=1)
            pixels, valid = kitti360_cameras.project(camera, local)
            valid &= local[:, 2] > np.cos(np.radians(95)) * metres  # whole pixels within the rim
            image = cv2.imread(
                str(kitti360_cameras.fisheye_file(suburb.root, scan.sequence, name, scan.frame_id))
            )
            column, row = np.round(pixels[valid]).astype(int).T
            assert image[row, column].any(-1).all()
            rays, _ = kitti360_cameras.unproject(camera, pixels[valid])
            map_T_camera = scan.map_T_lidar @ camera.lidar_T_camera
            origin = map_T_camera[:3, 3] - np.append(suburb.town.mesh.centre, 0.0)
            directions = (rays @ map_T_camera[:3, :3].T).astype(np.float32)
            hits = suburb.town.cast(np.broadcast_to(origin, rays.shape).astype(np.float32), directions)
            agreed.append(np.abs(hits.distance - metres[valid]) < 0.3)
    assert len(np.concatenate(agreed)) > 20000
    assert np.concatenate(agreed).mean() > 0.88


def test_kitti360_has_a_rectification_and_two_ways_to_a_pose_that_agree(suburb):
    others = kitti360.read_sequences(suburb.root, pose_source="cam0_to_world")
    for sequence, other in zip(suburb.sequences, others, strict=True):
        for scan, same in zip(sequence.scans, other.scans, strict=True):
            np.testing.assert_allclose(scan.map_T_lidar, same.map_T_lidar, atol=1e-7)
    lines = (suburb.root / "calibration" / "perspective.txt").read_text().splitlines()
    rectification = next(line for line in lines if line.startswith("R_rect_00:")).split()[1:]
    turned = np.array(rectification, float).reshape(3, 3)
    assert 0.2 < np.degrees(np.arccos((np.trace(turned) - 1) / 2)) < 1.0


# The drives


def a_line(y: float, backwards: bool = False) -> np.ndarray:
    """(80, 4, 4) poses along x, 1 m apart."""
    poses = np.tile(np.eye(4), (80, 1, 1))
    poses[:, 0, 3], poses[:, 1, 3] = np.arange(80), y
    if backwards:
        poses = poses[::-1].copy()
        poses[:, :2, :2] = -np.eye(2)
    return poses


def test_kinds_of_loops_are_told_apart():
    far = a_line(500.0)
    path = np.concatenate([a_line(0.0), far, a_line(0.9), a_line(-3.0), a_line(4.5), a_line(2.7, True)])
    kinds = loops.find_loops(path)
    assert set(kinds[:160]) == {""}
    assert set(kinds[160:240]) == {"same"}
    # 3.0 m from the first line and 3.9 m from the second.
    assert set(kinds[240:320]) == {"lane"}
    # 3.6 m from the second line, which is the nearest that is not one of the last 50 frames.
    assert set(kinds[320:400]) == {"lane"}
    # Nearest is the line at 4.5, but only its frames that are more than 50 before: else it is the one at 0.9.
    assert set(kinds[400:]) == {"reverse"}
    lifted = path.copy()
    lifted[160:, 2, 3] = 4.1  # a bridge
    assert set(loops.find_loops(lifted)[160:240]) == {""}


def test_a_loop_is_more_than_fifty_frames_back():
    poses = np.tile(np.eye(4), (120, 1, 1))
    kinds = loops.find_loops(poses)  # a car that stands
    assert set(kinds[:51]) == {""}
    assert set(kinds[51:]) == {"same"}


def test_the_small_city_has_loops_of_every_kind(small):
    counts: dict[str, dict[str, int]] = {}
    for world, drives in small:
        for drive in drives:
            counted = loops.count_loops(poses_of(world, drive))
            if drive.district != "train":
                assert min(counted.values()) >= 40, drive.sequence
            total = counts.setdefault(drive.district, dict.fromkeys(counted, 0))
            for kind, number in counted.items():
                total[kind] += number
    assert {district: total["frames"] for district, total in counts.items()} == {
        district: plan.keyframes for district, plan in KITTI_SIZES["small"].districts.items()
    }
    assert min(counts["test"].values()) >= 300
    assert min(counts["train"].values()) >= 200


def test_the_small_city_is_driven_across_many_blocks(small):
    """A place is to be told from places that a scan of ±80 m does not show."""
    for world, drives in small:
        for drive in drives:
            xy = poses_of(world, drive)[:, :2, 3]
            apart = pdist(xy)
            least_span, least_streets = (300, 12) if drive.district == "test" else (200, 8)
            assert apart.max() > least_span, drive.sequence
            assert len({leg.street for leg in drive.legs}) >= least_streets, drive.sequence
            if drive.district == "test":
                assert (apart < 80).mean() < 0.5, drive.sequence


def test_walks_have_no_dead_ends():
    """Of a ladder whose rungs are streets, all but one rung left out: what dangles is left out too."""
    nodes = [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (1, 1), (2, 1)]
    pairs = [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (0, 4), (1, 5)]
    streets = [Street(a, b, "residential", 8.0, 2.0, 1, "train") for a, b in pairs]
    graph = StreetGraph(100.0 * np.array(nodes, float), streets)
    kept = loops._without_dead_ends(graph, set(range(len(pairs))))
    assert {pairs[number] for number in kept} == {(0, 1), (4, 5), (0, 4), (1, 5)}


def test_drives_keep_to_the_road_and_turn_nowhere_on_the_spot(small):
    for world, drives in small:
        room = world.road.buffer(-0.94)
        shapely.prepare(room)
        for drive in drives:
            poses = poses_of(world, drive)
            assert shapely.contains_xy(room, *poses[:, :2, 3].T).all(), drive.sequence
            step = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
            assert 0.6 < step.min() < step.max() < 2.7
            assert 1.7 < step.mean() < 2.3
            turn = np.einsum("nij,nij->n", poses[1:, :3, :3], poses[:-1, :3, :3])
            assert np.degrees(np.arccos(np.clip((turn - 1) / 2, -1, 1))).max() < 20


def test_cars_are_parked_beside_the_drives_and_touch_nothing(small):
    ((world, drives),) = small
    posts = shapely.points([thing.xy for thing in (*world.furniture.poles, *world.furniture.trees)])
    for drive in drives[3:5]:
        own = recording.instruments(world, drive, "small", 0, write_kitti.LAYOUT)
        path = shapely.LineString(poses_of(world, drive)[:, :2, 3])
        near = [car for car in own.cars if path.distance(shapely.Point(car.xy)) < 20]
        assert len(near) >= 3
        for car in near:
            body = shapely.box(-car.size[0] / 2, -car.size[1] / 2, car.size[0] / 2, car.size[1] / 2)
            body = shapely.affinity.rotate(body, car.yaw, (0, 0), use_radians=True)
            body = shapely.affinity.translate(body, *car.xy)
            assert body.distance(path) > 0.95  # half the width of the vehicle
            assert shapely.distance(posts, body).min() > 0.2


def test_districts_do_not_share_a_street(small):
    """No scan of one district shows what a scan of another does: they are 250 m apart."""
    for world, drives in small:
        paths = {
            district: shapely.union_all(
                [
                    shapely.LineString(poses_of(world, drive)[:, :2, 3])
                    for drive in drives
                    if drive.district == district
                ]
            )
            for district in ("train", "val", "test")
        }
        assert paths["train"].distance(paths["test"]) > 250
        assert paths["train"].distance(paths["val"]) > 250
        assert paths["test"].distance(paths["val"]) > 250


@pytest.mark.parametrize("name", ["kitti", "kitti360"])
def test_names_go_on_after_the_published_ones(name):
    numbers = WRITERS[name].Numbers()
    given = [numbers(district) for district in ("train", "val", "test") for _ in range(8)]
    assert len(set(given)) == 24
    assert given[0] == {"kitti": "00", "kitti360": "2013_05_28_drive_0002_sync"}[name]


@pytest.mark.slow
def test_same_bytes_for_any_number_of_workers(out, tmp_path):
    generate.main(["--out", str(tmp_path), "--size", "tiny", "--formats", "kitti360", "--workers", "2"])
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 2 * 3 * FRAMES
    for file in files:
        assert (tmp_path / file).read_bytes() == (out / file).read_bytes(), file
