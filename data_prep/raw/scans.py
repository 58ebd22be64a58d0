"""Plain LiDAR scans with their poses, in order: what the readers of KITTI, KITTI-360 and BEV folders yield.

The LiDAR frame is x forward, y left, z up; the camera frame x right, y down, z forward. A sequence has its
own map frame: poses of two sequences cannot be compared.
"""

import dataclasses
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class ScanImage:
    """The camera image that belongs to a scan; `intrinsics` are those of the stored (rectified) image.

    A point of the LiDAR is at pixel (u, v) where s·(u, v, 1) = intrinsics · (camera_T_lidar · point).
    """

    path: Path
    width: int
    height: int
    intrinsics: np.ndarray  # (3, 3) float64
    camera_T_lidar: np.ndarray  # (4, 4) float64


@dataclasses.dataclass(frozen=True, slots=True)
class Scan:
    """One sweep of the LiDAR, or its bird's-eye-view picture, and where it was taken."""

    sequence: str
    frame_id: int  # the number in the file's name; a sequence may leave numbers out
    time: float  # s; nan where the dataset has none
    path: Path | None  # None: a pose without a scan, which is enough to count loops
    map_T_lidar: np.ndarray  # (4, 4) float64
    image: ScanImage | None = None
    # (4, 4) float64, current_T_previous: how the LiDAR moved during one turn, where points are as they were
    # measured on the way. None: the dataset has compensated for it already.
    sweep_motion: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class ScanSequence:
    """The scans of one drive, ascending by `frame_id`, and which file their poses are from."""

    name: str
    scans: tuple[Scan, ...]
    pose_source: str
    scans_without_pose: int = 0  # that the dataset has and `scans` leaves out
    poses_without_scan: int = 0  # left out as well, unless poses alone were asked for
