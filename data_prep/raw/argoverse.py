"""The Argoverse 1 Tracking reader: logs of ring cameras and LiDAR, and the drivable area, without the devkit.

A root holds what the archives unpack to:

    argoverse-tracking/{train1,train2,train3,train4,val,test}/LOG/
        city_info.json                              MIA or PIT
        vehicle_calibration_info.json
        poses/city_SE3_egovehicle_NS.json           at the time of every image and every sweep
        ring_front_center/ring_front_center_NS.jpg  and six more ring cameras, 1920 x 1200, undistorted
        lidar/PC_NS.ply                             10 Hz, points in the ego frame
    map_files/{MIA_10316,PIT_10314}_driveable_area_mat_2019_05_28.npy, …_npyimage_to_city_se2_2019_05_28.npy

NS is a time in nanoseconds. Cameras and LiDAR are not synchronous, and images are missing here and there: a
frame is a sweep together with the nearest image of each camera, and sweeps that lack one are passed over.
The ego frame is at the middle of the rear axle: x forward, y left, z up.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.errors import InputError
from data_prep.geodesy import UTM_ORIGINS
from data_prep.raw.frames import Camera, Frame, Lidar
from placerec_jax.ops import rigid
from placerec_jax.ops.grid import Grid2D

VERSION = "v1.1"
TRACKING = "argoverse-tracking"
SPLIT_OF_FOLDER = {
    **{f"train{i}": "train" for i in (1, 2, 3, 4)},
    "val": "val",
    "test": "test",
}
RING_CAMERAS = (
    "ring_front_left",
    "ring_front_center",
    "ring_front_right",
    "ring_side_left",
    "ring_side_right",
    "ring_rear_left",
    "ring_rear_right",
)
# Six views for a network of six cameras: they overlap all around but for 21° straight ahead, which is the
# least that leaving out one of the seven costs, and left and right stay alike.
SIX_CAMERAS = tuple(camera for camera in RING_CAMERAS if camera != "ring_front_center")
RING_SIZE = (1920, 1200)  # pixels; the calibration files do not say it
MAP_ID = {"MIA": "MIA_10316", "PIT": "PIT_10314"}

CITY_MARKER = "BUILT-IN-CITY.json"  # stands in a root that the built-in city wrote

KEYFRAME_RATE = 2.0  # Hz, as nuScenes has it
SWEEP_SECONDS = 0.1
EGO_HEIGHT = 0.33  # m, as the dataset's authors say (argoverse-api, issue 286)
# Half the interval of the ring cameras (30 Hz): the farthest that the nearest image of a sweep can be.
TOLERANCE = 1 / 60  # s

_QUATERNION_TOLERANCE = 1e-3
_LATEST = np.iinfo(np.int64).max  # ns
_LONGEST_HEADER = 4096  # bytes of a PLY file
# Both families of names are in use.
_PLY_TYPES = {
    "char": "i1",
    "int8": "i1",
    "uchar": "u1",
    "uint8": "u1",
    "short": "<i2",
    "int16": "<i2",
    "ushort": "<u2",
    "uint16": "<u2",
    "int": "<i4",
    "int32": "<i4",
    "uint": "<u4",
    "uint32": "<u4",
    "float": "<f4",
    "float32": "<f4",
    "double": "<f8",
    "float64": "<f8",
}


@dataclasses.dataclass(frozen=True)
class Log:
    """One log and which of its sweeps are keyframes, as the names of its files tell."""

    path: Path
    split: str
    city: str
    sweeps: int
    sweeps_without_images: int  # that lack a pose, or an image of a camera within the tolerance
    keyframes: list[tuple[int, dict[str, int]]]  # ns of the sweep, and camera → ns of its nearest image


@dataclasses.dataclass(frozen=True)
class Recordings:
    """All keyframes of a root, ordered by log, then time."""

    frames: list[Frame]
    logs: list[Log]

    @functools.cached_property
    def split_of_log(self) -> dict[str, str]:
        """train, val or test by the log's name."""
        return {log.path.name: log.split for log in self.logs}

    @property
    def sweeps(self) -> int:
        """Of all logs."""
        return sum(log.sweeps for log in self.logs)

    @property
    def sweeps_without_images(self) -> int:
        """Of all logs."""
        return sum(log.sweeps_without_images for log in self.logs)


