"""Rasters against shapely's own geometry, cell by cell."""

import numpy as np
import pytest
import shapely

from data_prep import rasterize
from data_prep.maploc import CELL, MAP_MARGIN
from placerec_jax.ops import rigid
from placerec_jax.ops.grid import Grid2D

GRID = Grid2D((-7.5, 22.5, 100.0, 118.0), 0.5)  # not square, and off the origin: a swapped axis shows
CENTERS = GRID.centers().astype(np.float64)


def star(rng: np.random.Generator, center: tuple[float, float], radius: float) -> np.ndarray:
    """A closed ring (N, 2) around a centre."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    ring = (
        np.array(center) + (radius * rng.uniform(0.6, 1.0, 12) * np.stack([np.cos(angles), np.sin(angles)])).T
    )
    return np.concatenate([ring, ring[:1]])


@pytest.mark.parametrize("seed", range(5))
def test_polygons_cover_the_cells_whose_centres_are_inside(seed):
    rng = np.random.default_rng(seed)
    polygons = [
        [star(rng, (5.3, 108.2), 8.0), star(rng, (5.3, 108.2), 3.0)],
        [star(rng, (20.0, 101.0), 6.0)],  # beyond the edge
        [star(rng, (90.0, 101.0), 6.0)],  # outside
    ]
    areas = shapely.union_all([shapely.make_valid(shapely.Polygon(p[0], p[1:])) for p in polygons])
    expected = shapely.contains_xy(areas, CENTERS[..., 0], CENTERS[..., 1])
    np.testing.assert_array_equal(rasterize.fill_polygons(polygons, GRID), expected)


def test_a_polygon_may_cover_the_hole_of_another():
    square = np.array([[0, 101], [10, 101], [10, 111], [0, 111], [0, 101]], float)
    hole = (square - square.mean(axis=0)) / 2 + square.mean(axis=0)
    assert rasterize.fill_polygons([[square, hole]], GRID).sum() == 20 * 20 - 10 * 10
    assert rasterize.fill_polygons([[square, hole], [hole]], GRID).sum() == 20 * 20


@pytest.mark.parametrize("seed", range(3))
def test_polylines_are_two_cells_wide(seed):
    line = np.random.default_rng(seed).uniform((-10, 98), (25, 120), (5, 2))
    distance = shapely.distance(shapely.LineString(line), shapely.points(CENTERS))
    drawn = rasterize.draw_polylines([line], GRID)
    near = np.abs(distance - 0.5) < 0.005  # the round corners are polygons
    np.testing.assert_array_equal(drawn[~near], (distance < 0.5)[~near])


def test_points_are_three_cells_square_and_clipped():
    drawn = rasterize.draw_points(np.array([[0.1, 110.1], [-7.4, 100.1], [-7.9, 105.0], [40.0, 110.0]]), GRID)
    expected = np.zeros(GRID.shape, np.uint8)
    expected[14:17, 19:22] = 1
    expected[:2, :2] = 1
    expected[:1, 9:12] = 1  # its cell is one row outside
    np.testing.assert_array_equal(drawn, expected)


def test_nothing_to_draw():
    assert not rasterize.fill_polygons([], GRID).any()
    assert not rasterize.draw_polylines([], GRID).any()
    assert not rasterize.draw_points(np.empty((0, 2)), GRID).any()


def test_drive_grid_holds_every_patch():
    """Corners of 128 m patches of any heading, displaced by up to 30 m an axis in the vehicle's frame."""
    rng = np.random.default_rng(0)
    xy = rng.uniform((200, 700), (650, 900), (500, 2))
    grid = rasterize.drive_grid(xy, MAP_MARGIN, CELL)
    corners = np.array([[-64, -64], [-64, 64], [64, 64], [64, -64]])
    for heading in np.linspace(-np.pi, np.pi, 73):
        for noise in ((30, 30), (-30, 30), (30, -30), (-30, -30)):
            center = rigid.se2_apply(np.column_stack([xy, np.full(len(xy), heading)]), np.array(noise, float))
            poses = np.column_stack([center, np.full(len(xy), heading)])[:, None]
            reached = rigid.se2_apply(poses, corners[None].astype(float))
            assert (reached > np.array(grid.lower)).all()
            assert (reached < np.array(grid.extent)[[1, 3]]).all()
    assert np.allclose(np.array(grid.lower) / CELL % 1, 0)


def test_the_first_of_overlapping_classes_is_seen():
    grid = Grid2D((0.0, 2.0, 0.0, 1.5), 0.5)
    first, second, third = np.zeros((3, *grid.shape), np.uint8)
    first[:2], second[1:3], third[:, 2] = 1, 1, 1
    plane = rasterize.class_plane([first, second, third], grid)
    assert plane.dtype == np.uint8
    np.testing.assert_array_equal(plane, [[1, 1, 1], [1, 1, 1], [2, 2, 2], [0, 0, 3]])
    assert not rasterize.class_plane([], grid).any()
