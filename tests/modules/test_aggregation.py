"""Aggregators: NetVLAD against loops, and what weights and masks must mean to each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from placerec_jax.methods import Pretrained
from placerec_jax.modules import torch_names_i2ploc
from placerec_jax.modules.aggregation import AGGREGATORS, SaliencyNetVLAD
from placerec_jax.training.pretrained import load_pretrained

DIM, CLUSTERS, WIDTH, COUNT, BATCH = 6, 4, 5, 9, 3
RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(BATCH, COUNT, DIM)).astype(np.float32)
TOKENS /= np.linalg.norm(TOKENS, axis=-1, keepdims=True)
WEIGHT = RNG.uniform(0.2, 1, (BATCH, COUNT)).astype(np.float32)
MASK = np.arange(COUNT) < np.array([[COUNT], [5], [3]])
NETVLAD = SaliencyNetVLAD(WIDTH, CLUSTERS)


def made(name: str):
    return NETVLAD if name == "netvlad" else AGGREGATORS[name](width=WIDTH)


def started(module, train: bool = True) -> dict:
    """Variables of random values: nothing at 0 or 1."""
    variables = module.init(jax.random.key(0), TOKENS, WEIGHT, MASK, train)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: leaf + rng.uniform(0.1, 0.4, leaf.shape).astype(np.float32), variables)


def describe(module, variables, tokens, weight=None, mask=None, train=False):
    return np.asarray(module.apply(variables, tokens, weight, mask, train, mutable=["batch_stats"])[0])


def normal(x: np.ndarray, layer: dict, statistics: dict | None) -> np.ndarray:
    """Batch normalisation of rows; with the rows' own statistics where none are given."""
    mean, var = (x.mean(0), x.var(0)) if statistics is None else (statistics["mean"], statistics["var"])
    return (x - mean) / np.sqrt(var + 1e-5) * layer["scale"] + layer["bias"]


