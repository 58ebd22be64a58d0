"""The ground of the built-in city: its height, what is draped over it, and the vehicle that follows it."""

import cv2
import numpy as np
import pytest
import shapely

from data_prep.city import generate, sensors
from data_prep.city.ground import LONGEST_EDGE, refine, water_level
from data_prep.city.mesh import Material
from data_prep.city.sizes import SIZES
from data_prep.city.terrain import Terrain, make_terrain
from data_prep.city.world import KERB_HEIGHT, World, build_world
from data_prep.raw import nuscenes


@pytest.fixture(scope="module")
def world() -> World:
    return build_world("boston-seaport", SIZES["small"], 0)


@pytest.fixture(scope="module")
def hills() -> Terrain:
    return make_terrain(np.zeros(2), np.array([900.0, 700.0]), 0, 500.0, np.random.default_rng(4))


def test_gradient_is_the_slope_of_the_height(hills):
    xy = np.random.default_rng(0).uniform(0, 900, (200, 2))
    step = 1e-3
    for axis in (0, 1):
        shift = step * np.eye(2)[axis]
        difference = (hills.height(xy + shift) - hills.height(xy - shift)) / (2 * step)
        np.testing.assert_allclose(hills.gradient(xy)[:, axis], difference, atol=1e-8)
    np.testing.assert_allclose(hills.slope(xy), np.linalg.norm(hills.gradient(xy), axis=1))


