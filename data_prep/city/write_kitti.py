"""The KITTI odometry layout of the built-in city: sequences of one LiDAR and one colour camera, with poses.

What KITTI has and this does not write: the grey cameras and the right colour camera (`calib.txt` has their
projections, because the official loader wants them). The images are smaller than the real ones, and
`calib.txt` says so. Sequences are numbered such that those on which methods usually train and validate lie in
the districts for it; the marker file names the district of each.
"""

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from data_prep.city.drives import Log
from data_prep.city.furniture import Parking
from data_prep.city.loops import LoopDrive, count_loops
from data_prep.city.recording import Instant, Layout, map_poses, timestamps
from data_prep.city.sensors import Mount, Rig, RigPlan
from data_prep.city.world import World
from placerec_jax.ops import rigid

# The HDL-64E: 32 beams a third of a degree apart above 32 that are half a degree apart.
BEAMS = (*np.linspace(-24.8, -9.0, 32).tolist(), *np.linspace(-8.36, 2.0, 32).tolist())
# The ego frame lies on the ground below the LiDAR.
RIG = RigPlan(
    reference_size=(1242, 375),
    cameras={"image_2": Mount(721.54, (609.56, 172.85), (0.27, 0.06, 1.65), 0.0, 0.0)},
    lidar_position=(0.0, 0.0, 1.73),
    ego_height=0.0,
    beams=BEAMS,
    lidar_yaw=0.0,
)
# m to the right of the left grey camera, whose frame is that of the poses.
BASELINES = {"P0": 0.0, "P1": 0.537, "P2": -0.06, "P3": 0.473}
NUMBERS = {"train": (0, 5, 6, 7, 9), "val": (8,), "test": (1, 2, 3, 4, 10)}
# Half on the sidewalk, as in Karlsruhe's narrow streets: the drives take up all of the carriageway.
PARKING = Parking(ends=8.0, on_sidewalk=1.2)
DATE = None  # every drive has its own
MAX_REFLECTANCE = 0.99
_FULL_INTENSITY = 100.0  # of the city's, that is a reflectance of 1


class Numbers:
    """Gives the sequences of each district their names, beyond KITTI's own with the numbers after them."""

    def __init__(self) -> None:
        own = {number for numbers in NUMBERS.values() for number in numbers}
        self._further = count(max(own) + 1)
        self._left: dict[str, Iterator[int]] = {key: iter(numbers) for key, numbers in NUMBERS.items()}

    def __call__(self, district: str) -> str:
        number = next(self._left[district], None)
        return f"{next(self._further) if number is None else number:02d}"


def _image_file(log: Log, channel: str, instant: Instant) -> str:
    return f"dataset/sequences/{sequence_of(log)}/{channel}/{instant.frame:06d}.png"


def _write_sweep(root: Path, log: Log, rig: Rig, instant: Instant, points: np.ndarray) -> None:
    path = root / f"dataset/sequences/{sequence_of(log)}/velodyne/{instant.frame:06d}.bin"
    path.write_bytes(velodyne_bytes(points))


def sequence_of(log: Log) -> str:
    """The name of the sequence that a drive is."""
    if not isinstance(log, LoopDrive):
        raise TypeError(f"{type(log).__name__} is no drive of a sequence")
    return log.sequence


def velodyne_bytes(points: np.ndarray) -> bytes:
    """(M, 5) x, y, z, intensity, ring → the content of a .bin: little-endian float32 x, y, z, reflectance."""
    reflectance = np.minimum(points[:, 3:4] / _FULL_INTENSITY, MAX_REFLECTANCE)
    return np.concatenate([points[:, :3], reflectance], axis=1).astype("<f4").tobytes()


LAYOUT = Layout(RIG, _image_file, _write_sweep, sizes="kitti", finds_boxes=False, parking=PARKING)


def make_folders(root: Path, drives: Sequence[LoopDrive]) -> None:
    """Create the folders that `record_scene` and `write_drive` put files in."""
    (root / "dataset" / "poses").mkdir(parents=True)
    for drive in drives:
        for name in ("velodyne", *RIG.cameras):
            (root / "dataset" / "sequences" / drive.sequence / name).mkdir(parents=True)


def write_calibration(root: Path, rig: Rig) -> None:
    """Nothing: every sequence has its own, which `write_drive` writes."""


def write_drive(root: Path, world: World, drive: LoopDrive, rig: Rig, seed: int) -> dict[str, int]:
    """The calibration, times and poses of one sequence; returns its number of frames and of loops."""
    folder = root / "dataset" / "sequences" / drive.sequence
    ego_T_cam0 = rig.cameras[0].ego_T_camera @ _translation(BASELINES["P0"] - BASELINES["P2"])
    lines = [
        f"{name}: {_numbers(_projection(rig.cameras[0].intrinsics, right))}"
        for name, right in BASELINES.items()
    ]
    cam0_T_lidar = rigid.rigid_inverse(ego_T_cam0) @ rig.ego_T_lidar
    (folder / "calib.txt").write_text("\n".join([*lines, f"Tr: {_numbers(cam0_T_lidar)}"]) + "\n")
    times = sweep_times(drive, rig, seed)
    map_T_ego = map_poses(world, drive, times, RIG)
    seconds = (times - times[0]) / 1e6
    (folder / "times.txt").write_text("".join(f"{second:.6e}\n" for second in seconds))
    map_T_cam0 = map_T_ego @ ego_T_cam0
    poses = rigid.rigid_inverse(map_T_cam0[0]) @ map_T_cam0
    content = "".join(_numbers(pose) + "\n" for pose in poses)
    (root / "dataset" / "poses" / f"{drive.sequence}.txt").write_text(content)
    return count_loops(map_T_ego @ rig.ego_T_lidar)


def sweep_times(drive: LoopDrive, rig: Rig, seed: int) -> np.ndarray:
    """(frames,) int64 µs of all sweeps of a drive."""
    return np.concatenate([timestamps(drive, scene, rig, seed)[:, 0] for scene in drive.scenes])


def _translation(right: float) -> np.ndarray:
    moved = np.eye(4)
    moved[0, 3] = right
    return moved


def _projection(intrinsics: np.ndarray, right: float) -> np.ndarray:
    """(3, 4) of a rectified camera that sits `right` metres of the left grey one."""
    return np.concatenate([intrinsics, intrinsics @ [[-right], [0.0], [0.0]]], axis=1)


def _numbers(matrix: np.ndarray) -> str:
    """The upper three rows, row by row."""
    return " ".join(f"{value:.12e}" for value in matrix[:3].ravel())
