"""What the vehicle records: times and poses of all sensors, images, point clouds, boxes of parked cars."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data_prep.city.classes import INSTANCES_PER_CLASS, Label, instance_id, number_of
from data_prep.city.drives import KEYFRAME_SECONDS, Log, Scene
from data_prep.city.furniture import Car, add_cars, park_cars
from data_prep.city.mesh import Mesh, MeshBuilder, merge, near
from data_prep.city.sensors import (
    LIDAR_RANGE,
    NUSCENES_RIG,
    RayCaster,
    Rig,
    RigPlan,
    camera_rays,
    ego_to_map,
    lidar_directions,
    make_rig,
    scan,
)
from data_prep.city.shading import Light, Shader, develop, draw_light
from data_prep.city.sizes import SIZES
from data_prep.city.world import World, build_world, location_rng

VIEW = 260.0  # m around a drive: what stands farther away is not rendered
ANNOTATION_RANGE = 50.0  # m
JPEG_QUALITY = 92
RAYS_AT_ONCE = 2**17  # so that the arrays of shading stay in the cache, and large images in memory


class Box(NamedTuple):
    """A parked car as seen from one keyframe."""

    car: int  # number in the log's list of parked cars
    lidar_points: int
    visibility: float  # share of the car that can be seen from the roof


@dataclass(frozen=True)
class Instruments:
    """Everything of one log that is the same in all of its keyframes."""

    rig: Rig
    light: Light
    cars: list[Car]


@dataclass(frozen=True)
class Layout:
    """How one format records. It goes to other processes: its functions must be those of a module."""

    rig: RigPlan
    image_file: Callable[[Log, str, int], str]  # log, camera, µs → path below the root
    write_sweep: Callable[[Path, Log, Rig, int, np.ndarray], None]  # root, log, rig, µs, (M, 5) LiDAR frame


def file_name(log: Log, channel: str, timestamp: int) -> str:
    """Where a sensor's file of one keyframe lies below the nuScenes root."""
    ending = "pcd.bin" if channel == "LIDAR_TOP" else "jpg"
    return f"samples/{channel}/{log_file(log)}__{channel}__{timestamp}.{ending}"


def _write_sweep(root: Path, log: Log, rig: Rig, timestamp: int, points: np.ndarray) -> None:
    points.tofile(root / file_name(log, "LIDAR_TOP", timestamp))


NUSCENES = Layout(NUSCENES_RIG, file_name, _write_sweep)


def instruments(world: World, log: Log, size_name: str, seed: int, layout: Layout = NUSCENES) -> Instruments:
    """The calibration, the light and the parked cars of one date."""
    keyframes = sum(scene.keyframes for scene in log.scenes)
    path = log.trajectory.pose(np.arange(-0.5, keyframes * KEYFRAME_SECONDS, 0.1))[:, :2]
    return Instruments(
        make_rig(
            layout.rig.image_size(SIZES[size_name].image_size[0]),
            location_rng(seed, log.location, 2, log.number),
            layout.rig,
        ),
        draw_light(location_rng(seed, log.location, 3, log.number), len(layout.rig.cameras)),
        park_cars(world.graph, world.crossings, path, location_rng(seed, log.location, 4, log.number)),
    )


def timestamps(log: Log, scene: Scene, rig: Rig, seed: int) -> np.ndarray:
    """(keyframes, 1 + cameras) int64 µs: the LiDAR's and each camera's time, none of them the same."""
    rng = location_rng(seed, log.location, 5, log.number, scene.first)
    keyframe = scene.first + np.arange(scene.keyframes)
    lidar = (
        log.start
        + (keyframe * KEYFRAME_SECONDS * 1e6).astype(np.int64)
        + rng.integers(-900, 900, len(keyframe))
    )
    delays = np.array([camera.delay for camera in rig.cameras]) * 1e6
    cameras = lidar[:, None] - (delays + rng.uniform(300, 1500, (len(keyframe), len(delays)))).astype(
        np.int64
    )
    return np.concatenate([lidar[:, None], cameras], axis=1)


def map_poses(log: Log, times: np.ndarray, plan: RigPlan) -> np.ndarray:
    """(N,) int64 µs → (N, 4, 4) map_T_ego, the ego frame as high above the ground as `plan` has it."""
    lift = np.eye(4)
    lift[2, 3] = plan.ego_height
    return np.stack([ego_to_map(pose) @ lift for pose in ego_poses(log, times)])


def ego_poses(log: Log, times: np.ndarray) -> np.ndarray:
    """(...) int64 µs → (..., 3) x, y, yaw of the vehicle in the map frame."""
    return log.trajectory.pose((times - log.start) / 1e6)


def log_file(log: Log) -> str:
    """The name of a log."""
    return f"city-{log.location}-{log.date}-drive{log.number:03d}"


