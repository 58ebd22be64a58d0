"""The KITTI odometry reader: scans, poses of the LiDAR, and a camera's images, without a devkit.

    dataset/poses/08.txt                       row i: camera 0 of frame i, in camera 0 of frame 0; 00 to 10
    dataset/sequences/08/calib.txt             P0 … P3 (3×4) and Tr = camera 0 ← LiDAR (3×4)
    dataset/sequences/08/times.txt             row i: seconds; may be absent
    dataset/sequences/08/velodyne/000000.bin   float32 x, y, z, reflectance; the car's motion is taken out
    dataset/sequences/08/image_2/000000.png    may be absent
    dataset/sequences/08/poses.txt             of SemanticKITTI: like poses/08.txt, from their own SLAM

All cameras are rectified, and poses and Tr are of the rectified camera 0. Tr differs from one recording day
to another and is read for each sequence. A frame's number says which row and which files belong together:
scans may be left out, and the frames of a sequence are those whose scans are there.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.errors import InputError
from data_prep.raw.number_files import matrix_of, read_keys, read_poses, read_rows, rigid_matrices
from data_prep.raw.scan_files import check_points, images_of, list_numbered, png_size
from data_prep.raw.scans import Scan, ScanImage, ScanSequence
from placerec_jax.ops import rigid

# Where the poses of a sequence stand, from the folder `dataset`.
POSE_SOURCES = {"odometry": "poses/{name}.txt", "semantickitti": "sequences/{name}/poses.txt"}
CAMERAS = {"image_0": "P0", "image_1": "P1", "image_2": "P2", "image_3": "P3"}  # to the key of calib.txt

_FARTHEST = 10_000.0  # m: no LiDAR sees farther, and other number formats read as float32 do

_CALIB_ARCHIVE = "Unpack data_odometry_calib.zip."
_OBJECT_ARCHIVE = "Unpack data_object_calib.zip."
_POSES_ARCHIVE = {
    "odometry": "Unpack data_odometry_poses.zip, which has those of 00 to 10.",
    "semantickitti": "Unpack data_odometry_labels.zip of SemanticKITTI.",
}


def read_sequences(
    root: Path,
    names: Sequence[str] | None = None,
    *,
    pose_source: str = "odometry",
    camera: str | None = "image_2",
    require_scans: bool = True,
) -> tuple[ScanSequence, ...]:
    """The sequences `names` ("08") of a root, or all that have poses and scans.

    `root` is the folder that holds `dataset`, or `dataset` itself. Images are taken where the folder `camera`
    is there; None leaves them out. With `require_scans=False` every pose is a frame, with or without its
    scan, and images are left out. Raises InputError for what is missing or damaged. Does not look into scans
    and images: see `data_prep.raw.scan_files.check_files`.
    """
    if pose_source not in POSE_SOURCES:
        raise InputError(
            f"pose_source: expected one of {', '.join(POSE_SOURCES)} for KITTI, found {pose_source!r}."
        )
    if camera is not None and camera not in CAMERAS:
        raise InputError(f"camera: expected one of {', '.join(CAMERAS)} for KITTI, found {camera!r}.")
    dataset = _dataset_folder(root)
    if names is None:
        names = _find_sequences(dataset, pose_source, require_scans)
    return tuple(_read_sequence(dataset, name, pose_source, camera, require_scans) for name in names)


def read_points(path: Path) -> np.ndarray:
    """(N, 4) float32 x, y, z (m, LiDAR frame) and reflectance (0 to 1) of a scan.

    Raises InputError for an empty file, one that ends within a point, and numbers that are no coordinates.
    """
    check_points(path)
    points = np.fromfile(path, dtype="<f4").astype(np.float32, copy=False).reshape(-1, 4)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise InputError(
            f"{path}: expected finite numbers, found NaN or infinity in {len(bad)} of {len(points)} points, "
            f"the first being number {bad[0] + 1}. Unpack the scan again, or write it anew without "
            "those points."
        )
    farthest = float(np.abs(points[:, :3]).max())
    if farthest > _FARTHEST:
        raise InputError(
            f"{path}: expected x, y, z in metres as little-endian float32, found a coordinate of "
            f"{farthest:.3g} m: the file is of another format. Write it as float32 x, y, z, reflectance."
        )
    return points


def lidar_poses(camera_poses: np.ndarray, camera0_T_lidar: np.ndarray) -> np.ndarray:
    """(N, 4, 4) poses of camera 0, (4, 4) → (N, 4, 4) map_T_lidar; the map is the LiDAR of frame 0.

    T_w = Tr⁻¹·Pose·Tr: the first factor turns the map from the camera's axes (z forward) to the LiDAR's.
    """
    return rigid.rigid_inverse(camera0_T_lidar) @ camera_poses @ camera0_T_lidar


def read_camera0_T_lidar(path: Path) -> np.ndarray:  # noqa: N802 (frames name transforms)
    """(4, 4) float64 rectified camera 0 ← LiDAR, of a sequence's `calib.txt`."""
    remedy = (
        "Without the transform from the LiDAR to the camera, poses of the LiDAR are not known. The archives "
        "of images come with a calib.txt that lacks it: unpack data_odometry_calib.zip over them."
    )
    tr = matrix_of(read_keys(path, _CALIB_ARCHIVE), "Tr", (3, 4), path, remedy)
    return rigid_matrices(tr.reshape(1, 12), path, _CALIB_ARCHIVE)[0]


