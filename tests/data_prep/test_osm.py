"""The OpenStreetMap reader: what is kept, what is glued, what is refused."""

import gzip
import itertools
import json

import numpy as np
import osmium
import pytest

from data_prep import geodesy, rasterize
from data_prep.errors import InputError
from data_prep.raw import osm, osm_tags
from placerec_jax.ops.grid import Grid2D

LOCATION = "singapore-onenorth"
GRID = Grid2D((0.0, 20.0, 0.0, 20.0), 0.5)

# A building with a hole, whose outer ring is split over two ways running against each other; a road, a
# signal; and a road and a building below the ground.
NODES = dict(
    enumerate(
        [
            *[(2, 3), (8, 3), (8, 7), (2, 7)],  # 1 to 4, the outer ring
            *[(4, 4), (6, 4), (6, 6), (4, 6)],  # 5 to 8, the hole
            *[(10, 12), (18, 12)],  # 9, 10, the road
            *[(10, 2), (18, 2), (18, 5), (1, 18), (19, 18)],  # 11 to 15, below the ground
        ],
        start=1,
    )
)
BODY = """
<node id="16" version="1" lat="{lat:.7f}" lon="{lon:.7f}"><tag k="highway" v="traffic_signals"/></node>
<way id="1" version="1"><nd ref="1"/><nd ref="2"/><nd ref="3"/></way>
<way id="2" version="1"><nd ref="1"/><nd ref="4"/><nd ref="3"/></way>
<way id="3" version="1"><nd ref="5"/><nd ref="6"/><nd ref="7"/><nd ref="8"/><nd ref="5"/></way>
<way id="4" version="1"><nd ref="9"/><nd ref="10"/><tag k="highway" v="residential"/></way>
<way id="5" version="1"><nd ref="11"/><nd ref="12"/><nd ref="13"/><nd ref="11"/><tag k="building" v="yes"/>
  <tag k="layer" v="-1"/></way>
<way id="6" version="1"><nd ref="14"/><nd ref="15"/><tag k="highway" v="primary"/>
  <tag k="layer" v="-1"/></way>
<relation id="1" version="1">
  <member type="way" ref="1" role="outer"/><member type="way" ref="2" role="outer"/>
  <member type="way" ref="3" role="inner"/>
  <tag k="type" v="multipolygon"/><tag k="building" v="yes"/></relation>
""".format(**dict(zip(("lat", "lon"), geodesy.map_to_wgs84((5.2, 15.3), LOCATION), strict=True)))


ROAD_BODY = '<way id="4" version="1"><nd ref="1"/><nd ref="2"/><tag k="highway" v="residential"/></way>'


def rasters(data: osm.OsmData) -> np.ndarray:
    """(3, rows, columns): road, building, node."""
    roads = [geodesy.wgs84_to_map(road, LOCATION) for road in data.roads]
    buildings = [[geodesy.wgs84_to_map(ring, LOCATION) for ring in building] for building in data.buildings]
    points = geodesy.wgs84_to_map(data.points, LOCATION)
    return np.stack(
        [
            rasterize.draw_polylines(roads, GRID),
            rasterize.fill_polygons(buildings, GRID),
            rasterize.draw_points(points, GRID),
        ]
    )


