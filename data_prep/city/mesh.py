"""Triangle soup with a material and a colour per triangle: what the rays of the city's sensors hit."""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import shapely

from data_prep.city.classes import Label, instance_id


class Material(IntEnum):
    """What a triangle is made of; shading.py gives each its texture, sensors.py its LiDAR reflectivity."""

    ASPHALT = 0
    KERB = 1
    PAVING = 2
    GRASS = 3
    GRAVEL = 4
    WATER = 5
    MARKING = 6
    FACADE = 7
    ROOF = 8
    PLAIN = 9
    FOLIAGE = 10
    LIGHT = 11  # glows in its colour, the more the darker it is


# The class of a triangle that is given none; what is PLAIN or glows may be anything and must be given one.
_LABEL_OF_MATERIAL = {
    Material.ASPHALT: Label.ROAD,
    Material.MARKING: Label.ROAD,
    Material.KERB: Label.SIDEWALK,
    Material.PAVING: Label.SIDEWALK,
    Material.GRASS: Label.TERRAIN,
    Material.GRAVEL: Label.GROUND,
    Material.WATER: Label.GROUND,
    Material.FACADE: Label.BUILDING,
    Material.ROOF: Label.BUILDING,
    Material.FOLIAGE: Label.VEGETATION,
}


class Facade(NamedTuple):
    """The window grid of one wall, in metres along the wall (u) and up (v)."""

    pitch: float  # between window centres
    floor_height: float
    width_share: float  # of the pitch that is glass
    sill: float  # lower edge of the glass, as a share of the floor height
    head: float  # upper edge of the glass, as a share of the floor height
    shop_height: float  # height of the shop fronts on the ground floor; 0 for none
    brick: float  # strength of the brick courses
    tint: float  # 0 dark glass … 1 sky-blue glass
    number: float  # seeds the lights and blinds of this wall's windows
    awning: float  # hue of the shops' awnings in [0, 1)


class Mesh(NamedTuple):
    """Triangles of one location, relative to `centre` so that float32 holds millimetres."""

    triangles: np.ndarray  # (N, 3, 3) float32
    material: np.ndarray  # (N,) uint8
    colour: np.ndarray  # (N, 3) float32, linear RGB
    wall: np.ndarray  # (N,) int32, row of `walls`; 0 where the triangle is no facade
    walls: np.ndarray  # (W, 4 + len(Facade)) float32: unit direction x, y, offset of u, base of v, the Facade
    semantic: np.ndarray  # (N,) uint8: Label
    instance: np.ndarray  # (N,) int32: see classes.py
    centre: np.ndarray  # (2,) float64

    def normals(self) -> np.ndarray:
        """(N, 3) float32 unit normals, by the winding of the triangles."""
        edges = self.triangles[:, 1:] - self.triangles[:, :1]
        normal = np.cross(edges[:, 0], edges[:, 1])
        return (normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)).astype(np.float32)


class MeshBuilder:
    """Collects triangles given in map coordinates; `build` makes the Mesh."""

    def __init__(self, centre: np.ndarray):
        self.centre = np.asarray(centre, np.float64)
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._walls: list[tuple[float, ...]] = [(0.0,) * (4 + len(Facade._fields))]

    def add(
        self,
        triangles: np.ndarray,
        material: Material,
        colour: np.ndarray,
        wall: int = 0,
        label: Label | None = None,
        number: int = 0,
    ) -> None:
        """Add (n, 3, 3) triangles of one material and object; `colour` is (3,) or (n, 3).

        `label` is by default the material's class; `number` is the object's within its class.
        """
        n = len(triangles)
        if label is None:
            if material not in _LABEL_OF_MATERIAL:
                raise ValueError(f"triangles of {material.name} may be anything: they need a label")
            label = _LABEL_OF_MATERIAL[material]
        if n == 0:
            return
        local = np.array(triangles, np.float64)
        local[..., :2] -= self.centre
        self._parts.append(
            (
                local.astype(np.float32),
                np.full(n, int(material), np.uint8),
                np.broadcast_to(np.asarray(colour, np.float32), (n, 3)),
                np.full(n, wall, np.int32),
                np.full(n, int(label), np.uint8),
                np.full(n, instance_id(label, number), np.int32),
            )
        )

    def add_facade(
        self,
        start: np.ndarray,
        end: np.ndarray,
        z0: float,
        z1: float,
        colour: np.ndarray,
        facade: Facade,
        number: int = 0,
        base: float | None = None,
    ) -> None:
        """Add a vertical wall over the ground segment `start` → `end` ((2,) each), windows centred on it.

        Walls of a counter-clockwise footprint face outwards. `number` is the building's; its floors are
        counted from the height `base`, by default z0.
        """
        along = np.asarray(end, np.float64) - start
        length = float(np.hypot(*along))
        direction = along / length
        columns = max(1, round(length / facade.pitch))
        offset = float((np.asarray(start) - self.centre) @ direction)
        facade = facade._replace(pitch=length / columns)
        self._walls.append((*direction, offset, z0 if base is None else base, *facade))
        self.add(
            wall_quad(start, end, z0, z1), Material.FACADE, colour, wall=len(self._walls) - 1, number=number
        )

    def build(self) -> Mesh:
        """Concatenate everything that was added."""
        parts = [np.concatenate(column) for column in zip(*self._parts, strict=True)]
        return Mesh(*parts[:4], np.asarray(self._walls, np.float32), *parts[4:], self.centre)


