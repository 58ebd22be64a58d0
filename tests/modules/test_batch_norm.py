"""Masked batch normalisation against torch's, on the entries that are real."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from placerec_jax.modules.batch_norm import MaskedBatchNorm
from tests.modules import from_torch

NORM = MaskedBatchNorm()


def batches(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(2, 3, (count, 4, 5, 6)).astype(np.float32)


def reference() -> tuple[torch.nn.BatchNorm1d, dict]:
    layer = torch.nn.BatchNorm1d(6)
    torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
    torch.nn.init.uniform_(layer.bias, -0.5, 0.5)
    return layer, {"params": from_torch.norm(layer), "batch_stats": from_torch.statistics(layer)}


@pytest.mark.parametrize("real", [20, 13, 4])
def test_equals_torch_on_the_real_entries(real):
    """Outputs, gradients, and running statistics over three steps, then in evaluation."""
    torch.manual_seed(0)
    layer, variables = reference()
    variables = jax.tree.map(np.copy, variables)
    mask = np.random.default_rng(1).permutation(np.arange(20) < real).reshape(4, 5)
    for x in batches(3):
        x[~mask] = 1e6  # padding is seen by nobody
        given = torch.from_numpy(x[mask]).requires_grad_()
        expected = layer(given)
        expected.square().sum().backward()

        def square(x, variables=variables):
            y, updated = NORM.apply(variables, x, True, mask, mutable=["batch_stats"])
            return jnp.where(mask[..., None], y, 0.0).__pow__(2).sum(), (y, updated["batch_stats"])

        gradient, (y, updated) = jax.grad(square, has_aux=True)(x)
        np.testing.assert_allclose(y[mask], from_torch.array(expected), atol=2e-5)
        np.testing.assert_allclose(gradient[mask], from_torch.array(given.grad), atol=2e-4)
        variables["batch_stats"] = updated
        np.testing.assert_allclose(updated["mean"], layer.running_mean, rtol=1e-5)
        np.testing.assert_allclose(updated["var"], layer.running_var, rtol=1e-5)
    x = batches(1)[0]
    expected = layer.eval()(torch.from_numpy(x.reshape(20, 6)))
    np.testing.assert_allclose(
        NORM.apply(variables, x, False, mask).reshape(20, 6), from_torch.array(expected), atol=1e-5
    )


def test_without_a_mask_all_are_real():
    _, variables = reference()
    x = batches(1)[0]
    everything = NORM.apply(variables, x, True, np.ones((4, 5), bool), mutable=["batch_stats"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        NORM.apply(variables, x, True, mutable=["batch_stats"]),
        everything,
    )


@pytest.mark.parametrize("real", [1, 0])
def test_of_one_entry_or_none_nothing_is_learned_of_the_spread(real):
    _, variables = reference()
    x, mask = batches(1)[0], (np.arange(20) < real).reshape(4, 5)
    y, updated = NORM.apply(variables, x, True, mask, mutable=["batch_stats"])
    assert np.isfinite(y).all()
    np.testing.assert_array_equal(updated["batch_stats"]["var"], variables["batch_stats"]["var"])
    moved = np.abs(updated["batch_stats"]["mean"] - variables["batch_stats"]["mean"]).max()
    assert (moved > 0) == (real == 1)
