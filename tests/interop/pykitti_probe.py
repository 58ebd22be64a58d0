"""Run by .venv-interop: open KITTI odometry sequences with pykitti and write down what it says.

python pykitti_probe.py DATASET OUT.npz SEQUENCE [SEQUENCE …]

Keys are "SEQUENCE/name". Scans and images are numbered by their place in pykitti's list of files; an image is
given by its (height, width, channels).
"""

import sys
from pathlib import Path

import numpy as np
import pykitti


def probe(dataset: str, sequence: str) -> dict[str, np.ndarray]:
    data = pykitti.odometry(dataset, sequence)
    answers = {
        "poses": np.array(data.poses),  # world ← camera 0
        "times": np.array([time.total_seconds() for time in data.timestamps]),
        "camera0_T_lidar": data.calib.T_cam0_velo,
        "P2": data.calib.P_rect_20,
        "K2": data.calib.K_cam2,
        "scan_names": np.array([Path(path).name for path in data.velo_files]),
        "image_names": np.array([Path(path).name for path in data.cam2_files]),
        "image_shapes": np.array([np.asarray(image).shape for image in data.cam2]),
    }
    scans = {f"scan{number}": points for number, points in enumerate(data.velo)}
    return {f"{sequence}/{name}": array for name, array in (answers | scans).items()}


if __name__ == "__main__":
    dataset, out, *sequences = sys.argv[1:]
    arrays: dict[str, np.ndarray] = {}
    for sequence in sequences:
        arrays |= probe(dataset, sequence)
    np.savez(out, **arrays)
