"""Roofs, by name: flat ones with parapets, machine houses and set-back storeys, and pitched ones."""

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import shapely

from data_prep.city.classes import Label
from data_prep.city.mesh import Material, MeshBuilder, boundary_walls, box, flat, polygons

if TYPE_CHECKING:  # buildings.py imports the table below
    from data_prep.city.buildings import Building

PARAPET = 0.45  # m
MANSARD_INSET = 1.4  # m
LARGEST_PITCHED = 280.0  # m²


def roof_fits(name: str, footprint: shapely.Polygon) -> bool:
    """Whether a roof can be built on a footprint: ridges need small rectangles, the others room inside."""
    if footprint.interiors:
        return False
    corners = len(footprint.exterior.coords) - 1
    if name in ("gable", "hip", "shed"):
        return corners == 4 and footprint.area < LARGEST_PITCHED
    if name == "mansard":
        return corners <= 8 and _inset(footprint, MANSARD_INSET) is not None
    return corners <= 6 and _inset(footprint, 2.0) is not None and footprint.area > 140


def _inset(footprint: shapely.Polygon, distance: float) -> np.ndarray | None:
    """(n, 2) corners moved inwards, one for each of the footprint's; None where one is lost."""
    inner = polygons(footprint.buffer(-distance, join_style="mitre"))
    outer = shapely.get_coordinates(footprint)[:-1]
    if len(inner) != 1 or len(inner[0].exterior.coords) - 1 != len(outer):
        return None
    ring = shapely.get_coordinates(shapely.orient_polygons(inner[0]))[:-1]
    first = int(np.argmin(np.hypot(*(ring - outer[0]).T)))
    ring = np.roll(ring, -first, axis=0)
    moved = np.hypot(*(ring - outer).T)
    return ring if np.all(moved < 3 * distance) and np.all(moved > 0.9 * distance) else None


def _trim(building: "Building") -> np.ndarray:
    return np.asarray(building.wall_colour) * 0.6 + 0.12


def _flat(builder: MeshBuilder, building: "Building", number: int) -> None:
    _terrace(builder, building, building.footprint, building.floor + building.height, number)


def _terrace(
    builder: MeshBuilder, building: "Building", area: shapely.Polygon, z: float, number: int
) -> None:
    """A level roof with a parapet around it and around its courtyards."""
    builder.add(flat(area, z), Material.ROOF, building.roof_colour, number=number)
    rim = area.difference(area.buffer(-0.35))
    for part in (flat(rim, z + PARAPET), boundary_walls(rim, z, z + PARAPET)):
        builder.add(part, Material.PLAIN, _trim(building), label=Label.BUILDING, number=number)


def _machine_house(builder: MeshBuilder, building: "Building", number: int) -> None:
    """A flat roof with the top of a lift shaft and ventilators on it."""
    _flat(builder, building, number)
    z = building.floor + building.height
    middle = np.asarray(building.footprint.representative_point().coords[0])
    room = building.footprint.exterior.distance(shapely.Point(middle))
    corners = shapely.get_coordinates(building.footprint)
    along = corners[1] - corners[0]
    yaw = float(np.arctan2(along[1], along[0]))
    rng = np.random.default_rng(int(building.facade.number))
    side = min(room * rng.uniform(0.7, 1.1), 5.0)
    house = box(np.array([*middle, z + 1.3]), np.array([side, side, 2.6]), yaw)
    builder.add(house, Material.PLAIN, _trim(building) * 0.9, label=Label.BUILDING, number=number)
    for _ in range(int(rng.integers(0, 4))):
        xy = middle + rng.uniform(-0.6, 0.6, 2) * room
        vent = box(np.array([*xy, z + 0.5]), np.array([*rng.uniform(0.8, 1.8, 2), 1.0]), yaw)
        builder.add(vent, Material.PLAIN, (0.5, 0.5, 0.5), label=Label.BUILDING, number=number)


def _stepped(builder: MeshBuilder, building: "Building", number: int) -> None:
    """Upper storeys that stand back, in windows like those below."""
    z = building.floor + building.height
    _terrace(builder, building, building.footprint, z, number)
    inner = shapely.Polygon(_inset(building.footprint, 2.0))
    for start, end in pairwise(shapely.get_coordinates(inner)):
        builder.add_facade(
            start,
            end,
            z,
            z + building.rise,
            building.wall_colour,
            building.facade._replace(shop_height=0.0),
            number,
            base=z - 0.5,
        )
    _terrace(builder, building, inner, z + building.rise, number)


