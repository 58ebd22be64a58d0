"""Curved streets of the built-in city, what follows them, and the drives that visit places again."""

import numpy as np
import pytest
import shapely

from data_prep.city import generate
from data_prep.city.curves import Curve
from data_prep.city.drives import KEYFRAME_SECONDS, REVISITS, Log
from data_prep.city.map_expansion import expansion
from data_prep.city.sizes import SIZES
from data_prep.city.world import World


@pytest.fixture(scope="module")
def towns() -> list[tuple[World, list[Log]]]:
    """The two towns of the small city and their drives; nothing is rendered."""
    return list(generate.plan("small", 0))


def driven(log: Log, step: float = 0.1) -> np.ndarray:
    """(N, 3) poses of a log, from its first keyframe to its last."""
    keyframes = sum(scene.keyframes for scene in log.scenes)
    return log.trajectory.pose(np.arange(0, (keyframes - 1) * KEYFRAME_SECONDS, step))


def arc(radius: float, angle: float, count: int) -> np.ndarray:
    """(count, 2) points on a circle around (0, radius), from (0, 0) to the left."""
    turn = np.linspace(0, angle, count)
    return radius * np.stack([np.sin(turn), 1 - np.cos(turn)], 1)


def test_a_curve_through_an_arc_is_the_arc():
    radius, angle = 60.0, 1.2
    curve = Curve(arc(radius, angle, 25))
    assert curve.length == pytest.approx(radius * angle, rel=1e-3)
    stations = np.linspace(0, curve.length, 50)
    points, directions = curve.at(stations)
    centre = np.array([0.0, radius])
    # Between points 3 m apart the chord is up to 9 / (8 · 60) m inside the circle.
    np.testing.assert_allclose(np.linalg.norm(points - centre, axis=1), radius, atol=0.02)
    heading = np.arctan2(directions[:, 1], directions[:, 0])
    np.testing.assert_allclose(heading, stations / radius, atol=2e-3)
    left = curve.shifted(0, curve.length, 5.0)
    np.testing.assert_allclose(np.linalg.norm(left - centre, axis=1), radius - 5, atol=0.02)
    strip = curve.strip(0, curve.length, -4.0, 4.0)
    assert strip.is_valid
    assert strip.area == pytest.approx(angle / 2 * ((radius + 4) ** 2 - (radius - 4) ** 2), rel=2e-3)


def test_streets_meet_at_nodes_only(towns):
    for world, _ in towns:
        graph = world.graph
        lines = [graph.line(street) for street in graph.streets]
        first, second = shapely.STRtree(lines).query(lines, "intersects")
        met = 0
        for i, j in zip(first, second, strict=True):
            if i < j:
                shared = lines[i].intersection(lines[j])
                assert shared.length == 0
                for point in shapely.get_coordinates(shared):
                    assert np.hypot(*(graph.nodes - point).T).min() < 1e-6
                    met += 1
        assert met > 100


def test_many_streets_are_bent_and_some_straight_and_none_too_sharply(towns):
    for world, _ in towns:
        graph = world.graph
        sagitta, radius = [], []
        for number, street in enumerate(graph.streets):
            curve = graph.curve(number)
            np.testing.assert_allclose(curve.points[[0, -1]], graph.nodes[[street.a, street.b]])
            chord = shapely.LineString(curve.points[[0, -1]])
            sagitta.append(shapely.distance(chord, shapely.points(curve.points)).max())
            s = np.arange(0, curve.length, 3.0)
            directions = curve.at(s)[1]
            turn = np.abs(np.diff(np.unwrap(np.arctan2(directions[:, 1], directions[:, 0]))))
            radius.append(3.0 / max(turn.max(), 1e-9))
        sagitta = np.array(sagitta)
        assert (sagitta > 1.5).mean() > 0.3
        assert (sagitta < 0.5).mean() > 0.1
        assert sagitta.max() > 6
        assert min(radius) > 25  # the kerb of the widest street still bends outwards


def test_widths_reach_from_lanes_to_avenues(towns):
    widths = np.array([street.width for world, _ in towns for street in world.graph.streets])
    assert widths.min() < 7
    assert widths.max() > 15
    assert (widths < 7).mean() > 0.05


def test_blocks_are_valid_and_keep_clear_of_the_road(towns):
    for world, _ in towns:
        blocks = [block.polygon for block in world.blocks]
        assert len(blocks) > 40
        assert all(block.is_valid for block in blocks)
        union = shapely.union_all(blocks)
        assert union.area == pytest.approx(sum(block.area for block in blocks), rel=1e-9)
        assert union.intersection(world.road).area < 1e-6
        assert union.intersection(world.sidewalk).area < 1e-6


def test_markings_lie_on_the_road_and_follow_it(towns):
    for world, _ in towns:
        shapely.prepare(world.road)
        area = np.array([marking.polygon.area for marking in world.markings])
        outside = np.array([marking.polygon.difference(world.road).area for marking in world.markings])
        assert all(marking.polygon.is_valid for marking in world.markings)
        assert outside.sum() < 0.002 * area.sum()


