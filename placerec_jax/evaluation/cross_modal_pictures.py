"""Pictures of a query of cross-modal retrieval with what it retrieved.

Everything is drawn on `matplotlib.figure.Figure` objects, so no global backend or style is touched. Submaps
are seen from above, forward up and left on the left. Saliency is drawn from its smallest to its largest value
in a picture, for display only.
"""

import dataclasses
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from placerec_jax.evaluation.pose_pictures import STYLE, ego_to_picture, encode
from placerec_jax.evaluation.retrieval_pictures import RIGHT, WRONG

SALIENCY = "inferno"
POINTS = "#20262f"  # behind points, so that the bright ones stand out
LEAST_RADIUS = 5.0  # metres that a submap's panel shows at least


@dataclasses.dataclass(frozen=True)
class Submap:
    """A submap as drawn: `points` (N, 3) metres, `saliency` (N,) or None where the model gives none; `right`:
    whether it was right to retrieve it, None for the query's own; `query_xy`: where the query stood, in the
    submap's frame."""

    title: str
    points: np.ndarray
    saliency: np.ndarray | None
    right: bool | None
    query_xy: np.ndarray


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """A query beside what it retrieved: `image` (H, W, 3) uint8, `saliency` (h, w) of its patches or None."""

    title: str
    query_name: str
    image: np.ndarray
    saliency: np.ndarray | None
    submaps: Sequence[Submap]


def spread_saliency(
    points: np.ndarray, centres: np.ndarray, saliency: np.ndarray, token_mask: np.ndarray
) -> np.ndarray | None:
    """(N, 3) points, (G, 3) centres with `saliency` (G,) where `token_mask` (G,) → (N,): that of each point's
    nearest centre; None without any."""
    used = np.flatnonzero(token_mask)
    if not used.size:
        return None
    centres = np.asarray(centres, np.float64)[used]
    found = np.empty(len(points))
    for start in range(0, len(points), 2048):
        block = np.asarray(points[start : start + 2048], np.float64)
        apart = (centres**2).sum(axis=1) - 2.0 * (block @ centres.T)
        found[start : start + 2048] = saliency[used][np.argmin(apart, axis=1)]
    return found


def patches(saliency: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
    """(T,) of the patches of an image (H, W), row by row → (h, w); the patches are square."""
    height, width = image_shape
    patch = round(np.sqrt(height * width / len(saliency)))
    rows, columns = height // patch, width // patch
    if rows * columns != len(saliency):
        raise ValueError(
            f"{len(saliency)} patches do not tile an image of {height} x {width} pixels with squares"
        )
    return np.asarray(saliency).reshape(rows, columns)


def to_unit(values: np.ndarray) -> np.ndarray:
    """Any shape → 0..1 from the smallest to the largest; 0 where all are equal."""
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros_like(values, dtype=np.float64)


def retrieval_picture(retrieval: Retrieval) -> bytes:
    """JPEG: the query's image, the same under its saliency, and submaps with their saliency in a row."""
    style = {**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}
    columns = len(retrieval.submaps)
    width = 3.3 * columns
    shown = 1 if retrieval.saliency is None else 2
    height, wide = retrieval.image.shape[:2]
    # Side by side where they are tall, one above the other where they are wide.
    stacked = wide / height > 3
    across = 1 if stacked else shown
    image_height = (shown if stacked else 1) * (width / across * height / wide + 0.3)
    with rc_context(style):
        figure = Figure(figsize=(width, image_height + 3.6), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(image_height, 3.5))
        places = above.subplots(shown // across, across, squeeze=False).ravel()
        places[0].imshow(retrieval.image)
        places[0].set_title(f"query, {retrieval.query_name}")
        if retrieval.saliency is not None:
            _overlay(places[1], retrieval.image, retrieval.saliency)
        limit = _limit(retrieval.submaps)
        for axes, submap in zip(below.subplots(1, columns, squeeze=False)[0], retrieval.submaps, strict=True):
            _submap(axes, submap, limit)
        for axes in places:
            axes.set(xticks=[], yticks=[])
        figure.suptitle(retrieval.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        return encode(figure, "jpeg", dpi=105)


def _overlay(axes: Axes, image: np.ndarray, saliency: np.ndarray) -> None:
    """The image in grey, coloured by the saliency of its patches."""
    grey = image.astype(np.float64).mean(axis=-1, keepdims=True) / 255
    height, width = image.shape[:2]
    rows = np.arange(height) * saliency.shape[0] // height
    columns = np.arange(width) * saliency.shape[1] // width
    color = matplotlib.colormaps[SALIENCY](to_unit(saliency))[..., :3][rows][:, columns]
    axes.imshow(np.clip(0.35 * grey + 0.65 * color * (0.4 + 0.6 * grey), 0, 1))
    axes.set_title(f"its saliency, {saliency.min():.4f} (dark) to {saliency.max():.4f} (bright)")


def _limit(submaps: Sequence[Submap]) -> float:
    """Metres to each side that hold nearly all points of all submaps."""
    reaches = [np.abs(submap.points[:, :2]).max(axis=1) for submap in submaps if len(submap.points)]
    if not reaches:
        return LEAST_RADIUS
    return max(LEAST_RADIUS, float(np.percentile(np.concatenate(reaches), 99.5)))


def _submap(axes: Axes, submap: Submap, limit: float) -> None:
    axes.set_facecolor(POINTS)
    order = np.argsort(submap.points[:, 2], kind="stable")  # what is high lies over what is low
    right_up = ego_to_picture(submap.points[order, :2])
    size = float(np.clip(9000 / max(len(order), 1), 0.6, 5.0))
    if submap.saliency is None:
        axes.scatter(*right_up.T, s=size, c="#e6e9ee", lw=0)
    else:
        shade = 0.28 + 0.72 * to_unit(submap.saliency[order])  # the faintest are still seen
        axes.scatter(*right_up.T, s=size, c=matplotlib.colormaps[SALIENCY](shade), lw=0)
    axes.plot(0, 0, "^", color="#56B4E9", ms=7, mec="white", mew=0.8, zorder=5)
    place = ego_to_picture(submap.query_xy)
    if submap.right is not None and np.abs(place).max() <= limit:
        axes.plot(*place, "+", color="#56B4E9", ms=12, mew=2.2, zorder=6)
    color = {None: "#5b6675", True: RIGHT, False: WRONG}[submap.right]
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=1.5 if submap.right is None else 4)
    axes.set_title(submap.title, color=color)
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], aspect="equal")
