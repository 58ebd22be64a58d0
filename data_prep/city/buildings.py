"""Buildings: footprints along the streets, facades with windows, flat and gabled roofs."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely

from data_prep.city.blocks import Block
from data_prep.city.classes import Label
from data_prep.city.mesh import Facade, Material, MeshBuilder, boundary_walls, flat, polygons
from data_prep.city.streets import StreetGraph

WALL_COLOURS = np.array(
    [
        (0.36, 0.13, 0.08),  # brick red
        (0.28, 0.15, 0.10),  # brown brick
        (0.56, 0.43, 0.28),  # sandstone
        (0.70, 0.66, 0.58),  # cream plaster
        (0.72, 0.72, 0.70),  # white plaster
        (0.40, 0.40, 0.40),  # concrete
        (0.25, 0.27, 0.30),  # dark slate
        (0.62, 0.50, 0.20),  # ochre
        (0.33, 0.44, 0.36),  # sage
        (0.28, 0.38, 0.52),  # blue
        (0.58, 0.35, 0.30),  # salmon
        (0.48, 0.30, 0.42),  # plum
    ]
)
ROOF_COLOURS = np.array([(0.20, 0.19, 0.18), (0.35, 0.14, 0.09), (0.30, 0.29, 0.28), (0.15, 0.17, 0.20)])


@dataclass(frozen=True)
class Building:
    """A footprint with everything that its walls and roof need."""

    footprint: shapely.Polygon  # counter-clockwise, holes are courtyards
    height: float  # m, of the walls
    gable: float  # m the ridge stands above the walls; 0 for a flat roof
    wall_colour: tuple[float, float, float]
    roof_colour: tuple[float, float, float]
    facade: Facade
    district: str


def plan_buildings(
    graph: StreetGraph, reach: shapely.MultiPolygon, blocks: "list[Block]", rng: np.random.Generator
) -> list[Building]:
    """Line every street with buildings, inside the blocks and along the outer side of the ring roads."""
    built: list[Building] = []
    for block in blocks:
        if block.park:
            continue
        if block.polygon.area > 1500 and rng.random() < 0.16:
            ring = _perimeter_building(block.polygon, rng)
            if ring is not None:
                built.append(_dress(ring, block.district, rng))
                continue
        built += _row_along(_ccw(block.polygon.exterior), block.polygon, block.district, rng)
    for district in ("train", "val", "test"):
        own = [graph.line(s) for s in graph.streets if s.district == district]
        inside = shapely.union_all(shapely.get_parts(shapely.polygonize(own)))
        strip = inside.buffer(48.0, join_style="mitre").difference(inside.union(reach))
        # Walked clockwise, the outer edge of the sidewalk has the open ground on its left.
        edge = polygons(inside.union(reach.intersection(inside.buffer(20.0))))[0].exterior
        for area in polygons(strip):
            if area.area > 500:
                built += _row_along(shapely.reverse(_ccw(edge)), area, district, rng)
    return built


def _ccw(ring: shapely.LinearRing) -> shapely.LinearRing:
    return ring if shapely.is_ccw(ring) else shapely.reverse(ring)


def _row_along(
    ring: shapely.LinearRing, area: shapely.Polygon, district: str, rng: np.random.Generator
) -> list[Building]:
    """Buildings side by side along a ring (area on its left), of varied width, depth and setback."""
    xy = shapely.get_coordinates(ring.simplify(1.0))
    taken: list[shapely.Polygon] = []
    built: list[Building] = []
    character = rng.uniform(0, 1, 3)  # density, height and setback of this block
    area = area.buffer(0.01)
    for start, end in pairwise(xy):
        length = float(np.hypot(*(end - start)))
        if length < 9:
            continue
        direction = (end - start) / length
        inwards = np.array([-direction[1], direction[0]])
        s = rng.uniform(0, 4)
        while s < length - 7:
            width = min(rng.choice([8, 11, 15, 21, 28]) * rng.uniform(0.85, 1.25), length - s)
            if rng.random() < 0.10 + 0.12 * character[0]:
                s += width  # a gap: a garden, a yard, a parking lot
                continue
            depth = rng.uniform(8, 17)
            setback = (
                rng.choice([0.0, 0.4, 2.5, 6.0], p=[0.3, 0.3, 0.25, 0.15]) + 3 * character[2] * rng.random()
            )
            for shrink in (1.0, 0.7, 0.45):
                local = _footprint(width - 0.3, max(depth * shrink, 5.0), rng)
                base = start + direction * s + inwards * setback
                polygon = shapely.Polygon(base + local[:, :1] * direction + local[:, 1:] * inwards)
                if width < 5 or not area.contains(polygon) or any(polygon.intersects(t) for t in taken):
                    continue
                taken.append(polygon)
                built.append(_dress(shapely.orient_polygons(polygon), district, rng, character[1]))
                break
            s += width + rng.choice([0.0, 1.5, 4.0, 9.0], p=[0.4, 0.25, 0.2, 0.15])
    return built


def _footprint(width: float, depth: float, rng: np.random.Generator) -> np.ndarray:
    """A rectangle, or one with corners or a bay cut out → (n, 2), counter-clockwise, from (0, 0)."""
    w, d = width, depth
    form = rng.random()
    if form < 0.5 or w < 9 or d < 8:
        return np.array([[0, 0], [w, 0], [w, d], [0, d]])
    a, b = w * rng.uniform(0.3, 0.6), d * rng.uniform(0.35, 0.6)
    if form < 0.65:
        return np.array([[0, 0], [w, 0], [w, b], [a, b], [a, d], [0, d]])
    if form < 0.78:
        return np.array([[0, 0], [a, 0], [a, d - b], [w, d - b], [w, d], [0, d]])
    if form < 0.9:
        c = w * rng.uniform(0.12, 0.28)
        return np.array([[0, 0], [c, 0], [c, 2.2], [w - c, 2.2], [w - c, 0], [w, 0], [w, d], [0, d]])
    c = min(w, d) * rng.uniform(0.2, 0.35)
    return np.array([[c, 0], [w - c, 0], [w, c], [w, d], [0, d], [0, c]])


def _perimeter_building(block: shapely.Polygon, rng: np.random.Generator) -> shapely.Polygon | None:
    """One building around a courtyard that fills the block."""
    outer = polygons(block.buffer(-rng.uniform(0.5, 4.0), join_style="mitre"))
    if len(outer) != 1 or outer[0].interiors:
        return None
    shape = shapely.Polygon(outer[0].exterior).simplify(1.5)
    yard = polygons(shape.buffer(-rng.uniform(10, 14), join_style="mitre").simplify(1.0))
    if len(yard) != 1 or yard[0].area < 120:
        return None
    return shapely.orient_polygons(shapely.Polygon(shape.exterior, [yard[0].exterior]))


def _dress(
    footprint: shapely.Polygon, district: str, rng: np.random.Generator, tall: float = 0.5
) -> Building:
    floor_height = rng.uniform(2.9, 3.9)
    floors = int(np.clip(round(1 + rng.gamma(2.0, 0.8 + 1.4 * tall)), 1, 11))
    shops = rng.random() < 0.3 and floors > 1
    corners = len(footprint.exterior.coords) - 1
    small = footprint.area < 260 and corners == 4 and floors <= 3
    gable = rng.uniform(2.0, 4.5) if small and rng.random() < 0.7 else 0.0
    glassy = rng.random() < 0.15
    colour = (
        WALL_COLOURS[rng.integers(len(WALL_COLOURS))] * rng.uniform(0.75, 1.15) * rng.uniform(0.92, 1.08, 3)
    )
    facade = Facade(
        pitch=rng.uniform(1.6, 4.6),
        floor_height=floor_height,
        width_share=rng.uniform(0.8, 0.93) if glassy else rng.uniform(0.3, 0.62),
        sill=0.08 if glassy else rng.uniform(0.2, 0.36),
        head=0.94 if glassy else rng.uniform(0.7, 0.88),
        shop_height=floor_height if shops else 0.0,
        brick=rng.uniform(0.1, 0.35) if rng.random() < 0.5 else 0.0,
        tint=rng.random(),
        number=float(rng.integers(1, 4000)),
        awning=rng.random(),
    )
    return Building(
        footprint,
        float(floors * floor_height + rng.uniform(0.3, 1.2)),
        float(gable),
        tuple(float(c) for c in np.clip(colour, 0.02, 0.85)),
        tuple(float(c) for c in ROOF_COLOURS[rng.integers(len(ROOF_COLOURS))]),
        facade,
        district,
    )


def add_buildings(builder: MeshBuilder, buildings: list[Building], ground: float) -> None:
    """Put walls and roofs of all buildings into the mesh."""
    for number, building in enumerate(buildings):
        for ring in (building.footprint.exterior, *building.footprint.interiors):
            xy = shapely.get_coordinates(ring)
            for start, end in pairwise(xy):
                builder.add_facade(
                    start, end, ground, building.height, building.wall_colour, building.facade, number
                )
        if building.gable > 0:
            _add_gable(builder, building, number)
        else:
            roof = flat(building.footprint, building.height)
            builder.add(roof, Material.ROOF, building.roof_colour, number=number)
            rim = building.footprint.difference(building.footprint.buffer(-0.35))
            trim = np.asarray(building.wall_colour) * 0.6 + 0.12
            parapet = boundary_walls(rim, building.height, building.height + 0.45)
            for part in (flat(rim, building.height + 0.45), parapet):
                builder.add(part, Material.PLAIN, trim, label=Label.BUILDING, number=number)


def _add_gable(builder: MeshBuilder, building: Building, number: int) -> None:
    """A ridge along the longer axis of a rectangular footprint."""
    xy = shapely.get_coordinates(building.footprint)[:4]
    if np.hypot(*(xy[1] - xy[0])) < np.hypot(*(xy[2] - xy[1])):
        xy = np.roll(xy, -1, axis=0)
    corners = np.append(xy, np.full((4, 1), building.height), 1)
    a, b, c, d = corners
    rise = np.array([0, 0, building.gable])
    near, far = (d + a) / 2 + rise, (b + c) / 2 + rise
    roof = np.array([[a, b, far], [a, far, near], [c, d, near], [c, near, far]])
    builder.add(roof, Material.ROOF, building.roof_colour, number=number)
    ends = np.array([[b, c, far], [d, a, near]])
    builder.add(ends, Material.PLAIN, building.wall_colour, label=Label.BUILDING, number=number)
