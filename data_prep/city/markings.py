"""What is painted on the streets: centre, lane and edge lines, crossings and stop lines."""

from dataclasses import dataclass

import numpy as np
import shapely

from data_prep.city.streets import Street, StreetGraph

WHITE = (0.80, 0.80, 0.78)
YELLOW = (0.75, 0.52, 0.08)
UNMARKED_WIDTH = 7.2  # m: a narrower street has no centre line


@dataclass(frozen=True)
class Marking:
    """A painted strip; `kind` is one of divider, lane, edge, crossing, stop."""

    polygon: shapely.Polygon
    kind: str
    colour: tuple[float, float, float]


def plan_markings(
    graph: StreetGraph, drives_on_left: bool, rng: np.random.Generator
) -> tuple[list[Marking], list[shapely.Polygon], list[tuple[int, int, shapely.Polygon]]]:
    """All markings, the outlines of the crossings, and the stop lines as (street, node, painted line).

    Lines run between junctions; crossings and stop lines lie before them.
    """
    markings: list[Marking] = []
    crossings: list[shapely.Polygon] = []
    stop_lines: list[tuple[int, int, shapely.Polygon]] = []
    for number, street in enumerate(graph.streets):
        curve = graph.curve(number)
        clear = {}  # m from each node up to which no line is painted along the street
        for node in (street.a, street.b):
            clear[node] = graph.setback(number, node)
            if len(graph.incident[node]) < 3:
                continue
            clear[node] += 2.0
            wanted = street.district != "" and rng.random() < (0.85 if street.kind != "residential" else 0.4)
            if wanted and curve.length > 60:
                ends = sorted(graph.station(number, node, clear[node] + d) for d in (0.0, 3.0))
                for left in np.arange(-street.width / 2 + 0.7, street.width / 2 - 0.3, 1.2):
                    markings.append(Marking(curve.strip(*ends, left - 0.3, left + 0.3), "crossing", WHITE))
                crossings.append(curve.strip(*ends, -street.width / 2 + 0.1, street.width / 2 - 0.1))
                clear[node] += 4.0
            if street.district != "" and curve.length > 45:
                # Traffic towards the node keeps to its own side: left of the way out of it, or right.
                side = (1 if node == street.a else -1) * (-1 if drives_on_left else 1)
                ends = sorted(graph.station(number, node, clear[node] + d) for d in (-0.2, 0.2))
                line = curve.strip(*ends, side * 0.25, side * (street.width / 2 - 0.3))
                stop_lines.append((number, node, line))
                markings.append(Marking(line, "stop", WHITE))
                clear[node] += 0.6
        first, last = clear[street.a], curve.length - clear[street.b]
        if last - first >= 4:
            markings += _lines_along(graph, number, street, first, last, drives_on_left)
    return markings, crossings, stop_lines


def _lines_along(
    graph: StreetGraph, number: int, street: Street, first: float, last: float, drives_on_left: bool
) -> list[Marking]:
    """Centre, lane and edge lines between two stations."""
    curve = graph.curve(number)
    centre = WHITE if drives_on_left else YELLOW

    def dashes(kind: str, left: float, width: float, length: float, period: float, colour: tuple) -> list:
        return [
            Marking(curve.strip(s, s + length, left - width / 2, left + width / 2), kind, colour)
            for s in np.arange(first, last - length + 0.3, period)
        ]

    def solid(kind: str, left: float, width: float, colour: tuple) -> Marking:
        return Marking(curve.strip(first, last, left - width / 2, left + width / 2), kind, colour)

    lines = []
    if street.lanes > 1:
        lines += [solid("divider", left, 0.13, centre) for left in (-0.14, 0.14)]
    elif (street.kind != "residential" or drives_on_left) and street.width > UNMARKED_WIDTH:
        lines += dashes("divider", 0.0, 0.16, 2.8, 7.0, centre)
    for lane in range(1, street.lanes):
        for side in (-1, 1):
            left = side * (street.width / 2 - 0.5) * lane / street.lanes
            lines += dashes("lane", left, 0.14, 2.2, 6.0, WHITE)
    if street.kind != "residential":
        edge = YELLOW if drives_on_left else WHITE
        lines += [solid("edge", side * (street.width / 2 - 0.35), 0.12, edge) for side in (-1, 1)]
    return lines