def read_frames(
    root: Path,
    cameras: Sequence[str] = RING_CAMERAS,
    rate: float = KEYFRAME_RATE,
    tolerance: float = TOLERANCE,
) -> Recordings:
    """The keyframes of all logs: see `find_logs`. `scene` is the log, `location` the city, `token` the log
    and the sweep's time.

    Raises InputError for missing or damaged files, values of the wrong type and quaternions that are not of
    unit length. Does not look at images and sweeps: see `check_files`.
    """
    logs = find_logs(root, cameras, rate, tolerance)
    frames: list[Frame] = []
    for log in tqdm(logs, desc="reading poses", unit="log", delay=1, leave=False):
        calibration = _read_calibration(log.path / "vehicle_calibration_info.json", cameras)
        frames += [_frame(log, sweep, images, calibration) for sweep, images in log.keyframes]
    return Recordings(frames, logs)


def check_version(root: Path, version: str | None) -> None:
    """InputError for a version that is not the only one."""
    if version not in (None, VERSION):
        raise InputError(
            f"{root}: expected version {VERSION} of Argoverse, the only one there is; asked for {version}. "
            "Leave out --version."
        )


def find_logs(
    root: Path,
    cameras: Sequence[str] = RING_CAMERAS,
    rate: float = KEYFRAME_RATE,
    tolerance: float = TOLERANCE,
) -> list[Log]:
    """All logs by name, with `rate` (Hz) keyframes a second that have one image of each of `cameras`.

    `tolerance` (s) is how far an image may be from its sweep. Raises InputError for a root without logs, logs
    without a single keyframe, and unknown cameras and cities.
    """
    _check_cameras(cameras)
    if not rate > 0:
        raise InputError(f"rate: expected more than 0 frames a second, found {rate}.")
    folders = _log_folders(root)
    bar = tqdm(folders, desc="listing logs", unit="log", delay=1, leave=False)
    return [_list_log(path, cameras, rate, tolerance) for path in bar]


def check_files(frames: Sequence[Frame]) -> int:
    """Total bytes of the images and sweeps of `frames`; InputError where one is missing, empty or truncated.

    Images are decoded, and truncation found, only when they are converted.
    """
    total = 0
    for frame in tqdm(frames, desc="looking for files", unit="frame", delay=1, leave=False):
        for path in [*(camera.path for camera in frame.cameras), frame.lidar.path]:
            size = path.stat().st_size
            if size == 0:
                raise InputError(f"{path}: expected a file of {frame.scene}, found 0 bytes. Unpack it again.")
            total += size
        _ply_header(frame.lidar.path)
    return total


def read_sweep(path: Path) -> np.ndarray:
    """(N, 5) float32 x, y, z (m, ego frame), intensity and laser number of a sweep."""
    offset, count, fields = _ply_header(path)
    points = np.fromfile(path, dtype=fields, count=count, offset=offset)
    return np.stack(
        [points[name].astype(np.float32) for name in ("x", "y", "z", "intensity", "laser_number")], 1
    )


