"""Patches of a location raster under an SE(2) pose: one resampling, on the host, in float64 geometry."""

import cv2
import numpy as np

from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import se2_apply


class LocationRaster:
    """A location's map channels, read at any pose.

    `raster` (rows, columns, channels) uint8 0/1 with rows along map x and columns along map y; `origin` (2,)
    the map coordinates of the outer corner of cell (0, 0) in metres; `cell` the cell size in metres.
    """

    def __init__(self, raster: np.ndarray, origin: np.ndarray, cell: float) -> None:
        if raster.ndim != 3 or raster.dtype != np.uint8:
            raise ValueError(
                "a location raster must be uint8 (rows, columns, channels); "
                f"found {raster.dtype} {raster.shape}"
            )
        self.raster = raster
        self.origin = np.asarray(origin, np.float64)
        self.cell = float(cell)

    def reduced(self, cell: float, channels: tuple[int, ...]) -> "LocationRaster":
        """The chosen channels as 0..255, area-averaged to about `cell` metres.

        Averaging keeps thin roads that coarse sampling would miss.
        """
        factor = max(1, round(cell / self.cell))
        rows, columns = (size // factor * factor for size in self.raster.shape[:2])
        chosen = np.ascontiguousarray(self.raster[:rows, :columns][..., list(channels)]) * np.uint8(255)
        if factor > 1:
            size = (columns // factor, rows // factor)
            chosen = cv2.resize(chosen, size, interpolation=cv2.INTER_AREA).reshape(*size[::-1], -1)
        return LocationRaster(chosen, self.origin, self.cell * factor)

    def sample_bilinear(self, grid: Grid2D, map_pose_grid: np.ndarray) -> np.ndarray:
        """(*grid.shape, channels) float32 of the raw values; zero outside the raster."""
        index = self._index(grid, map_pose_grid) - 0.5
        low = np.floor(index).astype(np.int64)
        fraction = (index - low).astype(np.float32)
        patch = np.zeros((*grid.shape, self.raster.shape[2]), np.float32)
        for row_step in (0, 1):
            for column_step in (0, 1):
                weight = np.abs(1 - row_step - fraction[..., 0]) * np.abs(1 - column_step - fraction[..., 1])
                patch += weight[..., None] * self._gather(low + np.array([row_step, column_step]))
        return patch

    def sample_nearest(
        self, grid: Grid2D, map_pose_grid: np.ndarray, channels: tuple[int, ...]
    ) -> np.ndarray:
        """(*grid.shape, len(channels)) uint8 of the cells under the grid's centres; zero outside."""
        index = np.floor(self._index(grid, map_pose_grid)).astype(np.int64)
        return self._gather(index)[..., list(channels)]

    def _index(self, grid: Grid2D, map_pose_grid: np.ndarray) -> np.ndarray:
        map_xy = se2_apply(np.asarray(map_pose_grid, np.float64), grid.centers().astype(np.float64))
        return (map_xy - self.origin) / self.cell

    def _gather(self, index: np.ndarray) -> np.ndarray:
        rows, columns = self.raster.shape[:2]
        row, column = index[..., 0], index[..., 1]
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        values = self.raster[np.where(inside, row, 0), np.where(inside, column, 0)]
        return values * inside[..., None].astype(np.uint8)
