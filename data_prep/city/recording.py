"""What the vehicle records: times and poses of all sensors, images, point clouds, and boxes of what is about.

Every camera and the LiDAR see those who move where they are at the sensor's own time; boxes are given at the
keyframe's time, which is the LiDAR's, as in nuScenes.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from data_prep.city.actors import STANDING_SPEED, Actor, plan_actors
from data_prep.city.classes import Label, instance_id
from data_prep.city.drives import Log, Scene
from data_prep.city.furniture import IN_GUTTER, Car, Parking, add_cars, park_cars
from data_prep.city.lenses import Mei
from data_prep.city.light import Light, draw_light, in_season
from data_prep.city.living import Stage, View
from data_prep.city.mesh import Mesh, MeshBuilder, merge, near
from data_prep.city.sensors import (
    LIDAR_RANGE,
    NUSCENES_RIG,
    Camera,
    Rig,
    RigPlan,
    camera_rays,
    lidar_directions,
    make_rig,
    scan,
)
from data_prep.city.shading import Shader, develop
from data_prep.city.sizes import SIZE_TABLES, CitySize
from data_prep.city.surroundings import Surroundings, survey
from data_prep.city.world import World, build_world, location_rng

VIEW = 260.0  # m around a drive: what stands farther away is not rendered
ANNOTATION_RANGE = 50.0  # m
POST_GAP = 2.9  # m between the middle of a car on the sidewalk and a pole or tree there
JPEG_QUALITY = 92
_IMAGE_OPTIONS = {
    ".jpg": [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY],
    ".png": [cv2.IMWRITE_PNG_COMPRESSION, 3],
}
RAYS_AT_ONCE = 2**17  # so that the arrays of shading stay in the cache, and large images in memory


class Box(NamedTuple):
    """Something with a box as it is at one keyframe."""

    instance: int  # of classes.py, unique within the log
    kind: str  # car, truck, bus, adult or child
    state: str  # parked, moving or standing
    size: tuple[float, float, float]  # length, width, height
    map_T_body: np.ndarray  # (4, 4): x forward, z up, origin on the ground below the middle
    lidar_points: int
    visibility: float  # share of it that can be seen from the LiDAR


@dataclass(frozen=True)
class Instruments:
    """Everything of one log that is the same in all of its keyframes."""

    rig: Rig
    light: Light
    cars: list[Car]
    actors: list[Actor]


class Instant(NamedTuple):
    """When something was recorded."""

    frame: int  # number of the keyframe within its log
    time: int  # µs since 1970


@dataclass(frozen=True)
class Layout:
    """How one format records. It goes to other processes: its functions must be those of a module."""

    rig: RigPlan
    image_file: Callable[[Log, str, Instant], str]  # log, camera, when → path below the root
    write_sweep: Callable[[Path, Log, Rig, Instant, np.ndarray], None]  # below the root, (M, 5) LiDAR frame
    sizes: str = "keyframes"  # which of SIZE_TABLES its towns have
    one_calibration: bool = False  # for all drives; otherwise each date has its own
    finds_boxes: bool = True
    parking: Parking = IN_GUTTER
    turns: bool = False
    """Whether the LiDAR turns once a frame, to the right, looking ahead at its timestamp, so that the car's
    motion is in its sweeps; otherwise they are snapshots."""

    def size(self, name: str) -> CitySize:
        """The size of its towns and recordings that `--size` names."""
        return SIZE_TABLES[self.sizes][name]


def file_name(log: Log, channel: str, timestamp: int) -> str:
    """Where a sensor's file of one keyframe lies below the nuScenes root."""
    ending = "pcd.bin" if channel == "LIDAR_TOP" else "jpg"
    return f"samples/{channel}/{log_file(log)}__{channel}__{timestamp}.{ending}"


def _image_file(log: Log, channel: str, instant: Instant) -> str:
    return file_name(log, channel, instant.time)


def _write_sweep(root: Path, log: Log, rig: Rig, instant: Instant, points: np.ndarray) -> None:
    points.tofile(root / file_name(log, "LIDAR_TOP", instant.time))


NUSCENES = Layout(NUSCENES_RIG, _image_file, _write_sweep)


def log_rig(log: Log, size_name: str, seed: int, layout: Layout = NUSCENES) -> Rig:
    """The calibration of one date, or of all where the format has one for all."""
    place, number = ("everywhere", 0) if layout.one_calibration else (log.location, log.number)
    rng = location_rng(seed, place, 2, number)
    size = layout.size(size_name)
    return make_rig(layout.rig.image_size(size.image_size[0]), rng, layout.rig, size.fisheye_side)


