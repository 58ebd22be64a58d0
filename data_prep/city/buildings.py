"""Buildings: footprints along the streets, courtyards, facades with windows; roofs.py gives them roofs."""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import shapely
from shapely.affinity import affine_transform

from data_prep.city.blocks import Block
from data_prep.city.mesh import Facade, MeshBuilder, polygons
from data_prep.city.roofs import ROOFS, roof_fits
from data_prep.city.streets import StreetGraph
from data_prep.city.terrain import Terrain

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
FLOOR_ABOVE_GROUND = 0.15  # m, level with the sidewalk at its highest side
FOUNDATION = 0.5  # m that walls go into the ground


@dataclass(frozen=True)
class Building:
    """A footprint with everything that its walls and roof need."""

    footprint: shapely.Polygon  # counter-clockwise, holes are courtyards
    floor: float  # height of the ground floor in the map frame, above all ground around
    base: float  # height of the walls' foot, in the ground everywhere
    height: float  # m, of the walls above the floor
    roof: str  # a key of roofs.ROOFS
    rise: float  # m that the roof rises above the walls
    wall_colour: tuple[float, float, float]
    roof_colour: tuple[float, float, float]
    facade: Facade
    district: str


class _Character(NamedTuple):
    """What the buildings of one block have in common."""

    density: float  # in [0, 1]
    tall: float  # in [0, 1]
    setback: float  # in [0, 1]
    palette: np.ndarray  # (3, 3) wall colours that most of them have
    roof_colour: np.ndarray  # (3,)
    pitched: float  # share of small houses with pitched roofs
    glassy: float  # share of office fronts
    brick: float  # share of brick walls


def _character(rng: np.random.Generator) -> _Character:
    return _Character(
        *rng.uniform(0, 1, 3),
        WALL_COLOURS[rng.choice(len(WALL_COLOURS), 3, replace=False)],
        ROOF_COLOURS[rng.integers(len(ROOF_COLOURS))],
        rng.choice([0.15, 0.6, 0.95]),
        rng.choice([0.0, 0.1, 0.6], p=[0.5, 0.35, 0.15]),
        rng.choice([0.1, 0.5, 0.95]),
    )


def plan_buildings(
    graph: StreetGraph,
    terrain: Terrain,
    reach: shapely.MultiPolygon,
    blocks: "list[Block]",
    rng: np.random.Generator,
) -> list[Building]:
    """Line every street with buildings, inside the blocks and along the outer side of the ring roads."""
    built: list[Building] = []
    for block in blocks:
        if block.park:
            continue
        if block.polygon.area > 1500 and rng.random() < 0.14:
            ring = _perimeter_building(block.polygon, rng)
            if ring is not None:
                built.append(_dress(ring, terrain, block.district, _character(rng), rng))
                continue
        built += _row_along(_ccw(block.polygon.exterior), block.polygon, terrain, block.district, rng)
    for district in ("train", "val", "test"):
        own = [graph.line(s) for s in graph.streets if s.district == district]
        inside = shapely.union_all(shapely.get_parts(shapely.polygonize(own)))
        strip = inside.buffer(48.0, join_style="mitre").difference(inside.union(reach))
        # Walked clockwise, the outer edge of the sidewalk has the open ground on its left.
        edge = polygons(inside.union(reach.intersection(inside.buffer(20.0))))[0].exterior
        for area in polygons(strip):
            if area.area > 500:
                built += _row_along(shapely.reverse(_ccw(edge)), area, terrain, district, rng)
    return built


def _ccw(ring: shapely.LinearRing) -> shapely.LinearRing:
    return ring if shapely.is_ccw(ring) else shapely.reverse(ring)