def read_camera(path: Path, key: str, remedy: str = _CALIB_ARCHIVE) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) intrinsics and (4, 4) camera_T_camera0 of a projection `key` ("P2"), float64.

    P = K·[I | t] with t = K⁻¹ times its last column: all of it, so that pixels are exactly P's.
    """
    projection = matrix_of(read_keys(path, remedy), key, (3, 4), path, remedy)
    intrinsics = projection[:, :3]
    if not (intrinsics[0, 0] > 0 and intrinsics[1, 1] > 0 and (intrinsics[2] == (0, 0, 1)).all()):
        raise InputError(
            f"{path}: expected {key} with focal lengths above 0 and a last row 0 0 1 t, found "
            f"{projection.tolist()}. {remedy}"
        )
    return intrinsics, rigid.rigid_matrix(np.eye(3), np.linalg.solve(intrinsics, projection[:, 3]))


def read_object_scan(root: Path, frame_id: int, camera: str = "image_2") -> Scan:
    """One frame of the KITTI object benchmark; `root` holds its folders velodyne, calib and image_2.

    Its frames are of no sequence and have no pose: the map is the frame itself.
    """
    name = f"{frame_id:06d}"
    path = root / "calib" / f"{name}.txt"
    values = read_keys(path, _OBJECT_ARCHIVE)
    unrectified = matrix_of(values, "Tr_velo_to_cam", (3, 4), path, _OBJECT_ARCHIVE)
    rectified = matrix_of(values, "R0_rect", (3, 3), path, _OBJECT_ARCHIVE) @ unrectified
    camera0_T_lidar = rigid_matrices(rectified.reshape(1, 12), path, _OBJECT_ARCHIVE)[0]
    intrinsics, camera_T_camera0 = read_camera(path, CAMERAS[camera], _OBJECT_ARCHIVE)
    image = root / camera / f"{name}.png"
    width, height = png_size(image)
    return Scan(
        sequence="object",
        frame_id=frame_id,
        time=float("nan"),
        path=root / "velodyne" / f"{name}.bin",
        map_T_lidar=np.eye(4),
        image=ScanImage(image, width, height, intrinsics, camera_T_camera0 @ camera0_T_lidar),
    )


def _dataset_folder(root: Path) -> Path:
    for folder in (root / "dataset", root):
        if (folder / "sequences").is_dir():
            return folder
    raise InputError(
        f"{root}: expected dataset/sequences and dataset/poses of KITTI odometry, found "
        f"{'no sequences' if root.is_dir() else 'no such folder'}. Give the folder that holds `dataset`."
    )


def _find_sequences(dataset: Path, pose_source: str, require_scans: bool) -> list[str]:
    """All that have poses and, where required, a folder of scans."""
    folders = {path.name: path for path in sorted((dataset / "sequences").iterdir()) if path.is_dir()}
    pattern = POSE_SOURCES[pose_source]
    posed = [name for name in folders if (dataset / pattern.format(name=name)).is_file()]
    if not posed:
        raise InputError(
            f"{dataset / pattern.format(name='NN')}: expected poses ({pose_source}) of at least one "
            f"sequence, found those of none of {', '.join(folders) or 'no sequences'}. "
            f"{_POSES_ARCHIVE[pose_source]}"
        )
    names = [name for name in posed if (folders[name] / "velodyne").is_dir() or not require_scans]
    if not names:
        raise InputError(
            f"{dataset / 'sequences' / 'NN' / 'velodyne'}: expected scans of at least one sequence with "
            f"poses ({', '.join(posed)}), found none. Unpack data_odometry_velodyne.zip."
        )
    return names


def _read_sequence(
    dataset: Path, name: str, pose_source: str, camera: str | None, require_scans: bool
) -> ScanSequence:
    folder = dataset / "sequences" / name
    if not folder.is_dir():
        raise InputError(
            f"{folder}: expected sequence {name}, found no such folder. Unpack it, or leave it out."
        )
    camera0_T_lidar = read_camera0_T_lidar(folder / "calib.txt")
    pose_path = dataset / POSE_SOURCES[pose_source].format(name=name)
    map_T_lidar = lidar_poses(read_poses(pose_path, _POSES_ARCHIVE[pose_source]), camera0_T_lidar)
    files = list_numbered(folder / "velodyne", ".bin")
    if require_scans and not files:
        raise InputError(
            f"{folder / 'velodyne'}: expected scans 000000.bin and on, found none. Unpack "
            "data_odometry_velodyne.zip, or leave this sequence out."
        )
    if files and max(files) >= len(map_T_lidar):
        raise InputError(
            f"{pose_path}: expected a pose of every scan, found {len(map_T_lidar)} poses (frames 0 to "
            f"{len(map_T_lidar) - 1}) and the scan {files[max(files)].name}: poses fewer than scans. "
            f"{_POSES_ARCHIVE[pose_source]}"
        )
    frame_ids = list(files) if require_scans else list(range(len(map_T_lidar)))
    times = _read_times(folder / "times.txt", frame_ids[-1] + 1)
    images: dict[int, ScanImage] = {}
    if camera is not None and require_scans and (folder / camera).is_dir():
        intrinsics, camera_T_camera0 = read_camera(folder / "calib.txt", CAMERAS[camera])
        images = images_of(folder / camera, frame_ids, intrinsics, camera_T_camera0 @ camera0_T_lidar)
    return ScanSequence(
        name,
        tuple(Scan(name, i, float(times[i]), files.get(i), map_T_lidar[i], images.get(i)) for i in frame_ids),
        f"{pose_path.relative_to(dataset)} ({pose_source}) · calib.txt Tr",
        poses_without_scan=len(map_T_lidar) - len(files),
    )


def _read_times(path: Path, frames: int) -> np.ndarray:
    """At least (frames,) float64 s; nan where there is no such file."""
    if not path.exists():
        return np.full(frames, np.nan)
    times = read_rows(path, (1,), _CALIB_ARCHIVE)[:, 0]
    if len(times) < frames:
        raise InputError(
            f"{path}: expected the time of every frame, found {len(times)} times and frame {frames - 1}. "
            f"{_CALIB_ARCHIVE}"
        )
    back = np.flatnonzero(np.diff(times) < 0)
    if len(back):
        raise InputError(
            f"{path}: expected ascending times, found {times[back[0] + 1]:g} s in line {back[0] + 2} after "
            f"{times[back[0]]:g} s. {_CALIB_ARCHIVE}"
        )
    return times
