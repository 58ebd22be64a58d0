"""osmium reads the built-in city's OSM file and assembles its buildings, courtyards included."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import shapely

from data_prep.city import generate
from data_prep.geodesy import wgs84_to_map

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
