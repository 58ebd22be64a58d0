"""Surfaces on the terrain: triangles fine enough to follow it, walls along their edges, the river."""

import numpy as np
import shapely

from data_prep.city.mesh import Material, MeshBuilder, flat, polygons
from data_prep.city.terrain import Terrain

LONGEST_EDGE = 5.0  # m, of surfaces that are driven and walked on
OPEN_GROUND_Z = -0.1  # below the roads, so that its coarser triangles stay under them
OPEN_CELL = 16.0  # m
FAR = 4000.0  # m to the horizon
WATER_DEPTH = 0.7  # m below the lowest point of the banks
DECK_DEPTH = 0.6  # m, of a bridge


def draped(
    geometry: shapely.Geometry, terrain: Terrain, z: float, longest: float = LONGEST_EDGE
) -> np.ndarray:
    """Polygons (with holes) → (n, 3, 3) triangles facing up, `z` above the terrain, edges up to `longest`."""
    xy = refine(flat(shapely.segmentize(geometry, longest), 0.0)[..., :2], longest)
    return np.concatenate([xy, (terrain.height(xy) + z)[..., None]], axis=-1)


def refine(triangles: np.ndarray, longest: float) -> np.ndarray:
    """(n, 3, 2) → (m, 3, 2): edges longer than `longest` are halved until none is left.

    Whether an edge is halved depends on it alone, so neighbours stay joined without gaps.
    """
    done = []
    while len(triangles):
        edges = np.roll(triangles, -1, axis=1) - triangles
        # Summed in an order that does not depend on the edge's direction.
        is_long = np.hypot(np.abs(edges[..., 0]), np.abs(edges[..., 1])) > longest
        count = is_long.sum(1)
        done.append(triangles[count == 0])
        parts = []
        for number, first in (
            (1, is_long.argmax(1)),
            (2, (~is_long).argmax(1) + 1),
            (3, np.zeros_like(count)),
        ):
            chosen = count == number
            # Rotated so that the first `number` edges are the long ones.
            order = (first[chosen, None] + np.arange(3)) % 3
            a, b, c = np.moveaxis(np.take_along_axis(triangles[chosen], order[..., None], 1), 1, 0)
            ab, bc, ca = (a + b) / 2, (b + c) / 2, (c + a) / 2
            split = {
                1: [(a, ab, c), (ab, b, c)],
                2: [(ab, b, bc), (a, ab, bc), (a, bc, c)],
                3: [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)],
            }[number]
            parts += [np.stack(corners, 1) for corners in split]
        triangles = np.concatenate(parts)
    return np.concatenate(done) if done else np.zeros((0, 3, 2))


def draped_walls(geometry: shapely.Geometry, terrain: Terrain, z0: float, z1: float) -> np.ndarray:
    """Walls along every ring of the polygons, from `z0` to `z1` above the terrain, facing away from their
    inside → (n, 3, 3)."""
    return _walls(geometry, lambda xy: terrain.height(xy) + z0, lambda xy: terrain.height(xy) + z1)


def _walls(geometry: shapely.Geometry, bottom, top) -> np.ndarray:  # noqa: ANN001 - functions (n, 2) → (n,)
    walls = []
    for polygon in polygons(shapely.orient_polygons(shapely.segmentize(geometry, LONGEST_EDGE))):
        for ring in (polygon.exterior, *polygon.interiors):
            xy = shapely.get_coordinates(ring)
            low, high = np.column_stack([xy, bottom(xy)]), np.column_stack([xy, top(xy)])
            a, b, c, d = low[:-1], low[1:], high[1:], high[:-1]
            walls += [np.stack([a, b, c], 1), np.stack([a, c, d], 1)]
    return np.concatenate(walls) if walls else np.zeros((0, 3, 3))


