"""Draws OpenStreetMap over a dataset's drivable area, before and after the fit of `data_prep.alignment`.

    python -m data_prep align --raw ROOT --osm FILE [FILE ...] --out FILE.png (or a folder)

One picture a location: the roads over the area as the geodesy puts them, the same moved by the fit, both once
more where the fit moves a road most, and the share of road samples inside the area at every shift. Nothing is
converted.
"""

import argparse
import io
import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from data_prep import alignment, datasets, maploc, tables
from data_prep.errors import InputError
from data_prep.raw import osm
from placerec_jax.ops.grid import Grid2D

_INSIDE, _OUTSIDE, _AREA = "#1b5e9b", "#d1495b", "#d9d4c7"


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep align",
        description="Draw OpenStreetMap over a dataset's drivable area, before and after the fit.",
    )
    parser.add_argument("--raw", type=Path, required=True, help="dataset root")
    parser.add_argument(
        "--osm", type=Path, required=True, nargs="+", help="OpenStreetMap extracts, or folders that hold them"
    )
    parser.add_argument(
        "--dataset", choices=sorted(datasets.OPENERS), default="nuscenes", help="default: nuscenes"
    )
    parser.add_argument("--version", help="default: the only one in the root")
    parser.add_argument(
        "--out", type=Path, required=True, help="a .png for a dataset of one location, or a folder"
    )
    options = parser.parse_args(argv)
    dataset = datasets.open_dataset(options.dataset, options.raw, options.version)
    extracts = [osm.read_osm(path) for path in maploc.extracts_in(options.osm)]
    locations = sorted(dataset.map_extents)
    files = _files(options.out, locations)
    for location, file in zip(locations, files, strict=True):
        place = dataset.place(location)
        fit = alignment.fit_place(place, extracts)
        print(f"{location}: {fit.statement()}")
        file.parent.mkdir(parents=True, exist_ok=True)
        draw_alignment(place, extracts, fit, _attribution(dataset), file)
        print(f"{location}: {file}")


def _files(out: Path, locations: Sequence[str]) -> list[Path]:
    if out.suffix != ".png":
        return [out / f"{location}.png" for location in locations]
    if len(locations) != 1:
        raise InputError(
            f"--out {out}: expected a folder, because there are {len(locations)} locations "
            f"({', '.join(locations)}), one picture each; found the name of one picture."
        )
    return [out]


def _attribution(dataset: datasets.Dataset) -> str:
    """What has to stand under a picture of the map."""
    return "built-in city" if dataset.built_in_city else maploc.OSM_ATTRIBUTION


def draw_alignment(
    place: datasets.Place,
    extracts: Sequence[osm.OsmData],
    fit: alignment.Alignment,
    attribution: str,
    file: Path,
) -> None:
    """Write the picture of one location's fit as PNG."""
    grid = alignment.map_grid(place)
    drivable = place.drivable.draw(grid)
    streets = alignment.streets(extracts, place)
    moved = [fit.apply(street) for street in streets]
    figure = Figure(figsize=(17, 8), layout="constrained")
    panels = figure.subplot_mosaic("ABC;ABD;ABE", width_ratios=(1, 1, 0.45))
    place_in_detail = _most_moved(fit, streets, drivable, grid)
    for whole, detail, lines, when, share in (
        ("A", "C", streets, "before the fit", fit.before),
        ("B", "D", moved, "after the fit", fit.after),
    ):
        _draw_area(panels[whole], drivable, grid)
        _draw_streets(panels[whole], drivable, grid, lines, width=0.8)
        panels[whole].set(title=f"{when}: {_percent(share)} inside", xlabel="map x (m)", ylabel="map y (m)")
        _draw_area(panels[detail], *_window(drivable, grid, place_in_detail))
        _draw_streets(panels[detail], drivable, grid, lines, width=2.0)
        panels[detail].set(title=f"where it moves most, {when}")
    _draw_scores(panels["E"], fit)
    figure.suptitle(f"{place.location}\n{fit.statement()}", fontsize=11)
    figure.supxlabel(attribution, fontsize=8)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    tables.write_whole(file, picture.getvalue())


def _percent(share: float) -> str:
    return "not fitted" if np.isnan(share) else f"{share:.1%}"


