"""Range-image rows: how far each row sees, in ten shares of the azimuth, whatever their order.

As blind to order as a network with kernels of one column and without positions.
"""

import numpy as np

from placerec_jax.evaluation.reference_inputs import Stack, check_range_image
from placerec_jax.evaluation.references.pixels import distances, unit

__all__ = ["NEEDS", "describe", "distances"]

NEEDS = "range_image"

SHARES = (np.arange(10) + 0.5) / 10  # of the azimuth: the middle of each tenth


def describe(image: np.ndarray) -> Stack:
    """(H, W) metres or any other unit, 0 where empty → `descriptor` (H·10,) float32 of length one.

    The quantiles of the roots of each row's ranges; what is empty counts as 0. An empty image gives zeros.
    """
    quantiles = np.quantile(np.sqrt(check_range_image(image)), SHARES, axis=1)
    return {"descriptor": unit(quantiles.T)}
