"""Grids: cell centres and their limits."""

import numpy as np
import pytest

from placerec_jax.ops.grid import Grid2D


def test_rows_follow_x_and_columns_y():
    grid = Grid2D((-64.0, 64.0, -32.0, 32.0), 0.5)
    assert grid.shape == (256, 128)
    np.testing.assert_allclose(grid.centers()[0, 0], [-63.75, -31.75])
    np.testing.assert_allclose(grid.centers()[3, 5], [-64 + 3.5 * 0.5, -32 + 5.5 * 0.5])


@pytest.mark.parametrize("extent", [(0.0, 1.2, 0.0, 1.0), (1.0, 1.0, 0.0, 1.0), (2.0, 1.0, 0.0, 1.0)])
def test_extent_that_is_no_whole_number_of_cells(extent):
    with pytest.raises(ValueError, match=r"cells of 0\.5 m"):
        Grid2D(extent, 0.5)
