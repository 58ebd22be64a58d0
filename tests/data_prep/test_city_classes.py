"""Everything has its class and instance: rays cast at the plan meet what the plan says."""

import numpy as np
import pytest
import shapely

from data_prep.city import classes, generate, recording, sensors
from data_prep.city.classes import Label, instance_id, number_of
from data_prep.city.drives import Log
from data_prep.city.mesh import Material, MeshBuilder, flat
from data_prep.city.world import World


@pytest.fixture(scope="module")
def town() -> tuple[World, list[Log]]:
    return next(generate.plan("tiny", 0))


@pytest.fixture(scope="module")
def scene(town) -> tuple[recording.Instruments, recording.Stage, tuple[np.ndarray, np.ndarray]]:
    """The stage of a drive with leaves on the trees, and the corners of the part of the town in it."""
    world, logs = town
    log = next(log for log in logs if recording.log_light(log, 0).season != "winter")
    own = recording.instruments(world, log, "tiny", 0)
    stage = recording.scene_stage(world, log, log.scenes[0], own)
    return own, stage, recording.scene_extent(log, log.scenes[0])


def look(caster, world: World, start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Semantic class and instance of what rays from `start` to `end`, (N, 3) map frame, meet first."""
    offset = np.append(world.centre, 0.0)
    start, end = np.broadcast_arrays(start - offset, end - offset)
    directions = end - start
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    hits = caster.cast(np.ascontiguousarray(start, np.float32), np.ascontiguousarray(directions, np.float32))
    assert (hits.triangle >= 0).all()
    return caster.mesh.semantic[hits.triangle], caster.mesh.instance[hits.triangle]


def above(world: World, xy: np.ndarray, height: float) -> np.ndarray:
    return np.column_stack([xy, world.terrain.height(xy) + height])


def test_the_ground_is_what_the_plan_says(town):
    """Straight down from 30 cm: no pole, car or crown is in the way, except where one stands."""
    world, _ = town
    caster = sensors.RayCaster(world.mesh)
    rng = np.random.default_rng(0)
    low, high = world.graph.nodes.min(0), world.graph.nodes.max(0)
    xy = rng.uniform(low, high, (6000, 2))
    edges = [world.road.boundary, world.sidewalk.boundary, *[b.polygon.boundary for b in world.blocks]]
    edges += [building.footprint.boundary for building in world.buildings]
    xy = np.delete(xy, shapely.STRtree(edges).query(shapely.points(xy), "dwithin", distance=0.1)[0], axis=0)
    semantic, instance = look(caster, world, above(world, xy, 0.3), above(world, xy, -1.0))
    for area, label in ((world.road, Label.ROAD), (world.sidewalk, Label.SIDEWALK)):
        inside = shapely.contains_xy(area, xy)
        assert inside.sum() > 300
        assert np.mean(semantic[inside] == label) > 0.99
        assert set(instance[inside & (semantic == label)]) == {instance_id(label, 0)}
    built = shapely.union_all([building.footprint for building in world.buildings])
    for surface, label in (
        (Material.GRASS, Label.TERRAIN),
        (Material.GRAVEL, Label.GROUND),
        (Material.PAVING, Label.PARKING),
    ):
        own = [block.polygon for block in world.blocks if block.surface == surface]
        inside = shapely.contains_xy(shapely.union_all(own).difference(built), xy)
        if inside.sum() > 50:
            assert np.mean(semantic[inside] == label) > 0.97  # the rest are trees


def test_every_building_is_one_instance(town):
    world, _ = town
    caster = sensors.RayCaster(world.mesh)
    tops = np.array([b.footprint.representative_point().coords[0] for b in world.buildings])
    start, end = above(world, tops, 150.0), above(world, tops, 0.0)
    semantic, instance = look(caster, world, start, end)
    assert np.all(semantic == Label.BUILDING)
    np.testing.assert_array_equal(number_of(instance), np.arange(len(world.buildings)))
    walls = world.mesh.material == Material.FACADE
    assert np.all(world.mesh.semantic[walls] == Label.BUILDING)
    assert len(np.unique(world.mesh.instance[walls])) == len(world.buildings)


def test_poles_lamps_signals_signs_and_trees_are_seen_with_their_class(town):
    world, _ = town
    caster = sensors.RayCaster(world.mesh)
    expected = {
        "street_lamp": {Label.POLE, Label.LAMP},
        "utility_pole": {Label.POLE},
        "traffic_signals": {Label.POLE, Label.TRAFFIC_LIGHT},
        "stop": {Label.SMALLPOLE, Label.TRAFFIC_SIGN},
        "flagpole": {Label.POLE, Label.UNKNOWN_OBJECT},
    }
    kinds = [pole.kind for pole in world.furniture.poles]
    for kind in set(kinds):
        numbers = [n for n, other in enumerate(kinds) if other == kind]
        for number in numbers[:20]:
            own = [instance_id(label, number) for label in expected[kind]]
            assert set(own) <= set(world.mesh.instance[np.isin(world.mesh.instance, own)])
        foot = np.array([world.furniture.poles[n].xy for n in numbers])
        # From 1.5 m beside the pole at its middle: nothing stands nearer.
        side = np.array([[1.5, 0.0], [-1.5, 0.0], [0.0, 1.5], [0.0, -1.5]])
        seen = np.zeros(len(numbers), bool)
        for step in side:
            semantic, instance = look(caster, world, above(world, foot + step, 1.2), above(world, foot, 1.2))
            seen |= np.isin(semantic, list(expected[kind])) & (number_of(instance) == numbers)
        assert seen.mean() > 0.95, kind
    trees = np.array([tree.xy for tree in world.furniture.trees])
    semantic, instance = look(caster, world, above(world, trees, 60.0), above(world, trees, 0.0))
    own = number_of(instance) == np.arange(len(trees))
    assert np.all(semantic[own] == Label.VEGETATION)
    assert own.mean() > 0.7  # the others stand under a bigger one
    assert np.mean(semantic == Label.VEGETATION) > 0.97


def test_cars_and_people_are_instances_of_their_own(town, scene):
    world, _ = town
    own, stage, (lower, upper) = scene
    view = stage.at(1.0, np.append(own.actors[0].pose(1.0)[:2], 2.0))
    xy = np.array([car.xy for car in own.cars])
    near = np.flatnonzero(np.all((lower < xy) & (xy < upper), axis=1))
    xy = xy[near]
    assert len(near) > 15
    semantic, instance = look(view, world, above(world, xy, 2.2), above(world, xy, 0.0))
    assert np.mean(instance == instance_id(Label.CAR, near)) > 0.97  # some stand under trees
    ids = [instance_id(mover.label, mover.number) for mover in stage.movers]
    assert len(set(ids)) == len(ids)
    parked = {instance_id(Label.CAR, n) for n in range(len(own.cars))}
    assert not parked & set(ids)
    seen = 0
    for mover in stage.movers:
        if mover.actor.exists(1.0):
            place = stage.stands(mover, 1.0)[:3, 3]
            semantic, instance = look(
                view, world, place[None] + [0, 0, mover.actor.size[2] + 0.3], place[None]
            )
            seen += int(instance[0] == instance_id(mover.label, mover.number))
            assert semantic[0] in (mover.label, Label.VEGETATION, Label.POLE, Label.LAMP)
    assert seen > 3


def test_nothing_is_without_a_class(town, scene):
    for mesh in (town[0].mesh, scene[1].mesh):
        assert not np.any(mesh.semantic == Label.UNLABELED)
        np.testing.assert_array_equal(mesh.semantic, mesh.instance // classes.INSTANCES_PER_CLASS)
        assert set(np.unique(mesh.semantic)) <= {int(label) for label in Label}
    assert set(np.unique(scene[1].mesh.semantic)) >= {
        Label.ROAD, Label.SIDEWALK, Label.BUILDING, Label.POLE, Label.VEGETATION, Label.CAR, Label.PERSON,
    }  # fmt: skip


def test_the_road_is_under_the_vehicle(town, scene):
    world, logs = town
    for log in logs[:2]:
        poses = log.trajectory.pose(np.arange(0, 3, 0.5))
        caster = sensors.RayCaster(world.mesh)
        start = above(world, poses[:, :2], 0.5)
        semantic, _ = look(caster, world, start, start - [0, 0, 1.0])
        assert np.all(semantic == Label.ROAD)


def test_what_may_be_anything_must_be_given_a_class():
    builder = MeshBuilder(np.zeros(2))
    square = flat(shapely.box(0, 0, 1, 1), 0.0)
    with pytest.raises(ValueError, match="PLAIN may be anything: they need a label"):
        builder.add(square, Material.PLAIN, (1, 1, 1))
    with pytest.raises(ValueError, match=r"from 0 to 99999, found 100000"):
        builder.add(square, Material.ROOF, (1, 1, 1), number=100_000)


def test_names_and_colours_are_kitti_360s():
    """Ids and names as its published label table has them."""
    table = {
        7: "road", 8: "sidewalk", 9: "parking", 11: "building", 17: "pole", 19: "traffic light",
        20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 26: "car", 27: "truck",
        28: "bus", 37: "smallpole", 38: "lamp", 44: "unknown object", 6: "ground", 0: "unlabeled",
    }  # fmt: skip
    assert {int(label): classes.name_of(label) for label in Label} == table
    colours = classes.class_colours(np.array([[7, 23], [26, 24]]))
    assert colours.shape == (2, 2, 3)
    assert colours[0, 0].tolist() == [128, 64, 128]
    neighbours = classes.instance_colours(np.array([-1, *range(1_100_000, 1_100_050)]))
    assert neighbours[0].tolist() == [0, 0, 0]
    assert len(np.unique(neighbours, axis=0)) == 51