def _row_along(
    ring: shapely.LinearRing,
    area: shapely.Polygon,
    terrain: Terrain,
    district: str,
    rng: np.random.Generator,
) -> list[Building]:
    """Buildings side by side along a ring (area on its left), of varied width, depth and setback."""
    xy = shapely.get_coordinates(ring.simplify(1.0))
    taken: list[shapely.Polygon] = []
    built: list[Building] = []
    character = _character(rng)
    area = area.buffer(0.01)
    for start, end in pairwise(xy):
        length = float(np.hypot(*(end - start)))
        if length < 9:
            continue
        direction = (end - start) / length
        inwards = np.array([-direction[1], direction[0]])
        s = rng.uniform(0, 4)
        while s < length - 7:
            courtyard = length - s > 26 and rng.random() < 0.12
            width, depth = rng.choice([8, 11, 15, 21, 28]) * rng.uniform(0.85, 1.25), rng.uniform(8, 17)
            if courtyard:
                width, depth = rng.uniform(26, 38), rng.uniform(23, 32)
            width = min(width, length - s)
            if rng.random() < 0.10 + 0.12 * character.density:
                s += width  # a gap: a garden, a yard, a parking lot
                continue
            setback = rng.choice([0.0, 0.4, 2.5, 6.0], p=[0.3, 0.3, 0.25, 0.15])
            setback += 3 * character.setback * rng.random()
            for shrink in (1.0, 0.7, 0.45):
                if width < 5:
                    break
                local = _footprint(width - 0.3, max(depth * shrink, 5.0), courtyard and shrink == 1.0, rng)
                base = start + direction * s + inwards * setback
                polygon = affine_transform(
                    local, [direction[0], inwards[0], direction[1], inwards[1], *base.tolist()]
                )
                if not area.contains(polygon) or any(polygon.intersects(t) for t in taken):
                    continue
                taken.append(polygon)
                footprint = shapely.orient_polygons(polygon)
                built.append(_dress(footprint, terrain, district, character, rng))
                break
            s += width + rng.choice([0.0, 1.5, 4.0, 9.0], p=[0.4, 0.25, 0.2, 0.15])
    return built


def _footprint(width: float, depth: float, courtyard: bool, rng: np.random.Generator) -> shapely.Polygon:
    """A rectangle, one with corners or bays cut out, an L, T or U, or one around a courtyard.

    Its street front lies on y = 0, from x = 0 to `width`.
    """
    w, d = width, depth
    if courtyard and min(w, d) > 22:
        wings = rng.uniform(7, 9, 4)
        yard = [
            (wings[0], wings[1]),
            (wings[0], d - wings[2]),
            (w - wings[3], d - wings[2]),
            (w - wings[3], wings[1]),
        ]
        return shapely.Polygon([(0, 0), (w, 0), (w, d), (0, d)], [yard])
    form = rng.random()
    a, b = w * rng.uniform(0.3, 0.6), d * rng.uniform(0.35, 0.6)
    if form < 0.42 or w < 9 or d < 8:
        corners = [(0, 0), (w, 0), (w, d), (0, d)]
    elif form < 0.58:  # an L around a yard at the back
        corners = [(0, 0), (w, 0), (w, b), (a, b), (a, d), (0, d)]
    elif form < 0.70:  # an L around a forecourt
        corners = [(0, 0), (a, 0), (a, d - b), (w, d - b), (w, d), (0, d)]
    elif form < 0.78:  # a recessed front
        c = w * rng.uniform(0.12, 0.28)
        corners = [(0, 0), (c, 0), (c, 2.2), (w - c, 2.2), (w - c, 0), (w, 0), (w, d), (0, d)]
    elif form < 0.86:  # a U, open at the back
        c = w * rng.uniform(0.25, 0.36)
        corners = [(0, 0), (w, 0), (w, d), (w - c, d), (w - c, b), (c, b), (c, d), (0, d)]
    elif form < 0.93:  # a T
        c = w * rng.uniform(0.2, 0.33)
        corners = [(0, 0), (w, 0), (w, b), (w - c, b), (w - c, d), (c, d), (c, b), (0, b)]
    else:  # cut corners at the street
        c = min(w, d) * rng.uniform(0.2, 0.35)
        corners = [(c, 0), (w - c, 0), (w, c), (w, d), (0, d), (0, c)]
    return shapely.Polygon(corners)


