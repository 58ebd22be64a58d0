"""The nuScenes map of a town: the map-expansion JSON (version 1.3) and the mask of road and sidewalk."""

import hashlib
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
import shapely

from data_prep.city.curves import Curve, left_of
from data_prep.city.mesh import polygons
from data_prep.city.world import World
from data_prep.geodesy import SIZES as MAP_SIZES
from placerec_jax.ops.rigid import wrap_angle

MASK_METRES = 0.1  # per pixel; the devkit knows no other resolution
ARC = 8.0  # m, of the arcs that a lane's centre line is written as


def token(*parts: object) -> str:
    """32 hexadecimal digits that depend on the parts only."""
    return hashlib.md5("/".join(str(part) for part in parts).encode(), usedforsecurity=False).hexdigest()


class _Layers:
    """Collects nodes, lines and polygons and gives each its token."""

    def __init__(self, location: str):
        self.location = location
        self.node: list[dict] = []
        self.line: list[dict] = []
        self.polygon: list[dict] = []

    def _nodes(self, xy: np.ndarray) -> list[str]:
        tokens = []
        for x, y in np.asarray(xy).tolist():
            tokens.append(token(self.location, "node", len(self.node)))
            self.node.append({"token": tokens[-1], "x": x, "y": y})
        return tokens

    def add_line(self, xy: np.ndarray) -> str:
        name = token(self.location, "line", len(self.line))
        self.line.append({"token": name, "node_tokens": self._nodes(xy)})
        return name

    def add_polygon(self, polygon: shapely.Polygon) -> str:
        name = token(self.location, "polygon", len(self.polygon))
        rings = [shapely.get_coordinates(ring)[:-1] for ring in (polygon.exterior, *polygon.interiors)]
        tokens = [self._nodes(ring) for ring in rings]
        holes = [{"node_tokens": ring} for ring in tokens[1:]]
        self.polygon.append({"token": name, "exterior_node_tokens": tokens[0], "holes": holes})
        return name

    def node_tokens(self, line: str) -> list[str]:
        return next(record["node_tokens"] for record in reversed(self.line) if record["token"] == line)


