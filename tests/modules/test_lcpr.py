"""LCPR: its convolutions along columns against torch; what cameras, masks and single parts change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from placerec_jax.modules.lcpr import LCPR, ChannelAttention, ColumnTokens, side_by_side
from tests.modules import from_torch

SMALL = LCPR("resnet_test", heads=2, clusters=4, half=6)


def test_column_tokens_equal_torch():
    torch.manual_seed(0)
    channels, hidden, features = 8, 4, 6
    conv2, conv1, norm = torch.nn.Conv2d, torch.nn.Conv1d, torch.nn.BatchNorm1d
    layers = {
        "weigh": conv2(channels, channels, 1),
        "weighed": conv2(channels, channels, 1),
        "reduce": conv1(channels, hidden, 1, bias=False),
        "reduce_bn": norm(hidden),
        "conv1": conv1(hidden, hidden, 3, padding=1, bias=False),
        "bn1": norm(hidden),
        "conv2": conv1(hidden, hidden, 3, padding=1, bias=False),
        "bn2": norm(hidden),
        "out": conv1(hidden, features, 1),
        "out_bn": norm(features),
    }
    model = torch.nn.ModuleDict(layers).eval()
    from_torch.randomize(model)
    x = np.random.default_rng(0).normal(size=(2, 5, 7, channels)).astype(np.float32)
    with torch.no_grad():
        y = layers["weighed"](torch.sigmoid(layers["weigh"](from_torch.nchw(x)))).amax(2)
        y = F.relu(layers["reduce_bn"](layers["reduce"](y)))
        z = F.relu(layers["bn1"](layers["conv1"](y)))
        z = F.relu(layers["bn2"](layers["conv2"](z)))
        expected = F.relu(layers["out_bn"](layers["out"](y + z))).numpy().transpose(0, 2, 1)

    params, stats = {}, {}
    for name, layer in layers.items():
        if isinstance(layer, norm):
            params[name], stats[name] = from_torch.norm(layer), from_torch.statistics(layer)
            continue
        weight = from_torch.array(layer.weight)
        kernel = weight.transpose(2, 1, 0) if weight.shape[-1] == 3 else weight.reshape(weight.shape[:2]).T
        params[name] = {"kernel": kernel}
        if layer.bias is not None:
            params[name]["bias"] = from_torch.array(layer.bias)
    variables = {"params": params, "batch_stats": stats}
    module = ColumnTokens(features)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, False))
    from_torch.assert_same_structure(variables, shapes)
    found = jax.jit(lambda v: module.apply(v, x, False))(variables)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_channel_attention_equals_torch():
    torch.manual_seed(0)
    conv = torch.nn.Conv1d(1, 1, 3, padding=1, bias=False)
    x = np.random.default_rng(0).normal(size=(2, 9)).astype(np.float32)
    with torch.no_grad():
        expected = torch.from_numpy(x) * torch.sigmoid(conv(torch.from_numpy(x)[:, None])[:, 0])
    params = {"conv": {"kernel": from_torch.array(conv.weight).transpose(2, 1, 0)}}
    np.testing.assert_allclose(ChannelAttention().apply({"params": params}, x), expected, atol=1e-6)


def test_cameras_lie_side_by_side():
    images = np.arange(2 * 3 * 2 * 4).reshape(2, 3, 2, 4, 1)
    panorama = side_by_side(images)[..., 0]
    np.testing.assert_array_equal(panorama[1], np.concatenate(list(images[1, ..., 0]), axis=1))


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 2, 32, 64, 3)).astype(np.float32)
    ranges = rng.uniform(0, 1, (3, 8, 32, 1)).astype(np.float32)
    mask = np.array([[True, True], [True, False], [True, True]])
    variables = from_torch.drawn(SMALL, images, mask, ranges, False)
    return jax.jit(lambda *inputs: SMALL.apply(variables, *inputs, False)), variables, images, mask, ranges


def test_descriptor_depends_on_both_modalities_but_not_on_a_missing_camera(network):
    run, _, images, mask, ranges = network
    before = run(images, mask, ranges)
    assert before.shape == (3, 12)
    np.testing.assert_allclose(np.linalg.norm(before, axis=1), 1.0, rtol=1e-5)
    other = images.copy()
    other[:, 1] = 7.0
    after = run(other, mask, ranges)
    np.testing.assert_array_equal(after[1], before[1])
    assert np.abs(after - before)[[0, 2]].max(axis=1).min() > 1e-4
    assert np.abs(run(images, mask, np.roll(ranges, 3, axis=1)) - before)[0].max() > 1e-4


@pytest.mark.slow
def test_training_reaches_every_parameter_and_moves_the_statistics(network):
    _, variables, images, mask, ranges = network

    def total(params):
        inputs = {**variables, "params": params}, images, mask, ranges, True
        descriptor, updated = SMALL.apply(*inputs, mutable=["batch_stats"])
        return jnp.sum(descriptor * jnp.arange(12.0)), updated["batch_stats"]

    gradient, stats = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
    idle = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not np.abs(leaf).max() > 0 and "bias" not in jax.tree_util.keystr(path)
    ]
    assert not idle
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    moved = jax.tree.map(lambda a, b: bool(np.abs(a - b).max() > 0), stats, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_published_sizes():
    """256 x 704 images, 32 x 1056 cells: 132 columns of either reach the two NetVLADs, 256 numbers leave."""
    images = jax.ShapeDtypeStruct((1, 6, 256, 704, 3), np.float32)
    mask, ranges = jax.ShapeDtypeStruct((1, 6), np.bool_), jax.ShapeDtypeStruct((1, 32, 1056, 1), np.float32)
    found, variables = jax.eval_shape(
        lambda *inputs: LCPR().init_with_output(jax.random.key(0), *inputs, False), images, mask, ranges
    )
    assert found.shape == (1, 256)
    params = variables["params"]
    assert params["images_vlad"]["projection"].shape == (256 * 32, 128)
    assert params["fusion1"]["images"]["reduce"]["kernel"].shape == (64, 32)
    assert params["fusion4"]["images"]["reduce"]["kernel"].shape == (512, 256)
    assert params["ranges_columns"]["reduce"]["kernel"].shape == (512, 256)
    with pytest.raises(ValueError, match="images are 250 x 704"):
        jax.eval_shape(
            lambda *inputs: LCPR().init(jax.random.key(0), *inputs, False),
            jax.ShapeDtypeStruct((1, 6, 250, 704, 3), np.float32),
            mask,
            ranges,
        )
