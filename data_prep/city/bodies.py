"""The shapes of what drives and walks: cars, trucks, buses and people, made of a few boxes each.

A body stands at the origin: x forward, y left, z up from the ground, in metres. People have one shape for
each phase of their step.
"""

from typing import NamedTuple

import numpy as np

from data_prep.city.mesh import Material, box, prism

STEP_PHASES = 4  # shapes of one step; the first and third stand with the legs together
STEP_LENGTH = 0.75  # m


class Part(NamedTuple):
    """Triangles (n, 3, 3) of one material and colour."""

    triangles: np.ndarray
    material: Material
    colour: tuple[float, float, float] | np.ndarray


_BLACK, _GLASS = (0.015, 0.015, 0.015), (0.04, 0.05, 0.06)
_WHITE, _RED = (0.8, 0.78, 0.68), (0.5, 0.02, 0.02)
_SKIN = np.array([(0.62, 0.42, 0.32), (0.48, 0.30, 0.20), (0.25, 0.14, 0.09), (0.12, 0.07, 0.05)])
_HAIR = np.array([(0.02, 0.015, 0.01), (0.09, 0.05, 0.025), (0.30, 0.20, 0.08), (0.30, 0.29, 0.28)])


def car(size: tuple[float, float, float], colour: tuple[float, float, float], lit: bool) -> list[Part]:
    """A car of (length, width, height); `lit` says whether its lamps are on."""
    length, width, height = size
    clearance = 0.25
    body = 0.5 * (height - clearance)
    cabin = height - clearance - body
    # The higher a car is for its length, the farther its roof reaches back: saloon, estate, van.
    boxy = float(np.clip((height / length - 0.31) / 0.08, 0, 1))
    back = (-0.05 - 0.05 * boxy) * length
    share = 0.62 + 0.16 * boxy
    middle = clearance + body + cabin / 2
    parts = [
        _block((0, 0, clearance + body / 2), (length, width, body), colour),
        _block((back, 0, middle), (share * length, 0.94 * width, cabin), _GLASS, (0.7 + 0.18 * boxy, 0.85)),
        _block((back, 0, height - 0.02), ((share - 0.2) * length, 0.78 * width, 0.04), colour),
    ]
    return parts + _wheels(length, width, 0.31, (-0.31, 0.31)) + _lamps(length, width, lit)


def truck(size: tuple[float, float, float], colour: tuple[float, float, float], lit: bool) -> list[Part]:
    """A truck with a cab and a box behind it."""
    length, width, height = size
    cab = min(2.1, 0.32 * length)
    load = length - cab - 0.25
    grey = (0.55, 0.55, 0.53)
    front = length / 2 - cab / 2
    cab_height = 0.78 * height
    parts = [
        _block((front, 0, 0.35 + (cab_height - 0.35) / 2), (cab, 0.96 * width, cab_height - 0.35), colour),
        _block((length / 2 - 0.03, 0, 0.72 * cab_height), (0.08, 0.86 * width, 0.3 * cab_height), _GLASS),
        _block((front + 0.1, 0, 0.72 * cab_height), (0.5 * cab, 0.98 * width, 0.26 * cab_height), _GLASS),
        _block((-length / 2 + load / 2, 0, (0.8 + height) / 2), (load, width, height - 0.8), grey),
        _block((-length / 2 + load / 2, 0, 0.65), (load, 0.5 * width, 0.3), _BLACK),
    ]
    return parts + _wheels(length, width, 0.45, (-0.34, -0.2, 0.36)) + _lamps(length, width, lit)


def bus(size: tuple[float, float, float], colour: tuple[float, float, float], lit: bool) -> list[Part]:
    """A bus with a band of windows."""
    length, width, height = size
    parts = [
        _block((0, 0, (0.35 + height) / 2), (length, width, height - 0.35), colour),
        _block((0, 0, 0.62 * height), (0.94 * length, width + 0.04, 0.3 * height), _GLASS),
        _block((length / 2, 0, 0.58 * height), (0.06, 0.9 * width, 0.45 * height), _GLASS),
        _block((-length / 2, 0, 0.62 * height), (0.06, 0.8 * width, 0.3 * height), _GLASS),
    ]
    return parts + _wheels(length, width, 0.48, (-0.28, 0.31)) + _lamps(length, width, lit)


VEHICLES = {"car": car, "truck": truck, "bus": bus}