@dataclasses.dataclass(frozen=True)
class DrivableArea:
    """The drivable area of a city: cells of 1 m, and where they lie."""

    cells: np.ndarray  # (rows, columns) uint8 of 0 and 1
    image_T_city: np.ndarray  # (3, 3): city metres to (column, row)

    def extent(self) -> tuple[float, float, float, float]:
        """x_min, x_max, y_min, y_max in city metres of a box that holds all cells."""
        rows, columns = self.cells.shape
        corners = np.array([(c, r, 1.0) for c in (0, columns) for r in (0, rows)])
        xy = (corners @ np.linalg.inv(self.image_T_city).T)[:, :2] - 0.5
        (x_min, y_min), (x_max, y_max) = xy.min(axis=0), xy.max(axis=0)
        return float(x_min), float(x_max), float(y_min), float(y_max)

    def draw(self, grid: Grid2D) -> np.ndarray:
        """(rows, columns) uint8 of 0 and 1 on `grid` in city metres: the nearest cell's value, 0 outside.

        As the devkit looks a point up: coordinates are rounded to whole metres, moved into the image, and
        rounded down.
        """
        (first_x, first_y), (n_x, n_y) = grid.lower, grid.shape
        x = np.floor(first_x + (np.arange(n_x) + 0.5) * grid.cell + 0.5)
        y = np.floor(first_y + (np.arange(n_y) + 0.5) * grid.cell + 0.5)
        result = np.zeros(grid.shape, np.uint8)
        matrix = self.image_T_city
        rows, columns = self.cells.shape
        for i, at in enumerate(x):  # row by row: a city at 0.5 m has tens of millions of cells
            column = np.floor(matrix[0, 0] * at + matrix[0, 1] * y + matrix[0, 2]).astype(np.int64)
            row = np.floor(matrix[1, 0] * at + matrix[1, 1] * y + matrix[1, 2]).astype(np.int64)
            inside = (column >= 0) & (column < columns) & (row >= 0) & (row < rows)
            result[i, inside] = self.cells[row[inside], column[inside]]
        return result


def drivable_files(root: Path, city: str) -> tuple[Path, Path]:
    """Where the drivable area of a city and its registration lie in a root."""
    folder, name = root / "map_files", MAP_ID[city]
    return (
        folder / f"{name}_driveable_area_mat_2019_05_28.npy",
        folder / f"{name}_npyimage_to_city_se2_2019_05_28.npy",
    )


def read_drivable_area(root: Path, city: str) -> DrivableArea:
    """The drivable area of MIA or PIT; InputError for missing or damaged files."""
    cells_path, registration_path = drivable_files(root, city)
    cells = _read_array(cells_path)
    # Written so that NaN fails too.
    if cells.ndim != 2 or not cells.size or not np.isin(cells, (0, 1)).all():
        raise InputError(
            f"{cells_path}: expected a matrix of 0 and 1, found shape {cells.shape} of {cells.dtype}"
            f"{_range(cells)}. Unpack the HD maps again."
        )
    matrix = _read_array(registration_path)
    if (
        matrix.shape != (3, 3)
        or not np.issubdtype(matrix.dtype, np.number)
        or not np.allclose(matrix[:2, :2] @ matrix[:2, :2].T, np.eye(2), atol=1e-6)
        or not np.array_equal(matrix[2], [0, 0, 1])
        or not np.isfinite(matrix).all()
    ):
        raise InputError(
            f"{registration_path}: expected a 3 x 3 rotation and shift in the plane, found "
            f"{matrix.tolist() if matrix.size <= 16 else f'shape {matrix.shape}'}. Unpack the HD maps again."
        )
    return DrivableArea(cells.astype(np.uint8), matrix.astype(np.float64))


@dataclasses.dataclass(frozen=True)
class _Calibrated:
    width: int
    height: int
    intrinsics: np.ndarray
    ego_T_camera: np.ndarray


def _check_cameras(cameras: Sequence[str]) -> None:
    unknown = [name for name in cameras if name not in RING_CAMERAS]
    if unknown or not cameras or len(set(cameras)) != len(cameras):
        raise InputError(
            f"cameras: expected one or more of {', '.join(RING_CAMERAS)}, each once; found "
            f"{', '.join(cameras) or 'none'}. Correct the list."
        )


