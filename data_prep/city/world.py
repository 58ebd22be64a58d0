"""One town: streets, terrain, surfaces, markings, buildings and furniture, as polygons and as a mesh.

The polygons and the terrain are the truth: the mesh that the sensors see, the nuScenes map and the OSM file
are all made from them.
"""

import zlib
from dataclasses import dataclass, replace

import numpy as np
import shapely
from scipy.interpolate import CubicSpline

from data_prep.city.blocks import Block
from data_prep.city.buildings import Building, add_buildings, plan_buildings
from data_prep.city.classes import Label
from data_prep.city.furniture import Furniture, add_furniture, plan_furniture
from data_prep.city.ground import add_open_ground, draped, draped_walls
from data_prep.city.markings import Marking, plan_markings
from data_prep.city.mesh import Material, Mesh, MeshBuilder, polygons
from data_prep.city.sizes import CANVASES, CitySize
from data_prep.city.streets import Street, StreetGraph, subdivide_district
from data_prep.city.terrain import Terrain, make_terrain

# m between districts: two map patches (133 m from the ego to a corner) with the ring roads' bends
BELT = 302.0
MARGIN = 170.0  # m between a district and the edge of the map: a patch, and what stands around the ring road
KERB_HEIGHT = 0.15
KERB_WIDTH = 0.25
CORNER_RADIUS = 5.0  # of kerbs at junctions
MARKING_Z = 0.02  # above the road: two draped surfaces are off by up to 5 mm each
BLOCK_EDGE = 12.0  # m, of the triangles inside blocks
GROUND_MARGIN = 330.0  # m around the streets in which the open ground follows the terrain


@dataclass(frozen=True)
class World:
    """One town, in the map frame of its location."""

    location: str
    drives_on_left: bool
    terrain: Terrain
    graph: StreetGraph
    road: shapely.MultiPolygon  # the drivable surface, kerb to kerb, junctions included
    sidewalk: shapely.MultiPolygon
    crossings: list[shapely.Polygon]  # outlines of pedestrian crossings
    stop_lines: list[tuple[int, int, shapely.Polygon]]  # street, node, painted line
    markings: list[Marking]
    blocks: list[Block]
    river: shapely.Polygon
    tunnel: shapely.LineString  # an underpass that nothing on the surface shows
    buildings: list[Building]
    furniture: Furniture
    mesh: Mesh
    centre: np.ndarray  # (2,)


def location_rng(seed: int, location: str, *purpose: int) -> np.random.Generator:
    """A generator that depends on the seed, the location and the purpose only."""
    return np.random.default_rng([seed, zlib.crc32(location.encode()), *purpose])


def build_world(location: str, size: CitySize, seed: int) -> World:
    """Build the town of `location`: the same for the same arguments, in any process."""
    rng = location_rng(seed, location, 0)
    graph, river, tunnel, valley = _street_plan(location, size, rng)
    lower, upper = graph.nodes.min(0), graph.nodes.max(0)
    terrain = make_terrain(lower - 150, upper + 150, *valley, location_rng(seed, location, 20))
    drives_on_left = location.startswith("singapore")
    road, reach = _road_surface(graph)
    blocks = _blocks(graph, reach, rng)
    sidewalk = shapely.MultiPolygon(polygons(reach.difference(road)))
    markings, crossings, stop_lines = plan_markings(graph, drives_on_left, rng)
    buildings = plan_buildings(graph, terrain, reach, blocks, rng)
    furniture = plan_furniture(graph, blocks, buildings, road, river, drives_on_left, rng)
    centre = np.round((lower + upper) / 2)
    builder = MeshBuilder(centre)
    _add_surfaces(builder, terrain, road, sidewalk, blocks, rng)
    town = shapely.box(*(lower - GROUND_MARGIN), *(upper + GROUND_MARGIN))
    add_open_ground(builder, terrain, town, river, road.union(sidewalk), SURFACE_COLOURS)
    for colour in sorted({marking.colour for marking in markings}):
        painted = shapely.MultiPolygon([m.polygon for m in markings if m.colour == colour])
        builder.add(draped(painted, terrain, MARKING_Z), Material.MARKING, colour)
    add_buildings(builder, buildings)
    add_furniture(builder, furniture, terrain, KERB_HEIGHT)
    return World(
        location,
        drives_on_left,
        terrain,
        graph,
        road,
        sidewalk,
        crossings,
        stop_lines,
        markings,
        blocks,
        river,
        tunnel,
        buildings,
        furniture,
        builder.build(),
        centre,
    )


