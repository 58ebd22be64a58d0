"""Drives that visit streets again within one sequence: in the same lane, beside it, and the other way round.

A drive walks through the streets of a district at random, and at every junction prefers the street, and the
side of the lane, that makes the kind of pass it has had least of. Of many such walks the one with most of its
rarest kind is driven, and where the size says so, one that spans enough of the town.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import shapely
from scipy.spatial import cKDTree
from scipy.spatial.distance import pdist

from data_prep.city.drives import (
    MAX_SPEED,
    USUAL_SPEED,
    Log,
    Scene,
    Trajectory,
    drive_route,
    lane_offset,
)
from data_prep.city.sizes import LoopSize
from data_prep.city.streets import Street, StreetGraph
from data_prep.city.sun import start_second
from data_prep.city.world import World, location_rng

WALKS = 1500  # that are tried for each drive
STALE = 60.0  # m of loops that a street is worth which no other drive has used
REVISITS = {"same": 0.27, "lane": 0.33, "reverse": 0.40}  # of the metres that are revisits, wished for
SHORT = 5.0  # m of loops that a metre is worth which a walk spans less than is wished
LEFT_OUT = 0.8  # of the streets between two blocks of a walk
SPREAD = 40.0  # m; how far a walk's next block may be from the one that lies farthest off
LOOP_DISTANCE = 4.0  # m between two frames that are a loop, in three dimensions
LOOP_GAP = 50  # frames that must lie between them at least
REACH = 3.7  # m across the street within which a pass is a revisit of another: less than LOOP_DISTANCE
KERB_GAP = 0.95  # m between the middle of the vehicle and a kerb: half its width
BESIDE = 1.5  # m across, from which on a revisit is beside its lane, no longer in it
FIRST_DATE, DATES = np.datetime64("2011-04-01"), 210  # KITTI was recorded in one year, in no winter


class Leg(NamedTuple):
    """One street of a drive."""

    street: int
    start: int  # node
    end: int
    offset: float  # m from the centre line, to the own side
    kind: str  # "first" or of REVISITS: what it is to the nearest earlier pass of the street in this drive


@dataclass(frozen=True, kw_only=True)
class LoopDrive(Log):
    """A drive that is one sequence of KITTI or KITTI-360; its scenes are its pieces, recorded one by one."""

    sequence: str
    legs: list[Leg]


def plan_loops(
    world: World, size: LoopSize, seed: int, name: Callable[[str], str], date: str | None = None
) -> list[LoopDrive]:
    """All drives of a town, by day, on `date` or on dates of their own.

    `name` gives the next sequence of a district its name.
    """
    drives: list[LoopDrive] = []
    for district, plan in size.districts.items():
        rng = location_rng(seed, world.location, 8, len(district))
        count = size.sequences[district]
        driven = np.zeros(len(world.graph.streets))
        for index in range(count):
            frames = plan.keyframes // count + (index < plan.keyframes % count)
            seconds = frames * size.frame_seconds
            legs, route, trajectory = _plan_drive(world, district, size, seconds, driven, rng)
            for leg in legs:
                driven[leg.street] += 1
            on = FIRST_DATE + int(rng.integers(DATES)) if date is None else np.datetime64(date)
            start = start_second(world.location, on, 0, rng) * 1_000_000 + int(rng.integers(0, 1_000_000))
            sequence = name(district)
            firsts = range(0, frames, size.scene_keyframes)
            drives.append(
                LoopDrive(
                    location=world.location,
                    district=district,
                    number=len(drives),
                    kind="loops",
                    revisits=None,
                    lane=0,
                    route=route,
                    trajectory=trajectory,
                    scenes=[
                        Scene(f"{sequence}:{first}", first, min(size.scene_keyframes, frames - first))
                        for first in firsts
                    ],
                    start=start,
                    date=str(on),
                    frame_seconds=size.frame_seconds,
                    sequence=sequence,
                    legs=legs,
                )
            )
    return drives


def lateral_offsets(street: Street) -> tuple[float, float]:
    """Metres from the centre line, to the own side, of the inner and the outer way to drive along a street.

    They lie BESIDE or more apart. Where there is one lane, the inner way is near the middle of the street.
    The inner ways of the two directions are a loop of each other.
    """
    if street.lanes > 1:
        inner = min(lane_offset(street, 0), 1.6)
        return inner, min(lane_offset(street, 1), inner + 3.1)
    outer = min(street.width / 2 - 1.3, 3.4)  # room for half a vehicle and a gutter
    return max(outer - 2.2, 0.1), outer


def _plan_drive(
    world: World,
    district: str,
    size: LoopSize,
    seconds: float,
    driven: np.ndarray,
    rng: np.random.Generator,
) -> tuple[list[Leg], list[int], Trajectory]:
    """The best of many walks that keeps to the road in all its bends: its legs, its nodes and its trajectory.

    `driven` counts how often other drives have used each street.
    """
    room = world.road.buffer(-KERB_GAP)
    shapely.prepare(room)
    for legs in _walks(world.graph, district, size, seconds, driven, rng):
        route = [legs[0].start, *(leg.end for leg in legs)]
        trajectory = drive_route(world, route, seconds, rng, 0, [leg.offset for leg in legs])
        of_drive = (trajectory.time > -0.5) & (trajectory.time < seconds + 0.5)
        if shapely.contains_xy(room, trajectory.xy[of_drive]).all():
            return legs, route, trajectory
    raise RuntimeError(f"no walk through district {district!r} of {world.location} keeps to the road")


def _walks(
    graph: StreetGraph,
    district: str,
    size: LoopSize,
    seconds: float,
    driven: np.ndarray,
    rng: np.random.Generator,
) -> list[list[Leg]]:
    """Walks through the streets around a few blocks each, the best first."""
    rings = _rings(graph, district)
    middles = np.array([np.mean([_middle(graph, number) for number in sorted(ring)], 0) for ring in rings])
    metres = seconds * USUAL_SPEED  # the route is longer than what is driven of it
    shares = _shares(size)
    found = []
    for number in range(WALKS):
        own = _few_blocks(graph, rings, middles, shares["first"] * metres * rng.uniform(0.8, 1.4), rng)
        walk = _walk(graph, own, seconds * MAX_SPEED + 60, shares, rng)
        driven_of_it = _within(graph, walk, metres)
        used = sum(driven[leg.street] for leg in walk) / len(walk)
        short = max(size.span - _span(graph, driven_of_it), 0.0)
        found.append((STALE * used + SHORT * short - _worth(graph, driven_of_it, shares), number, walk))
    return [walk for _, _, walk in sorted(found)]


def _shares(size: LoopSize) -> dict[str, float]:
    """Of the metres of a drive, by kind, wished for."""
    return {"first": size.new_streets} | {
        kind: share * (1 - size.new_streets) for kind, share in REVISITS.items()
    }


def _rings(graph: StreetGraph, district: str) -> list[set[int]]:
    """The streets around each block of a district."""
    own = [number for number, street in enumerate(graph.streets) if street.district == district]
    lines = [graph.line(graph.streets[number]) for number in own]
    middles = [line.interpolate(0.5, normalized=True) for line in lines]
    faces = shapely.get_parts(shapely.polygonize(lines))
    return [
        {number for number, middle in zip(own, middles, strict=True) if face.distance(middle) < 0.01}
        for face in faces
    ]


def _few_blocks(
    graph: StreetGraph,
    rings: list[set[int]],
    middles: np.ndarray,
    length: float,
    rng: np.random.Generator,
) -> set[int]:
    """The streets around one block, and on and on around a neighbour, mostly away from the first, until they
    are `length` metres or more. Of those between two blocks, many are left out.

    `middles` (R, 2) are those of the `rings`.
    """
    start = int(rng.integers(len(rings)))
    taken, streets = {start}, set(rings[start])
    while sum(graph.length(number) for number in streets) < length:
        beside = [k for k, ring in enumerate(rings) if k not in taken and ring & streets]
        if not beside:
            break
        away = [np.hypot(*(middles[k] - middles[start])) + SPREAD * rng.gumbel() for k in beside]
        further = beside[int(np.argmax(away))]
        between = [number for number in sorted(rings[further] & streets) if rng.random() < LEFT_OUT]
        taken.add(further)
        streets = _without_dead_ends(graph, (streets | rings[further]) - set(between))
    return streets


def _without_dead_ends(graph: StreetGraph, streets: set[int]) -> set[int]:
    """Those of the streets that can be driven without turning back on the spot."""
    while True:
        ends = Counter(node for number in streets for node in _ends(graph, number))
        kept = {number for number in streets if min(ends[node] for node in _ends(graph, number)) > 1}
        if kept == streets:
            return streets
        streets = kept


def _ends(graph: StreetGraph, number: int) -> tuple[int, int]:
    street = graph.streets[number]
    return street.a, street.b


def _middle(graph: StreetGraph, number: int) -> np.ndarray:
    """(2,) midway between the ends of a street."""
    street = graph.streets[number]
    return (graph.nodes[street.a] + graph.nodes[street.b]) / 2


def _walk(
    graph: StreetGraph, own: set[int], length: float, shares: dict[str, float], rng: np.random.Generator
) -> list[Leg]:
    """A walk of `length` metres along the streets `own` that never turns back on the spot."""
    starts = sorted(own)
    first = graph.streets[starts[int(rng.integers(len(starts)))]]
    before, here = (first.a, first.b) if rng.random() < 0.5 else (first.b, first.a)
    passes: dict[int, list[float]] = {}
    metres = dict.fromkeys(shares, 0.0)
    legs: list[Leg] = []
    while sum(metres.values()) < length:
        options = []
        for number in graph.incident[here]:
            street = graph.streets[number]
            end = street.b if street.a == here else street.a
            if number in own and end != before:
                for offset in lateral_offsets(street):
                    kind = _kind(passes.get(number, []), offset if street.a == here else -offset)
                    lacking = shares[kind] * (sum(metres.values()) + 100.0) - metres[kind]
                    options.append((lacking + 30.0 * rng.gumbel(), Leg(number, here, end, offset, kind)))
        leg = max(options)[1]
        forward = graph.streets[leg.street].a == here
        passes.setdefault(leg.street, []).append(leg.offset if forward else -leg.offset)
        metres[leg.kind] += graph.length(leg.street)
        legs.append(leg)
        before, here = here, leg.end
    return legs


def _kind(passes: list[float], offset: float) -> str:
    """What a pass is to the nearest earlier one of the same street; offsets are signed by the direction."""
    if not passes:
        return "first"
    nearest = min(passes, key=lambda other: abs(other - offset))
    across = abs(nearest - offset)
    if across > REACH:
        return "first"
    if nearest * offset < 0:
        return "reverse"
    return "lane" if across >= BESIDE else "same"


def _within(graph: StreetGraph, legs: list[Leg], driven: float) -> list[Leg]:
    """The legs that the first `driven` metres of a walk reach."""
    ends = np.cumsum([graph.length(leg.street) for leg in legs])
    return legs[: int(np.searchsorted(ends, driven)) + 1]


def _span(graph: StreetGraph, legs: list[Leg]) -> float:
    """Metres between the two junctions of a walk that lie farthest apart."""
    nodes = graph.nodes[sorted({node for leg in legs for node in (leg.start, leg.end)})]
    return float(pdist(nodes).max())


def _worth(graph: StreetGraph, legs: list[Leg], shares: dict[str, float]) -> float:
    """Metres of the rarest of the kinds of revisits, by their shares: at most all, where there are enough."""
    metres = dict.fromkeys(shares, 0.0)
    for leg in legs:
        metres[leg.kind] += graph.length(leg.street)
    return min(sum(metres.values()), *(metres[kind] / shares[kind] for kind in REVISITS))


def find_loops(map_T_lidar: np.ndarray) -> np.ndarray:
    """(N, 4, 4) poses of a sequence → (N,) what each frame is to the nearest earlier frame that is its loop.

    "" where there is none; "reverse" where the headings differ by more than 90°; "lane" where the earlier
    frame's way lies BESIDE or more to one side; "same" otherwise. A loop is nearer than LOOP_DISTANCE and
    more than LOOP_GAP frames apart.
    """
    places = map_T_lidar[:, :3, 3]
    found = np.full(len(places), "", dtype="<U7")
    near = cKDTree(places).query_ball_point(places, LOOP_DISTANCE)
    for frame, others in enumerate(near):
        earlier = np.array([k for k in others if k < frame - LOOP_GAP], np.int64)
        gap = np.linalg.norm(places[earlier] - places[frame], axis=1)
        earlier, gap = earlier[gap < LOOP_DISTANCE], gap[gap < LOOP_DISTANCE]
        if not len(earlier):
            continue
        other = map_T_lidar[earlier[np.argmin(gap)]]
        if other[:3, 0] @ map_T_lidar[frame, :3, 0] < 0:
            found[frame] = "reverse"
        else:
            across = abs((places[frame] - other[:3, 3]) @ other[:3, 1])
            found[frame] = "lane" if across >= BESIDE else "same"
    return found


def count_loops(map_T_lidar: np.ndarray) -> dict[str, int]:
    """How many frames of a sequence are a loop of which kind: see `find_loops`."""
    kinds = find_loops(map_T_lidar)
    counted = {kind: int((kinds == kind).sum()) for kind in ("same", "lane", "reverse")}
    return {"frames": len(kinds), **counted}
