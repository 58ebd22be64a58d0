"""The U-Net decoder against torch functions with the same weights."""

import jax
import numpy as np
import pytest
import torch

from placerec_jax.modules.unet import UNetDecoder
from tests.modules import from_torch

SKIP_CHANNELS = (4, 6, 8)
WIDTHS = (7, 5)


def skips(rows: int = 16, columns: int = 24) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=(2, rows >> i, columns >> i, channels)).astype(np.float32)
        for i, channels in enumerate(SKIP_CHANNELS)
    ]


def test_levels_equal_torch():
    torch.manual_seed(0)
    inputs = (SKIP_CHANNELS[2] + SKIP_CHANNELS[1], WIDTHS[0] + SKIP_CHANNELS[0])
    layers = [
        torch.nn.Sequential(torch.nn.Conv2d(n, width, 3, padding=1, bias=False), torch.nn.BatchNorm2d(width))
        for n, width in zip(inputs, WIDTHS, strict=True)
    ]
    params, stats = {}, {}
    for i, (conv, norm) in enumerate(layers):
        from_torch.randomize(norm.eval(), seed=i)
        params[f"level{i}"] = {"conv": from_torch.conv(conv), "bn": from_torch.norm(norm)}
        stats[f"level{i}"] = {"bn": from_torch.statistics(norm)}
    finest, middle, coarsest = (from_torch.nchw(skip) for skip in skips())

    def level(layer: torch.nn.Module, x: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        enlarged = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.relu(layer(torch.cat([enlarged, skip], dim=1)))

    with torch.no_grad():
        half = level(layers[0], coarsest, middle)
        full = level(layers[1], half, finest)
    decoder = UNetDecoder(WIDTHS)
    variables = {"params": params, "batch_stats": stats}
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), skips(), train=False))
    from_torch.assert_same_structure(variables, shapes)
    levels = jax.jit(lambda v, x: decoder.apply(v, x, train=False))(variables, skips())
    np.testing.assert_allclose(levels[0], from_torch.nhwc(full), atol=1e-5)
    np.testing.assert_allclose(levels[1], from_torch.nhwc(half), atol=1e-5)


def test_wrong_number_of_skips_and_uneven_sizes_are_named():
    with pytest.raises(ValueError, match="2 widths"):
        UNetDecoder(WIDTHS).init(jax.random.key(0), skips()[:2], train=False)
    with pytest.raises(ValueError, match="divides evenly"):
        UNetDecoder(WIDTHS).init(jax.random.key(0), skips(18, 24), train=False)
