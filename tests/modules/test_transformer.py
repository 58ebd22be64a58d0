"""Transformer layers against torch's, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from placerec_jax.modules.transformer import (
    MultiHeadAttention,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)
from tests.modules import from_torch

DIM, HEADS, MLP = 16, 4, 24


def attention(layer: torch.nn.MultiheadAttention) -> dict:
    """torch keeps query, key and value stacked, heads major."""
    params = {}
    weights = from_torch.array(layer.in_proj_weight).reshape(3, HEADS, DIM // HEADS, DIM)
    biases = from_torch.array(layer.in_proj_bias).reshape(3, HEADS, DIM // HEADS)
    for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
        params[name] = {"kernel": weight.transpose(2, 0, 1), "bias": bias}
    kernel = from_torch.array(layer.out_proj.weight).T.reshape(HEADS, DIM // HEADS, DIM)
    params["out"] = {"kernel": kernel, "bias": from_torch.array(layer.out_proj.bias)}
    return params


def mlp(layer: torch.nn.Module) -> dict:
    return {"linear1": from_torch.linear(layer.linear1), "linear2": from_torch.linear(layer.linear2)}


def encoder_layer(layer: torch.nn.TransformerEncoderLayer) -> dict:
    return {
        "self_attention": attention(layer.self_attn),
        "self_attention_residual": {"norm": from_torch.norm(layer.norm1)},
        "mlp": mlp(layer),
        "mlp_residual": {"norm": from_torch.norm(layer.norm2)},
    }


def decoder_layer(layer: torch.nn.TransformerDecoderLayer) -> dict:
    return {
        "self_attention": attention(layer.self_attn),
        "self_attention_residual": {"norm": from_torch.norm(layer.norm1)},
        "cross_attention": attention(layer.multihead_attn),
        "cross_attention_residual": {"norm": from_torch.norm(layer.norm2)},
        "mlp": mlp(layer),
        "mlp_residual": {"norm": from_torch.norm(layer.norm3)},
    }


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    from_torch.randomize(module)
    for name, parameter in module.named_parameters():
        if name.endswith("in_proj_bias"):
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    return module.eval()


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, count, DIM)).astype(np.float32)


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("masked", [False, True])
def test_encoder_layer_equals_torch(norm, masked):
    torch.manual_seed(0)
    reference = randomized(
        torch.nn.TransformerEncoderLayer(DIM, HEADS, MLP, batch_first=True, norm_first=norm == "pre")
    )
    x = tokens(10)
    real = np.arange(10) < np.array([[10], [6]])
    # With gradients on, torch takes its plain path, not the fused one.
    expected = reference(
        torch.from_numpy(x), src_key_padding_mask=torch.from_numpy(~real) if masked else None
    )
    layer, variables = (
        TransformerEncoderLayer(HEADS, MLP, norm=norm),
        {"params": encoder_layer(reference)},
    )
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, train=False))
    from_torch.assert_same_structure(variables, shapes)
    found = layer.apply(variables, x, train=False, mask=real if masked else None)
    valid = real if masked else np.ones_like(real)
    np.testing.assert_allclose(np.asarray(found)[valid], from_torch.array(expected)[valid], atol=1e-5)


def test_encoder_stacks_layers():
    torch.manual_seed(0)
    layers = [
        randomized(torch.nn.TransformerEncoderLayer(DIM, HEADS, MLP, batch_first=True)) for _ in range(2)
    ]
    x = tokens(10)
    expected = layers[1](layers[0](torch.from_numpy(x)))
    params = {f"layer{i}": encoder_layer(layer) for i, layer in enumerate(layers)}
    found = TransformerEncoder(2, HEADS, MLP).apply({"params": params}, x, train=False)
    np.testing.assert_allclose(found, from_torch.array(expected), atol=1e-5)


def test_decoder_layer_equals_torch():
    torch.manual_seed(0)
    reference = randomized(torch.nn.TransformerDecoderLayer(DIM, HEADS, MLP, batch_first=True))
    queries, memory = tokens(3), tokens(10, seed=1)
    real = np.arange(10) < np.array([[10], [6]])
    expected = reference(
        torch.from_numpy(queries),
        torch.from_numpy(memory),
        memory_key_padding_mask=torch.from_numpy(~real),
    )
    layer, variables = TransformerDecoderLayer(HEADS, MLP), {"params": decoder_layer(reference)}
    shapes = jax.eval_shape(lambda: layer.init(jax.random.key(0), queries, memory, train=False))
    from_torch.assert_same_structure(variables, shapes)
    found = layer.apply(variables, queries, memory, train=False, mask=real)
    np.testing.assert_allclose(found, from_torch.array(expected), atol=1e-5)


def test_cross_attention_layer_has_no_self_attention():
    queries, memory = tokens(3), tokens(10, seed=1)
    layer = TransformerDecoderLayer(HEADS, MLP, self_attention=False)
    found, variables = layer.init_with_output(jax.random.key(0), queries, memory, train=False)
    assert set(variables["params"]) == {"cross_attention", "cross_attention_residual", "mlp", "mlp_residual"}
    # So one query cannot change what another becomes.
    others = queries.copy()
    others[:, 1:] = 0
    np.testing.assert_allclose(
        layer.apply(variables, others, memory, train=False)[:, 0], found[:, 0], atol=1e-6
    )


def test_dropout_is_active_in_training_only():
    x = tokens(10)
    layer = TransformerEncoderLayer(HEADS, MLP, dropout=0.5)
    variables = layer.init(jax.random.key(0), x, train=False)
    draws = [
        layer.apply(variables, x, train=True, rngs={"dropout": jax.random.key(seed)}) for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.allclose(draws[0], draws[2])
    assert not np.allclose(draws[0], layer.apply(variables, x, train=False))


def test_half_precision_compute_keeps_float32_parameters():
    x = jnp.asarray(tokens(10), jnp.bfloat16)
    layer = TransformerEncoderLayer(HEADS, MLP, dtype=jnp.bfloat16)
    found, variables = layer.init_with_output(jax.random.key(0), x, train=False)
    assert found.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_impossible_settings_are_named():
    with pytest.raises(ValueError, match="16 channels cannot be split among 3 heads"):
        MultiHeadAttention(3).init(jax.random.key(0), tokens(4), tokens(4))
    with pytest.raises(ValueError, match="'middle'"):
        TransformerEncoderLayer(HEADS, MLP, norm="middle").init(jax.random.key(0), tokens(4), train=False)


def test_attention_weights_are_not_kept_for_the_backward_pass():
    x = np.random.default_rng(0).normal(size=(2, 64, DIM)).astype(np.float32)
    layer = MultiHeadAttention(HEADS)
    variables = layer.init(jax.random.key(0), x, x)
    backward = jax.eval_shape(lambda: jax.vjp(lambda v: layer.apply(v, x, x), variables)[1])
    kept = [leaf.size for leaf in jax.tree.leaves(backward)]
    assert max(kept) <= x.size  # 2 x 64 x 16, where the weights are 2 x 4 x 64 x 64
