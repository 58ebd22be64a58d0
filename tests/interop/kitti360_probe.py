"""Run by .venv-interop: open a KITTI-360 root with kitti360scripts and write down what it says.

python kitti360_probe.py ROOT OUT.npz NUMBER [NUMBER …]     NUMBER of a drive, e.g. 9

Keys are "0009/name". Per camera 0 and 1: intrinsics, size, poses and the pixels of the scans' points,
projected the way of the scripts' own `projectVeloToImage`.
"""

import os
import sys
import types
from pathlib import Path

import numpy as np

# What the scripts expect of an older NumPy, and what they import only to draw.
vars(np)["int"] = int
sys.modules["open3d"] = types.ModuleType("open3d")

from kitti360scripts.devkits.commons import loadCalibration  # noqa: E402
from kitti360scripts.helpers.project import CameraPerspective  # noqa: E402
from kitti360scripts.viewer.kitti360Viewer3DRaw import Kitti360Viewer3DRaw  # noqa: E402

CAMERAS = (0, 1)


def probe(root: str, number: int) -> dict[str, np.ndarray]:
    os.environ["KITTI360_DATASET"] = root
    calibration = Path(root) / "calibration"
    lidar_T_camera0 = loadCalibration.loadCalibrationRigid(calibration / "calib_cam_to_velo.txt")
    imu_T_camera = loadCalibration.loadCalibrationCameraToPose(calibration / "calib_cam_to_pose.txt")
    scans = Kitti360Viewer3DRaw(seq=number, mode="velodyne")
    frames = sorted(int(path.stem) for path in Path(scans.raw3DPcdPath).glob("*.bin"))
    answers = {
        "frames": np.array(frames),
        "lidar_T_camera0": lidar_T_camera0,
        "imu_T_camera0": imu_T_camera["image_00"],
    }
    points = {frame: scans.loadVelodyneData(frame) for frame in frames}
    answers |= {f"scan{frame}": scan for frame, scan in points.items()}
    for k in CAMERAS:
        camera = CameraPerspective(root, f"2013_05_28_drive_{number:04d}_sync", k)
        camera_T_camera0 = np.linalg.inv(imu_T_camera[f"image_{k:02d}"]) @ imu_T_camera["image_00"]
        rectified_T_lidar = camera.R_rect @ camera_T_camera0 @ np.linalg.inv(lidar_T_camera0)
        answers[f"camera{k}/K"] = camera.K
        answers[f"camera{k}/size"] = np.array([camera.width, camera.height])
        answers[f"camera{k}/frames"] = camera.frames
        answers[f"camera{k}/to_world"] = np.array([camera.cam2world[frame] for frame in camera.frames])
        answers[f"camera{k}/rectified_T_lidar"] = rectified_T_lidar
        for frame, scan in points.items():
            homogeneous = np.concatenate([scan[:, :3], np.ones((len(scan), 1))], axis=1)
            u, v, depth = camera.cam2image((rectified_T_lidar @ homogeneous.T)[:3])
            answers[f"camera{k}/pixels{frame}"] = np.stack([u, v, depth], axis=1)
    return {f"{number:04d}/{name}": np.asarray(array) for name, array in answers.items()}


if __name__ == "__main__":
    root, out, *numbers = sys.argv[1:]
    arrays: dict[str, np.ndarray] = {}
    for number in numbers:
        arrays |= probe(root, int(number))
    np.savez(out, **arrays)
