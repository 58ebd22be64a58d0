"""Traffic and parked cars: who moves keeps to the lanes and sidewalks, clear of others, and is annotated."""

import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from data_prep.city import actors, generate, recording, sensors
from data_prep.city.classes import Label, instance_id
from data_prep.city.drives import KEYFRAME_SECONDS, Log
from data_prep.city.sizes import SIZES
from data_prep.city.world import World, build_world, location_rng

VEHICLES = ("car", "truck", "bus")


@pytest.fixture(scope="module")
def towns() -> list[tuple[World, list[Log]]]:
    """The two towns of the small city and their drives; nothing is rendered."""
    return list(generate.plan("small", 0))


@pytest.fixture(scope="module")
def drives(towns) -> list[tuple[World, Log, recording.Instruments]]:
    """Two drives of each town with their traffic."""
    return [
        (world, log, recording.instruments(world, log, "small", 0))
        for world, logs in towns
        for log in logs[:2]
    ]


def outline(xy, yaw, size, margin=0.0) -> shapely.Polygon:
    """The footprint of a body, by corners written out here."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * (np.array(size[:2]) / 2 - margin)
    return shapely.Polygon(corners @ np.array([[cos, sin], [-sin, cos]]) + xy)


def present(own: recording.Instruments, time: float) -> list[tuple[actors.Actor, np.ndarray]]:
    return [(actor, actor.pose(time)) for actor in own.actors if actor.exists(time)]


def length_of(log: Log) -> float:
    return sum(scene.keyframes for scene in log.scenes) * KEYFRAME_SECONDS


def test_nobody_ever_overlaps_anybody(drives):
    """Footprints of the recording vehicle, traffic, people and parked cars, at times off the grid."""
    looked_at = 0
    for _, log, own in drives:
        parked = [outline(car.xy, car.yaw, car.size) for car in own.cars]
        tree = shapely.STRtree(parked)
        for time in np.arange(0.07, length_of(log), 0.53):
            ego = log.trajectory.pose(time)
            bodies = [outline(ego[:2], ego[2], (4.2, 1.8))]
            for actor, pose in present(own, time):
                bodies.append(outline(pose[:2], pose[2], actor.size, margin=0.02))
                if actor.kind in VEHICLES:
                    assert len(tree.query(bodies[-1], predicate="intersects")) == 0, (log.number, time)
            pairs = shapely.STRtree(bodies).query(bodies, predicate="intersects")
            assert np.all(pairs[0] == pairs[1]), (log.number, time)
            looked_at += len(bodies) - 1
    assert looked_at > 5000


def test_rectangles_overlap_as_polygons_do():
    rng = np.random.default_rng(0)
    poses, others = (np.column_stack([rng.uniform(-4, 4, (400, 2)), rng.uniform(-4, 4, 400)]) for _ in "ab")
    sizes, other_sizes = rng.uniform(0.5, 6, (2, 400, 2))
    expected = [
        outline(a[:2], a[2], s).intersects(outline(b[:2], b[2], t))
        for a, s, b, t in zip(poses, sizes, others, other_sizes, strict=True)
    ]
    assert 0.2 < np.mean(expected) < 0.8
    np.testing.assert_array_equal(actors.rectangles_overlap(poses, sizes, others, other_sizes), expected)


def test_vehicles_drive_on_their_side_in_both_directions(drives):
    for world, log, own in drives:
        lines = [world.graph.line(street) for street in world.graph.streets]
        tree = shapely.STRtree(lines)
        own_side, along_ego = [], []
        for time in np.arange(0.0, length_of(log), 2.0):
            ego = log.trajectory.pose(time)
            for actor, (x, y, yaw, lift) in present(own, time):
                if actor.kind not in VEHICLES:
                    continue
                assert lift == 0
                assert shapely.contains_xy(world.road, x, y)
                along_ego.append(np.cos(yaw - ego[2]))
                line = lines[tree.nearest(shapely.Point(x, y))]
                station = line.project(shapely.Point(x, y))
                if 30 < station < line.length - 30:
                    middle = np.array(line.interpolate(station).coords[0]) - (x, y)
                    own_side.append((middle @ (-np.sin(yaw), np.cos(yaw)) > 0) != world.drives_on_left)
        assert len(own_side) > 50
        assert np.mean(own_side) > 0.97
        assert np.mean(np.array(along_ego) > 0.5) > 0.1
        assert np.mean(np.array(along_ego) < -0.5) > 0.1


def test_vehicles_move_as_vehicles_can_and_come_and_go_out_of_sight(drives):
    for _, log, own in drives:
        end = length_of(log)
        for actor in own.actors:
            step = np.hypot(*np.diff(actor.xy, axis=0).T) / np.diff(actor.time)
            assert step.max() < (12.0 if actor.kind in VEHICLES else 2.0)
            if actor.kind not in VEHICLES:
                continue
            heading = np.arctan2(*np.diff(actor.xy, axis=0).T[::-1])
            middle = (actor.yaw[1:] + actor.yaw[:-1]) / 2
            fast = step > 1.0
            assert np.abs(np.angle(np.exp(1j * (heading - middle))))[fast].max() < 0.25  # nobody slides
            for time in (actor.time[0], actor.time[-1]):
                if 0 < time < end:
                    ego = log.trajectory.pose(time)[:2]
                    assert np.hypot(*(actor.pose(time)[:2] - ego)) > actors.COME_AND_GO - 2


def test_people_walk_on_sidewalks_and_crossings(drives):
    for world, log, own in drives:
        # A painted crossing ends before the kerb, farthest where the corner is rounded.
        allowed = shapely.union_all([world.sidewalk, *[c.buffer(1.4) for c in world.crossings]])
        shapely.prepare(allowed)
        walkers = [actor for actor in own.actors if actor.kind in ("adult", "child")]
        assert len(walkers) >= 5
        on_road = 0
        for actor in walkers:
            assert shapely.contains_xy(allowed, actor.xy).all()
            lifted = ~shapely.contains_xy(world.road, actor.xy)
            np.testing.assert_array_equal(actor.lift > 0, lifted)
            on_road += np.any(~lifted)
        if log.number == 0:
            assert on_road > 0  # somebody crosses


def test_traffic_is_the_same_however_it_is_asked_for(drives):
    world, log, own = drives[0]
    again = actors.plan_actors(world, log, location_rng(0, log.location, 7, log.number))
    assert len(again) == len(own.actors)
    for one, other in zip(own.actors, again, strict=True):
        np.testing.assert_array_equal(one.xy, other.xy)
        assert one.kind == other.kind


def test_movers_do_not_fill_the_view(drives):
    """A handful is near at any time: enough to be seen, not so many that the town is hidden."""
    counts = []
    for _, log, own in drives:
        for time in np.arange(0.0, length_of(log), 2.0):
            ego = log.trajectory.pose(time)[:2]
            counts.append(sum(np.hypot(*(pose[:2] - ego)) < 50 for _, pose in present(own, time)))
    assert 3 < np.mean(counts) < 14


def test_cars_park_in_other_places_on_other_dates(towns):
    """Of the places taken on one date, hardly any is taken by the same car on another."""
    world, logs = towns[0]
    one, other = (recording.instruments(world, log, "small", 0).cars for log in (logs[0], logs[-1]))
    assert logs[0].date != logs[-1].date
    assert min(len(one), len(other)) > 50
    places = np.array([car.xy for car in other])
    same = [
        car
        for car in one
        for k in [int(np.argmin(np.hypot(*(places - car.xy).T)))]
        if np.hypot(*(places[k] - car.xy)) < 0.5 and np.allclose(other[k].colour, car.colour)
    ]
    assert len(same) < 0.05 * len(one)
    taken = np.array([np.hypot(*(places - car.xy).T).min() < 3.0 for car in one])
    assert taken.mean() < 0.8  # and many of the places themselves are free


# The annotations


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("city")
    generate.main(["--out", str(out), "--size", "tiny", "--formats", "nuscenes", "--workers", "1"])
    return out / "nuscenes"


@pytest.fixture(scope="module")
def tables(city) -> dict[str, list[dict]]:
    return {path.stem: json.loads(path.read_text()) for path in (city / "v1.0-trainval").glob("*.json")}


def test_annotations_name_what_nuscenes_names(tables):
    names = {record["token"]: record["name"] for name in ("category", "attribute") for record in tables[name]}
    kind = {record["token"]: names[record["category_token"]] for record in tables["instance"]}
    seen = {(kind[a["instance_token"]], names[a["attribute_tokens"][0]]) for a in tables["sample_annotation"]}
    assert {("vehicle.car", "vehicle.parked"), ("vehicle.car", "vehicle.moving")} <= seen
    assert any(category.startswith("human.pedestrian") for category, _ in seen)
    for category, attribute in seen:
        assert attribute.split(".")[0] == ("pedestrian" if category.startswith("human") else "vehicle")
    assert any(a["num_lidar_pts"] > 20 for a in tables["sample_annotation"])
    assert {a["visibility_token"] for a in tables["sample_annotation"]} > {"1", "4"}


def test_annotated_velocity_agrees_with_the_attribute(tables):
    """The positions of consecutive keyframes give the speed that the devkit computes."""
    times = {sample["token"]: sample["timestamp"] / 1e6 for sample in tables["sample"]}
    names = {record["token"]: record["name"] for record in tables["attribute"]}
    records = {record["token"]: record for record in tables["sample_annotation"]}
    moving = 0
    for record in records.values():
        if not record["next"]:
            continue
        after = records[record["next"]]
        seconds = times[after["sample_token"]] - times[record["sample_token"]]
        speed = np.hypot(*np.subtract(after["translation"], record["translation"])[:2]) / seconds
        attributes = [names[r["attribute_tokens"][0]] for r in (record, after)]
        if attributes == ["vehicle.parked"] * 2:
            assert speed == 0
        elif all(name.endswith("moving") for name in attributes) and seconds < 0.6:
            assert 0.1 < speed < 12
            moving += 1
    assert moving > 20


def test_boxes_hold_the_points_of_their_instance():
    """Points of the sweep on a body lie in its box; what is seen of it carries its class and instance."""
    world = build_world("boston-seaport", SIZES["tiny"], 0)
    log = next(generate.plan("tiny", 0))[1][0]
    own = recording.instruments(world, log, "tiny", 0)
    scene = log.scenes[0]
    stage = recording.scene_stage(world, log, scene, own)
    directions, rings = sensors.lidar_directions(400)
    held = 0
    for times in recording.timestamps(log, scene, own.rig, 0):
        time = float((times[0] - log.start) / 1e6)
        map_T_lidar = recording.map_poses(world, log, times[0], recording.NUSCENES.rig) @ own.rig.ego_T_lidar
        view = stage.at(time, map_T_lidar[:3, 3])
        rng = np.random.default_rng(0)
        points, semantic, instance = sensors.scan(view, map_T_lidar, directions, rings, rng)
        np.testing.assert_array_equal(semantic, instance // 100_000)
        for box in recording.find_boxes(stage, view, own.cars, time, map_T_lidar, instance):
            on_it = points[instance == box.instance, :3]
            assert len(on_it) == box.lidar_points
            if not len(on_it):
                continue
            body_T_lidar = np.linalg.inv(box.map_T_body) @ map_T_lidar
            local = on_it @ body_T_lidar[:3, :3].T + body_T_lidar[:3, 3]
            margin = 0.3 if box.kind in VEHICLES else 0.45  # wheels, bumpers, swinging legs, range noise
            assert np.all(np.abs(local[:, :2]) < np.array(box.size[:2]) / 2 + margin)
            assert np.all((local[:, 2] > -0.2) & (local[:, 2] < box.size[2] + 0.2))
            held += 1
    assert held > 10


def test_a_mover_is_where_it_is_at_the_time_of_the_exposure():
    """Two views of one stage, a second apart: rays at a car hit it where it is then, and not where it was."""
    world = build_world("boston-seaport", SIZES["tiny"], 0)
    log = next(generate.plan("tiny", 0))[1][0]
    own = recording.instruments(world, log, "tiny", 0)
    stage = recording.scene_stage(world, log, log.scenes[0], own)
    mover = next(
        m
        for m in stage.movers
        if m.label == Label.CAR and m.actor.exists(0.5) and m.actor.exists(1.5) and m.actor.speed(0.5) > 4
    )
    for time, other in ((0.5, 1.5), (1.5, 0.5)):
        places = [stage.stands(mover, t)[:3, 3] - np.append(world.centre, 0) for t in (time, other)]
        above = np.add(places, [0, 0, 20]).astype(np.float32)
        down = np.tile(np.array([[0, 0, -1]], np.float32), (2, 1))
        view = stage.at(time, stage.stands(mover, time)[:3, 3])
        hits = view.cast(above, down)
        expected = instance_id(mover.label, mover.number)
        assert stage.mesh.instance[hits.triangle[0]] == expected
        assert stage.mesh.instance[hits.triangle[1]] != expected