def log_light(log: Log, seed: int, cameras: int = 6) -> Light:
    """The light, the weather and the season of one drive."""
    rng = location_rng(seed, log.location, 3, log.number)
    return draw_light(log.location, log.date, log.start / 1e6, rng, cameras)


def instruments(world: World, log: Log, size_name: str, seed: int, layout: Layout = NUSCENES) -> Instruments:
    """The calibration, the light, the traffic and the parked cars of one date."""
    actors = plan_actors(world, log, location_rng(seed, log.location, 7, log.number))
    path = log.trajectory.pose(np.arange(-0.5, log.seconds, 0.1))[:, :2]
    paths = [(path, 2.05)] + [_berth(actor) for actor in actors if actor.kind in ("car", "truck", "bus")]
    if layout.parking.on_sidewalk:
        posts = [thing.xy for thing in (*world.furniture.poles, *world.furniture.trees)]
        paths += [(np.array([xy, np.add(xy, 0.01)]), POST_GAP) for xy in posts]
    rng = location_rng(seed, log.location, 4, log.number)
    parked = park_cars(world.graph, world.crossings, paths, rng, layout.parking)
    rig = log_rig(log, size_name, seed, layout)
    return Instruments(rig, log_light(log, seed, len(rig.cameras)), parked, actors)


def _berth(vehicle: Actor) -> tuple[np.ndarray, float]:
    """A vehicle's path (n, 2), as far as its bumpers get, and the metres from it within which nobody parks.

    Those are half a parked car, half the vehicle, a hand's breadth, and what a long vehicle sweeps in a bend
    of 25 m.
    """
    length, width, _ = vehicle.size
    ends = np.stack([np.cos(vehicle.yaw[[0, -1]]), np.sin(vehicle.yaw[[0, -1]])], 1) * (length / 2 + 1.5)
    path = np.concatenate([vehicle.xy[:1] - ends[:1], vehicle.xy, vehicle.xy[-1:] + ends[1:]])
    return path, 1.15 + width / 2 + (length / 2) ** 2 / (2 * 25.0)


def timestamps(log: Log, scene: Scene, rig: Rig, seed: int) -> np.ndarray:
    """(keyframes, 1 + cameras) int64 µs: the LiDAR's and each camera's time, none of them the same."""
    rng = location_rng(seed, log.location, 5, log.number, scene.first)
    keyframe = scene.first + np.arange(scene.keyframes)
    lidar = (
        log.start
        + (keyframe * log.frame_seconds * 1e6).astype(np.int64)
        + rng.integers(-900, 900, len(keyframe))
    )
    delays = np.array([camera.delay for camera in rig.cameras]) * 1e6
    cameras = lidar[:, None] - (delays + rng.uniform(300, 1500, (len(keyframe), len(delays)))).astype(
        np.int64
    )
    return np.concatenate([lidar[:, None], cameras], axis=1)


def map_poses(world: World, log: Log, times: np.ndarray, plan: RigPlan) -> np.ndarray:
    """(...) int64 µs → (..., 4, 4) map_T_ego, the ego frame as high above the ground as `plan` has it."""
    lift = np.eye(4)
    lift[2, 3] = plan.ego_height
    return world.terrain.frame(ego_poses(log, times)) @ lift


def ego_poses(log: Log, times: np.ndarray) -> np.ndarray:
    """(...) int64 µs → (..., 3) x, y, yaw of the vehicle in the map frame."""
    return log.trajectory.pose((times - log.start) / 1e6)


def log_file(log: Log) -> str:
    """The name of a log."""
    return f"city-{log.location}-{log.date}-drive{log.number:03d}"


def scene_mesh(world: World, log: Log, scene: Scene, cars: list[Car]) -> Mesh:
    """The town around one scene, with the cars that are parked there on that date, in no season."""
    lower, upper = scene_extent(log, scene)
    town = near(world.mesh, lower, upper)
    here = {k: c for k, c in enumerate(cars) if np.all(lower <= c.xy) and np.all(np.array(c.xy) <= upper)}
    if not here:
        return town
    builder = MeshBuilder(world.centre)
    add_cars(builder, here, world.terrain)
    return merge(town, builder.build())


