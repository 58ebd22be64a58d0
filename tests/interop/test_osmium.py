"""osmium reads the built-in city's OSM files, and assembles what our reader glues of real extracts."""

import itertools
import json
import subprocess
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import shapely

from data_prep.city import generate
from data_prep.geodesy import EARTH_RADIUS, wgs84_to_map
from data_prep.raw import osm

pytestmark = [pytest.mark.interop, pytest.mark.slow]

PROBE = Path(__file__).with_name("osm_probe.py")


@pytest.fixture(scope="module")
def worlds_and_answers(interop_python, tmp_path_factory) -> list[tuple]:
    """Each town of the small city, and what osmium finds in its file."""
    out = tmp_path_factory.mktemp("city")
    generate.main(["--out", str(out), "--size", "small", "--formats", "osm"])
    pairs = []
    for world, _ in generate.plan("small", 0):
        answers = out / f"{world.location}.json"
        osm = out / "osm" / f"{world.location}.osm"
        subprocess.run([interop_python, PROBE, osm, answers], check=True, timeout=300)
        pairs.append((world, json.loads(answers.read_text())))
    return pairs


def test_ids_are_positive_and_unique(worlds_and_answers):
    for _, answers in worlds_and_answers:
        assert min(answers["ids"]) > 0
        assert len(set(answers["ids"])) == len(answers["ids"])


def test_every_building_is_assembled_where_it_stands(worlds_and_answers):
    """All footprints, holes included, come back to a centimetre, from ways and from relations."""
    for world, answers in worlds_and_answers:
        assert len(answers["buildings"]) == len(world.buildings)
        assert sum(not building["from_way"] for building in answers["buildings"]) >= 2
        assembled = []
        for building in answers["buildings"]:
            outer, *inner = (wgs84_to_map(np.array(ring), world.location) for ring in building["rings"])
            assembled.append(shapely.Polygon(outer, inner))
        tree = shapely.STRtree(assembled)
        for building in world.buildings:
            nearest = assembled[tree.nearest(building.footprint.representative_point())]
            assert nearest.symmetric_difference(building.footprint).area < 0.02 * building.footprint.length
            assert len(nearest.interiors) == len(building.footprint.interiors)


def test_poles_are_nodes_where_they_are_rendered(worlds_and_answers):
    for world, answers in worlds_and_answers:
        kinds = {"street_lamp", "traffic_signals", "stop", "utility_pole", "flagpole"}
        found = [
            (value, *wgs84_to_map(np.array([point["lat"], point["lon"]]), world.location))
            for point in answers["points"]
            for key, value in point["tags"].items()
            if key in ("highway", "man_made") and value in kinds
        ]
        assert {kind for kind, _, _ in found} == kinds
        expected = sorted((pole.kind, *pole.xy) for pole in world.furniture.poles)
        assert len(found) == len(expected)
        for kind in kinds:
            read = np.array(sorted(row[1:] for row in found if row[0] == kind))
            made = np.array(sorted(row[1:] for row in expected if row[0] == kind))
            distance = np.linalg.norm(read[:, None] - made[None], axis=2)
            assert distance.min(0).max() < 0.02
            assert distance.min(1).max() < 0.02


def test_streets_keep_their_classes_and_the_tunnel_its_layer(worlds_and_answers):
    for world, answers in worlds_and_answers:
        streets = [way for way in answers["highways"] if way["tags"].get("name", "").startswith("Street ")]
        assert len(streets) == len(world.graph.streets)
        for way in streets:
            street = world.graph.streets[int(way["tags"]["name"].split()[1]) - 1]
            line = wgs84_to_map(np.array(way["latlon"]), world.location)
            np.testing.assert_allclose(line[[0, -1]], world.graph.nodes[[street.a, street.b]], atol=0.02)
            assert shapely.hausdorff_distance(shapely.LineString(line), world.graph.line(street)) < 0.12
            assert way["tags"]["highway"] == street.kind
        assert len({way["tags"]["highway"] for way in streets}) >= 4
        assert sum(way["tags"].get("layer") == "-1" for way in answers["highways"]) == 1
        assert any(way["tags"]["highway"] == "footway" for way in answers["highways"])


