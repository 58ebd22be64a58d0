"""Smoothing against SciPy."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from placerec_jax.ops.smooth import gaussian_blur


@pytest.mark.parametrize("sigma", [0.5, 1.5, 2.0])
def test_equals_scipy(sigma):
    """Borders are of zeros; SciPy cuts its Gaussian off where ours ends, at the whole cell after 3 sigma."""
    x = np.random.default_rng(0).normal(size=(2, 9, 14, 3)).astype(np.float32)
    expected = ndimage.gaussian_filter(
        x.astype(np.float64), (0, sigma, sigma, 0), mode="constant", radius=int(np.ceil(3 * sigma))
    )
    np.testing.assert_allclose(jax.jit(gaussian_blur, static_argnums=1)(x, sigma), expected, atol=1e-6)


def test_spreads_without_loss_and_has_a_gradient():
    x = np.zeros((1, 21, 21, 1), np.float32)
    x[0, 10, 10] = 1.0
    blur = jax.jit(lambda x: gaussian_blur(x, 2.0))
    y = np.asarray(blur(x))
    np.testing.assert_allclose(y.sum(), 1.0, atol=1e-6)
    np.testing.assert_allclose(y, np.rot90(y, axes=(1, 2)), atol=1e-8)
    # Linear and symmetric: the gradient of what is read at a cell is the blur of that cell.
    np.testing.assert_allclose(jax.grad(lambda x: blur(x)[0, 10, 10, 0])(x), y, atol=1e-7)