def test_exact_cells(write_osm):
    expected = np.zeros((3, 40, 40), np.uint8)
    expected[0, 19:37, 23:25] = 1  # two cells wide; the round ends reach into one more cell
    expected[1, 4:16, 6:14] = 1
    expected[1, 8:12, 8:12] = 0
    expected[2, 9:12, 29:32] = 1  # three by three about cell (10, 30)
    found = rasters(osm.read_osm(write_osm(NODES, BODY)))
    for name, a, b in zip(("road", "building", "node"), found, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_snapshot_of_the_header(write_osm):
    assert osm.read_osm(write_osm(NODES, BODY)).snapshot == "2024-05-06T00:00:00Z"


def test_formats_agree(write_osm, tmp_path):
    """XML, compressed XML, PBF and Overpass' order (ways before nodes) give the same rasters."""
    source = write_osm(NODES, BODY)
    expected = rasters(osm.read_osm(source))
    for suffix in ("osm.gz", "osm.bz2", "osm.pbf"):
        path = tmp_path / f"copy.{suffix}"
        with osmium.SimpleWriter(str(path)) as writer:
            for item in osmium.FileProcessor(str(source)):
                writer.add(item)
        np.testing.assert_array_equal(rasters(osm.read_osm(path)), expected, err_msg=suffix)
    lines = source.read_text().splitlines()
    nodes = [line for line in lines if line.startswith("<node")]
    rest = [line for line in lines if line not in nodes]
    (tmp_path / "overpass.osm").write_text("\n".join([*rest[:-1], *nodes, rest[-1]]))
    np.testing.assert_array_equal(rasters(osm.read_osm(tmp_path / "overpass.osm")), expected)


@pytest.mark.parametrize(
    ("tags", "kept"),
    [
        ({}, True),
        ({"layer": "1"}, True),
        ({"layer": "-1"}, False),
        ({"layer": "-0.5"}, False),
        ({"layer": "yes"}, True),
        ({"location": "underground"}, False),
        ({"parking": "underground"}, False),
        ({"level": "0"}, True),
        ({"level": "1"}, True),
        ({"level": "2"}, False),
        ({"level": "-1"}, False),
        ({"level": "-1;0"}, True),
        ({"level": "-2-3"}, True),
        ({"level": "2;3-5"}, False),
        ({"level": "0.5"}, False),
        ({"level": "mezzanine"}, True),
        ({"tunnel": "yes"}, False),
        ({"tunnel": "yes", "layer": "0"}, False),
        ({"tunnel": "culvert"}, False),
        ({"tunnel": "no"}, True),
        ({"tunnel": "building_passage"}, True),
        ({"tunnel": "avalanche_protector"}, True),
        ({"bridge": "yes", "layer": "2"}, True),
    ],
)
def test_on_ground(tags, kept):
    assert osm_tags.on_ground(tags) is kept


def test_a_tunnel_without_a_layer_is_not_drawn(write_osm):
    """What is under the ground is not seen, whether or not somebody said how deep it lies."""
    for tunnel, kept in (("yes", 0), ("building_passage", 1)):
        way = (
            '<way id="9" version="1"><nd ref="14"/><nd ref="15"/><tag k="highway" v="primary"/>'
            f'<tag k="tunnel" v="{tunnel}"/></way>'
        )
        assert len(osm.read_osm(write_osm(NODES, BODY + way)).roads) == 1 + kept


class TestClasses:
    def test_the_tables_are_the_planes_of_orienternet(self):
        assert [len(t) for t in (osm_tags.AREAS, osm_tags.WAYS, osm_tags.NODES)] == [7, 10, 33]
        assert set(osm_tags.NAVIGATION_NODES) < set(osm_tags.NODES)
        # No tag stands for two classes of a table: the order of the classes decides on overlaps alone.
        for table in (osm_tags.AREAS, osm_tags.WAYS, osm_tags.NODES):
            pairs = [(k, v) for tags in table.values() for k, vs in tags.items() for v in vs or ["*"]]
            assert len(pairs) == len(set(pairs))

    def test_every_class_is_read_from_each_of_its_tags(self, write_osm):
        """One object for each tag of each class, and nothing else."""
        body, nodes, expected = [ROAD_BODY], {1: (10.0, 12.0), 2: (18.0, 12.0)}, {}
        number = 100
        for kind, table in (("area", osm_tags.AREAS), ("way", osm_tags.WAYS), ("node", osm_tags.NODES)):
            for name, tags in table.items():
                for key, value in [(k, v) for k, vs in tags.items() for v in vs or ["yes"]]:
                    tag = f'<tag k="{key}" v="{value}"/>'
                    corners = list(range(number + 1, number + 4))
                    nodes |= dict(zip(corners, [(2, 3), (8, 3), (8, 7)], strict=True))
                    ring = "".join(f'<nd ref="{n}"/>' for n in [*corners, corners[0]])
                    body.append(
                        f'<way id="{number}" version="1">{ring}{tag}</way>'
                        if kind != "node"
                        else f'<node id="{number}" version="1" lat="1.29" lon="103.79">{tag}</node>'
                    )
                    expected[kind, name] = expected.get((kind, name), 0) + 1
                    number += 10
        data = osm.read_osm(write_osm(nodes, "\n".join(body)))
        expected["way", "road"] += 1
        found = {
            **{("area", name): len(areas) for name, areas in data.areas.items() if areas},
            **{("way", name): len(ways) for name, ways in data.ways.items() if ways},
            **{("node", name): len(nodes) for name, nodes in data.nodes.items() if len(nodes)},
        }
        assert found == expected
        assert len(data.road_kinds) == len(data.roads)

    def test_a_wood_in_a_park_around_a_pond(self, write_osm):
        """Areas of two classes from one multipolygon, whose hole is an area itself."""
        body = """
        <way id="1" version="1"><nd ref="1"/><nd ref="2"/><nd ref="3"/><nd ref="4"/><nd ref="1"/></way>
        <way id="3" version="1"><nd ref="5"/><nd ref="6"/><nd ref="7"/><nd ref="8"/><nd ref="5"/>
          <tag k="natural" v="water"/></way>
        <relation id="1" version="1"><member type="way" ref="1" role="outer"/>
          <member type="way" ref="3" role="inner"/>
          <tag k="type" v="multipolygon"/><tag k="leisure" v="park"/><tag k="natural" v="wood"/></relation>"""
        data = osm.read_osm(write_osm(NODES, ROAD_BODY + body))
        assert {name: len(areas) for name, areas in data.areas.items() if areas} == {
            "water": 1,
            "forest": 1,
            "park": 1,
        }
        assert [len(ring) for ring in data.areas["park"][0]] == [5, 5]
        assert data.buildings_left_out == data.building_multipolygons == 0

    def test_a_node_has_one_class(self, write_osm):
        node = '<node id="99" version="1" lat="1.29" lon="103.79"><tag k="highway" v="street_lamp"/>{}</node>'
        both = node.format('<tag k="man_made" v="utility_pole"/>')
        data = osm.read_osm(write_osm(NODES, BODY + both))
        assert len(data.nodes["street_lamp"]) == 1
        assert len(data.nodes["utility_pole"]) == 0


class TestJson:
    """The answers of Overpass and of the OSM interface."""

    def answer(self) -> dict:
        def node(number, xy, **tags):
            lat, lon = geodesy.map_to_wgs84(xy, LOCATION)
            return {"type": "node", "id": number, "lat": lat, "lon": lon, **({"tags": tags} if tags else {})}

        def way(number, nodes, **tags):
            return {"type": "way", "id": number, "nodes": nodes, "tags": tags}

        roles = [(1, "outer"), (2, "outer"), (3, "inner")]
        return {
            "version": 0.6,
            "generator": "Overpass API",
            "osm3s": {"timestamp_osm_base": "2024-07-08T09:10:11Z", "copyright": "..."},
            "elements": [
                {
                    "type": "relation",
                    "id": 1,
                    "members": [{"type": "way", "ref": ref, "role": role} for ref, role in roles],
                    "tags": {"type": "multipolygon", "building": "yes"},
                },
                way(1, [1, 2, 3]),
                way(2, [1, 4, 3]),
                way(3, [5, 6, 7, 8, 5]),
                way(4, [9, 10], highway="residential"),
                way(6, [14, 15], highway="primary", layer="-1"),
                *(node(number, xy) for number, xy in NODES.items()),
                node(16, (5.2, 15.3), highway="traffic_signals"),
                {"type": "count", "id": 0, "tags": {"total": "3"}},
            ],
        }

    @pytest.mark.parametrize("name", ["a.json", "a.osm.json"])
    def test_the_same_map_as_from_xml(self, write_osm, tmp_path, name):
        (tmp_path / name).write_text(json.dumps(self.answer()))
        data = osm.read_osm(tmp_path / name)
        np.testing.assert_array_equal(rasters(data), rasters(osm.read_osm(write_osm(NODES, BODY))))
        assert data.snapshot == "2024-07-08T09:10:11Z"
        assert data.path == tmp_path / name

    def test_the_osm_interface_states_no_date(self, tmp_path):
        answer = self.answer()
        del answer["osm3s"]
        (tmp_path / "a.json").write_text(json.dumps(answer))
        assert osm.read_osm(tmp_path / "a.json").snapshot is None

    @pytest.mark.parametrize(
        ("damage", "expected"),
        [
            (lambda a: a.pop("elements"), "list of 'elements'"),
            (lambda a: a.update(elements={}), "list of 'elements'"),
            (lambda a: a["elements"][1].pop("nodes"), r"element 1 \(way 1\).*nodes.*out body"),
            (lambda a: a["elements"][-2].update(lat="north"), r"element \d+ \(node 16\).*north"),
            (lambda a: a["elements"][-2].update(lat=float("nan")), r"element \d+ \(node 16\).*nan"),
            (lambda a: a["elements"][-2].update(lat=95.0), "node 16: expected .latitude. <= 90.*95"),
            (lambda a: a["elements"][-2].update(tags={"highway": 3}), r"node 16.*not text"),
            (lambda a: a["elements"][1].update(id="one"), r"element 1.*whole number.*'one'"),
            (lambda a: a["elements"][1].update(id=2**70), r"element 1 .*64 bits"),
            (lambda a: a["elements"].insert(0, "text"), r"element 0 \(str\)"),
            (lambda a: a["elements"][0]["members"][0].update(type="area"), r"element 0 \(relation 1\)"),
            (lambda a: a["elements"][1].update(nodes=[1, -2, 3]), "positive node identifiers, found -2"),
        ],
    )
    def test_bad_answers(self, tmp_path, damage, expected):
        answer = self.answer()
        damage(answer)
        (tmp_path / "a.json").write_text(json.dumps(answer))
        with pytest.raises(InputError, match=expected) as error:
            osm.read_osm(tmp_path / "a.json")
        assert str(tmp_path / "a.json") in str(error.value)

    def test_truncated(self, tmp_path):
        (tmp_path / "a.json").write_text(json.dumps(self.answer())[:-40])
        with pytest.raises(InputError, match=r"a\.json: expected the JSON.*truncated"):
            osm.read_osm(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("tag", "kept"),
    [
        ("residential", 1),
        ("motorway_link", 1),
        ("service", 1),
        ("footway", 0),
        ("cycleway", 0),
        ("proposed", 0),
    ],
)
def test_road_classes(write_osm, tag, kept):
    body = f'{BODY}<way id="9" version="1"><nd ref="1"/><nd ref="15"/><tag k="highway" v="{tag}"/></way>'
    assert len(osm.read_osm(write_osm(NODES, body)).roads) == 1 + kept


def test_building_no_is_none(write_osm):
    body = BODY.replace('k="building" v="yes"', 'k="building" v="no"')
    assert osm.read_osm(write_osm(NODES, body)).buildings == []


def test_a_tagged_outer_way_does_not_fill_the_hole(write_osm):
    """Members of a building relation are its parts, even where the closed outer way repeats the tag."""
    body = """
    <way id="1" version="1"><nd ref="1"/><nd ref="2"/><nd ref="3"/><nd ref="4"/><nd ref="1"/>
      <tag k="building" v="yes"/></way>
    <way id="3" version="1"><nd ref="5"/><nd ref="6"/><nd ref="7"/><nd ref="8"/><nd ref="5"/></way>
    <relation id="1" version="1"><member type="way" ref="1" role="outer"/><member type="way" ref="3"
    role="inner"/>
      <tag k="type" v="multipolygon"/><tag k="building" v="yes"/></relation>"""
    building = rasters(osm.read_osm(write_osm(NODES, body)))[1]
    np.testing.assert_array_equal(building, rasters(osm.read_osm(write_osm(NODES, BODY)))[1])


class TestGlueRings:
    def test_reverses_and_reorders(self):
        (ring,) = osm.glue_rings([[1, 2, 3], [5, 4, 3], [5, 6, 1]])
        assert ring[0] == ring[-1]
        edges = {frozenset(edge) for edge in itertools.pairwise(ring)}
        assert edges == {frozenset(e) for e in [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 1)]}

    def test_several_rings(self):
        rings = osm.glue_rings([[1, 2, 3, 1], [4, 5], [5, 6, 4]])
        assert sorted(len(ring) for ring in rings) == [4, 4]

    def test_an_open_ring_is_none(self):
        assert osm.glue_rings([[1, 2, 3], [3, 4]]) is None


