"""The Argoverse layout of the built-in city: read back, it is the world that was rendered."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from scipy.spatial.transform import Rotation

from data_prep import geodesy, maploc
from data_prep.city import generate, write_argoverse
from data_prep.city.sizes import CANVASES, SIZES
from data_prep.city.world import World, _street_plan, build_world
from data_prep.raw import argoverse, osm
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.ops.grid import Grid2D

CITY = "PIT"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The tiny city in this format, written by one process."""
    out = tmp_path_factory.mktemp("city")
    generate.main(["--out", str(out), "--size", "tiny", "--formats", "argoverse", "--workers", "1"])
    return out / "argoverse"


@pytest.fixture(scope="module")
def world() -> World:
    return build_world(CITY, SIZES["tiny"], 0)


@pytest.fixture(scope="module")
def recordings(root) -> argoverse.Recordings:
    return argoverse.read_frames(root)


def test_reader_finds_every_keyframe_in_its_split(root, recordings):
    planned = SIZES["tiny"].districts
    split = [recordings.split_of_log[frame.scene] for frame in recordings.frames]
    assert {name: split.count(name) for name in planned} == {n: d.keyframes for n, d in planned.items()}
    assert recordings.sweeps_without_images == 0
    assert argoverse.check_files(recordings.frames) > 0
    folders = {path.name for path in (root / "argoverse-tracking").iterdir()}
    assert folders <= set(argoverse.SPLIT_OF_FOLDER)


def test_marker_says_that_it_is_no_argoverse(root):
    marker = json.loads((root / argoverse.CITY_MARKER).read_text())
    assert "No figure from it is a figure on Argoverse" in marker["what"]


def test_images_have_the_shape_of_the_ring_cameras(recordings):
    for camera in recordings.frames[0].cameras:
        image = cv2.imread(str(camera.path))
        assert image.shape == (camera.height, camera.width, 3) == (100, 160, 3)
        # The field of view is that of the real cameras: 69°.
        assert 2 * np.degrees(np.arctan(80 / camera.intrinsics[0, 0])) == pytest.approx(69.2, abs=1)
        assert image.std() > 15


def test_rig_is_that_of_the_real_vehicle(recordings):
    """Optical axes level within 2°, at the headings of the seven cameras, where the car has them."""
    yaw = {"front": (0, 45), "side": (100, 100), "rear": (150, 150)}
    for camera in recordings.frames[0].cameras:
        _, place, side = camera.channel.split("_")
        expected = 0 if side == "center" else yaw[place][1] * (1 if side == "left" else -1)
        axis = camera.ego_T_camera[:3, 2]
        assert np.degrees(np.arctan2(axis[1], axis[0])) == pytest.approx(expected, abs=2)
        assert abs(np.degrees(np.arcsin(axis[2]))) < 2
        np.testing.assert_allclose(camera.ego_T_camera[:3, 3], [1.4, 0, 1.36], atol=0.4)


def test_sweeps_lie_in_the_ego_frame_and_on_the_ground(recordings, world):
    """Most returns below the cameras are of the ground or of kerbs, wherever the terrain has it."""
    for frame in recordings.frames[::5]:
        points = argoverse.read_sweep(frame.lidar.path)
        assert len(points) > 1000
        near = points[(np.linalg.norm(points[:, :2], axis=1) < 12) & (points[:, 2] < 0)]
        pose = frame.map_T_ego
        on_map = near[:, :3] @ pose[:3, :3].T + pose[:3, 3]
        height = on_map[:, 2] - world.terrain.height(on_map[:, :2])
        assert np.median(np.abs(height)) < 0.05
        assert pose[2, 3] - world.terrain.height(pose[:2, 3]) == pytest.approx(0.33, abs=0.02)


def test_annotations_hold_the_returns_of_what_they_name(root, recordings):
    """Boxes are in the ego frame: they are full of returns, and there are none for the test split."""
    held, kinds, tracks = [], set(), {}
    for frame in recordings.frames:
        log = frame.lidar.path.parent.parent
        folder = log / "per_sweep_annotations_amodal"
        if recordings.split_of_log[frame.scene] == "test":
            assert not folder.exists()
            continue
        time = frame.lidar.path.stem.removeprefix("PC_")
        points = argoverse.read_sweep(frame.lidar.path)[:, :3].astype(np.float64)
        for label in json.loads((folder / f"tracked_object_labels_{time}.json").read_text()):
            assert label["timestamp"] == int(time)
            turn = Rotation.from_quat([label["rotation"][axis] for axis in "xyzw"])
            local = turn.inv().apply(points - [label["center"][axis] for axis in "xyz"])
            half = np.array([label["length"], label["width"], label["height"]]) / 2
            inside = (np.abs(local) < half + 0.1).all(axis=1).sum()
            # Far-away things have few returns, and noise may put those outside.
            held += [inside] if np.linalg.norm(list(label["center"].values())) < 25 else []
            kinds.add(label["label_class"])
            tracks.setdefault((frame.scene, label["track_label_uuid"]), []).append(label["label_class"])
    assert len(held) > 10
    assert np.mean(np.array(held) > 0) > 0.95
    assert "VEHICLE" in kinds
    assert kinds <= {"VEHICLE", "LARGE_VEHICLE", "BUS", "PEDESTRIAN"}
    # What is seen in several sweeps keeps its name and its class.
    assert max(map(len, tracks.values())) > 2
    assert all(len(set(classes)) == 1 for classes in tracks.values())


