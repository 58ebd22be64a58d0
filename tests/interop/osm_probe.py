"""Run by .venv-interop: read an OSM file with osmium, assemble its areas, and write down what it found.

python osm_probe.py FILE.osm ANSWERS.json
"""

import json
import sys

import osmium


class Probe(osmium.SimpleHandler):
    """Collects building areas, ways with their positions, and tagged nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.buildings: list[dict] = []
        self.highways: list[dict] = []
        self.points: list[dict] = []
        self.ids: list[int] = []

    def node(self, node: osmium.osm.Node) -> None:
        self.ids.append(node.id)
        if node.tags:
            self.points.append({"tags": dict(node.tags), "lat": node.location.lat, "lon": node.location.lon})

    def way(self, way: osmium.osm.Way) -> None:
        self.ids.append(way.id)
        if "highway" in way.tags:
            # An extract's edge cuts ways: null where the file lacks a node.
            positions = [[n.lat, n.lon] if n.location.valid() else None for n in way.nodes]
            self.highways.append({"tags": dict(way.tags), "latlon": positions})

    def relation(self, relation: osmium.osm.Relation) -> None:
        self.ids.append(relation.id)

    def area(self, area: osmium.osm.Area) -> None:
        if "building" not in area.tags:
            return
        rings = []
        for outer in area.outer_rings():
            rings.append([[node.lat, node.lon] for node in outer])
            rings += [[[node.lat, node.lon] for node in inner] for inner in area.inner_rings(outer)]
        self.buildings.append({"from_way": area.from_way(), "tags": dict(area.tags), "rings": rings})


def main(path: str, answers_path: str) -> None:
    """Read the file and write the answers."""
    probe = Probe()
    probe.apply_file(path, locations=True, idx="flex_mem")
    box = osmium.io.Reader(path).header().box()
    answers = {
        "buildings": probe.buildings,
        "highways": probe.highways,
        "points": probe.points,
        "ids": probe.ids,
        "bounds": [box.bottom_left.lat, box.bottom_left.lon, box.top_right.lat, box.top_right.lon]
        if box.valid()
        else None,
    }
    with open(answers_path, "w") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