def _log_folders(root: Path) -> list[Path]:
    tracking = root / TRACKING
    folders = [tracking / name for name in SPLIT_OF_FOLDER if (tracking / name).is_dir()]
    paths = [path for folder in folders for path in folder.iterdir() if path.is_dir()]
    if not paths:
        raise InputError(
            f"{tracking}: expected logs in {', '.join(SPLIT_OF_FOLDER)}; found "
            f"{'no such folder' if not folders else 'no log in ' + ', '.join(f.name for f in folders)}. "
            "Correct the root, or unpack the tracking archives into it."
        )
    found: dict[str, Path] = {}
    for path in sorted(paths, key=lambda path: (path.name, path)):
        if path.name in found:
            raise InputError(
                f"{path}: expected every log once, found it in {found[path.name].parent.name} as well. "
                "Remove one of the two."
            )
        found[path.name] = path
    return list(found.values())


def _list_log(path: Path, cameras: Sequence[str], rate: float, tolerance: float) -> Log:
    times = _times(path / "lidar", "PC", ".ply")
    if not times.size:
        raise InputError(
            f"{path / 'lidar'}: expected sweeps PC_NANOSECONDS.ply, found none. Unpack the archive of "
            f"{path.parent.name} again."
        )
    images = {camera: _times(path / camera, camera, ".jpg") for camera in cameras}
    posed = _times(path / "poses", "city_SE3_egovehicle", ".json")
    usable, nearest = _synchronize(times, images, posed, tolerance)
    if not usable.any():
        counts = ", ".join(f"{len(of_camera)} of {name}" for name, of_camera in images.items())
        raise InputError(
            f"{path}: expected sweeps with a pose and an image of every camera within "
            f"{1e3 * tolerance:.1f} ms; found none among {len(times)} sweeps, {len(posed)} poses and images "
            f"{counts}. Unpack the archive of {path.parent.name} again, or ask for fewer cameras."
        )
    keyframes = [
        (int(times[i]), {camera: int(of_camera[i]) for camera, of_camera in nearest.items()})
        for i in _spread(times, usable, rate)
    ]
    city = _read_city(path / "city_info.json")
    split = SPLIT_OF_FOLDER[path.parent.name]
    return Log(path, split, city, len(times), int(np.sum(~usable)), keyframes)


def _read_city(path: Path) -> str:
    city = _member(path, _read_json(path), "city_name")
    if not isinstance(city, str) or city not in UTM_ORIGINS:
        raise InputError(
            f"{path}: city_name: expected one of {', '.join(UTM_ORIGINS)}, found {city!r}. Unpack it again."
        )
    return city


def _times(folder: Path, prefix: str, suffix: str) -> np.ndarray:
    """(N,) int64 ns, sorted, of the files PREFIX_NS.SUFFIX in `folder`; none where it is missing."""
    if not folder.is_dir():
        return np.zeros(0, np.int64)
    pattern = re.compile(rf"{re.escape(prefix)}_(\d{{1,19}}){re.escape(suffix)}", re.ASCII)
    matches = (pattern.fullmatch(path.name) for path in folder.iterdir())
    times = (int(match[1]) for match in matches if match)
    return np.array(sorted(time for time in times if time <= _LATEST), np.int64)


