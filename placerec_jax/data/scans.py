"""LiDAR scans on the host: augmentation, bird's-eye views, links from cells to pixels, labels of pairs.

The LiDAR frame is x forward, y left, z up. A bird's-eye view (BEV) lies on a `Grid2D`: rows run with x and
columns with y. An augmentation A moves the points of a scan, x' = A x; all that is made of the scan follows.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from placerec_jax.ops import rigid
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.point_steps import decode_points

IGNORE = 255  # the label of cells that say nothing

_FULL_CELL = 64  # points that make the density channel 1


@dataclasses.dataclass(frozen=True)
class ScanAugmentation:
    """Ranges of the random motion of a scan, uniform on both sides of zero.

    `shift_xy`, `shift_z` in metres; `tilt` (about x and about y) and `yaw` in degrees.
    """

    shift_xy: float = 3.0
    shift_z: float = 0.3
    tilt: float = 3.0
    yaw: float = 180.0


PLANAR = ScanAugmentation(shift_z=0.0, tilt=0.0)  # for pictures, which only turn and shift


def draw_augmentation(augmentation: ScanAugmentation, rng: np.random.Generator) -> np.ndarray:
    """(4, 4) float64 A of x' = A x: a roll, then a pitch, then a yaw, then a shift."""
    shift_xy, shift_z = augmentation.shift_xy, augmentation.shift_z
    tilt, yaw = np.deg2rad(augmentation.tilt), np.deg2rad(augmentation.yaw)
    x, y, z, about_x, about_y, about_z = rng.uniform(-1.0, 1.0, 6) * [
        *(shift_xy, shift_xy, shift_z),
        *(tilt, tilt, yaw),
    ]
    rotation = _turn(2, about_z) @ _turn(1, about_y) @ _turn(0, about_x)
    return rigid.rigid_matrix(rotation, np.array([x, y, z]))


def _turn(axis: int, angle: float) -> np.ndarray:
    """(3, 3) rotation about one axis."""
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return matrix


def planar_transform(
    A_p: np.ndarray, map_T_p: np.ndarray, map_T_q: np.ndarray, A_q: np.ndarray
) -> np.ndarray:
    """Four (4, 4) → (3,) float64 (x, y, yaw): p_T_q between the augmented scans, on the ground plane.

    H = A_p T_p⁻¹ T_q A_q⁻¹ maps points of scan q, as augmented, onto those of scan p, as augmented.
    """
    H = A_p @ rigid.rigid_inverse(map_T_p) @ map_T_q @ rigid.rigid_inverse(A_q)
    return np.array([H[0, 3], H[1, 3], np.arctan2(H[1, 0], H[0, 0])])


