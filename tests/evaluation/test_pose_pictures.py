"""Pictures: the transforms put things where they are, and every picture comes out."""

import dataclasses

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure

from placerec_jax.evaluation import pose_pictures
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import se2_apply

MAP_GRID = Grid2D((-32.0, 32.0, -24.0, 24.0), 0.5)
BEV_GRID = Grid2D((-16.0, 16.0, -8.0, 8.0), 0.5)


def pixel_of(picture_shape, extent, point):
    """Row and column, under a (right, up) point, of a picture over (left, right, bottom, top)."""
    left, right, bottom, top = extent
    row = int((top - point[1]) / (top - bottom) * picture_shape[0])
    column = int((point[0] - left) / (right - left) * picture_shape[1])
    return row, column


@pytest.mark.parametrize("xy", [(10.2, 3.3), (-31.9, -23.9), (31.9, 23.9), (0.1, -20.4)])
def test_a_point_and_the_cell_under_it_are_drawn_in_one_place(xy):
    cells = np.zeros(MAP_GRID.shape)
    cells[int((xy[0] + 32) / 0.5), int((xy[1] + 24) / 0.5)] = 1
    picture = pose_pictures.ego_picture(cells)
    point = pose_pictures.ego_to_picture(np.array(xy))
    assert picture[pixel_of(picture.shape, pose_pictures.ego_extent(MAP_GRID), point)] == 1


def test_forward_is_up_and_left_is_left():
    right, up = pose_pictures.ego_to_picture(np.array([[5.0, 0.0], [0.0, 5.0]])).T
    np.testing.assert_array_equal(right, [0, -5])
    np.testing.assert_array_equal(up, [5, 0])


def test_arrow_of_a_pose_that_turned_left_points_to_the_left():
    """The tip of an arrow lies on the pose's forward axis."""
    pose = np.array([4.0, 2.0, np.pi / 2])
    tail, tip = pose_pictures.ego_to_picture(se2_apply(pose[None], np.array([[0.0, 0.0], [3.0, 0.0]])))
    np.testing.assert_allclose(tail, [-2, 4], atol=1e-12)
    np.testing.assert_allclose(tip, [-5, 4], atol=1e-12)


def test_location_pictures_have_north_up_and_east_right():
    cells = np.zeros((20, 10))  # 20 cells east, 10 north
    cells[17, 2] = 1
    picture = pose_pictures.north_picture(cells)
    assert picture.shape == (10, 20)
    assert picture[pixel_of(picture.shape, (0, 20, 0, 10), (17.5, 2.5))] == 1


def test_window_holds_poses_and_names_its_place():
    origin, poses = np.array([100.0, 200.0]), np.array([[130.0, 230.0, 0], [140.0, 215.0, 1]])
    (rows, columns), extent = pose_pictures._window((200, 200), origin, 0.5, poses, margin=10.0)
    assert extent == (120.0, 150.0, 205.0, 240.0)
    assert (rows, columns) == (slice(40, 100), slice(10, 80))


def test_window_ends_at_the_raster():
    poses = np.array([[101.0, 201.0, 0]])
    (rows, columns), extent = pose_pictures._window(
        (30, 30), np.array([100.0, 200.0]), 0.5, poses, margin=10.0
    )
    assert extent == (100.0, 111.0, 200.0, 211.0)
    assert (rows, columns) == (slice(0, 22), slice(0, 22))


def test_map_paints_later_layers_over_earlier_ones():
    one, none = np.ones((1, 1)), np.zeros((1, 1))
    paint = pose_pictures.paint_map
    np.testing.assert_allclose(paint({"road": none})[0, 0], pose_pictures.MAP_GROUND)
    np.testing.assert_allclose(paint({"node": one, "drivable": one})[0, 0], pose_pictures.MAP_COLORS["node"])


@pytest.mark.parametrize(("length", "bar"), [(37.0, 20.0), (5.0, 5.0), (0.9, 0.5), (119.0, 100.0)])
def test_scale_bars_have_round_lengths(length, bar):
    assert pose_pictures._round_length(length) == pytest.approx(bar)