def test_a_frame_stands_on_the_ground_and_heads_where_it_should(hills):
    rng = np.random.default_rng(1)
    pose = np.column_stack([rng.uniform(0, 900, (50, 2)), rng.uniform(-3, 3, 50)])
    frame = hills.frame(pose)
    rotation = frame[:, :3, :3]
    np.testing.assert_allclose(rotation @ rotation.swapaxes(1, 2), np.tile(np.eye(3), (50, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0)
    np.testing.assert_allclose(np.arctan2(frame[:, 1, 0], frame[:, 0, 0]), pose[:, 2])
    np.testing.assert_allclose(frame[:, 2, 3], hills.height(pose[:, :2]))
    # Points half a metre away in the body's ground plane are on the ground.
    for local in ([0.5, 0, 0, 1], [0, 0.5, 0, 1], [-0.5, 0, 0, 1]):
        point = frame @ np.array(local)
        np.testing.assert_allclose(point[:, 2], hills.height(point[:, :2]), atol=3e-4)


def test_towns_are_hilly_but_streets_are_not_steep():
    for seed in range(2):
        world = build_world("singapore-onenorth", SIZES["tiny"], seed)
        curves = [world.graph.curve(number) for number in range(len(world.graph.streets))]
        xy, along = (
            np.concatenate(column)
            for column in zip(*[c.at(np.arange(0, c.length, 5.0)) for c in curves], strict=True)
        )
        grade = np.abs(np.sum(world.terrain.gradient(xy) * along, axis=1))
        assert grade.max() <= 0.06
        assert grade.max() > 0.015
        assert np.ptp(world.terrain.height(xy)) > 2.0


def test_refined_triangles_fill_the_old_ones_without_gaps():
    old = np.array([[[0.0, 0], [40, 0], [0, 3]], [[40, 0], [41, 17], [0, 3]]])
    new = refine(old, 5.0)
    edges = np.linalg.norm(np.roll(new, -1, 1) - new, axis=2)
    assert edges.max() <= 5.0
    area = np.linalg.det(new[:, 1:] - new[:, :1])
    assert (area > 0).all()  # none turned over
    assert area.sum() == pytest.approx(np.linalg.det(old[:, 1:] - old[:, :1]).sum())
    # Conforming: every edge inside the quadrilateral belongs to two triangles.
    pairs = {}
    for triangle in np.round(new, 9).tolist():
        for a, b in zip(triangle, triangle[1:] + triangle[:1], strict=True):
            key = frozenset((tuple(a), tuple(b)))
            pairs[key] = pairs.get(key, 0) + 1
    outline = shapely.Polygon([(0, 0), (40, 0), (41, 17), (0, 3)]).exterior
    for edge, count in pairs.items():
        middle = shapely.Point(np.mean(list(edge), axis=0))
        assert count == (1 if outline.distance(middle) < 1e-6 else 2)


def test_draped_surfaces_follow_the_ground(world):
    rng = np.random.default_rng(2)
    for material, above in (
        (Material.ASPHALT, 0.0),
        (Material.PAVING, KERB_HEIGHT),
        (Material.MARKING, 0.02),
    ):
        chosen = world.mesh.material == material
        if material == Material.PAVING:
            chosen &= world.mesh.semantic == 8  # sidewalks; paved yards have longer edges
        triangles = world.mesh.triangles[chosen].astype(np.float64)
        triangles[..., :2] += world.centre
        edges = np.linalg.norm(np.roll(triangles, -1, 1) - triangles, axis=2)
        assert edges.max() < LONGEST_EDGE * 1.003
        weights = rng.dirichlet(np.ones(3), (len(triangles), 2))
        points = np.einsum("nkc,ncd->nkd", weights, triangles)
        error = points[..., 2] - world.terrain.height(points[..., :2]) - above
        assert np.abs(error).max() < 0.005


def test_markings_are_seen_on_the_road_from_above(world):
    middles = np.array([m.polygon.representative_point().coords[0] for m in world.markings])
    start = np.column_stack([middles - world.centre, np.full(len(middles), 200.0)]).astype(np.float32)
    down = np.broadcast_to(np.array([0, 0, -1], np.float32), start.shape).copy()
    hits = sensors.RayCaster(world.mesh).cast(start, down)
    material = world.mesh.material[hits.triangle]
    assert not np.isin(material, [Material.ASPHALT, Material.GRASS]).any()
    assert (material == Material.MARKING).mean() > 0.9  # the others are under trees and signals


def test_the_river_is_level_in_its_bed_and_crossed_on_bridges(world):
    water = world.mesh.triangles[world.mesh.material == Material.WATER]
    assert np.ptp(water[..., 2]) == 0
    level = water[0, 0, 2]
    assert level == pytest.approx(water_level(world.terrain, world.river), abs=1e-4)
    bank = shapely.get_coordinates(shapely.segmentize(world.river.exterior, 3.0))
    freeboard = world.terrain.height(bank) - level
    assert freeboard.min() > 0.5
    assert freeboard.max() < 4.0
    # From above: water inside, or a bridge with the road on it.
    rng = np.random.default_rng(5)
    lower, upper = np.array(world.river.bounds[:2]), np.array(world.river.bounds[2:])
    xy = rng.uniform(lower, upper, (4000, 2))
    xy = xy[shapely.contains_xy(world.river.buffer(-0.1), xy)]
    start = np.column_stack([xy - world.centre, np.full(len(xy), 200.0)]).astype(np.float32)
    down = np.broadcast_to(np.array([0, 0, -1], np.float32), start.shape).copy()
    hits = sensors.RayCaster(world.mesh).cast(start, down)
    material = world.mesh.material[hits.triangle]
    bridge = shapely.contains_xy(world.road.buffer(0.3), xy)
    assert bridge.any()
    assert not (material[bridge] == Material.WATER).any()
    walk = shapely.contains_xy(world.sidewalk.buffer(0.1), xy)
    open_sky = material[~bridge & ~walk]
    assert (open_sky == Material.WATER).mean() > 0.8  # crowns of trees on the banks reach over it
    assert not (open_sky == Material.GRASS).any()


# What is written


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[World, list[nuscenes.Frame]]:
    """The tiny city, and its frames as the reader of nuScenes finds them in the tables."""
    out = tmp_path_factory.mktemp("city")
    generate.main(["--out", str(out), "--size", "tiny", "--formats", "nuscenes", "--workers", "1"])
    frames = nuscenes.read_frames(out / "nuscenes", "v1.0-trainval")
    return build_world("boston-seaport", SIZES["tiny"], 0), frames


def points_in_map(frame: nuscenes.Frame) -> np.ndarray:
    """(M, 3) LiDAR points of a keyframe through its written calibration and pose."""
    points = np.fromfile(frame.lidar.path, np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
    map_T_lidar = frame.lidar.map_T_ego @ frame.lidar.ego_T_lidar
    return points @ map_T_lidar[:3, :3].T + map_T_lidar[:3, 3]


def pixels(camera: nuscenes.Camera, xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(M, 3) points of the map → (M, 2) pixels and (M,) depths, through the written calibration and pose."""
    ego = (xyz - camera.map_T_ego[:3, 3]) @ camera.map_T_ego[:3, :3]
    local = (ego - camera.ego_T_camera[:3, 3]) @ camera.ego_T_camera[:3, :3]
    with np.errstate(divide="ignore", invalid="ignore"):
        uvw = local @ camera.intrinsics.T
        return uvw[:, :2] / uvw[:, 2:], local[:, 2]


def test_the_vehicle_follows_the_ground(written):
    world, frames = written
    for frame in frames:
        for pose in [frame.lidar.map_T_ego, *(camera.map_T_ego for camera in frame.cameras)]:
            xy, up = pose[:2, 3], pose[:3, 2]
            assert pose[2, 3] == pytest.approx(float(world.terrain.height(xy)), abs=1e-6)
            np.testing.assert_allclose(up, world.terrain.normal(xy), atol=1e-6)
    tilt = [np.degrees(np.arccos(frame.lidar.map_T_ego[2, 2])) for frame in frames]
    assert max(tilt) > 0.5


def test_lidar_points_of_the_road_lie_on_the_terrain(written):
    """With a pose that is 1° or 5 cm off, far fewer would."""
    world, frames = written
    near = world.road.buffer(-1.0)
    shapely.prepare(near)
    for frame in frames:
        points = points_in_map(frame)
        points = points[shapely.contains_xy(near, points[:, :2])]
        height = points[:, 2] - world.terrain.height(points[:, :2])
        assert len(points) > 300
        on_road = height < 0.6  # the others are on cars, people and signals
        assert np.median(np.abs(height[on_road])) < 0.02
        assert (np.abs(height[on_road]) < 0.06).mean() > 0.9


def test_stripes_of_crossings_are_bright_where_the_poses_put_them(written):
    """Landmarks of the map, projected into the images, show what is there: paint, and asphalt between."""
    world, frames = written
    stripes = [m.polygon for m in world.markings if m.kind == "crossing"]
    middles = np.array([s.centroid.coords[0] for s in stripes])
    rings = [shapely.get_coordinates(s) for s in stripes]
    across = np.array([(r[-2] - r[0]) / np.hypot(*(r[-2] - r[0])) for r in rings])
    gaps = middles + 0.6 * across
    between = ~shapely.contains_xy(shapely.union_all(stripes).buffer(0.05), gaps)
    brighter = []
    for frame in frames:
        for camera in frame.cameras:
            close = between & (np.linalg.norm(middles - camera.map_T_ego[:2, 3], axis=1) < 13)
            if not close.any():
                continue
            image = cv2.imread(str(camera.path), cv2.IMREAD_GRAYSCALE).astype(np.float64)
            values = []
            for xy in (middles[close], gaps[close]):
                uv, depth = pixels(camera, np.column_stack([xy, world.terrain.height(xy) + 0.02]))
                inside = (
                    (depth > 3) & (uv > 2).all(1) & (uv < np.array([camera.width, camera.height]) - 3).all(1)
                )
                column, row = np.where(inside[:, None], uv, 0).astype(int).T
                values.append(np.where(inside, image[row, column], np.nan))
            difference = values[0] - values[1]
            brighter += difference[np.isfinite(difference)].tolist()
    assert len(brighter) > 30
    assert (np.array(brighter) > 8).mean() > 0.8