class TestCutByTheEdgeOfAnExtract:
    def test_a_relation_lacking_a_member_is_counted(self, write_osm):
        body = BODY.replace('<member type="way" ref="2"', '<member type="way" ref="77"')
        data = osm.read_osm(write_osm(NODES, body))
        assert data.buildings == []
        assert data.buildings_left_out == 1

    def test_a_building_lacking_a_node_is_counted(self, write_osm):
        nodes = {k: v for k, v in NODES.items() if k != 6}
        data = osm.read_osm(write_osm(nodes, BODY))
        assert data.buildings == []
        assert data.buildings_left_out == 1

    def test_a_road_keeps_the_stretches_that_are_there(self, write_osm):
        body = BODY.replace(
            '<nd ref="9"/><nd ref="10"/>',
            '<nd ref="9"/><nd ref="10"/><nd ref="99"/><nd ref="14"/><nd ref="15"/>',
        )
        data = osm.read_osm(write_osm(NODES, body))
        assert [len(road) for road in data.roads] == [2, 2]
        assert data.ways_lacking_nodes == 1


WHOLE = '<osm version="0.6"><node id="1" lat="1.3" lon="103.8"/>'
ROAD = '<way id="1"><nd ref="1"/><nd ref="2"/><tag k="highway" v="road"/></way></osm>'


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.osm", None, "found no file"),
        ("a.osm", b"", "found an empty file"),
        ("a.osm.pbf", b"", "found an empty file"),
        ("a.txt", b"{}", r"expected a name ending in \.osm.*'\.txt'"),
        ("a.osm", b"hello", "something else, or a truncated one.*line 1"),
        ("a.osm", b"<html><body>429 Too Many Requests</body></html>", "something else.*html"),
        ("a.osm", WHOLE.encode(), "truncated"),
        ("a.osm.gz", gzip.compress((WHOLE + ROAD).encode() * 50, mtime=0)[:60], "truncated"),
        ("a.osm.gz", b"not gzip at all", "something else"),
        ("a.osm.pbf", b"hello world, this is no pbf", "something else.*PBF"),
        ("a.osm", b'<osm version="0.6"></osm>', "found none of them"),
        (
            "a.osm",
            (WHOLE + '<node id="2" lat="95.5" lon="103"/>' + ROAD).encode(),
            r"node 2:.*latitude.*found 95\.5",
        ),
        (
            "a.osm",
            (WHOLE + '<node id="2" lat="1.3" lon="190"/>' + ROAD).encode(),
            r"node 2:.*longitude.*found 1\.3, 190",
        ),
        (
            "a.osm",
            (WHOLE + '<node id="2" lat="nan" lon="1"/>' + ROAD).encode(),
            "expected coordinates.*'nan'",
        ),
        (
            "a.osm",
            (WHOLE + ROAD.replace('ref="2"', 'ref="-2"')).encode(),
            "positive node identifiers, found -2",
        ),
    ],
)
def test_bad_files(tmp_path, name, content, expected):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=expected) as error:
        osm.read_osm(path)
    assert str(path) in str(error.value)


