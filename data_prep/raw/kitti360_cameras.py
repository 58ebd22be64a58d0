"""KITTI-360's four cameras: where they are, what they see, and which file holds their image of a frame.

    calibration/perspective.txt        S_rect_0k, R_rect_0k, P_rect_0k of image_00 and image_01, rectified
    calibration/image_02.yaml          the left fisheye, image_03.yaml the right one: OpenCV YAML, model MEI
    calibration/calib_cam_to_pose.txt  image_0k: IMU ← camera k as it was mounted, 12 numbers
    calibration/calib_cam_to_velo.txt  LiDAR ← camera 0 as it was mounted, 12 numbers
    data_2d_raw/S/image_02/data_rgb/0000000000.png

A camera's axes are x right, y down, z along the optical axis. R_rect turns a perspective camera into its
rectified self; fisheyes are not rectified. The model MEI puts a point on the unit sphere about the camera,
sees it from ξ behind the sphere's centre, and distorts that picture radially:

    (X, Y, Z) of length 1 → (x, y) = (X, Y)/(Z + ξ), ρ² = x² + y², s = 1 + k1·ρ² + k2·ρ⁴
    (u, v) = (γ1·s·x + u0, γ2·s·y + v0)

The files have tangential terms p1 and p2 as well, which the dataset's own tools leave out, as we do; pixel
centres are at whole numbers.
"""

import dataclasses
from pathlib import Path

import numpy as np

from data_prep.errors import InputError
from data_prep.raw.number_files import matrix_of, read_keys, read_poses, rigid_matrices
from placerec_jax.ops import rigid

PERSPECTIVES = {"image_00": "00", "image_01": "01"}  # to the keys of perspective.txt
FISHEYES = ("image_02", "image_03")  # looking left, looking right
REMEDY = "Unpack calibration.zip of KITTI-360."


@dataclasses.dataclass(frozen=True, eq=False)
class PerspectiveCamera:
    """A rectified camera: s·(u, v, 1) = intrinsics · (camera_T_lidar · point)."""

    name: str
    size: tuple[int, int]  # (width, height), pixels
    intrinsics: np.ndarray  # (3, 3) float64
    camera_T_lidar: np.ndarray  # (4, 4) float64


@dataclasses.dataclass(frozen=True, eq=False)
class FisheyeCamera:
    """A camera of the model MEI, see the module's docstring; lengths are in units of the unit sphere."""

    name: str
    size: tuple[int, int]  # (width, height), pixels
    xi: float
    k1: float
    k2: float
    gamma1: float  # pixels
    gamma2: float
    u0: float  # pixels
    v0: float
    imu_T_camera: np.ndarray  # (4, 4) float64
    lidar_T_camera: np.ndarray  # (4, 4) float64
    p1: float = 0.0  # read and kept, not used
    p2: float = 0.0


def read_perspective(root: Path, name: str) -> PerspectiveCamera:
    """`name` is image_00 or image_01. InputError for what is missing or damaged."""
    if name not in PERSPECTIVES:
        raise InputError(f"camera: expected one of {', '.join(PERSPECTIVES)}, found {name!r}.")
    path = root / "calibration" / "perspective.txt"
    number = PERSPECTIVES[name]
    values = read_keys(path, REMEDY)
    projection = matrix_of(values, f"P_rect_{number}", (3, 4), path, REMEDY)
    size = matrix_of(values, f"S_rect_{number}", (1, 2), path, REMEDY)[0]
    camera_T_imu = rigid.rigid_inverse(read_imu_T_camera(root, name))
    camera_T_lidar = _rectification(root, name) @ camera_T_imu @ read_imu_T_lidar(root)
    return PerspectiveCamera(name, _pixels(size, f"S_rect_{number}", path), projection[:, :3], camera_T_lidar)


def read_fisheye(root: Path, name: str) -> FisheyeCamera:
    """`name` is image_02 or image_03. InputError for what is missing, damaged or of another model."""
    if name not in FISHEYES:
        raise InputError(f"camera: expected one of the fisheyes {', '.join(FISHEYES)}, found {name!r}.")
    path = root / "calibration" / f"{name}.yaml"
    # Keys are unique in the file, so that its nesting says nothing more. OpenCV's YAML needs no space after a
    # colon, which YAML readers ask for, and starts with a line that is no YAML: %YAML:1.0.
    values = read_keys(path, REMEDY)
    model = values.get("model_type", "MEI").strip()
    if model != "MEI":
        raise InputError(
            f"{path}: expected the camera model MEI after model_type:, found {model!r}. {REMEDY}"
        )
    numbers = {
        key: float(matrix_of(values, key, (1, 1), path, REMEDY)[0, 0])
        for key in (
            "xi",
            "k1",
            "k2",
            "p1",
            "p2",
            "gamma1",
            "gamma2",
            "u0",
            "v0",
            "image_width",
            "image_height",
        )
    }
    width, height = numbers.pop("image_width"), numbers.pop("image_height")
    size = _pixels(np.array([width, height]), "image_width and image_height", path)
    if numbers["xi"] < 0 or min(numbers["gamma1"], numbers["gamma2"]) <= 0:
        raise InputError(
            f"{path}: expected xi of at least 0 and positive gamma1 and gamma2, found {numbers['xi']:g}, "
            f"{numbers['gamma1']:g} and {numbers['gamma2']:g}. {REMEDY}"
        )
    imu_T_camera = read_imu_T_camera(root, name)
    lidar_T_camera = rigid.rigid_inverse(read_imu_T_lidar(root)) @ imu_T_camera
    return FisheyeCamera(name, size, **numbers, imu_T_camera=imu_T_camera, lidar_T_camera=lidar_T_camera)


