"""The nuScenes tables (all of version 1.0) of the built-in city."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from data_prep.city.drives import Log, Scene
from data_prep.city.light import Light
from data_prep.city.map_expansion import expansion, token, write_mask
from data_prep.city.recording import NUSCENES, Box, file_name, log_file, map_poses, timestamps
from data_prep.city.sensors import CAMERAS, Rig
from data_prep.city.world import World

VERSION = "v1.0-trainval"
CATEGORIES = {
    "car": ("vehicle.car", "A parked or driving car."),
    "truck": ("vehicle.truck", "A driving truck."),
    "bus": ("vehicle.bus.rigid", "A driving bus."),
    "adult": ("human.pedestrian.adult", "A person on foot."),
    "child": ("human.pedestrian.child", "A child on foot."),
}
ATTRIBUTES = {
    "vehicle.parked": "Vehicle is stationary for longer than this drive.",
    "vehicle.moving": "Vehicle is moving.",
    "vehicle.stopped": "Vehicle stands in traffic.",
    "pedestrian.moving": "The person is walking.",
    "pedestrian.standing": "The person is standing.",
}

CHANNELS = ("LIDAR_TOP", *CAMERAS)
_VISIBILITY = ((0.4, "1", "v0-40"), (0.6, "2", "v40-60"), (0.8, "3", "v60-80"), (np.inf, "4", "v80-100"))


def make_folders(root: Path) -> None:
    """Create the folders that `record_scene` and the writers put files in."""
    for channel in CHANNELS:
        (root / "samples" / channel).mkdir(parents=True)
    (root / VERSION).mkdir()
    (root / "maps" / "expansion").mkdir(parents=True)


def mask_name(location: str) -> str:
    """The file of a location's semantic prior, below the root."""
    return f"maps/{token('mask', location)}.png"


def write_map(root: Path, world: World) -> None:
    """Write the map expansion and the mask of one town."""
    (root / "maps" / "expansion" / f"{world.location}.json").write_text(json.dumps(expansion(world)))
    write_mask(root / mask_name(world.location), world)