def _draw_area(panel: Axes, drivable: np.ndarray, grid: Grid2D) -> None:
    """The area in grey; not more cells of a large map than can be seen."""
    step = 1 + max(drivable.shape) // 2000
    panel.imshow(
        drivable[::step, ::step].T,
        cmap=matplotlib.colors.ListedColormap(["white", _AREA]),
        vmin=0,
        vmax=1,
        origin="lower",
        extent=grid.extent,
        interpolation="nearest",
    )


def _window(
    drivable: np.ndarray, grid: Grid2D, center: np.ndarray, reach: float = 90.0
) -> tuple[np.ndarray, Grid2D]:
    """The part of the area about a place."""
    middle, half = np.floor((center - np.array(grid.lower)) / grid.cell).astype(int), int(reach / grid.cell)
    (top, left), (bottom, right) = np.maximum(middle - half, 0), np.minimum(middle + half, grid.shape)
    x, y = grid.lower
    extent = (x + top * grid.cell, x + bottom * grid.cell, y + left * grid.cell, y + right * grid.cell)
    return drivable[top:bottom, left:right], Grid2D(extent, grid.cell)


def _draw_streets(
    panel: Axes, drivable: np.ndarray, grid: Grid2D, streets: Sequence[np.ndarray], width: float
) -> None:
    """Streets by where they lie: blue inside the area, red outside."""
    limits = panel.get_xlim(), panel.get_ylim()
    pieces, inside = [], []
    for street in streets:
        ends = _cut(street)
        pieces.extend(np.stack([ends[:-1], ends[1:]], axis=1))
        inside.extend(_is_inside((ends[:-1] + ends[1:]) / 2, drivable, grid))
    panel.add_collection(
        LineCollection(pieces, colors=np.where(inside, _INSIDE, _OUTSIDE).tolist(), linewidths=width)
    )
    panel.set(xlim=limits[0], ylim=limits[1])


def _is_inside(xy: np.ndarray, drivable: np.ndarray, grid: Grid2D) -> np.ndarray:
    row, column = np.floor((xy - np.array(grid.lower)) / grid.cell).astype(int).T
    on_map = (row >= 0) & (row < grid.shape[0]) & (column >= 0) & (column < grid.shape[1])
    return on_map & (drivable[np.where(on_map, row, 0), np.where(on_map, column, 0)] > 0)


def _most_moved(
    fit: alignment.Alignment, streets: Sequence[np.ndarray], drivable: np.ndarray, grid: Grid2D
) -> np.ndarray:
    """(2,) the place in the drivable area that the fit moves furthest; the fit's centre if there is none."""
    xy = alignment.sample_roads(streets)
    xy = xy[_is_inside(fit.apply(xy), drivable, grid)]
    if not len(xy):
        return fit.center
    return xy[np.argmax(np.hypot(*(fit.apply(xy) - xy).T))]


def _cut(street: np.ndarray, length: float = 5.0) -> np.ndarray:
    """The polyline (N, 2) with points added, so that no piece is longer than `length` metres."""
    points = [street[:1]]
    for start, end in itertools.pairwise(street):
        count = max(1, int(np.ceil(np.hypot(*(end - start)) / length)))
        points.append(start + (end - start) * np.linspace(0, 1, count + 1)[1:, None])
    return np.concatenate(points)


def _draw_scores(panel: Axes, fit: alignment.Alignment) -> None:
    """The share inside at every shift of the search."""
    panel.set(title="share inside by shift", xlabel="dx (m)", ylabel="dy (m)")
    if fit.problem:
        panel.text(0.5, 0.5, fit.problem, ha="center", va="center", wrap=True, transform=panel.transAxes)
        return
    reach = fit.shifts[-1] + (fit.shifts[1] - fit.shifts[0]) / 2
    image = panel.imshow(fit.scores.T, origin="lower", extent=(-reach, reach, -reach, reach), cmap="viridis")
    panel.plot(0, 0, "+", color="white", markersize=12, label="as it comes")
    panel.plot(*fit.best_shift(), "x", color="red", markersize=9, label="best shift of the grid")
    panel.legend(loc="lower right", fontsize=8)
    panel.figure.colorbar(image, ax=panel, shrink=0.7)