def scene_extent(log: Log, scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """The corners (2,) of the box around one scene that is rendered, map frame."""
    times = (scene.first + np.arange(scene.keyframes)) * log.frame_seconds
    path = log.trajectory.pose(times)[:, :2]
    return path.min(0) - VIEW, path.max(0) + VIEW


def scene_stage(world: World, log: Log, scene: Scene, own: Instruments) -> Stage:
    """The town around one scene and those who move in it."""
    town = in_season(scene_mesh(world, log, scene, own.cars), own.light)
    return Stage(town, own.actors, len(own.cars), world.terrain, own.light.lamps > 0, own.light.wet > 0)


def scene_surroundings(world: World, log: Log, scene: Scene) -> Surroundings:
    """The ground's height and the lamps' light around one scene."""
    lower, upper = scene_extent(log, scene)
    return survey(world.terrain, world.furniture.poles, lower, upper, world.centre)


@lru_cache(maxsize=1)
def _world(location: str, sizes: str, size_name: str, seed: int) -> World:
    return build_world(location, SIZE_TABLES[sizes][size_name], seed)


@dataclass(frozen=True)
class _Drive:
    """What the instruments of a log depend on; the log and the layout themselves cannot be hashed."""

    location: str
    number: int
    size_name: str
    seed: int
    cameras: tuple[str, ...]
    log: Log = field(compare=False)
    layout: Layout = field(compare=False)


@lru_cache(maxsize=1)
def _instruments(drive: _Drive) -> Instruments:
    """As `instruments`; the scenes of one log mostly come to a process one after another."""
    world = _world(drive.location, drive.layout.sizes, drive.size_name, drive.seed)
    return instruments(world, drive.log, drive.size_name, drive.seed, drive.layout)


def record_scene(
    root: Path, log: Log, scene: Scene, size_name: str, seed: int, layout: Layout = NUSCENES
) -> list[list[Box]]:
    """Render one scene and write its images and point clouds below `root`.

    Returns the boxes of each keyframe, none where the format has none. Depends on nothing but its arguments.
    """
    world = _world(log.location, layout.sizes, size_name, seed)
    own = _instruments(
        _Drive(log.location, log.number, size_name, seed, tuple(layout.rig.cameras), log, layout)
    )
    rng = location_rng(seed, log.location, 6, log.number, scene.first)
    times = timestamps(log, scene, own.rig, seed)
    stage = scene_stage(world, log, scene, own)
    surroundings = scene_surroundings(world, log, scene)
    angles = pixel_angles(own.rig)
    shaders = {angle: Shader(own.light, angle, surroundings) for angle in set(angles)}
    rays = [camera.rays() for camera in own.rig.cameras]
    directions, rings = lidar_directions(layout.size(size_name).lidar_azimuths, layout.rig.beams)
    boxes = []
    for frame, keyframe in enumerate(times, scene.first):
        poses = map_poses(world, log, keyframe, layout.rig)
        seconds = (keyframe - log.start) / 1e6
        for index, camera in enumerate(own.rig.cameras):
            pose, time = poses[index + 1], float(seconds[index + 1])
            colour = photograph(stage, shaders[angles[index]], camera, rays[index], pose, time)
            image = develop(colour, float(own.light.exposure[index]), own.light.noise, rng)
            image[~camera.seen.reshape(image.shape[:2])] = 0  # no noise where there is no light
            path = root / layout.image_file(log, camera.channel, Instant(frame, keyframe[index + 1]))
            if not cv2.imwrite(str(path), image[..., ::-1], _IMAGE_OPTIONS[path.suffix]):
                raise OSError(f"{path}: the image could not be written; is the disk full?")
        map_T_lidar = poses[0] @ own.rig.ego_T_lidar
        view = stage.at(float(seconds[0]), map_T_lidar[:3, 3])
        rays_from = map_T_lidar
        if layout.turns:
            early = np.arctan2(directions[:, 1], directions[:, 0]) / (2 * np.pi) * log.frame_seconds
            moving = map_poses(world, log, keyframe[0] - (early * 1e6).astype(np.int64), layout.rig)
            rays_from = moving @ own.rig.ego_T_lidar
        points, _, instance = scan(view, rays_from, directions, rings, rng)
        layout.write_sweep(root, log, own.rig, Instant(frame, keyframe[0]), points)
        if layout.finds_boxes:
            boxes.append(find_boxes(stage, view, own.cars, float(seconds[0]), map_T_lidar, instance))
    return boxes


def photograph(
    stage: Stage, shader: Shader, camera: Camera, rays: np.ndarray, map_T_ego: np.ndarray, time: float
) -> np.ndarray:
    """(height, width, 3) float32 linear RGB of one exposure, at a time (s) from the log's start.

    `rays` are the camera's; pixels without one are black.
    """
    origins, directions = camera_rays(camera, map_T_ego, rays, stage.mesh.centre)
    view = camera_view(stage, camera, rays, map_T_ego, time)
    beams = stage.beams(time, map_T_ego) if shader.light.lamps > 0 else ()
    pieces = [slice(first, first + RAYS_AT_ONCE) for first in range(0, len(rays), RAYS_AT_ONCE)]
    colour = [
        shader.shade(view, origins[p], directions[p], view.cast(origins[p], directions[p]), beams)
        for p in pieces
    ]
    width, height = camera.size
    image = np.zeros((height * width, 3), np.float32)
    image[camera.seen] = np.concatenate(colour)
    return image.reshape(height, width, 3)


def pixel_angles(rig: Rig) -> list[float]:
    """Radians of a pixel of each camera, by which its texture fades.

    Cameras without a fisheye count as the one that looks ahead, so that texture is alike where they meet.
    """
    ahead = rig.cameras[min(1, len(rig.cameras) - 1)].pixel_angle
    return [camera.pixel_angle if isinstance(camera.lens, Mei) else ahead for camera in rig.cameras]


def camera_view(stage: Stage, camera: Camera, rays: np.ndarray, map_T_ego: np.ndarray, time: float) -> View:
    """The stage at the time of an exposure, with those who move where the camera looks."""
    map_T_camera = map_T_ego @ camera.ego_T_camera
    half = float(np.arccos(np.clip((rays @ camera.ego_T_camera[:3, 2]).min(), -1, 1))) + 0.05
    return stage.at(time, map_T_camera[:3, 3], map_T_camera[:3, 2], half)


# Where rays are sent to find out how much of something is seen: shares of its length and width, at 3/4 of
# its height.
_ALONG, _ACROSS = np.meshgrid([-0.4, -0.2, 0.0, 0.2, 0.4], [-0.2, 0.0, 0.2], indexing="ij")
_TARGETS = np.stack([_ALONG.ravel(), _ACROSS.ravel(), np.full(15, 0.75), np.ones(15)], 1)


def find_boxes(
    stage: Stage, view: View, cars: list[Car], time: float, map_T_lidar: np.ndarray, instance: np.ndarray
) -> list[Box]:
    """Everything with a box that is near and can be seen; `instance` (M,) are those of the sweep's points."""
    origin = map_T_lidar[:3, 3]
    reach = min(ANNOTATION_RANGE, LIDAR_RANGE)
    found: list[tuple[int, str, str, tuple[float, float, float], np.ndarray]] = []
    parked = np.array([car.xy for car in cars]).reshape(-1, 2)
    for number in np.flatnonzero(np.hypot(*(parked - origin[:2]).T) < reach):
        car = cars[number]
        frame = stage.terrain.frame(np.array([*car.xy, car.yaw]))
        found.append((int(instance_id(Label.CAR, int(number))), "car", "parked", car.size, frame))
    for mover in stage.movers:
        actor = mover.actor
        if actor.exists(time) and np.hypot(*(actor.pose(time)[:2] - origin[:2])) < reach:
            state = "moving" if actor.speed(time) > STANDING_SPEED else "standing"
            frame = stage.stands(mover, time)
            found.append((int(instance_id(mover.label, mover.number)), actor.kind, state, actor.size, frame))
    if not found:
        return []
    targets = [(_TARGETS * [*size, 1.0]) @ frame.T for _, _, _, size, frame in found]
    offset = np.concatenate(targets)[:, :3] - origin
    directions = (offset / np.linalg.norm(offset, axis=1, keepdims=True)).astype(np.float32)
    start = (origin - np.append(stage.mesh.centre, 0)).astype(np.float32)
    hits = view.cast(np.broadcast_to(start, directions.shape).copy(), directions)
    met = np.where(hits.triangle >= 0, stage.mesh.instance[hits.triangle], -1).reshape(len(found), -1)
    boxes = []
    for (own, kind, state, size, frame), row in zip(found, met, strict=True):
        points, share = int((instance == own).sum()), float((row == own).mean())
        if points > 0 or share > 0:
            boxes.append(Box(own, kind, state, size, frame, points, share))
    return boxes
