"""Pictures of a keyframe beside the one it retrieved: six images, predicted depth, range images.

Range images run around the sensor from the rear over the left, ahead (the middle) and the right back to the
rear, from the highest elevation down; empty cells are black. Depth and range have one scale in a picture,
near bright and far dark. Everything is drawn on `matplotlib.figure.Figure` objects, so no global backend or
style is touched.
"""

import dataclasses
from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure, SubFigure

from placerec_jax.evaluation.pose_pictures import STYLE, SURROUND, encode
from placerec_jax.evaluation.retrieval_pictures import RIGHT, WRONG

IMAGES, DEPTH, COLORS = "images", "depth", "colors"  # fields of Place

LEAST_FAR = 20.0  # metres that the scale reaches at least
_PLAIN = "#5b6675"
_ABSENT = "#20262f"
_WIDTH = 5.6  # inches of one side
_STRIP = 0.62  # inches of a range image


@dataclasses.dataclass(frozen=True)
class Place:
    """A keyframe as drawn: `images` {camera: (H, W, 3) uint8}, those of missing cameras left out; `depth`
    {camera: (h, w) metres}; `strips` {name: (h, w) metres, 0 or below where empty}; `colors` (h, w, 3) uint8
    of the points, or None; `right`: whether it was right to retrieve it, None for the query."""

    title: str
    images: Mapping[str, np.ndarray]
    depth: Mapping[str, np.ndarray]
    strips: Mapping[str, np.ndarray]
    colors: np.ndarray | None
    right: bool | None


def pair_picture(title: str, query: Place, retrieved: Place) -> bytes:
    """JPEG: the query on the left, what it retrieved on the right."""
    style = {**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}
    far = _far(query, retrieved)
    rows = _rows(query, retrieved)
    with rc_context(style):
        figure = Figure(
            figsize=(2 * _WIDTH + 0.7, sum(height for _, height in rows) + 0.75), layout="constrained"
        )
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
        *sides, edge = figure.subfigures(1, 3, width_ratios=(_WIDTH, _WIDTH, 0.7), wspace=0.02)
        for side, place in zip(sides, (query, retrieved), strict=True):
            _draw(side, place, rows, far)
        scale = ScalarMappable(Normalize(0, far), _colormap())
        bar = edge.colorbar(scale, cax=edge.subplots())
        bar.set_label("depth and range, m")
        bar.ax.invert_yaxis()
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        return encode(figure, "jpeg", dpi=105)


def _far(*places: Place) -> float:
    """Metres where the scale ends: nearly everything is nearer."""
    seen = [
        values[values > 0] for place in places for values in (*place.depth.values(), *place.strips.values())
    ]
    known = np.concatenate([np.zeros(0), *(values[np.isfinite(values)] for values in seen)])
    return max(LEAST_FAR, float(np.percentile(known, 95))) if len(known) else LEAST_FAR


def _rows(query: Place, retrieved: Place) -> list[tuple[str, float]]:
    """What is drawn beneath each other on both sides, and how many inches high."""
    found = []
    for kind in (IMAGES, DEPTH):
        known = [*getattr(query, kind).values(), *getattr(retrieved, kind).values()]
        if known:
            slope = max(image.shape[0] / image.shape[1] for image in known)
            found.append((kind, 2 * (_WIDTH / 3) * slope + 0.3))
    strips = [*query.strips, *([COLORS] if query.colors is not None else [])]
    return [*found, *((name, _STRIP + 0.25) for name in strips)]


def _draw(side: SubFigure, place: Place, rows: list[tuple[str, float]], far: float) -> None:
    color = {None: _PLAIN, True: RIGHT, False: WRONG}[place.right]
    side.suptitle(place.title, color=color, fontsize=10)
    near_bright = {"cmap": _colormap(), "vmin": 0.0, "vmax": far}
    parts = side.subfigures(len(rows), 1, height_ratios=[height for _, height in rows], squeeze=False)[:, 0]
    for part, (kind, _) in zip(parts, rows, strict=True):
        if kind == IMAGES:
            _mosaic(part, place.images, color, "images", {})
        elif kind == DEPTH:
            _mosaic(part, place.depth, color, "predicted depth", near_bright)
        elif kind == COLORS:
            _strip(part.subplots(), place.colors, "colours of the points", {})
        else:
            _strip(part.subplots(), np.ma.masked_less_equal(place.strips[kind], 0), kind, near_bright)


def _mosaic(
    part: SubFigure, images: Mapping[str, np.ndarray], color: str, name: str, options: Mapping[str, object]
) -> None:
    """Six cameras where they look."""
    grid = part.subplots(2, 3, squeeze=False)
    grid[0, 0].set_title(name, fontsize=8, pad=2, loc="left")
    shape = next((image.shape[:2] for image in images.values()), (9, 16))
    for camera, (row, column) in SURROUND.items():
        axes: Axes = grid[row, column]
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(color=color, linewidth=2)
        if camera in images:
            axes.imshow(images[camera], **options)
            continue
        axes.imshow(np.zeros((*shape, 3)))
        axes.text(0.5, 0.5, "missing", color="white", ha="center", va="center", transform=axes.transAxes)


def _strip(axes: Axes, values: np.ndarray, name: str, options: Mapping[str, object]) -> None:
    axes.set_facecolor(_ABSENT)
    axes.imshow(values, aspect="auto", interpolation="nearest", **options)
    axes.set_title(name, fontsize=8, pad=2, loc="left")
    axes.set(xticks=[], yticks=[])


def _colormap() -> Colormap:
    return matplotlib.colormaps["viridis_r"]