def person(height: float, seed: int, umbrella: bool) -> list[list[Part]]:
    """A person for every phase of a step; the seed chooses build, dress and colours."""
    rng = np.random.default_rng(seed)
    build = rng.uniform(0.85, 1.2)
    skin, hair = _SKIN[rng.integers(len(_SKIN))], _HAIR[rng.integers(len(_HAIR))]
    top, bottom = rng.uniform(0.02, 0.55, 3) * rng.uniform(0.4, 1.2), rng.uniform(0.02, 0.25, 3)
    dress = rng.choice(["trousers", "skirt", "coat"], p=[0.6, 0.2, 0.2])
    backpack = rng.random() < 0.25
    shade = rng.uniform(0.03, 0.5, 3)
    hip, shoulder = 0.50 * height, 0.83 * height
    parts: list[list[Part]] = []
    for phase in range(STEP_PHASES):
        swing = 0.42 * np.sin(2 * np.pi * phase / STEP_PHASES)
        legs, arms = [], []
        for side in (-1, 1):
            leg = box(np.array([0, 0, -hip / 2]), np.array([0.15, 0.14 * build, hip]), 0.0)
            legs.append(_hang(leg, side * swing, (0, side * 0.09 * build, hip)))
            arm = box(np.array([0, 0, -0.19 * height]), np.array([0.09, 0.09, 0.38 * height]), 0.0)
            arms.append(_hang(arm, -side * swing * 0.8, (0, side * 0.235 * build, shoulder - 0.02)))
        torso = box(
            np.array([0, 0, (hip + shoulder) / 2]),
            np.array([0.20 * build, 0.34 * build, shoulder - hip]),
            0.0,
            (1.0, 1.15),
        )
        head = prism(np.zeros(2), 0.095, shoulder + 0.04, height - 0.05, 7)
        cap = prism(np.zeros(2), 0.105, height - 0.09, height, 7, 0.75)
        shape = [
            Part(np.concatenate(legs), Material.PLAIN, bottom),
            Part(np.concatenate([torso, *arms]), Material.PLAIN, top),
            Part(head, Material.PLAIN, skin),
            Part(cap, Material.PLAIN, hair),
        ]
        if dress != "trousers":
            low = 0.28 * height if dress == "skirt" else 0.22 * height
            cloth = bottom if dress == "skirt" else top
            shape.append(
                Part(prism(np.zeros(2), 0.26 * build, low, hip + 0.1, 7, 0.62), Material.PLAIN, cloth)
            )
        if backpack:
            shape.append(_block((-0.2 * build, 0, 0.68 * height), (0.18, 0.3, 0.24 * height), shade))
        if umbrella:
            shape.append(
                Part(prism(np.zeros(2), 0.5, height + 0.12, height + 0.4, 8, 0.05), Material.PLAIN, shade)
            )
            shape.append(Part(prism(np.zeros(2), 0.012, hip, height + 0.3, 3), Material.PLAIN, _BLACK))
        parts.append(shape)
    return parts


def _block(
    centre: tuple[float, float, float],
    size: tuple[float, float, float],
    colour: tuple[float, float, float] | np.ndarray,
    top: tuple[float, float] = (1.0, 1.0),
) -> Part:
    return Part(box(np.array(centre, np.float64), np.array(size), 0.0, top), Material.PLAIN, colour)


def _hang(triangles: np.ndarray, angle: float, joint: tuple[float, float, float]) -> np.ndarray:
    """Swing a limb, made below the origin, forward about the y axis and put its end to `joint`."""
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
    return triangles @ turn.T + np.array(joint)


def _wheels(length: float, width: float, radius: float, along: tuple[float, ...]) -> list[Part]:
    return [
        _block((a * length, side * 0.46 * width, radius), (2 * radius, 0.2, 2 * radius), _BLACK)
        for a in along
        for side in (-1, 1)
    ]


def _lamps(length: float, width: float, lit: bool) -> list[Part]:
    material = Material.LIGHT if lit else Material.PLAIN
    parts = []
    for side in (-0.36, 0.36):
        front = _block((length / 2, side * width, 0.62), (0.05, 0.3, 0.14), _WHITE)
        rear = _block((-length / 2, side * width, 0.66), (0.05, 0.3, 0.16), _RED)
        parts += [front._replace(material=material), rear._replace(material=material)]
    return parts
