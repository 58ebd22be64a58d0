"""Roots of KITTI odometry and KITTI-360 written by hand, small enough to break in every way.

The geometry is that of one drive: a LiDAR moves through a world whose map is NOT its first frame, and every
file is made from that by the datasets' own definitions, with `numpy.linalg.inv` and nothing of the readers.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

# A camera that looks forward: its x is the LiDAR's right, its y down; a little off in every direction.
MOUNT = Rotation.from_euler("xyz", [0.4, -0.7, 0.3], degrees=True).as_matrix() @ np.array(
    [[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]
)
CAMERA0_T_LIDAR = np.vstack([np.column_stack([MOUNT, [0.01, -0.06, -0.28]]), [0, 0, 0, 1]])
LIDAR_T_CAMERA0 = np.linalg.inv(CAMERA0_T_LIDAR)
# 1.3 degrees: far more than KITTI's rectification, so that leaving it out is not small.
RECTIFY = Rotation.from_euler("xyz", [0.8, 0.9, -0.5], degrees=True).as_matrix()
IMU_T_CAMERA0 = np.vstack(
    [
        np.column_stack(
            [
                Rotation.from_euler("xyz", [1.0, 2.0, -1.0], degrees=True).as_matrix()
                @ [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
                [1.57, 0.0, -0.65],
            ]
        ),
        [0, 0, 0, 1],
    ]
)
CAMERA0_T_CAMERA1 = np.vstack(
    [np.column_stack([Rotation.from_rotvec([0, 0.01, 0]).as_matrix(), [0.6, 0.0, 0.0]]), [0, 0, 0, 1]]
)
K = np.array([[40.0, 0.0, 31.5], [0.0, 42.0, 11.5], [0.0, 0.0, 1.0]])
# Fisheyes to the left and the right, each a little off, about 185 degrees across.
FISHEYE_SIZE = (90, 88)
FISHEYE_COLOURS = {"image_02": (200, 40, 30), "image_03": (20, 60, 210)}
FISHEYES = {
    "image_02": {
        "xi": 2.2134,
        "k1": 0.0168,
        "k2": 1.65,
        "p1": 4.2e-4,
        "p2": 4.25e-4,
        "gamma1": 82.5,
        "gamma2": 81.0,
        "u0": 45.5,
        "v0": 44.25,
    },
    "image_03": {
        "xi": 2.5535,
        "k1": 0.0494,
        "k2": 4.51,
        "p1": 1.35e-3,
        "p2": -7e-4,
        "gamma1": 89.0,
        "gamma2": 88.0,
        "u0": 44.0,
        "v0": 43.5,
    },
}
_LIDAR_T_FISHEYE = {
    name: np.vstack(
        [
            np.column_stack(
                [
                    Rotation.from_euler("zyx", [90 * side + 3, 1.5, -2.0 * side], degrees=True).as_matrix()
                    @ [[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]],
                    [0.1, 0.4 * side, -0.1],
                ]
            ),
            [0, 0, 0, 1],
        ]
    )
    for name, side in (("image_02", 1), ("image_03", -1))
}
IMU_T_FISHEYE = {name: IMU_T_CAMERA0 @ CAMERA0_T_LIDAR @ pose for name, pose in _LIDAR_T_FISHEYE.items()}
P2 = np.column_stack([K, [4.5, -0.1, 0.003]])
IMAGE_SIZE = (64, 24)


def drive(frames: int) -> np.ndarray:
    """(frames, 4, 4) map_T_lidar: forward and upward on a left bend."""
    i = np.arange(frames, dtype=float)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, :3, :3] = Rotation.from_euler(
        "zyx", np.stack([30 + 7 * i, -1 + 0.2 * i, 0.5 * i], 1), degrees=True
    ).as_matrix()
    poses[:, :3, 3] = np.stack([100 + 1.1 * i, -20 + 0.4 * i, 3 + 0.05 * i], 1)
    return poses


def scan(frame: int, points: int = 20) -> np.ndarray:
    """(points, 4) float32, another one for each frame."""
    rng = np.random.default_rng(frame)
    return np.concatenate([rng.uniform(-30, 30, (points, 3)), rng.random((points, 1))], 1).astype(np.float32)


def numbers(*values: np.ndarray | float) -> str:
    """One row of text with all digits."""
    return " ".join(repr(float(x)) for value in values for x in np.asarray(value).ravel())


def write_image(
    path: Path, size: tuple[int, int] = IMAGE_SIZE, rgb: tuple[int, int, int] = (90, 90, 90)
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((size[1], size[0], 3), rgb[::-1], np.uint8))


def write_fisheye(calibration: Path, name: str, values: Mapping[str, float], size: tuple[int, int]) -> None:
    """OpenCV YAML as published: its first line is no YAML, and one colon has no space after it."""
    lines = ["%YAML:1.0", "---", "model_type: MEI", f"camera_name: {name}"]
    lines += [f"image_width:{size[0]}", f"image_height: {size[1]}"]
    for section, keys in (
        ("mirror_parameters", ("xi",)),
        ("distortion_parameters", ("k1", "k2", "p1", "p2")),
        ("projection_parameters", ("gamma1", "gamma2", "u0", "v0")),
    ):
        lines += [f"{section}:", *(f"   {key}: {values[key]!r}" for key in keys)]
    (calibration / f"{name}.yaml").write_text("\n".join(lines) + "\n")


@dataclasses.dataclass
class KittiTree:
    """A KITTI odometry root; `map_T_lidar` is the truth that its first sequence was made from."""

    root: Path
    map_T_lidar: np.ndarray

    @property
    def dataset(self) -> Path:
        return self.root / "dataset"

    def sequence(self, name: str = "03") -> Path:
        return self.dataset / "sequences" / name


def write_kitti(root: Path, frames: int = 6, name: str = "03", images: bool = True) -> KittiTree:
    """Sequence `name` with all of its scans. Poses are relative to the first frame, as KITTI has them."""
    tree = KittiTree(root, drive(frames))
    folder = tree.sequence(name)
    (folder / "velodyne").mkdir(parents=True)
    (tree.dataset / "poses").mkdir(exist_ok=True)
    cameras = tree.map_T_lidar @ LIDAR_T_CAMERA0
    relative = np.linalg.inv(cameras[0]) @ cameras
    rows = "\n".join(numbers(pose[:3]) for pose in relative)
    (tree.dataset / "poses" / f"{name}.txt").write_text(rows + "\n")
    (folder / "poses.txt").write_text(rows + "\n")
    (folder / "times.txt").write_text("\n".join(f"{0.1037 * i:.6e}" for i in range(frames)) + "\n")
    plain = np.column_stack([K, np.zeros(3)])
    lines = [f"P0: {numbers(plain)}", f"P1: {numbers(plain)}", f"P2: {numbers(P2)}", f"P3: {numbers(P2)}"]
    (folder / "calib.txt").write_text("\n".join([*lines, f"Tr: {numbers(CAMERA0_T_LIDAR[:3])}"]) + "\n")
    for frame in range(frames):
        scan(frame).tofile(folder / "velodyne" / f"{frame:06d}.bin")
        if images:
            write_image(folder / "image_2" / f"{frame:06d}.png")
    return tree


@dataclasses.dataclass
class Kitti360Tree:
    """A KITTI-360 root of one drive; `map_T_lidar` of `frame_ids` is the truth that it was made from."""

    root: Path
    frame_ids: list[int]
    map_T_lidar: np.ndarray
    number: int = 3

    @property
    def folder(self) -> str:
        return f"2013_05_28_drive_{self.number:04d}_sync"

    @property
    def calibration(self) -> Path:
        return self.root / "calibration"

    @property
    def poses(self) -> Path:
        return self.root / "data_poses" / self.folder / "poses.txt"

    @property
    def cam0_to_world(self) -> Path:
        return self.root / "data_poses" / self.folder / "cam0_to_world.txt"

    @property
    def scans(self) -> Path:
        return self.root / "data_3d_raw" / self.folder / "velodyne_points" / "data"

    @property
    def images(self) -> Path:
        return self.root / "data_2d_raw" / self.folder / "image_00" / "data_rect"

    def fisheyes(self, name: str) -> Path:
        return self.root / "data_2d_raw" / self.folder / name / "data_rgb"

    def write_cam0_to_world(self, width: int) -> None:
        """As the dataset's authors say: pose · (IMU ← camera 0) · R_rect⁻¹, with 12 or 16 numbers."""
        rectify = np.eye(4)
        rectify[:3, :3] = RECTIFY
        world_T_imu = self.map_T_lidar @ LIDAR_T_CAMERA0 @ np.linalg.inv(IMU_T_CAMERA0)
        world_T_rectified = world_T_imu @ IMU_T_CAMERA0 @ np.linalg.inv(rectify)
        rows = (
            f"{i} {numbers(p.ravel()[:width])}"
            for i, p in zip(self.frame_ids, world_T_rectified, strict=True)
        )
        self.cam0_to_world.write_text("\n".join(rows) + "\n")