def loops(variables: dict, train: bool) -> np.ndarray:
    """§2.5 of the specification by three loops, in float64; descriptors (B, WIDTH)."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, float), variables["params"])
    running = {} if train else jax.tree.map(lambda leaf: np.asarray(leaf, float), variables["batch_stats"])
    logits = normal(TOKENS[MASK] @ p["assignment"], p["assignment_bn"], running.get("assignment_bn"))
    shares = np.zeros((BATCH, COUNT, CLUSTERS))
    shares[MASK] = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    flat = np.zeros((BATCH, DIM * CLUSTERS))
    for b in range(BATCH):
        for k in range(CLUSTERS):
            residual = np.zeros(DIM)
            for n in range(COUNT):
                residual += shares[b, n, k] * WEIGHT[b, n] * (TOKENS[b, n] - p["centres"][:, k])
            flat[b, k::CLUSTERS] = residual / np.linalg.norm(residual)  # index = channel · K + cluster
        flat[b] /= np.linalg.norm(flat[b])
    x = normal(flat @ p["projection"], p["descriptor_bn"], running.get("descriptor_bn"))
    x /= 1 + np.exp(-normal(x @ p["gate"], p["gate_bn"], running.get("gate_bn")))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("train", [True, False])
def test_netvlad_is_that_of_three_loops(train):
    variables = started(NETVLAD)
    tokens = np.where(MASK[..., None], TOKENS, np.float32(np.nan))  # nothing is read of the padding
    found = describe(NETVLAD, variables, tokens, WEIGHT, MASK, train)
    np.testing.assert_allclose(found, loops(variables, train), atol=3e-5)


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name != "smd"])
@pytest.mark.parametrize("scale", [1e-6, 0.5, 1e6])
def test_constant_saliency_is_none_at_all(name, scale):
    module = made(name)
    variables = started(module)
    without = describe(module, variables, TOKENS, None, MASK)
    constant = describe(module, variables, TOKENS, np.full_like(WEIGHT, scale), MASK)
    np.testing.assert_allclose(constant, without, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name not in ("smd", "cls")])
def test_a_token_of_weight_zero_is_not_there(name):
    module = made(name)
    variables = started(module)
    weight = WEIGHT.copy()
    weight[:, 4] = 0
    short = describe(module, variables, np.delete(TOKENS, 4, 1), np.delete(weight, 4, 1))
    np.testing.assert_allclose(describe(module, variables, TOKENS, weight), short, atol=1e-6)
    moved = describe(module, variables, TOKENS, WEIGHT)
    assert np.abs(moved - short).max() > 1e-3


@pytest.mark.parametrize("name", AGGREGATORS)
@pytest.mark.parametrize("train", [True, False])
def test_padding_changes_nothing(name, train):
    module = made(name)
    variables = started(module)
    expected = describe(module, variables, TOKENS, WEIGHT, MASK, train)
    noise = np.where(MASK[..., None], TOKENS, np.float32(np.nan))
    found = describe(module, variables, noise, np.where(MASK, WEIGHT, 7.0).astype(np.float32), MASK, train)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    if name != "smd":  # the number of tokens is in its parameters
        longer = [np.concatenate([x, x[:, :2]], axis=1) for x in (TOKENS, WEIGHT)]
        found = describe(module, variables, *longer, np.pad(MASK, ((0, 0), (0, 2))), train)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in AGGREGATORS if name not in ("smd", "cls")])
def test_the_order_of_the_tokens_does_not_matter(name):
    module, order = made(name), np.random.default_rng(2).permutation(COUNT)
    variables = started(module)
    turned = describe(module, variables, TOKENS[:, order], WEIGHT[:, order], MASK[:, order])
    np.testing.assert_allclose(turned, describe(module, variables, TOKENS, WEIGHT, MASK), atol=1e-5)


@pytest.mark.parametrize("name", AGGREGATORS)
@pytest.mark.parametrize("kind", ["random", "equal", "no weight", "nothing real"])
def test_gradients_are_finite(name, kind):
    module = made(name)
    tokens = {"equal": np.broadcast_to(TOKENS[:1, :1], TOKENS.shape)}.get(kind, TOKENS)
    weight = np.zeros_like(WEIGHT) if kind == "no weight" else WEIGHT
    mask = np.zeros_like(MASK) if kind == "nothing real" else MASK
    variables = started(module)

    def total(params, tokens):
        given = variables | {"params": params}
        return module.apply(given, tokens, weight, mask, True, mutable=["batch_stats"])[0][:, 0].sum()

    found = jax.value_and_grad(total, argnums=(0, 1))(variables["params"], jnp.asarray(tokens))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_generalised_mean_of_power_three_in_plain_numbers():
    module = AGGREGATORS["gem"](width=2)
    kernel, bias = RNG.normal(size=(DIM, 2)), RNG.normal(size=2)
    params = {"power": np.float32(3), "projection": {"kernel": kernel, "bias": bias}}
    found = describe(module, {"params": params}, TOKENS, WEIGHT, MASK)
    for b in range(BATCH):
        cubes = np.maximum(TOKENS[b][MASK[b]], 1e-6).astype(float) ** 3
        weights = WEIGHT[b][MASK[b]]
        projected = ((weights @ cubes) / weights.sum()) ** (1 / 3) @ kernel + bias
        np.testing.assert_allclose(found[b], projected / np.linalg.norm(projected), atol=1e-5)


def test_the_published_checkpoint_fills_both_aggregators(tmp_path):
    state, generator = {}, torch.Generator().manual_seed(0)
    shapes = {
        "cluster_weights": (DIM, CLUSTERS),
        "cluster_weights2": (1, DIM, CLUSTERS),
        "hidden1_weights": (DIM * CLUSTERS, WIDTH),
        "context_gating.gating_weights": (WIDTH, WIDTH),
    }
    for norm, size in (("bn1", CLUSTERS), ("bn2", WIDTH), ("context_gating.bn1", WIDTH)):
        shapes |= {f"{norm}.{kind}": (size,) for kind in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{norm}.num_batches_tracked"] = ()
    for root in ("vision_proj", "pc_proj"):
        for name, shape in shapes.items():
            state[f"module.{root}.{name}"] = torch.rand(shape, generator=generator) + 0.1
    torch.save({"base_model": state}, tmp_path / "best.pth")
    fresh = NETVLAD.init(jax.random.key(0), TOKENS, WEIGHT, MASK, True)
    variables = {kind: {"image": tree, "point": tree} for kind, tree in fresh.items()}
    wanted = {
        branch: Pretrained(
            "weights", str(tmp_path / "best.pth"), (torch_names_i2ploc.aggregator_layout(branch),)
        )
        for branch in ("image", "point")
    }
    found = load_pretrained(variables, wanted)
    assert "no match" not in "\n".join(found.lines)
    for branch, root in (("image", "vision_proj"), ("point", "pc_proj")):
        ours = found.variables["params"][branch]
        np.testing.assert_array_equal(ours["projection"], state[f"module.{root}.hidden1_weights"])
        np.testing.assert_array_equal(ours["centres"], state[f"module.{root}.cluster_weights2"][0])
        np.testing.assert_array_equal(
            ours["gate_bn"]["bias"], state[f"module.{root}.context_gating.bn1.bias"]
        )
