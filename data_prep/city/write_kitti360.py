"""The KITTI-360 layout of the built-in city: drives of one LiDAR, two perspective cameras and two fisheyes.

What KITTI-360 has and this does not write: the second LiDAR, and labels. The images are smaller than the
real ones, and the calibration says so. The fisheyes do not see the car that carries them. As published, some
frames have no pose, the first among them, and a scan is no snapshot: its points are where the LiDAR saw them
from as it turned and drove.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from data_prep.city.drives import Log
from data_prep.city.lenses import Mei
from data_prep.city.loops import LoopDrive, count_loops
from data_prep.city.recording import Instant, Layout, map_poses, timestamps
from data_prep.city.sensors import Camera, Mount, Rig, RightOf, RigPlan
from data_prep.city.world import World, location_rng
from data_prep.city.write_kitti import BEAMS, PARKING, sequence_of, velodyne_bytes
from placerec_jax.ops import rigid

_RIM = 98.5  # degrees from a fisheye's axis, where the real images turn black
# The ego frame lies on the ground below the LiDAR. The camera looks down and a little to the left.
RIG = RigPlan(
    reference_size=(1408, 376),
    cameras={
        "image_00": Mount(552.554, (682.049, 238.770), (0.804, 0.30, 1.553), 2.2, 0.0, -5.3),
        "image_01": RightOf("image_00", 0.594),
        "image_02": Mount(
            (1336.322, 1335.788),
            (717.443, 706.265),
            (0.30, 0.55, 1.60),
            89.3,
            0.0,
            -1.2,
            Mei(2.213405, 0.016798, 1.654877, _RIM),
        ),
        "image_03": Mount(
            (1485.439, 1484.948),
            (699.383, 698.645),
            (0.30, -0.55, 1.60),
            -90.8,
            0.0,
            -0.6,
            Mei(2.553514, 0.049370, 4.506845, _RIM),
        ),
    },
    lidar_position=(0.0, 0.0, 1.73),
    ego_height=0.0,
    beams=BEAMS,
    lidar_yaw=0.0,
    fisheye_side=1400,
)
PERSPECTIVE, FISHEYES = ("image_00", "image_01"), ("image_02", "image_03")
_IMAGE_FOLDERS = {**dict.fromkeys(PERSPECTIVE, "data_rect"), **dict.fromkeys(FISHEYES, "data_rgb")}
# The frame of the poses: x forward, y right, z down.
_EGO_T_IMU = np.array(
    [[1.0, 0.0, 0.0, -0.771], [0.0, -1.0, 0.0, 0.304], [0.0, 0.0, -1.0, 0.903], [0.0, 0.0, 0.0, 1.0]]
)
# Rotation vectors (radians) from the recorded to the rectified perspective cameras, about the real ones.
RECTIFICATIONS = ((0.003247, -0.000101, 0.007141), (0.003247, 0.000459, -0.002550))

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
    return f"data_2d_raw/{sequence_of(log)}/{channel}/{_IMAGE_FOLDERS[channel]}/{instant.frame:010d}.png"


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
        for camera, folder in _IMAGE_FOLDERS.items():
            (root / "data_2d_raw" / drive.sequence / camera / folder).mkdir(parents=True)


def write_calibration(root: Path, rig: Rig) -> None:
    """The calibration of all drives."""
    folder = root / "calibration"
    ego_T_camera = {camera.channel: camera.ego_T_camera for camera in rig.cameras}
    left = rig.camera("image_00")
    perspective = []
    for number, (channel, vector) in enumerate(zip(PERSPECTIVE, RECTIFICATIONS, strict=True)):
        camera = rig.camera(channel)
        rect_T_recorded = np.eye(4)
        rect_T_recorded[:3, :3] = Rotation.from_rotvec(vector).as_matrix()
        ego_T_camera[channel] = camera.ego_T_camera @ rect_T_recorded
        camera_T_left = rigid.rigid_inverse(camera.ego_T_camera) @ left.ego_T_camera
        perspective += [
            f"S_rect_{number:02d}: {camera.size[0]:f} {camera.size[1]:f}",
            f"R_rect_{number:02d}: {_numbers(rect_T_recorded[:3, :3])}",
            f"P_rect_{number:02d}: {_numbers(camera.intrinsics @ camera_T_left[:3])}",
        ]
    (folder / "perspective.txt").write_text("\n".join(perspective) + "\n")
    for channel in FISHEYES:
        (folder / f"{channel}.yaml").write_text(_mei_yaml(rig.camera(channel)))
    imu_T_ego = rigid.rigid_inverse(_EGO_T_IMU)
    lines = [f"{name}: {_numbers((imu_T_ego @ pose)[:3])}\n" for name, pose in ego_T_camera.items()]
    (folder / "calib_cam_to_pose.txt").write_text("".join(lines))
    lidar_T_camera = rigid.rigid_inverse(rig.ego_T_lidar) @ ego_T_camera["image_00"]
    (folder / "calib_cam_to_velo.txt").write_text(_numbers(lidar_T_camera[:3]) + "\n")


def _mei_yaml(camera: Camera) -> str:
    """The calibration of a fisheye as OpenCV writes it: its first line is no YAML of today's.

    The middle of the first pixel is at 0 in the file, where it is at 0.5 in the city.
    """
    if not isinstance(camera.lens, Mei):
        raise TypeError(f"{camera.channel} has no fisheye")
    (gamma1, _, u0), (_, gamma2, v0), _ = camera.intrinsics
    groups = {
        "mirror_parameters": {"xi": camera.lens.xi},
        "distortion_parameters": {"k1": camera.lens.k1, "k2": camera.lens.k2, "p1": 0.0, "p2": 0.0},
        "projection_parameters": {"gamma1": gamma1, "gamma2": gamma2, "u0": u0 - 0.5, "v0": v0 - 0.5},
    }
    lines = ["%YAML:1.0", "---", "model_type: MEI", f"camera_name: {camera.channel}"]
    lines += [f"image_width: {camera.size[0]}", f"image_height: {camera.size[1]}"]
    for group, values in groups.items():
        lines += [f"{group}:", *(f"   {name}: {value:.16e}" for name, value in values.items())]
    return "\n".join(lines) + "\n"


def write_drive(root: Path, world: World, drive: LoopDrive, rig: Rig, seed: int) -> dict[str, int]:
    """The times and the poses of one drive; returns its number of frames with a pose and of loops."""
    times = np.concatenate([timestamps(drive, scene, rig, seed) for scene in drive.scenes])
    images = [f"data_2d_raw/{drive.sequence}/{camera.channel}" for camera in rig.cameras]
    for column, folder in enumerate([f"data_3d_raw/{drive.sequence}/velodyne_points", *images]):
        content = "".join(f"{_clock(time)}\n" for time in times[:, column])
        (root / folder / "timestamps.txt").write_text(content)
    posed = _frames_with_pose(len(times), location_rng(seed, drive.location, 9, drive.number))
    map_T_ego = map_poses(world, drive, times[posed, 0], RIG)
    folder = root / "data_poses" / drive.sequence
    map_T_rect = map_T_ego @ rig.camera("image_00").ego_T_camera
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