def write_kitti360(
    root: Path,
    frame_ids: tuple[int, ...] = (1, 2, 3, 6, 7, 12),
    scan_ids: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 7),
    images: bool = True,
    fisheyes: bool = False,
) -> Kitti360Tree:
    """One drive with poses of `frame_ids` and scans of `scan_ids`: neither has all of the other's frames.

    With `fisheyes`, their calibration and their images of every scan, plain in one colour for each camera.
    """
    frames = np.array(frame_ids)
    tree = Kitti360Tree(root, list(frame_ids), drive(int(frames.max()) + 1)[frames])
    for path in (tree.calibration, tree.poses.parent, tree.scans):
        path.mkdir(parents=True)
    (tree.calibration / "calib_cam_to_velo.txt").write_text(numbers(LIDAR_T_CAMERA0[:3]) + "\n")
    imu_T_camera1 = IMU_T_CAMERA0 @ CAMERA0_T_CAMERA1
    (tree.calibration / "calib_cam_to_pose.txt").write_text(
        f"image_00: {numbers(IMU_T_CAMERA0[:3])}\nimage_01: {numbers(imu_T_camera1[:3])}\n"
        + "".join(f"{name}: {numbers(pose[:3])}\n" for name, pose in IMU_T_FISHEYE.items())
    )
    rectify1 = Rotation.from_rotvec([0, 0.01, 0]).as_matrix() @ RECTIFY
    lines = ["calib_time: 28-May-2013 12:00:00", "corner_dist: 1.0e-01"]
    for k, rotation in enumerate([RECTIFY, rectify1]):
        projection = np.column_stack([K, [-24.0 * k, 0, 0]])
        lines += [f"S_rect_0{k}: {float(IMAGE_SIZE[0]):e} {float(IMAGE_SIZE[1]):e}"]
        lines += [f"R_rect_0{k}: {numbers(rotation)}", f"P_rect_0{k}: {numbers(projection)}"]
    (tree.calibration / "perspective.txt").write_text("\n".join(lines) + "\n")
    if fisheyes:
        for name, values in FISHEYES.items():
            write_fisheye(tree.calibration, name, values, FISHEYE_SIZE)
            for frame in scan_ids:
                write_image(tree.fisheyes(name) / f"{frame:010d}.png", FISHEYE_SIZE, FISHEYE_COLOURS[name])
    world_T_imu = tree.map_T_lidar @ LIDAR_T_CAMERA0 @ np.linalg.inv(IMU_T_CAMERA0)
    rows = (f"{i} {numbers(pose[:3])}" for i, pose in zip(frame_ids, world_T_imu, strict=True))
    tree.poses.write_text("\n".join(rows) + "\n")
    tree.write_cam0_to_world(16)
    for frame in scan_ids:
        scan(frame).tofile(tree.scans / f"{frame:010d}.bin")
        if images:
            write_image(tree.images / f"{frame:010d}.png")
    (tree.scans.parent / "timestamps.txt").write_text(
        "".join(f"2013-05-28 08:59:{59 + 0.1 * i:012.9f}\n" for i in range(10))
    )
    return tree