def test_vehicle_drives_on_the_drivable_area(root, recordings, world):
    area = argoverse.read_drivable_area(root, CITY)
    xy = np.array([frame.map_pose_ego[:2] for frame in recordings.frames])
    assert shapely.contains_xy(world.road, xy[:, 0], xy[:, 1]).all()
    lower, upper = np.floor(xy.min(axis=0)) - 60, np.ceil(xy.max(axis=0)) + 60
    grid = Grid2D((float(lower[0]), float(upper[0]), float(lower[1]), float(upper[1])), 0.5)
    drawn = area.draw(grid)
    # The raster is the road, but for cells that its edge runs through.
    points = np.random.default_rng(0).uniform(lower, upper, (20_000, 2))
    apart = shapely.distance(shapely.boundary(world.road), shapely.points(points)) > 0.8
    points = points[apart]
    row, column = np.floor((points - lower) / 0.5).astype(int).T
    inside = shapely.contains_xy(world.road, points[:, 0], points[:, 1])
    assert 0.05 < inside.mean() < 0.95
    np.testing.assert_array_equal(drawn[row, column], inside)


def test_streets_of_openstreetmap_lie_on_the_drivable_area(root):
    """Through UTM and WGS84 and back; shifted by 60 m they do not."""
    area = argoverse.read_drivable_area(root, CITY)
    x_min, x_max, y_min, y_max = area.extent()
    grid = Grid2D((x_min, x_max, y_min, y_max), 1.0)
    drawn = area.draw(grid)
    roads = [geodesy.wgs84_to_map(road, CITY) for road in osm.read_osm(root / "osm" / f"{CITY}.osm").roads]
    samples = np.concatenate(
        [shapely.get_coordinates(shapely.segmentize(shapely.LineString(road), 2.0)) for road in roads]
    )

    def inside(shift: float) -> float:
        cells = np.floor(samples + shift - grid.lower).astype(int)
        there = ((cells >= 0) & (cells < grid.shape)).all(axis=1)
        return float(drawn[tuple(cells[there].T)].sum() / len(samples))

    assert inside(0.0) > 0.97
    assert inside(60.0) < 0.4


@pytest.fixture(scope="module")
def prepared(root, tmp_path_factory) -> PreparedFolder:
    """The same converted for map localization."""
    out = tmp_path_factory.mktemp("prepared") / "maploc"
    source = ("--raw", str(root), "--dataset", "argoverse", "--osm", str(root / "osm"))
    maploc.main([*source, "--out", str(out), "--workers", "1"])
    return PreparedFolder(out)


def test_conversion_stores_seven_cameras_and_the_splits(prepared, recordings):
    manifest = prepared.manifest
    assert manifest["cameras"] == list(argoverse.RING_CAMERAS)
    assert manifest["source"]["dataset"] == "argoverse"
    assert manifest["source"]["built_in_city"] is True
    assert manifest["counts"]["sweeps_without_images"] == 0
    # Streets lie in the middle of the drivable area, not half a cell beside it.
    assert np.abs(manifest["alignment"][CITY]["similarity"][:2]).max() < 0.25
    assert {s: len(prepared.split("official", s)) for s in ("train", "val", "test")} == {
        name: district.keyframes for name, district in SIZES["tiny"].districts.items()
    }
    table = prepared.table("frames")
    assert len(table) == len(recordings.frames)
    record, frame = table.read(3, images=False), recordings.frames[3]
    assert (record["token"].decode(), record["location"].decode()) == (frame.token, CITY)
    np.testing.assert_array_equal(record["map_pose_ego"], frame.map_pose_ego)
    assert record["intrinsics"].shape == (7, 3, 3)
    assert record["ego_T_camera"].shape == (7, 4, 4)
    # Stored in a frame on the ground, as nuScenes' is: there the cameras are 1.69 m up, but for the slope.
    np.testing.assert_allclose(record["ego_T_camera"][:, 2, 3], 1.69, atol=0.15)


def test_conversion_draws_the_drivable_area_cell_by_cell(prepared, root):
    (record,) = (prepared.table("maps")[i] for i in range(len(prepared.table("maps"))))
    drivable = record["raster"][..., maploc.MAP_CHANNELS.index("drivable")]
    rows, columns = drivable.shape
    x, y = record["origin"]
    grid = Grid2D((x, x + rows / 2, y, y + columns / 2), 0.5)
    np.testing.assert_array_equal(drivable, argoverse.read_drivable_area(root, CITY).draw(grid))
    road = record["raster"][..., maploc.MAP_CHANNELS.index("road")]
    # Driven streets of OpenStreetMap are drawn on ground for vehicles.
    assert drivable[road > 0].mean() > 0.95


@pytest.mark.parametrize("location", write_argoverse.LOCATIONS)
def test_towns_fit_their_canvas(location):
    """Streets and a map patch around them, in the largest size."""
    graph, *_ = _street_plan(location, SIZES["large"], np.random.default_rng(0))
    assert (graph.nodes > 136).all()
    assert (graph.nodes < np.array(CANVASES[location]) - 136).all()
