"""The traffic of one drive: cars, trucks, buses and people on foot, as functions of time.

Vehicles follow routes of their own through the town, by the same lanes and bends as the recording vehicle; a
candidate is kept for the time in which it overlaps nobody and keeps its distance, and only if it comes and
goes far from the recording vehicle. People walk along sidewalks and over crossings when no car is near.
Everything is drawn for a whole drive, so that the scenes of one drive show one traffic.
"""

from dataclasses import dataclass

import numpy as np
import shapely

from data_prep.city.classes import Label
from data_prep.city.drives import Log, drive_route
from data_prep.city.furniture import CAR_COLOURS
from data_prep.city.streets import StreetGraph
from data_prep.city.world import KERB_HEIGHT, World

SAMPLING = 0.2  # s between the positions at which conflicts are looked for
VEHICLE_PAUSE = 0.8  # s of the drive for each candidate vehicle
WALKER_PAUSE = 1.0  # s of the drive for each candidate walker
NEAR = 55.0  # m: candidates pass the recording vehicle within this distance
VEHICLE_REACH = 115.0  # m: vehicles exist while the recording vehicle is nearer than this
COME_AND_GO = 60.0  # m: vehicles appear and vanish no nearer than this
WALKER_REACH = 85.0  # m: people exist while the recording vehicle is nearer than this
ROUTE_REACH = 150.0  # m of route before and after the place where a vehicle is met
GAP_ALONG, GAP_ACROSS = 4.0, 0.3  # m kept free between vehicles
WALKER_GAP = 1.2  # m kept free between vehicles and people on crossings
STANDING_SPEED = 0.15  # m/s: who is slower stands


@dataclass(frozen=True)
class Actor:
    """Somebody who moves: knots of a track in time, with the body that follows it.

    Between knots the position is interpolated. `lift` is the height of the feet or wheels above the road.
    """

    kind: str  # car, truck, bus, adult or child
    size: tuple[float, float, float]  # length, width, height
    colour: tuple[float, float, float]
    seed: int  # shapes and dresses a person
    time: np.ndarray  # (K,) s from the log's start, increasing; it exists from the first to the last
    xy: np.ndarray  # (K, 2) map frame
    yaw: np.ndarray  # (K,) unwrapped
    lift: np.ndarray  # (K,) m

    def exists(self, time: float) -> bool:
        """Whether it is there at a time."""
        return bool(self.time[0] <= time <= self.time[-1])

    def pose(self, time: float | np.ndarray) -> np.ndarray:
        """(...) s → (..., 4) x, y, yaw, lift."""
        columns = (self.xy[:, 0], self.xy[:, 1], self.yaw, self.lift)
        return np.stack([np.interp(time, self.time, column) for column in columns], axis=-1)

    def speed(self, time: float) -> float:
        """m/s at a time."""
        ends = np.clip([time - 0.1, time + 0.1], self.time[0], self.time[-1])
        moved = np.diff(self.pose(ends)[:, :2], axis=0)[0]
        return float(np.hypot(*moved) / max(ends[1] - ends[0], 1e-6))


LABELS = {
    "car": Label.CAR,
    "truck": Label.TRUCK,
    "bus": Label.BUS,
    "adult": Label.PERSON,
    "child": Label.PERSON,
}
LEADER_SHARE = 0.6  # of the drives, in which a car drives ahead of the recording vehicle, on its very path
EGO_SIZE = (4.4, 1.9)  # m; the ego frame is near its middle


def plan_actors(world: World, log: Log, rng: np.random.Generator) -> list[Actor]:
    """Everybody who moves near the recording vehicle during one drive."""
    time = np.arange(-0.6, log.seconds + 0.6, SAMPLING)
    ego = log.trajectory.pose(time)
    vehicles, taken = _plan_vehicles(world, log, ego, time, rng)
    return vehicles + _plan_walkers(world, ego, time, taken, rng)


# Vehicles


