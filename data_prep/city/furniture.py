"""What stands along the streets: lamps, signals, stop signs, poles, trees, and parked cars."""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import shapely
from numpy.typing import ArrayLike

from data_prep.city import bodies
from data_prep.city.blocks import Block
from data_prep.city.buildings import Building
from data_prep.city.classes import Label
from data_prep.city.curves import left_of
from data_prep.city.mesh import Material, MeshBuilder, box, prism
from data_prep.city.streets import StreetGraph
from data_prep.city.terrain import Terrain


class Pole(NamedTuple):
    """An upright object. `kind`: street_lamp, traffic_signals, stop, utility_pole or flagpole, as in OSM."""

    kind: str
    xy: tuple[float, float]
    facing: float  # yaw of its arm, or of the direction its sign or lights face
    variant: float  # in [0, 1): colour and height within the kind
    street: int  # number of the street it belongs to, -1 for none


class Tree(NamedTuple):
    """A tree; `seed` shapes and colours its crown."""

    xy: tuple[float, float]
    height: float
    seed: int


class Car(NamedTuple):
    """A parked car: centre, yaw and size in metres; the colour is linear RGB."""

    xy: tuple[float, float]
    yaw: float
    size: tuple[float, float, float]  # length, width, height
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Furniture:
    """Everything in the streets that stays the same on every date."""

    poles: list[Pole]
    trees: list[Tree]


CAR_COLOURS = np.array(
    [
        (0.62, 0.62, 0.63),
        (0.75, 0.75, 0.74),
        (0.03, 0.03, 0.035),
        (0.30, 0.31, 0.33),
        (0.42, 0.03, 0.03),
        (0.04, 0.10, 0.34),
        (0.10, 0.20, 0.12),
        (0.45, 0.36, 0.20),
    ]
)


def plan_furniture(
    graph: StreetGraph,
    blocks: "list[Block]",
    buildings: list[Building],
    road: shapely.MultiPolygon,
    river: shapely.Polygon,
    drives_on_left: bool,
    rng: np.random.Generator,
) -> Furniture:
    """Choose a place for every pole and tree; poles stand on the sidewalk, 0.6 m behind the kerb."""
    poles: list[Pole] = []
    trees: list[Tree] = []
    for number, street in enumerate(graph.streets):
        curve = graph.curve(number)
        first = graph.setback(number, street.a) + 3.5
        last = curve.length - graph.setback(number, street.b) - 3.5
        wired = street.kind == "residential" and rng.random() < 0.45
        leafy = rng.random() < 0.5
        spacing = rng.uniform(24, 36)
        side = rng.choice([-1, 1])
        both = street.lanes > 1
        s = first + rng.uniform(1, 8)
        while s < last:
            for lit in (-1, 1) if both else (side,):
                xy = curve.beside(s, lit * (street.width / 2 + 0.6))
                facing = float(np.arctan2(*(curve.at(s)[0] - xy)[::-1]))
                kind = "utility_pole" if wired else "street_lamp"
                poles.append(Pole(kind, tuple(xy.tolist()), facing, float(rng.random()), number))
            side = -side if not wired else side
            s += spacing * rng.uniform(0.85, 1.15)
        if leafy and street.district:
            for lit in (-1, 1):
                for s in np.arange(first + 4, last - 2, rng.uniform(9, 16)):
                    xy = curve.beside(s + rng.uniform(-1, 1), lit * (street.width / 2 + 1.1))
                    if min((np.hypot(*(xy - p.xy)) for p in poles[-24:]), default=9.0) > 2.0:
                        trees.append(_tree(xy, rng, 4.0, 7.5))
        for node in (street.a, street.b):
            _add_junction_pole(poles, graph, number, node, drives_on_left, rng)
    for block in blocks:
        count = rng.poisson(block.polygon.area / (110.0 if block.park else 420.0))
        for xy in _scatter(block.polygon, count, rng):
            trees.append(_tree(xy, rng, 4.0, 11.0))
        if rng.random() < 0.35:
            anchor = block.polygon.exterior.interpolate(rng.random(), normalized=True)
            inside = np.asarray(block.polygon.representative_point().coords[0]) - anchor.coords[0]
            xy = np.asarray(anchor.coords[0]) + inside / max(np.hypot(*inside), 1e-6) * 1.2
            poles.append(Pole("flagpole", tuple(xy.tolist()), 0.0, float(rng.random()), -1))
    everything = shapely.union_all([b.footprint for b in buildings]).buffer(0.9)
    everything = shapely.union_all([everything, road.buffer(0.3), river])
    shapely.prepare(everything)
    trees = [tree for tree in trees if not everything.contains(shapely.Point(tree.xy))]
    walls = shapely.union_all([b.footprint for b in buildings]).buffer(0.25)
    blocked = shapely.union_all([walls, road.buffer(0.25)])
    shapely.prepare(blocked)
    poles = [pole for pole in poles if not blocked.contains(shapely.Point(pole.xy))]
    return Furniture(poles, trees + _belt_trees(graph, road, everything, rng))


