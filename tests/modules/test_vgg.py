"""VGG-16's convolutions against a torch Sequential with the same weights."""

import jax
import numpy as np
import pytest
import torch

from placerec_jax.modules.vgg import VGG16Trunk
from tests.modules import from_torch

WIDTHS = (4, 6, 8, 10, 12)
CONVOLUTIONS = {"conv4_3": (2, 2, 3, 3), "conv5_3": (2, 2, 3, 3, 3)}


def torch_blocks(depth: str, padding: str) -> list[torch.nn.Sequential]:
    blocks, inputs = [], 3
    for block, count in enumerate(CONVOLUTIONS[depth]):
        layers = [torch.nn.MaxPool2d(2)] if block else []
        for _ in range(count):
            layers += [
                torch.nn.Conv2d(inputs, WIDTHS[block], 3, padding=1, padding_mode=padding),
                torch.nn.ReLU(),
            ]
            inputs = WIDTHS[block]
        blocks.append(torch.nn.Sequential(*layers))
    return blocks


@pytest.mark.parametrize(
    ("depth", "padding"), [("conv4_3", "zeros"), ("conv5_3", "zeros"), ("conv4_3", "replicate")]
)
def test_every_block_equals_torch(depth, padding):
    torch.manual_seed(0)
    blocks = torch_blocks(depth, padding)
    params, expected = {}, []
    x = np.random.default_rng(0).normal(size=(2, 32, 48, 3)).astype(np.float32)
    with torch.no_grad():
        features = from_torch.nchw(x)
        for number, block in enumerate(blocks, start=1):
            for layer in block:
                if isinstance(layer, torch.nn.Conv2d):
                    torch.nn.init.kaiming_normal_(layer.weight)
            convs = [layer for layer in block if isinstance(layer, torch.nn.Conv2d)]
            params |= {f"conv{number}_{i}": from_torch.conv(layer) for i, layer in enumerate(convs, start=1)}
            features = block(features)
            expected.append(from_torch.nhwc(features))
    trunk = VGG16Trunk(depth, WIDTHS, padding=padding)
    shapes = jax.eval_shape(lambda: trunk.init(jax.random.key(0), x))
    from_torch.assert_same_structure({"params": params}, shapes)
    levels = jax.jit(trunk.apply)({"params": params}, x)
    assert len(levels) == len(blocks)
    for level, wanted in zip(levels, expected, strict=True):
        np.testing.assert_allclose(level, wanted, atol=1e-4)


def test_parameters_of_the_published_widths():
    def count(depth: str) -> int:
        shapes = jax.eval_shape(lambda: VGG16Trunk(depth).init(jax.random.key(0), np.zeros((1, 16, 16, 3))))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert count("conv5_3") == 14_714_688  # the convolutions of VGG-16
    assert count("conv4_3") == 7_635_264


def test_unknown_depth_and_missing_width_are_named():
    x = np.zeros((1, 16, 16, 3), np.float32)
    with pytest.raises(ValueError, match=r"conv3_3.*conv4_3"):
        VGG16Trunk("conv3_3").init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="needs 5 widths"):
        VGG16Trunk("conv5_3", (8, 8, 8, 8)).init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="'reflect'; expected 'zeros' or 'replicate'"):
        VGG16Trunk(padding="reflect").init(jax.random.key(0), x)
