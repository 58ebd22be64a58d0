"""Appearance rendering: what points are seen where, whose colours they take, and the range image of them."""

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_prep import appearance, images
from data_prep import nusc_pr_records as records
from data_prep.appearance import Picture
from data_prep.raw import nuscenes
from data_prep.raw.frames import Camera, Frame, Lidar
from placerec_jax.ops import range_image
from placerec_jax.ops.range_image import EMPTY, SphericalGrid

# A camera at the LiDAR that looks along its y axis (forward): x right, y down, z forward.
FORWARD = np.array([[1.0, 0, 0, 0], [0, 0, -1.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])
K = np.array([[100.0, 0, 50.0], [0, 100.0, 30.0], [0, 0, 1.0]])
SIZE = (60, 100)


def random_pose(rng, spread=3.0):
    """A quaternion w, x, y, z and a translation."""
    wxyz = rng.normal(size=4)
    return wxyz / np.linalg.norm(wxyz), rng.normal(size=3) * spread


def by_steps(points, to_ego, to_map, of_map, of_ego):
    """LiDAR → ego → map → ego → camera, step by step with SciPy's rotations (x, y, z, w)."""
    for wxyz, translation in (to_ego, to_map):
        points = Rotation.from_quat(np.roll(wxyz, -1)).apply(points) + translation
    for wxyz, translation in (of_map, of_ego):
        points = Rotation.from_quat(np.roll(wxyz, -1)).inv().apply(points - translation)
    return points


def matrix(pose):
    wxyz, translation = pose
    result = np.eye(4)
    result[:3, :3] = Rotation.from_quat(np.roll(wxyz, -1)).as_matrix()
    result[:3, 3] = translation
    return result


def frame_of(lidar_pose, lidar_ego, camera_pose, camera_ego, path="none"):
    camera = Camera("CAM_FRONT", path, 100, 60, 0, K, matrix(camera_pose), matrix(camera_ego))
    return Frame("t", "s", "l", 0, (camera,), Lidar(path, 0, matrix(lidar_pose), matrix(lidar_ego)))


def test_four_steps_through_both_poses_of_the_ego():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 3)) * 20
    poses = [random_pose(rng, spread) for spread in (1.0, 500.0, 500.0, 1.0)]
    to_ego, to_map, of_map, of_ego = poses
    frame = frame_of(to_ego, to_map, of_ego, of_map)
    camera_T_lidar = records.camera_T_lidar(frame, frame.cameras[0])
    expected = by_steps(points, *poses)
    found = points @ camera_T_lidar[:3, :3].T + camera_T_lidar[:3, 3]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    # Without the middle steps, as if the car had stood still between sweep and image, pixels move.
    standing = frame_of(to_ego, to_map, of_ego, to_map)
    assert not np.allclose(records.camera_T_lidar(standing, standing.cameras[0]), camera_T_lidar, atol=1e-2)


def test_a_drive_of_half_a_metre_moves_pixels():
    still = (np.array([1.0, 0, 0, 0]), np.zeros(3))
    moved = (np.array([1.0, 0, 0, 0]), np.array([0.0, 0.5, 0.0]))
    looking = (np.roll(Rotation.from_matrix(FORWARD[:3, :3].T).as_quat(), 1), np.zeros(3))
    point = np.array([[1.0, 10.0, 0.5]])
    at = []
    for camera_ego in (still, moved):
        frame = frame_of(still, still, looking, camera_ego)
        where = appearance.project(point, records.camera_T_lidar(frame, frame.cameras[0]), K, SIZE)
        at.append((where.u[0], where.depth[0]))
    np.testing.assert_allclose(at, [(60.0, 10.0), (50 + 100 / 9.5, 9.5)])


def test_points_count_in_front_of_the_camera_and_inside_its_border():
    def point(u, v, depth):
        return [(u - 50) / 100 * depth, depth, -(v - 30) / 100 * depth]

    points = np.array(
        [
            point(50, 30, 5),
            point(1.01, 1.01, 5),
            point(0.99, 30, 5),
            point(98.99, 58.99, 5),
            point(99.01, 30, 5),
            point(50, 59.01, 5),
            point(50, 30, 1.01),
            point(50, 30, 0.99),
            point(50, 30, -5),
            [0, 0, 0],
        ]
    )
    where = appearance.project(points, FORWARD, K, SIZE)
    assert where.seen.tolist() == [True, True, False, True, False, False, True, False, False, False]
    np.testing.assert_allclose(where.u[:3], [50, 1.01, 0.99])
    np.testing.assert_allclose(where.depth[[0, 8]], [5, -5])