def _tree(xy: np.ndarray, rng: np.random.Generator, low: float, high: float) -> Tree:
    return Tree(tuple(np.asarray(xy).tolist()), float(rng.uniform(low, high)), int(rng.integers(1 << 30)))


def _scatter(area: shapely.Polygon, count: int, rng: np.random.Generator) -> np.ndarray:
    lower, upper = np.array(area.bounds[:2]), np.array(area.bounds[2:])
    xy = lower + rng.random((count * 2 + 2, 2)) * (upper - lower)
    return xy[shapely.contains_xy(area, xy)][:count]


def _belt_trees(
    graph: StreetGraph, road: shapely.MultiPolygon, everything: shapely.Geometry, rng: np.random.Generator
) -> list[Tree]:
    """Woods between and around the districts, behind the houses of the ring roads."""
    near = road.buffer(130.0)
    lines = [graph.line(street) for street in graph.streets if street.district]
    inside = shapely.union_all(shapely.get_parts(shapely.polygonize(lines))).buffer(42.0)
    area = near.difference(inside.union(road.buffer(5.0)))
    shapely.prepare(area)
    count = int(area.area / 260)
    lower, upper = np.array(area.bounds[:2]), np.array(area.bounds[2:])
    xy = lower + rng.random((count * 2, 2)) * (upper - lower)
    keep = shapely.contains_xy(area, xy) & ~shapely.contains_xy(everything, xy)
    return [_tree(p, rng, 6.0, 13.0) for p in xy[keep][:count]]


def _add_junction_pole(
    poles: list[Pole],
    graph: StreetGraph,
    number: int,
    node: int,
    drives_on_left: bool,
    rng: np.random.Generator,
) -> None:
    """A signal at the big junctions, a stop sign where a small street meets a bigger one."""
    street = graph.streets[number]
    incident = [graph.streets[n] for n in graph.incident[node]]
    if len(incident) < 3 or street.district == "":
        return
    major = sum(s.kind in ("primary", "secondary") for s in incident)
    signals = major >= 3 or (major >= 2 and len(incident) >= 4)
    if not signals and (street.kind in ("primary", "secondary") or rng.random() < 0.25):
        return
    point, away = graph.leaving(number, node, graph.setback(number, node) + (2.4 if signals else 3.2))
    # Seen from a driver who comes towards the node, his own kerb: right of -away is left of away.
    own_side = -left_of(away) if drives_on_left else left_of(away)
    xy = point + own_side * (street.width / 2 + 0.6)
    kind = "traffic_signals" if signals else "stop"
    poles.append(
        Pole(kind, tuple(xy.tolist()), float(np.arctan2(away[1], away[0])), float(rng.random()), number)
    )


class Parking(NamedTuple):
    """How cars are parked along the streets."""

    ends: float = 12.0  # m kept free from the junctions
    on_sidewalk: float = 0.0  # m by which cars stand farther out than in the gutter


