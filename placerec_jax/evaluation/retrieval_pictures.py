"""Pictures that every kind of retrieval shares: recall curves, and a map of the queries that hit and missed.

Everything is drawn on `matplotlib.figure.Figure` objects, so no global backend or style is touched.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from placerec_jax.evaluation.pose_pictures import STYLE, encode

# Distinguishable with the common colour-vision deficiencies (Okabe and Ito).
RIGHT, NEARLY, WRONG, HOPELESS, DRIVE = "#009E73", "#E69F00", "#D55E00", "#5b6675", "#c3cad3"
LINES = ("-", "--", "-.")  # of as many curves as there are colours each
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


@dataclasses.dataclass(frozen=True)
class Curve:
    """R@1, R@2, ... of one line of a recall picture, beside those of chance; () where that is not drawn."""

    name: str
    recall: Sequence[float]
    chance: Sequence[float]


def recall_curves(panels: Mapping[str, Sequence[Curve]], figure_name: str = "R") -> bytes:
    """{title: curves} → PNG: recall against the number of retrieved entries, chance dotted in the same
    colour; the axis is called `figure_name`@K."""
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6 * len(panels), 4.2), layout="constrained")
        for axes, (title, curves) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            for number, curve in enumerate(curves):
                color, line = COLORS[number % len(COLORS)], LINES[number // len(COLORS) % len(LINES)]
                k = np.arange(1, len(curve.recall) + 1)
                axes.plot(k, 100 * np.asarray(curve.recall), f"{line}o", color=color, ms=3, label=curve.name)
                if len(curve.chance):
                    axes.plot(k, 100 * np.asarray(curve.chance), ":", color=color, lw=1.4)
            entries, _ = axes.get_legend_handles_labels()
            entries.append(Line2D([], [], color="#5b6675", ls=":", label="chance"))
            axes.legend(handles=entries, loc="lower right", fontsize=8, frameon=True, framealpha=0.85)
            axes.set(title=title, xlabel="retrieved entries K", ylabel=f"{figure_name}@K, %", ylim=(0, 103))
            axes.set_xlim(0.5, len(curves[0].recall) + 0.5)
        return encode(figure)


def drive_map(
    database_xy: np.ndarray,
    query_xy: np.ndarray,
    candidate_xy: np.ndarray,
    rank: np.ndarray,
    right: np.ndarray,
    title: str,
    shortlist: int,
) -> bytes:
    """PNG of one sequence or location, metres: its database (M, 2), its queries (Q, 2) by how many wrong
    entries came before the right one (`rank` (Q,)), and lines from wrong queries to what came first
    (`candidate_xy` (Q, 2)); `right` (Q,) says how many entries would have been right."""
    first, hopeless = rank == 0, right == 0
    listed = ~first & ~hopeless & (rank < shortlist)
    missed = ~first & ~hopeless & ~listed
    groups = (
        (missed, WRONG, "X", f"not among the first {shortlist}"),
        (listed, NEARLY, "D", f"among the first {shortlist}"),
        (first, RIGHT, "o", "right at first"),
        (hopeless, HOPELESS, "x", "nothing right to find"),
    )
    known = np.concatenate([database_xy, query_xy])
    # Of a straight street, too, a strip is shown that is a quarter as wide as long.
    span, middle = np.ptp(known, axis=0), (known.min(axis=0) + known.max(axis=0)) / 2
    shown = np.maximum(np.maximum(span, 0.25 * span.max()), 1.0)
    width, height = (9.0 * shown / shown.max()).tolist()
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(width + 3.2, height + 1.0), layout="constrained")
        axes = figure.subplots()
        axes.plot(*database_xy.T, "o", color=DRIVE, ms=2.6, mew=0, zorder=1)
        lines = np.stack([query_xy, candidate_xy], axis=1)[listed | missed]
        axes.add_collection(LineCollection(lines, colors=WRONG, linewidths=0.6, alpha=0.3, zorder=2))
        entries = [
            Line2D([], [], color=DRIVE, marker="o", ms=4, ls="", label=f"database ({len(database_xy)})")
        ]
        for level, (chosen, color, marker, name) in enumerate(groups, start=3):
            axes.plot(
                *query_xy[chosen].T,
                marker,
                color=color,
                ms=4.2,
                mew=1.2 if marker == "x" else 0,
                zorder=level,
            )
            entries.append(
                Line2D([], [], color=color, marker=marker, ms=5, ls="", label=f"{name} ({int(chosen.sum())})")
            )
        entries.append(Line2D([], [], color=WRONG, lw=0.8, alpha=0.5, label="what came first instead"))
        figure.legend(handles=entries, loc="outside right upper", fontsize=8)
        axes.set(title=title, xlabel="x, m", ylabel="y, m", aspect="equal")
        (left, bottom), (right_end, top) = middle - 0.55 * shown, middle + 0.55 * shown
        axes.set(xlim=(left, right_end), ylim=(bottom, top))
        return encode(figure)