def _perimeter_building(block: shapely.Polygon, rng: np.random.Generator) -> shapely.Polygon | None:
    """One building around a courtyard that fills the block."""
    outer = polygons(block.buffer(-rng.uniform(1.4, 4.0), join_style="mitre"))
    if len(outer) != 1 or outer[0].interiors:
        return None
    shape = shapely.Polygon(outer[0].exterior).simplify(1.2)
    yard = polygons(shape.buffer(-rng.uniform(10, 14), join_style="mitre").simplify(1.0))
    if len(yard) != 1 or yard[0].area < 120:
        return None
    return shapely.orient_polygons(shapely.Polygon(shape.exterior, [yard[0].exterior]))


def _dress(
    footprint: shapely.Polygon,
    terrain: Terrain,
    district: str,
    character: _Character,
    rng: np.random.Generator,
) -> Building:
    """Stand a footprint on the ground and choose its height, roof, colours and windows."""
    ground = terrain.height(shapely.get_coordinates(footprint))
    floor_height = rng.uniform(2.9, 3.9)
    floors = int(np.clip(round(1 + rng.gamma(2.0, 0.6 + 1.7 * character.tall)), 1, 14))
    if footprint.area > 120 and rng.random() < 0.03:
        floors = int(rng.integers(9, 17))  # a tower
    shops = rng.random() < 0.3 and floors > 1
    glassy = rng.random() < character.glassy
    if floors <= 4 and not glassy and rng.random() < character.pitched:
        roofs = [name for name in ("gable", "hip", "shed", "mansard") if roof_fits(name, footprint)]
    else:
        roofs = ["stepped"] if floors >= 5 and rng.random() < 0.45 and roof_fits("stepped", footprint) else []
    roof = str(rng.choice(roofs)) if roofs else str(rng.choice(["flat", "machine_house"]))
    palette = character.palette if rng.random() < 0.8 else WALL_COLOURS
    colour = palette[rng.integers(len(palette))] * rng.uniform(0.75, 1.15) * rng.uniform(0.92, 1.08, 3)
    roof_colour = (
        character.roof_colour if rng.random() < 0.6 else ROOF_COLOURS[rng.integers(len(ROOF_COLOURS))]
    )
    facade = Facade(
        pitch=rng.uniform(1.6, 4.6),
        floor_height=floor_height,
        width_share=rng.uniform(0.8, 0.93) if glassy else rng.uniform(0.3, 0.62),
        sill=0.08 if glassy else rng.uniform(0.2, 0.36),
        head=0.94 if glassy else rng.uniform(0.7, 0.88),
        shop_height=floor_height if shops else 0.0,
        brick=rng.uniform(0.1, 0.35) if rng.random() < character.brick else 0.0,
        tint=rng.random(),
        number=float(rng.integers(1, 4000)),
        awning=rng.random(),
    )
    return Building(
        footprint,
        float(ground.max()) + FLOOR_ABOVE_GROUND,
        float(ground.min()) - FOUNDATION,
        float(floors * floor_height + rng.uniform(0.3, 1.2)),
        roof,
        float(rng.uniform(2.0, 4.5) if roof != "stepped" else floor_height * rng.integers(1, 4)),
        tuple(float(c) for c in np.clip(colour, 0.02, 0.85)),
        tuple(float(c) for c in np.clip(roof_colour * rng.uniform(0.8, 1.2), 0.02, 0.85)),
        facade,
        district,
    )


def add_buildings(builder: MeshBuilder, buildings: list[Building]) -> None:
    """Put walls and roofs of all buildings into the mesh; roofs are level, walls reach into the ground."""
    for number, building in enumerate(buildings):
        top = building.floor + building.height
        for ring in (building.footprint.exterior, *building.footprint.interiors):
            for start, end in pairwise(shapely.get_coordinates(ring)):
                builder.add_facade(
                    start,
                    end,
                    building.base,
                    top,
                    building.wall_colour,
                    building.facade,
                    number,
                    base=building.floor,
                )
        ROOFS[building.roof](builder, building, number)