def add_open_ground(
    builder: MeshBuilder,
    terrain: Terrain,
    town: shapely.Polygon,
    river: shapely.Polygon,
    surface: shapely.Geometry,
    colours: dict[Material, tuple[float, float, float]],
) -> None:
    """Grass over the box around `town` and on to the horizon, with the river's bed and water in it.

    Where `surface` (roads and sidewalks) crosses the river, it lies on a bridge.
    """
    grass = np.asarray(colours[Material.GRASS]) * 1.1
    lower = np.floor(np.array(town.bounds[:2]) / OPEN_CELL) * OPEN_CELL
    upper = np.ceil(np.array(town.bounds[2:]) / OPEN_CELL) * OPEN_CELL
    builder.add(_open_ground(terrain, lower, upper, river), Material.GRASS, grass)
    builder.add(_horizon(terrain, lower, upper), Material.GRASS, grass)
    bank = shapely.segmentize(river, LONGEST_EDGE)
    level = water_level(terrain, river)
    builder.add(flat(river, level), Material.WATER, colours[Material.WATER])
    around = shapely.box(*(np.array(bank.bounds[:2]) - 5), *(np.array(bank.bounds[2:]) + 5)).difference(bank)
    quay = _walls(
        around,
        lambda xy: np.full(len(xy), level - 0.2),
        lambda xy: np.maximum(terrain.height(xy) + OPEN_GROUND_Z, level - 0.2),
    )
    # The outer ring of the box is no bank.
    inside = shapely.contains_xy(bank.buffer(1.0), quay[:, 0, 0], quay[:, 0, 1])
    builder.add(quay[inside], Material.KERB, np.asarray(colours[Material.KERB]) * 0.6)
    deck = surface.intersection(river.buffer(1.0))
    builder.add(
        draped_walls(deck, terrain, -DECK_DEPTH, 0.0), Material.KERB, np.asarray(colours[Material.KERB]) * 0.8
    )


def water_level(terrain: Terrain, river: shapely.Polygon) -> float:
    """The height of the river's water: below all of its banks."""
    bank = shapely.get_coordinates(shapely.segmentize(river, LONGEST_EDGE))
    return float(terrain.height(bank).min()) - WATER_DEPTH


def _open_ground(
    terrain: Terrain, lower: np.ndarray, upper: np.ndarray, river: shapely.Polygon
) -> np.ndarray:
    x, y = (np.arange(lower[k], upper[k] + 0.5 * OPEN_CELL, OPEN_CELL) for k in (0, 1))
    corner = np.stack(np.meshgrid(x[:-1], y[:-1], indexing="ij"), -1).reshape(-1, 2)
    cells = shapely.box(*corner.T, *(corner + OPEN_CELL).T)
    shapely.prepare(river)
    wet = shapely.intersects(river, cells)
    dx, dy = np.array([OPEN_CELL, 0.0]), np.array([0.0, OPEN_CELL])
    a, b, c, d = (corner[~wet] + shift for shift in (0, dx, dx + dy, dy))
    xy = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    triangles = [np.concatenate([xy, (terrain.height(xy) + OPEN_GROUND_Z)[..., None]], axis=-1)]
    banks = shapely.union_all(cells[wet]).difference(shapely.segmentize(river, LONGEST_EDGE))
    if not banks.is_empty:
        triangles.append(draped(banks, terrain, OPEN_GROUND_Z, OPEN_CELL))
    return np.concatenate(triangles)


def _horizon(terrain: Terrain, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """From every point of the box's edge outwards, level."""
    edge = shapely.get_coordinates(shapely.segmentize(shapely.box(*lower, *upper), OPEN_CELL))
    edge = edge[::-1] if not shapely.is_ccw(shapely.LinearRing(edge)) else edge
    middle, half = (lower + upper) / 2, (upper - lower) / 2
    away = (edge - middle) / half
    far = middle + away * (half + FAR)
    z = (terrain.height(edge) + OPEN_GROUND_Z)[:, None]
    inner, outer = np.append(edge, z, 1), np.append(far, z, 1)
    a, b, c, d = inner[:-1], outer[:-1], outer[1:], inner[1:]
    return np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
