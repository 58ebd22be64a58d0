"""The built-in city: what is rendered, mapped and written is one and the same world, and stays so."""

import hashlib
import json
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from configs import common, maplocnet
from data_prep.city import generate, recording, sensors
from data_prep.city.drives import KEYFRAME_SECONDS, Log
from data_prep.city.light import draw_light
from data_prep.city.mesh import Material, MeshBuilder, flat, wall_quad
from data_prep.city.official_scenes import official_scenes
from data_prep.city.shading import Shader
from data_prep.city.sizes import SIZES
from data_prep.city.streets import Street, StreetGraph
from data_prep.city.surroundings import open_ground
from data_prep.city.world import World, build_world
from data_prep.city.write_osm import write_osm
from data_prep.errors import InputError
from data_prep.geodesy import ORIGINS
from data_prep.geodesy import SIZES as MAP_SIZES

PATCH_REACH = 133.0  # m from the ego to the farthest corner of a map patch


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    """The tiny city, written by one process."""
    out = tmp_path_factory.mktemp("city")
    generate.main(["--out", str(out), "--size", "tiny", "--workers", "1"])
    return out


@pytest.fixture(scope="module")
def tables(city) -> dict[str, list[dict]]:
    return {
        path.stem: json.loads(path.read_text())
        for path in (city / "nuscenes" / "v1.0-trainval").glob("*.json")
    }


@pytest.fixture(scope="module")
def towns() -> list[tuple[World, list[Log]]]:
    """The two towns of the small city and their drives; nothing is rendered."""
    return list(generate.plan("small", 0))


def driven(log: Log, step: float = 0.1) -> np.ndarray:
    """(N, 3) poses of a log, from its first keyframe to its last."""
    keyframes = sum(scene.keyframes for scene in log.scenes)
    return log.trajectory.pose(np.arange(0, (keyframes - 1) * KEYFRAME_SECONDS, step))


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# The files


def test_same_seed_same_bytes_for_any_number_of_workers(city, tmp_path):
    generate.main(["--out", str(tmp_path), "--size", "tiny", "--workers", "2"])
    first, second = digests(city), digests(tmp_path)
    assert len(first) > 24 * 7
    assert first == second


def test_another_seed_is_another_city(city, tmp_path):
    generate.main(["--out", str(tmp_path), "--size", "tiny", "--seed", "1", "--formats", "osm"])
    name = "osm/boston-seaport.osm"
    assert (tmp_path / name).read_bytes() != (city / name).read_bytes()


def test_markers_say_that_it_is_not_the_real_dataset(city):
    for name in ("nuscenes", "osm"):
        marker = json.loads((city / name / generate.MARKER).read_text())
        assert "built-in city" in marker["what"]
        assert marker["settings"]["size"] == "tiny"
        assert marker["settings"]["seed"] == 0


def test_a_finished_city_is_kept_and_another_one_refused(city, capsys):
    before = digests(city)
    generate.main(["--out", str(city), "--size", "tiny"])
    assert capsys.readouterr().out.count("already there") == 2
    with pytest.raises(InputError, match=r"seed: 0 there, 3 asked"):
        generate.main(["--out", str(city), "--size", "tiny", "--seed", "3"])
    assert digests(city) == before