class TableWriter:
    """Collects the records of all tables, log by log, and writes them at the end."""

    def __init__(self) -> None:
        self.tables: dict[str, list[dict]] = {
            name: []
            for name in [
                "category",
                "attribute",
                "visibility",
                "instance",
                "sensor",
                "calibrated_sensor",
                "ego_pose",
                "log",
                "scene",
                "sample",
                "sample_data",
                "sample_annotation",
                "map",
            ]
        }
        add = self.tables
        for kind, (name, description) in CATEGORIES.items():
            add["category"].append(
                {"token": token("category", kind), "name": name, "description": description}
            )
        for name, description in ATTRIBUTES.items():
            add["attribute"].append(
                {"token": token("attribute", name), "name": name, "description": description}
            )
        for _, number, level in _VISIBILITY:
            add["visibility"].append(
                {"token": number, "level": level, "description": f"visible from the vehicle: {level[1:]} %"}
            )
        for channel in CHANNELS:
            modality = "lidar" if channel == "LIDAR_TOP" else "camera"
            add["sensor"].append(
                {"token": token("sensor", channel), "channel": channel, "modality": modality}
            )

    def add_location(self, location: str, logs: Iterable[Log]) -> None:
        """One record of the map table."""
        self.tables["map"].append(
            {
                "token": token("map", location),
                "log_tokens": [token("log", log_file(log)) for log in logs],
                "category": "semantic_prior",
                "filename": mask_name(location),
            }
        )

    def add_log(self, log: Log, rig: Rig) -> None:
        """The log and the calibration of its sensors."""
        name = log_file(log)
        self.tables["log"].append(
            {
                "token": token("log", name),
                "logfile": name,
                "vehicle": "built-in-city",
                "date_captured": log.date,
                "location": log.location,
            }
        )
        poses = [rig.ego_T_lidar] + [camera.ego_T_camera for camera in rig.cameras]
        intrinsics = [[]] + [camera.intrinsics.tolist() for camera in rig.cameras]
        for channel, pose, matrix in zip(CHANNELS, poses, intrinsics, strict=True):
            self.tables["calibrated_sensor"].append(
                {
                    "token": token("calibrated_sensor", name, channel),
                    "sensor_token": token("sensor", channel),
                    "translation": pose[:3, 3].tolist(),
                    "rotation": _quaternion(pose[:3, :3]),
                    "camera_intrinsic": matrix,
                }
            )

    def add_scene(
        self,
        world: World,
        log: Log,
        scene: Scene,
        rig: Rig,
        light: Light,
        boxes: list[list[Box]],
        seed: int,
    ) -> None:
        """The scene with its samples, sensor data, poses and annotations."""
        name = log_file(log)
        times = timestamps(log, scene, rig, seed)
        poses = map_poses(world, log, times, NUSCENES.rig)
        samples = [token("sample", scene.name, k) for k in range(scene.keyframes)]
        self.tables["scene"].append(
            {
                "token": token("scene", scene.name),
                "log_token": token("log", name),
                "nbr_samples": scene.keyframes,
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": scene.name,
                "description": f"Built-in city, {log.district} district, {_DRIVE_KINDS[log.kind]}, "
                f"{_weather(light)}.",
            }
        )
        width, height = rig.cameras[0].size
        for k, sample in enumerate(samples):
            self.tables["sample"].append(
                {
                    "token": sample,
                    "timestamp": int(times[k, 0]),
                    "prev": _at(samples, k - 1),
                    "next": _at(samples, k + 1),
                    "scene_token": token("scene", scene.name),
                }
            )
            for column, channel in enumerate(CHANNELS):
                data = [token("sample_data", scene.name, channel, i) for i in (k - 1, k, k + 1)]
                lidar = channel == "LIDAR_TOP"
                pose = poses[k, column]
                # As in nuScenes, an ego pose has the token of the sensor data it belongs to.
                self.tables["ego_pose"].append(
                    {
                        "token": data[1],
                        "timestamp": int(times[k, column]),
                        "rotation": _quaternion(pose[:3, :3]),
                        "translation": pose[:3, 3].tolist(),
                    }
                )
                self.tables["sample_data"].append(
                    {
                        "token": data[1],
                        "sample_token": sample,
                        "ego_pose_token": data[1],
                        "calibrated_sensor_token": token("calibrated_sensor", name, channel),
                        "timestamp": int(times[k, column]),
                        "fileformat": "pcd" if lidar else "jpg",
                        "is_key_frame": True,
                        "height": 0 if lidar else height,
                        "width": 0 if lidar else width,
                        "filename": file_name(log, channel, int(times[k, column])),
                        "prev": data[0] if k > 0 else "",
                        "next": data[2] if k + 1 < scene.keyframes else "",
                    }
                )
        self._add_annotations(scene, samples, boxes)

    def _add_annotations(self, scene: Scene, samples: list[str], boxes: list[list[Box]]) -> None:
        seen: dict[int, list[tuple[int, Box]]] = {}
        for k, frame in enumerate(boxes):
            for box in frame:
                seen.setdefault(box.instance, []).append((k, box))
        for number, frames in sorted(seen.items()):
            tokens = [token("annotation", scene.name, number, k) for k, _ in frames]
            instance = token("instance", scene.name, number)
            self.tables["instance"].append(
                {
                    "token": instance,
                    "category_token": token("category", frames[0][1].kind),
                    "nbr_annotations": len(tokens),
                    "first_annotation_token": tokens[0],
                    "last_annotation_token": tokens[-1],
                }
            )
            for i, (k, box) in enumerate(frames):
                length, width, height = box.size
                visibility = next(level for limit, level, _ in _VISIBILITY if box.visibility < limit)
                self.tables["sample_annotation"].append(
                    {
                        "token": tokens[i],
                        "sample_token": samples[k],
                        "instance_token": instance,
                        "visibility_token": visibility,
                        "attribute_tokens": [token("attribute", _attribute(box))],
                        "translation": (box.map_T_body @ [0, 0, height / 2, 1])[:3].tolist(),
                        "size": [width, length, height],
                        "rotation": _quaternion(box.map_T_body[:3, :3]),
                        "prev": _at(tokens, i - 1),
                        "next": _at(tokens, i + 1),
                        "num_lidar_pts": box.lidar_points,
                        "num_radar_pts": 0,
                    }
                )

    def write(self, root: Path) -> None:
        """Write every table, one record per line."""
        for name, records in self.tables.items():
            lines = ",\n".join(json.dumps(record) for record in records)
            (root / VERSION / f"{name}.json").write_text(f"[\n{lines}\n]\n")


_DRIVE_KINDS = {
    "first": "first visit",
    "same": "revisit in the same direction",
    "opposite": "revisit in the opposite direction",
    "lane": "revisit on another lane",
}


def _weather(light: Light) -> str:
    sky = "rain" if light.wet > 0 else "snow on the ground" if light.snow > 0 else "dry"
    return f"{light.season} {light.phase}, {sky}"


def _attribute(box: Box) -> str:
    if box.kind in ("adult", "child"):
        return f"pedestrian.{box.state}"
    return {"parked": "vehicle.parked", "moving": "vehicle.moving", "standing": "vehicle.stopped"}[box.state]


def _at(tokens: list[str], index: int) -> str:
    return tokens[index] if 0 <= index < len(tokens) else ""


def _quaternion(matrix: np.ndarray) -> list[float]:
    """(3, 3) rotation → [w, x, y, z] with w >= 0."""
    return Rotation.from_matrix(matrix).as_quat(canonical=True, scalar_first=True).tolist()
