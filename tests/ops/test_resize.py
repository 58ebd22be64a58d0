"""Bilinear upsampling against torch, and as a linear operator; bilinear samples against SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy import ndimage

from placerec_jax.ops.resize import sample_bilinear, upsample_bilinear


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(4, 6), (1, 5)])
def test_equals_torch(size, factor, align_corners):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2)),
        scale_factor=factor,
        mode="bilinear",
        align_corners=align_corners,
    )
    found = upsample_bilinear(jnp.asarray(x), factor, align_corners)
    np.testing.assert_allclose(found, expected.numpy().transpose(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
def test_gradient_equals_torch(factor):
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 2)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(1, 4 * factor, 5 * factor, 2)).astype(np.float32)
    leaf = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    enlarged = torch.nn.functional.interpolate(
        leaf, scale_factor=factor, mode="bilinear", align_corners=False
    )
    (enlarged * torch.from_numpy(weights.transpose(0, 3, 1, 2))).sum().backward()
    found = jax.grad(lambda z: (upsample_bilinear(z, factor) * weights).sum())(jnp.asarray(x))
    np.testing.assert_allclose(found, leaf.grad.numpy().transpose(0, 2, 3, 1), atol=1e-5)


def test_keeps_constants_dtype_and_the_place_of_things():
    ones = upsample_bilinear(jnp.ones((1, 3, 4, 1), jnp.bfloat16), 2)
    assert ones.dtype == jnp.bfloat16
    assert (ones == 1).all()
    # The centre of mass of a point, measured in input cells, stays where it is.
    point = jnp.zeros((1, 8, 8, 1)).at[0, 3, 5, 0].set(1.0)
    enlarged = np.asarray(upsample_bilinear(point, 4))[0, :, :, 0]
    centres = (np.arange(32) + 0.5) / 4 - 0.5
    np.testing.assert_allclose((enlarged.sum(1) * centres).sum() / enlarged.sum(), 3, atol=1e-5)
    np.testing.assert_allclose((enlarged.sum(0) * centres).sum() / enlarged.sum(), 5, atol=1e-5)


def test_factor_below_one_is_refused():
    with pytest.raises(ValueError, match="factor must be at least 1, found 0"):
        upsample_bilinear(jnp.ones((1, 2, 2, 1)), 0)


def sampled_by_scipy(x: np.ndarray, place: np.ndarray) -> np.ndarray:
    """What `sample_bilinear` gives, in float64: the border stands in for what is beyond it."""
    found = [
        [
            ndimage.map_coordinates(channel, where.T, order=1, mode="nearest")
            for channel in np.moveaxis(m, -1, 0)
        ]
        for m, where in zip(x.astype(np.float64), place.astype(np.float64), strict=True)
    ]
    return np.moveaxis(np.array(found), 1, -1)


@pytest.mark.parametrize("size", [(5, 8), (1, 6), (1, 1)])
def test_samples_equal_scipy(size):
    """Between cells, on them, on the outermost and beyond."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *size, 3)).astype(np.float32)
    corner = np.array(size) - 1.0
    place = np.concatenate(
        [
            rng.uniform(-2, corner + 2, (40, 2)),
            rng.integers(0, size, (10, 2)),
            [[0, 0], corner, [-1, corner[1] + 1]],
        ]
    ).astype(np.float32)
    place = np.stack([place, place[::-1]])
    found = jax.jit(sample_bilinear)(jnp.asarray(x), jnp.asarray(place))
    np.testing.assert_allclose(found, sampled_by_scipy(x, place), atol=1e-5)


def test_gradient_of_samples():
    """Of the map: the four weights of a place, which sum to one. Of the place: the slope of the map."""
    place = jnp.array([[[1.25, 2.5]]])
    weights = jax.grad(lambda x: sample_bilinear(x, place).sum())(jnp.zeros((1, 4, 5, 1)))[0, ..., 0]
    expected = np.zeros((4, 5))
    expected[1:3, 2:4] = [[0.375, 0.375], [0.125, 0.125]]
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    row, column = np.mgrid[:4, :5].astype(np.float32)
    ramp = jnp.asarray(3 * row - 2 * column)[None, ..., None]
    slope = jax.grad(lambda where: sample_bilinear(ramp, where).sum())(place)
    np.testing.assert_allclose(slope, [[[3.0, -2.0]]], atol=1e-5)