# Roads as the paper counts them, spelled out once more: the reader has a table of its own.
MAJOR_ROADS = ["motorway", "trunk", "primary", "secondary", "tertiary"]
MINOR_ROADS = ["unclassified", "residential", "living_street", "service", "road"]
ROAD_CLASSES = [*MAJOR_ROADS, *(f"{road}_link" for road in MAJOR_ROADS), *MINOR_ROADS]


def seen_from_the_street(tags: dict[str, str]) -> bool:
    """A plain reading of the rule, for the values that these extracts hold."""
    levels = [float(level) for level in tags.get("level", "0").replace(",", ";").split(";")]
    return (
        float(tags.get("layer", "0")) >= 0
        and tags.get("tunnel", "no") in ("no", "building_passage")
        and tags.get("location") != "underground"
        and any(level in (0, 1) for level in levels)
    )


def metres(a: list[float], b: list[float]) -> float:
    """Between two (latitude, longitude) that are near each other."""
    north, east = np.radians(np.subtract(b, a)) * EARTH_RADIUS
    return float(np.hypot(north, east * np.cos(np.radians(a[0]))))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "crossed"),
    [("helsinki.osm.pbf", 0), ("small-with-buildings.osm", 1), ("singapore-onenorth.osm", 0)],
)
def test_real_extracts_are_read_as_osmium_reads_them(name, crossed, real_data, interop_python, tmp_path):
    """Buildings from ways and multipolygons by number and area, roads by class and length.

    osmium assembles no area from an outline that crosses itself, the even-odd fill draws it all the same.
    """
    path = real_data / "osm" / name
    answers = tmp_path / "answers.json"
    subprocess.run([interop_python, PROBE, path, answers], check=True, timeout=300)
    theirs, ours = json.loads(answers.read_text()), osm.read_osm(path)

    # Relations first: a way that is part of a building is none of its own.
    complete = [building for building in theirs["buildings"] if building["rings"]]
    seen = [b for b in complete if b["tags"]["building"] != "no" and seen_from_the_street(b["tags"])]
    multipolygons = [building for building in seen if not building["from_way"]]
    assert ours.building_multipolygons == len(multipolygons)
    members = {_ring_key(ring) for building in multipolygons for ring in building["rings"]}
    ways = [b for b in seen if b["from_way"] and _ring_key(b["rings"][0]) not in members]
    assert len(ours.buildings) == len(ways) + len(multipolygons) + crossed

    def even_odd_area(rings: list) -> float:
        """Outer rings less inner ones, by which contain which."""
        shape = shapely.Polygon()
        for ring in rings:
            shape = shape.symmetric_difference(shapely.Polygon(np.asarray(ring)).buffer(0))
        south = np.radians(np.asarray(rings[0])[0, 0])
        return shape.area * np.radians(1) ** 2 * EARTH_RADIUS**2 * np.cos(south)

    expected = sum(even_odd_area(building["rings"]) for building in [*ways, *multipolygons])
    sound = [rings for rings in ours.buildings if len(rings) > 1 or shapely.Polygon(rings[0]).is_valid]
    assert len(sound) == len(ours.buildings) - crossed
    assert sum(even_odd_area(rings) for rings in sound) == pytest.approx(expected, rel=1e-4)

    lengths: dict[str, float] = defaultdict(float)
    for way in theirs["highways"]:
        kind = way["tags"]["highway"]
        if kind in ROAD_CLASSES and seen_from_the_street(way["tags"]):
            for a, b in itertools.pairwise(way["latlon"]):
                if a and b:
                    lengths[kind] += metres(a, b)
    found: dict[str, float] = defaultdict(float)
    for kind, road in zip(ours.road_kinds, ours.roads, strict=True):
        found[kind] += sum(metres(a, b) for a, b in itertools.pairwise(road))
    assert found == pytest.approx({kind: length for kind, length in lengths.items() if length}, rel=1e-6)


def _ring_key(ring: list) -> frozenset:
    """A ring by its corners, wherever and which way round it begins."""
    return frozenset(map(tuple, ring))
