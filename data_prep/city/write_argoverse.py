"""The Argoverse 1 Tracking layout of the built-in city: logs of seven ring cameras and LiDAR, and map_files.

Two towns stand for Miami (MIA) and Pittsburgh (PIT), in the city frames of those, so that UTM and
OpenStreetMap fit as they do for the real data. What Argoverse has and this does not write: stereo images
(their calibration is there, because the official loader wants it), lane graph, ground heights, and the images
and sweeps between keyframes. The calibration says the size of the images, which are smaller than the real
ones. As published, logs of the test split have no annotations.
"""

import json
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import shapely
from scipy.spatial.transform import Rotation

from data_prep import rasterize
from data_prep.city.drives import Log, Scene
from data_prep.city.recording import Box, Instant, Layout, log_file, map_poses, timestamps
from data_prep.city.sensors import Mount, Rig, RigPlan
from data_prep.city.world import World
from placerec_jax.ops import rigid
from placerec_jax.ops.grid import Grid2D

LOCATIONS = ("PIT", "MIA")
TRAIN_FOLDERS = ("train1", "train2", "train3", "train4")

# As calibrated on a vehicle of the dataset. Delays are so small that the nearest image of every sweep is
# within half an interval of cameras at 30 Hz.
RIG = RigPlan(
    reference_size=(1920, 1200),
    cameras={
        "ring_front_center": Mount(1392.1, (980.2, 604.4), (1.65, 0.00, 1.36), -0.6, 0.000),
        "ring_front_left": Mount(1393.8, (960.5, 607.4), (1.51, 0.25, 1.37), 44.5, 0.002),
        "ring_front_right": Mount(1392.4, (958.0, 608.5), (1.51, -0.27, 1.36), -45.6, 0.004),
        "ring_rear_left": Mount(1393.3, (967.3, 613.2), (1.11, 0.25, 1.37), 149.9, 0.006),
        "ring_rear_right": Mount(1393.4, (951.7, 597.4), (1.10, -0.25, 1.37), -150.3, 0.008),
        "ring_side_left": Mount(1395.1, (967.7, 613.3), (1.29, 0.28, 1.37), 99.6, 0.010),
        "ring_side_right": Mount(1391.7, (982.0, 608.3), (1.29, -0.29, 1.37), -100.3, 0.012),
    },
    lidar_position=(1.35, 0.0, 1.57),
    ego_height=0.33,
)
_STEREO = {"stereo_front_left": 0.148, "stereo_front_right": -0.150}  # m to the left of the vehicle's middle
_FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # ego axes from camera axes

_POINT = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "u1"), ("laser_number", "u1")])
ANNOTATIONS = "per_sweep_annotations_amodal"
_LABEL_CLASS = {
    "car": "VEHICLE",
    "truck": "LARGE_VEHICLE",
    "bus": "BUS",
    "adult": "PEDESTRIAN",
    "child": "PEDESTRIAN",
}
MAP_MARGIN = 100.0  # m of map around the roads


def log_folder(log: Log) -> str:
    """Where a log lies below the root: its split's folder, train in four as published."""
    split = TRAIN_FOLDERS[log.number % len(TRAIN_FOLDERS)] if log.district == "train" else log.district
    return f"argoverse-tracking/{split}/{log_file(log)}"


def _image_file(log: Log, channel: str, instant: Instant) -> str:
    return f"{log_folder(log)}/{channel}/{channel}_{instant.time}000.jpg"


def _write_sweep(root: Path, log: Log, rig: Rig, instant: Instant, points: np.ndarray) -> None:
    """Binary PLY, the points in the ego frame."""
    xyz = points[:, :3].astype(np.float64) @ rig.ego_T_lidar[:3, :3].T + rig.ego_T_lidar[:3, 3]
    record = np.empty(len(points), _POINT)
    for column, name in enumerate("xyz"):
        record[name] = xyz[:, column]
    record["intensity"], record["laser_number"] = points[:, 3], points[:, 4]
    properties = "".join(
        f"property {'float' if name in 'xyz' else 'uchar'} {name}\n" for name in _POINT.names or ()
    )
    header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(points)}\n{properties}end_header\n"
    path = root / log_folder(log) / "lidar" / f"PC_{instant.time}000.ply"
    path.write_bytes(header.encode("ascii") + record.tobytes())


LAYOUT = Layout(RIG, _image_file, _write_sweep)


def make_folders(root: Path, logs: list[Log]) -> None:
    """Create the folders that `record_scene` and the writers put files in."""
    for log in logs:
        for name in ("poses", "lidar", *RIG.cameras):
            (root / log_folder(log) / name).mkdir(parents=True)
    (root / "map_files").mkdir()


def write_log(
    root: Path, world: World, log: Log, rig: Rig, boxes: Mapping[str, list[list[Box]]], seed: int
) -> None:
    """The city, the calibration, the annotations, and the pose at the time of every image and sweep of a log.

    `boxes` are what `record_scene` gave, by the scene's name.
    """
    folder = root / log_folder(log)
    _write_json(folder / "city_info.json", {"city_name": world.location})
    _write_json(folder / "vehicle_calibration_info.json", _calibration(rig))
    for scene in log.scenes:
        for time, pose in zip(*_poses(world, log, scene, rig, seed), strict=True):
            path = folder / "poses" / f"city_SE3_egovehicle_{time}000.json"
            _write_json(path, {"rotation": _quaternion(pose[:3, :3]), "translation": pose[:3, 3].tolist()})
        if log.district != "test":
            _write_annotations(folder, world, log, scene, rig, boxes[scene.name], seed)


