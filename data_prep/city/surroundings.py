"""What the shading of one scene looks up by place: the height of the ground and the light of the lamps."""

from dataclasses import dataclass

import numpy as np

from data_prep.city.furniture import LAMP_REACH, Pole, lamp_height
from data_prep.city.terrain import Terrain

GROUND_CELL = 4.0  # m
LAMP_CELL = 1.0  # m
_POOL = 32  # cells: farther a lamp gives no light


@dataclass(frozen=True)
class Surroundings:
    """Grids over the box of a scene, in the mesh's coordinates; beyond their edges the edge counts."""

    lower: np.ndarray  # (2,) the corner of both grids
    heights: np.ndarray  # (X, Y) m, cells of GROUND_CELL
    light: np.ndarray  # (U, V), cells of LAMP_CELL: 1 at the foot of a lone lamp

    def ground(self, xy: np.ndarray) -> np.ndarray:
        """(N, 2) → (N,) m."""
        return _look_up(self.heights, (xy - self.lower) * np.float32(1 / GROUND_CELL))

    def lamplight(self, xy: np.ndarray) -> np.ndarray:
        """(N, 2) → (N,)."""
        return _look_up(self.light, (xy - self.lower) * np.float32(1 / LAMP_CELL))


def _look_up(grid: np.ndarray, cell: np.ndarray) -> np.ndarray:
    index = cell.astype(np.int32)
    row = np.clip(index[:, 0], 0, grid.shape[0] - 1)
    return grid[row, np.clip(index[:, 1], 0, grid.shape[1] - 1)]


def open_ground() -> Surroundings:
    """Level ground without lamps."""
    return Surroundings(np.zeros(2, np.float32), np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))


def survey(
    terrain: Terrain, poles: list[Pole], lower: np.ndarray, upper: np.ndarray, centre: np.ndarray
) -> Surroundings:
    """The surroundings in the box `lower` … `upper` ((2,) each, map frame) of a mesh around `centre`."""
    x, y = (np.arange(lower[k] + GROUND_CELL / 2, upper[k] + GROUND_CELL, GROUND_CELL) for k in (0, 1))
    heights = terrain.height(np.stack(np.meshgrid(x, y, indexing="ij"), -1))
    shape = np.ceil((upper - lower) / LAMP_CELL).astype(int) + 1
    light = np.zeros(shape + 2 * _POOL, np.float32)
    offset = np.arange(-_POOL, _POOL + 1) * LAMP_CELL
    squared = offset[:, None] ** 2 + offset[None] ** 2
    for pole in poles:
        if pole.kind != "street_lamp":
            continue
        head = np.array(pole.xy) + LAMP_REACH * np.array([np.cos(pole.facing), np.sin(pole.facing)])
        cell = np.floor((head - lower) / LAMP_CELL).astype(int)
        if np.any(cell < 0) or np.any(cell >= shape):
            continue
        height = lamp_height(pole)
        # Light on level ground falls with the cosine and with the square of the distance.
        pool = height**3 / (squared + height**2) ** 1.5
        light[cell[0] : cell[0] + 2 * _POOL + 1, cell[1] : cell[1] + 2 * _POOL + 1] += pool
    light = light[_POOL:-_POOL, _POOL:-_POOL]
    return Surroundings((lower - centre).astype(np.float32), heights.astype(np.float32), light)
