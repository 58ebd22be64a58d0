"""ResNet blocks against torch layers with the same weights, evaluating and over a training step."""

import jax
import numpy as np
import pytest
import torch

from placerec_jax.modules.resnet import BasicBlock, ResNetStage, ResNetTrunk
from tests.modules import from_torch


class TorchBlock(torch.nn.Module):
    """The basic block of He et al., 2016, figure 2 (projection shortcuts where the shape changes)."""

    def __init__(self, inputs: int, features: int, stride: int) -> None:
        super().__init__()
        self.conv1 = torch.nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(features)
        self.conv2 = torch.nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.bn2 = torch.nn.BatchNorm2d(features)
        self.projects = stride != 1 or inputs != features
        if self.projects:
            self.shortcut_conv = torch.nn.Conv2d(inputs, features, 1, stride, bias=False)
            self.shortcut_bn = torch.nn.BatchNorm2d(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (self.shortcut_bn(self.shortcut_conv(x)) if self.projects else x))


def converted(block: TorchBlock) -> dict:
    params, stats = {}, {}
    for name, layer in block.named_children():
        if isinstance(layer, torch.nn.Conv2d):
            params[name] = from_torch.conv(layer)
        else:
            params[name], stats[name] = from_torch.norm(layer), from_torch.statistics(layer)
    return {"params": params, "batch_stats": stats}


@pytest.mark.parametrize(
    ("inputs", "features", "stride", "size"),
    [(8, 8, 1, (10, 12)), (8, 16, 1, (10, 12)), (8, 16, 2, (10, 12)), (8, 8, 2, (9, 11))],
)
def test_basic_block_equals_torch(inputs, features, stride, size):
    torch.manual_seed(0)
    reference = TorchBlock(inputs, features, stride).eval()
    from_torch.randomize(reference)
    x = np.random.default_rng(0).normal(size=(2, *size, inputs)).astype(np.float32)
    block, variables = BasicBlock(features, stride), converted(reference)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, train=False))
    from_torch.assert_same_structure(variables, shapes)
    with torch.no_grad():
        expected = from_torch.nhwc(reference(from_torch.nchw(x)))
    np.testing.assert_allclose(block.apply(variables, x, train=False), expected, atol=1e-5)


def test_running_statistics_and_gradient_over_a_training_step_equal_torch():
    torch.manual_seed(0)
    reference = TorchBlock(4, 8, 2).train()
    from_torch.randomize(reference)
    variables = jax.tree.map(np.copy, converted(reference))
    x = np.random.default_rng(0).normal(size=(3, 8, 12, 4)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(3, 4, 6, 8)).astype(np.float32)
    y = reference(from_torch.nchw(x))
    (y * from_torch.nchw(weights)).sum().backward()

    def loss(params: dict) -> tuple[jax.Array, dict]:
        z, updated = BasicBlock(8, 2).apply(
            {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
        )
        return (z * weights).sum(), updated["batch_stats"]

    gradient, stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    expected = from_torch.array(reference.conv1.weight.grad).transpose(2, 3, 1, 0)
    np.testing.assert_allclose(gradient["conv1"]["kernel"], expected, atol=1e-4)
    count = 3 * 4 * 6
    for name in ("bn1", "bn2", "shortcut_bn"):
        after = from_torch.statistics(getattr(reference, name))
        before = variables["batch_stats"][name]
        np.testing.assert_allclose(stats[name]["mean"], after["mean"], atol=1e-5)
        # torch stores the unbiased variance, Flax the biased one that also normalises the batch.
        biased = 0.9 * before["var"] + (after["var"] - 0.9 * before["var"]) * (count - 1) / count
        np.testing.assert_allclose(stats[name]["var"], biased, atol=1e-5)


def test_stage_strides_once():
    x = np.zeros((1, 16, 24, 4), np.float32)
    shape = jax.eval_shape(lambda: ResNetStage(8, 3, 2).init_with_output(jax.random.key(0), x, train=False))
    assert shape[0].shape == (1, 8, 12, 8)
    assert set(shape[1]["params"]) == {"block0", "block1", "block2"}


def test_trunk_halves_the_resolution_at_every_tap():
    x = np.zeros((2, 64, 96, 3), np.float32)
    trunk = ResNetTrunk(widths=(8, 12, 16), blocks=(1, 2, 1), stem=4)
    taps, _ = jax.eval_shape(lambda: trunk.init_with_output(jax.random.key(0), x, train=False))
    assert {name: tap.shape for name, tap in taps.items()} == {
        "reduction_1": (2, 32, 48, 4),
        "reduction_2": (2, 16, 24, 8),
        "reduction_3": (2, 8, 12, 12),
        "reduction_4": (2, 4, 6, 16),
    }


def test_trunk_names_a_mismatch_of_widths_and_blocks():
    trunk = ResNetTrunk(widths=(8, 12), blocks=(1,), stem=4)
    with pytest.raises(ValueError, match="one number of blocks per width"):
        trunk.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32), train=False)
