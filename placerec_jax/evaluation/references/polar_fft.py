"""Polar FFT: each ring about the sensor by the magnitudes of its Fourier series, which no turn changes."""

import cv2
import numpy as np

from placerec_jax.evaluation.reference_inputs import DENSITY_GRID, Stack
from placerec_jax.evaluation.references.pixels import distances, smoothed, unit
from placerec_jax.ops.grid import Grid2D

__all__ = ["NEEDS", "describe", "distances", "polar_image", "spectrum"]

NEEDS = "bev"

BLUR = 2.0  # cells (0.8 m)
RINGS = 30  # of 1 m where the image reaches 30 m: the blur leaves nothing finer
AZIMUTHS = 120  # 3°: 1.6 m on the outermost ring
FREQUENCIES = 31  # 0 to 30 waves a turn: down to 6.3 m on the outermost ring, 1 m at 5 m


def describe(scan: np.ndarray, *, grid: Grid2D = DENSITY_GRID, blur: float = BLUR) -> Stack:
    """A density image (H, H), or points (N, 3) put on `grid` → `descriptor` (30·31,) float32 of length one.

    The image (square roots of the density, blurred by `blur` cells) is sampled on 30 rings × 120 azimuths
    about the sensor. A scan without any content gives zeros.
    """
    return {"descriptor": unit(spectrum(polar_image(smoothed(scan, grid, blur))))}


def polar_image(image: np.ndarray) -> np.ndarray:
    """(H, H) float32 image → (30, 120): bilinear samples on rings out to the image's edge."""
    middle = (len(image) - 1) / 2
    radius = (np.arange(RINGS)[:, None] + 0.5) * (middle / RINGS)
    azimuth = np.arange(AZIMUTHS) * (2 * np.pi / AZIMUTHS)
    row = (middle + radius * np.cos(azimuth)).astype(np.float32)  # x forward
    column = (middle + radius * np.sin(azimuth)).astype(np.float32)  # y left
    return cv2.remap(image, column, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def spectrum(polar: np.ndarray) -> np.ndarray:
    """(30, 120) → (30, 31) magnitudes, weighted by the root of the radius: equal areas count equally."""
    weight = np.sqrt(np.arange(RINGS) + 0.5)[:, None]
    return np.abs(np.fft.rfft(polar, axis=1))[:, :FREQUENCIES] * weight
