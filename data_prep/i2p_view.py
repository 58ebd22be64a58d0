"""One record of image-to-map retrieval: the image, and the submap that belongs to it.

    python -m data_prep i2p_view --prepared OUT [--sequence 0000] [--frame N] --out FILE.png

Above, the image. Below a panorama, the submap as the panorama would show it, coloured by distance: houses,
poles and cars must stand in the same columns, near things a little off because the LiDAR is not where the
cameras are. At the bottom the submap from above, forward up and left on the left, and the sequence with its
queries and its database.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_prep import place_splits
from data_prep import prepared as prepared_folders
from data_prep.errors import InputError
from data_prep.i2p_records import PANORAMA
from data_prep.view import save_whole
from placerec_jax.ops.point_steps import decode_points

_NEAREST, _FARTHEST = 3.0, 28.0  # m: the ends of the colours
_CELL = 0.1  # m, of the view from above
_SIZE = (256, 512)  # of the submap as a panorama
_HEIGHTS = (-2.5, 6.0)  # m about the LiDAR


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep i2p_view", description="Draw a record of a folder that i2p prepared."
    )
    parser.add_argument("--prepared", type=Path, required=True, help="the folder that i2p wrote")
    parser.add_argument("--sequence", help="default: the first")
    parser.add_argument("--frame", type=int, help="the number in the file's name; default: the first")
    parser.add_argument("--out", type=Path, required=True, help="a .png file")
    options = parser.parse_args(argv)
    manifest = prepared_folders.read_manifest(options.prepared, "i2p")
    record = read_record(options.prepared, manifest, options.sequence, options.frame)
    save_whole(draw(options.prepared, manifest, record), options.out)
    print(f"{options.out}: sequence {record['sequence']}, frame {record['frame_id']}")


def read_record(
    prepared: Path, manifest: Mapping[str, Any], sequence: str | None, frame_id: int | None
) -> dict[str, Any]:
    """The record of a frame; InputError where it is not there."""
    sequences = manifest["sequences"]
    name = next(iter(sorted(sequences))) if sequence is None else sequence
    if name not in sequences:
        raise InputError(f"--sequence: expected one of {', '.join(sorted(sequences))}, found {name!r}.")
    features = prepared_folders.table_features(prepared, "frames")
    names = prepared_folders.table_features(prepared, "frames", ("sequence", "frame_id"))
    seen = 0
    for payload in prepared_folders.payloads(prepared, manifest, "frames"):
        found = names.deserialize_example_np(payload)
        if found["sequence"].decode() == name:
            seen += 1
            if frame_id is None or int(found["frame_id"]) == frame_id:
                record = features.deserialize_example_np(payload)
                return {**record, "sequence": name, "frame_id": int(found["frame_id"])}
    raise InputError(f"--frame: expected one of the {seen} frames of sequence {name}, found {frame_id}.")


def draw(prepared: Path, manifest: Mapping[str, Any], record: Mapping[str, Any]) -> Figure:
    """The picture of one record."""
    xyz = decode_points(record["point_steps"])
    image, settings = record["image"], manifest["image"]
    panoramic = settings["kind"] == PANORAMA
    height = 14 * image.shape[0] / image.shape[1]
    figure = Figure(figsize=(14, (2 if panoramic else 1) * height + 7), layout="constrained")
    rows = [height, height, 6.5] if panoramic else [height, 6.5]
    grid = figure.add_gridspec(len(rows), 2, height_ratios=rows)
    top = figure.add_subplot(grid[0, :])
    kind = f"{settings['kind']} {settings['pano'] or ''}".strip()
    role = "query" if record["is_query"] else "database"
    title = f"sequence {record['sequence']}, frame {record['frame_id']} ({role}): {kind}"
    if panoramic:
        rows_kept = tuple(settings["rows"])
        _draw_round(top, image, rows_kept, title)
        below = figure.add_subplot(grid[1, :])
        picture = as_panorama(xyz, rows_kept)
        shown = _draw_round(
            below,
            picture,
            rows_kept,
            f"its submap of {len(xyz)} points, as the panorama would show it",
            cmap="turbo_r",
            vmin=_NEAREST,
            vmax=_FARTHEST,
        )
        below.set_facecolor("black")
        figure.colorbar(shown, ax=below, label="distance (m)", pad=0.005, fraction=0.02)
    else:
        top.imshow(image)
        top.set_title(title)
        top.set_axis_off()
    _draw_from_above(figure.add_subplot(grid[-1, 0]), xyz)
    _draw_drive(figure.add_subplot(grid[-1, 1]), prepared, record)
    return figure


def as_panorama(
    xyz: np.ndarray, rows: tuple[float, float] = (0.0, 1.0), size: tuple[int, int] = _SIZE
) -> np.ndarray:
    """(N, 3) in LiDAR axes → (*size) distance of the nearest point in each pixel of a panorama, NaN without.

    Column and row say azimuth and elevation as in `data_prep.panorama`.
    """
    distance = np.linalg.norm(xyz, axis=1)
    azimuth = np.arctan2(xyz[:, 1], xyz[:, 0])
    elevation = np.arcsin(np.clip(xyz[:, 2] / np.maximum(distance, 1e-6), -1, 1))
    column = np.floor((1 - azimuth / np.pi) / 2 * size[1]).astype(np.int64) % size[1]
    share = (0.5 - elevation / np.pi - rows[0]) / (rows[1] - rows[0])
    row = np.floor(share * size[0]).astype(np.int64)
    inside = (row >= 0) & (row < size[0])
    picture = np.full(size, np.inf)
    np.minimum.at(picture, (row[inside], column[inside]), distance[inside])
    return np.where(np.isfinite(picture), picture, np.nan)


def _draw_round(
    axes: Axes, picture: np.ndarray, rows: tuple[float, float], title: str, **colours: Any
) -> Any:
    height, width = picture.shape[:2]
    shown = axes.imshow(
        picture, extent=(0, width, height, 0), aspect="auto", interpolation="nearest", **colours
    )
    axes.set_xticks(np.linspace(0, width, 5), ["back", "left", "front", "right", "back"])
    horizon = (0.5 - rows[0]) / (rows[1] - rows[0]) * height
    axes.set_yticks([horizon], ["horizon"])
    for x in np.linspace(0, width, 9)[1:-1]:
        axes.axvline(x, color="white", lw=0.4, alpha=0.5)
    axes.set_title(title)
    return shown


def _draw_from_above(axes: Axes, xyz: np.ndarray) -> None:
    """The highest point of each cell, forward up and left on the left."""
    reach = float(np.ceil(np.abs(xyz[:, :2]).max())) if len(xyz) else 1.0
    side = round(2 * reach / _CELL)
    cell = np.clip(np.floor((xyz[:, :2] + reach) / _CELL).astype(np.int64), 0, side - 1)
    picture = np.full((side, side), -np.inf)
    np.maximum.at(picture, tuple(cell.T), xyz[:, 2])
    axes.set_facecolor("black")
    axes.imshow(
        np.where(np.isfinite(picture), picture, np.nan)[::-1, ::-1],
        extent=(reach, -reach, -reach, reach),
        cmap="viridis",
        vmin=_HEIGHTS[0],
        vmax=_HEIGHTS[1],
        interpolation="nearest",
    )
    axes.plot(0, 0, "+", color="white", ms=10)
    axes.set(title="from above, by height", xlabel="y, left (m)", ylabel="x, forward (m)")


def _draw_drive(axes: Axes, prepared: Path, record: Mapping[str, Any]) -> None:
    """Queries and database of the sequence, as the splits have them."""
    east, north = record["position"][:2]
    styles = {"database": ("#999999", 3), "query": ("#D55E00", 7)}
    for kind, (colour, size) in styles.items():
        for file in sorted((prepared / "splits_csv").glob(f"*{record['sequence']}*/{kind}*.csv")):
            xy = place_splits.read_csv(file)[1] - (east, north)
            axes.plot(*xy.T, ".", color=colour, ms=size, label=file.stem)
    axes.plot(0, 0, "*", color="#0072B2", ms=16, label="this frame")
    heading = record["map_T_lidar"][:2, 0]
    axes.annotate("", 15 * heading, (0, 0), arrowprops={"color": "#0072B2", "arrowstyle": "->", "lw": 2})
    axes.set(title="the sequence", xlabel="east (m)", ylabel="north (m)", aspect="equal")
    axes.legend(loc="best")