def expansion(world: World) -> dict:
    """The map-expansion JSON of one town, with every layer that the devkit loads.

    `drivable_area` is exactly the surface that is rendered as road. Lanes end before junctions; there are
    no lane connectors, so `connectivity` says that no lane leads into another.
    """
    layers = _Layers(world.location)

    def named(*parts: object) -> str:
        return token(world.location, *parts)

    area = {
        "token": named("drivable_area"),
        "polygon_tokens": [layers.add_polygon(p) for p in polygons(world.road)],
    }
    segments, road_blocks, lanes, road_dividers, lane_dividers = [], [], [], [], []
    arclines, connectivity = {}, {}
    graph = world.graph
    for number, street in enumerate(graph.streets):
        curve = graph.curve(number)
        ends = graph.setback(number, street.a), curve.length - graph.setback(number, street.b)
        if ends[1] - ends[0] < 2.0:
            continue
        half = street.width / 2
        segment = named("road_segment", number)
        polygon = curve.strip(*ends, -half, half)
        segments.append(
            {
                "token": segment,
                "polygon_token": layers.add_polygon(polygon),
                "is_intersection": False,
                "drivable_area_token": area["token"],
            }
        )
        road_dividers.append(
            {
                "token": named("road_divider", number),
                "line_token": layers.add_line(curve.shifted(*ends, 0.0)),
                "road_segment_token": segment,
            }
        )
        for side in (-1, 1):  # right and left of a → b
            along = side if world.drives_on_left else -side
            first, last = ends if along > 0 else ends[::-1]
            block = named("road_block", number, side)
            edge = half * side
            road_blocks.append(
                {
                    "token": block,
                    "polygon_token": layers.add_polygon(curve.strip(first, last, 0.0, edge)),
                    "from_edge_line_token": layers.add_line(curve.beside(first, np.array([0.0, edge]))),
                    "to_edge_line_token": layers.add_line(curve.beside(last, np.array([0.0, edge]))),
                    "road_segment_token": segment,
                }
            )
            for lane in range(street.lanes):
                inner, outer = edge * lane / street.lanes, edge * (lane + 1) / street.lanes
                name = named("lane", number, side, lane)
                borders = [layers.add_line(curve.shifted(first, last, left)) for left in (inner, outer)]
                dividers = [
                    [{"node_token": node, "segment_type": kind} for node in layers.node_tokens(border)]
                    for border, kind in zip(borders, ("DOUBLE_DASHED_WHITE", "NIL"), strict=True)
                ]
                if world.drives_on_left:
                    dividers.reverse()
                lanes.append(
                    {
                        "token": name,
                        "polygon_token": layers.add_polygon(curve.strip(first, last, inner, outer)),
                        "lane_type": "CAR",
                        "from_edge_line_token": layers.add_line(
                            curve.beside(first, np.array([inner, outer]))
                        ),
                        "to_edge_line_token": layers.add_line(curve.beside(last, np.array([inner, outer]))),
                        "left_lane_divider_segments": dividers[0],
                        "right_lane_divider_segments": dividers[1],
                    }
                )
                if lane > 0:
                    lane_dividers.append(
                        {
                            "token": named("lane_divider", number, side, lane),
                            "line_token": borders[0],
                            "lane_divider_segments": dividers[1 if world.drives_on_left else 0],
                        }
                    )
                connectivity[name] = {"incoming": [], "outgoing": []}
                arclines[name] = _arcs(curve, first, last, (inner + outer) / 2)
    lights = []
    for number, pole in enumerate(world.furniture.poles):
        if pole.kind == "traffic_signals":
            x, y = pole.xy
            toward = np.array([np.cos(pole.facing), np.sin(pole.facing)])
            record = {
                "token": named("traffic_light", number),
                "line_token": layers.add_line(np.array([[x, y], np.array([x, y]) + toward])),
                "traffic_light_type": "VERTICAL",
                "from_road_block_token": named("road_block", pole.street, -1),
                "items": [
                    {
                        "color": colour,
                        "shape": "CIRCLE",
                        "rel_pos": {"tx": 0.3, "ty": 0.0, "tz": z},
                        "to_road_block_tokens": [],
                    }
                    for colour, z in (("RED", 0.36), ("YELLOW", 0.0), ("GREEN", -0.36))
                ],
                "pose": {"tx": x, "ty": y, "tz": 3.0, "rx": 0.0, "ry": 0.0, "rz": pole.facing},
            }
            lights.append((pole.street, pole.xy, record))
    stop_lines = []
    for number, (street, _, polygon) in enumerate(world.stop_lines):
        middle = np.array(polygon.centroid.coords[0])
        controlling = [r["token"] for s, xy, r in lights if s == street and np.hypot(*(middle - xy)) < 25]
        stop_lines.append(
            {
                "token": named("stop_line", number),
                "polygon_token": layers.add_polygon(polygon),
                "stop_line_type": "TRAFFIC_LIGHT" if controlling else "STOP_SIGN",
                "ped_crossing_tokens": [],
                "traffic_light_tokens": controlling,
                "road_block_token": named("road_block", street, -1),
            }
        )
    return {
        "version": "1.3",
        "canvas_edge": list(MAP_SIZES[world.location]),
        "drivable_area": [area],
        "road_segment": segments + _intersections(world, layers, area["token"]),
        "road_block": road_blocks,
        "lane": lanes,
        "lane_connector": [],
        "ped_crossing": [
            {
                "token": named("ped_crossing", number),
                "polygon_token": layers.add_polygon(polygon),
                "road_segment_token": "",
            }
            for number, polygon in enumerate(world.crossings)
        ],
        "walkway": [
            {"token": named("walkway", number), "polygon_token": layers.add_polygon(polygon)}
            for number, polygon in enumerate(polygons(world.sidewalk))
        ],
        "stop_line": stop_lines,
        "carpark_area": [],
        "road_divider": road_dividers,
        "lane_divider": lane_dividers,
        "traffic_light": [record for _, _, record in lights],
        "connectivity": connectivity,
        "arcline_path_3": arclines,
        "node": layers.node,
        "line": layers.line,
        "polygon": layers.polygon,
    }


