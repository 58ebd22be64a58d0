"""The OpenStreetMap reader: roads, buildings and point objects of an extract, in WGS84.

Reads `.osm`, `.osm.gz`, `.osm.bz2` and `.osm.pbf`, in any order of objects (Overpass writes ways before
nodes). What is kept follows the navigation map of MapLocNet (arXiv 2407.08561, Tab. II): roads, buildings,
and nodes such as traffic signals and lamps. Objects below or above the ground are dropped: `layer` < 0,
`location` or `parking` = underground, and `level` without 0 or 1 (level 1 is the ground floor in some
countries).
"""

import bz2
import dataclasses
import gzip
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import osmium

from data_prep.errors import InputError

SUFFIXES = (".osm", ".osm.gz", ".osm.bz2", ".osm.pbf")

_ROADS_WITH_LINKS = ("motorway", "trunk", "primary", "secondary", "tertiary")
ROADS = frozenset(
    (
        *_ROADS_WITH_LINKS,
        *(f"{road}_link" for road in _ROADS_WITH_LINKS),
        *("unclassified", "residential", "living_street", "service", "road"),
    )
)
POINTS = {
    "highway": frozenset(("traffic_signals", "stop", "street_lamp")),
    "man_made": frozenset(("utility_pole", "flagpole")),
}

_LEVELS = re.compile(r"(-?\d+(?:\.\d+)?)(?:-(-?\d+(?:\.\d+)?))?")
_COORDINATE_UNITS = 1e7  # OSM stores degrees as integers of 1e-7


@dataclasses.dataclass(frozen=True)
class OsmData:
    """The contents of one extract; coordinates are (latitude, longitude) in degrees, float64.

    `roads` are polylines (N, 2). `buildings` are lists of closed rings (N, 2), to be filled even-odd: holes
    and several outer rings need no roles. `points` is (N, 2). `snapshot` is the date of the data where the
    file states it. The counts say what an extract's edge cut off: road and building ways that lack nodes,
    buildings (ways or multipolygons) that were left out because they do not close or lack members.
    """

    path: Path
    roads: list[np.ndarray]
    buildings: list[list[np.ndarray]]
    points: np.ndarray
    snapshot: str | None
    ways_lacking_nodes: int
    buildings_left_out: int


def read_osm(path: Path) -> OsmData:
    """Read one extract.

    Raises InputError if the file is missing, not OSM, truncated, holds nothing of interest, has coordinates
    out of range or negative identifiers (objects that an editor has not uploaded yet).
    """
    if not path.is_file():
        raise InputError(f"{path}: expected an OpenStreetMap extract, found no file. Correct --osm.")
    if not path.name.endswith(SUFFIXES):
        raise InputError(
            f"{path}: expected a name ending in {', '.join(SUFFIXES)}; found {path.suffix!r}. Convert it, "
            "or rename it if it is one of these."
        )
    if path.stat().st_size == 0:
        raise InputError(
            f"{path}: expected an OpenStreetMap extract, found an empty file. Download it again."
        )
    try:
        return _read(path)
    except InputError:
        raise
    except osmium.InvalidLocationError as error:
        raise InputError(
            f"{path}: expected coordinates in degrees (latitude within 90, longitude within 180), found: "
            f"{error}."
        ) from None
    except RuntimeError as error:  # what libosmium raises for damage and for foreign formats
        raise InputError(
            f"{path}: expected an OpenStreetMap extract ({', '.join(SUFFIXES)}), found something else, or a "
            f"truncated one: {error}. Download it again, and look into it: servers answer errors as text."
        ) from None


def _read(path: Path) -> OsmData:
    entity = osmium.osm.osm_entity_bits
    reader = osmium.io.Reader(str(path), entity.NODE)
    header = reader.header()
    index = osmium.index.create_map("flex_mem")
    osmium.apply(reader, osmium.NodeLocationsForWays(index))
    reader.close()
    nodes = _Nodes(path, index)

    # Multipolygons first: they say which ways are parts of buildings and not buildings of their own.
    members: list[list[int]] = []
    for relation in osmium.FileProcessor(str(path), entity.RELATION).with_filter(
        osmium.filter.KeyFilter("building")
    ):
        if relation.tags.get("type") == "multipolygon" and _is_building(relation.tags):
            members.append([member.ref for member in relation.members if member.type == "w"])
    member_ids = {way for ways in members for way in ways}
    member_nodes: dict[int, list[int]] = {}
    if member_ids:
        only_members = osmium.filter.IdFilter(member_ids).enable_for(entity.WAY)
        for way in osmium.FileProcessor(str(path), entity.WAY).with_filter(only_members):
            member_nodes[way.id] = [node.ref for node in way.nodes]

    roads: list[np.ndarray] = []
    buildings: list[list[np.ndarray]] = []
    ways_lacking_nodes = buildings_left_out = 0
    for way in osmium.FileProcessor(str(path), entity.WAY).with_filter(
        osmium.filter.KeyFilter("highway", "building")
    ):
        road = way.tags.get("highway") in ROADS and on_ground(way.tags)
        building = _is_building(way.tags) and way.id not in member_ids
        if not road and not building:
            continue
        references = [node.ref for node in way.nodes]
        parts = nodes.parts(references)
        complete = len(parts) == 1 and len(parts[0]) == len(references)
        ways_lacking_nodes += not complete
        if road:
            roads.extend(parts)
        if building and complete and len(references) >= 4 and references[0] == references[-1]:
            buildings.append(parts)
        elif building:
            buildings_left_out += 1

    for ways in members:
        rings = (
            glue_rings([member_nodes[way] for way in ways])
            if all(way in member_nodes for way in ways)
            else None
        )
        parts = [nodes.parts(ring) for ring in rings or []]
        if parts and all(
            len(part) == 1 and len(part[0]) == len(ring) for part, ring in zip(parts, rings, strict=True)
        ):
            buildings.append([part[0] for part in parts])
        else:
            buildings_left_out += 1

    points = [
        nodes.position(node.id, node.location)
        for node in osmium.FileProcessor(str(path), entity.NODE).with_filter(osmium.filter.KeyFilter(*POINTS))
        if any(node.tags.get(key) in values for key, values in POINTS.items()) and on_ground(node.tags)
    ]
    if not (roads or buildings or points):
        raise InputError(
            f"{path}: expected roads (highway=...), buildings or street furniture, found none of them in "
            "it. Choose an extract with full street data, and check that the filter it was cut with keeps "
            "tags."
        )
    return OsmData(
        path,
        roads,
        buildings,
        np.array(points, np.float64).reshape(-1, 2),
        header.get("osmosis_replication_timestamp") or header.get("timestamp") or _xml_snapshot(path),
        ways_lacking_nodes,
        buildings_left_out,
    )


