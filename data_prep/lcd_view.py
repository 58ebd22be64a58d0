"""One scan as the loop-closure converter sees it: does the calibration fit, and which cells see the camera?

    python -m data_prep lcd_view --raw ROOT --format kitti|kitti360|bev|kitti_object --out FILE.png
        [--sequence 00] [--frame N]

Above, the image with the scan's points in it, coloured by their distance along the optical axis: the points
of a pole, a kerb or a car must lie on that pole, kerb or car. Points that something nearer hides from the
camera are drawn as well, because the LiDAR is mounted higher. Below, the same scan from above, forward up and
left on the left: all cells by height; ahead, the cells with links in the colours of the points above; the
same cells in the mean colour of their pixels. Of a scan without an image, and of BEV pictures, there is the
view from above alone.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_prep import scan_records, scan_sources
from data_prep.errors import InputError
from data_prep.raw import kitti, kitti360
from data_prep.raw.scans import Scan
from data_prep.view import save_whole

REACH, CELL, Z_RANGE = 32.0, 0.2, (-2.5, 1.5)  # of cross_fusion_lcd's bird's-eye view, m
OBJECT = "kitti_object"

_FARTHEST = 50.0  # m: the end of the colours
_COLOURS = "turbo_r"  # near is red
_EMPTY = (0.35, 0.3, 0.45)  # a colour that streets do not have


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep lcd_view",
        description="Draw one scan, its image and the links between them.",
    )
    parser.add_argument("--raw", type=Path, required=True, help="dataset root")
    parser.add_argument(
        "--format",
        choices=(*scan_sources.FORMATS, OBJECT),
        required=True,
        help=f"{OBJECT}: a frame of the object benchmark, from its folders velodyne, calib and image_2",
    )
    parser.add_argument("--sequence", help="default: the first")
    parser.add_argument("--frame", type=int, help="the number in the file's name; default: the first")
    parser.add_argument("--pose-source", help="as for the converter")
    scan_sources.add_camera_option(parser)
    parser.add_argument(
        "--compensate-motion", action="store_true", help="as for the converter: take the car's motion out"
    )
    parser.add_argument("--out", type=Path, required=True, help="a .png file")
    options = parser.parse_args(argv)
    scan = chosen_scan(options)
    figure = draw_bev(scan) if scan.path.suffix == ".png" else draw_scan(scan, options.compensate_motion)
    save_whole(figure, options.out)
    print(f"{options.out}: {options.format}, sequence {scan.sequence}, frame {scan.frame_id}")


def chosen_scan(options: argparse.Namespace) -> Scan:
    """The scan that the options name; InputError where it is not there."""
    if options.format == OBJECT:
        return kitti.read_object_scan(options.raw, options.frame or 0)
    options.sequences = None if options.sequence is None else [options.sequence]
    source = scan_sources.open_source(options, require_scans=True, camera=options.camera)
    sequence = source.sequences[0]
    frames = {scan.frame_id: scan for scan in sequence.scans}
    number = next(iter(frames)) if options.frame is None else options.frame
    if number not in frames:
        raise InputError(
            f"--frame: expected one of the {len(frames)} frames {min(frames)} to {max(frames)} of sequence "
            f"{sequence.name} that have a scan and a pose, found {number}."
        )
    return frames[number]


def draw_bev(scan: Scan) -> Figure:
    """A BEV picture, forward up, with the LiDAR in its middle."""
    bev = scan_records.read_bev(scan.path)
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(bev[::-1, ::-1], cmap="magma")
    axes.plot((bev.shape[1] - 1) / 2, (bev.shape[0] - 1) / 2, "+", color="white", ms=12)
    axes.set_title(f"{scan.sequence}, frame {scan.frame_id}: {scan.path.name}, forward up, left on the left")
    return figure


def draw_scan(scan: Scan, compensate_motion: bool) -> Figure:
    """A scan, with its image where it has one."""
    points = scan_records.read_points(scan.path)
    if compensate_motion and scan.sweep_motion is not None:
        points = kitti360.compensate_motion(points, scan.sweep_motion)
    xyz = points[:, :3]
    title = f"{scan.sequence}, frame {scan.frame_id}: {len(xyz)} points"
    if scan.image is None:
        figure = Figure(figsize=(7, 7.4), layout="constrained")
        _draw_from_above(figure.add_subplot(), _height_picture(xyz), f"{title}\nhighest point of each cell")
        return figure
    image = cv2.imdecode(np.frombuffer(scan_records.stored_image(scan.image), np.uint8), cv2.IMREAD_COLOR_RGB)
    point, pixel = scan_records.links(xyz, scan.image)
    depth = (xyz[point] @ scan.image.camera_T_lidar[2, :3] + scan.image.camera_T_lidar[2, 3]).astype(float)
    cell = _cells(xyz[point])
    linked, occupied = (len(np.unique(cells[cells >= 0])) for cells in (cell, _cells(xyz)))

    height = 15 * image.shape[0] / image.shape[1]
    figure = Figure(figsize=(16, height + 6.2), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=[height, 5.6], width_ratios=[0.9, 1, 1])
    top = figure.add_subplot(grid[0, :])
    top.imshow(image)
    far_first = np.argsort(-depth)
    depth_colours = {"cmap": _COLOURS, "vmin": 0, "vmax": _FARTHEST}
    column, row = pixel[far_first, ::-1].T
    dots = top.scatter(column + 0.5, row + 0.5, c=depth[far_first], s=3, lw=0, **depth_colours)
    top.set_title(f"{title}, {len(point)} of them in {scan.image.path.parent.name}/{scan.image.path.name}")
    top.set_axis_off()
    figure.colorbar(dots, ax=top, label="depth (m)", pad=0.005, fraction=0.02)
    whole, by_depth, by_colour = (figure.add_subplot(grid[1, i]) for i in range(3))
    _draw_from_above(whole, _height_picture(xyz), f"{occupied} cells with points, by height")
    share = f"{linked} cells with links ({linked / max(occupied, 1):.0%}), by depth"
    _draw_from_above(by_depth, _mean_picture(cell, depth[:, None])[..., 0], share, **depth_colours)
    colours = _mean_picture(cell, image[pixel[:, 0], pixel[:, 1]] / 255.0)
    empty = np.isnan(colours).any(axis=-1, keepdims=True)
    _draw_from_above(by_colour, np.where(empty, _EMPTY, colours), "the same by their pixels' mean colour")
    for panel in (by_depth, by_colour):
        panel.set_ylim(-2, REACH)
        panel.set_xlim(REACH * 0.6, -REACH * 0.6)
    return figure


def _cells(xyz: np.ndarray) -> np.ndarray:
    """(N, 3) → (N,) flat cell, -1 outside."""
    side = round(2 * REACH / CELL)
    index = np.floor((xyz[:, :2] + REACH) / CELL).astype(np.int64)
    inside = (
        ((index >= 0) & (index < side)).all(axis=1) & (xyz[:, 2] >= Z_RANGE[0]) & (xyz[:, 2] < Z_RANGE[1])
    )
    return np.where(inside, index[:, 0] * side + index[:, 1], -1)


def _height_picture(xyz: np.ndarray) -> np.ndarray:
    """(rows along x, columns along y) highest z of each cell, NaN without points."""
    side = round(2 * REACH / CELL)
    cell = _cells(xyz)
    highest = np.full(side * side, -np.inf)
    np.maximum.at(highest, cell[cell >= 0], xyz[cell >= 0, 2])
    return np.where(np.isfinite(highest), highest, np.nan).reshape(side, side)


def _mean_picture(cell: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(N,) cells, (N, C) → (rows, columns, C) mean of each cell, NaN without any."""
    side = round(2 * REACH / CELL)
    inside = cell >= 0
    number = np.bincount(cell[inside], minlength=side * side)
    sums = [np.bincount(cell[inside], channel[inside], side * side) for channel in values.T]
    with np.errstate(invalid="ignore"):
        return (np.stack(sums, axis=-1) / number[:, None]).reshape(side, side, -1)


def _draw_from_above(axes: Axes, picture: np.ndarray, title: str, **colours: object) -> None:
    """Rows along x and columns along y, drawn forward up and left on the left."""
    axes.set_facecolor("black")
    axes.imshow(
        picture[::-1, ::-1],
        extent=(REACH, -REACH, -REACH, REACH),
        interpolation="nearest",
        **({"cmap": "viridis"} | colours),
    )
    axes.plot(0, 0, "+", color="white", ms=9)
    axes.set(title=title, xlabel="y, left (m)", ylabel="x, forward (m)")
