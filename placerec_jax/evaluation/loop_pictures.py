"""Pictures of loop closure: precision against recall, a drive with its loops, two scans matched.

Everything is drawn on `matplotlib.figure.Figure` objects, so no global backend or style is touched. Scans
have forward up and left on the left; drives lie in the map of their sequence.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import matplotlib.colors
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch

from placerec_jax.evaluation.pose_pictures import STYLE, ego_extent, ego_picture, ego_to_picture, encode
from placerec_jax.evaluation.precision_recall import Curve
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import se2_apply

# Distinguishable with the common colour-vision deficiencies (Okabe and Ito).
GOOD, WRONG, MISSED, DRIVE = "#009E73", "#D55E00", "#E69F00", "#b6bec9"
QUERY, CANDIDATE = "#D55E00", "#0072B2"
OURS = "#0072B2"
OTHERS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5b6675")
DASHES = ("--", "-.", ":")
SHOWN_LINES = 60  # inlier matches drawn between two scans


@dataclasses.dataclass(frozen=True)
class DrawnCurve:
    """A line of a precision-recall picture; `note` stands behind its name, such as its average precision."""

    name: str
    curve: Curve
    note: str
    ours: bool


@dataclasses.dataclass(frozen=True)
class MatchedPair:
    """A query beside what it retrieved.

    `query_bev`, `candidate_bev` (rows, columns) in 0..1 on `grid`; `query_xy`, `candidate_xy` (I, 2) inlier
    matches (m); `candidate_T_query` (3,) as estimated, None without verification.
    """

    title: str
    grid: Grid2D
    query_bev: np.ndarray
    candidate_bev: np.ndarray
    query_name: str
    candidate_name: str
    query_xy: np.ndarray
    candidate_xy: np.ndarray
    candidate_T_query: np.ndarray | None


def precision_recall(panels: Mapping[str, Sequence[DrawnCurve]]) -> bytes:
    """{title: curves} → PNG: precision against recall, one panel a title, all methods in each."""
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6 * columns, 4.4 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (title, curves) in zip(grid.flat, panels.items(), strict=False):
            others = 0
            for drawn in curves:
                color, dash = OURS, "-"
                if not drawn.ours:
                    color, dash = OTHERS[others % len(OTHERS)], DASHES[others % len(DASHES)]
                    others += 1
                _curve(axes, drawn, color, dash)
            axes.set(
                xlim=(0, 1.01),
                ylim=(0, 1.03),
                xlabel="recall",
                ylabel="precision",
                title=title,
                aspect="auto",
            )
            axes.legend(loc="lower left", fontsize=8, framealpha=0.85)
        for axes in grid.flat[len(panels) :]:
            axes.axis("off")
        return encode(figure)


def _curve(axes: Axes, drawn: DrawnCurve, color: str, dash: str) -> None:
    curve = drawn.curve
    axes.plot(
        curve.recall,
        curve.precision,
        dash,
        color=color,
        lw=2.3 if drawn.ours else 1.5,
        label=f"{drawn.name}, {drawn.note}",
        # A curve of one or two points would not be seen as a line.
        marker="o" if len(curve.recall) < 3 else None,
        ms=4,
    )


def recall_by_kind(shares: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]) -> bytes:
    """{method: {kind: R@1}} and {kind: queries} → PNG: bars by kind of revisit, the first method in blue."""
    kinds = [kind for kind, count in counts.items() if count]
    with rc_context(STYLE):
        figure = Figure(figsize=(3.0 + 0.5 * max(len(shares) * len(kinds), 6), 3.6), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / len(shares)
        for number, (name, by_kind) in enumerate(shares.items()):
            places = np.arange(len(kinds)) + (number - (len(shares) - 1) / 2) * width
            values = [by_kind.get(kind, 0.0) for kind in kinds]
            color = OURS if number == 0 else OTHERS[(number - 1) % len(OTHERS)]
            bars = axes.bar(places, values, 0.92 * width, color=color, label=name)
            axes.bar_label(bars, [f"{value:.2f}" for value in values], fontsize=7, padding=1)
        axes.set_xticks(
            np.arange(len(kinds)), [f"{kind.replace('_', ' ')}\n{counts[kind]} queries" for kind in kinds]
        )
        axes.set(ylim=(0, 1.12), ylabel="R@1")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        return encode(figure)


def drive_map(
    map_xy: np.ndarray,
    found: np.ndarray,
    wrong: np.ndarray,
    missed: np.ndarray,
    title: str,
    names: tuple[str, str, str],
) -> bytes:
    """PNG: a drive (N, 2) with right loops (M, 2), wrong ones (W, 2), both (query, candidate) numbers of
    frames, and missed queries (K,); `names` are what the three are called in the legend."""
    extent = np.ptp(map_xy, axis=0).max() or 1.0
    width, height = (9.0 * np.maximum(np.ptp(map_xy, axis=0), 0.25 * extent) / extent).tolist()
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(width + 3.2, height + 1.0), layout="constrained")
        axes = figure.subplots()
        axes.plot(*map_xy.T, "-", color=DRIVE, lw=2.2, solid_capstyle="round", zorder=1)
        axes.plot(*map_xy[0], "s", color="#1c2430", ms=6, zorder=5)
        for pairs, color, line in ((wrong, WRONG, 1.1), (found, GOOD, 0.8)):
            axes.add_collection(
                LineCollection(
                    map_xy[pairs.reshape(-1, 2)], colors=color, linewidths=line, alpha=0.6, zorder=3
                )
            )
            axes.plot(*map_xy[pairs.reshape(-1, 2)[:, 0]].T, "o", color=color, ms=3.2, mew=0, zorder=4)
        axes.plot(*map_xy[missed].T, "x", color=MISSED, ms=5, mew=1.4, zorder=3.5)
        entries = [
            Line2D([], [], color=DRIVE, lw=2.2, label=f"drive, {len(map_xy)} frames"),
            Line2D([], [], color="#1c2430", marker="s", ls="", label="start"),
            Line2D([], [], color=GOOD, marker="o", ms=4, lw=1, label=f"{names[0]} ({len(found)})"),
            Line2D([], [], color=WRONG, marker="o", ms=4, lw=1, label=f"{names[1]} ({len(wrong)})"),
            Line2D([], [], color=MISSED, marker="x", ls="", label=f"{names[2]} ({len(missed)})"),
        ]
        figure.legend(handles=entries, loc="outside right upper", fontsize=8)
        axes.set(title=title, xlabel="x, m", ylabel="y, m", aspect="equal")
        axes.margins(0.05)
        return encode(figure)


def pair_picture(pair: MatchedPair) -> bytes:
    """JPEG: query and candidate with their inlier matches as lines, and one laid over the other."""
    extent = ego_extent(pair.grid)
    style = {**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}
    with rc_context(style):
        figure = Figure(figsize=(13.2, 4.9), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for axes, bev, name, color in (
            (left, pair.query_bev, f"query, {pair.query_name}", QUERY),
            (middle, pair.candidate_bev, f"retrieved, {pair.candidate_name}", CANDIDATE),
        ):
            axes.imshow(1 - ego_picture(bev), cmap="gray", vmin=0, vmax=1, extent=extent)
            axes.set_title(name, color=color)
        _matches(figure, left, middle, pair)
        right.imshow(_overlay(pair), extent=extent)
        right.set_title(
            "query laid on retrieved, "
            + ("by the estimated pose" if pair.candidate_T_query is not None else "not turned")
        )
        for axes in (left, middle, right):
            axes.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
            _vehicle(axes)
        figure.suptitle(pair.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        return encode(figure, "jpeg", dpi=105)


def _matches(figure: Figure, left: Axes, middle: Axes, pair: MatchedPair) -> None:
    count = len(pair.query_xy)
    shown = np.linspace(0, count - 1, min(count, SHOWN_LINES)).astype(int)
    start, end = ego_to_picture(pair.query_xy[shown]), ego_to_picture(pair.candidate_xy[shown])
    # Coloured by the bearing in the query, so that a turn shows as crossing bundles.
    bearing = (np.arctan2(start[:, 1], start[:, 0]) / (2 * np.pi)) % 1
    colors = matplotlib.colors.hsv_to_rgb(
        np.stack([bearing, np.full(len(shown), 0.85), np.full(len(shown), 0.85)], axis=-1)
    )
    for a, b, color in zip(start, end, colors, strict=True):
        figure.add_artist(
            ConnectionPatch(a, b, "data", "data", axesA=left, axesB=middle, color=color, lw=0.7, alpha=0.75)
        )
    for axes, points in ((left, start), (middle, end)):
        axes.scatter(*points.T, s=10, c=colors, lw=0, zorder=3)


def _overlay(pair: MatchedPair) -> np.ndarray:
    """(rows, columns, 3) picture: the candidate in blue, the query, moved by the pose, in orange."""
    moved = pair.query_bev
    if pair.candidate_T_query is not None:
        moved = _moved(pair.query_bev, pair.grid, pair.candidate_T_query)
    picture = np.ones((*pair.candidate_bev.shape, 3))
    for bev, color in ((pair.candidate_bev, CANDIDATE), (moved, QUERY)):
        # Ink on paper: where both have something, it gets darker.
        picture *= 1 - bev[..., None] * (1 - np.array(matplotlib.colors.to_rgb(color)))
    return ego_picture(picture)


def _moved(bev: np.ndarray, grid: Grid2D, target_T_source: np.ndarray) -> np.ndarray:
    """(rows, columns) cells with content put where the pose takes their centres; the fullest wins."""
    rows, columns = np.nonzero(bev)
    placed = se2_apply(np.asarray(target_T_source, np.float64)[None], grid.centers()[rows, columns])
    index = np.floor((placed - grid.lower) / grid.cell).astype(int)
    inside = ((index >= 0) & (index < grid.shape)).all(axis=1)
    found = np.zeros_like(bev)
    np.maximum.at(found, tuple(index[inside].T), bev[rows, columns][inside])
    return found


def _vehicle(axes: Axes) -> None:
    """The sensor in the middle, looking up."""
    axes.plot(0, 0, "^", color="#1c2430", ms=6, mec="white", mew=0.8, zorder=6)
