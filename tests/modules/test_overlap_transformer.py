"""Legs: what they read and leave out. The encoder against torch, and what a turn of the sensor changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from placerec_jax.errors import ConfigError
from placerec_jax.modules.modality_fusion import ModalityFusion
from placerec_jax.modules.netvlad import LoupeNetVLAD
from placerec_jax.modules.overlap_transformer import (
    LEGS,
    OverlapTransformer,
    RangeImageEncoder,
    built_leg,
    heights,
    leg_for,
    rows_read,
)
from tests.modules import from_torch


def rows_by_gradient(leg: str, height: int) -> np.ndarray:
    """(height,) whether the tokens of random images depend on the row."""
    image = np.random.default_rng(0).uniform(0, 1, (1, height, 12, 1)).astype(np.float32)
    module = RangeImageEncoder(leg, dim=8, width=8, heads=2, mlp_dim=8)
    variables = from_torch.drawn(module, image)
    weight = np.random.default_rng(1).normal(size=(1, 12, 8))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(weight * module.apply(variables, x))))(image)
    return np.abs(gradient).max(axis=(0, 2, 3)) > 0


def test_default_leg_of_352_rows_reads_them_all_and_the_literal_one_27():
    assert rows_by_gradient("leg352", 352).all()
    literal = rows_by_gradient("ot64", 352)
    assert literal[:27].all()
    assert not literal[27:].any()
    assert heights(LEGS["leg352"].layers, 352) == [352, 176, 88, 44, 22, 11, 9, 7, 5, 3, 1]
    assert [layer.channels for layer in LEGS["leg352"].layers] == [16, 16, 32, 32, 64, 64, 64, 128, 128, 128]


def test_leg_of_32_rows_leaves_out_the_last_two():
    assert heights(LEGS["ot32"].layers, 32) == [32, 16, 12, 10, 8, 6, 4, 2, 1]
    assert rows_read(LEGS["ot32"].layers) == set(range(30))


@pytest.mark.parametrize("height", range(2, 130))
def test_built_leg_reads_every_row(height):
    leg = built_leg(height)
    assert heights(leg.layers, height)[-1] == 1
    assert rows_read(leg.layers) == set(range(height))
    assert leg.layers[-1].channels == 128


@pytest.mark.parametrize(
    ("height", "width", "leg", "message"),
    [
        (64, 8, "ot32", r"'ot32' is for 32 rows; the range image has 64, and it reduces them to 9"),
        (33, 8, "ot32", "leaves 3 of them unread"),
        (50, 8, "ot64", "'ot64' is for 64 or 352 rows; the range image has 50, and it leaves 23"),
        (16, 8, "leg352", r"\(expected 1\)"),
        (1, 8, "auto", "at least 2 rows"),
        (32, 0, "auto", "at least 2 rows and 1 column"),
        (32, 8, "leg353", "'leg353' is unknown; expected one of .*'auto'"),
    ],
)
def test_sizes_that_a_leg_does_not_cover_are_named(height, width, leg, message):
    with pytest.raises(ConfigError, match=message):
        leg_for(height, width, leg)


def test_encoder_equals_torch():
    """With the leg of 32 rows: eight convolutions, then 1x1, torch's own encoder layer, 1x1."""
    torch.manual_seed(0)
    convs, inputs = [], 4
    for layer in LEGS["ot32"].layers:
        channels = layer.channels // 4
        convs.append(torch.nn.Conv2d(inputs, channels, (layer.kernel, 1), (layer.stride, 1), bias=False))
        inputs = channels
    narrow, widen = torch.nn.Conv2d(32, 24, 1, bias=False), torch.nn.Conv2d(48, 40, 1, bias=False)
    layer = torch.nn.TransformerEncoderLayer(24, 4, 56, dropout=0.0, batch_first=True)
    from_torch.randomize(layer)
    x = np.random.default_rng(0).uniform(0, 1, (2, 32, 9, 4)).astype(np.float32)
    with torch.no_grad():
        y = from_torch.nchw(x)
        for conv in [*convs, narrow]:
            y = torch.relu(conv(y) * 3)  # scaled: torch's initialisation fades over nine ReLUs
        asked = layer(y[:, :, 0].transpose(1, 2)).transpose(1, 2)[:, :, None]
        expected = from_torch.nhwc(torch.relu(widen(torch.cat([y, asked], 1))))[:, 0]

    def tripled(conv):
        return {"kernel": 3 * from_torch.conv(conv)["kernel"]}

    projections = from_torch.array(layer.self_attn.in_proj_weight).reshape(3, 24, 24).transpose(0, 2, 1)
    biases = from_torch.array(layer.self_attn.in_proj_bias).reshape(3, 4, 6)
    attention = {
        name: {"kernel": projections[i].reshape(24, 4, 6), "bias": biases[i]}
        for i, name in enumerate(("query", "key", "value"))
    }
    attention["out"] = {
        "kernel": from_torch.array(layer.self_attn.out_proj.weight).T.reshape(4, 6, 24),
        "bias": from_torch.array(layer.self_attn.out_proj.bias),
    }
    params = {f"leg{i}": tripled(conv) for i, conv in enumerate(convs)}
    params["narrow"] = {"kernel": tripled(narrow)["kernel"][0, 0]}
    params["widen"] = {"kernel": from_torch.conv(widen)["kernel"][0, 0]}
    params["transformer"] = {
        "self_attention": attention,
        "self_attention_residual": {"norm": from_torch.norm(layer.norm1)},
        "mlp": {name: from_torch.linear(getattr(layer, name)) for name in ("linear1", "linear2")},
        "mlp_residual": {"norm": from_torch.norm(layer.norm2)},
    }
    module = RangeImageEncoder("auto", 24, 40, 4, 56, leg_width=32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x))
    from_torch.assert_same_structure({"params": params}, shapes)
    np.testing.assert_allclose(jax.jit(module.apply)({"params": params}, x), expected, atol=2e-5)


