"""What the city knows about everything in it: a semantic class, by KITTI-360's label ids, and an instance.

An instance is one number that holds both: class · 100,000 + the number of the object in the plan's list
(building i, tree i, pole i, car i, person i). Surfaces without objects (road, sidewalk, terrain, ground) are
one instance of their class each, number 0.
"""

from enum import IntEnum

import numpy as np

INSTANCES_PER_CLASS = 100_000


class Label(IntEnum):
    """The classes of KITTI-360 that occur in the city, with their ids there (`name_of` gives their names)."""

    UNLABELED = 0
    GROUND = 6  # open ground that is none of the others: gravel yards, water
    ROAD = 7
    SIDEWALK = 8
    PARKING = 9
    BUILDING = 11
    POLE = 17
    TRAFFIC_LIGHT = 19
    TRAFFIC_SIGN = 20
    VEGETATION = 21
    TERRAIN = 22
    SKY = 23
    PERSON = 24
    CAR = 26
    TRUCK = 27
    BUS = 28
    SMALLPOLE = 37
    LAMP = 38
    UNKNOWN_OBJECT = 44  # flags


# The colours that KITTI-360 and Cityscapes draw these classes in, 0 … 255.
COLOURS: dict[Label, tuple[int, int, int]] = {
    Label.UNLABELED: (0, 0, 0),
    Label.GROUND: (81, 0, 81),
    Label.ROAD: (128, 64, 128),
    Label.SIDEWALK: (244, 35, 232),
    Label.PARKING: (250, 170, 160),
    Label.BUILDING: (70, 70, 70),
    Label.POLE: (153, 153, 153),
    Label.TRAFFIC_LIGHT: (250, 170, 30),
    Label.TRAFFIC_SIGN: (220, 220, 0),
    Label.VEGETATION: (107, 142, 35),
    Label.TERRAIN: (152, 251, 152),
    Label.SKY: (70, 130, 180),
    Label.PERSON: (220, 20, 60),
    Label.CAR: (0, 0, 142),
    Label.TRUCK: (0, 0, 70),
    Label.BUS: (0, 60, 100),
    Label.SMALLPOLE: (153, 153, 153),
    Label.LAMP: (0, 64, 64),
    Label.UNKNOWN_OBJECT: (32, 32, 32),
}


def name_of(label: Label) -> str:
    """The class's name in KITTI-360's table."""
    return label.name.lower().replace("_", " ")


def instance_id(label: Label | int, number: int | np.ndarray) -> int | np.ndarray:
    """The instance of object `number` (0 … 99,999) of a class."""
    if np.any(np.asarray(number) >= INSTANCES_PER_CLASS) or np.any(np.asarray(number) < 0):
        raise ValueError(f"object numbers go from 0 to {INSTANCES_PER_CLASS - 1}, found {number}")
    return int(label) * INSTANCES_PER_CLASS + number


def number_of(instance: np.ndarray) -> np.ndarray:
    """(...) instances → the numbers of the objects within their classes."""
    return np.asarray(instance) % INSTANCES_PER_CLASS


def class_colours(semantic: np.ndarray) -> np.ndarray:
    """(...) class ids → (..., 3) uint8 RGB as KITTI-360 draws them."""
    table = np.zeros((256, 3), np.uint8)
    for label, colour in COLOURS.items():
        table[label] = colour
    return table[semantic]


def instance_colours(instance: np.ndarray) -> np.ndarray:
    """(...) instances (-1: nothing, black) → (..., 3) uint8 RGB, neighbouring numbers far apart."""
    mixed = (np.asarray(instance).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    colour = np.stack([(mixed >> np.uint64(8 * k)) & np.uint64(255) for k in range(3)], -1)
    colour = (64 + colour * 3 // 4).astype(np.uint8)
    return np.where((np.asarray(instance) < 0)[..., None], np.uint8(0), colour)