def points_of(record: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """A record of a scan → (N, 3) float32 metres and (N,) float32 reflectance from 0 to 1."""
    return decode_points(record["point_steps"]), record["reflectance"] * np.float32(1 / 255)


def move_points(A: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """(4, 4), (N, 3) float32 → (N, 3) float32: A x."""
    # Not `xyz @ R`: for three columns the threads of the matrix library cost more than they do, many times
    # more where every core has a loader.
    A = A.astype(np.float32)
    x, y, z = xyz.T
    return np.stack([row[0] * x + row[1] * y + row[2] * z + row[3] for row in A[:3]], axis=-1)


def cells_of(xyz: np.ndarray, grid: Grid2D, z_range: tuple[float, float]) -> np.ndarray:
    """(N, 3) → (N,) int32 flat cell of each point, -1 outside the grid or outside lowest <= z < highest."""
    rows, columns = grid.shape
    cell = np.float32(grid.cell)
    row = np.floor((xyz[:, 0] - np.float32(grid.lower[0])) / cell)
    column = np.floor((xyz[:, 1] - np.float32(grid.lower[1])) / cell)
    z = xyz[:, 2]
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    inside &= (z >= z_range[0]) & (z < z_range[1])
    return np.where(inside, row * columns + column, -1).astype(np.int32)


def encode_bev(
    xyz: np.ndarray,
    reflectance: np.ndarray,
    grid: Grid2D,
    z_range: tuple[float, float],
    encoding: str,
    cells: np.ndarray | None = None,
) -> np.ndarray:
    """(N, 3), (N,) → (H, W, C) float32 by an encoding of ENCODINGS.

    Cells without a point are 0 in all channels, those with one are not. `cells` (N,), where `cells_of` was
    called already, saves calling it again.
    """
    if cells is None:
        cells = cells_of(xyz, grid, z_range)
    inside = cells >= 0
    return ENCODINGS[encoding].encode(
        xyz[inside, 2], reflectance[inside], cells[inside], grid.shape, z_range, grid.cell
    )


def bev_channels(grid: Grid2D, z_range: tuple[float, float], encoding: str) -> int:
    """The number of channels that `encode_bev` answers with."""
    return ENCODINGS[encoding].channels(z_range, grid.cell)


def _statistics(
    z: np.ndarray,
    reflectance: np.ndarray,
    cells: np.ndarray,
    shape: tuple[int, int],
    z_range: tuple[float, float],
    cell: float,
) -> np.ndarray:
    """Density min(1, ln(1 + n) / ln 64), highest point from 0 to 1 over the range, mean reflectance."""
    size = shape[0] * shape[1]
    number = np.bincount(cells, minlength=size)
    highest = np.full(size, z_range[0], np.float32)
    np.maximum.at(highest, cells, z)
    bev = np.zeros((size, 3), np.float32)
    bev[:, 0] = _DENSITY[np.minimum(number, _FULL_CELL)]
    bev[:, 1] = (highest - z_range[0]) / (z_range[1] - z_range[0])
    bev[:, 2] = np.bincount(cells, reflectance, minlength=size) / np.maximum(number, 1)
    return bev.reshape(*shape, 3)


_DENSITY = np.minimum(1.0, np.log1p(np.arange(_FULL_CELL + 1)) / np.log(_FULL_CELL)).astype(np.float32)


def _height_slices(
    z: np.ndarray,
    reflectance: np.ndarray,
    cells: np.ndarray,
    shape: tuple[int, int],
    z_range: tuple[float, float],
    cell: float,
) -> np.ndarray:
    """1 where a slice, as high as a cell is wide, holds a point of the cell."""
    slices = _slices(z_range, cell)
    # A point just below the top may round up to it.
    level = np.minimum(((z - np.float32(z_range[0])) / np.float32(cell)).astype(np.int64), slices - 1)
    bev = np.zeros(shape[0] * shape[1] * slices, np.float32)
    bev[cells * np.int64(slices) + level] = 1.0
    return bev.reshape(*shape, slices)


def _slices(z_range: tuple[float, float], cell: float) -> int:
    return int(np.ceil((z_range[1] - z_range[0]) / cell - 1e-6))


@dataclasses.dataclass(frozen=True)
class Encoding:
    """A bird's-eye view of points; `channels(z_range, cell)` is how many it has."""

    encode: Callable[..., np.ndarray]
    channels: Callable[[tuple[float, float], float], int]


ENCODINGS: dict[str, Encoding] = {
    "statistics": Encoding(_statistics, lambda z_range, cell: 3),
    "height_slices": Encoding(_height_slices, _slices),
}

# How a picture is read between its cells: "nearest" keeps empty cells empty.
INTERPOLATIONS = {"linear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}


def density_bev(
    picture: np.ndarray,
    grid: Grid2D,
    A: np.ndarray,
    *,
    radius: float | None = None,
    interpolation: str = "linear",
) -> np.ndarray:
    """(h, w, 1) uint8 stored picture, (4, 4) A → (H, W, 1) float32 from 0 to 1: the picture moved by A.

    The middle of the picture is the LiDAR and its cells are as wide as the grid's; A moves it by its yaw and
    its shift in x and y. With `radius` (m) the corners beyond it are emptied first, so that every heading
    shows the same piece of ground. Nothing is known outside the picture: 0.
    """
    height, width = picture.shape[:2]
    picture = picture.reshape(height, width)
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    if radius is not None:
        row, column = np.ogrid[:height, :width]
        far = np.hypot(row - middle[0], column - middle[1]) * grid.cell > radius
        picture = np.where(far, np.uint8(0), picture)
    yaw = np.arctan2(A[1, 0], A[0, 0])
    rotation = np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
    # Indices (row, column): of the picture p = x / cell + middle, of the grid g = (x - lower) / cell - 1/2.
    shift = (A[:2, 3] - grid.lower) / grid.cell - 0.5
    grid_T_picture = np.column_stack([rotation, shift - rotation @ middle])
    # OpenCV wants (column, row).
    warp = grid_T_picture[::-1][:, [1, 0, 2]]
    moved = cv2.warpAffine(picture, warp, grid.shape[::-1], flags=INTERPOLATIONS[interpolation])
    return moved[..., None] * np.float32(1 / 255)


def occupied_cells(bev: np.ndarray) -> np.ndarray:
    """(..., H, W, C) → (..., H, W) bool: cells with anything in them."""
    return (bev != 0).any(axis=-1)


@dataclasses.dataclass(frozen=True)
class ImageWindow:
    """The part of a camera image that a network sees: `size` (height, width) about its middle, smaller by
    `factor`.

    An image that is wider is cut on both sides, one that is smaller gets black borders.
    """

    size: tuple[int, int] = (384, 1152)
    factor: int = 2

    def __post_init__(self) -> None:
        if any(n % self.factor for n in self.size):
            raise ValueError(f"ImageWindow: {self.size} is no multiple of the factor {self.factor}")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what the network sees."""
        return self.size[0] // self.factor, self.size[1] // self.factor

    def shift(self, stored_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) to add to a pixel of an image of `stored_size` (height, width)."""
        return tuple(
            (n - stored) // 2 if n >= stored else -((stored - n) // 2)
            for n, stored in zip(self.size, stored_size, strict=True)
        )

    def pixels(self, stored_pixel: np.ndarray, stored_size: tuple[int, int]) -> np.ndarray:
        """(N, 2) (row, column) of the stored image → (N,) int32 flat pixel of `shape`, -1 outside."""
        moved = stored_pixel.astype(np.int32) + np.array(self.shift(stored_size), np.int32)
        inside = ((moved >= 0) & (moved < self.size)).all(axis=1)
        row, column = (moved // self.factor).T
        return np.where(inside, row * self.shape[1] + column, -1).astype(np.int32)

    def cut(self, image: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 → (*shape, 3) uint8: the window, by the mean of factor × factor pixels."""
        window = np.zeros((*self.size, image.shape[2]), np.uint8)
        source, target = [], []
        for n, stored, shift in zip(self.size, image.shape, self.shift(image.shape[:2]), strict=False):
            source.append(slice(max(0, -shift), min(stored, n - shift)))
            target.append(slice(max(0, shift), min(n, stored + shift)))
        window[tuple(target)] = image[tuple(source)]
        if self.factor == 1:
            return window
        return cv2.resize(window, self.shape[::-1], interpolation=cv2.INTER_AREA)


def link_pairs(
    cells: np.ndarray, link_point: np.ndarray, link_pixel: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each pair of a BEV cell and a pixel that share a point, once: (L,) cells, ascending, and (L,) pixels.

    `cells` (N,) are the points' flat cells, `link_point` (M,) numbers of points and `link_pixel` (M,) their
    flat pixels; -1 is none in both.
    """
    cell = cells[link_point]
    linked = (cell >= 0) & (link_pixel >= 0)
    pairs = np.unique((cell[linked].astype(np.int64) << 32) | link_pixel[linked])
    return (pairs >> 32).astype(np.int32), (pairs & 0xFFFFFFFF).astype(np.int32)


def link_table(
    cells: np.ndarray,
    record: Mapping[str, Any],
    window: ImageWindow,
    cells_n: int,
    pixels_n: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Which pixels of the window belong to which BEV cells.

    `cells` (N,) are the flat cells of the points of `record`, whose image must be decoded. Where there are
    more than `cells_n` linked cells, or more than `pixels_n` pixels in one, some are chosen at random.

    Returns `link_cell` (cells_n,) int32, ascending, `link_pixel` (cells_n, pixels_n) int32 and `link_mask` of
    the same shape: what is not there is 0 and masked.
    """
    pixels = window.pixels(record["link_pixel"], record["image"].shape[:2])
    cell, pixel = link_pairs(cells, record["link_point"], pixels)
    # A random order within each cell, so that what is cut off is nothing in particular.
    mixed = np.lexsort((rng.random(len(cell)), cell))
    cell, pixel = cell[mixed], pixel[mixed]
    names, start, length = np.unique(cell, return_index=True, return_counts=True)
    if len(names) > cells_n:
        chosen = np.sort(rng.choice(len(names), cells_n, replace=False))
        names, start, length = names[chosen], start[chosen], length[chosen]
    table = {
        "link_cell": np.zeros(cells_n, np.int32),
        "link_pixel": np.zeros((cells_n, pixels_n), np.int32),
        "link_mask": np.zeros((cells_n, pixels_n), bool),
    }
    mask = np.arange(pixels_n) < length[:, None]
    table["link_cell"][: len(names)] = names
    table["link_mask"][: len(names)] = mask
    table["link_pixel"][: len(names)][mask] = pixel[(start[:, None] + np.arange(pixels_n))[mask]]
    return table


def matching_labels(
    occupied_q: np.ndarray,
    occupied_p: np.ndarray,
    p_T_q: np.ndarray,
    grid: Grid2D,
    distance: float = 0.2,
) -> tuple[np.ndarray, np.ndarray]:
    """Two (H, W) bool, (3,) pose → two (H, W) uint8: which cells of q, and of p, the other scan has as well.

    1: the centre's nearest occupied centre in the other scan has it for its own nearest and lies within
    `distance` (m); 0: not; IGNORE: the cell is empty, or lies where the other grid does not reach.
    """
    # A shift far below anything measured decides between neighbours equally far, alike in both directions.
    p_T_q = np.asarray(p_T_q, np.float64) + np.array([1.1e-7, 0.7e-7, 0.0])
    q_T_p = rigid.se2_inverse(p_T_q)
    cells_q, partner_of_q, inside_q = _nearest_cells(occupied_q, occupied_p, p_T_q, grid, distance)
    cells_p, partner_of_p, inside_p = _nearest_cells(occupied_p, occupied_q, q_T_p, grid, distance)
    label_q, label_p = (np.full(grid.shape, IGNORE, np.uint8) for _ in range(2))
    label_q.flat[cells_q[inside_q]] = (partner_of_p[partner_of_q[cells_q]] == cells_q)[inside_q]
    label_p.flat[cells_p[inside_p]] = (partner_of_q[partner_of_p[cells_p]] == cells_p)[inside_p]
    return label_q, label_p


def _nearest_cells(
    occupied: np.ndarray, other: np.ndarray, other_T_own: np.ndarray, grid: Grid2D, distance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest occupied cell of another scan for each occupied cell; all cells are flat.

    Returns the occupied cells (n,); (H·W + 1,) for every cell the nearest of `other` within `distance`, where
    H·W stands for none and has none itself; and (n,) whether the cell's centre lies in the other grid at all.
    Centres lie on a grid, so that only the few cells about a centre need looking at.
    """
    rows, columns = grid.shape
    row, column = np.nonzero(occupied)
    own_xy = np.stack([row + 0.5, column + 0.5], axis=-1) * grid.cell + grid.lower
    index = (rigid.se2_apply(other_T_own, own_xy) - grid.lower) / grid.cell  # cell i is [i, i + 1)
    low_row, low_column = np.floor(index).astype(np.int64).T
    inside = (low_row >= 0) & (low_row < rows) & (low_column >= 0) & (low_column < columns)
    from_row, from_column = (index - 0.5 - np.floor(index)).T  # to the point from the centre of its cell
    # A border so wide that what lies outside finds nothing there, wherever it is looked up.
    reach = int(np.ceil(distance / grid.cell))
    border = 2 * reach + 1
    padded = np.pad(other, border)
    at = (np.clip(low_row, -reach - 1, rows + reach) + border) * padded.shape[1]
    at += np.clip(low_column, -reach - 1, columns + reach) + border
    nearest = np.full(len(row), occupied.size)
    least = np.full(len(row), (distance / grid.cell) ** 2)
    for row_step in range(-reach, reach + 1):
        for column_step in range(-reach, reach + 1):
            squared = (from_row - row_step) ** 2 + (from_column - column_step) ** 2
            better = padded.ravel()[at + (row_step * padded.shape[1] + column_step)] & (squared <= least)
            least = np.where(better, squared, least)
            candidate = (low_row + row_step) * columns + low_column + column_step
            nearest = np.where(better, candidate, nearest)
    cells = np.flatnonzero(occupied)
    partner = np.full(occupied.size + 1, occupied.size)
    partner[cells] = nearest
    return cells, partner, inside
