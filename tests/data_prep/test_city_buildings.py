"""Buildings of the built-in city: their forms, how they stand on the ground, and their relations in OSM."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import shapely

from data_prep.city.roofs import ROOFS
from data_prep.city.sizes import SIZES
from data_prep.city.world import World, build_world
from data_prep.city.write_osm import write_osm


@pytest.fixture(scope="module")
def world() -> World:
    return build_world("singapore-onenorth", SIZES["small"], 0)


def test_forms_roofs_and_heights_are_many(world):
    corners = np.array([len(b.footprint.exterior.coords) - 1 for b in world.buildings])
    holes = np.array([len(b.footprint.interiors) for b in world.buildings])
    # Six corners of which one points inwards: an L.
    angular = [b.footprint for b in world.buildings if len(b.footprint.exterior.coords) == 7]
    notched = [1 - p.area / p.convex_hull.area for p in angular]
    assert (np.array(notched) > 0.1).sum() > 20
    assert (corners == 8).sum() > 10  # U, T and recessed fronts
    assert (holes == 1).sum() > 8
    assert {b.roof for b in world.buildings} == set(ROOFS)
    heights = np.array([b.height for b in world.buildings])
    assert heights.min() < 6
    assert heights.max() > 25
    assert len({b.wall_colour for b in world.buildings}) > 0.9 * len(world.buildings)


def test_blocks_have_a_character_of_their_own(world):
    """Neighbours are more alike in height than any two buildings of the town."""
    centres = np.array([b.footprint.centroid.coords[0] for b in world.buildings])
    heights = np.log([b.height for b in world.buildings])
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=2)
    near = (distance > 0) & (distance < 40)
    difference = np.abs(heights[:, None] - heights[None])
    assert difference[near].mean() < 0.93 * difference[distance > 150].mean()


def test_footprints_keep_clear_of_streets_and_of_each_other(world):
    footprints = [b.footprint for b in world.buildings]
    assert all(footprint.is_valid for footprint in footprints)
    tree = shapely.STRtree(footprints)
    assert len(tree.query(world.road.union(world.sidewalk).buffer(-0.05), "intersects")) == 0
    first, second = tree.query(footprints, "overlaps")
    overlap = [footprints[i].intersection(footprints[j]).area for i, j in zip(first, second, strict=True)]
    assert max(overlap, default=0) < 1.0


def test_walls_reach_into_the_ground_and_floors_stand_above_it(world):
    for building in world.buildings:
        ring = shapely.segmentize(building.footprint, 2.0)
        ground = world.terrain.height(shapely.get_coordinates(ring))
        assert building.base < ground.min() - 0.2
        assert building.floor > ground.max()
        assert building.floor - building.base < 0.07 * building.footprint.length


def test_courtyards_are_relations_with_split_outer_rings(world, tmp_path):
    write_osm(tmp_path / "town.osm", world)
    root = ElementTree.parse(tmp_path / "town.osm").getroot()
    nodes_of_way = {
        way.attrib["id"]: [nd.attrib["ref"] for nd in way.iterfind("nd")] for way in root.iterfind("way")
    }
    parts = []
    for relation in root.iterfind("relation"):
        outer = [m.attrib["ref"] for m in relation.iterfind("member") if m.attrib["role"] == "outer"]
        inner = [m.attrib["ref"] for m in relation.iterfind("member") if m.attrib["role"] == "inner"]
        assert len(inner) >= 1
        parts.append(len(outer))
        # Each part begins at the node where the one before it ends, and the last ends where the first begins.
        for before, after in zip(outer[-1:] + outer[:-1], outer, strict=True):
            assert nodes_of_way[before][-1] == nodes_of_way[after][0]
    assert set(parts) == {1, 2, 3}
    assert len(parts) == sum(bool(b.footprint.interiors) for b in world.buildings)
