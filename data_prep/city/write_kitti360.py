"""The KITTI-360 layout of the built-in city: drives of one LiDAR and the left perspective camera, with poses.

What KITTI-360 has and this does not write: the right perspective camera and the fisheyes (the calibration of
all is there, because the official loader wants it), and labels. The images are smaller than the real ones,
and `perspective.txt` says so. As published, some frames have no pose, the first among them, and a scan is no
snapshot: its points are where the LiDAR saw them from as it turned and drove.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from data_prep.city.drives import Log
from data_prep.city.loops import LoopDrive, count_loops
from data_prep.city.recording import Instant, Layout, map_poses, timestamps
from data_prep.city.sensors import Mount, Rig, RigPlan, yaw_matrix
from data_prep.city.world import World, location_rng
from data_prep.city.write_kitti import BEAMS, PARKING, sequence_of, velodyne_bytes
from placerec_jax.ops import rigid

# The ego frame lies on the ground below the LiDAR. The camera looks down and a little to the left.
RIG = RigPlan(
    reference_size=(1408, 376),
    cameras={"image_00": Mount(552.554, (682.049, 238.770), (0.804, 0.30, 1.553), 2.2, 0.0, -5.3)},
    lidar_position=(0.0, 0.0, 1.73),
    ego_height=0.0,
    beams=BEAMS,
    lidar_yaw=0.0,
)
# The frame of the poses: x forward, y right, z down.
_EGO_T_IMU = np.array(
    [[1.0, 0.0, 0.0, -0.771], [0.0, -1.0, 0.0, 0.304], [0.0, 0.0, -1.0, 0.903], [0.0, 0.0, 0.0, 1.0]]
)
# Rotation vectors (radians) from the recorded to the rectified perspective cameras, about the real ones.
RECTIFICATIONS = ((0.003247, -0.000101, 0.007141), (0.003247, 0.000459, -0.002550))
BASELINE = 0.594  # m from the left to the right perspective camera
# Recorded fisheye cameras: yaw in degrees and place in the ego frame.
_FISHEYES = {"image_02": (90.0, (0.30, 0.55, 1.60)), "image_03": (-90.0, (0.30, -0.55, 1.60))}
_FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # ego axes from camera axes

DRIVES = {"train": (2, 3, 7), "val": (10, 18), "test": (0, 4, 5, 6, 9)}
DATE = "2013-05-28"  # of all drives
POSELESS_RUNS = (4, 14)  # frames without a pose, one after another
POSELESS_EVERY = (60, 140)  # frames from one such run to the next


class Numbers:
    """Gives the drives of each district their names, beyond KITTI-360's own with the numbers after them."""

    def __init__(self) -> None:
        own = {number for numbers in DRIVES.values() for number in numbers}
        self._further = count(max(own) + 1)
        self._left: dict[str, Iterator[int]] = {key: iter(numbers) for key, numbers in DRIVES.items()}

    def __call__(self, district: str) -> str:
        number = next(self._left[district], None)
        number = next(self._further) if number is None else number
        return f"2013_05_28_drive_{number:04d}_sync"


def _image_file(log: Log, channel: str, instant: Instant) -> str:
    return f"data_2d_raw/{sequence_of(log)}/{channel}/data_rect/{instant.frame:010d}.png"


def _write_sweep(root: Path, log: Log, rig: Rig, instant: Instant, points: np.ndarray) -> None:
    path = root / f"data_3d_raw/{sequence_of(log)}/velodyne_points/data/{instant.frame:010d}.bin"
    path.write_bytes(velodyne_bytes(points))


LAYOUT = Layout(
    RIG,
    _image_file,
    _write_sweep,
    sizes="kitti360",
    one_calibration=True,
    finds_boxes=False,
    turns=True,
    parking=PARKING,
)


def make_folders(root: Path, drives: Sequence[LoopDrive]) -> None:
    """Create the folders that `record_scene` and the writers put files in."""
    (root / "calibration").mkdir(parents=True)
    for drive in drives:
        (root / "data_poses" / drive.sequence).mkdir(parents=True)
        (root / "data_3d_raw" / drive.sequence / "velodyne_points" / "data").mkdir(parents=True)
        for camera in RIG.cameras:
            (root / "data_2d_raw" / drive.sequence / camera / "data_rect").mkdir(parents=True)


