"""The KITTI-360 reader: scans, poses of the LiDAR, and a perspective camera's images, without a devkit.

With S = 2013_05_28_drive_0000_sync:

    calibration/                                      see data_prep/raw/kitti360_cameras.py
    data_poses/S/poses.txt                            frame, then world ← IMU, 12 numbers
    data_poses/S/cam0_to_world.txt                    frame, then world ← rectified camera 0, 12 or 16 numbers
    data_3d_raw/S/velodyne_points/data/0000000000.bin float32 x, y, z, reflectance
    data_3d_raw/S/velodyne_points/timestamps.txt      line i: date and time of frame i; may be absent
    data_2d_raw/S/image_00/data_rect/0000000000.png   rectified, 1408 x 376; may be absent

Where the car stood or crept there are scans and no poses, and drive 0002 has poses before its first scan:
files belong together by the frame's number, and the frames of a sequence are those that have both. Scans are
as the turning LiDAR measured them: see `compensate_motion`.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from data_prep.errors import InputError
from data_prep.raw import kitti360_cameras
from data_prep.raw.number_files import read_poses_with_ids
from data_prep.raw.scan_files import images_of, list_numbered
from data_prep.raw.scans import Scan, ScanImage, ScanSequence
from placerec_jax.ops import rigid

POSE_SOURCES = {"imu": "poses.txt", "cam0_to_world": "cam0_to_world.txt"}
CAMERAS = tuple(kitti360_cameras.PERSPECTIVES)

_FOLDER = "2013_05_28_drive_{name}_sync"
_POSES_ARCHIVE = "Unpack data_poses.zip of KITTI-360."
_SCANS_REMEDY = "Download the raw Velodyne scans"


def read_sequences(
    root: Path,
    names: Sequence[str] | None = None,
    *,
    pose_source: str = "imu",
    camera: str | None = "image_00",
    require_scans: bool = True,
) -> tuple[ScanSequence, ...]:
    """The sequences `names` ("0009") of a root, or all that have poses and scans.

    Images are taken where the folder of `camera` is there; None leaves them out. With `require_scans=False`
    every pose is a frame, with or without its scan, and images are left out. Raises InputError for what is
    missing or damaged. Does not look into scans and images: see `data_prep.raw.scan_files.check_files`.
    """
    if pose_source not in POSE_SOURCES:
        raise InputError(
            f"pose_source: expected one of {', '.join(POSE_SOURCES)} for KITTI-360, found {pose_source!r}."
        )
    if camera is not None and camera not in CAMERAS:
        raise InputError(f"camera: expected one of {', '.join(CAMERAS)} for KITTI-360, found {camera!r}.")
    if not (root / "data_poses").is_dir():
        raise InputError(
            f"{root}: expected data_poses, data_3d_raw and calibration of KITTI-360, found "
            f"{'no data_poses' if root.is_dir() else 'no such folder'}. Give the folder that holds them."
        )
    if names is None:
        names = _find_sequences(root, pose_source, require_scans)
    return tuple(_read_sequence(root, name, pose_source, camera, require_scans) for name in names)


def compensate_motion(points: np.ndarray, motion: np.ndarray) -> np.ndarray:
    """(N, 3 or more) points as measured, (4, 4) current_T_previous → the points as at the scan's time.

    The LiDAR turns clockwise, seen from above, and faces forward at the scan's time: a point at azimuth φ was
    measured φ/2π turns earlier, so that it is moved by that fraction of the motion: rotation vector and
    translation each in proportion, as KITTI-360's own accumulation of scans does it. Other columns stay.
    """
    xyz = points[:, :3].astype(np.float64)
    fraction = np.arctan2(xyz[:, 1], xyz[:, 0])[:, None] / (2 * np.pi)
    turn = Rotation.from_rotvec(fraction * Rotation.from_matrix(motion[:3, :3]).as_rotvec())
    moved = turn.apply(xyz) + fraction * motion[:3, 3]
    return np.concatenate([moved.astype(points.dtype), points[:, 3:]], axis=1)


def sweep_motions(frame_ids: np.ndarray, map_T_lidar: np.ndarray) -> np.ndarray:
    """(N,) ids, (N, 4, 4) poses → (N, 4, 4) current_T_previous, the motion during one turn.

    Between poses that are several frames apart the motion is shared out evenly; the first pose takes that of
    the second.
    """
    if len(frame_ids) < 2:
        return np.tile(np.eye(4), (len(frame_ids), 1, 1))
    motion = rigid.rigid_inverse(map_T_lidar[1:]) @ map_T_lidar[:-1]
    frames = np.diff(frame_ids)[:, None]
    turn = Rotation.from_rotvec(Rotation.from_matrix(motion[:, :3, :3]).as_rotvec() / frames)
    shared = rigid.rigid_matrix(turn.as_matrix(), motion[:, :3, 3] / frames)
    return np.concatenate([shared[:1], shared])


def _find_sequences(root: Path, pose_source: str, require_scans: bool) -> list[str]:
    """All that have poses and, where required, a folder of scans."""
    pattern = _FOLDER.format(name="????")
    paths = sorted((root / "data_poses").glob(f"{pattern}/{POSE_SOURCES[pose_source]}"))
    posed = [path.parent.name.split("_")[-2] for path in paths]
    if not posed:
        raise InputError(
            f"{root / 'data_poses' / pattern / POSE_SOURCES[pose_source]}: expected the poses of at "
            f"least one sequence, found none. {_POSES_ARCHIVE}"
        )
    names = [name for name in posed if _scan_folder(root, name).is_dir() or not require_scans]
    if not names:
        raise InputError(
            f"{_scan_folder(root, '????')}: expected scans of at least one sequence with poses "
            f"({', '.join(posed)}), found none. {_SCANS_REMEDY}."
        )
    return names


def _scan_folder(root: Path, name: str) -> Path:
    return root / "data_3d_raw" / _FOLDER.format(name=name) / "velodyne_points" / "data"


def _read_sequence(
    root: Path, name: str, pose_source: str, camera: str | None, require_scans: bool
) -> ScanSequence:
    pose_path = root / "data_poses" / _FOLDER.format(name=name) / POSE_SOURCES[pose_source]
    if not pose_path.is_file():
        raise InputError(
            f"{pose_path}: expected the poses ({pose_source}) of sequence {name}, found no such file. "
            f"Sequences are named by four digits. {_POSES_ARCHIVE}"
        )
    pose_ids, poses = read_poses_with_ids(pose_path, _POSES_ARCHIVE)
    map_T_lidar = poses @ _LIDAR_IN[pose_source](root)
    motions = sweep_motions(pose_ids, map_T_lidar)
    folder = _scan_folder(root, name)
    files = list_numbered(folder, ".bin")
    if require_scans and not files:
        raise InputError(
            f"{folder}: expected scans 0000000000.bin and on, found none. {_SCANS_REMEDY}, or leave this "
            "sequence out."
        )
    rows = [row for row, i in enumerate(pose_ids.tolist()) if i in files or not require_scans]
    scanned = sum(i in files for i in pose_ids.tolist())
    # The car stands for at most a third of a published drive.
    if 2 * scanned < len(files):
        raise InputError(
            f"{pose_path}: expected poses of most scans, found those of {scanned} of {len(files)} "
            f"(poses of frames {pose_ids[0]} to {pose_ids[-1]}, scans {min(files)} to {max(files)}): "
            f"poses fewer than scans. {_POSES_ARCHIVE}"
        )
    frame_ids = [int(pose_ids[row]) for row in rows]
    times = _read_times(folder.parent / "timestamps.txt", frame_ids)
    images: dict[int, ScanImage] = {}
    image_folder = root / "data_2d_raw" / _FOLDER.format(name=name) / (camera or "") / "data_rect"
    if camera is not None and require_scans and image_folder.is_dir():
        seen_by = kitti360_cameras.read_perspective(root, camera)
        images = images_of(image_folder, frame_ids, seen_by.intrinsics, seen_by.camera_T_lidar, seen_by.size)
    scans = tuple(
        Scan(name, i, time, files.get(i), map_T_lidar[row], images.get(i), motions[row])
        for row, i, time in zip(rows, frame_ids, times, strict=True)
    )
    return ScanSequence(
        name,
        scans,
        f"{pose_path.relative_to(root)} ({pose_source}) · calibration/calib_cam_to_velo.txt",
        scans_without_pose=len(files) - scanned,
        poses_without_scan=len(pose_ids) - scanned,
    )


# What stands right of world ← body in the pose of the LiDAR, by the body that the poses are of.
_LIDAR_IN = {
    "imu": kitti360_cameras.read_imu_T_lidar,
    "cam0_to_world": kitti360_cameras.read_rectified0_T_lidar,
}


def _read_times(path: Path, frame_ids: Sequence[int]) -> list[float]:
    """Seconds since frame 0; nan for lines without a time, and all nan without a line for every frame."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    if len(lines) <= frame_ids[-1]:
        return [math.nan] * len(frame_ids)
    start, *stamps = (_time_of(lines[i]) for i in (0, *frame_ids))
    return [float((stamp - start) / np.timedelta64(1, "s")) for stamp in stamps]


def _time_of(line: str) -> np.datetime64:
    """Of a line such as 2013-05-28 08:46:02.904519999; not-a-time where there is none."""
    try:
        return np.datetime64(line.strip().replace(" ", "T"), "ns")
    except ValueError:
        return np.datetime64("NaT", "ns")