def _outline(corner: np.ndarray, extent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A district's ring road: a rectangle whose corners and sides are pulled inwards at random → (8, 2)."""
    unit = np.array([[0, 0], [0.5, 0], [1, 0], [1, 0.5], [1, 1], [0.5, 1], [0, 1], [0, 0.5]], np.float64)
    inwards = rng.uniform(0.0, 0.09, unit.shape) * np.sign(0.5 - unit)
    inwards[1::2] *= 0.6
    along = rng.uniform(-0.08, 0.08, unit.shape) * (unit == 0.5)
    return corner + (unit + inwards + along) * extent


def _street_plan(
    location: str, size: CitySize, rng: np.random.Generator
) -> tuple[StreetGraph, shapely.Polygon, shapely.LineString, tuple[int, float]]:
    """Place train beside test over val, the belt between them; join their rings by undriven roads.

    Returns the streets, the river in the belt, a tunnel, and the river's axis: see Terrain.
    """
    canvas = np.asarray(CANVASES[location])
    axis = int(np.argmax(canvas))  # the town's long side lies along the map's
    extent = {name: np.asarray(d.extent) for name, d in size.districts.items()}
    second = max(extent["test"][0], extent["val"][0])
    total = np.array(
        [
            extent["train"][0] + BELT + second,
            max(extent["train"][1], extent["test"][1] + BELT + extent["val"][1]),
        ]
    )
    room = (canvas if axis == 0 else canvas[::-1]) - total - 2 * MARGIN
    if np.any(room < 0):
        raise ValueError(f"the town needs {total + 2 * MARGIN} m but the map of {location} is {canvas} m")
    start = MARGIN + room * rng.uniform(0.3, 0.7, 2)
    corner = {
        "train": start + np.array([0, (total[1] - extent["train"][1]) / 2]),
        "test": start + np.array([extent["train"][0] + BELT, 0]),
        "val": start + np.array([extent["train"][0] + BELT, total[1] - extent["val"][1]]),
    }
    nodes, streets = np.zeros((0, 2)), []
    for name in ("train", "val", "test"):
        outline = _outline(corner[name], extent[name], rng)
        own_nodes, own_streets = subdivide_district(name, outline, size.block_area, rng)
        shift = len(nodes)
        nodes = np.concatenate([nodes, own_nodes])
        streets += [replace(s, a=s.a + shift, b=s.b + shift) for s in own_streets]
    for first, second_name in (("train", "test"), ("train", "val"), ("test", "val")):
        a, b = _closest_pair(nodes, streets, first, second_name)
        streets.append(Street(a, b, "primary", 15.0, 3.0, 2, ""))
    middle = start[0] + extent["train"][0] + BELT / 2
    river_x = middle + 18 * np.sin(np.arange(0, 9) * 1.1 + rng.uniform(0, 6))
    river_y = np.linspace(start[1] - 130, start[1] + total[1] + 130, 9)
    # Nine points of a wave, joined by a spline that is sampled finely.
    middle_line = CubicSpline(river_y, river_x)
    river_y = np.linspace(river_y[0], river_y[-1], 120)
    river = shapely.LineString(np.stack([middle_line(river_y), river_y], 1)).buffer(17.0)
    tunnel = np.array([corner["train"] + [60.0, 45.0], corner["train"] + extent["train"] - [70.0, 60.0]])
    if axis == 1:
        nodes, tunnel = np.ascontiguousarray(nodes[:, ::-1]), tunnel[:, ::-1]
        streets = [replace(s, bends=s.bends[:, ::-1]) for s in streets]
        river = shapely.transform(river, lambda xy: xy[:, ::-1])
    return StreetGraph(nodes, streets), river, shapely.LineString(tunnel), (axis, middle)


def _closest_pair(nodes: np.ndarray, streets: list[Street], first: str, second: str) -> tuple[int, int]:
    """The two nodes, one of each district, that are nearest to each other."""
    members = [
        np.array(sorted({n for s in streets if s.district == name for n in (s.a, s.b)}))
        for name in (first, second)
    ]
    distance = np.linalg.norm(nodes[members[0]][:, None] - nodes[members[1]][None], axis=2)
    i, j = np.unravel_index(np.argmin(distance), distance.shape)
    return int(members[0][i]), int(members[1][j])


def _road_surface(graph: StreetGraph) -> tuple[shapely.MultiPolygon, shapely.MultiPolygon]:
    """The carriageways with rounded kerb corners, and the same with the sidewalks added."""
    lines = [graph.line(street) for street in graph.streets]
    half = np.array([street.width / 2 for street in graph.streets])
    walk = np.array([street.sidewalk for street in graph.streets])
    surfaces = []
    for width in (half, half + walk):
        union = shapely.union_all(shapely.buffer(lines, width, quad_segs=4))
        closed = union.buffer(CORNER_RADIUS, quad_segs=4).buffer(-CORNER_RADIUS, quad_segs=4)
        surfaces.append(shapely.MultiPolygon(polygons(closed.simplify(0.02))))
    road = surfaces[0]
    return road, shapely.MultiPolygon(polygons(surfaces[1].union(road.buffer(1.5, quad_segs=4))))


def _blocks(graph: StreetGraph, reach: shapely.MultiPolygon, rng: np.random.Generator) -> list[Block]:
    """The ground inside the rings of streets, each with a surface of its own."""
    blocks = []
    for district in ("train", "val", "test"):
        lines = [graph.line(street) for street in graph.streets if street.district == district]
        faces = shapely.get_parts(shapely.polygonize(lines)).tolist()
        faces.sort(key=lambda face: face.centroid.coords[0])
        for face in faces:
            for polygon in polygons(face.difference(reach)):
                if polygon.area > 60:
                    park = bool(rng.random() < 0.10)
                    surface = rng.choice(
                        [Material.GRASS, Material.PAVING, Material.GRAVEL], p=[0.5, 0.3, 0.2]
                    )
                    blocks.append(
                        Block(polygon, district, Material.GRASS if park else Material(int(surface)), park)
                    )
    return blocks


SURFACE_COLOURS = {
    Material.ASPHALT: (0.115, 0.115, 0.122),
    Material.KERB: (0.42, 0.41, 0.39),
    Material.PAVING: (0.36, 0.33, 0.30),
    Material.GRASS: (0.10, 0.20, 0.055),
    Material.GRAVEL: (0.36, 0.29, 0.20),
    Material.WATER: (0.05, 0.11, 0.15),
}


def _add_surfaces(
    builder: MeshBuilder,
    terrain: Terrain,
    road: shapely.MultiPolygon,
    sidewalk: shapely.MultiPolygon,
    blocks: list[Block],
    rng: np.random.Generator,
) -> None:
    """Roads, kerbs, sidewalks and the ground inside the blocks."""
    builder.add(draped(road, terrain, 0.0), Material.ASPHALT, SURFACE_COLOURS[Material.ASPHALT])
    kerb = road.buffer(KERB_WIDTH, join_style="mitre").intersection(sidewalk)
    builder.add(draped(kerb, terrain, KERB_HEIGHT), Material.KERB, SURFACE_COLOURS[Material.KERB])
    walk = sidewalk.difference(kerb)
    builder.add(draped(walk, terrain, KERB_HEIGHT), Material.PAVING, SURFACE_COLOURS[Material.PAVING])
    # The faces of the kerb look at the road, the outer edge of the sidewalk drops to the open ground.
    faces = draped_walls(sidewalk, terrain, -0.2, KERB_HEIGHT)
    builder.add(faces, Material.KERB, SURFACE_COLOURS[Material.KERB])
    for block in blocks:
        tone = (
            np.asarray(SURFACE_COLOURS[block.surface]) * rng.uniform(0.75, 1.25) * rng.uniform(0.93, 1.07, 3)
        )
        # A paved block is a yard to park in, no sidewalk.
        label = Label.PARKING if block.surface == Material.PAVING else None
        triangles = draped(block.polygon, terrain, KERB_HEIGHT, BLOCK_EDGE)
        builder.add(triangles, block.surface, tone, label=label)
