"""Run by .venv-interop: open the fisheyes of a KITTI-360 root with kitti360scripts, write down what it says.

python kitti360_fisheye_probe.py ROOT OUT.npz NUMBER [NUMBER …]     NUMBER of a drive, e.g. 9

Keys are "0009/camera2/name": size, the frames with a pose, world ← camera of each, and the pixels of the
points about the camera that `RAYS` makes.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import yaml

# The scripts call it as older versions had it, without a loader.
yaml.load = partial(yaml.load, Loader=yaml.SafeLoader)

from kitti360scripts.helpers.project import CameraFisheye  # noqa: E402

RAYS = np.random.default_rng(0).normal(size=(500, 3)) * 20  # points of the camera's axes, m


def probe(root: str, number: int) -> dict[str, np.ndarray]:
    answers = {}
    for k in (2, 3):
        camera = CameraFisheye(root, f"2013_05_28_drive_{number:04d}_sync", k)
        u, v, _ = camera.cam2image(RAYS.T.copy())
        answers[f"camera{k}/size"] = np.array([camera.width, camera.height])
        answers[f"camera{k}/frames"] = camera.frames
        answers[f"camera{k}/poses"] = np.stack([camera.cam2world[frame] for frame in camera.frames])
        answers[f"camera{k}/points"] = RAYS
        answers[f"camera{k}/pixels"] = np.stack([u, v], axis=1)
    return answers


if __name__ == "__main__":
    root, out, *numbers = sys.argv[1:]
    found = {number: probe(root, int(number)) for number in numbers}
    flat = {
        f"{int(number):04d}/{key}": value for number, keys in found.items() for key, value in keys.items()
    }
    np.savez(Path(out), **flat)
