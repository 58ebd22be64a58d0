"""Drives: routes that cover a district, revisits on other dates, and the vehicle's pose at any time."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.ndimage import minimum_filter1d

from data_prep.city.curves import left_of
from data_prep.city.official_scenes import official_scenes
from data_prep.city.sizes import CitySize
from data_prep.city.streets import Street, StreetGraph
from data_prep.city.sun import start_second
from data_prep.city.world import World, location_rng

KEYFRAME_SECONDS = 0.5
STEP = 0.25  # m between the points of a trajectory
MAX_SPEED = 10.6  # m/s
USUAL_SPEED = 8.0  # m/s, over a whole drive, with its bends
SIDEWAYS = 5.0  # m/s², the acceleration allowed in bends
SCENES_PER_LOG = 4
SCENES_PER_REVISIT = 2
REVISIT_SHARE = 0.25  # of a district's scenes
REVISITS = ("opposite", "same", "lane")  # in turn


@dataclass(frozen=True)
class Trajectory:
    """Where the vehicle is at which time: arrays of equal length, time in seconds from the log's start."""

    time: np.ndarray
    xy: np.ndarray  # (N, 2) map frame
    yaw: np.ndarray  # unwrapped

    def pose(self, time: float | np.ndarray) -> np.ndarray:
        """(...) seconds → (..., 3) x, y, yaw in the map frame."""
        columns = (self.xy[:, 0], self.xy[:, 1], self.yaw)
        return np.stack([np.interp(time, self.time, column) for column in columns], axis=-1)


@dataclass(frozen=True)
class Scene:
    """A run of keyframes of one log."""

    name: str
    first: int  # keyframe of the log that is the first of the scene
    keyframes: int


@dataclass(frozen=True)
class Log:
    """One drive: a route on one date, in one light."""

    location: str
    district: str
    number: int  # within the location
    kind: str  # "first", or one of REVISITS: "same" and "lane" go the same way, "lane" on the other lane
    revisits: int | None  # number of the log whose places this one visits again, on another date
    lane: int  # where a street has two lanes a direction: 0 the inner, 1 the one at the kerb
    route: list[int]  # nodes
    trajectory: Trajectory
    scenes: list[Scene]
    start: int  # µs since 1970
    date: str  # YYYY-MM-DD
    frame_seconds: float = KEYFRAME_SECONDS  # from one keyframe to the next

    @property
    def seconds(self) -> float:
        """How long the drive records."""
        return sum(scene.keyframes for scene in self.scenes) * self.frame_seconds


def plan_logs(world: World, size: CitySize, seed: int, taken: dict[str, int]) -> list[Log]:
    """All drives of a town. `taken` counts the official scene names given per split, and is moved on."""
    logs: list[Log] = []
    for district, plan in size.districts.items():
        rng = location_rng(seed, world.location, 1, len(district))
        names = official_scenes(district)
        before = len(logs)
        if size.repeats:
            drives = _repeated_routes(
                world.graph, district, plan.keyframes, size.scene_keyframes, size.repeats, rng
            )
        else:
            drives = _routes(world.graph, district, plan.keyframes, size.scene_keyframes, rng)
        for planned in drives:
            number = len(logs)
            keyframes = planned.keyframes
            original = None if planned.original is None else logs[before + planned.original]
            lane = int(rng.integers(2))
            if original is not None:
                lane = 1 - original.lane if planned.kind == "lane" else original.lane
            date = np.datetime64("2018-01-01") + int(rng.integers(0, 360))
            if original is not None and str(date) == original.date:
                date = date + 1
            seconds = start_second(world.location, date, number - before, rng)
            trajectory = drive_route(world, planned.route, keyframes * KEYFRAME_SECONDS, rng, lane)
            scenes = []
            for first in range(0, keyframes, size.scene_keyframes):
                name = names[taken[district]]
                taken[district] += 1
                scenes.append(Scene(name, first, min(size.scene_keyframes, keyframes - first)))
            start = seconds * 1_000_000 + int(rng.integers(0, 1_000_000))
            logs.append(
                Log(
                    world.location,
                    district,
                    number,
                    planned.kind,
                    None if original is None else original.number,
                    lane,
                    planned.route,
                    trajectory,
                    scenes,
                    start,
                    str(date),
                )
            )
    return logs


