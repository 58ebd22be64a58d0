"""Patches of a location raster: right angles are exact, sub-cell shifts interpolate, outside is zero."""

import numpy as np
import pytest

from placerec_jax.data.map_patch import LocationRaster
from placerec_jax.ops.grid import Grid2D

GRID = Grid2D((-8.0, 8.0, -8.0, 8.0), 0.5)


def location(seed: int = 0) -> LocationRaster:
    raster = np.random.default_rng(seed).integers(0, 2, (200, 160, 4)).astype(np.uint8)
    return LocationRaster(raster, np.array([1000.0, -500.0]), 0.5)


@pytest.mark.parametrize("quarter_turns", range(4))
def test_quarter_turns_equal_rot90(quarter_turns: int):
    here = location()
    # The pose stands on a cell corner, as the centre of a patch with an even number of cells does.
    pose = np.array([1000.0 + 50 * 0.5, -500.0 + 60 * 0.5, quarter_turns * np.pi / 2])
    expected = np.rot90(here.raster[34:66, 44:76], -quarter_turns)
    np.testing.assert_array_equal(here.sample_nearest(GRID, pose, (0, 1, 2, 3)), expected)
    np.testing.assert_allclose(here.sample_bilinear(GRID, pose), expected, atol=1e-5)


def test_half_a_cell_is_the_mean_of_two():
    here = location()
    pose = np.array([1000.0 + 50 * 0.5 + 0.25, -500.0 + 60 * 0.5, 0.0])
    raster = here.raster.astype(np.float32)
    expected = (raster[34:66, 44:76] + raster[35:67, 44:76]) / 2
    np.testing.assert_allclose(here.sample_bilinear(GRID, pose), expected, atol=1e-6)


def test_outside_the_raster_is_zero():
    here = LocationRaster(np.ones((20, 20, 1), np.uint8), np.zeros(2), 0.5)
    patch = here.sample_bilinear(GRID, np.array([0.0, 5.0, 0.0]))
    assert not patch[:15].any()
    np.testing.assert_allclose(patch[17:, 8:24], 1.0)
    assert here.sample_nearest(GRID, np.array([100.0, 100.0, 1.0]), (0,)).sum() == 0


def test_reduced_averages_cells_and_keeps_thin_roads():
    raster = np.zeros((40, 40, 2), np.uint8)
    raster[:, 11, 1] = 1
    reduced = LocationRaster(raster, np.zeros(2), 0.5).reduced(1.0, (1,))
    assert reduced.cell == 1.0
    assert reduced.raster.shape == (20, 20, 1)
    np.testing.assert_array_equal(reduced.raster[:, 5, 0], np.full(20, 128))


def test_wrong_raster_is_refused():
    with pytest.raises(ValueError, match="found float64"):
        LocationRaster(np.zeros((4, 4, 1)), np.zeros(2), 0.5)
