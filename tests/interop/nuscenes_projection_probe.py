"""Run by .venv-interop: what the official devkit says of the keyframes of a nuScenes root.

python nuscenes_projection_probe.py ROOT ANSWERS.json

For every sample in the order of its scenes: token, the file of every channel, and of each camera how many
points of the sweep are seen in it and the sums of their pixels.
"""

import json
import sys

from nuscenes.nuscenes import NuScenes


def main(root: str, answers_path: str) -> None:
    """Probe everything and write the answers."""
    nusc = NuScenes(version="v1.0-trainval", dataroot=root, verbose=False)
    answers = []
    for scene in nusc.scene:
        token = scene["first_sample_token"]
        while token:
            sample = nusc.get("sample", token)
            seen = {}
            for channel in sample["data"]:
                if not channel.startswith("CAM"):
                    continue
                points, depth, _ = nusc.explorer.map_pointcloud_to_image(
                    sample["data"]["LIDAR_TOP"], sample["data"][channel]
                )
                seen[channel] = [len(depth), float(points[0].sum()), float(points[1].sum())]
            answers.append(
                {
                    "token": token,
                    "scene": scene["name"],
                    "location": nusc.get("log", scene["log_token"])["location"],
                    "timestamp": sample["timestamp"],
                    "files": {
                        channel: nusc.get("sample_data", data)["filename"]
                        for channel, data in sample["data"].items()
                    },
                    "seen": seen,
                }
            )
            token = sample["next"]
    with open(answers_path, "w") as file:
        json.dump(answers, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