def on_ground(tags: Mapping[str, str]) -> bool:
    """Whether an object is to be drawn: not under the ground, not on an upper floor.

    Values that cannot be read do not count.
    """
    layer = _LEVELS.fullmatch(tags.get("layer", ""))
    if layer and float(layer[1]) < 0:
        return False
    if "underground" in (tags.get("location"), tags.get("parking")):
        return False
    ranges = [_LEVELS.fullmatch(part.strip()) for part in tags.get("level", "").split(";")]
    spans = [(float(r[1]), float(r[2] or r[1])) for r in ranges if r]
    return not spans or any(low <= floor <= high for low, high in spans for floor in (0, 1))


def glue_rings(ways: Iterable[list[int]]) -> list[list[int]] | None:
    """Join ways (lists of node identifiers) at their ends into closed rings; None if some end meets no other.

    Where more than two ends meet, any pairing is right: the even-odd fill depends on the edges alone.
    """
    rings: list[list[int]] = []
    open_ways = [list(way) for way in ways if way]
    while open_ways:
        ring = open_ways.pop()
        while len(ring) < 4 or ring[0] != ring[-1]:
            for candidate, way in enumerate(open_ways):
                if ring[-1] in (way[0], way[-1]):
                    ring.extend(way[1:] if way[0] == ring[-1] else way[-2::-1])
                    del open_ways[candidate]
                    break
            else:
                return None
        rings.append(ring)
    return rings


class _Nodes:
    """Positions by node identifier, checked."""

    def __init__(self, path: Path, index: osmium.index.LocationTable) -> None:
        self._path = path
        self._index = index

    def parts(self, references: list[int]) -> list[np.ndarray]:
        """The stretches (N >= 2, 2) of a way whose nodes are in the file: one if it is whole."""
        stretches: list[list[tuple[float, float]]] = [[]]
        for reference in references:
            if reference <= 0:
                raise InputError(
                    f"{self._path}: expected positive node identifiers, found {reference}: an editor's "
                    "unsaved objects? Renumber the file (`osmium renumber`)."
                )
            try:
                location = self._index.get(reference)
            except KeyError:
                stretches.append([])
                continue
            stretches[-1].append(self.position(reference, location))
        return [np.array(stretch, np.float64) for stretch in stretches if len(stretch) >= 2]

    def position(self, node: int, location: osmium.osm.Location) -> tuple[float, float]:
        """(latitude, longitude) in degrees."""
        if not location.valid():
            raise InputError(
                f"{self._path}: node {node}: expected |latitude| <= 90 and |longitude| <= 180 degrees, found "
                f"{location.y / _COORDINATE_UNITS}, {location.x / _COORDINATE_UNITS}. Are they swapped, or "
                "projected?"
            )
        return location.y / _COORDINATE_UNITS, location.x / _COORDINATE_UNITS


def _is_building(tags: Mapping[str, str]) -> bool:
    return tags.get("building", "no") != "no" and on_ground(tags)


def _xml_snapshot(path: Path) -> str | None:
    """The date that XML extracts state in their first lines: <osm timestamp="..."> or Overpass' <meta
    osm_base="...">."""
    if path.name.endswith(".pbf"):
        return None
    opener = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    with opener(path, "rb") as file:
        head = file.read(4096).decode("utf-8", errors="replace")
    # Objects have timestamps of their own: look only before the first.
    head = re.split(r"<(?:node|way|relation)\b", head)[0]
    found = re.search(r"<osm\b[^>]*\btimestamp=[\"']([^\"']+)|<meta\b[^>]*\bosm_base=[\"']([^\"']+)", head)
    return (found[1] or found[2]) if found else None
