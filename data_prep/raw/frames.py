"""What every reader of a driving dataset yields: one frame a keyframe, free of the dataset's own records."""

import dataclasses
from pathlib import Path

import numpy as np

from placerec_jax.ops import rigid


@dataclasses.dataclass(frozen=True, slots=True)
class Camera:
    """One keyframe image. Camera frame: z forward, x right, y down; pixels of the stored image."""

    channel: str
    path: Path
    width: int
    height: int
    timestamp: int  # µs
    intrinsics: np.ndarray  # (3, 3) float64
    ego_T_camera: np.ndarray  # (4, 4) float64
    map_T_ego: np.ndarray  # (4, 4) float64 at the image's own time


@dataclasses.dataclass(frozen=True, slots=True)
class Lidar:
    """The LiDAR sweep of one keyframe."""

    path: Path
    timestamp: int  # µs
    ego_T_lidar: np.ndarray  # (4, 4) float64
    map_T_ego: np.ndarray  # (4, 4) float64 at the sweep's own time


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """One keyframe: cameras in an order that is the same for all frames of a dataset, and the LiDAR."""

    token: str
    scene: str
    location: str
    timestamp: int  # µs
    cameras: tuple[Camera, ...]
    lidar: Lidar
    ego_height: float = 0.0  # m of the ego frame's origin above the ground

    @property
    def map_T_ego(self) -> np.ndarray:  # noqa: N802 (frames name transforms)
        """(4, 4) float64: the pose at the LiDAR's time, in the map frame of the location."""
        return self.lidar.map_T_ego

    @property
    def map_pose_ego(self) -> np.ndarray:
        """(3,) float64 (x, y, yaw) of the ego frame at the LiDAR's time, in the map frame of the location."""
        pose = self.lidar.map_T_ego
        return np.array([pose[0, 3], pose[1, 3], rigid.yaw_of(pose[:3, :3])])