def make_errors(count=50):
    rng = np.random.default_rng(0)
    kinds = {"position": "m", "longitudinal": "m", "lateral": "m", "orientation": "deg"}
    errors = {
        name: {kind: rng.exponential(scale, count) for kind in kinds}
        for name, scale in (("prediction", 1.0), ("coarse", 2.0), ("do_nothing", 5.0))
    }
    return errors, kinds


def decoded(data):
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image


def test_charts_come_out():
    errors, kinds = make_errors()
    for data in (
        pose_pictures.histograms(errors, kinds),
        pose_pictures.recall_curves(errors, [1.0, 2.0, 5.0, 10.0]),
        pose_pictures.before_after(errors),
    ):
        assert decoded(data).std() > 0


def test_charts_of_a_single_perfect_query_come_out():
    zero = {kind: np.zeros(1) for kind in ("position", "longitudinal", "lateral", "orientation")}
    errors = {"prediction": zero, "do_nothing": zero}
    decoded(pose_pictures.histograms(errors, dict.fromkeys(zero, "m")))
    decoded(pose_pictures.before_after(errors))


def make_frame(cameras):
    rng = np.random.default_rng(0)
    return pose_pictures.Frame(
        title="2.0 m before, 1.0 m after",
        map_grid=MAP_GRID,
        bev_grid=BEV_GRID,
        map_layers={name: rng.random(MAP_GRID.shape) < 0.3 for name in pose_pictures.MAP_COLORS},
        poses={"true": np.array([4.0, -3.0, 0.2]), "prediction": np.array([3.0, -2.0, 0.1])},
        images={name: rng.integers(0, 255, (32, 88, 3)).astype(np.uint8) for name in cameras},
        bev={"drivable": (rng.random(BEV_GRID.shape), rng.random(BEV_GRID.shape) < 0.5)},
        map={"drivable": (rng.random(MAP_GRID.shape), rng.random(MAP_GRID.shape) < 0.5)},
    )


@pytest.mark.parametrize(
    "cameras",
    [
        tuple(pose_pictures.SURROUND),
        tuple(pose_pictures.RING),
        ("CAM_FRONT",),
        ("ring_front_center",),
        ("a", "b", "c", "d", "e"),
    ],
)
def test_frame_comes_out_for_any_rig(cameras):
    assert decoded(pose_pictures.frame_picture(make_frame(cameras))).shape[1] > 1000


def test_posterior_is_drawn_where_it_lies():
    """The likeliest cell, 5 m ahead and 3 m to the right, is the most opaque; others fade."""
    grid = Grid2D((-10.5, 10.5, -10.5, 10.5), 1.0)
    probability = np.zeros(grid.shape)
    row, column = np.argwhere(np.all(np.isclose(grid.centers(), [5.0, -3.0]), axis=-1))[0]
    probability[row, column], probability[0, 0] = 0.6, 0.1
    frame = dataclasses.replace(make_frame(("CAM_FRONT",)), posterior=(probability, grid))
    axes = Figure().add_subplot()
    pose_pictures._posterior(axes, frame)
    (image,) = axes.images
    alpha = image.get_array()[..., 3]
    left, right, bottom, top = image.get_extent()
    assert image.origin == "upper"
    y, x = np.unravel_index(np.argmax(alpha), alpha.shape)
    assert left + (x + 0.5) / alpha.shape[1] * (right - left) == pytest.approx(3.0)
    assert top - (y + 0.5) / alpha.shape[0] * (top - bottom) == pytest.approx(5.0)
    assert sorted(np.unique(alpha))[0] == 0 < sorted(np.unique(alpha))[1] < alpha.max()
    assert decoded(pose_pictures.frame_picture(frame)).shape[1] > 1000


def test_drive_map_comes_out():
    raster = np.random.default_rng(0).integers(0, 2, (300, 200, 4)).astype(np.uint8)
    poses = np.array([[30.0, 20.0, 0.0], [60.0, 40.0, 1.0]])
    data = pose_pictures.drive_map(
        raster,
        np.zeros(2),
        0.5,
        ("road", "building", "node", "drivable"),
        poses,
        np.array([1.0, 9.0]),
        5.0,
        "somewhere",
    )
    assert decoded(data).std() > 0