class _Taken:
    """Where everybody so far is at all times: arrays that grow, nan where somebody does not exist."""

    def __init__(self, time: np.ndarray):
        self.poses = np.zeros((0, len(time), 3))
        self.sizes = np.zeros((0, 2))

    def add(self, poses: np.ndarray, span: slice, size: tuple[float, ...]) -> None:
        """Take the places of one track (T, 3) within `span`."""
        own = np.full_like(poses, np.nan)
        own[span] = poses[span]
        self.poses = np.concatenate([self.poses, own[None]])
        self.sizes = np.concatenate([self.sizes, np.array([size[:2]])])

    def meets(self, poses: np.ndarray, size: tuple[float, ...], along: float, across: float) -> np.ndarray:
        """(T,) whether a track (T, 3) comes closer than the gaps to anybody."""
        gap = np.hypot(*np.moveaxis(self.poses[..., :2] - poses[:, :2], -1, 0))
        reach = (np.hypot(*self.sizes.T) + np.hypot(size[0], size[1])) / 2 + along
        who, when = np.nonzero(gap < reach[:, None])  # false where it is nan
        result = np.zeros(len(poses), bool)
        grown = np.broadcast_to([size[0] + 2 * along, size[1] + 2 * across], (len(when), 2))
        close = rectangles_overlap(poses[when], grown, self.poses[who, when], self.sizes[who])
        result[when[close]] = True
        return result


def _plan_vehicles(
    world: World, log: Log, ego: np.ndarray, time: np.ndarray, rng: np.random.Generator
) -> tuple[list[Actor], _Taken]:
    streets = shapely.STRtree([world.graph.line(street) for street in world.graph.streets])
    free_road = {kind: world.road.buffer(-margin) for kind, margin in (("car", 0.95), ("other", 1.3))}
    for area in free_road.values():
        shapely.prepare(area)
    everything = slice(0, len(time))
    taken = _Taken(time)
    taken.add(ego, everything, EGO_SIZE)
    kept: list[Actor] = []
    delay = rng.uniform(2.4, 5.0)
    if rng.random() < LEADER_SHARE and log.trajectory.time[-1] >= time[-1] + delay:
        kept.append(_actor("car", *_choose_size("car", rng), 0, time, log.trajectory.pose(time + delay)))
        taken.add(log.trajectory.pose(time + delay), everything, kept[0].size)
    for meeting in np.arange(time[0], time[-1], VEHICLE_PAUSE):
        meeting += rng.uniform(0, VEHICLE_PAUSE)
        where = ego[np.clip(np.searchsorted(time, meeting), 0, len(time) - 1), :2]
        near = streets.query(shapely.Point(where), "dwithin", NEAR)
        number = int(near[rng.integers(len(near))])
        poses, exists = _drive_past(world, number, meeting, time, rng)
        kind = str(rng.choice(["car", "truck", "bus"], p=[0.86, 0.09, 0.05]))
        size, colour = _choose_size(kind, rng)
        distance = np.hypot(*(poses[:, :2] - ego[:, :2]).T)
        free = exists & (distance < VEHICLE_REACH) & ~taken.meets(poses, size, GAP_ALONG, GAP_ACROSS)
        span = _free_span(free, time, meeting)
        if span is None:
            continue
        # Nobody appears or vanishes in sight, except at the ends of the drive.
        ends = [k for k in (span.start, span.stop - 1) if 0 < k < len(time) - 1]
        if any(distance[k] < COME_AND_GO for k in ends):
            continue
        area = free_road["car" if kind == "car" else "other"]
        if not shapely.contains_xy(area, poses[span, :2]).all():
            continue
        taken.add(poses, span, size)
        kept.append(_actor(kind, size, colour, 0, time[span], poses[span]))
    return kept, taken


def _actor(
    kind: str,
    size: tuple[float, float, float],
    colour: tuple[float, float, float],
    seed: int,
    time: np.ndarray,
    poses: np.ndarray,
    lift: np.ndarray | None = None,
) -> Actor:
    lift = np.zeros(len(time)) if lift is None else lift
    return Actor(kind, size, colour, seed, time, poses[:, :2], np.unwrap(poses[:, 2]), lift)


