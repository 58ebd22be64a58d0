"""CLS saliency against the full attention, and the weights made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.modules.saliency import SQUASHES, cls_saliency, token_weight

HEADS, DIM, COUNT = 3, 12, 9
RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(2, COUNT, DIM)).astype(np.float32)
KERNEL = RNG.normal(size=(DIM, 3 * DIM)).astype(np.float32)
BIAS = RNG.normal(size=3 * DIM).astype(np.float32)
MASK = np.arange(COUNT) < np.array([[COUNT], [4]])


def full_attention(tokens, kernel, bias, normalise):
    """(T, T) attention of one sample summed over heads, in loops over heads, queries and keys."""
    query, key = np.split(tokens @ kernel + bias, 3, axis=-1)[:2]
    total, size = np.zeros((len(tokens),) * 2), DIM // HEADS
    for h in range(HEADS):
        q, k = query[:, h * size : (h + 1) * size], key[:, h * size : (h + 1) * size]
        if normalise:
            q, k = ((x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) for x in (q, k))
        for i in range(len(tokens)):
            weights = np.exp([q[i] @ k[j] / np.sqrt(size) for j in range(len(tokens))])
            total[i] += weights / weights.sum()
    return total


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("bias", [BIAS, None])
def test_is_the_cls_row_of_the_full_attention(normalise, bias):
    saliency = cls_saliency(TOKENS, KERNEL, bias, HEADS, MASK, normalise)
    for sample, tokens in enumerate(TOKENS):
        real = MASK[sample]
        expected = full_attention(tokens[real].astype(float), KERNEL, 0 if bias is None else bias, normalise)[
            0
        ]
        np.testing.assert_allclose(saliency[sample][real], expected, rtol=2e-5)
        np.testing.assert_array_equal(saliency[sample][~real], 0)
    np.testing.assert_allclose(saliency.sum(axis=-1), HEADS, rtol=1e-6)


@pytest.mark.parametrize("stop", [True, False])
def test_gradient_flows_only_where_it_is_let_through(stop: bool):
    def total(tokens, kernel, bias):
        return jnp.sum(cls_saliency(tokens, kernel, bias, HEADS, stop_gradient=stop) ** 2)

    for gradient in jax.grad(total, argnums=(0, 1, 2))(TOKENS, KERNEL, BIAS):
        assert (np.abs(gradient).max() == 0) == stop


SALIENCY = np.float32([[0.1, 0.6, 0.3, 2.0], [1.0, 1.5, 0.5, 0.0]])
REAL = np.array([[True] * 4, [True] * 3 + [False]])


@pytest.mark.parametrize(
    ("squash", "reduce", "expected"),
    [
        ("sigmoid", "sum", 1 / (1 + np.exp(-SALIENCY))),
        ("sigmoid", "mean", 1 / (1 + np.exp(-SALIENCY / 3))),
        ("none", "sum", SALIENCY),
        ("mean1", "mean", SALIENCY * [[4 / 3], [1]]),  # s · N / heads, for 4 and 3 real tokens
        ("minmax", "sum", [[0, 0.5 / 1.9, 0.2 / 1.9, 1], [0.5, 1, 0, 0]]),
    ],
)
def test_weights(squash, reduce, expected):
    weight = token_weight(SALIENCY, REAL, 3, squash, reduce)
    np.testing.assert_allclose(weight, np.where(REAL, expected, 0), rtol=1e-6)


def test_the_most_salient_share_is_kept():
    """Half of 4 and, rounded up, of 3 real tokens."""
    weight = token_weight(SALIENCY, REAL, 3, "none", keep=0.5)
    np.testing.assert_array_equal(weight, [[0, SALIENCY[0, 1], 0, 2], [1, 1.5, 0, 0]])


@pytest.mark.parametrize("squash", SQUASHES)
def test_flat_saliency_gives_flat_finite_weights(squash):
    weight = np.asarray(token_weight(np.full((1, 5), 0.6, np.float32), None, 3, squash))
    assert np.isfinite(weight).all()
    assert (weight == weight[0, 0]).all()
    assert weight[0, 0] > 0


def test_unknown_settings_are_named():
    with pytest.raises(ValueError, match="squash 'relu', reduce 'sum'; expected one of"):
        token_weight(SALIENCY, REAL, 3, "relu")
    with pytest.raises(ValueError, match="keep is 0"):
        token_weight(SALIENCY, REAL, 3, keep=0)