def scene_mesh(world: World, log: Log, scene: Scene, cars: list[Car]) -> Mesh:
    """The town around one scene, with the cars that are parked there on that date."""
    times = (scene.first + np.arange(scene.keyframes)) * KEYFRAME_SECONDS
    path = log.trajectory.pose(times)[:, :2]
    builder = MeshBuilder(world.centre)
    add_cars(builder, cars, world.terrain)
    everything = merge(world.mesh, builder.build()) if cars else world.mesh
    return near(everything, path.min(0) - VIEW, path.max(0) + VIEW)


@lru_cache(maxsize=1)
def _world(location: str, size_name: str, seed: int) -> World:
    return build_world(location, SIZES[size_name], seed)


def record_scene(
    root: Path, log: Log, scene: Scene, size_name: str, seed: int, layout: Layout = NUSCENES
) -> tuple[list[Car], list[list[Box]]]:
    """Render one scene and write its images and point clouds below `root`.

    Returns the log's parked cars, and the boxes of each keyframe. Depends on nothing but its arguments.
    """
    size = SIZES[size_name]
    world = _world(log.location, size_name, seed)
    own = instruments(world, log, size_name, seed, layout)
    rng = location_rng(seed, log.location, 6, log.number, scene.first)
    times = timestamps(log, scene, own.rig, seed)
    caster = RayCaster(scene_mesh(world, log, scene, own.cars))
    shader = Shader(caster, own.light, 1.0 / own.rig.cameras[1].intrinsics[0, 0])
    rays = [camera.rays() for camera in own.rig.cameras]
    directions, rings = lidar_directions(size.lidar_azimuths)
    width, height = own.rig.cameras[0].size
    boxes = []
    for keyframe in times:
        poses = map_poses(log, keyframe, layout.rig)
        origins, view = camera_rays(own.rig, poses[1:], rays, world.centre)
        pieces = [slice(first, first + RAYS_AT_ONCE) for first in range(0, len(view), RAYS_AT_ONCE)]
        colour = [shader.shade(origins[p], view[p], caster.cast(origins[p], view[p])) for p in pieces]
        colour = np.concatenate(colour).reshape(-1, height, width, 3)
        for index, (camera, timestamp) in enumerate(zip(own.rig.cameras, keyframe[1:], strict=True)):
            image = develop(colour[index], float(own.light.exposure[index]), own.light.noise, rng)
            path = root / layout.image_file(log, camera.channel, timestamp)
            if not cv2.imwrite(str(path), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]):
                raise OSError(f"{path}: the image could not be written; is the disk full?")
        points, _, instance = scan(caster, poses[0] @ own.rig.ego_T_lidar, directions, rings, rng)
        layout.write_sweep(root, log, own.rig, keyframe[0], points)
        boxes.append(_boxes(caster, own.cars, poses[0] @ own.rig.ego_T_lidar, instance))
    return own.cars, boxes


def _boxes(caster: RayCaster, cars: list[Car], map_T_lidar: np.ndarray, instance: np.ndarray) -> list[Box]:
    """The parked cars that are near and can be seen."""
    origin = map_T_lidar[:3, 3]
    if not cars:
        return []
    centres = np.array([(*car.xy, car.size[2] / 2) for car in cars])
    close = np.flatnonzero(
        np.linalg.norm(centres[:, :2] - origin[:2], axis=1) < min(ANNOTATION_RANGE, LIDAR_RANGE)
    )
    if len(close) == 0:
        return []
    # Rays to 15 points inside each car: seen are those that meet this car first.
    spread = np.stack(np.meshgrid([-0.4, -0.2, 0.0, 0.2, 0.4], [-0.2, 0.0, 0.2], indexing="ij"), -1).reshape(
        -1, 2
    )
    targets = []
    for number in close:
        car = cars[number]
        cos, sin = np.cos(car.yaw), np.sin(car.yaw)
        local = spread * car.size[:2]
        xy = np.stack([cos * local[:, 0] - sin * local[:, 1], sin * local[:, 0] + cos * local[:, 1]], 1)
        targets.append(np.append(xy + car.xy, np.full((len(xy), 1), 0.75 * car.size[2]), 1))
    offset = np.concatenate(targets) - origin
    view = (offset / np.linalg.norm(offset, axis=1, keepdims=True)).astype(np.float32)
    start = np.broadcast_to((origin - np.append(caster.mesh.centre, 0)).astype(np.float32), view.shape).copy()
    hits = caster.cast(start, view)
    met = np.where(hits.triangle >= 0, caster.mesh.instance[hits.triangle], -1).reshape(len(close), -1)
    seen = (met == instance_id(Label.CAR, close)[:, None]).mean(1)
    counts = np.bincount(
        number_of(instance[instance // INSTANCES_PER_CLASS == Label.CAR]), minlength=len(cars)
    )
    return [
        Box(int(number), int(counts[number]), float(share))
        for number, share in zip(close, seen, strict=True)
        if share > 0 or counts[number] > 0
    ]