def _choose_size(
    kind: str, rng: np.random.Generator
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    colour = CAR_COLOURS[rng.integers(len(CAR_COLOURS))] * rng.uniform(0.8, 1.2)
    mean, spread = {
        "car": ((4.5, 1.82, 1.55), (0.35, 0.07, 0.15)),
        "truck": ((6.6, 2.3, 3.0), (0.5, 0.08, 0.2)),
        "bus": ((10.6, 2.5, 3.1), (0.3, 0.03, 0.1)),
    }[kind]
    size = np.asarray(mean) + np.asarray(spread) * np.clip(rng.standard_normal(3), -2, 2)
    return tuple(size.tolist()), tuple(np.clip(colour, 0.01, 0.9).tolist())


def _drive_past(
    world: World, number: int, meeting: float, time: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A drive that is in the middle of a street at a time → poses (T, 3) and whether it exists (T,)."""
    graph = world.graph
    street = graph.streets[number]
    ahead = [street.a, street.b] if rng.random() < 0.5 else [street.b, street.a]
    route = _walk_on(graph, ahead[::-1], rng)[::-1][:-2] + _walk_on(graph, ahead, rng)
    trajectory = drive_route(world, route, 1.0, rng)
    middle = graph.curve(number).at(graph.length(number) * rng.uniform(0.2, 0.8))[0]
    nearest = int(np.argmin(np.hypot(*(trajectory.xy - middle).T)))
    rate = rng.uniform(0.72, 1.03)
    own = trajectory.time[nearest] + (time - meeting) * rate
    exists = (own >= trajectory.time[0]) & (own <= trajectory.time[-1])
    return trajectory.pose(own), exists


def _walk_on(graph: StreetGraph, nodes: list[int], rng: np.random.Generator) -> list[int]:
    """Go on from two nodes for ROUTE_REACH metres, mostly straight on, never back on the spot."""
    route = list(nodes)
    length = 0.0
    while length < ROUTE_REACH:
        before, here = route[-2:]
        came = next(n for n in graph.incident[here] if before in (graph.streets[n].a, graph.streets[n].b))
        options = [n for n in graph.incident[here] if n != came]
        straight = [-float(graph.direction(n, here) @ graph.direction(came, here)) for n in options]
        weight = np.exp(2.0 * np.array(straight))
        number = options[int(rng.choice(len(options), p=weight / weight.sum()))]
        street = graph.streets[number]
        route.append(street.b if street.a == here else street.a)
        length += graph.length(number)
    return route


def _free_span(free: np.ndarray, time: np.ndarray, meeting: float) -> slice | None:
    """The unbroken run of `free` (T,) around a time; None where there is none of two samples."""
    middle = int(np.clip(np.searchsorted(time, meeting), 0, len(time) - 1))
    if not free[middle]:
        return None
    blocked = np.flatnonzero(~free)
    before, after = blocked[blocked < middle], blocked[blocked > middle]
    first = int(before[-1]) + 1 if len(before) else 0
    last = int(after[0]) if len(after) else len(free)
    return slice(first, last) if last - first >= 2 else None


def rectangles_overlap(
    poses: np.ndarray, sizes: np.ndarray, others: np.ndarray, other_sizes: np.ndarray
) -> np.ndarray:
    """Whether pairs of rectangles overlap: poses (N, 3) x, y, yaw, sizes (N, 2) length, width → (N,).

    Separating axes: two convex shapes are apart if they are along a normal of one of their sides.
    """
    gap = others[:, :2] - poses[:, :2]
    axes, halves = [], []
    for turn, size in ((poses[:, 2], sizes), (others[:, 2], other_sizes)):
        cos, sin = np.cos(turn), np.sin(turn)
        axes += [np.stack([cos, sin], 1), np.stack([-sin, cos], 1)]
        halves += [size[:, 0] / 2, size[:, 1] / 2]
    apart = np.zeros(len(poses), bool)
    for axis in axes:
        reach = sum(half * np.abs((axis * own).sum(1)) for half, own in zip(halves, axes, strict=True))
        apart |= np.abs((axis * gap).sum(1)) > reach
    return ~apart


# People


def _plan_walkers(
    world: World, ego: np.ndarray, time: np.ndarray, vehicles: _Taken, rng: np.random.Generator
) -> list[Actor]:
    streets = shapely.STRtree([world.graph.line(street) for street in world.graph.streets])
    crossings = shapely.STRtree(world.crossings)
    shapely.prepare(world.sidewalk)
    shapely.prepare(world.road)
    walkers = _Taken(time)
    kept: list[Actor] = []
    for meeting in np.arange(time[0], time[-1], WALKER_PAUSE):
        meeting += rng.uniform(0, WALKER_PAUSE)
        where = ego[np.clip(np.searchsorted(time, meeting), 0, len(time) - 1), :2]
        crosses = rng.random() < 0.4
        near = (crossings if crosses else streets).query(shapely.Point(where), "dwithin", 40.0)
        kind = "child" if rng.random() < 0.12 else "adult"
        low, high = (1.05, 1.45) if kind == "child" else (1.55, 1.9)
        size = (0.5, 0.6, float(rng.uniform(low, high)))
        speed, seed = rng.uniform(0.9, 1.7), int(rng.integers(1 << 30))
        if len(near) == 0:
            continue
        number = int(near[rng.integers(len(near))])
        path = (_cross if crosses else _stroll)(world, number, rng)
        if path is None:
            continue
        poses = _walk_along(path, speed, meeting, time, rng)
        exists = np.hypot(*(poses[:, :2] - ego[:, :2]).T) < WALKER_REACH
        span = _free_span(exists, time, meeting)
        if span is None or walkers.meets(poses, size, 0.1, 0.1)[span].any():
            continue
        if vehicles.meets(poses, size, WALKER_GAP, WALKER_GAP)[span].any():
            continue
        walkers.add(poses, span, size)
        lift = np.where(shapely.contains_xy(world.road, poses[span, :2]), 0.0, KERB_HEIGHT)
        kept.append(_actor(kind, size, (0.5, 0.5, 0.5), seed, time[span], poses[span], lift))
    return kept


def _stroll(world: World, number: int, rng: np.random.Generator) -> np.ndarray | None:
    """A walk (n, 2) along one side of a street, on its sidewalk; None where there is too little of it."""
    graph = world.graph
    street = graph.streets[number]
    first = graph.setback(number, street.a) + 1.5
    last = graph.length(number) - graph.setback(number, street.b) - 1.5
    side = rng.choice([-1.0, 1.0])
    # Along the outer edge: poles and trees stand nearer to the kerb.
    offset = side * (street.width / 2 + street.sidewalk - rng.uniform(0.4, 0.6))
    turn = rng.random() < 0.5
    if last - first < 12:
        return None
    path = graph.curve(number).shifted(first, last, offset)
    if not shapely.contains_xy(world.sidewalk, path).all():
        return None
    return path[::-1] if turn else path


def _cross(world: World, number: int, rng: np.random.Generator) -> np.ndarray | None:
    """A walk (2, 2) over a crossing from one sidewalk to the other; None where one of them is not there."""
    corners = shapely.get_coordinates(world.crossings[number].minimum_rotated_rectangle)[:4]
    if np.hypot(*(corners[1] - corners[0])) < np.hypot(*(corners[2] - corners[1])):
        corners = np.roll(corners, -1, axis=0)
    share = rng.uniform(0.25, 0.75)
    start = corners[0] + share * (corners[3] - corners[0])
    end = corners[1] + share * (corners[2] - corners[1])
    beyond = (end - start) / np.hypot(*(end - start)) * 1.3
    path = np.array([start - beyond, end + beyond])
    if not shapely.contains_xy(world.sidewalk, path).all():
        return None
    return path[::-1] if rng.random() < 0.5 else path


def _walk_along(
    path: np.ndarray, speed: float, meeting: float, time: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(T, 3) poses of a walk that is somewhere on the path (n, 2) at a time, and waits at its ends."""
    stations = np.append(0.0, np.cumsum(np.hypot(*np.diff(path, axis=0).T)))
    s = np.clip(stations[-1] * rng.uniform(0.15, 0.85) + (time - meeting) * speed, 0.0, stations[-1])
    xy = np.stack([np.interp(s, stations, path[:, k]) for k in (0, 1)], axis=1)
    heading = np.unwrap(np.arctan2(*np.diff(path, axis=0).T[::-1]))
    piece = np.clip(np.searchsorted(stations, s, side="right") - 1, 0, len(heading) - 1)
    return np.column_stack([xy, heading[piece]])
