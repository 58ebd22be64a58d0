"""OpenStreetMap as JSON: what the OSM interface (`/api/0.6/map.json`) and Overpass (`[out:json]`) answer.

Both list `elements` with the fields of OSM's XML. They are written out as PBF, so that one reader serves all
formats.
"""

import json
import math
from pathlib import Path
from typing import Any

import osmium

from data_prep.errors import InputError

_KINDS = ("node", "way", "relation")
_MEMBER_CODES = {"node": "n", "way": "w", "relation": "r"}


def write_pbf(path: Path, out: Path) -> str | None:
    """Write the objects of the JSON file `path` to the PBF file `out`; returns the data's date if stated.

    Raises InputError for what is no such JSON, naming the element.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: expected the JSON of the OSM or Overpass interface, found something else, or a "
            f"truncated one: {error}. Download it again, and look into it: servers answer errors as text."
        ) from None
    elements = content.get("elements") if isinstance(content, dict) else None
    if not isinstance(elements, list):
        found = sorted(content)[:5] if isinstance(content, dict) else type(content).__name__
        raise InputError(
            f"{path}: expected a JSON object with a list of 'elements' (OSM or Overpass interface), found "
            f"{found}. GeoJSON and others: convert them to .osm first."
        )
    with osmium.SimpleWriter(str(out)) as writer:
        for number, element in enumerate(elements):
            try:
                _add(writer, element)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise InputError(
                    f"{path}: element {number} ({_name(element)}): expected a node with lat and lon, a way "
                    f"with nodes or a relation with members, found {type(error).__name__}: {error}. Ask "
                    "Overpass for whole objects: `[out:json]; (...); (._;>;); out body;`."
                ) from None
    return _snapshot(content)


def _add(writer: osmium.SimpleWriter, element: dict[str, Any]) -> None:
    kind = element["type"]
    if kind not in _KINDS:  # Overpass counts and areas
        return
    tags = element.get("tags", {})
    if not all(isinstance(text, str) for item in tags.items() for text in item):
        raise TypeError(f"tags that are not text: {tags}")
    common = {"id": _identifier(element["id"]), "version": 1, "tags": tags}
    if kind == "node":
        # The reader finds, and names, what is out of range; these could not be written.
        lon, lat = (float(element[key]) for key in ("lon", "lat"))
        if not (math.isfinite(lon) and math.isfinite(lat)):
            raise ValueError(f"lat {lat}, lon {lon}")
        writer.add_node(osmium.osm.mutable.Node(location=(lon, lat), **common))
    elif kind == "way":
        nodes = [_identifier(node) for node in element["nodes"]]
        writer.add_way(osmium.osm.mutable.Way(nodes=nodes, **common))
    else:
        members = [
            (_MEMBER_CODES[member["type"]], _identifier(member["ref"]), str(member.get("role", "")))
            for member in element["members"]
        ]
        writer.add_relation(osmium.osm.mutable.Relation(members=members, **common))


def _identifier(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"an identifier that is no whole number: {value!r}")
    if abs(value) >= 2**63:
        raise ValueError(f"an identifier of more than 64 bits: {value}")
    return value


def _name(element: Any) -> str:
    if not isinstance(element, dict):
        return type(element).__name__
    return f"{element.get('type')} {element.get('id')}"


def _snapshot(content: dict[str, Any]) -> str | None:
    """Overpass states the date of its data; the OSM interface answers what is there now, and no date."""
    overpass = content.get("osm3s")
    date = overpass.get("timestamp_osm_base") if isinstance(overpass, dict) else None
    return date if isinstance(date, str) and date else None