def _arcs(curve: Curve, first: float, last: float, left: float) -> list[dict]:
    """The line `left` of a curve, from station `first` to `last`, as arcs of about 8 m.

    Each is a path of three parts, of which one has a length: an arc to a side, or a straight piece.
    """
    stations = np.linspace(first, last, max(2, int(np.ceil(abs(last - first) / ARC)) + 1))
    points, directions = curve.at(stations)
    points = points + left * left_of(directions)
    heading = np.arctan2(directions[:, 1], directions[:, 0]) + (0.0 if last > first else np.pi)
    paths = []
    for k in range(len(stations) - 1):
        chord = points[k + 1] - points[k]
        turn = float(wrap_angle(heading[k + 1] - heading[k]))
        straight = abs(turn) < 1e-4
        turn = 0.0 if straight else turn
        half = turn / 2
        length = float(np.hypot(*chord)) * (1.0 if straight else half / np.sin(half))
        # An arc leaves its chord by half its turn.
        yaw = float(np.arctan2(chord[1], chord[0])) - half
        paths.append(
            {
                "start_pose": [*points[k].tolist(), float(wrap_angle(yaw))],
                "end_pose": [*points[k + 1].tolist(), float(wrap_angle(yaw + turn))],
                "shape": "LSR" if turn >= 0 else "RSL",
                "radius": 999.999 if straight else length / abs(turn),
                "segment_length": [0.0, length, 0.0] if straight else [length, 0.0, 0.0],
            }
        )
    return paths


def _intersections(world: World, layers: _Layers, area: str) -> list[dict]:
    """The road surface of each junction, as road segments that are intersections."""
    graph = world.graph
    records = []
    for node, incident in enumerate(graph.incident):
        if len(incident) < 3:
            continue
        arms = []
        for number in incident:
            reach, away = graph.leaving(number, node, graph.setback(number, node))
            left = left_of(away) * graph.streets[number].width / 2
            arms += [reach + left, reach - left]
        hull = shapely.MultiPoint(np.array(arms)).convex_hull
        for part, polygon in enumerate(polygons(hull.intersection(world.road))):
            records.append(
                {
                    "token": token(world.location, "intersection", node, part),
                    "polygon_token": layers.add_polygon(polygon),
                    "is_intersection": True,
                    "drivable_area_token": area,
                }
            )
    return records


def write_mask(path: Path, world: World) -> None:
    """Write the semantic prior: a grey PNG of the whole map at 0.1 m, 255 on road and sidewalk, north up.

    The picture has hundreds of millions of pixels, so it is drawn and compressed in bands of rows.
    """
    width, height = (round(edge / MASK_METRES) for edge in MAP_SIZES[world.location])
    surface = polygons(world.road.union(world.sidewalk))
    rings = []
    for polygon in surface:
        for ring in (polygon.exterior, *polygon.interiors):
            xy = shapely.get_coordinates(ring)
            rings.append(np.stack([xy[:, 0] / MASK_METRES, height - xy[:, 1] / MASK_METRES], 1))
    top = int(min(ring[:, 1].min() for ring in rings)) - 1
    bottom = int(max(ring[:, 1].max() for ring in rings)) + 2
    rows = 512
    compressor = zlib.compressobj(1)
    empty = bytes((width + 1) * rows)  # every row starts with filter type 0
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        _write_chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        for first in range(0, height, rows):
            count = min(rows, height - first)
            if first + count <= top or first >= bottom:
                data = empty[: (width + 1) * count]
            else:
                band = np.zeros((count, width), np.uint8)
                # fillPoly counts crossings: rings inside rings come out as holes. 1/16 pixel steps.
                moved = [np.round((ring - [0.5, first + 0.5]) * 16).astype(np.int32) for ring in rings]
                cv2.fillPoly(band, moved, 255, shift=4)
                data = np.concatenate([np.zeros((count, 1), np.uint8), band], axis=1).tobytes()
            _write_chunk(file, b"IDAT", compressor.compress(data))
        _write_chunk(file, b"IDAT", compressor.flush())
        _write_chunk(file, b"IEND", b"")


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    if data or kind == b"IEND":
        file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
