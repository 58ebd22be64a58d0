"""The nuScenes reader: seven tables and the drivable area of the map expansion, without the devkit.

A root holds `<version>/{scene,sample,sample_data,ego_pose,calibrated_sensor,sensor,log}.json`,
`samples/<CHANNEL>/*` and `maps/expansion/<location>.json`. Only keyframes are read. The full `sample_data`
and `ego_pose` tables are over a gigabyte of JSON each, so tables are streamed record by record and only what
the keyframes need is kept.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.errors import InputError
from data_prep.geodesy import check_location
from data_prep.raw.frames import Camera, Frame, Lidar
from placerec_jax.ops import rigid

VERSIONS = ("v1.0-trainval", "v1.0-test", "v1.0-mini")
TABLES = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "sensor", "log")
LIDAR = "LIDAR_TOP"
# In the order in which networks on nuScenes customarily stack them.
CAMERAS = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")

LIDAR_POINT_BYTES = 20  # float32 x, y, z, intensity, ring
CITY_MARKER = "BUILT-IN-CITY.json"  # stands in a root that the built-in city wrote

_CHUNK = 1 << 23  # characters read at a time
_LONGEST_RECORD = 1 << 20  # characters; a record longer than this is taken for damage
_QUATERNION_TOLERANCE = 1e-3


def find_version(root: Path, version: str | None) -> str:
    """The dataset version to read: the one asked for, or the only one there. InputError otherwise."""
    if not root.is_dir():
        raise InputError(f"{root}: expected a nuScenes root folder, found no such folder. Correct --raw.")
    there = [v for v in VERSIONS if (root / v).is_dir()]
    if version is not None:
        if version not in there:
            raise InputError(
                f"{root}: expected the folder {version} of the version asked for; found "
                f"{', '.join(there) or 'no v1.0-* folder'}. Unpack that version's metadata archive into the "
                "root, or correct --version."
            )
        return version
    if len(there) != 1:
        raise InputError(
            f"{root}: expected one of the folders {', '.join(VERSIONS)}; found "
            f"{', '.join(there) or 'none of them'}. "
            + (
                "Choose one with --version."
                if there
                else "Correct --raw, or unpack the metadata archive into it."
            )
        )
    return there[0]


@dataclasses.dataclass(frozen=True, slots=True)
class Scene:
    """A scene's keyframes, one after another as the samples name the next. A camera may lack in a frame."""

    name: str
    location: str
    date_captured: str  # as its log says it
    frames: tuple[Frame, ...]


def read_frames(root: Path, version: str) -> list[Frame]:
    """All keyframes of one version, ordered by scene name, then time.

    Raises InputError for missing or damaged tables, dangling tokens, values of the wrong type, quaternions
    that are not of unit length, unknown locations and keyframes that lack a sensor. Does not look at images
    and sweeps: see `check_files`.
    """
    table = _tables(root, version)
    calibrations = _read_calibrations(table)
    location_of_log = {
        _token(table["log"], r): _field(table["log"], r, "location", str) for r in read_records(table["log"])
    }
    scenes: dict[str, tuple[str, str]] = {}
    for record in read_records(table["scene"]):
        location = _resolve(table, "scene", record, "log_token", "log", location_of_log)
        try:
            check_location(location)
        except InputError as error:
            raise InputError(f"{table['log']}: record {record['log_token']!r}: {error}") from None
        scenes[_token(table["scene"], record)] = (_field(table["scene"], record, "name", str), location)
    samples: dict[str, tuple[int, tuple[str, str]]] = {}
    for record in read_records(table["sample"]):
        scene = _resolve(table, "sample", record, "scene_token", "scene", scenes)
        samples[_token(table["sample"], record)] = (_field(table["sample"], record, "timestamp", int), scene)
    if not samples:
        raise InputError(
            f"{table['sample']}: expected at least one sample, found none. Unpack the metadata again."
        )

    keyframes = _read_keyframes(table, samples, calibrations)
    poses = _read_ego_poses(table, keyframes)
    frames = [
        _make_frame(root, token, timestamp, scene, keyframes.get(token, {}), poses, table)
        for token, (timestamp, scene) in samples.items()
    ]
    return sorted(frames, key=lambda frame: (frame.scene, frame.timestamp, frame.token))


