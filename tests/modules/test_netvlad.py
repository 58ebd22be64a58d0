"""NetVLAD against its formula in plain loops; unit norm, order, and what is masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.modules.netvlad import LoupeNetVLAD, NetVLAD, l2_normalize
from tests.modules import from_torch

CLUSTERS, DIM, POINTS = 5, 8, 12


@pytest.fixture(scope="module")
def setting():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, POINTS, DIM)).astype(np.float32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    mask = rng.random((3, POINTS)) < 0.7
    module = NetVLAD(CLUSTERS)
    variables = jax.jit(lambda: module.init(jax.random.key(0), x, mask))()
    return jax.jit(module.apply), variables, x, mask


def by_loops(params, x, mask):
    """(K, D), (K,) → (clusters · D) after the paper, float64."""
    params = {name: np.asarray(value, np.float64) for name, value in params.items()}
    sums = np.zeros((CLUSTERS, DIM))
    for feature in x[mask].astype(np.float64):
        logits = feature @ params["kernel"] + params["bias"]
        share = np.exp(logits - logits.max())
        share /= share.sum()
        for cluster in range(CLUSTERS):
            sums[cluster] += share[cluster] * (feature - params["centres"][cluster])
    sums /= np.linalg.norm(sums, axis=1, keepdims=True)
    return sums.ravel() / np.linalg.norm(sums)


def test_formula(setting):
    describe, variables, x, mask = setting
    found = describe(variables, x, mask)
    for row in range(len(x)):
        np.testing.assert_allclose(found[row], by_loops(variables["params"], x[row], mask[row]), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)


def test_first_assignment_is_that_of_the_nearest_centre(setting):
    """W = 2αc and b = −α‖c‖² make the logits −α‖x − c‖² up to what clusters share."""
    _, variables, x, _ = setting
    params = variables["params"]
    logits = x[0] @ params["kernel"] + params["bias"]
    distance = np.square(x[0][:, None] - params["centres"]).sum(axis=-1)
    expected = -10.0 * (distance - (x[0] ** 2).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_neither_order_nor_masked_points_matter(setting):
    describe, variables, x, mask = setting
    found = describe(variables, x, mask)
    order = np.random.default_rng(1).permutation(POINTS)
    np.testing.assert_allclose(describe(variables, x[:, order], mask[:, order]), found, atol=1e-6)
    garbage = np.full((3, 4, DIM), 1e3, np.float32)
    longer = np.concatenate([x, garbage], axis=1), np.concatenate([mask, np.zeros((3, 4), bool)], axis=1)
    np.testing.assert_allclose(describe(variables, *longer), found, atol=1e-6)


def test_nothing_is_zero_with_finite_gradients(setting):
    describe, variables, x, mask = setting
    nothing = np.zeros_like(mask)
    assert not describe(variables, x, nothing).any()

    def total(variables, x):
        return jnp.sum(describe(variables, x, nothing) * 3.0)

    gradients = jax.jit(jax.grad(total, argnums=(0, 1)))(variables, jnp.zeros_like(x))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_l2_normalize_of_nothing():
    np.testing.assert_array_equal(l2_normalize(jnp.zeros((2, 3))), np.zeros((2, 3)))
    assert np.isfinite(jax.grad(lambda x: l2_normalize(x).sum())(jnp.zeros(3))).all()
    np.testing.assert_allclose(l2_normalize(jnp.array([3.0, 4.0])), [0.6, 0.8], rtol=1e-6)


def loupe_by_loops(params, tokens):
    """(T, D) → (width): Miech et al.'s form, float64."""
    p = {name: np.asarray(value, np.float64) for name, value in params.items()}
    sums = np.zeros_like(p["centres"])  # (D, clusters)
    for token in tokens.astype(np.float64):
        logits = token @ p["assignment"] + p["assignment_bias"]
        share = np.exp(logits) / np.exp(logits).sum()
        for cluster in range(sums.shape[1]):
            sums[:, cluster] += share[cluster] * (token - p["centres"][:, cluster])
    sums /= np.linalg.norm(sums, axis=0)
    flat = sums.reshape(-1) / np.linalg.norm(sums)  # D-major: the clusters of a channel side by side
    x = flat @ p["projection"]
    x = x / (1 + np.exp(-(x @ p["gate"] + p["gate_bias"])))
    return x / np.linalg.norm(x)


def test_loupe_form_by_loops_for_any_number_of_tokens():
    rng = np.random.default_rng(0)
    module = LoupeNetVLAD(CLUSTERS, 6)
    variables = from_torch.drawn(module, np.zeros((1, 3, DIM)))
    for count in (1, 9):
        tokens = rng.normal(size=(2, count, DIM)).astype(np.float32)
        found = jax.jit(module.apply)(variables, tokens)
        for row in range(2):
            expected = loupe_by_loops(variables["params"], tokens[row])
            np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_loupe_parameters_at_the_size_of_the_paper():
    tokens = jax.ShapeDtypeStruct((1, 4, 512), np.float32)
    shapes = jax.eval_shape(LoupeNetVLAD().init, jax.random.key(0), tokens)["params"]
    assert (
        sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 2 * 512 * 64 + 64 + 512 * 64 * 256 + 256 * 257
    )


def test_loupe_with_batch_normalisation_has_its_statistics_in_place_of_biases():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(4, 7, DIM)).astype(np.float32)
    module = LoupeNetVLAD(CLUSTERS, 6, batch_norm=True, unit=False)
    variables = from_torch.drawn(module, tokens)
    assert set(variables["batch_stats"]) == {"assignment_bn", "gate_bn"}
    assert not {"assignment_bias", "gate_bias"} & set(variables["params"])
    train = jax.jit(lambda v: module.apply(v, tokens, True, mutable=["batch_stats"]))
    trained, updated = train(variables)
    logits = tokens.reshape(-1, DIM) @ variables["params"]["assignment"]
    before = variables["batch_stats"]["assignment_bn"]["mean"]
    np.testing.assert_allclose(
        updated["batch_stats"]["assignment_bn"]["mean"], 0.9 * before + 0.1 * logits.mean(0), atol=1e-5
    )
    assert np.abs(trained - jax.jit(module.apply)(variables, tokens)).max() > 1e-3
