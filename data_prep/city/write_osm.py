"""The OpenStreetMap file of a town: OSM XML 0.6 in WGS84."""

from itertools import pairwise
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import shapely

from data_prep.city.mesh import Material
from data_prep.city.world import World
from data_prep.geodesy import map_to_wgs84

SNAPSHOT = "2018-06-01T00:00:00Z"
LINE_TOLERANCE = 0.1  # m between a curved street and its way
OUTER_WAYS = (2, 1, 3)  # into how many ways the outer rings of courtyard buildings are split, in turn

_POLE_TAGS = {
    "street_lamp": {"highway": "street_lamp"},
    "traffic_signals": {"highway": "traffic_signals"},
    "stop": {"highway": "stop"},
    "utility_pole": {"man_made": "utility_pole"},
    "flagpole": {"man_made": "flagpole"},
}


# https://wiki.openstreetmap.org/wiki/Key:roof:shape
_SHAPES = {
    "flat": "flat",
    "machine_house": "flat",
    "stepped": "flat",
    "mansard": "mansard",
    "gable": "gabled",
    "hip": "hipped",
    "shed": "skillion",
}


_BLOCK_TAGS = {Material.GRASS: {"landuse": "grass"}, Material.PAVING: {"amenity": "parking"}}


class _Osm:
    """Collects elements; ids are positive and unique over all kinds."""

    def __init__(self, location: str):
        self.location = location
        self.last_id = 0
        self.nodes: list[str] = []
        self.ways: list[str] = []
        self.relations: list[str] = []

    def _next(self) -> int:
        self.last_id += 1
        return self.last_id

    def node(self, xy: np.ndarray, tags: dict[str, str] | None = None) -> int:
        number = self._next()
        lat, lon = map_to_wgs84(np.asarray(xy, np.float64), self.location)
        head = f'<node id="{number}" {_META} lat="{lat:.9f}" lon="{lon:.9f}"'
        self.nodes.append(f" {head}/>\n" if not tags else f" {head}>\n{_tags(tags)} </node>\n")
        return number

    def way(self, nodes: list[int], tags: dict[str, str]) -> int:
        number = self._next()
        refs = "".join(f'  <nd ref="{node}"/>\n' for node in nodes)
        self.ways.append(f' <way id="{number}" {_META}>\n{refs}{_tags(tags)} </way>\n')
        return number

    def relation(self, members: list[tuple[int, str]], tags: dict[str, str]) -> None:
        refs = "".join(f'  <member type="way" ref="{way}" role="{role}"/>\n' for way, role in members)
        self.relations.append(f' <relation id="{self._next()}" {_META}>\n{refs}{_tags(tags)} </relation>\n')

    def ring(self, polygon_ring: shapely.LinearRing) -> list[int]:
        """Nodes of a closed ring, the first repeated at the end."""
        nodes = [self.node(xy) for xy in shapely.get_coordinates(polygon_ring)[:-1]]
        return [*nodes, nodes[0]]


_META = f'version="1" timestamp="{SNAPSHOT}" visible="true"'


def _tags(tags: dict[str, str]) -> str:
    return "".join(f"  <tag k={quoteattr(k)} v={quoteattr(v)}/>\n" for k, v in tags.items())


def write_osm(path: Path, world: World) -> None:
    """Write streets, footways, crossings, a tunnel, buildings, poles, trees, open ground and the river.

    Only things that are rendered are in it, apart from the tunnel (layer=-1), which maps of the surface
    must leave out.
    """
    osm = _Osm(world.location)
    graph = world.graph
    junctions = [osm.node(xy) for xy in graph.nodes]
    for number, street in enumerate(graph.streets):
        tags = {"highway": street.kind, "lanes": str(2 * street.lanes), "name": f"Street {number + 1}"}
        line = shapely.get_coordinates(graph.line(street).simplify(LINE_TOLERANCE))
        osm.way([junctions[street.a], *(osm.node(xy) for xy in line[1:-1]), junctions[street.b]], tags)
        curve = graph.curve(number)
        ends = graph.setback(number, street.a), curve.length - graph.setback(number, street.b)
        for side in (-1, 1):
            walk = shapely.LineString(curve.shifted(*ends, side * (street.width + street.sidewalk) / 2))
            nodes = [osm.node(xy) for xy in shapely.get_coordinates(walk.simplify(LINE_TOLERANCE))]
            osm.way(nodes, {"highway": "footway", "footway": "sidewalk"})
    osm.way(
        [osm.node(xy) for xy in shapely.get_coordinates(world.tunnel)],
        {"highway": "secondary", "tunnel": "yes", "layer": "-1", "name": "Underpass"},
    )
    courtyards = 0
    for building in world.buildings:
        tags = {"building": "yes", "height": f"{building.height:.1f}", "roof:shape": _SHAPES[building.roof]}
        outer = osm.ring(building.footprint.exterior)
        if not building.footprint.interiors:
            osm.way(outer, tags)
            continue
        count = OUTER_WAYS[courtyards % len(OUTER_WAYS)]
        courtyards += 1
        cuts = np.linspace(0, len(outer) - 1, count + 1).round().astype(int).tolist()
        members = [(osm.way(outer[a : b + 1], {}), "outer") for a, b in pairwise(cuts)]
        members += [(osm.way(osm.ring(hole), {}), "inner") for hole in building.footprint.interiors]
        osm.relation(members, {"type": "multipolygon", **tags})
    for pole in world.furniture.poles:
        osm.node(np.array(pole.xy), _POLE_TAGS[pole.kind])
    for tree in world.furniture.trees:
        osm.node(np.array(tree.xy), {"natural": "tree"})
    for block in world.blocks:
        if block.park:
            osm.way(osm.ring(block.polygon.exterior), {"leisure": "park"})
        elif block.surface in _BLOCK_TAGS:
            osm.way(osm.ring(block.polygon.exterior), _BLOCK_TAGS[block.surface])
    for crossing in world.crossings:
        osm.node(np.array(crossing.centroid.coords[0]), {"highway": "crossing", "crossing": "marked"})
    osm.way(osm.ring(world.river.exterior), {"natural": "water", "water": "river"})
    lower, upper = graph.nodes.min(0) - 160.0, graph.nodes.max(0) + 160.0
    (south, west), (north, east) = map_to_wgs84(np.stack([lower, upper]), world.location)
    with path.open("w", encoding="utf-8") as file:
        file.write(
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<osm version="0.6" generator="placerec_jax built-in city">\n'
        )
        file.write(
            f' <bounds minlat="{south:.9f}" minlon="{west:.9f}" maxlat="{north:.9f}" maxlon="{east:.9f}"/>\n'
        )
        for part in (osm.nodes, osm.ways, osm.relations):
            file.writelines(part)
        file.write("</osm>\n")