IN_GUTTER = Parking()


def park_cars(
    graph: StreetGraph,
    crossings: list[shapely.Polygon],
    paths: list[tuple[np.ndarray, float]],
    rng: np.random.Generator,
    parking: Parking = IN_GUTTER,
) -> list[Car]:
    """Cars at the kerbs of one date.

    Those on a crossing are left out, and those whose middle is nearer than r to a driven path: `paths` are
    pairs of a line (n, 2) and r in metres.
    """
    cars = []
    lanes = [shapely.LineString(path).buffer(reach, quad_segs=4) for path, reach in paths]
    blocked = shapely.union_all([*lanes, *crossings])
    shapely.prepare(blocked)
    for number, street in enumerate(graph.streets):
        if street.district == "" or street.width < 7.0:
            continue
        curve = graph.curve(number)
        first = graph.setback(number, street.a) + parking.ends
        last = graph.length(number) - graph.setback(number, street.b) - parking.ends
        share = rng.choice([0.0, 0.25, 0.6]) if street.lanes == 1 else 0.15
        for side in (-1, 1):
            s = first
            while s < last:
                length, width, height = rng.normal(4.5, 0.35), rng.normal(1.82, 0.08), rng.normal(1.55, 0.15)
                middle = s + length / 2
                gutter = street.width / 2 - width / 2 - 0.25
                centre = curve.beside(middle, side * (gutter + parking.on_sidewalk))
                taken = rng.random() < share
                variant, tone, turn = rng.integers(len(CAR_COLOURS)), rng.uniform(0.8, 1.2), rng.random()
                s += length + rng.uniform(0.9, 3.0)
                if not taken or blocked.contains(shapely.Point(centre)):
                    continue
                along = curve.at(middle)[1] * (1 if turn < 0.9 else -1)
                yaw = float(np.arctan2(along[1], along[0]) + rng.normal(0, 0.02))
                colour = tuple(float(c) for c in np.clip(CAR_COLOURS[variant] * tone, 0.01, 0.9))
                cars.append(
                    Car(tuple(centre.tolist()), yaw, (float(length), float(width), float(height)), colour)
                )
    return cars


def add_furniture(builder: MeshBuilder, furniture: Furniture, terrain: Terrain, kerb_height: float) -> None:
    """Put poles and trees into the mesh; the number of an instance is its index in the plan's list."""
    shapes = {
        "street_lamp": _add_lamp,
        "traffic_signals": _add_signal,
        "stop": _add_stop_sign,
        "utility_pole": _add_utility_pole,
        "flagpole": _add_flagpole,
    }
    for number, pole in enumerate(furniture.poles):
        ground = float(terrain.height(np.array(pole.xy))) + kerb_height
        shapes[pole.kind](_Site(builder, pole, number, ground))
    for number, tree in enumerate(furniture.trees):
        _add_tree(builder, tree, number, float(terrain.height(np.array(tree.xy))))


class _Site(NamedTuple):
    """Where one pole is put up: heights are above the ground there."""

    builder: MeshBuilder
    pole: Pole
    number: int
    ground: float

    def at(self, forward: float, left: float, z: float) -> np.ndarray:
        """(3,) the point `forward` and `left` of the pole as it faces, z above the ground."""
        x, y = self.pole.xy
        cos, sin = np.cos(self.pole.facing), np.sin(self.pole.facing)
        return np.array([x + cos * forward - sin * left, y + sin * forward + cos * left, self.ground + z])

    def add(self, triangles: np.ndarray, colour: ArrayLike, label: Label, glows: bool = False) -> None:
        """Add one part."""
        material = Material.LIGHT if glows else Material.PLAIN
        self.builder.add(triangles, material, colour, label=label, number=self.number)

    def post(self, radius: float, height: float, colour: ArrayLike, label: Label, taper: float = 1.0) -> None:
        """Add an upright prism from just below the ground."""
        low, high = self.ground - 0.3, self.ground + height
        self.add(prism(np.array(self.pole.xy), radius, low, high, taper=taper), colour, label)

    def bar(
        self,
        place: tuple[float, float, float],
        size: tuple[float, float, float],
        colour: ArrayLike,
        label: Label,
        glows: bool = False,
    ) -> None:
        """Add a box whose middle is at `place` (forward, left, up), turned as the pole faces."""
        self.add(box(self.at(*place), np.array(size), self.pole.facing), colour, label, glows)


