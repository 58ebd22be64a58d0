"""Smoothed pixels: the density image itself, blurred. What is left when nothing else is done.

Not invariant to turning: it finds places that are passed in the same direction.
"""

import cv2
import numpy as np

from placerec_jax.evaluation.reference_inputs import (
    DENSITY_GRID,
    Stack,
    check_stacks,
    density_image,
)
from placerec_jax.ops.grid import Grid2D

NEEDS = "bev"

BLUR = 2.0  # cells (0.8 m): about as far as two passes of one lane lie apart
SHRINK = 4  # cells to a value: the blur leaves nothing finer


def describe(scan: np.ndarray, *, grid: Grid2D = DENSITY_GRID, blur: float = BLUR) -> Stack:
    """A density image (H, H), or points (N, 3) put on `grid` → `descriptor` (n·n,) float32 of length one.

    Square roots of the density are blurred by `blur` cells within the inscribed disc and averaged over
    4 × 4 cells. A scan without any content gives zeros.
    """
    image = smoothed(scan, grid, blur)
    size = max(1, round(len(image) / SHRINK))
    return {"descriptor": unit(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA))}


def distances(queries: Stack, database: Stack, allowed: np.ndarray | None = None) -> np.ndarray:
    """(Q, D) float32: 1 − cosine; 1 for a scan without content."""
    check_stacks(queries, database, "descriptor", allowed)
    result = np.maximum(1 - queries["descriptor"] @ database["descriptor"].T, 0)
    if allowed is not None:
        result[~np.asarray(allowed, bool)] = np.inf
    return result


def smoothed(scan: np.ndarray, grid: Grid2D, blur: float) -> np.ndarray:
    """(H, H) float32: square roots of the density (even out counts), blurred by `blur` cells, disc only."""
    image = np.sqrt(density_image(scan, grid))
    middle = (len(image) - 1) / 2
    away = np.arange(len(image)) - middle
    image[np.hypot(away[:, None], away) > middle] = 0
    return cv2.GaussianBlur(image, (0, 0), blur, borderType=cv2.BORDER_CONSTANT) if blur else image


def unit(values: np.ndarray) -> np.ndarray:
    """(...) → (n,) float32 of length one, or zeros."""
    values = values.astype(np.float32).ravel()
    length = np.linalg.norm(values)
    return values / length if length > 0 else values
