"""Regular 2-D grids on the ground plane."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Grid2D:
    """Cells of size `cell` (m) over `extent` = (x_min, x_max, y_min, y_max) (m).

    Rows follow x and columns follow y, both increasing with the index. Frozen and hashable, so that it can be
    a static argument of a jitted function.
    """

    extent: tuple[float, float, float, float]
    cell: float

    def __post_init__(self) -> None:
        x_min, x_max, y_min, y_max = self.extent
        for axis, low, high in (("x", x_min, x_max), ("y", y_min, y_max)):
            cells = (high - low) / self.cell
            if cells <= 0 or abs(cells - round(cells)) > 1e-6:
                raise ValueError(
                    f"Grid2D: the {axis} extent [{low}, {high}] m is {cells} cells of {self.cell} m; "
                    "expected a positive whole number. Change the extent or the cell size."
                )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        x_min, x_max, y_min, y_max = self.extent
        return round((x_max - x_min) / self.cell), round((y_max - y_min) / self.cell)

    @property
    def lower(self) -> tuple[float, float]:
        """(x_min, y_min) in metres: the outer corner of cell (0, 0)."""
        return self.extent[0], self.extent[2]

    def centers(self) -> np.ndarray:
        """(rows, columns, 2) float32 cell centres (x, y) in metres."""
        rows, columns = self.shape
        x = self.extent[0] + (np.arange(rows) + 0.5) * self.cell
        y = self.extent[2] + (np.arange(columns) + 0.5) * self.cell
        return np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).astype(np.float32)