LAMP_REACH = 1.7  # m from a lamp's post to its light


def lamp_height(pole: Pole) -> float:
    """Metres of a street lamp's light above the ground."""
    return 7.0 + 2.0 * pole.variant


def _add_lamp(site: _Site) -> None:
    height = lamp_height(site.pole)
    colour = ((0.30, 0.31, 0.32), (0.06, 0.09, 0.08), (0.48, 0.48, 0.47))[int(site.pole.variant * 3)]
    site.post(0.11, height, colour, Label.POLE, taper=0.6)
    site.post(0.17, 0.9, colour, Label.POLE)
    site.bar((0.9, 0, height - 0.05), (1.8, 0.08, 0.08), colour, Label.POLE)
    site.bar((LAMP_REACH, 0, height - 0.1), (0.7, 0.26, 0.13), (0.75, 0.70, 0.58), Label.LAMP, glows=True)


def _add_signal(site: _Site) -> None:
    dark, grey = (0.03, 0.03, 0.03), (0.22, 0.23, 0.22)
    site.post(0.12, 5.6, grey, Label.POLE)
    # The arm reaches over the lane; the heads look along `facing`, at the cars that come.
    for z, left in ((3.0, 0.0), (5.3, -2.6)):
        site.bar((0.18, left, z), (0.22, 0.42, 1.15), dark, Label.TRAFFIC_LIGHT)
        for k, lamp in enumerate(((0.75, 0.03, 0.02), (0.55, 0.32, 0.02), (0.02, 0.55, 0.2))):
            place = (0.31, left, z + 0.36 - 0.36 * k)
            site.bar(place, (0.06, 0.24, 0.24), lamp, Label.TRAFFIC_LIGHT, glows=True)
    site.bar((0, -1.4, 5.45), (0.1, 2.8, 0.1), grey, Label.POLE)


def _add_stop_sign(site: _Site) -> None:
    site.post(0.06, 2.9, (0.45, 0.45, 0.45), Label.SMALLPOLE)
    angle = np.pi / 8 + np.arange(9) * np.pi / 4
    rim = np.array([site.at(0.09, 0.42 * np.cos(a), 2.6 + 0.42 * np.sin(a)) for a in angle])
    middle = np.broadcast_to(site.at(0.09, 0, 2.6), (8, 3))
    site.add(np.stack([middle, rim[:-1], rim[1:]], 1), (0.55, 0.02, 0.03), Label.TRAFFIC_SIGN)
    back = np.array([np.cos(site.pole.facing), np.sin(site.pole.facing), 0.0]) * -0.02
    site.add(np.stack([middle, rim[1:], rim[:-1]], 1) + back, (0.35, 0.35, 0.36), Label.TRAFFIC_SIGN)
    site.bar((0.1, 0, 2.6), (0.03, 0.6, 0.16), (0.8, 0.8, 0.8), Label.TRAFFIC_SIGN)


def _add_utility_pole(site: _Site) -> None:
    wood = np.array([0.20, 0.13, 0.08]) * (0.8 + 0.5 * site.pole.variant)
    height = 8.5 + 1.5 * site.pole.variant
    site.post(0.17, height, wood, Label.POLE, taper=0.7)
    for drop in (0.4, 1.3):
        site.bar((0, 0, height - drop), (2.2, 0.12, 0.14), wood, Label.POLE)


