"""The OpenStreetMap reader: streets, areas, barriers and street furniture of an extract, in WGS84.

Reads `.osm`, `.osm.gz`, `.osm.bz2`, `.osm.pbf`, and the JSON of the OSM and Overpass interfaces, in any order
of objects (Overpass writes ways before nodes). What is kept, under which class, is in
`data_prep.raw.osm_tags`; objects below or above the ground are dropped (`on_ground` there).
"""

import bz2
import dataclasses
import datetime
import gzip
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import osmium

from data_prep.errors import InputError
from data_prep.raw import osm_json
from data_prep.raw.osm_tags import AREAS, NAVIGATION_NODES, NODES, WAYS, classes_of, keys_of, on_ground

# In a folder, a `.json` may be anything; by name it is taken for an answer of the OSM or Overpass interface.
FOLDER_SUFFIXES = (".osm", ".osm.gz", ".osm.bz2", ".osm.pbf", ".osm.json")
SUFFIXES = (*FOLDER_SUFFIXES, ".json")

_COORDINATE_UNITS = 1e7  # OSM stores degrees as integers of 1e-7
_UNDATED = datetime.datetime.fromtimestamp(0, datetime.UTC)  # what objects without a date have


@dataclasses.dataclass(frozen=True)
class OsmData:
    """The contents of one extract by class of `osm_tags`; coordinates are (latitude, longitude) in degrees,
    float64.

    An area is a list of closed rings (N, 2), to be filled even-odd: holes and several outer rings need no
    roles. A way is a polyline (N, 2). `nodes` are (N, 2) a class. `road_kinds` holds the `highway` value of
    each of `ways["road"]`. `snapshot` is the date of the data where the file states it, `newest_object` the
    last change among the objects kept, where they are dated. The counts say what an extract's edge cut off:
    ways of any class that lack nodes, and buildings (ways or multipolygons) that were left out because they
    do not close or lack members; and how many buildings come from multipolygons.
    """

    path: Path
    areas: dict[str, list[list[np.ndarray]]]
    ways: dict[str, list[np.ndarray]]
    nodes: dict[str, np.ndarray]
    road_kinds: list[str]
    snapshot: str | None
    newest_object: str | None
    ways_lacking_nodes: int
    buildings_left_out: int
    building_multipolygons: int

    @property
    def roads(self) -> list[np.ndarray]:
        """Polylines of the navigation map's roads."""
        return self.ways["road"]

    @property
    def buildings(self) -> list[list[np.ndarray]]:
        """Areas of the navigation map's buildings."""
        return self.areas["building"]

    @property
    def points(self) -> np.ndarray:
        """(N, 2) the navigation map's nodes."""
        return np.concatenate([self.nodes[name] for name in NAVIGATION_NODES])


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
        if not path.name.endswith(".json"):
            return _read(path, path)
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy.osm.pbf"
            snapshot = osm_json.write_pbf(path, copy)
            return dataclasses.replace(_read(path, copy), snapshot=snapshot)
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