@pytest.mark.real_data
class TestRealExtracts:
    def test_truncated_pbf(self, real_data, tmp_path):
        content = (real_data / "osm/helsinki.osm.pbf").read_bytes()
        (tmp_path / "half.osm.pbf").write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match="truncated"):
            osm.read_osm(tmp_path / "half.osm.pbf")

    def test_helsinki(self, real_data):
        path = real_data / "osm/helsinki.osm.pbf"
        data = osm.read_osm(path)
        ways = osmium.FileProcessor(str(path), osmium.osm.osm_entity_bits.WAY)
        closed = sum("building" in w.tags and w.nodes[0].ref == w.nodes[-1].ref for w in ways)
        assert 400 < closed <= len(data.buildings) + data.buildings_left_out < closed + 100
        assert len(data.roads) > 800
        assert len(data.points) > 100
        # 61 multipolygons with courtyards and parts; the file states no date, its objects do.
        assert data.building_multipolygons == 61
        assert sum(len(building) > 1 for building in data.buildings) == 61
        assert data.snapshot is None
        assert data.newest_object.startswith("20")
        # A city's furniture and ground, in most of the classes.
        assert {"building", "water", "grass", "forest", "park", "parking"} <= {
            k for k, v in data.areas.items() if v
        }
        assert sum(len(nodes) > 0 for nodes in data.nodes.values()) >= 25
        assert len(data.ways["path"]) > len(data.ways["road"])

    def test_small_with_buildings(self, real_data):
        data = osm.read_osm(real_data / "osm/small-with-buildings.osm")
        # 33 tagged ways, one of them cut off at the edge, and one relation that lacks members.
        assert (len(data.buildings), data.buildings_left_out) == (32, 2)
        assert data.snapshot == "2020-08-10T00:00:00Z"

    def test_one_north_has_roads_alone(self, real_data):
        data = osm.read_osm(real_data / "osm/singapore-onenorth.osm")
        assert len(data.roads) > 1000
        assert not data.buildings
        assert not len(data.points)