def write_calibration(root: Path, rig: Rig) -> None:
    """The calibration of all drives."""
    folder = root / "calibration"
    camera = rig.cameras[0]
    ego_T_rect = [camera.ego_T_camera, camera.ego_T_camera.copy()]
    ego_T_rect[1][:3, 3] += BASELINE * camera.ego_T_camera[:3, 0]
    ego_T_camera = {}
    perspective = []
    for number, vector in enumerate(RECTIFICATIONS):
        rect_T_recorded = np.eye(4)
        rect_T_recorded[:3, :3] = Rotation.from_rotvec(vector).as_matrix()
        ego_T_camera[f"image_{number:02d}"] = ego_T_rect[number] @ rect_T_recorded
        last = camera.intrinsics @ [[-BASELINE * number], [0.0], [0.0]]
        perspective += [
            f"S_rect_{number:02d}: {camera.size[0]:f} {camera.size[1]:f}",
            f"R_rect_{number:02d}: {_numbers(rect_T_recorded[:3, :3])}",
            f"P_rect_{number:02d}: {_numbers(np.concatenate([camera.intrinsics, last], axis=1))}",
        ]
    (folder / "perspective.txt").write_text("\n".join(perspective) + "\n")
    for name, (yaw, place) in _FISHEYES.items():
        ego_T_camera[name] = np.eye(4)
        ego_T_camera[name][:3, :3] = yaw_matrix(np.radians(yaw)) @ _FORWARD
        ego_T_camera[name][:3, 3] = place
    imu_T_ego = rigid.rigid_inverse(_EGO_T_IMU)
    lines = [f"{name}: {_numbers((imu_T_ego @ pose)[:3])}\n" for name, pose in ego_T_camera.items()]
    (folder / "calib_cam_to_pose.txt").write_text("".join(lines))
    lidar_T_camera = rigid.rigid_inverse(rig.ego_T_lidar) @ ego_T_camera["image_00"]
    (folder / "calib_cam_to_velo.txt").write_text(_numbers(lidar_T_camera[:3]) + "\n")


def write_drive(root: Path, world: World, drive: LoopDrive, rig: Rig, seed: int) -> dict[str, int]:
    """The times and the poses of one drive; returns its number of frames with a pose and of loops."""
    times = np.concatenate([timestamps(drive, scene, rig, seed) for scene in drive.scenes])
    sensors = (f"data_3d_raw/{drive.sequence}/velodyne_points", f"data_2d_raw/{drive.sequence}/image_00")
    for column, folder in enumerate(sensors):
        content = "".join(f"{_clock(time)}\n" for time in times[:, column])
        (root / folder / "timestamps.txt").write_text(content)
    posed = _frames_with_pose(len(times), location_rng(seed, drive.location, 9, drive.number))
    map_T_ego = map_poses(world, drive, times[posed, 0], RIG)
    folder = root / "data_poses" / drive.sequence
    map_T_rect = map_T_ego @ rig.cameras[0].ego_T_camera
    imu = [f"{k} {_numbers(pose[:3])}\n" for k, pose in zip(posed, map_T_ego @ _EGO_T_IMU, strict=True)]
    rectified = [f"{k} {_numbers(pose)}\n" for k, pose in zip(posed, map_T_rect, strict=True)]
    (folder / "poses.txt").write_text("".join(imu))
    (folder / "cam0_to_world.txt").write_text("".join(rectified))
    return count_loops(map_T_ego @ rig.ego_T_lidar)


def _frames_with_pose(frames: int, rng: np.random.Generator) -> np.ndarray:
    """(M,) increasing numbers of those frames that have a pose: never the first."""
    posed = np.ones(frames, bool)
    posed[0] = False
    first = int(rng.integers(*POSELESS_EVERY))
    while first < frames:
        length = int(rng.integers(*POSELESS_RUNS))
        posed[first : first + length] = False
        first += length + int(rng.integers(*POSELESS_EVERY))
    return np.flatnonzero(posed)


def _clock(time: int) -> str:
    """µs since 1970 → date and time as in the dataset's timestamps.txt."""
    return str(np.datetime64(int(time) * 1000, "ns")).replace("T", " ")


def _numbers(matrix: np.ndarray) -> str:
    """All entries, row by row."""
    return " ".join(f"{value:.10f}" for value in matrix.ravel())