def fisheye_file(root: Path, sequence: str, camera: str, frame_id: int) -> Path:
    """The image of a fisheye: `sequence` "0003", `camera` "image_02"."""
    folder = f"2013_05_28_drive_{sequence}_sync"
    return root / "data_2d_raw" / folder / camera / "data_rgb" / f"{frame_id:010d}.png"


def project(camera: FisheyeCamera, camera_xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., 3) points or rays in the camera's axes → (..., 2) float64 pixels (u, v), (...) bool valid.

    Valid is what the model maps one to one and into the image; elsewhere the pixel means nothing. The model
    alone knows no edge of the lens: real pictures are black beyond some 185°.
    """
    xyz = np.asarray(camera_xyz, np.float64)
    length = np.linalg.norm(xyz, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        sphere = xyz / length[..., None]
        plane = sphere[..., :2] / (sphere[..., 2] + camera.xi)[..., None]
        square = (plane**2).sum(axis=-1)
        distorted = plane * (1 + camera.k1 * square + camera.k2 * square**2)[..., None]
        pixels = distorted * (camera.gamma1, camera.gamma2) + (camera.u0, camera.v0)
        # Beyond its rim the sphere, seen from outside of it (ξ > 1), shows its far side; seen from within,
        # the plane ends where Z = -ξ.
        rim = -1 / camera.xi if camera.xi > 1 else -camera.xi
        inside = ((pixels >= -0.5) & (pixels < np.array(camera.size) - 0.5)).all(axis=-1)
        valid = inside & (sphere[..., 2] > rim) & (square < _steepest(camera))
    return pixels, valid


def unproject(camera: FisheyeCamera, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(..., 2) pixels (u, v) → (..., 3) float64 unit rays in the camera's axes, (...) bool valid.

    The inverse of `project`. Pixels that no ray reaches are not valid, and their rays mean nothing.
    """
    pixels = np.asarray(pixels, np.float64)
    distorted = (pixels - (camera.u0, camera.v0)) / (camera.gamma1, camera.gamma2)
    target = np.linalg.norm(distorted, axis=-1)
    radius = target.copy()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for _ in range(20):  # Newton's; converged after five for published calibrations
            square = radius**2
            value = radius * (1 + camera.k1 * square + camera.k2 * square**2)
            slope = 1 + 3 * camera.k1 * square + 5 * camera.k2 * square**2
            radius = radius - (value - target) / slope
        square = radius**2
        reached = np.abs(radius * (1 + camera.k1 * square + camera.k2 * square**2) - target) < 1e-9
        plane = distorted * np.where(target > 0, radius / target, 1.0)[..., None]
        under_root = 1 + (1 - camera.xi**2) * square
        factor = (camera.xi + np.sqrt(under_root)) / (1 + square)
    rays = np.concatenate([factor[..., None] * plane, (factor - camera.xi)[..., None]], axis=-1)
    return rays, reached & (radius >= 0) & (square < _steepest(camera)) & (under_root > 0)


def read_imu_T_camera(root: Path, name: str) -> np.ndarray:  # noqa: N802 (frames name transforms)
    """(4, 4) of one of the four cameras, as it was mounted."""
    path = root / "calibration" / "calib_cam_to_pose.txt"
    matrix = matrix_of(read_keys(path, REMEDY), name, (3, 4), path, REMEDY)
    return rigid_matrices(matrix.reshape(1, 12), path, REMEDY)[0]


def read_imu_T_lidar(root: Path) -> np.ndarray:  # noqa: N802
    """(4, 4): T_imu←cam0 · (T_velo←cam0)⁻¹, both of the camera as mounted."""
    return read_imu_T_camera(root, "image_00") @ _camera0_T_lidar(root)


def read_rectified0_T_lidar(root: Path) -> np.ndarray:  # noqa: N802
    """(4, 4): R_rect_00 · (T_velo←cam0)⁻¹."""
    return _rectification(root, "image_00") @ _camera0_T_lidar(root)


def _camera0_T_lidar(root: Path) -> np.ndarray:  # noqa: N802
    path = root / "calibration" / "calib_cam_to_velo.txt"
    return rigid.rigid_inverse(read_poses(path, REMEDY)[0])


def _rectification(root: Path, name: str) -> np.ndarray:
    """(4, 4) rectified ← as mounted."""
    path = root / "calibration" / "perspective.txt"
    key = f"R_rect_{PERSPECTIVES[name]}"
    rotation = matrix_of(read_keys(path, REMEDY), key, (3, 3), path, REMEDY)
    rows = np.concatenate([rotation, np.zeros((3, 1))], axis=1).reshape(1, 12)
    return rigid_matrices(rows, path, REMEDY)[0]


def _pixels(size: np.ndarray, key: str, path: Path) -> tuple[int, int]:
    if (size < 1).any() or (size > 2**15).any() or (size != np.round(size)).any():
        raise InputError(
            f"{path}: expected a width and a height in pixels ({key}), found {size[0]:g} and {size[1]:g}. "
            f"{REMEDY}"
        )
    return int(size[0]), int(size[1])


def _steepest(camera: FisheyeCamera) -> float:
    """ρ² where the distorted radius stops growing with ρ: first positive root of 1 + 3·k1·ρ² + 5·k2·ρ⁴."""
    roots = np.roots([5 * camera.k2, 3 * camera.k1, 1.0])
    real = roots.real[(np.abs(roots.imag) < 1e-12) & (roots.real > 0)]
    return float(real.min()) if len(real) else np.inf