def write_map(root: Path, world: World) -> None:
    """The drivable area of one town: cells of 1 m about whole metres, and where they lie."""
    x_min, y_min, x_max, y_max = shapely.bounds(world.road)
    first = np.floor([x_min - MAP_MARGIN, y_min - MAP_MARGIN])
    last = np.ceil([x_max + MAP_MARGIN, y_max + MAP_MARGIN])
    extent = (first[0] - 0.5, last[0] + 0.5, first[1] - 0.5, last[1] + 0.5)
    polygons = [
        [shapely.get_coordinates(ring) for ring in (part.exterior, *part.interiors)]
        for part in world.road.geoms
    ]
    cells = rasterize.fill_polygons(polygons, Grid2D(tuple(float(edge) for edge in extent), 1.0))
    registration = np.eye(3)
    registration[:2, 2] = -first
    name = root / "map_files" / _MAP_NAME[world.location]
    # Rows of the image are the city's y.
    np.save(f"{name}_driveable_area_mat_2019_05_28.npy", np.ascontiguousarray(cells.T))
    np.save(f"{name}_npyimage_to_city_se2_2019_05_28.npy", registration)


_MAP_NAME = {"MIA": "MIA_10316", "PIT": "PIT_10314"}


def _poses(world: World, log: Log, scene: Scene, rig: Rig, seed: int) -> tuple[list[int], np.ndarray]:
    """Every time (µs) at which a sensor recorded, and (N, 4, 4) map_T_ego at those times."""
    times = np.unique(timestamps(log, scene, rig, seed))
    return times.tolist(), map_poses(world, log, times, RIG)


def _write_annotations(
    folder: Path, world: World, log: Log, scene: Scene, rig: Rig, boxes: list[list[Box]], seed: int
) -> None:
    """What LiDAR returns came from, one file a sweep, in the ego frame at its time."""
    sweeps = timestamps(log, scene, rig, seed)[:, 0]
    (folder / ANNOTATIONS).mkdir(exist_ok=True)
    for time, pose, of_sweep in zip(sweeps, map_poses(world, log, sweeps, RIG), boxes, strict=True):
        content = [_annotation(log, int(time), pose, box) for box in of_sweep if box.lidar_points]
        _write_json(folder / ANNOTATIONS / f"tracked_object_labels_{time}000.json", content)


def _annotation(log: Log, time: int, map_T_ego: np.ndarray, box: Box) -> dict:
    length, width, height = box.size
    body = rigid.rigid_inverse(map_T_ego) @ box.map_T_body
    centre = body @ [0.0, 0.0, height / 2, 1.0]
    return {
        "center": dict(zip("xyz", centre[:3].tolist(), strict=True)),
        "rotation": dict(zip("wxyz", _quaternion(body[:3, :3]), strict=True)),
        "length": length,
        "width": width,
        "height": height,
        "track_label_uuid": str(uuid.uuid5(uuid.NAMESPACE_OID, f"{log_file(log)} {box.instance}")),
        "timestamp": time * 1000,
        "label_class": _LABEL_CLASS[box.kind],
    }


def _calibration(rig: Rig) -> dict:
    cameras = [
        _camera(camera.channel, camera.intrinsics, camera.ego_T_camera, camera.size) for camera in rig.cameras
    ]
    for name, left in _STEREO.items():
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = _FORWARD, (1.62, left, 1.36)
        intrinsics = np.array([[3650.0, 0, 1250], [0, 3650, 1060], [0, 0, 1]])
        cameras += [_camera(channel, intrinsics, pose, (2464, 2056)) for channel in (name, f"{name}_rect")]
    lidar = {
        "rotation": {"coefficients": _quaternion(rig.ego_T_lidar[:3, :3])},
        "translation": rig.ego_T_lidar[:3, 3].tolist(),
    }
    return {"camera_data_": cameras, "vehicle_SE3_up_lidar_": lidar, "vehicle_SE3_down_lidar_": lidar}


def _camera(channel: str, intrinsics: np.ndarray, ego_T_camera: np.ndarray, size: tuple[int, int]) -> dict:
    value = {
        "focal_length_x_px_": intrinsics[0, 0],
        "focal_length_y_px_": intrinsics[1, 1],
        "focal_center_x_px_": intrinsics[0, 2],
        "focal_center_y_px_": intrinsics[1, 2],
        "skew_": intrinsics[0, 1],
        "distortion_coefficients_": [0.0, 0.0, 0.0],
        "image_width_px_": size[0],
        "image_height_px_": size[1],
        "vehicle_SE3_camera_": {
            "rotation": {"coefficients": _quaternion(ego_T_camera[:3, :3])},
            "translation": ego_T_camera[:3, 3].tolist(),
        },
    }
    return {"key": f"image_raw_{channel}", "value": value}


def _write_json(path: Path, content: dict | list) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def _quaternion(matrix: np.ndarray) -> list[float]:
    """(3, 3) rotation → [w, x, y, z] with w >= 0."""
    return Rotation.from_matrix(matrix).as_quat(canonical=True, scalar_first=True).tolist()