class Fused(nn.Module):
    """From range images on, small: two encoders, the fusion, NetVLAD."""

    @nn.compact
    def __call__(self, camera, lidar):
        tokens = [RangeImageEncoder("auto", 16, 16, 4, 32, 32)(image) for image in (camera, lidar)]
        return LoupeNetVLAD(8, 16)(ModalityFusion(4, 32)(*tokens)[0])


def test_descriptor_does_not_see_how_columns_are_ordered_in_either_modality_but_sees_their_content():
    rng = np.random.default_rng(0)
    camera = rng.uniform(0, 1, (1, 40, 50, 1)).astype(np.float32)
    lidar = rng.uniform(0, 1, (1, 32, 50, 4)).astype(np.float32)
    variables, run = from_torch.drawn(Fused(), camera, lidar), jax.jit(Fused().apply)
    before = run(variables, camera, lidar)
    np.testing.assert_allclose(np.linalg.norm(before), 1.0, rtol=1e-5)
    order = rng.permutation(50)
    for a, b in (
        (np.roll(camera, 7, axis=2), np.roll(lidar, 7, axis=2)),
        (np.roll(camera, 3, axis=2), np.roll(lidar, -11, axis=2)),
        (camera[:, :, order], lidar),
    ):
        np.testing.assert_allclose(run(variables, a, b), before, atol=1e-5)
    for which in (0, 1):
        changed = [camera.copy(), lidar.copy()]
        changed[which][:, :, 20, 0] = 0.0
        assert np.abs(run(variables, *changed) - before).max() > 1e-5


def test_whole_overlap_transformer():
    """The published widths: 1x1 to 256, tokens of 1024 into 64 clusters, 256 numbers of unit length."""
    x = jax.ShapeDtypeStruct((2, 32, 16, 1), np.float32)
    found, variables = jax.eval_shape(OverlapTransformer().init_with_output, jax.random.key(0), x)
    assert found.shape == (2, 256)
    assert variables["params"]["vlad"]["projection"].shape == (1024 * 64, 256)
    assert variables["params"]["encoder"]["narrow"]["kernel"].shape == (128, 256)
    small = OverlapTransformer(dim=16, width=32, mlp_dim=16, leg_width=32, clusters=4, descriptor=8)
    x = np.random.default_rng(0).uniform(0, 1, (2, 32, 16, 1)).astype(np.float32)
    variables = from_torch.drawn(small, x)
    run = jax.jit(small.apply)
    descriptor = run(variables, x)
    np.testing.assert_allclose(np.linalg.norm(descriptor, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(run(variables, np.roll(x, 5, axis=2)), descriptor, atol=1e-5)