def test_lane_arcs_are_smooth_and_run_along_their_lanes(towns):
    """The arcs, drawn here by the definition of a circle, join up and stay in the middle of the lane."""
    world = towns[0][0]
    content = expansion(world)
    nodes = {node["token"]: (node["x"], node["y"]) for node in content["node"]}
    polygons = {record["token"]: record["exterior_node_tokens"] for record in content["polygon"]}
    bent = 0
    for lane in content["lane"]:
        shape = shapely.Polygon([nodes[t] for t in polygons[lane["polygon_token"]]])
        assert shape.is_valid
        here = None
        for path in content["arcline_path_3"][lane["token"]]:
            x, y, yaw = path["start_pose"]
            if here is not None:
                np.testing.assert_allclose([x, y], here[:2], atol=1e-6)
                assert abs(np.angle(np.exp(1j * (yaw - here[2])))) < 0.03
            for kind, length in zip(path["shape"], path["segment_length"], strict=True):
                if length == 0:
                    continue
                steps = np.linspace(0, length, 9)[1:]
                if kind == "S":
                    line = np.array([x, y]) + steps[:, None] * (np.cos(yaw), np.sin(yaw))
                else:
                    radius = path["radius"] * (1 if kind == "L" else -1)
                    turn = yaw + steps / radius
                    centre = np.array([x - radius * np.sin(yaw), y + radius * np.cos(yaw)])
                    line = centre + radius * np.stack([np.sin(turn), -np.cos(turn)], 1)
                    yaw = turn[-1]
                    bent += 1
                x, y = line[-1]
                assert shapely.contains_xy(shape.buffer(0.01), line[:, 0], line[:, 1]).all()
                # In the middle: half a lane from both borders.
                assert shapely.distance(shape.exterior, shapely.points(line[3:5])).min() > 1.2
            np.testing.assert_allclose(
                [x, y, np.cos(yaw)], [*path["end_pose"][:2], np.cos(path["end_pose"][2])], atol=1e-6
            )
            here = path["end_pose"]
    assert bent > 500


def test_revisits_pass_the_same_places_as_their_kind_says(towns):
    """On another date, in the same or the opposite direction, or beside the lane that was driven first."""
    seen = set()
    for world, logs in towns:
        by_number = {log.number: log for log in logs}
        lines = [world.graph.line(street) for street in world.graph.streets]
        tree = shapely.STRtree(lines)
        wide = np.array([street.lanes > 1 for street in world.graph.streets])
        for log in logs:
            assert (log.kind == "first") == (log.revisits is None)
            if log.revisits is None:
                continue
            seen.add(log.kind)
            original = by_number[log.revisits]
            assert original.kind == "first"
            assert original.district == log.district
            assert original.date != log.date
            assert (log.lane == original.lane) == (log.kind != "lane")
            before, now = driven(original, 0.2), driven(log, 0.2)
            gap = now[:, None, :2] - before[None, :, :2]
            distance = np.hypot(*np.moveaxis(gap, -1, 0))
            nearest = distance.argmin(1)
            met = distance.min(1) < 12
            assert met.mean() > 0.6
            turn = np.abs(np.angle(np.exp(1j * (now[met, 2] - before[nearest[met], 2]))))
            same_way = (turn < np.radians(30)).mean()
            assert same_way < 0.35 if log.kind == "opposite" else same_way > 0.85
            # On streets with two lanes, away from the ends of the drive.
            street = tree.nearest(shapely.points(now[met, :2]))
            across = distance.min(1)[met][wide[street] & (turn < np.radians(10))]
            if log.kind == "lane":
                assert len(across) > 20
                assert 2.0 < np.median(across) < 5.0
            elif log.kind == "same" and len(across):
                assert np.median(across) < 0.6
    assert seen == set(REVISITS)


def test_in_a_town_of_repeated_drives_every_drive_comes_again_in_every_way():
    size = SIZES["tiny_revisited"]
    ((_, logs),) = generate.plan("tiny_revisited", 0)
    firsts = [log for log in logs if log.kind == "first"]
    for first in firsts:
        again = [log for log in logs if log.revisits == first.number]
        assert [log.kind for log in again] == list(size.repeats)
        assert first.date not in {log.date for log in again}
        for log in again:
            before, now = (it.trajectory.pose(np.arange(0, it.seconds, 0.2))[:, :2] for it in (first, log))
            nearest = np.linalg.norm(now[:, None] - before[None], axis=-1).min(1)
            if log.kind != "opposite":
                assert (nearest < 12).all()
            elif log.district == "train":
                # A way back begins at a junction, up to one street beyond where the first drive ended.
                assert (nearest < 12).mean() > 0.3
    assert len(firsts) == len(size.districts)
    for district, planned in size.districts.items():
        own = [log for log in logs if log.district == district]
        assert all(len(log.scenes) == 1 for log in own)
        assert sum(scene.keyframes for log in own for scene in log.scenes) == planned.keyframes
    assert len({scene.name for log in logs for scene in log.scenes}) == len(logs)
