"""The cross-view transformer against torch layers with the same weights; who sees whom, and what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from placerec_jax.modules.cross_view_transformer import TAPS, CrossViewTransformer, sine_position
from tests.modules import from_torch

DIM, HEADS, CAMERAS, GRID = 16, 4, 3, (2, 3)
OUTPUT_PADDING = {16: 1, 8: 1, 4: 1, 2: 1, 1: 0}


class TorchBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(DIM), torch.nn.LayerNorm(DIM)
        for name in ("query", "key", "value"):
            setattr(self, name, torch.nn.Linear(DIM, DIM, bias=False))
        self.out = torch.nn.Linear(DIM, DIM)
        self.expand, self.contract = torch.nn.Linear(DIM, 4 * DIM), torch.nn.Linear(4 * DIM, DIM)

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.unflatten(-1, (HEADS, DIM // HEADS)).transpose(1, 2)

        y = self.norm1(x)
        q, k, v = heads(self.query(y + position)), heads(self.key(y + position)), heads(self.value(y))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class TorchCrossView(torch.nn.Module):
    def __init__(self, stride: int, blocks: int) -> None:
        super().__init__()
        kernel, dilation = TAPS[stride]
        self.reduce = torch.nn.Conv2d(DIM, DIM, 1, stride, groups=DIM, bias=False)
        self.reduce_pointwise = torch.nn.Conv2d(DIM, DIM, 1, bias=False)
        self.blocks = torch.nn.ModuleList(TorchBlock() for _ in range(blocks))
        self.spread = torch.nn.ConvTranspose2d(
            DIM,
            DIM,
            kernel,
            stride,
            output_padding=OUTPUT_PADDING[stride],
            groups=DIM,
            dilation=dilation,
        )
        self.spread_pointwise = torch.nn.Conv2d(DIM, DIM, 1, bias=False)

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) of one rig → the same shape."""
        y = self.reduce_pointwise(self.reduce(x))
        cameras, _, rows, columns = y.shape
        tokens = y.permute(0, 2, 3, 1).reshape(1, -1, DIM)
        for block in self.blocks:
            tokens = block(tokens, position)
        y = tokens.reshape(cameras, rows, columns, DIM).permute(0, 3, 1, 2)
        return self.spread_pointwise(self.spread(y))


def converted(model: TorchCrossView) -> dict:
    def pointwise(layer):
        return {"kernel": from_torch.array(layer.weight)[:, :, 0, 0].T}

    params = {
        "reduce": from_torch.array(model.reduce.weight)[:, 0, 0, 0],
        "reduce_pointwise": pointwise(model.reduce_pointwise),
        "spread": from_torch.array(model.spread.weight)[:, 0].transpose(1, 2, 0),
        "spread_bias": from_torch.array(model.spread.bias),
        "spread_pointwise": pointwise(model.spread_pointwise),
    }
    for i, block in enumerate(model.blocks):
        heads = (HEADS, DIM // HEADS)
        params[f"block{i}"] = {
            **{
                name: {"kernel": from_torch.array(getattr(block, name).weight).T.reshape(DIM, *heads)}
                for name in ("query", "key", "value")
            },
            "out": {
                "kernel": from_torch.array(block.out.weight).T.reshape(*heads, DIM),
                "bias": from_torch.array(block.out.bias),
            },
            **{name: from_torch.linear(getattr(block, name)) for name in ("expand", "contract")},
            **{name: from_torch.norm(getattr(block, name)) for name in ("norm1", "norm2")},
        }
    return {"params": params}


def position_by_formula(rows, columns):
    """DETR's: half the channels for y, half for x, sines and cosines in turn, counted from 1."""
    encoding = np.zeros((rows, columns, DIM))
    for row, column, channel in np.ndindex(encoding.shape):
        half, place = divmod(channel, DIM // 2)
        angle = ((column if half else row) + 1) / 10000 ** (2 * (place // 2) / (DIM // 2))
        encoding[row, column, channel] = np.cos(angle) if place % 2 else np.sin(angle)
    return encoding


def test_position_by_formula():
    np.testing.assert_allclose(sine_position(5, 7, DIM), position_by_formula(5, 7), atol=1e-6)


@pytest.mark.parametrize("stride", TAPS)
def test_equals_torch(stride):
    torch.manual_seed(stride)
    model = TorchCrossView(stride, 2).eval()
    from_torch.randomize(model)
    height, width = (n * stride for n in GRID)
    x = np.random.default_rng(stride).normal(size=(1, CAMERAS, height, width, DIM)).astype(np.float32)
    position = np.tile(position_by_formula(*GRID).reshape(-1, DIM), (CAMERAS, 1)).astype(np.float32)
    with torch.no_grad():
        expected = from_torch.nhwc(model(from_torch.nchw(x[0]), torch.from_numpy(position)))
    module = CrossViewTransformer(stride, 2, HEADS, remat=stride == 2)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
    from_torch.assert_same_structure(converted(model), shapes)
    found = jax.jit(module.apply)(converted(model), x)
    assert found.shape == x.shape
    np.testing.assert_allclose(found[0], expected, atol=2e-5)


def test_missing_camera_changes_nothing_for_the_others():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, CAMERAS, 4, 6, DIM)).astype(np.float32)
    module = CrossViewTransformer(2, 1, HEADS)
    mask = np.array([[True, False, True], [True, True, True]])
    variables = from_torch.drawn(module, x, mask)
    run = jax.jit(module.apply)
    before, other = run(variables, x, mask), x.copy()
    other[0, 1] = 100.0
    after = run(variables, other, mask)
    np.testing.assert_allclose(after[0, ::2], before[0, ::2], atol=1e-5)
    other[1, 1] = 100.0
    assert np.abs(run(variables, other, mask)[1, 0] - before[1, 0]).max() > 1e-3  # a camera that is there


def test_remat_gives_the_same_gradient():
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 2, DIM)).astype(np.float32)
    variables = from_torch.drawn(CrossViewTransformer(1, 1, HEADS), x)

    def gradient(remat):
        module = CrossViewTransformer(1, 1, HEADS, remat=remat)
        return jax.jit(jax.grad(lambda v: jnp.sum(module.apply(v, x) ** 2)))(variables)

    for a, b in zip(jax.tree.leaves(gradient(True)), jax.tree.leaves(gradient(False)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_parameters_of_all_five_levels():
    """48 C² of four blocks and 2 C² of pointwise layers a level dominate: 17.66 million for ResNet-34."""
    count = 0
    for stride, dim in zip(TAPS, (64, 64, 128, 256, 512), strict=True):
        x = jax.ShapeDtypeStruct((1, 6, stride, stride, dim), np.float32)
        module = CrossViewTransformer(stride)
        count += sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(module.init, jax.random.key(0), x)))
    by_hand = sum(
        4 * (12 * c * c + 10 * c) + 2 * c * c + 2 * c + kernel**2 * c
        for c, (kernel, _) in zip((64, 64, 128, 256, 512), TAPS.values(), strict=True)
    )
    assert count == by_hand == 17_658_880


@pytest.mark.parametrize(
    ("stride", "dim", "message"),
    [
        (3, 16, "stride is 3"),
        (4, 16, "stride is 4"),
        (2, 18, "multiple of 4"),
        (2, 20, "cannot be split by 8 heads"),
    ],
)
def test_sizes_that_do_not_fit_are_named(stride, dim, message):
    x = jnp.zeros((1, 1, 6, 6, dim))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(CrossViewTransformer(stride, 1, 8).init, jax.random.key(0), x)