def read_scenes(root: Path, version: str) -> list[Scene]:
    """All scenes in the order of scene.json, their keyframes along the `next` of the samples.

    Locations may be any. A keyframe may lack cameras, which are then absent from the frame; it may not lack
    the LiDAR. Otherwise raises InputError as `read_frames` does, and for samples that do not follow each
    other through a whole scene.
    """
    table = _tables(root, version)
    calibrations = _read_calibrations(table)
    logs = {
        _token(table["log"], r): tuple(
            _field(table["log"], r, field, str) for field in ("location", "date_captured")
        )
        for r in read_records(table["log"])
    }
    scenes = {_token(table["scene"], r): r for r in read_records(table["scene"])}
    samples = {_token(table["sample"], r): r for r in read_records(table["sample"])}
    if not scenes or not samples:
        empty = "sample" if scenes else "scene"
        raise InputError(
            f"{table[empty]}: expected at least one {empty}, found none. Unpack the metadata archive again."
        )
    keyframes = _read_keyframes(table, samples, calibrations)
    poses = _read_ego_poses(table, keyframes)
    result = []
    for token, record in scenes.items():
        location, date = _resolve(table, "scene", record, "log_token", "log", logs)
        name = _field(table["scene"], record, "name", str)
        frames = [
            _make_frame(
                root,
                sample["token"],
                _field(table["sample"], sample, "timestamp", int),
                (name, location),
                keyframes.get(sample["token"], {}),
                poses,
                table,
                required=(LIDAR,),
            )
            for sample in _samples_of_scene(table, token, record, samples)
        ]
        result.append(Scene(name, location, date, tuple(frames)))
    return result