class _Planned(NamedTuple):
    """A drive of a district before it has a date."""

    kind: str
    original: int | None  # position in the plan of the drive that is driven again
    route: list[int]
    keyframes: int


def _routes(
    graph: StreetGraph, district: str, keyframes: int, scene_keyframes: int, rng: np.random.Generator
) -> list[_Planned]:
    """Split a district's keyframes into drives that cover it, and drives that visit places again."""
    scenes = max(2, round(keyframes / scene_keyframes))
    revisits = max(1, round(REVISIT_SHARE * scenes))
    first_drives = [
        min(SCENES_PER_LOG, scenes - revisits - i) for i in range(0, scenes - revisits, SCENES_PER_LOG)
    ]
    # Short revisits, so that every kind of them occurs where there are three scenes of them or more.
    longest = min(SCENES_PER_REVISIT, max(1, revisits // len(REVISITS)))
    second_drives = [min(longest, revisits - i) for i in range(0, revisits, longest)]
    per_scene = [keyframes // scenes + (i < keyframes % scenes) for i in range(scenes)]
    visits = np.zeros(len(graph.streets), np.int64)
    position = None
    planned: list[_Planned] = []
    for number_of_scenes in first_drives:
        frames = sum(per_scene.pop() for _ in range(number_of_scenes))
        route = _walk(graph, district, _needed(frames) + 30, visits, position, rng)
        planned.append(_Planned("first", None, route, frames))
        position = route[-2:]
    originals = list(planned)
    for turn, number_of_scenes in enumerate(second_drives):
        frames = sum(per_scene.pop() for _ in range(number_of_scenes))
        kind = REVISITS[turn % len(REVISITS)]
        fitting = [i for i, drive in enumerate(originals) if drive.keyframes >= frames] or [0]
        if kind == "lane":  # where there are most streets with another lane
            choice = max(fitting, key=lambda i: _two_lane_share(graph, originals[i].route))
        else:
            choice = fitting[int(rng.integers(len(fitting)))]
        route = _revisit(graph, district, originals[choice], kind, frames, visits, rng)
        planned.append(_Planned(kind, choice, route, frames))
    return planned


def _repeated_routes(
    graph: StreetGraph,
    district: str,
    keyframes: int,
    scene_keyframes: int,
    repeats: Sequence[str],
    rng: np.random.Generator,
) -> list[_Planned]:
    """Split a district's keyframes into drives of one scene, each of them driven again in every way."""
    ways = 1 + len(repeats)
    groups = max(1, round(keyframes / scene_keyframes / ways))
    frames = [keyframes // (groups * ways) + (i < keyframes % (groups * ways)) for i in range(groups * ways)]
    visits = np.zeros(len(graph.streets), np.int64)
    position = None
    planned: list[_Planned] = []
    for group in range(groups):
        route = _walk(graph, district, _needed(frames[group]) + 30, visits, position, rng)
        planned.append(_Planned("first", None, route, frames[group]))
        # The next drive begins where this one ends: its route is longer than what is driven.
        position = _driven_part(graph, planned[-1])[-2:]
    for turn, kind in enumerate(repeats, 1):
        for group in range(groups):
            own = frames[turn * groups + group]
            route = _revisit(graph, district, planned[group], kind, own, visits, rng)
            planned.append(_Planned(kind, group, route, own))
    return planned


def _revisit(
    graph: StreetGraph,
    district: str,
    original: _Planned,
    kind: str,
    frames: int,
    visits: np.ndarray,
    rng: np.random.Generator,
) -> list[int]:
    """The nodes of a drive of `frames` that visits the places of another one again; `visits` is moved on."""
    route = original.route
    if kind == "opposite":
        route = _driven_part(graph, original)[::-1]
    if len(route) < 2 or _length(graph, route) < _needed(frames):
        longer = _walk(graph, district, _needed(frames) + 30, visits, route[-2:], rng)
        route = route + longer[1:]
    return route


def _driven_part(graph: StreetGraph, drive: _Planned) -> list[int]:
    """The nodes of a route that are passed before the drive ends: routes are longer than they need be."""
    route = list(drive.route)
    while len(route) > 2 and _length(graph, route[:-1]) > drive.keyframes * KEYFRAME_SECONDS * USUAL_SPEED:
        route.pop()
    return route


def _needed(frames: int) -> float:
    """Metres of route that suffice for so many keyframes."""
    return frames * KEYFRAME_SECONDS * MAX_SPEED + 60


def _length(graph: StreetGraph, route: list[int]) -> float:
    return sum(graph.length(_street_between(graph, a, b)) for a, b in pairwise(route))


def _two_lane_share(graph: StreetGraph, route: list[int]) -> float:
    numbers = [_street_between(graph, a, b) for a, b in pairwise(route)]
    wide = sum(graph.length(n) for n in numbers if graph.streets[n].lanes > 1)
    return wide / sum(graph.length(n) for n in numbers)


def _walk(
    graph: StreetGraph,
    district: str,
    length: float,
    visits: np.ndarray,
    last: list[int] | None,
    rng: np.random.Generator,
) -> list[int]:
    """A route of at least `length` metres that prefers new streets and never turns back on the spot.

    `visits` counts how often each street was driven and is moved on. `last` are the two nodes to go on from.
    """
    own = {n for n, s in enumerate(graph.streets) if s.district == district}
    if last is None:
        first = sorted(own)[int(rng.integers(len(own)))]
        last = [graph.streets[first].a, graph.streets[first].b]
        visits[first] += 1
    route = list(last)
    while _length(graph, route) < length:
        ahead = _to_least_driven(graph, own, visits, route[-2], route[-1], rng)
        for node in ahead:
            visits[_street_between(graph, route[-1], node)] += 1
            route.append(node)
    return route


def _street_between(graph: StreetGraph, a: int, b: int) -> int:
    return next(n for n in graph.incident[a] if b in (graph.streets[n].a, graph.streets[n].b))


def _to_least_driven(
    graph: StreetGraph, own: set[int], visits: np.ndarray, before: int, here: int, rng: np.random.Generator
) -> list[int]:
    """The nodes to drive through up to the end of the nearest street that has been driven least."""
    fewest = min(int(visits[n]) for n in own)
    seen = {(before, here)}
    frontier: list[list[int]] = [[before, here]]
    while frontier:
        following = []
        for path in frontier:
            options = [n for n in graph.incident[path[-1]] if n in own]
            for number in rng.permutation(options):
                street = graph.streets[number]
                end = street.b if street.a == path[-1] else street.a
                if end == path[-2]:
                    continue
                if visits[number] == fewest:
                    return [*path[2:], end]
                if (path[-1], end) not in seen:
                    seen.add((path[-1], end))
                    following.append([*path, end])
        frontier = following
    raise RuntimeError(
        f"no street can be reached from node {here} without turning back: the graph has a dead end"
    )


def lane_offset(street: Street, lane: int) -> float:
    """Metres from the centre line to the driven lane, towards the driver's own kerb."""
    if street.lanes == 1:
        return float(np.clip(street.width / 2 - 3.3, 0.9, 2.2)) * (0.85 + 0.3 * lane)
    return (street.width / 2 - 0.5) * (2 * lane + 1) / (2 * street.lanes)


def drive_route(
    world: World,
    route: list[int],
    seconds: float,
    rng: np.random.Generator,
    lane: int | None = None,
    offsets: Sequence[float] | None = None,
) -> Trajectory:
    """Drive along the nodes `route` for `seconds`, on the own side of each street, in smooth curves.

    `lane` is 0 or 1: see Log; chosen at random when it is None. `offsets`, one a street, say instead how many
    metres from the centre line it is driven. Raises RuntimeError where the route is too short.
    """
    graph = world.graph
    sign = 1.0 if world.drives_on_left else -1.0
    lane = int(rng.integers(2)) if lane is None else lane
    numbers = [_street_between(graph, a, b) for a, b in pairwise(route)]
    turns = [0.0] * len(route)
    for k in range(1, len(route) - 1):
        before = -graph.direction(numbers[k - 1], route[k])
        turns[k] = _turn(before, graph.direction(numbers[k], route[k]))
    curves = []
    previous = None  # the end of the lane before: point and direction of travel
    for k, number in enumerate(numbers):
        length = graph.length(number)
        trims = []
        for node, turn in ((route[k], turns[k]), (route[k + 1], turns[k + 1])):
            # A turn over the other lane is wide; one around the own kerb is tight, not to cut the corner.
            room = 2.5 if turn * sign > 0.3 else 4.5
            trims.append(min(graph.setback(number, node) + room, 0.46 * length))
        offset = sign * (lane_offset(graph.streets[number], lane) if offsets is None else offsets[k])
        distance = np.linspace(trims[0], length - trims[1], max(2, int(length / 2)))
        points, directions = graph.leaving(number, route[k], distance)
        points = points + offset * left_of(directions)
        if previous is not None:
            curves.append(_curve(*previous, points[0], directions[0]))
        curves.append(points)
        previous = points[-1], directions[-1]
    points = np.concatenate(curves)
    keep = np.append(True, np.hypot(*np.diff(points, axis=0).T) > 1e-6)
    points = points[keep]
    s = np.append(0.0, np.cumsum(np.hypot(*np.diff(points, axis=0).T)))
    even = np.arange(0.0, s[-1], STEP)
    xy = np.stack([np.interp(even, s, points[:, k]) for k in (0, 1)], 1)
    padded = np.pad(xy, ((6, 6), (0, 0)), mode="reflect", reflect_type="odd")
    xy = np.stack([np.convolve(padded[:, k], np.full(13, 1 / 13), mode="valid") for k in (0, 1)], 1)
    wander = 0.12 * np.sin(even / 23.0 + rng.uniform(0, 6))  # nobody drives exactly in the middle of the lane
    tangent = np.gradient(xy, axis=0)
    left = np.stack([-tangent[:, 1], tangent[:, 0]], 1) / np.linalg.norm(tangent, axis=1, keepdims=True)
    xy = xy + wander[:, None] * left
    tangent = np.gradient(xy, axis=0)
    yaw = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))
    # Slow enough in bends for a bearable sideways acceleration, with the braking spread over 10 m.
    cruise = rng.uniform(8.8, 10.0) * (1 + 0.06 * np.sin(even / 37.0 + rng.uniform(0, 6)))
    curvature = np.abs(np.gradient(yaw, STEP))
    speed = np.minimum(cruise, np.sqrt(SIDEWAYS / np.maximum(curvature, 1e-3)))
    speed = minimum_filter1d(speed, 41)
    kernel = np.hanning(43)[1:-1]
    speed = np.convolve(np.pad(speed, 20, mode="edge"), kernel / kernel.sum(), mode="valid")
    time = np.append(0.0, np.cumsum(STEP / speed[:-1]))
    if time[-1] < seconds + 2:
        raise RuntimeError(f"a route of {s[-1]:.0f} m lasts {time[-1]:.1f} s; {seconds + 2:.1f} s are needed")
    return Trajectory(time - 1.0, xy, yaw)


def _turn(d1: np.ndarray, d2: np.ndarray) -> float:
    """The angle from direction d1 to d2, left positive."""
    return float(np.arctan2(d1[0] * d2[1] - d1[1] * d2[0], d1 @ d2))


def _curve(p1: np.ndarray, d1: np.ndarray, p2: np.ndarray, d2: np.ndarray) -> np.ndarray:
    """A cubic Bézier from p1 (heading d1) to p2 (heading d2), nearly an arc → (25, 2)."""
    determinant = d1[0] * d2[1] - d1[1] * d2[0]
    reach = np.array([1.0, 1.0]) * np.hypot(*(p2 - p1)) / 3
    if abs(determinant) > 0.2:
        gap = p2 - p1
        a = (gap[0] * d2[1] - gap[1] * d2[0]) / determinant
        b = (gap[0] * d1[1] - gap[1] * d1[0]) / -determinant
        if a > 0 and b > 0:
            reach = 0.56 * np.array([a, b])
    q1, q2 = p1 + d1 * reach[0], p2 - d2 * reach[1]
    t = np.linspace(0, 1, 25)[:, None]
    return (1 - t) ** 3 * p1 + 3 * t * (1 - t) ** 2 * q1 + 3 * t**2 * (1 - t) * q2 + t**3 * p2
