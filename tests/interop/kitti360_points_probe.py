"""Run by .venv-interop: where kitti360scripts see points of the world in the fisheyes of a KITTI-360 root.

python kitti360_points_probe.py ROOT OUT.npz POINTS.npz

POINTS holds world points (N, 3) under "0009/image_02/17", of drive, camera and frame; OUT has their pixels
(N, 2) under the same keys.
"""

import sys
from functools import partial

import numpy as np
import yaml

# The scripts call it as older versions had it, without a loader.
yaml.load = partial(yaml.load, Loader=yaml.SafeLoader)

from kitti360scripts.helpers.project import CameraFisheye  # noqa: E402

if __name__ == "__main__":
    root, out, given = sys.argv[1:]
    cameras: dict[tuple[str, str], CameraFisheye] = {}
    pixels = {}
    with np.load(given) as points:
        for key in points:
            drive, name, frame = key.split("/")
            if (drive, name) not in cameras:
                cameras[drive, name] = CameraFisheye(root, f"2013_05_28_drive_{drive}_sync", int(name[-1]))
            (u, v), _ = cameras[drive, name].project_vertices(points[key], float(frame))
            pixels[key] = np.stack([u, v], axis=1)
    np.savez(out, **pixels)
