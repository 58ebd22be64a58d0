"""EfficientNet-B0 against the implementation in Hugging Face transformers, with the same random weights."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from placerec_jax.modules.efficientnet import STAGES, EfficientNetB0, MBConv
from tests.modules import from_torch

# The last block of each resolution, counted from 0; the first hidden state is the stem's output.
TAP_BLOCKS = {"reduction_1": 0, "reduction_2": 2, "reduction_3": 4, "reduction_4": 10, "reduction_5": 15}
BLOCKS = 16


@pytest.fixture(scope="module")
def reference() -> transformers.EfficientNetModel:
    torch.manual_seed(0)
    config = transformers.EfficientNetConfig(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280)
    model = transformers.EfficientNetModel(config).eval()
    from_torch.randomize(model)
    return model


def converted(reference: transformers.EfficientNetModel) -> dict:
    stem = reference.embeddings
    params = {"stem_conv": from_torch.conv(stem.convolution), "stem_bn": from_torch.norm(stem.batchnorm)}
    stats = {"stem_bn": from_torch.statistics(stem.batchnorm)}
    for i, block in enumerate(reference.encoder.blocks):
        convs = {
            "depthwise_conv": block.depthwise_conv.depthwise_conv,
            "project_conv": block.projection.project_conv,
        }
        norms = {
            "depthwise_bn": block.depthwise_conv.depthwise_norm,
            "project_bn": block.projection.project_bn,
        }
        if i > 0:
            convs["expand_conv"] = block.expansion.expand_conv
            norms["expand_bn"] = block.expansion.expand_bn
        gate = {"reduce": block.squeeze_excite.reduce, "expand": block.squeeze_excite.expand}
        params[f"block{i}"] = {
            **{name: from_torch.conv(layer) for name, layer in convs.items()},
            **{name: from_torch.norm(layer) for name, layer in norms.items()},
            "se": {
                name: {**from_torch.conv(layer), "kernel": from_torch.conv(layer)["kernel"][0, 0]}
                for name, layer in gate.items()
            },
        }
        stats[f"block{i}"] = {name: from_torch.statistics(layer) for name, layer in norms.items()}
    return {"params": params, "batch_stats": stats}


def test_taps_equal_transformers(reference):
    images = np.random.default_rng(0).normal(size=(2, 128, 352, 3)).astype(np.float32)
    with torch.no_grad():
        hidden = reference(from_torch.nchw(images), output_hidden_states=True).hidden_states
    model, variables = EfficientNetB0(), converted(reference)
    expected_shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    from_torch.assert_same_structure(variables, expected_shapes)

    taps = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)

    assert list(taps) == list(TAP_BLOCKS)
    for name, block in TAP_BLOCKS.items():
        expected = from_torch.nhwc(hidden[block + 1])
        assert np.abs(expected).mean() > 0.1  # the comparison is not one of zeros
        np.testing.assert_allclose(taps[name], expected, atol=1e-4, rtol=1e-4, err_msg=name)
    assert taps["reduction_4"].shape == (2, 8, 22, 112)
    assert taps["reduction_5"].shape == (2, 4, 11, 320)


def test_parameter_count():
    images = jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(lambda: EfficientNetB0().init(jax.random.key(0), images, train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == 3_595_388


def test_compute_dtype_leaves_parameters_and_statistics_in_float32():
    images = jnp.zeros((1, 64, 64, 3))
    model = EfficientNetB0(dtype=jnp.bfloat16)
    taps, variables = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), images, train=False))
    assert {leaf.dtype for leaf in jax.tree.leaves(taps)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_drop_path_grows_linearly_with_depth():
    rates = []

    def record(run, arguments, keywords, context):
        if isinstance(context.module, MBConv):
            rates.append(context.module.drop_path)
        return run(*arguments, **keywords)

    with nn.intercept_methods(record):
        images = jnp.zeros((1, 64, 64, 3))
        jax.eval_shape(lambda: EfficientNetB0(0.2).init(jax.random.key(0), images, train=False))
    assert len(rates) == BLOCKS == sum(stage.blocks for stage in STAGES)
    np.testing.assert_allclose(rates, 0.2 * np.arange(BLOCKS) / BLOCKS)


def test_stochastic_depth_drops_whole_branches_and_keeps_the_mean():
    x = np.random.default_rng(0).normal(size=(32, 4, 4, 8)).astype(np.float32)
    keep, block = 0.7, MBConv(8, 3, 1, 6)
    dropping = MBConv(8, 3, 1, 6, drop_path=1 - keep)
    variables = jax.jit(lambda: block.init(jax.random.key(0), x, train=False))()

    def branch(module: MBConv, key: jax.Array) -> jax.Array:
        y, _ = module.apply(variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
        return y - x

    whole = branch(block, jax.random.key(0))
    draws = jax.jit(jax.vmap(lambda key: branch(dropping, key)))(jax.random.split(jax.random.key(1), 64))
    ratio = np.sum(draws * whole, axis=(2, 3, 4)) / np.sum(whole**2, axis=(1, 2, 3))
    dropped = np.isclose(ratio, 0, atol=1e-5)
    np.testing.assert_allclose(ratio[~dropped], 1 / keep, rtol=1e-4)
    np.testing.assert_allclose(draws, ratio[..., None, None, None] * np.asarray(whole), atol=1e-4)
    # 2048 draws: the standard error of the mean of ratio is 0.0145.
    assert abs(ratio.mean() - 1) < 0.06
