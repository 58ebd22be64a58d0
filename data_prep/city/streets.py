"""Irregular street graphs: a district is cut into blocks by recursive subdivision.

Each cut joins two sides of a block at an angle near, but not at, a right angle. An end close to an existing
junction moves onto it, so crossings (X) and T-junctions mix, blocks differ in size, and no two places have
the same layout.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import shapely


class StreetClass(NamedTuple):
    """Dimensions of one OSM class of street, in metres."""

    width: float  # kerb to kerb
    sidewalk: float
    lanes: int  # per direction


STREET_CLASSES = {
    "primary": StreetClass(15.0, 4.0, 2),
    "secondary": StreetClass(13.5, 3.5, 2),
    "tertiary": StreetClass(9.5, 2.8, 1),
    "residential": StreetClass(8.4, 2.2, 1),
}

SNAP = 26.0  # m: a cut that ends this close to a junction ends in it
MIN_ANGLE = np.radians(52.0)  # between two streets of one junction
MIN_EDGE = 32.0  # m between junctions


@dataclass(frozen=True)
class Street:
    """A straight piece of street between two nodes."""

    a: int
    b: int
    kind: str
    width: float  # m, kerb to kerb
    sidewalk: float  # m
    lanes: int  # per direction
    district: str  # "train", "val", "test", or "" for a road between districts


@dataclass
class StreetGraph:
    """Nodes (N, 2) in map coordinates and the streets between them."""

    nodes: np.ndarray
    streets: list[Street]
    incident: list[list[int]] = field(init=False)  # numbers of the streets at each node

    def __post_init__(self) -> None:
        self.incident = [[] for _ in self.nodes]
        for number, street in enumerate(self.streets):
            self.incident[street.a].append(number)
            self.incident[street.b].append(number)

    def line(self, street: Street) -> shapely.LineString:
        """The centre line of a street."""
        return shapely.LineString(self.nodes[[street.a, street.b]])

    def direction(self, number: int, node: int) -> np.ndarray:
        """(2,) unit vector along street `number`, leading away from `node`."""
        street = self.streets[number]
        other = street.b if street.a == node else street.a
        vector = self.nodes[other] - self.nodes[node]
        return vector / np.hypot(*vector)

    def length(self, number: int) -> float:
        """Metres between the two nodes of street `number`."""
        street = self.streets[number]
        return float(np.hypot(*(self.nodes[street.a] - self.nodes[street.b])))

    def setback(self, number: int, node: int) -> float:
        """How far from `node` along street `number` the junction ends: beyond the other streets' kerbs."""
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
    """Cut the polygon `outline` (N, 2) into blocks of about `block_area` m² → nodes and streets."""
    district = _District(outline, rng, block_area)
    district.subdivide()
    streets = []
    for (a, b), (kind, scale) in district.kinds.items():
        dimensions = STREET_CLASSES[kind]
        streets.append(
            Street(
                a, b, kind, round(dimensions.width * scale, 2), dimensions.sidewalk, dimensions.lanes, name
            )
        )
    return np.array(district.nodes), streets