def test_a_folder_that_the_city_did_not_make_is_left_alone(tmp_path):
    (tmp_path / "nuscenes").mkdir()
    (tmp_path / "nuscenes" / "real.txt").write_text("recorded")
    with pytest.raises(InputError, match=r"was not made by the city"):
        generate.main(["--out", str(tmp_path), "--size", "tiny"])
    assert [path.name for path in tmp_path.rglob("*")] == ["nuscenes", "real.txt"]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_run_leaves_nothing_that_looks_whole(tmp_path, monkeypatch, interruption):
    def stop(*_):
        raise interruption

    monkeypatch.setattr(generate, "record_scene", stop)
    with pytest.raises(type(interruption) if isinstance(interruption, OSError) else interruption):
        generate.main(["--out", str(tmp_path), "--size", "tiny", "--workers", "1"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_terminated_run_stops_at_once_and_leaves_nothing(tmp_path, command_environment):
    command = [
        sys.executable,
        "-m",
        "data_prep",
        "city",
        "--out",
        tmp_path,
        "--size",
        "large",
        "--workers",
        "2",
    ]
    process = subprocess.Popen(command, env=command_environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not any(tmp_path.rglob("*.jpg")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    started = any(tmp_path.rglob("*.jpg"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 130
    assert started  # else it was not rendering that was stopped
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_are_cleared(tmp_path):
    (tmp_path / generate.UNFINISHED / "nuscenes").mkdir(parents=True)
    generate.main(["--out", str(tmp_path), "--size", "tiny", "--formats", "osm"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["osm"]


def test_unknown_format_is_a_usage_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        generate.main(["--out", str(tmp_path), "--size", "tiny", "--formats", "nuscenes,kitty"])
    assert "unknown format kitty" in capsys.readouterr().err


def test_a_size_that_a_format_has_not_is_a_usage_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        generate.main(["--out", str(tmp_path), "--size", "revisited", "--formats", "nuscenes,kitti"])
    assert "kitti has no size 'revisited'; it has large, medium, small, tiny" in capsys.readouterr().err


# The nuScenes tables


def test_links_and_references_hold(tables):
    tokens = {name: {record["token"]: record for record in records} for name, records in tables.items()}
    for name, records in tables.items():
        assert len(tokens[name]) == len(records), f"{name} repeats a token"
        for record in records:
            for key, value in record.items():
                table = key.removesuffix("_token").removeprefix("first_").removeprefix("last_")
                if key.endswith("_token") and name == "instance" and table == "annotation":
                    table = "sample_annotation"
                if key.endswith("_token"):
                    assert value in tokens[table], f"{name}.{key} dangles"
                if key in ("prev", "next") and value:
                    back = {"prev": "next", "next": "prev"}[key]
                    assert tokens[name][value][back] == record["token"]
    for scene in tables["scene"]:
        token, count = scene["first_sample_token"], 0
        while token:
            count, last, token = count + 1, token, tokens["sample"][token]["next"]
        assert (count, last) == (scene["nbr_samples"], scene["last_sample_token"])
    for instance in tables["instance"]:
        token, count = instance["first_annotation_token"], 0
        while token:
            count, token = count + 1, tokens["sample_annotation"][token]["next"]
        assert count == instance["nbr_annotations"]


def test_every_sensor_has_a_time_and_a_pose_of_its_own(tables):
    poses = {pose["token"]: pose for pose in tables["ego_pose"]}
    by_sample: dict[str, list[dict]] = {}
    for data in tables["sample_data"]:
        by_sample.setdefault(data["sample_token"], []).append(data)
    stamps = {sample["token"]: sample["timestamp"] for sample in tables["sample"]}
    for sample, records in by_sample.items():
        times = [record["timestamp"] for record in records]
        assert len(set(times)) == 7
        assert max(abs(time - stamps[sample]) for time in times) < 50_000
        assert len({tuple(poses[record["ego_pose_token"]]["translation"]) for record in records}) == 7
        for record in records:
            assert poses[record["ego_pose_token"]]["timestamp"] == record["timestamp"]


def test_images_show_something_and_have_the_stated_size(city, tables):
    images = [data for data in tables["sample_data"] if data["fileformat"] == "jpg"]
    means = []
    for data in images:
        image = cv2.imread(str(city / "nuscenes" / data["filename"]))
        assert image.shape == (data["height"], data["width"], 3)
        assert image.std() > 12
        assert ((image > 250) | (image < 5)).mean() < 0.3  # neither burnt nor black
        means.append(image.mean((0, 1)))
    assert len(np.unique(np.round(means, 3), axis=0)) == len(images)


def test_point_clouds_stand_on_the_ground(city, tables):
    calibration = {record["token"]: record for record in tables["calibrated_sensor"]}
    poses = {record["token"]: record for record in tables["ego_pose"]}
    world = build_world("boston-seaport", SIZES["tiny"], 0)
    bed = world.river.buffer(1.0)
    shapely.prepare(bed)
    for data in tables["sample_data"]:
        if data["fileformat"] != "pcd":
            continue
        points = np.fromfile(city / "nuscenes" / data["filename"], np.float32).reshape(-1, 5)
        xyz = points[:, :3]
        for record in (calibration[data["calibrated_sensor_token"]], poses[data["ego_pose_token"]]):
            rotation = Rotation.from_quat(record["rotation"], scalar_first=True)
            xyz = rotation.apply(xyz) + record["translation"]
        height = xyz[:, 2] - world.terrain.height(xyz[:, :2])
        assert height[~shapely.contains_xy(bed, xyz[:, :2])].min() > -0.3
        assert ((np.abs(height) < 0.05) | (np.abs(height - 0.15) < 0.05)).mean() > 0.3  # road and sidewalk
        assert (height > 2).mean() > 0.02  # walls, trees, poles
        assert set(np.unique(points[:, 4])) <= set(range(32))
        assert np.linalg.norm(points[:, :3], axis=1).max() <= sensors.LIDAR_RANGE + 0.2


def test_official_names_give_the_district_split(tables, towns):
    assert [len(official_scenes(name)) for name in ("train", "val", "test")] == [700, 150, 150]
    for scene in tables["scene"]:
        district = scene["description"].split(", ")[1].split()[0]
        assert scene["name"] in official_scenes(district)
    names = [scene.name for _, logs in towns for log in logs for scene in log.scenes]
    assert len(set(names)) == len(names)


# The world


def test_small_has_the_frames_that_the_demo_needs(towns):
    counts = dict.fromkeys(("train", "val", "test"), 0)
    kinds = set()
    for _, logs in towns:
        for log in logs:
            counts[log.district] += sum(scene.keyframes for scene in log.scenes)
            kinds.add(log.kind)
    assert counts["train"] >= 1800
    assert counts["val"] >= 150
    assert counts["test"] >= 300
    assert kinds == {"first", "same", "opposite", "lane"}


def test_districts_never_share_what_a_map_patch_shows(towns):
    for _, logs in towns:
        xy = {
            d: np.concatenate([driven(log)[:, :2] for log in logs if log.district == d])
            for d in ("train", "val", "test")
        }
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            assert cKDTree(xy[one]).query(xy[other])[0].min() > 2 * PATCH_REACH


def test_drives_stay_on_the_road_and_on_their_side_of_it(towns):
    for world, logs in towns:
        free = world.road.buffer(-0.9)  # room for the vehicle's width
        shapely.prepare(free)
        for log in logs:
            poses = driven(log)
            assert shapely.contains_xy(free, poses[:, :2]).all()
            step = np.hypot(*np.diff(poses[:, :2], axis=0).T)
            assert 0.5 < step.mean() / 0.1 * KEYFRAME_SECONDS / 4.5 < 1.5  # about 4.5 m between keyframes
            assert np.abs(np.diff(poses[:, 2])).max() < 0.25  # no jumps of the heading
            heading = np.arctan2(*np.diff(poses[:, :2], axis=0).T[::-1])
            middle = (poses[1:, 2] + poses[:-1, 2]) / 2
            assert np.abs(np.angle(np.exp(1j * (heading - middle)))).max() < 0.03
        # In the middle of a street the centre line lies left of a vehicle that drives on the right.
        lines = [world.graph.line(street) for street in world.graph.streets]
        tree = shapely.STRtree(lines)
        sides = []
        for log in logs:
            for x, y, yaw in driven(log, 1.0):
                line = lines[tree.nearest(shapely.Point(x, y))]
                along = line.project(shapely.Point(x, y))
                if 30 < along < line.length - 30:
                    nearest = np.array(line.interpolate(along).coords[0]) - (x, y)
                    sides.append(nearest @ (-np.sin(yaw), np.cos(yaw)) > 0)
        assert len(sides) > 100
        assert np.all(np.array(sides) != world.drives_on_left)


def test_rays_from_above_meet_what_the_map_says(towns):
    """The mesh that the sensors see is the map: road on the drivable area, roofs on the footprints."""
    for world, _ in towns:
        rng = np.random.default_rng(3)
        low, high = world.graph.nodes.min(0) - 20, world.graph.nodes.max(0) + 20
        xy = rng.uniform(low, high, (40_000, 2))
        # Points within 10 cm of an edge may fall to either side.
        edges = [world.road.boundary, *(building.footprint.boundary for building in world.buildings)]
        near = shapely.STRtree(edges).query(shapely.points(xy), predicate="dwithin", distance=0.1)[0]
        xy = np.delete(xy, np.unique(near), axis=0)
        caster = sensors.RayCaster(world.mesh)
        start = np.append(xy - world.centre, np.full((len(xy), 1), 200.0), 1).astype(np.float32)
        down = np.broadcast_to(np.array([0, 0, -1], np.float32), start.shape).copy()
        hits = caster.cast(start, down)
        z = 200 - hits.distance
        height = z - world.terrain.height(xy)
        material = world.mesh.material[hits.triangle]
        assert (hits.triangle >= 0).all()
        on_building = np.zeros(len(xy), bool)
        pairs = shapely.STRtree([b.footprint for b in world.buildings]).query(shapely.points(xy), "within")
        on_building[pairs[0]] = True
        assert (height[on_building] > 2.5).all()
        for point, number in pairs.T:
            building = world.buildings[number]
            assert z[point] > building.floor + building.height - 0.01
        on_road = shapely.contains_xy(world.road, xy)
        ground = (height < 0.05) & (height > -0.01)
        paved = np.isin(material, [Material.ASPHALT, Material.MARKING])
        assert on_road.mean() > 0.03
        assert (paved & ground)[on_road].mean() > 0.85  # the rest is under trees, lamps and signals
        assert not (paved & ~on_road).any()


def test_streets_are_irregular(towns):
    """Blocks of many sizes, streets of several widths, T-junctions and crossings, few right angles."""
    for world, _ in towns:
        graph = world.graph
        degrees = np.array([len(incident) for incident in graph.incident])
        assert (degrees == 3).sum() > 10
        assert (degrees >= 4).sum() > 2
        assert (degrees > 1).all()  # no dead ends: a drive can always go on
        angles = []
        for node, incident in enumerate(graph.incident):
            away = np.array([graph.direction(number, node) for number in incident])
            cosine = (away @ away.T)[np.triu_indices(len(away), 1)]
            angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
        angles = np.concatenate(angles)
        assert angles.min() > 40
        crossing = angles[angles < 140]
        assert crossing.std() > 6
        areas = np.array([block.polygon.area for block in world.blocks])
        assert areas.max() > 3 * np.median(areas) or areas.std() / areas.mean() > 0.3
        assert len({street.kind for street in graph.streets}) == 4
        assert len({round(street.width, 1) for street in graph.streets}) > 10
        assert any(building.footprint.interiors for building in world.buildings)


def test_junction_setback_is_where_the_kerbs_meet():
    corner = np.array([[0.0, 0.0], [100.0, 0.0], [0.0, 100.0], [-100.0, 0.0]])
    wide = Street(0, 1, "primary", 12.0, 3.0, 2, "train")
    narrow = Street(0, 2, "residential", 8.0, 2.0, 1, "train")
    graph = StreetGraph(corner, [wide, narrow, Street(0, 3, "primary", 12.0, 3.0, 2, "train")])
    assert graph.setback(0, 0) == pytest.approx(4.0)  # half of the narrow street
    assert graph.setback(1, 0) == pytest.approx(6.0)  # half of the wide one


def test_map_expansion_is_the_rendered_road(city):
    world = build_world("boston-seaport", SIZES["tiny"], 0)
    expansion = json.loads((city / "nuscenes" / "maps" / "expansion" / "boston-seaport.json").read_text())
    assert expansion["version"] == "1.3"
    assert expansion["canvas_edge"] == [2979.5, 2118.1]
    node = {record["token"]: (record["x"], record["y"]) for record in expansion["node"]}
    polygon = {record["token"]: record for record in expansion["polygon"]}
    shapes = [
        shapely.Polygon(
            [node[t] for t in polygon[token]["exterior_node_tokens"]],
            [[node[t] for t in hole["node_tokens"]] for hole in polygon[token]["holes"]],
        )
        for token in expansion["drivable_area"][0]["polygon_tokens"]
    ]
    drivable = shapely.union_all(shapes)
    assert drivable.symmetric_difference(world.road).area < 1e-6
    assert any(record["holes"] for record in expansion["polygon"])
    lanes = shapely.union_all(
        [
            shapely.Polygon([node[t] for t in polygon[lane["polygon_token"]]["exterior_node_tokens"]])
            for lane in expansion["lane"]
        ]
    )
    assert lanes.difference(drivable.buffer(0.3)).area < 0.01 * lanes.area


def test_mask_is_road_and_sidewalk(city, tables):
    image = cv2.imread(str(city / "nuscenes" / tables["map"][0]["filename"]), cv2.IMREAD_UNCHANGED)
    assert image.shape == (21181, 29795)
    world = build_world("boston-seaport", SIZES["tiny"], 0)
    surface = world.road.union(world.sidewalk)
    rng = np.random.default_rng(0)
    xy = rng.uniform(world.graph.nodes.min(0) - 30, world.graph.nodes.max(0) + 30, (20_000, 2))
    xy = xy[shapely.distance(surface.boundary, shapely.points(xy)) > 0.15]
    row, column = (21181 - xy[:, 1] * 10).astype(int), (xy[:, 0] * 10).astype(int)
    np.testing.assert_array_equal(image[row, column] == 255, shapely.contains_xy(surface, xy))


def test_osm_brings_every_footprint_back(towns, tmp_path):
    """Buildings of the OSM file, projected by the formula written out here, are those that are rendered."""
    for world, _ in towns:
        write_osm(tmp_path / f"{world.location}.osm", world)
        root = ElementTree.parse(tmp_path / f"{world.location}.osm").getroot()
        assert root.attrib["version"] == "0.6"
        ids = [int(element.attrib["id"]) for element in root if "id" in element.attrib]
        assert min(ids) > 0
        assert len(set(ids)) == len(ids)
        latlon = {
            e.attrib["id"]: (float(e.attrib["lat"]), float(e.attrib["lon"])) for e in root.iterfind("node")
        }
        assert all(len(e.attrib["lat"].partition(".")[2]) >= 7 for e in root.iterfind("node"))
        bounds = root.find("bounds").attrib
        values = np.array(list(latlon.values()))
        assert values[:, 0].min() >= float(bounds["minlat"]) - 1e-3
        lat0, lon0 = np.radians(ORIGINS[world.location])

        def to_map(refs: list[str], lat0=lat0, lon0=lon0, latlon=latlon) -> np.ndarray:
            lat, lon = np.radians([latlon[ref] for ref in refs]).T
            mercator = np.log(np.tan(np.pi / 4 + lat / 2)) - np.log(np.tan(np.pi / 4 + lat0 / 2))
            return 6378137.0 * np.cos(lat0) * np.stack([lon - lon0, mercator], 1)

        ways = {
            way.attrib["id"]: [nd.attrib["ref"] for nd in way.iterfind("nd")] for way in root.iterfind("way")
        }
        tags = {
            e.attrib["id"]: {t.attrib["k"]: t.attrib["v"] for t in e.iterfind("tag")}
            for e in root
            if e.tag in ("way", "relation", "node")
        }
        shapes = [shapely.Polygon(to_map(refs)) for way, refs in ways.items() if "building" in tags[way]]
        split = 0
        for relation in root.iterfind("relation"):
            assert tags[relation.attrib["id"]]["type"] == "multipolygon"
            lines = {"outer": [], "inner": []}
            for member in relation.iterfind("member"):
                lines[member.attrib["role"]].append(to_map(ways[member.attrib["ref"]]))
            split += len(lines["outer"]) > 1
            outer = shapely.get_parts(shapely.polygonize([shapely.LineString(xy) for xy in lines["outer"]]))
            assert len(outer) == 1
            shapes.append(shapely.Polygon(outer[0].exterior, lines["inner"]))
        assert split >= 1
        assert len(shapes) == len(world.buildings)
        tree = shapely.STRtree(shapes)
        for building in world.buildings:
            shape = shapes[tree.nearest(building.footprint.representative_point())]
            assert shape.symmetric_difference(building.footprint).area < 0.001 * building.footprint.length
        assert any(t.get("layer") == "-1" and "highway" in t for t in tags.values())


# The sensors


def test_cameras_look_where_nuscenes_cameras_look():
    rig = sensors.make_rig((160, 90), np.random.default_rng(0))
    yaw = {"CAM_FRONT": 0, "CAM_FRONT_LEFT": 55, "CAM_BACK_LEFT": 110, "CAM_BACK": 180}
    for camera in rig.cameras:
        camera_R_ego = camera.ego_T_camera[:3, :3].T
        if camera.channel in yaw:
            forward = np.radians(yaw[camera.channel])
            assert camera_R_ego[2, :2] @ (np.cos(forward), np.sin(forward)) > np.cos(np.radians(2))
        assert camera_R_ego[1, 2] < -0.99  # image rows run downwards
        focal = 80.9 if camera.channel == "CAM_BACK" else 126.6
        assert camera.intrinsics[0, 0] == pytest.approx(focal, rel=0.02)
        u, v, depth = camera.intrinsics @ camera_R_ego @ camera.rays()[45 * 160 + 7]
        np.testing.assert_allclose([u / depth, v / depth], [7.5, 45.5], atol=1e-3)


def test_intrinsics_scale_with_the_image():
    large = sensors.make_rig((1600, 900), np.random.default_rng(0)).cameras[0]
    small = sensors.make_rig((160, 90), np.random.default_rng(0)).cameras[0]
    np.testing.assert_allclose(small.intrinsics[:2], large.intrinsics[:2] / 10)


def test_shadows_fall_away_from_the_sun():
    """A wall between a point and the sun darkens it, and a turned sun does not."""
    builder = MeshBuilder(np.zeros(2))
    builder.add(flat(shapely.box(-50, -50, 50, 50), 0.0), Material.ASPHALT, (0.2, 0.2, 0.2))
    builder.add(wall_quad(np.array([0.0, -20]), np.array([0.0, 20]), 0, 10), Material.ROOF, (0.5, 0.5, 0.5))
    light = draw_light("boston-seaport", "2018-06-01", 1527867000, np.random.default_rng(1))
    sunny = {"sun_colour": np.full(3, 2, np.float32), "ambient": np.full(3, 0.5, np.float32)}
    brightness = []
    for side in (1.0, -1.0):
        sun = np.array([side, 0, 1.0], np.float32) / np.sqrt(np.float32(2))
        caster = sensors.RayCaster(builder.build())
        shader = Shader(light.__class__(**{**vars(light), **sunny, "sun": sun}), 0.005, open_ground())
        origins = np.array([[-5, 0, 5], [5, 0, 5]], np.float32)
        down = np.array([[0, 0, -1], [0, 0, -1]], np.float32)
        brightness.append(shader.shade(caster, origins, down, caster.cast(origins, down)).mean(1))
    assert brightness[0][0] < 0.6 * brightness[0][1]  # the sun at +x: the wall shades -x
    assert brightness[1][1] < 0.6 * brightness[1][0]


def test_parked_cars_differ_by_date_and_leave_the_lane_free(towns):
    world, logs = towns[0]
    drives = [log for log in logs if log.district == "train"][:2]
    cars = [recording.instruments(world, log, "small", 0).cars for log in drives]
    assert all(len(parked) > 50 for parked in cars)
    assert {car.xy for car in cars[0]} != {car.xy for car in cars[1]}
    for log, parked in zip(drives, cars, strict=True):
        lane = shapely.LineString(driven(log)[:, :2]).buffer(0.9)
        shapely.prepare(lane)
        for car in parked:
            cos, sin = np.cos(car.yaw), np.sin(car.yaw)
            corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2 * np.array(car.size[:2])
            corners = corners @ np.array([[cos, sin], [-sin, cos]]) + car.xy
            assert not lane.intersects(shapely.Polygon(corners))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["revisited", "medium", "large"])
def test_larger_cities_fit_their_maps_and_the_official_names(size):
    for world, logs in generate.plan(size, 0):
        canvas = np.array(MAP_SIZES[world.location])
        poses = np.concatenate([driven(log)[:, :2] for log in logs])
        assert (poses.min(0) > PATCH_REACH).all()
        assert (poses.max(0) < canvas - PATCH_REACH).all()
        assert shapely.contains_xy(world.road.buffer(-0.9), poses).all()
        for log in logs:
            for scene in log.scenes:
                assert scene.name in official_scenes(log.district)


def test_configs_name_the_folder_of_this_city():
    """Else a new city would be trained on from the folder of the old one."""
    assert common.CITY_VERSION == generate.CITY_VERSION
    assert f"-v{generate.CITY_VERSION}/" in maplocnet.get_config("cpu").data.root
