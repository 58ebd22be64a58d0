"""Weights of torch layers in the layout of Flax, and the random draws that the comparisons share."""

import jax
import numpy as np
import torch
from flax import linen as nn

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


def drawn(module: nn.Module, *inputs: object, seed: int = 0) -> dict:
    """Variables of a Flax module for these inputs, drawn without compiling its initialisation.

    Kernels have a variance of 2 over their inputs; scales and variances are about 1, the rest about 0.
    """
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path[-1].key
        if name in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        fan_in = np.prod(leaf.shape[:-1]) if len(leaf.shape) > 1 else 100
        return rng.normal(0, np.sqrt(2 / fan_in), leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)
