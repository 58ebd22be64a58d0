"""Irregular street graphs: a district is cut into blocks by recursive subdivision, then bent.

Each cut joins two sides of a block at an angle near, but not at, a right angle. An end close to an existing
junction moves onto it, so crossings (X) and T-junctions mix, blocks differ in size, and no two places have
the same layout. Then every street gets a smooth centre line, in two steps that keep it clear of the others:
some streets bow out to a side or in an S, where there is room; and the whole district is warped by a smooth
field whose Jacobian stays near the identity, which no two lines can cross in. Streets that go straight on
at a junction go on smoothly after it.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import shapely

from data_prep.city.curves import Curve


class StreetClass(NamedTuple):
    """Dimensions of one OSM class of street, in metres."""

    width: float  # kerb to kerb
    sidewalk: float
    lanes: int  # per direction


STREET_CLASSES = {
    "primary": StreetClass(16.5, 4.5, 2),
    "secondary": StreetClass(13.5, 3.5, 2),
    "tertiary": StreetClass(10.0, 2.8, 1),
    "residential": StreetClass(8.2, 2.2, 1),
}
NARROW_LANE = 6.4  # m: some residential streets are no wider, and nobody parks in them
NARROW_SHARE = 0.25

SNAP = 26.0  # m: a cut that ends this close to a junction ends in it
MIN_ANGLE = np.radians(56.0)  # between two streets of one junction, before they are bent
MIN_EDGE = 32.0  # m between junctions
NEAR_NODE = 8.0  # m over which a street's direction at a node is measured


@dataclass(frozen=True)
class Street:
    """A piece of street between two nodes."""

    a: int
    b: int
    kind: str
    width: float  # m, kerb to kerb
    sidewalk: float  # m
    lanes: int  # per direction
    district: str  # "train", "val", "test", or "" for a road between districts
    bends: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)), compare=False)
    """(n, 2) the points that the centre line goes through from a to b; none where it is straight."""


@dataclass
class StreetGraph:
    """Nodes (N, 2) in map coordinates and the streets between them."""

    nodes: np.ndarray
    streets: list[Street]
    incident: list[list[int]] = field(init=False)  # numbers of the streets at each node
    _curves: list[Curve] = field(init=False, repr=False)
    _away: dict[tuple[int, int], np.ndarray] = field(init=False, repr=False)
    _setbacks: dict[tuple[int, int], float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.incident = [[] for _ in self.nodes]
        for number, street in enumerate(self.streets):
            self.incident[street.a].append(number)
            self.incident[street.b].append(number)
        self._curves = [
            Curve(np.concatenate([self.nodes[[s.a]], s.bends, self.nodes[[s.b]]])) for s in self.streets
        ]
        ends = [(number, node) for number, s in enumerate(self.streets) for node in (s.a, s.b)]
        self._away = {end: self._direction(*end) for end in ends}
        self._setbacks = {end: self._setback(*end) for end in ends}

    def curve(self, number: int) -> Curve:
        """The centre line of street `number`, from its node a to its node b."""
        return self._curves[number]

    def line(self, street: Street) -> shapely.LineString:
        """The centre line of a street."""
        return shapely.LineString(
            np.concatenate([self.nodes[[street.a]], street.bends, self.nodes[[street.b]]])
        )

    def direction(self, number: int, node: int) -> np.ndarray:
        """(2,) unit vector in which street `number` leads away from `node`, seen over its first metres."""
        return self._away[number, node]

    def _direction(self, number: int, node: int) -> np.ndarray:
        curve = self._curves[number]
        reach = min(NEAR_NODE, curve.length / 2)
        station = reach if self.streets[number].a == node else curve.length - reach
        vector = curve.at(station)[0] - self.nodes[node]
        return vector / np.hypot(*vector)

    def station(self, number: int, node: int, distance: float) -> float:
        """Metres from the street's node a of the point `distance` metres along it from `node`."""
        return distance if self.streets[number].a == node else self._curves[number].length - distance

    def leaving(self, number: int, node: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
        """The point (2,) `distance` metres along street `number` from `node`, and the direction (2,) there,
        away from it."""
        point, direction = self._curves[number].at(self.station(number, node, distance))
        return point, direction if self.streets[number].a == node else -direction

    def length(self, number: int) -> float:
        """Metres along street `number` between its two nodes."""
        return self._curves[number].length

    def setback(self, number: int, node: int) -> float:
        """How far from `node` along street `number` the junction ends: beyond the other streets' kerbs."""
        return self._setbacks[number, node]

    def _setback(self, number: int, node: int) -> float:
        own = self.direction(number, node)
        half = self.streets[number].width / 2
        clear = 0.0
        for other in self.incident[node]:
            if other == number:
                continue
            cosine = float(own @ self.direction(other, node))
            sine = np.sqrt(max(1.0 - cosine**2, 0.0))
            if sine > 0.15:  # a street that goes straight on has no corner
                clear = max(clear, (self.streets[other].width / 2 + half * cosine) / sine)
        return min(clear, 0.42 * self.length(number))


class _Cut(NamedTuple):
    """Where a new street meets the side `edge` of a block: at an old node, or at `point` on the side."""

    position: int  # index in the block's loop of the side's first node
    node: int | None
    point: np.ndarray


class _District:
    """A district while it is being cut: nodes, sides with their class, and blocks as loops of nodes."""

    def __init__(self, outline: np.ndarray, rng: np.random.Generator, block_area: float):
        self.rng = rng
        self.block_area = block_area
        self.nodes = [np.asarray(p, np.float64) for p in outline]
        loop = list(range(len(outline)))
        self.kinds: dict[tuple[int, int], tuple[str, float]] = {}
        for a, b in zip(loop, loop[1:] + loop[:1], strict=True):
            self.kinds[self._key(a, b)] = ("secondary", 1.0)
        self.blocks = [loop]

    @staticmethod
    def _key(a: int, b: int) -> tuple[int, int]:
        return (min(a, b), max(a, b))

    def subdivide(self) -> None:
        """Cut blocks until every one is about `block_area`, or cannot be cut well."""
        waiting = [(self.blocks[0], 0)]
        done: list[list[int]] = []
        while waiting:
            loop, depth = waiting.pop(0)
            loop = self._refresh(loop)
            limit = self.block_area * self.rng.uniform(0.7, 2.0)
            area = shapely.Polygon([self.nodes[i] for i in loop]).area
            parts = self._cut(loop, depth) if area > limit else None
            if parts is None:
                done.append(loop)
            else:
                waiting += [(part, depth + 1) for part in parts]
        self.blocks = [self._refresh(loop) for loop in done]

    def _refresh(self, loop: list[int]) -> list[int]:
        """Insert nodes that cuts of a neighbour have put on the sides of this block since."""
        fresh: list[int] = []
        for a, b in zip(loop, loop[1:] + loop[:1], strict=True):
            fresh.append(a)
            fresh += self._between(a, b)
        return fresh

    def _between(self, a: int, b: int) -> list[int]:
        if self._key(a, b) in self.kinds:
            return []
        start, end = self.nodes[a], self.nodes[b]
        length = np.hypot(*(end - start))
        direction = (end - start) / length
        found = []
        for number, point in enumerate(self.nodes):
            along = float((point - start) @ direction)
            across = abs(float((point - start) @ np.array([-direction[1], direction[0]])))
            if number not in (a, b) and across < 1e-6 and 0 < along < length:
                found.append((along, number))
        return [number for _, number in sorted(found)]

    def _cut(self, loop: list[int], depth: int) -> tuple[list[int], list[int]] | None:
        points = np.array([self.nodes[i] for i in loop])
        polygon = shapely.Polygon(points)
        corners = shapely.get_coordinates(polygon.minimum_rotated_rectangle)[:4]
        sides = corners[1:3] - corners[:2]
        long_side = sides[int(np.argmax(np.hypot(*sides.T)))]
        for _ in range(40):
            angle = np.arctan2(long_side[1], long_side[0]) + np.pi / 2 + self.rng.normal(0, np.radians(11))
            direction = np.array([np.cos(angle), np.sin(angle)])
            seed = polygon.centroid.coords[0] + long_side * self.rng.uniform(-0.16, 0.16)
            ends = [self._end(loop, seed, sign * direction) for sign in (1, -1)]
            if None in ends:
                continue
            parts = self._try(loop, ends, depth)
            if parts is not None:
                return parts
        return None

    def _end(self, loop: list[int], seed: np.ndarray, direction: np.ndarray) -> _Cut | None:
        """Where the ray from `seed` first leaves the block."""
        best, cut = np.inf, None
        for position, (a, b) in enumerate(zip(loop, loop[1:] + loop[:1], strict=True)):
            start, side = self.nodes[a], self.nodes[b] - self.nodes[a]
            determinant = direction[0] * -side[1] + direction[1] * side[0]
            if abs(determinant) < 1e-9:
                continue
            offset = start - seed
            t = (offset[0] * -side[1] + offset[1] * side[0]) / determinant
            s = (direction[0] * offset[1] - direction[1] * offset[0]) / determinant
            if t > 1.0 and 0 <= s <= 1 and t < best:
                best = t
                point = start + s * side
                reach = {end: np.hypot(*(self.nodes[end] - point)) for end in (a, b)}
                nearest = min(reach, key=reach.get)
                cut = _Cut(position, nearest if reach[nearest] < SNAP else None, point)
        return cut

    def _try(self, loop: list[int], ends: list[_Cut], depth: int) -> tuple[list[int], list[int]] | None:
        points = [self.nodes[end.node] if end.node is not None else end.point for end in ends]
        street = points[1] - points[0]
        length = np.hypot(*street)
        if length < MIN_EDGE or (ends[0].node is not None and ends[0].node == ends[1].node):
            return None
        for end, away in ((ends[0], street / length), (ends[1], -street / length)):
            if not self._angles_are_open(loop, end, away):
                return None
        numbers, new_nodes = [], []
        for end, point in zip(ends, points, strict=True):
            if end.node is None:
                numbers.append(len(self.nodes) + len(new_nodes))
                new_nodes.append((end, point))
            else:
                numbers.append(end.node)
        fresh = []
        for position, node in enumerate(loop):
            fresh.append(node)
            fresh += [
                number
                for number, end in zip(numbers, ends, strict=True)
                if end.node is None and end.position == position
            ]
        first, second = sorted(fresh.index(n) for n in numbers)
        parts = (fresh[first : second + 1], fresh[second:] + fresh[: first + 1])
        known = [*self.nodes, *(point for _, point in new_nodes)]
        for part in parts:
            shape = shapely.Polygon([known[node] for node in part])
            compact = 16 * shape.area / max(shape.length, 1.0) ** 2  # 1 for a square
            if not shape.is_valid or shape.area < 0.35 * self.block_area or compact < 0.45:
                return None
        for end, point in new_nodes:
            self._split_side(loop, end, point)
        self.kinds[self._key(*numbers)] = self._kind(depth)
        return parts

    def _angles_are_open(self, loop: list[int], end: _Cut, away: np.ndarray) -> bool:
        """Whether a street leaving along `away` keeps MIN_ANGLE from the streets already there."""
        if end.node is None:
            a, b = loop[end.position], loop[(end.position + 1) % len(loop)]
            side = self.nodes[b] - self.nodes[a]
            side = side / np.hypot(*side)
            return abs(float(side @ away)) < np.cos(MIN_ANGLE)
        for a, b in self.kinds:
            if end.node in (a, b):
                vector = self.nodes[a if b == end.node else b] - self.nodes[end.node]
                if float(vector @ away) / np.hypot(*vector) > np.cos(MIN_ANGLE):
                    return False
        return True

    def _split_side(self, loop: list[int], end: _Cut, point: np.ndarray) -> None:
        a, b = loop[end.position], loop[(end.position + 1) % len(loop)]
        kind = self.kinds.pop(self._key(a, b))
        number = len(self.nodes)
        self.nodes.append(point)
        self.kinds[self._key(a, number)] = kind
        self.kinds[self._key(number, b)] = kind

    def _kind(self, depth: int) -> tuple[str, float]:
        shares = {0: [0.8, 0.2, 0, 0], 1: [0.1, 0.5, 0.4, 0], 2: [0, 0.1, 0.5, 0.4]}.get(
            depth, [0, 0, 0.25, 0.75]
        )
        return str(self.rng.choice(list(STREET_CLASSES), p=shares)), float(self.rng.uniform(0.92, 1.12))


def subdivide_district(
    name: str, outline: np.ndarray, block_area: float, rng: np.random.Generator
) -> tuple[np.ndarray, list[Street]]:
    """Cut the polygon `outline` (N, 2) into blocks of about `block_area` m² → nodes and curved streets."""
    district = _District(outline, rng, block_area)
    district.subdivide()
    streets = []
    for (a, b), (kind, scale) in district.kinds.items():
        dimensions = STREET_CLASSES[kind]
        width = dimensions.width * scale
        if kind == "residential" and rng.random() < NARROW_SHARE:
            width = NARROW_LANE * scale
        streets.append(Street(a, b, kind, round(width, 2), dimensions.sidewalk, dimensions.lanes, name))
    ring = {frozenset(edge) for edge in _ring_edges(district, len(outline))}
    lines = _bow(np.array(district.nodes), streets, ring, rng)
    warp = _Warp(rng)
    nodes = warp(np.array(district.nodes))
    return nodes, [replace(s, bends=warp(line)[1:-1]) for s, line in zip(streets, lines, strict=True)]


SAMPLE = 3.0  # m between the points of a centre line
BOWED_SHARE = 0.45  # of the streets inside a district
MIN_RADIUS = 45.0  # m, of a bow
CLEARANCE = 34.0  # m between the centre lines of streets that share no junction


def _ring_edges(district: _District, corners: int) -> list[tuple[int, int]]:
    """The streets on the outline of a district."""
    outline = shapely.LinearRing([district.nodes[i] for i in range(corners)])
    return [
        (a, b)
        for a, b in district.kinds
        if outline.distance(shapely.Point((district.nodes[a] + district.nodes[b]) / 2)) < 1e-6
    ]


def _bow(
    nodes: np.ndarray, streets: list[Street], ring: set[frozenset[int]], rng: np.random.Generator
) -> list[np.ndarray]:
    """A centre line (n, 2) for every street: straight, a bow or an S, no closer to others than CLEARANCE.

    Bows rise as sin² and so begin and end along the chord: the angles at the junctions stay as they are.
    """
    lines = []
    for street in streets:
        start, end = nodes[street.a], nodes[street.b]
        count = max(2, int(np.ceil(np.hypot(*(end - start)) / SAMPLE)) + 1)
        lines.append(start + np.linspace(0, 1, count)[:, None] * (end - start))
    for number, street in enumerate(streets):
        if frozenset((street.a, street.b)) in ring or rng.random() > BOWED_SHARE:
            continue
        start, along = lines[number][0], lines[number][-1] - lines[number][0]
        length = np.hypot(*along)
        t = np.linspace(0, 1, len(lines[number]))
        s_shaped = length > 110 and rng.random() < 0.4
        shape = np.sin(np.pi * t) ** 2 * (1.54 * np.sin(2 * np.pi * t) if s_shaped else 1.0)
        bend = np.abs(np.gradient(np.gradient(shape, t), t)).max() / length**2  # curvature of a 1 m bow
        height = rng.uniform(0.5, 1.0) * min(1 / (MIN_RADIUS * bend), 18.0) * rng.choice([-1, 1])
        left = np.array([-along[1], along[0]]) / length
        others = [n for n in range(len(streets)) if n != number]
        apart = [n for n in others if not {street.a, street.b} & {streets[n].a, streets[n].b}]
        touching = [n for n in others if n not in apart]
        for shrink in (1.0, -1.0, 0.5, -0.5):
            line = start + t[:, None] * along + (height * shrink * shape)[:, None] * left
            if _is_clear(line, [lines[n] for n in apart], [lines[n] for n in touching]):
                lines[number] = line
                break
    return lines


def _is_clear(line: np.ndarray, apart: list[np.ndarray], touching: list[np.ndarray]) -> bool:
    """Whether a centre line keeps CLEARANCE from streets apart, and opens away from those it touches."""
    own = shapely.LineString(line)
    near = shapely.distance(own, [shapely.LineString(other) for other in apart])
    if np.any(near < CLEARANCE):
        return False
    middle = shapely.LineString(line[len(line) // 4 : -(len(line) // 4)])
    limit = min(CLEARANCE, 0.2 * own.length)
    return not np.any(shapely.distance(middle, [shapely.LineString(other) for other in touching]) < limit)


class _Warp:
    """A smooth displacement of the plane. The sum of its slopes is below 1, so it can be undone: lines that
    do not cross before do not cross after."""

    def __init__(self, rng: np.random.Generator):
        length = np.array([150.0, 210.0, 340.0]) * rng.uniform(0.9, 1.15, 3)  # m
        slope = np.array([0.15, 0.11, 0.05])
        angle = rng.uniform(0, 2 * np.pi, 3)
        self.wave = 2 * np.pi / length[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        # Across the wave's own direction, so that areas keep their size.
        self.shift = (slope * length / (2 * np.pi))[:, None] * np.stack([-np.sin(angle), np.cos(angle)], 1)
        self.phase = rng.uniform(0, 2 * np.pi, 3)

    def __call__(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) → (..., 2)."""
        return xy + np.sin(xy @ self.wave.T + self.phase) @ self.shift
