"""Range-image FFT: each row by the magnitudes of its Fourier series around the sensor, which no turn
changes."""

import numpy as np

from placerec_jax.evaluation.reference_inputs import Stack, check_range_image
from placerec_jax.evaluation.references.pixels import distances, unit

__all__ = ["NEEDS", "describe", "distances", "spectrum"]

NEEDS = "range_image"

FREQUENCIES = 33  # 0 to 32 waves a turn: down to 5.6°, half a house front at 40 m


def describe(image: np.ndarray) -> Stack:
    """(H, W) metres or any other unit, 0 where empty → `descriptor` (H·33,) float32 of length one.

    Roots of the ranges: far walls count less. An empty image gives zeros.
    """
    return {"descriptor": unit(spectrum(np.sqrt(check_range_image(image))))}


def spectrum(image: np.ndarray) -> np.ndarray:
    """(H, W) → (H, 33) magnitudes, a mean (frequency 0) counted like a wave; 0 beyond what W columns have."""
    found = np.abs(np.fft.rfft(image, axis=1))[:, :FREQUENCIES]
    found[:, 0] /= 2
    return np.pad(found, ((0, 0), (0, FREQUENCIES - found.shape[1])))