def _samples_of_scene(
    table: dict[str, Path], token: str, scene: dict[str, Any], samples: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """The records of a scene's samples from the first to the last; InputError where the chain is broken."""
    expected = _field(table["scene"], scene, "nbr_samples", int)
    record = _resolve(table, "scene", scene, "first_sample_token", "sample", samples)
    seen: set[str] = set()
    while True:
        if _field(table["sample"], record, "scene_token", str) != token or record["token"] in seen:
            raise InputError(
                f"{table['sample']}: record {record['token']!r}: expected the next sample of scene "
                f"{_name(scene)}, found one "
                + ("met before" if record["token"] in seen else "of another scene")
                + ". Unpack the metadata archive again."
            )
        seen.add(record["token"])
        yield record
        following = _field(table["sample"], record, "next", str)
        if not following:
            break
        record = _lookup(table["sample"], record, "next", following, "sample.json", samples)
    if len(seen) != expected:
        raise InputError(
            f"{table['scene']}: record {_name(scene)}: field 'nbr_samples' is {expected}, found {len(seen)} "
            "samples one after another. Unpack the metadata archive again."
        )


def _tables(root: Path, version: str) -> dict[str, Path]:
    """Name → file of every table; InputError that lists all that are not there."""
    table = {name: root / version / f"{name}.json" for name in TABLES}
    missing = [f"{name}.json" for name, path in table.items() if not path.is_file()]
    if missing:
        raise InputError(
            f"{root / version}: expected the tables {', '.join(f'{name}.json' for name in TABLES)}; missing: "
            f"{', '.join(missing)}. Unpack the version's metadata archive again."
        )
    return table


def check_files(frames: Sequence[Frame]) -> int:
    """Total bytes of the images and sweeps of `frames`; InputError where one is missing, empty or truncated.

    A sweep must be whole points of 20 bytes. Images are decoded, and truncation found, only when they are
    converted.
    """
    total = 0
    for _, _, path, size, problem in _files(frames):
        if problem:
            raise InputError(f"{path}: {problem}")
        total += size
    return total


def bad_files(frames: Sequence[Frame]) -> list[tuple[Frame, str, str]]:
    """All files that `check_files` would refuse: their frame, channel, and path with what is wrong."""
    return [
        (frame, channel, f"{path}: {problem}")
        for frame, channel, path, _, problem in _files(frames)
        if problem
    ]


def _files(frames: Sequence[Frame]) -> Iterator[tuple[Frame, str, Path, int, str]]:
    """Every file: its frame, channel, path, size, and what is wrong with it, "" for nothing."""
    for frame in tqdm(frames, desc="looking for files", unit="frame", delay=1, leave=False):
        for channel, path in [*((c.channel, c.path) for c in frame.cameras), (LIDAR, frame.lidar.path)]:
            problem, size = "", 0
            try:
                size = path.stat().st_size
            except FileNotFoundError:
                problem = (
                    f"expected the {channel} file of sample {frame.token} ({frame.scene}), found no file. "
                    "Unpack the archive that holds it into the root."
                )
            else:
                if size == 0:
                    problem = (
                        f"expected the {channel} file of sample {frame.token}, found 0 bytes. Unpack it "
                        "again."
                    )
                elif channel == LIDAR and size % LIDAR_POINT_BYTES:
                    problem = (
                        f"expected whole points of {LIDAR_POINT_BYTES} bytes, found {size} bytes "
                        f"({size % LIDAR_POINT_BYTES} left over): the file is truncated. Unpack it again."
                    )
            yield frame, channel, path, size, problem


def read_sweep(path: Path) -> np.ndarray:
    """(N, 3) float32 points of a sweep in the LiDAR's frame; `check_files` says whether it is whole."""
    return np.fromfile(path, np.float32).reshape(-1, LIDAR_POINT_BYTES // 4)[:, :3]


def map_expansion_file(root: Path, location: str) -> Path:
    """Where the map expansion of `location` lies in a root."""
    return root / "maps" / "expansion" / f"{location}.json"


def read_drivable_area(root: Path, location: str) -> list[list[np.ndarray]]:
    """Polygons of the map expansion's `drivable_area`: each a list of rings (N, 2) float64 in map metres,
    exterior first.

    Needs map expansion v1.3 or later: earlier ones are misaligned with the drives of many scenes.
    """
    path = map_expansion_file(root, location)
    if not path.is_file():
        raise InputError(
            f"{path}: expected the map expansion of {location}, found no file. Download the nuScenes map "
            f"expansion (v1.3) and unpack it into {root / 'maps'}."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: expected JSON, found damage: {error}. Unpack the map expansion again."
        ) from None
    version = content.get("version") if isinstance(content, dict) else None
    try:
        number = tuple(int(part) for part in str(version).split("."))
    except ValueError:
        number = (0,)
    if number < (1, 3):
        raise InputError(
            f"{path}: expected map expansion version 1.3 or later, found {version!r}. Download the v1.3 "
            "archive; older maps are shifted against the drives."
        )

    for layer in ("node", "polygon", "drivable_area"):
        if not isinstance(content.get(layer), list):
            raise InputError(
                f"{path}: expected a list under {layer!r}, found {type(content.get(layer)).__name__}. "
                "Unpack it again."
            )
    nodes = {_token(path, r): [_number(path, r, "x"), _number(path, r, "y")] for r in content["node"]}
    polygons = {_token(path, r): r for r in content["polygon"]}

    def ring(polygon: dict, tokens: list) -> np.ndarray:
        points = [_lookup(path, polygon, "node_tokens", token, "node", nodes) for token in tokens]
        if len(points) < 3:
            raise InputError(
                f"{path}: polygon {polygon['token']}: expected a ring of 3 nodes or more, found "
                f"{len(points)}."
            )
        return np.array(points, np.float64)

    result = []
    for area in content["drivable_area"]:
        for token in _field(path, area, "polygon_tokens", list):
            polygon = _lookup(path, area, "polygon_tokens", token, "polygon", polygons)
            exterior = ring(polygon, _field(path, polygon, "exterior_node_tokens", list))
            holes = [_field(path, hole, "node_tokens", list) for hole in _field(path, polygon, "holes", list)]
            # The published maps have holes without nodes.
            result.append([exterior, *(ring(polygon, hole) for hole in holes if hole)])
    return result


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON array, one at a time. InputError naming the record for anything else."""
    decoder = json.JSONDecoder()

    def damaged(what: str) -> InputError:
        return InputError(
            f"{path}: expected a whole JSON array of objects; {what} (record {count}). The file is "
            "truncated or damaged: unpack the metadata archive again."
        )

    count = 0
    with (
        path.open(encoding="utf-8") as file,
        tqdm(
            total=path.stat().st_size, unit="B", unit_scale=True, desc=path.name, delay=2, leave=False
        ) as bar,
    ):
        text, position, at_end = "", 0, False
        opened = False
        while True:
            # A whole record, or the end of the file, is always in the buffer: a record that fails to parse is
            # damaged.
            if not at_end and len(text) - position < _LONGEST_RECORD:
                try:
                    chunk = file.read(_CHUNK)
                except UnicodeDecodeError as error:
                    raise damaged(f"found bytes that are not UTF-8 ({error.reason})") from None
                bar.update(len(chunk))
                text, position, at_end = text[position:] + chunk, 0, not chunk
            position = _skip_space(text, position)
            mark = text[position : position + 1]
            if not opened:
                if mark != "[":
                    raise damaged(f"found {text[position : position + 20]!r} at its start")
                opened, position = True, position + 1
                continue
            if mark == "]":
                if text[position + 1 :].strip():
                    raise damaged("found more text after its end")
                return
            if count:
                if mark != ",":
                    raise damaged(
                        f"found {mark!r} instead of a comma"
                        if mark
                        else "found its end before the closing ']'"
                    )
                position = _skip_space(text, position + 1)
            try:
                record, position = decoder.raw_decode(text, position)
            except json.JSONDecodeError as error:
                raise damaged(f"found {error.msg.lower()}") from None
            if not isinstance(record, dict):
                raise damaged(f"found a {type(record).__name__} in it")
            yield record
            count += 1


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


@dataclasses.dataclass(frozen=True, slots=True)
class _Calibration:
    channel: str
    ego_T_sensor: np.ndarray | None  # None for sensors that are not read (radar)
    intrinsics: np.ndarray | None


@dataclasses.dataclass(frozen=True, slots=True)
class _SampleData:
    filename: str
    timestamp: int
    width: int
    height: int
    calibration: _Calibration
    ego_pose_token: str


def _read_calibrations(table: dict[str, Path]) -> dict[str, _Calibration]:
    path = table["calibrated_sensor"]
    channel_of_sensor = {
        _token(table["sensor"], r): _field(table["sensor"], r, "channel", str)
        for r in read_records(table["sensor"])
    }
    result = {}
    for record in read_records(path):
        channel = _resolve(table, "calibrated_sensor", record, "sensor_token", "sensor", channel_of_sensor)
        pose, intrinsics = None, None
        if channel in (*CAMERAS, LIDAR):
            pose = _pose(path, record)
        if channel in CAMERAS:
            intrinsics = _intrinsics(path, record)
        result[_token(path, record)] = _Calibration(channel, pose, intrinsics)
    return result


def _read_keyframes(
    table: dict[str, Path], samples: dict[str, Any], calibrations: dict[str, _Calibration]
) -> dict[str, dict[str, _SampleData]]:
    """Sample token → channel → its keyframe."""
    path = table["sample_data"]
    result: dict[str, dict[str, _SampleData]] = {}
    for record in read_records(path):
        if not _field(path, record, "is_key_frame", bool):
            continue
        calibration = _resolve(
            table, "sample_data", record, "calibrated_sensor_token", "calibrated_sensor", calibrations
        )
        if calibration.ego_T_sensor is None:
            continue
        _resolve(table, "sample_data", record, "sample_token", "sample", samples)
        of_sample = result.setdefault(record["sample_token"], {})
        if calibration.channel in of_sample:
            raise InputError(
                f"{path}: record {_token(path, record)}: expected one keyframe of {calibration.channel} in "
                f"sample {record['sample_token']}, found a second. Unpack the metadata archive again."
            )
        of_sample[calibration.channel] = _SampleData(
            _filename(path, record),
            _field(path, record, "timestamp", int),
            _field(path, record, "width", int),
            _field(path, record, "height", int),
            calibration,
            _field(path, record, "ego_pose_token", str),
        )
    return result


def _read_ego_poses(
    table: dict[str, Path], keyframes: dict[str, dict[str, _SampleData]]
) -> dict[str, np.ndarray]:
    """Token → (4, 4) map_T_ego, of the poses that keyframes use."""
    path = table["ego_pose"]
    wanted = {data.ego_pose_token: data for of_sample in keyframes.values() for data in of_sample.values()}
    poses = {token: _pose(path, r) for r in read_records(path) if (token := _token(path, r)) in wanted}
    for token, data in wanted.items():
        if token not in poses:
            raise InputError(
                f"{table['sample_data']}: the record of {data.filename}: field 'ego_pose_token' is "
                f"{token!r}, expected a token of {path.name}, found none such. Unpack the metadata archive "
                "again."
            )
    return poses


def _make_frame(
    root: Path,
    token: str,
    timestamp: int,
    scene: tuple[str, str],
    of_sample: dict[str, _SampleData],
    poses: dict[str, np.ndarray],
    table: dict[str, Path],
    required: Sequence[str] = (*CAMERAS, LIDAR),
) -> Frame:
    missing = [channel for channel in required if channel not in of_sample]
    if missing:
        raise InputError(
            f"{table['sample_data']}: sample {token} ({scene[0]}): expected a keyframe of each of "
            f"{', '.join(required)}; missing: {', '.join(missing)}. Unpack the metadata archive "
            "again."
        )
    cameras = []
    for channel in (channel for channel in CAMERAS if channel in of_sample):
        data = of_sample[channel]
        if data.width <= 0 or data.height <= 0:
            raise InputError(
                f"{table['sample_data']}: the record of {data.filename}: expected a positive width and "
                f"height, found {data.width} x {data.height}."
            )
        cameras.append(
            Camera(
                channel,
                root / data.filename,
                data.width,
                data.height,
                data.timestamp,
                data.calibration.intrinsics,
                data.calibration.ego_T_sensor,
                poses[data.ego_pose_token],
            )
        )
    data = of_sample[LIDAR]
    lidar = Lidar(
        root / data.filename, data.timestamp, data.calibration.ego_T_sensor, poses[data.ego_pose_token]
    )
    return Frame(token, *scene, timestamp, tuple(cameras), lidar)


def _field(table: Path, record: dict[str, Any], field: str, kind: type) -> Any:
    if not isinstance(record, dict) or field not in record:
        keys = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise InputError(f"{table}: record {_name(record)}: expected the field {field!r}, found {keys}.")
    value = record[field]
    # bool is an int to Python, not to us.
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise InputError(
            f"{table}: record {_name(record)}: field {field!r}: expected {kind.__name__}, found "
            f"{type(value).__name__} {value!r}."
        )
    return value


def _name(record: Any) -> str:
    return repr(record.get("token", record)) if isinstance(record, dict) else repr(record)


def _token(table: Path, record: dict[str, Any]) -> str:
    return _field(table, record, "token", str)


def _number(table: Path, record: dict[str, Any], field: str) -> float:
    value = _field(table, record, field, object)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(
            f"{table}: record {_name(record)}: field {field!r}: expected a finite number, found {value!r}."
        )
    return float(value)


def _numbers(table: Path, record: dict[str, Any], field: str, shape: tuple[int, ...]) -> np.ndarray:
    value = _field(table, record, field, list)
    try:
        array = np.array(value, np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape != shape or not np.isfinite(array).all():
        size = " x ".join(str(n) for n in shape)
        raise InputError(
            f"{table}: record {_name(record)}: field {field!r}: expected {size} finite numbers, found "
            f"{value!r}."
        )
    return array


def _pose(table: Path, record: dict[str, Any]) -> np.ndarray:
    """(4, 4) float64 of a record's `rotation` (unit quaternion w, x, y, z) and `translation` (m)."""
    quaternion = _numbers(table, record, "rotation", (4,))
    length = float(np.linalg.norm(quaternion))
    if abs(length - 1) > _QUATERNION_TOLERANCE:
        raise InputError(
            f"{table}: record {_name(record)}: field 'rotation': expected a quaternion of unit length, "
            f"found length {length:.6g}."
        )
    rotation = rigid.quaternion_to_matrix(quaternion / length)
    return rigid.rigid_matrix(rotation, _numbers(table, record, "translation", (3,)))


def _intrinsics(table: Path, record: dict[str, Any]) -> np.ndarray:
    matrix = _numbers(table, record, "camera_intrinsic", (3, 3))
    if matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or not np.array_equal(matrix[2], [0, 0, 1]):
        raise InputError(
            f"{table}: record {_name(record)}: field 'camera_intrinsic': expected positive focal lengths "
            f"and a last row of 0 0 1, found {matrix.tolist()}."
        )
    return matrix


def _filename(table: Path, record: dict[str, Any]) -> str:
    filename = _field(table, record, "filename", str)
    parts = Path(filename).parts
    if not parts or Path(filename).is_absolute() or ".." in parts:
        raise InputError(
            f"{table}: record {_name(record)}: field 'filename': expected a path inside the root, found "
            f"{filename!r}."
        )
    return filename


def _resolve(
    tables: dict[str, Path],
    table: str,
    record: dict[str, Any],
    field: str,
    target: str,
    index: dict[str, Any],
) -> Any:
    token = _field(tables[table], record, field, str)
    return _lookup(tables[table], record, field, token, f"{target}.json", index)


def _lookup(
    table: Path, record: dict[str, Any], field: str, token: Any, target: str, index: dict[str, Any]
) -> Any:
    """What `token` stands for in the table `target`; InputError if it dangles."""
    if not isinstance(token, str) or token not in index:
        raise InputError(
            f"{table}: record {_name(record)}: field {field!r} is {token!r}, expected a token of {target}, "
            "found none such. The tables do not belong together or are incomplete: unpack the metadata "
            "archive again."
        )
    return index[token]
