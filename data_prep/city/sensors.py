"""The vehicle's sensors: cameras and a LiDAR, by default mounted and calibrated like nuScenes'.

Every ray is cast by Embree. Camera frames: z forward, x right, y down. A pixel (column i, row j) covers the
square from (i, j) to (i + 1, j + 1), so that intrinsics scale with the image size; its ray goes through (i
+ 0.5, j + 0.5), as the camera's lens bends it. LiDAR frame: z up; x right and y forward as in nuScenes, or
as the plan of the rig turns it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene

from data_prep.city.lenses import PINHOLE, Lens, Mei
from data_prep.city.mesh import Material, Mesh


class Mount(NamedTuple):
    """Where a camera sits and what it sees, before the small differences between logs."""

    focal: float | tuple[float, float]  # pixels of the plan's reference size: along rows and columns
    centre: tuple[float, float]
    position: tuple[float, float, float]  # in the ego frame
    yaw: float  # degrees, left positive
    delay: float  # seconds of the exposure before the end of the LiDAR's sweep
    pitch: float = 0.0  # degrees, up positive
    lens: Lens = PINHOLE


class RightOf(NamedTuple):
    """A camera that is rectified with an earlier one of the plan: the same, but so far to its right."""

    channel: str
    metres: float


# Order and delays follow the sweep of the LiDAR past the cameras.
CAMERAS: dict[str, Mount] = {
    "CAM_FRONT_LEFT": Mount(1272.6, (826.6, 479.8), (1.52, 0.49, 1.51), 55.0, 0.043),
    "CAM_FRONT": Mount(1266.4, (816.3, 491.5), (1.70, 0.02, 1.51), 0.0, 0.035),
    "CAM_FRONT_RIGHT": Mount(1260.8, (808.0, 495.3), (1.55, -0.49, 1.50), -55.0, 0.027),
    "CAM_BACK_RIGHT": Mount(1259.5, (807.3, 501.2), (1.01, -0.48, 1.56), -110.0, 0.019),
    "CAM_BACK": Mount(809.2, (829.2, 481.8), (0.03, 0.0, 1.58), 180.0, 0.010),
    "CAM_BACK_LEFT": Mount(1256.7, (792.1, 492.8), (1.04, 0.48, 1.59), 110.0, 0.001),
}
NUSCENES_BEAMS = tuple(np.linspace(-30.67, 10.67, 32).tolist())  # degrees of elevation
LIDAR_RANGE = 80.0  # m
LIDAR_NOISE = 0.015  # m, standard deviation of a range
LIDAR_LOSS = 0.03  # share of returns that are lost

# Camera axes in an ego that looks forward.
_OPTICAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])

_REFLECTIVITY = {
    Material.ASPHALT: 12,
    Material.KERB: 30,
    Material.PAVING: 26,
    Material.GRASS: 18,
    Material.GRAVEL: 24,
    Material.WATER: 1,
    Material.MARKING: 75,
    Material.FACADE: 34,
    Material.ROOF: 22,
    Material.PLAIN: 40,
    Material.FOLIAGE: 16,
    Material.LIGHT: 40,
}


@dataclass(frozen=True)
class RigPlan:
    """What the rigs of all logs of one format have in common."""

    reference_size: tuple[int, int]  # pixels: the image size that the intrinsics of `cameras` belong to
    cameras: Mapping[str, Mount | RightOf]
    lidar_position: tuple[float, float, float]  # in the ego frame
    ego_height: float  # m of the ego frame's origin above the ground
    beams: tuple[float, ...] = NUSCENES_BEAMS  # elevation of each of the LiDAR's, in degrees
    lidar_yaw: float = -90.0  # degrees from the ego's x axis to the LiDAR's
    fisheye_side: int = 0  # pixels: side of the square images that the intrinsics of fisheyes belong to

    def image_size(self, width: int) -> tuple[int, int]:
        """Width and height of images that are so wide."""
        return width, round(width * self.reference_size[1] / self.reference_size[0])


NUSCENES_RIG = RigPlan((1600, 900), CAMERAS, (0.94, 0.0, 1.84), 0.0)


@dataclass(frozen=True)
class Camera:
    """One calibrated camera."""

    channel: str
    intrinsics: np.ndarray  # (3, 3), of the stored image
    ego_T_camera: np.ndarray  # (4, 4)
    delay: float  # s before the LiDAR's timestamp
    size: tuple[int, int]  # width, height
    lens: Lens = PINHOLE

    @property
    def pixel_angle(self) -> float:
        """Radians between the rays of two neighbouring pixels in the middle of the image."""
        return self.lens.spread / self.intrinsics[0, 0]

    @cached_property
    def seen(self) -> np.ndarray:
        """(height · width,) bool, row by row: the pixels that light reaches through the lens."""
        return np.hypot(*self._plane().T) <= self.lens.rim

    def rays(self) -> np.ndarray:
        """(N, 3) float32 unit directions in the ego frame of the `seen` pixels, row by row."""
        directions = self.lens.lift(self._plane()[self.seen]) @ self.ego_T_camera[:3, :3].T
        return (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)

    def _plane(self) -> np.ndarray:
        """(height · width, 2) points of the image plane, row by row."""
        width, height = self.size
        u, v = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        pixels = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3)
        return (pixels @ np.linalg.inv(self.intrinsics).T)[:, :2]


@dataclass(frozen=True)
class Rig:
    """All sensors of one log."""

    cameras: list[Camera]
    ego_T_lidar: np.ndarray  # (4, 4)

    def camera(self, channel: str) -> Camera:
        """The camera of that name."""
        return next(camera for camera in self.cameras if camera.channel == channel)


def yaw_matrix(yaw: float) -> np.ndarray:
    """(3, 3) rotation about z."""
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def pitch_matrix(pitch: float) -> np.ndarray:
    """(3, 3) rotation that lifts the x axis by `pitch` radians."""
    cos, sin = np.cos(pitch), np.sin(pitch)
    return np.array([[cos, 0.0, -sin], [0.0, 1.0, 0.0], [sin, 0.0, cos]])


def _small_rotation(rng: np.random.Generator, degrees: float) -> np.ndarray:
    """(3, 3) rotation by small normal angles about all three axes (Rodrigues)."""
    vector = rng.normal(0, np.radians(degrees), 3)
    angle = np.linalg.norm(vector)
    x, y, z = vector / max(angle, 1e-12)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * skew + (1 - np.cos(angle)) * skew @ skew


def make_rig(
    image_size: tuple[int, int], rng: np.random.Generator, plan: RigPlan = NUSCENES_RIG, fisheye_side: int = 0
) -> Rig:
    """The rig of one log: calibration differs a little between logs.

    `image_size` is that of the cameras without fisheyes, whose images are squares of `fisheye_side` pixels.
    """
    cameras: dict[str, Camera] = {}
    for channel, mount in plan.cameras.items():
        if isinstance(mount, RightOf):
            cameras[channel] = _beside(cameras[mount.channel], channel, mount.metres)
        elif isinstance(mount.lens, Mei):
            scale = np.full(2, fisheye_side / plan.fisheye_side)
            cameras[channel] = _mounted(channel, mount, (fisheye_side, fisheye_side), scale, rng)
        else:
            scale = np.array(image_size) / plan.reference_size
            cameras[channel] = _mounted(channel, mount, image_size, scale, rng)
    lidar = np.eye(4)
    lidar[:3, :3] = yaw_matrix(np.radians(plan.lidar_yaw)) @ _small_rotation(rng, 0.2)
    lidar[:3, 3] = np.array(plan.lidar_position) + rng.normal(0, 0.008, 3)
    return Rig(list(cameras.values()), lidar)


def _mounted(
    channel: str, mount: Mount, size: tuple[int, int], scale: np.ndarray, rng: np.random.Generator
) -> Camera:
    """A camera near its mount; `scale` (2,) is from the pixels of the plan to those of the image."""
    focal = (np.array(mount.focal) + rng.normal(0, 4)) * scale
    centre = (np.array(mount.centre) + rng.normal(0, 6, 2)) * scale
    intrinsics = np.array([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]])
    pose = np.eye(4)
    facing = yaw_matrix(np.radians(mount.yaw)) @ pitch_matrix(np.radians(mount.pitch))
    pose[:3, :3] = facing @ _small_rotation(rng, 0.25) @ _OPTICAL
    pose[:3, 3] = np.array(mount.position) + rng.normal(0, 0.008, 3)
    return Camera(channel, intrinsics, pose, mount.delay, size, mount.lens)


def _beside(camera: Camera, channel: str, metres: float) -> Camera:
    """The same camera so many metres to the right."""
    pose = camera.ego_T_camera.copy()
    pose[:3, 3] += metres * pose[:3, 0]
    return replace(camera, channel=channel, ego_T_camera=pose)


class Hits(NamedTuple):
    """The first triangle each ray meets."""

    triangle: np.ndarray  # (N,) int32, -1 for none
    distance: np.ndarray  # (N,) float32 metres


class RayCaster:
    """Embree over one mesh. Make it in the process that uses it: it cannot be sent to another."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self._normals = mesh.normals()
        self._scene = EmbreeScene()
        self._geometry = TriangleMesh(self._scene, np.ascontiguousarray(mesh.triangles))

    def cast(self, origins: np.ndarray, directions: np.ndarray) -> Hits:
        """Rays (N, 3), (N, 3) unit, float32, in the mesh's coordinates."""
        answer = self._scene.run(origins, directions, output=1)
        return Hits(answer["primID"], answer["tfar"])

    def occluded(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """(N,) bool: whether anything lies along each ray."""
        return self._scene.run(origins, directions, query="OCCLUDED") >= 0

    def normals_of(self, triangle: np.ndarray) -> np.ndarray:
        """(N,) triangles → (N, 3) float32 unit normals."""
        return self._normals[triangle]


def camera_rays(
    camera: Camera, map_T_ego: np.ndarray, rays: np.ndarray, centre: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Origins and directions (N, 3) float32 of a camera's `rays` (N, 3), in a mesh's coordinates."""
    origin = (map_T_ego @ camera.ego_T_camera)[:3, 3] - np.append(centre, 0.0)
    origins = np.broadcast_to(origin.astype(np.float32), rays.shape).copy()
    return origins, rays @ map_T_ego[:3, :3].T.astype(np.float32)


def lidar_directions(
    azimuths: int, beams: tuple[float, ...] = NUSCENES_BEAMS
) -> tuple[np.ndarray, np.ndarray]:
    """(beams · azimuths, 3) unit directions in the LiDAR frame and the ring number of each."""
    azimuth = np.arange(azimuths) * (2 * np.pi / azimuths)
    elevation = np.repeat(np.radians(beams), azimuths)
    azimuth = np.tile(azimuth, len(beams))
    directions = np.stack(
        [np.cos(elevation) * np.sin(azimuth), np.cos(elevation) * np.cos(azimuth), np.sin(elevation)], 1
    )
    return directions, np.repeat(np.arange(len(beams)), azimuths)


def scan(
    caster: RayCaster,
    map_T_lidar: np.ndarray,
    directions: np.ndarray,
    rings: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One LiDAR sweep from one pose (4, 4), as if taken at one instant, or from one for each ray (N, 4, 4).

    Returns (M, 5) float32 x, y, z, intensity, ring in the LiDAR frame, and (M,) the semantic class and (M,)
    the instance that each point is on (classes.py).
    """
    mesh = caster.mesh
    origin = (map_T_lidar[..., :3, 3] - np.append(mesh.centre, 0.0)).astype(np.float32)
    if map_T_lidar.ndim == 2:
        rays = (directions @ map_T_lidar[:3, :3].T).astype(np.float32)
    else:
        rays = np.einsum("nij,nj->ni", map_T_lidar[:, :3, :3], directions).astype(np.float32)
    hits = caster.cast(np.broadcast_to(origin, rays.shape).copy(), rays)
    kept = (hits.triangle >= 0) & (hits.distance < LIDAR_RANGE) & (rng.random(len(rays)) > LIDAR_LOSS)
    triangle = hits.triangle[kept]
    distance = hits.distance[kept] + rng.normal(0, LIDAR_NOISE, triangle.shape)
    reflectivity = np.zeros(len(Material))
    for material, value in _REFLECTIVITY.items():
        reflectivity[material] = value
    intensity = reflectivity[mesh.material[triangle]] * rng.uniform(0.7, 1.3, triangle.shape)
    points = directions[kept] * distance[:, None]
    columns = [points, np.clip(np.round(intensity), 0, 255)[:, None], rings[kept][:, None]]
    return np.concatenate(columns, 1).astype(np.float32), mesh.semantic[triangle], mesh.instance[triangle]