def _synchronize(
    sweeps: np.ndarray, images: dict[str, np.ndarray], posed: np.ndarray, tolerance: float
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(N,) bool: which sweeps have a pose and all images; camera → (N,) int64 ns of the nearest image.

    Images without a pose count as missing.
    """
    usable = np.isin(sweeps, posed)
    nearest = {}
    for camera, times in images.items():
        times = times[np.isin(times, posed)]
        if not times.size:
            return np.zeros(len(sweeps), bool), {}
        after = np.clip(np.searchsorted(times, sweeps), 0, len(times) - 1)
        before = np.maximum(after - 1, 0)
        closest = np.where(sweeps - times[before] <= np.abs(times[after] - sweeps), before, after)
        nearest[camera] = times[closest]
        usable &= np.abs(nearest[camera] - sweeps) <= tolerance * 1e9
    return usable, nearest


def _spread(times: np.ndarray, usable: np.ndarray, rate: float) -> list[int]:
    """Indices of sorted `times` (ns): the usable ones, thinned to `rate` (Hz) by taking the next that is due.

    Half a sweep early counts as due, so that jitter does not cost a whole sweep.
    """
    step = (1 / rate - SWEEP_SECONDS / 2) * 1e9
    kept: list[int] = []
    for i in np.flatnonzero(usable):
        if not kept or times[i] - times[kept[-1]] >= step:
            kept.append(int(i))
    return kept


def _frame(log: Log, sweep: int, images: dict[str, int], calibration: dict[str, _Calibrated]) -> Frame:
    cameras = tuple(
        Camera(
            name,
            log.path / name / f"{name}_{time}.jpg",
            calibration[name].width,
            calibration[name].height,
            time // 1000,
            calibration[name].intrinsics,
            calibration[name].ego_T_camera,
            _read_pose(log.path, time),
        )
        for name, time in images.items()
    )
    lidar = Lidar(
        log.path / "lidar" / f"PC_{sweep}.ply", sweep // 1000, np.eye(4), _read_pose(log.path, sweep)
    )
    token = f"{log.path.name}_{sweep}"
    return Frame(token, log.path.name, log.city, sweep // 1000, cameras, lidar, EGO_HEIGHT)


def _read_pose(log: Path, time: int) -> np.ndarray:
    path = log / "poses" / f"city_SE3_egovehicle_{time}.json"
    content = _read_json(path)
    return _pose(path, content, _member(path, content, "rotation"), _member(path, content, "translation"))


def _read_calibration(path: Path, cameras: Sequence[str]) -> dict[str, _Calibrated]:
    entries = _member(path, _read_json(path), "camera_data_")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(f"{path}: camera_data_: expected a list of objects. Unpack it again.")
    values = {entry.get("key"): entry.get("value") for entry in entries}
    missing = [camera for camera in cameras if f"image_raw_{camera}" not in values]
    if missing:
        raise InputError(
            f"{path}: camera_data_: expected the calibration of {', '.join(cameras)}; missing: "
            f"{', '.join(missing)}. Unpack it again, or ask for fewer cameras."
        )
    result = {}
    for camera in cameras:
        value = values[f"image_raw_{camera}"]
        names = (
            "focal_length_x_px_",
            "focal_length_y_px_",
            "focal_center_x_px_",
            "focal_center_y_px_",
            "skew_",
        )
        fx, fy, cx, cy, skew = (_number(path, camera, _member(path, value, n, camera), n) for n in names)
        if fx <= 0 or fy <= 0:
            raise InputError(f"{path}: {camera}: expected positive focal lengths, found {fx} and {fy}.")
        # Only the built-in city, whose images are smaller, says how large they are.
        size = [
            _number(path, camera, value.get(name, default), name)
            for name, default in zip(("image_width_px_", "image_height_px_"), RING_SIZE, strict=True)
        ]
        if min(size) < 1:
            raise InputError(f"{path}: {camera}: expected an image size of 1 or more, found {size}.")
        mount = _member(path, value, "vehicle_SE3_camera_", camera)
        rotation = _member(path, _member(path, mount, "rotation", camera), "coefficients", camera)
        pose = _pose(path, camera, rotation, _member(path, mount, "translation", camera))
        intrinsics = np.array([[fx, skew, cx], [0, fy, cy], [0, 0, 1]])
        result[camera] = _Calibrated(int(size[0]), int(size[1]), intrinsics, pose)
    return result


def _pose(path: Path, where: Any, rotation: Any, translation: Any) -> np.ndarray:
    """(4, 4) float64 of a unit quaternion (w, x, y, z) and metres."""
    quaternion = _numbers(path, where, rotation, 4, "rotation")
    length = float(np.linalg.norm(quaternion))
    if abs(length - 1) > _QUATERNION_TOLERANCE:
        raise InputError(
            f"{path}: {where}: rotation: expected a quaternion of unit length, found length {length:.6g}. "
            "Unpack it again."
        )
    return rigid.rigid_matrix(
        rigid.quaternion_to_matrix(quaternion / length), _numbers(path, where, translation, 3, "translation")
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(
            f"{path}: expected this file of the log, found none. Unpack the archive of "
            f"{path.parent.name} again."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected whole JSON, found damage: {error}. Unpack it again.") from None


def _member(path: Path, record: Any, name: str, where: str = "") -> Any:
    if not isinstance(record, dict) or name not in record:
        found = ", ".join(sorted(map(str, record))) if isinstance(record, dict) else type(record).__name__
        raise InputError(
            f"{path}: {where + ': ' if where else ''}expected the field {name!r}, found {found}. Unpack it "
            "again."
        )
    return record[name]


def _number(path: Path, where: str, value: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"{path}: {where}: {name}: expected a finite number, found {value!r}. Unpack it again."
        )
    return number


def _numbers(path: Path, where: Any, value: Any, count: int, name: str) -> np.ndarray:
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.empty(0)
    if array.shape != (count,) or not np.isfinite(array).all():
        raise InputError(
            f"{path}: {where}: {name}: expected {count} finite numbers, found {value!r}. Unpack it again."
        )
    return array


def _read_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(
            f"{path}: expected this file of the HD maps, found none. Download hd_maps.tar.gz and unpack it "
            "into the root."
        ) from None
    except (ValueError, EOFError, OSError, MemoryError) as error:
        raise InputError(f"{path}: expected a NumPy array, found damage: {error}. Unpack it again.") from None
    if not isinstance(array, np.ndarray):  # an archive of several
        raise InputError(
            f"{path}: expected a NumPy array, found {type(array).__name__}. Unpack the HD maps again."
        )
    return array


def _range(array: np.ndarray) -> str:
    numeric = array.size and np.issubdtype(array.dtype, np.number)
    return f" with values from {array.min()} to {array.max()}" if numeric else ""


def _ply_header(path: Path) -> tuple[int, int, np.dtype]:
    """Where the points of a binary PLY file begin, their number and their fields; InputError if not whole."""

    def damaged(what: str) -> InputError:
        return InputError(
            f"{path}: expected a binary PLY file of points x, y, z, intensity, laser_number; {what}. Unpack "
            "it again."
        )

    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    header, end, _ = start.partition(b"end_header\n")
    lines = [line.split() for line in header.decode("ascii", "replace").splitlines()]
    if not end or lines[:1] != [["ply"]]:
        raise damaged("found no such header")
    if ["format", "binary_little_endian", "1.0"] not in lines:
        raise damaged("found another format")
    elements = [line for line in lines if line[:1] == ["element"]]
    if len(elements) != 1 or elements[0][1:2] != ["vertex"] or not elements[0][-1].isdigit():
        raise damaged(f"found the elements {[' '.join(line[1:]) for line in elements]}")
    properties = [line for line in lines if line[:1] == ["property"]]
    if any(len(line) != 3 or line[1] not in _PLY_TYPES for line in properties):
        raise damaged("found a property of an unknown type")
    names = [line[2] for line in properties]
    missing = [name for name in ("x", "y", "z", "intensity", "laser_number") if name not in names]
    if missing or len(set(names)) != len(names):
        raise damaged(f"found the properties {', '.join(names)}")
    fields = np.dtype([(line[2], _PLY_TYPES[line[1]]) for line in properties])
    offset, count, size = len(header) + len(end), int(elements[0][-1]), path.stat().st_size
    if size != offset + count * fields.itemsize:
        raise damaged(
            f"its header says {count} points in {offset + count * fields.itemsize} bytes, found {size} bytes"
        )
    return offset, count, fields