def _read(path: Path, file: Path) -> OsmData:
    """Read `file`; errors name `path`, of which it may be a copy in another format."""
    entity = osmium.osm.osm_entity_bits
    reader = osmium.io.Reader(str(file), entity.NODE)
    header = reader.header()
    index = osmium.index.create_map("flex_mem")
    osmium.apply(reader, osmium.NodeLocationsForWays(index))
    reader.close()
    positions = _Nodes(path, index)

    areas: dict[str, list[list[np.ndarray]]] = {name: [] for name in AREAS}
    ways: dict[str, list[np.ndarray]] = {name: [] for name in WAYS}
    nodes: dict[str, list[tuple[float, float]]] = {name: [] for name in NODES}
    road_kinds: list[str] = []
    ways_lacking_nodes = buildings_left_out = building_multipolygons = 0
    newest = _UNDATED

    # Multipolygons first: they say which ways are parts of areas and not areas of their own.
    multipolygons = _multipolygons(file)
    classes_of_member: dict[int, set[str]] = {}
    for multipolygon in multipolygons:
        for way in multipolygon.ways:
            classes_of_member.setdefault(way, set()).update(multipolygon.classes)
    member_nodes = _nodes_of_ways(file, classes_of_member)

    for way in osmium.FileProcessor(str(file), entity.WAY).with_filter(
        osmium.filter.KeyFilter(*keys_of(AREAS, WAYS))
    ):
        if not on_ground(way.tags):
            continue
        way_classes = classes_of(way.tags, WAYS)
        area_classes = set(classes_of(way.tags, AREAS)) - classes_of_member.get(way.id, set())
        if not way_classes and not area_classes:
            continue
        newest = max(newest, way.timestamp)
        references = [node.ref for node in way.nodes]
        parts = positions.parts(references)
        complete = _is_whole(parts, [references])
        ways_lacking_nodes += not complete
        for name in way_classes:
            ways[name].extend(parts)
        if "road" in way_classes:
            road_kinds.extend([way.tags["highway"]] * len(parts))
        closed = len(references) >= 4 and references[0] == references[-1]
        for name in area_classes:
            if complete and closed:
                areas[name].append(parts)
        buildings_left_out += "building" in area_classes and not (complete and closed)

    for multipolygon in multipolygons:
        rings = multipolygon.rings(member_nodes)
        parts = [part for ring in rings or [] for part in positions.parts(ring)]
        whole = rings is not None and _is_whole(parts, rings)
        if whole:
            for name in multipolygon.classes:
                areas[name].append(parts)
        if "building" in multipolygon.classes:
            building_multipolygons += whole
            buildings_left_out += not whole

    for node in osmium.FileProcessor(str(file), entity.NODE).with_filter(
        osmium.filter.KeyFilter(*keys_of(NODES))
    ):
        names = classes_of(node.tags, NODES)
        if names and on_ground(node.tags):
            newest = max(newest, node.timestamp)
            nodes[names[0]].append(positions.position(node.id, node.location))

    data = OsmData(
        path,
        areas,
        ways,
        {name: np.array(found, np.float64).reshape(-1, 2) for name, found in nodes.items()},
        road_kinds,
        header.get("osmosis_replication_timestamp") or header.get("timestamp") or _xml_snapshot(file),
        newest.isoformat() if newest > _UNDATED else None,
        ways_lacking_nodes,
        buildings_left_out,
        building_multipolygons,
    )
    if not (data.roads or data.buildings or len(data.points)):
        raise InputError(
            f"{path}: expected roads (highway=...), buildings or street furniture, found none of them in "
            "it. Choose an extract with full street data, and check that the filter it was cut with keeps "
            "tags."
        )
    return data


@dataclasses.dataclass(frozen=True)
class _Multipolygon:
    """An area made of several ways."""

    classes: list[str]
    ways: list[int]

    def rings(self, nodes_of_way: dict[int, list[int]]) -> list[list[int]] | None:
        """Closed rings of node identifiers; None if the file lacks a member or the ways do not close."""
        if not self.ways or not all(way in nodes_of_way for way in self.ways):
            return None
        return glue_rings([nodes_of_way[way] for way in self.ways])


def _multipolygons(file: Path) -> list[_Multipolygon]:
    relations = osmium.FileProcessor(str(file), osmium.osm.osm_entity_bits.RELATION)
    result = []
    for relation in relations.with_filter(osmium.filter.KeyFilter(*keys_of(AREAS))):
        if relation.tags.get("type") != "multipolygon" or not on_ground(relation.tags):
            continue
        classes = classes_of(relation.tags, AREAS)
        if classes:
            members = [member.ref for member in relation.members if member.type == "w"]
            result.append(_Multipolygon(classes, members))
    return result


def _nodes_of_ways(file: Path, wanted: Iterable[int]) -> dict[int, list[int]]:
    """Way → node identifiers, of the wanted ways that the file holds."""
    identifiers = set(wanted)
    if not identifiers:
        return {}
    entity = osmium.osm.osm_entity_bits
    only_wanted = osmium.filter.IdFilter(identifiers).enable_for(entity.WAY)
    ways = osmium.FileProcessor(str(file), entity.WAY).with_filter(only_wanted)
    return {way.id: [node.ref for node in way.nodes] for way in ways}


def _is_whole(parts: Sequence[np.ndarray], references: Sequence[Sequence[int]]) -> bool:
    """Whether the stretches that were found are the ways (or rings) themselves, no node lacking."""
    return [len(part) for part in parts] == [len(row) for row in references]


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