def _add_flagpole(site: _Site) -> None:
    height = 8.0 + 4.0 * site.pole.variant
    site.post(0.09, height, (0.78, 0.78, 0.78), Label.POLE, taper=0.5)
    hue = site.pole.variant * 6.0
    colour = np.clip([abs(hue - 3) - 1, 2 - abs(hue - 2), 2 - abs(hue - 4)], 0.05, 0.7)
    site.bar((0.9, 0, height - 0.8), (1.7, 0.03, 1.1), colour, Label.UNKNOWN_OBJECT)


@lru_cache(maxsize=1)
def _blob() -> tuple[np.ndarray, np.ndarray]:
    """A once-subdivided octahedron → unit vertices (18, 3) and faces (32, 3)."""
    vertices = [(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)]
    faces = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    middles: dict[tuple[int, int], int] = {}
    points = [np.array(v, np.float64) for v in vertices]

    def middle(a: int, b: int) -> int:
        key = (min(a, b), max(a, b))
        if key not in middles:
            middles[key] = len(points)
            point = points[a] + points[b]
            points.append(point / np.linalg.norm(point))
        return middles[key]

    fine = []
    for a, b, c in faces:
        ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
        fine += [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    return np.array(points), np.array(fine)


BRANCHES = 5


def _add_tree(builder: MeshBuilder, tree: Tree, number: int, ground: float) -> None:
    """Trunk, branches, which show when the leaves have fallen, and crown; heights are above the ground."""
    rng = np.random.default_rng(tree.seed)
    foot = np.array([*tree.xy, ground])
    radius = tree.height * rng.uniform(0.22, 0.34)
    bark = np.array([0.15, 0.10, 0.065]) * rng.uniform(0.7, 1.4)
    trunk = 0.05 + 0.017 * tree.height
    fork = tree.height * 0.55
    # The open ground lies a little below the terrain.
    parts = [prism(foot[:2], trunk, ground - 0.3, ground + fork, 5, 0.7)]
    for turn in 2 * np.pi * (np.arange(BRANCHES) / BRANCHES + rng.random()):
        reach = radius * rng.uniform(0.5, 0.85)
        tip = [reach * np.cos(turn), reach * np.sin(turn), tree.height * rng.uniform(0.8, 0.95)]
        parts.append(_twig(foot + np.array([0, 0, fork * 0.85]), foot + tip, trunk * 0.5))
    builder.add(np.concatenate(parts), Material.PLAIN, bark, label=Label.VEGETATION, number=number)
    leaf = np.array([0.08, 0.17, 0.04]) * rng.uniform(0.6, 1.5) * rng.uniform(0.8, 1.2, 3)
    vertices, faces = _blob()
    crown = vertices * rng.uniform(0.8, 1.15, (len(vertices), 1))
    crown = crown * [radius, radius, tree.height * 0.36] + foot + [0, 0, tree.height * 0.64]
    builder.add(crown[faces], Material.FOLIAGE, leaf, number=number)


def _twig(start: np.ndarray, tip: np.ndarray, width: float) -> np.ndarray:
    """A thin three-sided spike from `start` to `tip`, (3,) each → (3, 3, 3) triangles."""
    angle = np.arange(3) * (2 * np.pi / 3)
    rim = start + width * np.stack([np.cos(angle), np.sin(angle), np.zeros(3)], 1)
    return np.stack([rim, np.roll(rim, -1, 0), np.broadcast_to(tip, rim.shape)], 1)


def add_cars(builder: MeshBuilder, cars: dict[int, Car], terrain: Terrain) -> None:
    """Put parked cars onto the ground; the number of an instance is its key in `cars`."""
    for number, car in cars.items():
        stand = terrain.frame(np.array([*car.xy, car.yaw]))
        parts = bodies.car(car.size, car.colour, lit=False)
        triangles = np.concatenate([part.triangles for part in parts]) @ stand[:3, :3].T + stand[:3, 3]
        colour = np.concatenate([np.broadcast_to(part.colour, (len(part.triangles), 3)) for part in parts])
        builder.add(triangles, Material.PLAIN, colour, label=Label.CAR, number=number)