def merge(first: Mesh, second: Mesh) -> Mesh:
    """`first` with the triangles of `second` after its own; both have the same centre."""
    if not np.array_equal(first.centre, second.centre):
        raise ValueError(
            f"meshes with different centres cannot be merged: {first.centre} and {second.centre}"
        )
    wall = np.where(second.wall > 0, second.wall + len(first.walls), 0).astype(np.int32)
    return Mesh(
        np.concatenate([first.triangles, second.triangles]),
        np.concatenate([first.material, second.material]),
        np.concatenate([first.colour, second.colour]),
        np.concatenate([first.wall, wall]),
        np.concatenate([first.walls, second.walls]),
        np.concatenate([first.semantic, second.semantic]),
        np.concatenate([first.instance, second.instance]),
        first.centre,
    )


def select(mesh: Mesh, kept: np.ndarray) -> Mesh:
    """Only the triangles at which `kept` (N,) is true."""
    return mesh._replace(
        triangles=mesh.triangles[kept],
        material=mesh.material[kept],
        colour=mesh.colour[kept],
        wall=mesh.wall[kept],
        semantic=mesh.semantic[kept],
        instance=mesh.instance[kept],
    )


def near(mesh: Mesh, lower: np.ndarray, upper: np.ndarray) -> Mesh:
    """Only the triangles that touch the box `lower` … `upper` ((2,) each, map coordinates)."""
    xy = mesh.triangles[..., :2]
    inside = (xy.max(1) >= lower - mesh.centre).all(1) & (xy.min(1) <= upper - mesh.centre).all(1)
    return select(mesh, inside)


def polygons(geometry: shapely.Geometry) -> list[shapely.Polygon]:
    """The polygons in any shapely geometry; points and lines, which have no area, are left out."""
    return [g for g in shapely.get_parts(shapely.get_parts([geometry])).tolist() if g.geom_type == "Polygon"]


def flat(geometry: shapely.Geometry, z: float) -> np.ndarray:
    """Polygons (with holes) → (n, 3, 3) triangles at height z, facing up."""
    parts = polygons(geometry)
    if not parts:
        return np.zeros((0, 3, 3))
    pieces = shapely.get_parts(shapely.constrained_delaunay_triangles(np.array(parts, dtype=object)))
    xy = shapely.get_coordinates(pieces).reshape(-1, 4, 2)[:, :3]
    area = np.cross(
        np.append(xy[:, 1] - xy[:, 0], np.zeros((len(xy), 1)), 1),
        np.append(xy[:, 2] - xy[:, 0], np.zeros((len(xy), 1)), 1),
    )[:, 2]
    xy = np.where((area < 0)[:, None, None], xy[:, ::-1], xy)[np.abs(area) > 1e-9]
    return np.concatenate([xy, np.full((*xy.shape[:2], 1), z)], axis=2)


def wall_quad(start: np.ndarray, end: np.ndarray, z0: float, z1: float) -> np.ndarray:
    """Vertical quads over segments (2,) or (n, 2) → (2n, 3, 3) triangles, facing right of start → end."""
    start, end = np.atleast_2d(start), np.atleast_2d(end)
    low, high = np.full((len(start), 1), z0), np.full((len(start), 1), z1)
    a, b = np.append(start, low, 1), np.append(end, low, 1)
    c, d = np.append(end, high, 1), np.append(start, high, 1)
    return np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])


def boundary_walls(geometry: shapely.Geometry, z0: float, z1: float) -> np.ndarray:
    """Vertical walls along every ring of the polygons, facing away from their inside."""
    walls = []
    for polygon in polygons(shapely.orient_polygons(geometry)):
        for ring in (polygon.exterior, *polygon.interiors):
            xy = shapely.get_coordinates(ring)
            walls.append(wall_quad(xy[:-1], xy[1:], z0, z1))
    return np.concatenate(walls) if walls else np.zeros((0, 3, 3))


def prism(
    centre: np.ndarray, radius: float, z0: float, z1: float, sides: int = 6, taper: float = 1.0
) -> np.ndarray:
    """An upright prism around `centre` (2,), its top scaled by `taper` → (3·sides, 3, 3) triangles."""
    angle = np.arange(sides + 1) * (2 * np.pi / sides)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    low = np.append(centre + radius * circle, np.full((sides + 1, 1), z0), 1)
    high = np.append(centre + radius * taper * circle, np.full((sides + 1, 1), z1), 1)
    top = np.append(centre, z1)
    a, b, c, d = low[:-1], low[1:], high[1:], high[:-1]
    return np.concatenate(
        [np.stack([a, b, c], 1), np.stack([a, c, d], 1), np.stack([d, c, np.broadcast_to(top, d.shape)], 1)]
    )


def box(
    centre: np.ndarray, size: np.ndarray, yaw: float = 0.0, top: tuple[float, float] = (1.0, 1.0)
) -> np.ndarray:
    """A box with centre (3,), size (3,), turned by yaw, its top face scaled by `top` in x, y → (12, 3, 3)."""
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    low = np.append(signs * size[:2], np.full((4, 1), -size[2] / 2), 1)
    high = np.append(signs * size[:2] * np.asarray(top), np.full((4, 1), size[2] / 2), 1)
    corners = np.concatenate([low, high])
    cos, sin = np.cos(yaw), np.sin(yaw)
    corners[:, :2] = corners[:, :2] @ np.array([[cos, sin], [-sin, cos]])
    faces = [[0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7], [4, 5, 6, 7], [3, 2, 1, 0]]
    index = [[f[0], f[1], f[2]] for f in faces] + [[f[0], f[2], f[3]] for f in faces]
    return (corners + centre)[np.array(index)]
