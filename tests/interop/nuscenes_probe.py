"""Run by .venv-interop: open a nuScenes root with the official devkit and write down what it says.

python nuscenes_probe.py ROOT ANSWERS.json POINTS.npz
"""

import json
import os.path
import sys

import numpy as np
from nuscenes.map_expansion.map_api import NuScenesMap
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box
from nuscenes.utils.splits import create_splits_scenes

CAMERAS = (
    "CAM_FRONT_LEFT",
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
)


def probe_map(nusc: NuScenes, location: str, positions: np.ndarray) -> dict:
    """What the map API and the mask say about one location and the positions (N, 2) driven there."""
    nusc_map = NuScenesMap(dataroot=nusc.dataroot, map_name=location)
    centre = positions[len(positions) // 2]
    raster = nusc_map.get_map_mask((*centre, 80, 80), 0.0, ["drivable_area", "walkway"], (100, 100))
    record = next(
        r for r in nusc.map if any(nusc.get("log", t)["location"] == location for t in r["log_tokens"])
    )
    return {
        "layers": {name: len(getattr(nusc_map, name)) for name in nusc_map.layer_names},
        "drivable": [nusc_map.record_on_point(x, y, "drivable_area") != "" for x, y in positions],
        "mask": record["mask"].is_on_mask(positions[:, 0], positions[:, 1]).tolist(),
        "raster_shares": raster.mean((1, 2)).tolist(),
        "lane_lines": nusc_map.discretize_lanes([lane["token"] for lane in nusc_map.lane], 2.0),
        "nearby_lanes": len(nusc_map.get_records_in_radius(*centre, 60, ["lane"])["lane"]),
        "stop_line_cues": sorted({line["stop_line_type"] for line in nusc_map.stop_line}),
    }


def probe_boxes(nusc: NuScenes, sample: dict) -> list[list[int]]:
    """For each annotated box: LiDAR points inside it, grown by 10 %, and the number its record states."""
    token = sample["data"]["LIDAR_TOP"]
    path, boxes, _ = nusc.get_sample_data(token)
    points = LidarPointCloud.from_file(path).points[:3]
    return [
        [
            int(points_in_box(box, points, wlh_factor=1.1).sum()),
            nusc.get("sample_annotation", box.token)["num_lidar_pts"],
        ]
        for box in boxes
    ]


def probe_velocities(nusc: NuScenes) -> list[list]:
    """For each annotation: category, attribute, and speed (m/s) by the devkit; nan where it has none."""
    found = []
    for record in nusc.sample_annotation:
        attribute = nusc.get("attribute", record["attribute_tokens"][0])["name"]
        speed = float(np.hypot(*nusc.box_velocity(record["token"])[:2]))
        found.append([record["category_name"], attribute, speed])
    return found


def render(nusc: NuScenes, folder: str) -> list[str]:
    """Draw one keyframe with its boxes as the devkit does, into files of `folder`."""
    sample = max(nusc.sample, key=lambda record: len(record["anns"]))
    files = []
    for channel in ("CAM_FRONT", "CAM_BACK", "LIDAR_TOP"):
        files.append(os.path.join(folder, f"{channel}.png"))
        nusc.render_sample_data(sample["data"][channel], out_path=files[-1], verbose=False)
    return files


def main(root: str, answers_path: str, points_path: str) -> None:
    """Probe everything and write the answers."""
    nusc = NuScenes(version="v1.0-trainval", dataroot=root, verbose=False)
    projected = {}
    boxes = []
    for sample in nusc.sample:
        boxes += probe_boxes(nusc, sample)
        for camera in CAMERAS:
            points, depth, image = nusc.explorer.map_pointcloud_to_image(
                sample["data"]["LIDAR_TOP"], sample["data"][camera]
            )
            data = nusc.get("sample_data", sample["data"][camera])
            if image.size != (data["width"], data["height"]):
                raise SystemExit(f"{data['filename']} is {image.size}, its record says otherwise")
            projected[os.path.basename(data["filename"])] = np.vstack([points[:2], depth])
    positions = {}
    for data in nusc.sample_data:
        log = nusc.get(
            "log", nusc.get("scene", nusc.get("sample", data["sample_token"])["scene_token"])["log_token"]
        )
        pose = nusc.get("ego_pose", data["ego_pose_token"])
        positions.setdefault(log["location"], []).append(pose["translation"][:2])
    splits = create_splits_scenes()
    answers = {
        "counts": {name: len(getattr(nusc, name)) for name in nusc.table_names},
        "splits": {
            scene["name"]: [name for name in ("train", "val", "test") if scene["name"] in splits[name]]
            for scene in nusc.scene
        },
        "official": {name: splits[name] for name in ("train", "val", "test")},
        "descriptions": {scene["name"]: scene["description"] for scene in nusc.scene},
        "maps": {place: probe_map(nusc, place, np.array(xy)) for place, xy in positions.items()},
        "boxes": boxes,
        "velocities": probe_velocities(nusc),
        "rendered": render(nusc, os.path.dirname(answers_path)),
    }
    with open(answers_path, "w") as file:
        json.dump(answers, file)
    np.savez(points_path, **projected)


if __name__ == "__main__":
    main(*sys.argv[1:])
