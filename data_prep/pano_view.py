"""One panorama of KITTI-360 with its scan: is it stitched as it should be, and does the calibration fit?

    python -m data_prep pano_view --raw ROOT --out FILE.png [--pano equidistant185|v360|mei]
        [--sequence 0003] [--frame N] [--compensate-motion]

Above, the panorama with the azimuth below it, left positive; the seam between the fisheyes is in front, in
the middle. Below, the same with the scan's points on it, coloured by their distance: the points of a pole, a
kerb or a car must lie on that pole, kerb or car. They are put where the method takes the cameras' rays to be:
with `mei` they lie right, with `equidistant185` and `v360`, which ignore the calibration, a few degrees off.
Points that something nearer hides from the cameras are drawn as well.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_prep import panorama, scan_records
from data_prep.errors import InputError
from data_prep.raw import kitti360
from data_prep.raw.kitti360_cameras import FISHEYES, FisheyeCamera, fisheye_file, read_fisheye
from data_prep.raw.scans import Scan
from data_prep.view import save_whole

_FARTHEST = 40.0  # m: the end of the colours
_SIDES = {"image_02": np.pi / 2, "image_03": -np.pi / 2}  # where a camera looks that is exactly mounted


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep pano_view", description="Draw one panorama and the scan in it."
    )
    parser.add_argument("--raw", type=Path, required=True, help="root of KITTI-360")
    parser.add_argument("--pano", choices=tuple(panorama.METHODS), default="equidistant185")
    parser.add_argument("--sequence", help="default: the first with poses and scans")
    parser.add_argument("--frame", type=int, help="the number in the file's name; default: the first")
    parser.add_argument(
        "--compensate-motion", action="store_true", help="take the car's motion out of the scan"
    )
    parser.add_argument("--out", type=Path, required=True, help="a .png file")
    options = parser.parse_args(argv)
    scan = _chosen_scan(options.raw, options.sequence, options.frame)
    cameras = tuple(read_fisheye(options.raw, name) for name in FISHEYES)
    stitcher = panorama.Stitcher(options.pano, *cameras)
    files = (fisheye_file(options.raw, scan.sequence, name, scan.frame_id) for name in FISHEYES)
    picture = stitcher.stitch_files(*files)
    points = scan_records.read_points(scan.path)
    if options.compensate_motion:
        points = kitti360.compensate_motion(points, scan.sweep_motion)
    title = f"{scan.sequence}, frame {scan.frame_id}: {options.pano}"
    save_whole(draw_panorama(picture, points[:, :3], options.pano, cameras, title), options.out)
    print(f"{options.out}: {options.pano}, sequence {scan.sequence}, frame {scan.frame_id}")


def draw_panorama(
    picture: np.ndarray, lidar_xyz: np.ndarray, method: str, cameras: tuple[FisheyeCamera, ...], title: str
) -> Figure:
    """(H, W, 3) uint8 panorama, alone and with (N, 3) points."""
    height, width = picture.shape[:2]
    figure = Figure(figsize=(16, 2 * (16 * height / width + 0.6)), layout="constrained")
    alone, measured = figure.subplots(2)
    _draw(alone, picture)
    alone.set_title(f"{title}, {height} x {width}")
    columns, rows, metres = seen_at(lidar_xyz, method, cameras, (height, width))
    far_first = np.argsort(-metres)
    _draw(measured, picture)
    colours = {"c": metres[far_first], "cmap": "turbo_r", "vmin": 0, "vmax": _FARTHEST}
    dots = measured.scatter(columns[far_first], rows[far_first], s=2, lw=0, **colours)
    figure.colorbar(dots, ax=measured, label="distance (m)", pad=0.005, fraction=0.02)
    measured.set_title(f"the {len(lidar_xyz)} points of its scan, as the cameras see them")
    return figure


def seen_at(
    lidar_xyz: np.ndarray, method: str, cameras: tuple[FisheyeCamera, ...], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(N, 3) points → (N,) columns and rows of a panorama of `size` (whole numbers are pixels' middles), and
    (N,) metres from the camera that shows them.
    """
    best = np.full((4, len(lidar_xyz)), -np.inf)  # cosine to the camera's axis, azimuth, elevation, distance
    for camera in cameras:
        rays = lidar_xyz - camera.lidar_T_camera[:3, 3]
        length = np.maximum(np.linalg.norm(rays, axis=1), 1e-9)
        camera_rays = rays @ camera.lidar_T_camera[:3, :3]
        if panorama.METHODS[method].calibrated:
            azimuth, up = np.arctan2(rays[:, 1], rays[:, 0]), rays[:, 2]
        else:
            azimuth = _SIDES[camera.name] - np.arctan2(camera_rays[:, 0], camera_rays[:, 2])
            up = -camera_rays[:, 1]
        elevation = np.arcsin(np.clip(up / length, -1, 1))
        candidate = np.stack([camera_rays[:, 2] / length, azimuth, elevation, length])
        best = np.where(candidate[0] > best[0], candidate, best)
    _, azimuth, elevation, metres = best
    azimuth = (azimuth + np.pi) % (2 * np.pi) - np.pi
    columns = (1 - azimuth / np.pi) / 2 * size[1] - 0.5
    rows = (1 - elevation / (np.pi / 2)) / 2 * size[0] - 0.5
    return columns, rows, metres


def _draw(axes: Axes, picture: np.ndarray) -> None:
    height, width = picture.shape[:2]
    axes.imshow(picture, interpolation="nearest", aspect="auto")
    names = {180: "180° back", 90: "90° left", 0: "0° front", -90: "-90° right", -180: "-180° back"}
    axes.set_xticks([(1 - degrees / 180) / 2 * width - 0.5 for degrees in names], names.values())
    axes.set_yticks([(1 - up / 90) / 2 * height - 0.5 for up in (90, 45, 0, -45, -90)], (90, 45, 0, -45, -90))
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), ylabel="elevation (degrees)")


def _chosen_scan(root: Path, sequence: str | None, frame: int | None) -> Scan:
    names = None if sequence is None else [sequence]
    chosen = kitti360.read_sequences(root, names, camera=None)[0]
    frames = {scan.frame_id: scan for scan in chosen.scans}
    number = next(iter(frames)) if frame is None else frame
    if number not in frames:
        raise InputError(
            f"--frame: expected one of the {len(frames)} frames {min(frames)} to {max(frames)} of sequence "
            f"{chosen.name} that have a scan and a pose, found {number}."
        )
    return frames[number]
