"""One keyframe of a NUSC-PR folder: do images and LiDAR fit, and what is right for it?

    python -m data_prep nusc_pr_view --prepared DIR [--record N] [--scheme supervised] --out FILE.png

Above, the six images from back left over front to back right, with the LiDAR's points in them, coloured by
distance: points of a pole or a kerb must lie on it. Below them the range image, and the same with the colours
that the cameras gave its points: forward is in the middle, the rear at both ends. At the bottom the town by
the chosen scheme, and the database around the keyframe: what counts as right, and how many days lie between.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle

from data_prep import appearance, nusc_pr_folder
from data_prep import place_recognition as places
from data_prep import prepared as prepared_folders
from data_prep.errors import InputError
from data_prep.nusc_pr_records import CAMERAS
from data_prep.view import save_whole
from placerec_jax.ops.point_steps import decode_points

# From left to right as one turns the head.
_SHOWN = ("CAM_BACK_LEFT", "CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK")
_NEAREST, _FARTHEST = 2.0, 50.0  # m: the ends of the colours
_COLOURS = "turbo_r"  # near is red
_AROUND = 3.0  # times the radius in which places are right: what is drawn around a keyframe
_PARTS = {  # drawn one over the other
    "database": ("0.75", "database"),
    "train_query": ("tab:blue", "training queries"),
    "val_query": ("tab:orange", "validation queries"),
    "test_query": ("tab:red", "test queries"),
}


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep nusc_pr_view",
        description="Draw a keyframe of a folder that nusc_pr prepared.",
    )
    parser.add_argument("--prepared", type=Path, required=True, help="the folder that nusc_pr wrote")
    parser.add_argument(
        "--record", type=int, help="number of the keyframe; default: the first test query of the scheme"
    )
    parser.add_argument("--scheme", default="supervised", help="default: supervised")
    parser.add_argument("--out", type=Path, required=True, help="a .png file")
    options = parser.parse_args(argv)
    manifest = prepared_folders.read_manifest(options.prepared, "nusc_pr")
    if options.scheme not in manifest["schemes"]:
        raise InputError(
            f"--scheme: expected one of {', '.join(manifest['schemes'])}, found {options.scheme!r}."
        )
    number = _chosen(options.prepared, manifest, options.scheme, options.record)
    save_whole(draw(options.prepared, manifest, options.scheme, number), options.out)
    print(f"{options.out}: record {number}")


def _chosen(prepared: Path, manifest: Mapping[str, Any], scheme: str, record: int | None) -> int:
    frames = manifest["counts"]["frames"]
    if record is None:
        divisions = nusc_pr_folder.read_divisions(prepared, scheme, manifest["locations"]).values()
        return int(next((d.test_query[0] for d in divisions if len(d.test_query)), 0))
    if not 0 <= record < frames:
        raise InputError(f"--record: expected a number from 0 to {frames - 1}, found {record}.")
    return record


def draw(prepared: Path, manifest: Mapping[str, Any], scheme: str, number: int) -> Figure:
    """The picture of one keyframe."""
    record = _read(prepared, manifest, number)
    images = np.asarray(record["images"])
    height = 16 / len(_SHOWN) * images.shape[1] / images.shape[2]
    figure = Figure(figsize=(16, height + 9.5), layout="constrained")
    grid = figure.add_gridspec(4, len(_SHOWN), height_ratios=[height + 0.3, 1.6, 1.6, 6])
    points = decode_points(record["point_steps"])
    for column, channel in enumerate(_SHOWN):
        _draw_image(figure.add_subplot(grid[0, column]), record, points, CAMERAS.index(channel))
    metres = record["range_steps"] * manifest["range_unit_m"]
    shown = np.ma.masked_equal(metres, 0)
    below = figure.add_subplot(grid[1, :])
    # Cells are not square on the sphere; what is drawn is wide enough to see them.
    own = below.imshow(shown, aspect="auto", cmap=_COLOURS, vmin=_NEAREST, vmax=_FARTHEST)
    figure.colorbar(own, ax=below, label="m", pad=0.005)
    coloured = figure.add_subplot(grid[2, :])
    coloured.imshow(record["rendered_rgb"], aspect="auto")
    for axes, title in ((below, "range image"), (coloured, "its points in the cameras' colours")):
        axes.set_title(f"{title}; ahead is in the middle", fontsize="medium")
        axes.set_facecolor("0.85")
        axes.set_xticks([])
        axes.set_yticks([])
    frames = nusc_pr_folder.read_frames(prepared, manifest)
    location = str(frames.locations[number])
    division = nusc_pr_folder.read_divisions(prepared, scheme, [location])[location]
    _draw_town(figure.add_subplot(grid[3, :3]), frames, division, number, f"{location}, {scheme}")
    radius = manifest["schemes"][scheme]["positive_radius_m"]
    _draw_near(figure.add_subplot(grid[3, 3:]), frames, division, number, radius)
    figure.suptitle(
        f"record {number}: {record['scene'].decode()}, sample {record['sample_number']}, "
        f"{record['location'].decode()}, {record['date_captured'].decode()}"
        + (" (built-in city)" if manifest["source"]["built_in_city"] else "")
    )
    return figure


def _read(prepared: Path, manifest: Mapping[str, Any], number: int) -> dict[str, Any]:
    features = prepared_folders.table_features(prepared, "frames")
    for index, payload in enumerate(prepared_folders.payloads(prepared, manifest, "frames")):
        if index == number:
            return features.deserialize_example_np(payload)
    raise InputError(
        f"{prepared}: expected record {number} in the table frames, found its end. Convert again."
    )


def _draw_image(axes: Axes, record: Mapping[str, Any], points: np.ndarray, camera: int) -> None:
    image = record["images"][camera]
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(CAMERAS[camera], fontsize="small")
    # Pixel centres at halves, as the calibration has them.
    extent = (0, image.shape[1], image.shape[0], 0)
    axes.imshow(image, extent=extent)
    if not record["camera_mask"][camera]:
        axes.set_title(f"{CAMERAS[camera]}: absent", fontsize="small")
        return
    at = appearance.project(
        points, record["camera_T_lidar"][camera], record["intrinsics"][camera], image.shape[:2]
    )
    order = np.flatnonzero(at.seen)[np.argsort(-at.depth[at.seen])]
    axes.scatter(
        at.u[order], at.v[order], c=at.depth[order], s=0.6, lw=0, cmap=_COLOURS, vmin=_NEAREST, vmax=_FARTHEST
    )


def _draw_town(axes: Axes, frames: places.Frames, division: places.Division, number: int, title: str) -> None:
    for part, (colour, name) in _PARTS.items():
        numbers = getattr(division, part)
        axes.scatter(*frames.xyz[numbers, :2].T, s=9, c=colour, lw=0, label=f"{name}: {len(numbers)}")
    axes.plot(*frames.xyz[number, :2], "k+", ms=14, mew=2, label="this keyframe")
    axes.set_aspect("equal")
    axes.set_title(title, fontsize="medium")
    axes.legend(fontsize="small")


def _draw_near(
    axes: Axes, frames: places.Frames, division: places.Division, number: int, radius: float
) -> None:
    """The database around a keyframe: days are those between the two."""
    own = frames.xyz[number, :2]
    near = division.database[
        np.linalg.norm(frames.xyz[division.database, :2] - own, axis=1) < _AROUND * radius
    ]
    days = np.abs(frames.time[near] - frames.time[number]) / places.DAY
    latest = max(1.0, days.max(initial=0.0))
    points = axes.scatter(*frames.xyz[near, :2].T, c=days, s=45, cmap="viridis", vmin=0, vmax=latest)
    axes.figure.colorbar(points, ax=axes, label="days between", pad=0.01)
    same = near[frames.scenes[near] == frames.scenes[number]]
    axes.scatter(*frames.xyz[same, :2].T, s=110, facecolors="none", edgecolors="tab:red", label="own scene")
    axes.add_patch(Circle(tuple(own), radius, fill=False, ls="--", label=f"right: within {radius:g} m"))
    axes.plot(*own, "k+", ms=14, mew=2, label="this keyframe")
    axes.set_aspect("equal")
    axes.set_title("the database around it", fontsize="medium")
    axes.legend(fontsize="small")
