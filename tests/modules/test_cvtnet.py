"""CVTNet: three descriptors side by side, made of two views whose columns may come in any order."""

import jax
import numpy as np

from placerec_jax.modules.cvtnet import CVTNet
from tests.modules import from_torch


def test_three_unit_descriptors_that_a_turn_does_not_change():
    rng = np.random.default_rng(0)
    ranges, heights = (rng.uniform(0, 1, (2, 32, 20, 5)).astype(np.float32) for _ in range(2))
    net = CVTNet(dim=16, width=16, mlp_dim=16, leg_width=32, clusters=4, descriptor=8)
    variables = from_torch.drawn(net, ranges, heights)
    run = jax.jit(net.apply)
    found = run(variables, ranges, heights)
    assert found.shape == (2, 24)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(found).reshape(2, 3, 8), axis=-1), 1.0, rtol=1e-5)
    turned = run(variables, np.roll(ranges, 6, axis=2), np.roll(heights, 6, axis=2))
    np.testing.assert_allclose(turned, found, atol=1e-5)
    # A part is of one view alone: the first of ranges, the last of heights.
    other = np.asarray(run(variables, ranges, heights * 0.5))
    np.testing.assert_allclose(other[:, :8], found[:, :8], atol=1e-6)
    assert np.abs(other[:, 8:] - found[:, 8:]).max(axis=0).min() > 1e-7


def test_published_sizes():
    views = jax.ShapeDtypeStruct((1, 32, 8, 5), np.float32)
    found, variables = jax.eval_shape(CVTNet().init_with_output, jax.random.key(0), views, views)
    assert found.shape == (1, 768)
    assert variables["params"]["fused_vlad"]["projection"].shape == (512 * 64, 256)
    assert variables["params"]["own_vlad"]["projection"].shape == (256 * 64, 256)
