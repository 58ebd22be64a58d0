"""Which tags of OpenStreetMap are what: the classes that maps are drawn from.

A table maps a class to the tags that make it: key → values, or ANY for every value but "no". Two styles are
drawn from the same classes:

- the navigation map of MapLocNet (arXiv 2407.08561, Tab. II), three binary channels: roads, buildings and the
  NAVIGATION_NODES;
- planes of class indices as OrienterNet (arXiv 2304.02009) reads them: 7 classes of areas, 10 of ways and 33
  of nodes. The names of areas and ways are its own; which tags stand behind them, and which nodes are told
  apart, was chosen here, by what stands along streets and is mapped often.

The order of a table is that of the indices, from 1; where classes overlap, the one that comes first is drawn.
"""

import re
from collections.abc import Mapping

ANY = None
Classes = dict[str, dict[str, frozenset[str] | None]]


def _values(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ROADS_WITH_LINKS = ("motorway", "trunk", "primary", "secondary", "tertiary")
ROADS = frozenset(
    (
        *_ROADS_WITH_LINKS,
        *(f"{road}_link" for road in _ROADS_WITH_LINKS),
        *("unclassified", "residential", "living_street", "service", "road"),
    )
)

AREAS: Classes = {
    "building": {"building": ANY},
    "parking": {"amenity": _values("parking motorcycle_parking")},
    "playground": {"leisure": _values("playground")},
    "water": {
        "natural": _values("water"),
        "waterway": _values("riverbank dock"),
        "landuse": _values("basin reservoir"),
    },
    "grass": {"landuse": _values("grass meadow village_green"), "natural": _values("grassland")},
    "forest": {"landuse": _values("forest"), "natural": _values("wood scrub")},
    "park": {"leisure": _values("park garden")},
}

# The outlines of buildings are drawn from AREAS.
BUILDING_OUTLINE = "building_outline"
WAYS: Classes = {
    BUILDING_OUTLINE: {},
    "wall": {"barrier": _values("wall city_wall retaining_wall")},
    "fence": {"barrier": _values("fence")},
    "hedge": {"barrier": _values("hedge")},
    "kerb": {"barrier": _values("kerb")},
    "tree_row": {"natural": _values("tree_row")},
    "cycleway": {"highway": _values("cycleway")},
    "path": {"highway": _values("footway path pedestrian steps bridleway track")},
    "busway": {"highway": _values("busway bus_guideway")},
    "road": {"highway": ROADS},
}

NODES: Classes = {
    "traffic_signals": {"highway": _values("traffic_signals")},
    "stop": {"highway": _values("stop")},
    "give_way": {"highway": _values("give_way")},
    "crossing": {"highway": _values("crossing")},
    "street_lamp": {"highway": _values("street_lamp")},
    "bus_stop": {"highway": _values("bus_stop")},
    "utility_pole": {"man_made": _values("utility_pole")},
    "flagpole": {"man_made": _values("flagpole")},
    "power_pole": {"power": _values("pole tower")},
    "street_cabinet": {"man_made": _values("street_cabinet")},
    "surveillance": {"man_made": _values("surveillance")},
    "bollard": {"barrier": _values("bollard")},
    "gate": {"barrier": _values("gate lift_gate swing_gate")},
    "block": {"barrier": _values("block")},
    "tree": {"natural": _values("tree")},
    "bench": {"amenity": _values("bench")},
    "waste_basket": {"amenity": _values("waste_basket waste_disposal")},
    "recycling": {"amenity": _values("recycling")},
    "post_box": {"amenity": _values("post_box")},
    "bicycle_parking": {"amenity": _values("bicycle_parking bicycle_rental")},
    "charging_station": {"amenity": _values("charging_station")},
    "vending_machine": {"amenity": _values("vending_machine parking_tickets")},
    "telephone": {"amenity": _values("telephone")},
    "atm": {"amenity": _values("atm")},
    "drinking_water": {"amenity": _values("drinking_water")},
    "fountain": {"amenity": _values("fountain")},
    "fire_hydrant": {"emergency": _values("fire_hydrant")},
    "clock": {"amenity": _values("clock")},
    "advertising": {"advertising": ANY},
    "artwork": {"tourism": _values("artwork")},
    "memorial": {"historic": _values("memorial monument")},
    "entrance": {"entrance": ANY},
    "shop": {"shop": ANY, "amenity": _values("restaurant cafe bar pub fast_food pharmacy")},
}

# The nodes of the navigation map.
NAVIGATION_NODES = ("traffic_signals", "stop", "street_lamp", "utility_pole", "flagpole")

# Passages under a building are seen from the street; other tunnels are not.
_TUNNELS_IN_THE_OPEN = ("no", "building_passage", "avalanche_protector")

_LEVELS = re.compile(r"(-?\d+(?:\.\d+)?)(?:-(-?\d+(?:\.\d+)?))?")


def keys_of(*tables: Classes) -> tuple[str, ...]:
    """The tag keys that decide on the classes of these tables."""
    return tuple(sorted({key for table in tables for tags in table.values() for key in tags}))


def classes_of(tags: Mapping[str, str], table: Classes) -> list[str]:
    """The classes of `table` that an object with these tags belongs to, in the table's order."""
    return [
        name
        for name, wanted in table.items()
        if any(_matches(tags.get(key), values) for key, values in wanted.items())
    ]


def _matches(value: str | None, values: frozenset[str] | None) -> bool:
    return value is not None and (value != "no" if values is ANY else value in values)


def on_ground(tags: Mapping[str, str]) -> bool:
    """Whether an object is to be drawn: not under the ground, not in a tunnel, not on an upper floor.

    Left out are `layer` < 0, `location` or `parking` = underground, `tunnel` (which need not have a
    layer), and `level` without 0 or 1 (level 1 is the ground floor in some countries). Values that cannot be
    read do not count.
    """
    layer = _LEVELS.fullmatch(tags.get("layer", ""))
    if layer and float(layer[1]) < 0:
        return False
    if "underground" in (tags.get("location"), tags.get("parking")):
        return False
    if tags.get("tunnel", "no") not in _TUNNELS_IN_THE_OPEN:
        return False
    ranges = [_LEVELS.fullmatch(part.strip()) for part in tags.get("level", "").split(";")]
    spans = [(float(r[1]), float(r[2] or r[1])) for r in ranges if r]
    return not spans or any(low <= floor <= high for low, high in spans for floor in (0, 1))
