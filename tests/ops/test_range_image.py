"""Range images against loops over points; who wins, what differentiates, how scans explain each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.ops import range_image
from placerec_jax.ops.range_image import EMPTY, SphericalGrid, from_depth, from_points

GRID = SphericalGrid(32, 1056)
SMALL = SphericalGrid(8, 32)
# The camera looks along y of the LiDAR (forward), its x is the LiDAR's x (right), its y points down.
FORWARD_CAMERA = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]], np.float32)


def angles(x, y, z, grid):
    """A point in LiDAR axes → row and column, neither rounded nor clamped, and range; as specified."""
    ahead, left = y, -x
    r = np.sqrt(x * x + y * y + z * z)
    azimuth, elevation = -np.arctan2(left, ahead), np.arcsin(z / r)
    fov = np.deg2rad(grid.fov_up) + abs(np.deg2rad(grid.fov_down))
    row = grid.height * (1 - (elevation + abs(np.deg2rad(grid.fov_down))) / fov)
    return row, grid.width * (azimuth / np.pi + 1) / 2, r


def by_loops(points, grid, outside, near=2.0, far=80.0):
    """(P, 3) → (h, w) range, (h, w) number of the point or −1."""
    image, who = np.full(grid.shape, -1.0), np.full(grid.shape, -1)
    for number, (x, y, z) in enumerate(points.astype(np.float64)):
        row, column, r = angles(x, y, z, grid)
        if (abs(x) < near and abs(y) < near) or r >= far:
            continue
        if outside == "drop" and not 0 <= row < grid.height:
            continue
        row = min(max(int(np.floor(row)), 0), grid.height - 1)
        column = min(max(int(np.floor(column)), 0), grid.width - 1)
        if image[row, column] < 0 or r < image[row, column]:
            image[row, column], who[row, column] = r, number
    return image, who


def scan(count, seed=0, grid=GRID, low=0.5, high=100.0):
    """(count, 3) random points whose cells float32 cannot mistake."""
    rng = np.random.default_rng(seed)
    azimuth, elevation = rng.uniform(-np.pi, np.pi, 2 * count), np.deg2rad(rng.uniform(-50, 30, 2 * count))
    r = rng.uniform(low, high, 2 * count)
    xyz = np.stack(
        [
            r * np.cos(elevation) * np.cos(azimuth),
            r * np.cos(elevation) * np.sin(azimuth),
            r * np.sin(elevation),
        ],
        axis=-1,
    ).astype(np.float32)
    row, column, _ = angles(*xyz.T.astype(np.float64), grid)
    clear = (np.abs(row - np.rint(row)) > 0.01) & (np.abs(column - np.rint(column)) > 0.01)
    return xyz[clear][:count]


@pytest.mark.parametrize("outside", ["clamp", "drop"])
@pytest.mark.parametrize("grid", [GRID, SMALL], ids=["sparse", "dense"])
def test_nearest_points_as_by_loops(grid, outside):
    points = scan(2000, grid=grid)
    mask = np.random.default_rng(1).random(len(points)) < 0.9
    values = np.random.default_rng(2).random((len(points), 3)).astype(np.float32)
    expected, who = by_loops(np.where(mask[:, None], points, 1000.0), grid, outside)
    project = jax.jit(lambda *a: from_points(*a, grid, outside=outside))
    ranges, colours = project(points[None], mask[None], values[None])
    np.testing.assert_allclose(ranges[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(colours[0], np.where(who[..., None] >= 0, values[who], 0.0))
    assert (who >= 0).sum() > 100  # the comparison has something to compare
    assert (expected[0] > 0).any()


def test_own_car_and_far_points_are_left_out():
    points = np.array(
        [[1.9, -1.9, 0.1], [2.1, 0.5, 0.1], [0, 79.9, 0.1], [0, -80.1, 0.1], [0.5, 2.1, 0.1]], np.float32
    )
    ranges = jax.jit(lambda xyz: from_points(xyz, jnp.ones((1, 5), bool), None, GRID)[0])(points[None])
    found = np.sort(np.asarray(ranges[ranges > 0]))
    np.testing.assert_allclose(found, np.sort(np.linalg.norm(points[[1, 2, 4]], axis=1)), rtol=1e-6)


def test_columns_and_rows_of_known_directions():
    """Forward in the middle, right at three quarters, left at one, the rear at the seam; +10° on top."""
    ahead, right, left, behind = (0, 9, 0), (9, 0, 0), (-9, 0, 0), (0.001, -9, 0)
    seen = range_image.pixels(range_image.forward_left(np.array([ahead, right, left, behind])), GRID)
    np.testing.assert_allclose(seen.column[:3], [528, 792, 264], atol=1e-4)
    assert seen.column[3] > 1055.9
    np.testing.assert_allclose(seen.row, 8.0)  # of 40°, 10° are above the horizon

    edges = np.deg2rad([9.99, -29.99, 10.01, -30.01])
    points = np.stack([np.cos(edges), np.zeros(4), np.sin(edges)], axis=-1)
    seen = range_image.pixels(points, GRID)
    np.testing.assert_array_equal(seen.inside, [True, True, False, False])
    np.testing.assert_array_equal(np.floor(seen.row), [0, 31, -1, 32])
    everything = np.ones(4, bool)
    clamped = range_image.cells(seen, GRID, everything, "clamp")
    np.testing.assert_array_equal(clamped // 1056, [0, 31, 0, 31])
    np.testing.assert_array_equal(range_image.cells(seen, GRID, everything, "drop")[2:], 32 * 1056)


def test_numpy_and_jax_agree():
    points = scan(3000)
    ours, theirs = range_image.pixels(points, GRID), range_image.pixels(jnp.asarray(points), GRID)
    assert isinstance(ours.row, np.ndarray)
    valid = np.ones(len(points), bool)
    for outside in ("clamp", "drop"):
        cells = range_image.cells(ours, GRID, valid, outside)
        assert isinstance(cells, np.ndarray)
        np.testing.assert_array_equal(cells, range_image.cells(theirs, GRID, jnp.asarray(valid), outside))


@pytest.mark.parametrize("turn", [1, 17, 528, 1055])
def test_turned_scan_is_a_rolled_image(turn):
    points = scan(3000, low=6.0, high=70.0)  # the box about the sensor is no cylinder
    angle = 2 * np.pi * turn / GRID.width
    cos, sin = np.cos(angle), np.sin(angle)
    turned = points @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    mask = np.ones((1, len(points)), bool)
    project = jax.jit(lambda xyz: from_points(xyz, mask, None, GRID)[0])
    before, after = project(points[None]), project(turned[None].astype(np.float32))
    rolled = np.roll(before[0], -turn, axis=1)
    np.testing.assert_array_equal(after[0] > 0, rolled > 0)
    np.testing.assert_allclose(after[0], rolled, rtol=1e-5)


# --- From depth


def rig(seed=0, batch=2, cameras=3, size=(24, 32)):
    """Depth (B, N, H, W), intrinsics, lidar_T_camera of cameras all around, mask with one missing."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(2, 30, (batch, cameras, *size)).astype(np.float32)
    intrinsics = np.zeros((batch, cameras, 3, 3), np.float32)
    transforms = np.zeros((batch, cameras, 4, 4), np.float32)
    for b in range(batch):
        for n in range(cameras):
            fx, fy = rng.uniform(0.6, 1.2, 2) * size[1]
            skew, cx, cy = rng.uniform(-0.5, 0.5, 3) + np.array([0, size[1] / 2, size[0] / 2])
            intrinsics[b, n] = [[fx, skew, cx], [0, fy, cy], [0, 0, 1]]
            yaw = 2 * np.pi * n / cameras + rng.uniform(-0.2, 0.2)
            turn = np.eye(4)
            turn[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
            turn[:3, 3] = rng.uniform(-1, 1, 3)
            transforms[b, n] = turn @ FORWARD_CAMERA
    mask = np.ones((batch, cameras), bool)
    mask[0, 1] = False
    return depth, intrinsics, transforms, mask


def depth_by_loops(depth, intrinsics, transforms, mask, grid):
    """→ (B, h, w) range, {(b, n, v, u) of the winners}, and how near to a border of a cell any point came."""
    image, winner, clear = np.full((len(depth), *grid.shape), -1.0), {}, 1.0
    for b, n, v, u in np.ndindex(depth.shape):
        if not mask[b, n]:
            continue
        ray = np.linalg.inv(intrinsics[b, n].astype(np.float64)) @ [u + 0.5, v + 0.5, 1]
        point = (transforms[b, n].astype(np.float64) @ np.append(ray * depth[b, n, v, u], 1))[:3]
        row, column, r = angles(*point, grid)
        clear = min(clear, abs(row - np.rint(row)), abs(column - np.rint(column)))
        if not 0 <= row < grid.height:
            continue
        cell = (b, int(row), min(int(column), grid.width - 1))
        if image[cell] < 0 or r < image[cell]:
            image[cell], winner[cell] = r, (b, n, v, u)
    return image, set(winner.values()), clear


def test_depth_as_by_loops_and_gradient_of_winners_alone():
    grid = SphericalGrid(22, 66)
    arrays = rig()
    expected, winners, clear = depth_by_loops(*arrays, grid)
    assert clear > 1e-5, "a point lies on the border of a cell: choose another seed"
    depth, *geometry = arrays
    found = jax.jit(lambda d: from_depth(d, *geometry, grid))(depth)
    np.testing.assert_allclose(found, expected, rtol=1e-5)

    weight = np.random.default_rng(1).uniform(1, 2, expected.shape).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda d: jnp.sum(weight * from_depth(d, *geometry, grid))))(depth)
    assert {tuple(int(i) for i in place) for place in np.argwhere(np.asarray(gradient))} == winners
    step = 1e-3  # the range of a winner is smooth in its depth; the borders are far enough away
    place = sorted(winners)[len(winners) // 2]
    moved = depth.copy()
    moved[place] += step
    after, same, _ = depth_by_loops(moved, *geometry, grid)
    assert same == winners
    np.testing.assert_allclose(gradient[place], np.sum(weight * (after - expected)) / step, rtol=1e-2)


def test_wall_keeps_its_distance():
    """A wall 10 m ahead, seen by a camera at the LiDAR: what its cells hold lies 10 m ahead again."""
    size, grid = (60, 80), SphericalGrid(20, 90)
    intrinsics = np.array([[40, 0, 40], [0, 40, 30], [0, 0, 1]], np.float32)[None, None]
    depth = np.full((1, 1, *size), 10.0, np.float32)
    there = np.ones((1, 1), bool)
    image = jax.jit(lambda d: from_depth(d, intrinsics, FORWARD_CAMERA[None, None], there, grid))(depth)[0]
    row, column = np.nonzero(np.asarray(image) > 0)
    assert len(row) > 300
    elevation = np.deg2rad(10 - (row + 0.5) * 40 / 20)
    azimuth = (column + 0.5 - 45) * 2 * np.pi / 90
    ahead = np.asarray(image)[row, column] * np.cos(elevation) * np.cos(azimuth)
    # A cell is 2° by 4°, and the nearest of its points wins: the deviation grows with the slant of the wall.
    np.testing.assert_allclose(ahead, 10.0, rtol=0.06)
    assert np.abs(ahead.mean() - 10) < 0.2


def test_depth_is_projected_without_an_array_of_points():
    """What the compiler sets aside: cell and distance of every pixel, not three coordinates as well."""
    depth, *geometry = rig(size=(64, 96))
    program = jax.jit(lambda d: from_depth(d, *geometry, SphericalGrid(64, 96))).lower(depth).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * depth.nbytes


@pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices, simulated or real")
def test_frames_stay_on_their_devices():
    """Neither the projection nor its gradient sends anything from one device to another."""
    depth, *geometry = rig(batch=8, cameras=2, size=(6, 8))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    apart = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

    def both(depth, *geometry):
        image, pull = jax.vjp(lambda d: from_depth(d, *geometry, SMALL), depth)
        return image, pull(image)

    alone = jax.jit(both)(depth, *geometry)
    program = jax.jit(both, in_shardings=apart, out_shardings=apart).lower(depth, *geometry).compile()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in program.as_text(), collective
    for found, expected in zip(program(depth, *geometry), alone, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_without_cameras_empty_and_finite():
    depth = np.full((1, 2, 4, 4), 5.0, np.float32)
    nothing = np.zeros((1, 2, 3, 3), np.float32), np.full((1, 2, 4, 4), np.nan, np.float32)
    absent = np.zeros((1, 2), bool)

    def total(depth):
        image = from_depth(depth, *nothing, absent, SMALL)
        return image.sum(), image

    gradient, image = jax.jit(jax.grad(total, has_aux=True))(depth)
    assert (image == EMPTY).all()
    np.testing.assert_array_equal(gradient, 0.0)
    ranges, values = from_points(np.zeros((1, 5, 3)), np.zeros((1, 5), bool), np.ones((1, 5, 2)), SMALL)
    assert (ranges == EMPTY).all()
    assert not values.any()


def test_of_equally_near_points_the_first_wins_alone():
    index = jnp.array([[3, 1, 3, 9, 3, 1]])
    distance = jnp.array([[2.0, 5.0, 2.0, 0.1, 7.0, 4.0]])
    np.testing.assert_array_equal(range_image.nearest(index, distance, 5), [[-1, 4, -1, 2, -1]])
    np.testing.assert_array_equal(range_image.winners(index, distance, 5), [[6, 5, 6, 0, 6]])
    gradient = jax.grad(lambda d: range_image.nearest(index, d, 5).sum())(distance)
    np.testing.assert_array_equal(gradient, [[1, 0, 0, 0, 0, 1]])


def test_bad_grids_and_settings_are_named():
    with pytest.raises(ValueError, match="0 x 8 cells"):
        SphericalGrid(0, 8)
    with pytest.raises(ValueError, match="fov_down < fov_up"):
        SphericalGrid(8, 8, fov_up=-30, fov_down=10)
    with pytest.raises(ValueError, match="'ignore'; expected 'clamp' or 'drop'"):
        from_points(np.zeros((1, 1, 3)), np.ones((1, 1), bool), None, SMALL, outside="ignore")


# --- One scan explained by another


@pytest.fixture(scope="module")
def scans():
    """(1, P, 3) scan of a query, the same points seen from 2 m farther on and turned, query_T_other."""
    points = scan(4000, seed=3, low=6.0, high=40.0)
    angle = 0.3
    query_T_other = np.eye(4)
    query_T_other[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    query_T_other[:3, 3] = (0.5, 2.0, 0.1)
    other = (points - query_T_other[:3, 3]) @ query_T_other[:3, :3]
    mask = np.ones((1, len(points)), bool)
    return points[None], mask, other[None].astype(np.float32), mask, query_T_other[None].astype(np.float32)


@pytest.mark.parametrize("mode", range_image.DIFFERENCES)
def test_true_pose_explains_and_identity_does_not(scans, mode):
    *clouds, query_T_other = scans
    differ = jax.jit(lambda T: range_image.DIFFERENCES[mode](*clouds, T, SphericalGrid(16, 64)))
    means = {}
    for name, pose in (("true", query_T_other), ("identity", np.eye(4, dtype=np.float32)[None])):
        total, count = differ(pose)
        assert count[0] > 100
        means[name] = float(total[0] / count[0])
    assert means["identity"] > 1.0
    if mode == "scatter":
        assert means["true"] < 1e-4
    gradient = jax.jit(jax.grad(lambda T: differ(T)[0].sum()))(query_T_other + 0.01)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0, :3, 3]).min() > 1e-3


def room():
    """(1, P, 3) points on walls and floor of a room of 16 x 24 m about the sensor: smooth but for edges."""
    rng = np.random.default_rng(0)
    azimuth, elevation = rng.uniform(-np.pi, np.pi, 40000), np.deg2rad(rng.uniform(-28, 9, 40000))
    ray = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1
    )
    reach = np.minimum(8 / np.abs(ray[:, 0]), 12 / np.abs(ray[:, 1]))
    reach = np.where(ray[:, 2] < 0, np.minimum(reach, 1.8 / np.maximum(-ray[:, 2], 1e-9)), reach)
    return (ray * reach[:, None])[None].astype(np.float32)


def test_sampling_explains_a_smooth_scene_and_sees_a_turn_that_scattering_hardly_sees():
    cloud = room()
    mask = np.ones(cloud.shape[:2], bool)
    grid = SphericalGrid(32, 264)

    def mean(mode, yaw):
        pose = (
            jnp.eye(4)
            .at[:2, :2]
            .set(jnp.array([[jnp.cos(yaw), -jnp.sin(yaw)], [jnp.sin(yaw), jnp.cos(yaw)]]))
        )
        total, count = range_image.DIFFERENCES[mode](cloud, mask, cloud, mask, pose[None], grid)
        return (total / count)[0]

    slope, value = {}, {}
    for mode in range_image.DIFFERENCES:
        value[mode], slope[mode] = jax.jit(jax.value_and_grad(lambda yaw, mode=mode: mean(mode, yaw)))(0.1)
    at_rest = jax.jit(lambda yaw: mean("sample", yaw))(0.0)
    assert at_rest < 0.12 < 0.3 < value["sample"]
    assert slope["sample"] > 1.0  # metres a radian, back towards the true pose
    assert abs(slope["scatter"]) < 1e-3 * slope["sample"]