def test_colours_are_bilinear_between_pixel_centres():
    rgb = np.zeros((*SIZE, 3), np.uint8)
    rgb[30, 50], rgb[30, 51], rgb[31, 50], rgb[31, 51] = (0, 0, 0), (100, 0, 0), (0, 200, 0), (100, 200, 40)
    # A quarter of a pixel right and half a pixel down of the first one's centre (50.5, 30.5).
    point = [[(50.75 - 50) / 100 * 5, 5, -(31.0 - 30) / 100 * 5]]
    np.testing.assert_array_equal(
        appearance.colours(np.array(point), [Picture(rgb, K, FORWARD)]), [[25, 100, 5]]
    )


def test_of_two_cameras_the_one_with_the_point_nearer_its_middle_counts():
    red, blue = (np.full((*SIZE, 3), colour, np.uint8) for colour in ((200, 0, 0), (0, 0, 200)))
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("y", -10, degrees=True).as_matrix()  # the camera looks to the right
    pictures = [Picture(red, K, FORWARD), Picture(blue, K, turn @ FORWARD)]
    degrees = np.array([-20, 0, 4, 6, 15, 30])
    points = np.stack([np.sin(np.deg2rad(degrees)), np.cos(np.deg2rad(degrees)), np.zeros(6)], 1) * 9
    expected = [[200, 0, 0]] * 3 + [[0, 0, 200]] * 3
    for order in (pictures, pictures[::-1]):
        np.testing.assert_array_equal(appearance.colours(points, order), expected)
    behind = points * [1, -1, 1]
    assert not appearance.colours(behind, pictures).any()
    assert not appearance.colours(points, []).any()


def looped(points, colours, grid):
    """The range image point by point: farthest first, so that the nearest stays."""
    ranges = np.full(grid.shape, EMPTY, np.float64)
    rgb = np.zeros((*grid.shape, 3), np.uint8)
    distance = np.linalg.norm(points, axis=1)
    for number in np.argsort(-distance, kind="stable"):
        right, forward, up = points[number]
        if (abs(right) < 2 and abs(forward) < 2) or distance[number] >= 80:
            continue
        azimuth = np.arctan2(right, forward)  # clockwise from ahead
        elevation = np.degrees(np.arcsin(up / distance[number]))
        column = int(np.floor(0.5 * (azimuth / np.pi + 1) * grid.width))
        row = int(np.floor((1 - (elevation - grid.fov_down) / (grid.fov_up - grid.fov_down)) * grid.height))
        column, row = np.clip(column, 0, grid.width - 1), np.clip(row, 0, grid.height - 1)
        ranges[row, column] = distance[number]
        rgb[row, column] = colours[number]
    return ranges, rgb


@pytest.fixture
def sweep():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(4000, 3)) * [25, 25, 4]
    points[:200] = rng.uniform(-3, 3, (200, 3))  # about the car
    points[200:400] *= 4  # some beyond 80 m
    return points.astype(np.float32)


def test_rendering_is_that_of_a_loop_over_the_points(sweep):
    rng = np.random.default_rng(2)
    rgb = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    pictures = [Picture(rgb, K, FORWARD)]
    grid = SphericalGrid(16, 90)
    ranges, rendered = appearance.render(sweep, pictures, grid)
    expected, colours = looped(sweep.astype(np.float64), appearance.colours(sweep, pictures), grid)
    np.testing.assert_allclose(ranges, expected, rtol=1e-5)
    np.testing.assert_array_equal(rendered, colours)
    assert 0.1 < (ranges == EMPTY).mean() < 0.9
    assert rendered.any()


def test_rendering_is_that_of_the_device(sweep):
    grid = SphericalGrid(16, 90)
    ranges, _ = appearance.render(sweep, [], grid)
    device, _ = range_image.from_points(jnp.asarray(sweep)[None], jnp.ones((1, len(sweep)), bool), None, grid)
    np.testing.assert_allclose(ranges, device[0], rtol=1e-5)