def _mansard(builder: MeshBuilder, building: "Building", number: int) -> None:
    """Steep slopes on all sides and a flat top."""
    outer = shapely.get_coordinates(building.footprint)[:-1]
    inner = _inset(building.footprint, MANSARD_INSET)
    z = building.floor + building.height
    low = np.column_stack([outer, np.full(len(outer), z)])
    high = np.column_stack([inner, np.full(len(outer), z + building.rise)])
    a, b, c, d = low, np.roll(low, -1, 0), np.roll(high, -1, 0), high
    sides = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    builder.add(sides, Material.ROOF, building.roof_colour, number=number)
    top = flat(shapely.Polygon(inner), z + building.rise)
    builder.add(top, Material.ROOF, np.asarray(building.roof_colour) * 0.8, number=number)


def _lengthwise(building: "Building") -> np.ndarray:
    """(4, 3) corners of a rectangular footprint at the walls' top, the first side a long one."""
    xy = shapely.get_coordinates(building.footprint)[:4]
    if np.hypot(*(xy[1] - xy[0])) < np.hypot(*(xy[2] - xy[1])):
        xy = np.roll(xy, -1, axis=0)
    return np.column_stack([xy, np.full(4, building.floor + building.height)])


def _gable(builder: MeshBuilder, building: "Building", number: int) -> None:
    """A ridge along the longer axis, and a chimney on it."""
    a, b, c, d = _lengthwise(building)
    rise = np.array([0, 0, building.rise])
    near, far = (d + a) / 2 + rise, (b + c) / 2 + rise
    roof = np.array([[a, b, far], [a, far, near], [c, d, near], [c, near, far]])
    builder.add(roof, Material.ROOF, building.roof_colour, number=number)
    ends = np.array([[b, c, far], [d, a, near]])
    builder.add(ends, Material.PLAIN, building.wall_colour, label=Label.BUILDING, number=number)
    _chimney(builder, building, near + 0.25 * (far - near), number)


def _hip(builder: MeshBuilder, building: "Building", number: int) -> None:
    """Slopes on all four sides."""
    a, b, c, d = _lengthwise(building)
    length, width = np.hypot(*(b - a)[:2]), np.hypot(*(c - b)[:2])
    inset = (b - a) / length * min(0.5 * width, 0.45 * length)
    rise = np.array([0, 0, building.rise])
    near, far = (d + a) / 2 + rise + inset, (b + c) / 2 + rise - inset
    roof = np.array([[a, b, far], [a, far, near], [c, d, near], [c, near, far], [b, c, far], [d, a, near]])
    builder.add(roof, Material.ROOF, building.roof_colour, number=number)
    _chimney(builder, building, (near + far) / 2, number)


def _shed(builder: MeshBuilder, building: "Building", number: int) -> None:
    """One slope, up to the long side at the back."""
    a, b, c, d = _lengthwise(building)
    rise = np.array([0, 0, 0.6 * building.rise])
    high_c, high_d = c + rise, d + rise
    builder.add(
        np.array([[a, b, high_c], [a, high_c, high_d]]), Material.ROOF, building.roof_colour, number=number
    )
    walls = np.array([[b, c, high_c], [d, a, high_d], [c, d, high_d], [c, high_d, high_c]])
    builder.add(walls, Material.PLAIN, building.wall_colour, label=Label.BUILDING, number=number)


def _chimney(builder: MeshBuilder, building: "Building", foot: np.ndarray, number: int) -> None:
    brick = (0.30, 0.13, 0.09) if building.facade.awning < 0.6 else (0.5, 0.48, 0.45)
    shaft = box(foot + np.array([0, 0, 0.3]), np.array([0.6, 0.9, 1.6]), building.facade.tint * 1.5)
    builder.add(shaft, Material.PLAIN, brick, label=Label.BUILDING, number=number)


ROOFS: dict[str, Callable[[MeshBuilder, "Building", int], None]] = {
    "flat": _flat,
    "machine_house": _machine_house,
    "stepped": _stepped,
    "mansard": _mansard,
    "gable": _gable,
    "hip": _hip,
    "shed": _shed,
}
