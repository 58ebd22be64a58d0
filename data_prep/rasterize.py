"""Vector maps to rasters of 0 and 1.

Rows follow map x and columns map y, both increasing with the index, as in `placerec_jax.ops.grid.Grid2D`. A
cell belongs to an area if its centre lies inside.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import rasterio.features
import shapely

from placerec_jax.ops.grid import Grid2D

ROAD_WIDTH_CELLS = 2
POINT_SIZE_CELLS = 3


def drive_grid(xy: np.ndarray, margin: float, cell: float) -> Grid2D:
    """The grid over the box of positions (N, 2) grown by `margin` (m), on whole multiples of `cell`."""
    lower = np.floor((xy.min(axis=0) - margin) / cell) * cell
    upper = np.ceil((xy.max(axis=0) + margin) / cell) * cell
    return Grid2D((float(lower[0]), float(upper[0]), float(lower[1]), float(upper[1])), cell)


def fill_polygons(polygons: Sequence[Sequence[np.ndarray]], grid: Grid2D) -> np.ndarray:
    """Polygons, each a list of rings (N, 2) in metres filled even-odd → (rows, columns) uint8 of 0 and 1.

    The result is the union of the polygons: one may cover the hole of another.
    """
    boxes = np.array(
        [[ring.min(axis=0), ring.max(axis=0)] for ring in (np.concatenate(p) for p in polygons)]
    ).reshape(-1, 2, 2)
    x_min, x_max, y_min, y_max = grid.extent
    inside = (boxes[:, 0] < [x_max, y_max]).all(axis=1) & (boxes[:, 1] > [x_min, y_min]).all(axis=1)
    shapes = [
        # The rasterizer's pixels are (column, row): y first.
        {"type": "Polygon", "coordinates": [_to_cells(ring, grid)[:, ::-1].tolist() for ring in polygon]}
        for polygon, near in zip(polygons, inside, strict=True)
        if near
    ]
    if not shapes:
        return np.zeros(grid.shape, np.uint8)
    return rasterio.features.rasterize(shapes, out_shape=grid.shape, fill=0, default_value=1, dtype=np.uint8)


def draw_polylines(
    lines: Sequence[np.ndarray], grid: Grid2D, width_cells: float = ROAD_WIDTH_CELLS
) -> np.ndarray:
    """Polylines (N, 2) in metres → (rows, columns) uint8: 1 where the centre is within half the width of a
    line.

    Ends and corners are round.
    """
    if not lines:
        return np.zeros(grid.shape, np.uint8)
    stripes = shapely.buffer(
        [shapely.LineString(line) for line in lines], width_cells * grid.cell / 2, quad_segs=8
    )
    polygons = [
        [shapely.get_coordinates(ring) for ring in (stripe.exterior, *stripe.interiors)]
        for stripe in stripes
        if not stripe.is_empty
    ]
    return fill_polygons(polygons, grid)


def draw_points(xy: np.ndarray, grid: Grid2D, size_cells: int = POINT_SIZE_CELLS) -> np.ndarray:
    """Points (N, 2) in metres → (rows, columns) uint8: a square of `size_cells` (odd) cells about each."""
    raster = np.zeros(grid.shape, np.uint8)
    reach = size_cells // 2
    cells = np.floor(_to_cells(xy, grid)).astype(np.int64)
    for row, column in cells[((cells >= -reach) & (cells < np.array(grid.shape) + reach)).all(axis=1)]:
        raster[max(row - reach, 0) : row + reach + 1, max(column - reach, 0) : column + reach + 1] = 1
    return raster


def class_plane(masks: Iterable[np.ndarray], grid: Grid2D) -> np.ndarray:
    """Masks of 0 and 1, one a class → (rows, columns) uint8 of class indices from 1; 0 where there is none.

    Where masks overlap, the first of them is seen.
    """
    plane = np.zeros(grid.shape, np.uint8)
    for index, mask in enumerate(masks, start=1):
        np.copyto(plane, np.uint8(index), where=(plane == 0) & (mask > 0))
    return plane


def _to_cells(xy: np.ndarray, grid: Grid2D) -> np.ndarray:
    """Metres → (row, column) in cells; cell (i, j) spans [i, i + 1) x [j, j + 1)."""
    return (xy - np.array(grid.lower)) / grid.cell