def test_ranges_keep_to_a_millimetre_and_empty_stays_empty():
    ranges = np.array([[EMPTY, 0.0005, 2.0, 79.9994]])
    steps = records.encode_ranges(ranges)
    assert steps.dtype == np.uint16
    np.testing.assert_allclose(steps * records.RANGE_UNIT, [[0, 0.002, 2.0, 80.0]], atol=1e-3)


def test_images_are_stretched_on_each_axis_with_their_calibration(tmp_path):
    path = tmp_path / "image.jpg"
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[20:40, 50:75] = 255
    cv2.imwrite(str(path), pixels)
    camera = Camera("CAM_FRONT", path, 100, 60, 0, K, np.eye(4), np.eye(4))
    content, rgb, intrinsics = images.fitted_image(camera, (30, 40))
    np.testing.assert_allclose(intrinsics, [[40, 0, 20], [0, 50, 15], [0, 0, 1]])
    assert rgb.shape == (30, 40, 3)
    assert rgb[10:20, 20:30].min() > 200  # the same patch: rows halved, columns times 0.4
    assert rgb[:8].max() < 60
    assert rgb[:, :17].max() < 60
    stored = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(stored.astype(int) - rgb).max() < 60
    kept, _, same = images.fitted_image(camera, (60, 100))
    assert kept == path.read_bytes()
    np.testing.assert_array_equal(same, K)


@pytest.mark.real_data
def test_real_keyframe_projects_as_the_devkit_has_it(real_data):
    """The counts of the devkit's map_pointcloud_to_image; tests/interop asks the devkit itself."""
    root = real_data / "nuscenes"
    (scene,) = nuscenes.read_scenes(root, nuscenes.find_version(root, None))
    (frame,) = scene.frames
    points = records.read_sweep(frame)
    seen = {
        camera.channel: appearance.project(
            points,
            records.camera_T_lidar(frame, camera),
            camera.intrinsics,
            (camera.height, camera.width),
        ).seen.sum()
        for camera in frame.cameras
    }
    assert (seen["CAM_FRONT"], seen["CAM_BACK"], seen["CAM_FRONT_LEFT"]) == (3053, 4820, 3696)


@pytest.mark.real_data
def test_real_keyframe_rendered(real_data):
    """What the picture shows, in numbers: road all around, colours on what the cameras see."""
    root = real_data / "nuscenes"
    (scene,) = nuscenes.read_scenes(root, nuscenes.find_version(root, None))
    (frame,) = scene.frames
    pictures = [view.picture for view in records.views_of(frame, (352, 640))]
    grid = SphericalGrid(32, 1056)
    points = records.read_sweep(frame)
    ranges, rgb = appearance.render(points, pictures, grid)
    assert 0.6 < (ranges > 0).mean() < 0.8
    assert ranges[ranges > 0].min() >= 2
    seen = rgb.any(axis=-1)
    assert seen[8:20][ranges[8:20] > 0].mean() > 0.7
    assert not rgb[ranges < 0].any()
    # Elevations fall row by row; the road some rows below the horizon is nearer than what is above it.
    near, far = ranges[24][ranges[24] > 0], ranges[12][ranges[12] > 0]
    assert np.median(near) < 0.6 * np.median(far)
    # A pixel's colour is that of the image where the cell's point falls: looked up here without rounding.
    row, column = np.argwhere(seen[10:20])[500] + [10, 0]
    seen_at = range_image.pixels(range_image.forward_left(points), grid)
    inside = (np.floor(seen_at.row) == row) & (np.floor(seen_at.column) == column)
    inside &= range_image.kept_points(points, inside, range_image.NEAR, range_image.FAR)
    nearest = np.flatnonzero(inside)[np.argmin(seen_at.distance[inside])]
    candidates = []
    for picture in pictures:
        at = appearance.project(
            points[nearest : nearest + 1], picture.camera_T_lidar, picture.intrinsics, (352, 640)
        )
        if at.seen[0]:
            patch = picture.rgb[int(at.v[0]) - 1 : int(at.v[0]) + 2, int(at.u[0]) - 1 : int(at.u[0]) + 2]
            candidates.append((patch.min((0, 1)), patch.max((0, 1))))
    assert any(
        np.all(low <= rgb[row, column]) and np.all(rgb[row, column] <= high) for low, high in candidates
    )
