"""Weights of torch layers in the layout of Flax, and the random draws that the comparisons share."""

import jax
import numpy as np
import torch

_BATCH_NORMS = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def nhwc(tensor: torch.Tensor) -> np.ndarray:
    return array(tensor).transpose(0, 2, 3, 1)


def nchw(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def conv(layer: torch.nn.Conv2d) -> dict[str, np.ndarray]:
    """(out, in / groups, h, w) -> (h, w, in / groups, out)."""
    weights = {"kernel": array(layer.weight).transpose(2, 3, 1, 0)}
    return weights if layer.bias is None else {**weights, "bias": array(layer.bias)}


def linear(layer: torch.nn.Linear) -> dict[str, np.ndarray]:
    return {"kernel": array(layer.weight).T, "bias": array(layer.bias)}


def norm(layer: torch.nn.Module) -> dict[str, np.ndarray]:
    return {"scale": array(layer.weight), "bias": array(layer.bias)}


def statistics(layer: torch.nn.BatchNorm2d) -> dict[str, np.ndarray]:
    return {"mean": array(layer.running_mean), "var": array(layer.running_var)}


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    """Draws what torch starts at 0 or 1 (normalisations, statistics, biases), so that no term is idle."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: torch.Tensor, low: float, high: float) -> None:
        tensor.data = torch.rand(tensor.shape, generator=generator) * (high - low) + low

    for layer in module.modules():
        if isinstance(layer, _BATCH_NORMS):
            uniform(layer.running_mean, -0.5, 0.5)
            uniform(layer.running_var, 0.5, 1.5)
        if isinstance(layer, (*_BATCH_NORMS, torch.nn.LayerNorm)):
            uniform(layer.weight, 0.5, 1.5)
        if getattr(layer, "bias", None) is not None:
            uniform(layer.bias, -0.5, 0.5)


def assert_same_structure(given: dict, expected: dict) -> None:
    """Every parameter of the Flax module is given, in its shape, and no other."""
    assert jax.tree.map(np.shape, given) == jax.tree.map(np.shape, expected)
