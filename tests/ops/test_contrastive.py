"""InfoNCE over both directions and its CLIP variant, by hand and against loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.ops import contrastive

TAU = 0.07


def unit(rng, *shape) -> np.ndarray:
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def everyone(count: int) -> np.ndarray:
    return np.ones((count, count), bool)


def joint_loop(a, b, tau, negative) -> np.ndarray:
    """−S_ii/τ + log(Σ_j e^{S_ij/τ} + Σ_{j≠i} e^{S_ji/τ}), term by term."""
    losses = []
    for i in range(len(a)):
        total = 0.0
        for j in range(len(a)):
            if i == j or negative[i, j]:
                total += np.exp(np.dot(a[i], b[j]) / tau)
            if i != j and negative[i, j]:
                total += np.exp(np.dot(a[j], b[i]) / tau)
        losses.append(np.log(total) - np.dot(a[i], b[i]) / tau)
    return np.array(losses)


def clip_loop(a, b, tau, negative) -> np.ndarray:
    losses = []
    for i in range(len(a)):
        seen = [j for j in range(len(a)) if i == j or negative[i, j]]
        forward = np.log(sum(np.exp(np.dot(a[i], b[j]) / tau) for j in seen))
        backward = np.log(sum(np.exp(np.dot(a[j], b[i]) / tau) for j in seen))
        losses.append(0.5 * (forward + backward) - np.dot(a[i], b[i]) / tau)
    return np.array(losses)


FORMS = {name: jax.jit(form) for name, form in contrastive.FORMS.items()}
LOOPS = {"joint": joint_loop, "clip": clip_loop}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_forms_against_loops(form, masked):
    rng = np.random.default_rng(0)
    a, b = unit(rng, 7, 16), unit(rng, 7, 16)
    negative = everyone(7)
    if masked:
        negative = rng.random((7, 7)) < 0.5
        negative |= negative.T
    found = FORMS[form](a, b, TAU, negative)
    expected = LOOPS[form](a.astype(np.float64), b.astype(np.float64), TAU, negative)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("form", "logits"), [("joint", 2 * 6 - 1), ("clip", 6)])
def test_equal_similarities_leave_the_number_of_logits(form, logits):
    same = np.tile(unit(np.random.default_rng(1), 1, 8), (6, 1))
    found = FORMS[form](same, same, TAU, everyone(6))
    np.testing.assert_allclose(found, np.log(logits), rtol=1e-5)


def test_two_orthonormal_pairs():
    """log(1 + 2e^{−1/τ}) with τ = 0.07."""
    found = FORMS["joint"](np.eye(2), np.eye(2), TAU, everyone(2))
    np.testing.assert_allclose(found, 1.2497e-6, rtol=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_exchanging_modalities_changes_nothing(form):
    rng = np.random.default_rng(2)
    a, b = unit(rng, 9, 8), unit(rng, 9, 8)
    loss = FORMS[form]
    np.testing.assert_allclose(
        loss(a, b, TAU, everyone(9)), loss(b, a, TAU, everyone(9)), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_finite_where_nothing_is_negative(form):
    rng = np.random.default_rng(3)
    a, b = unit(rng, 4, 8), unit(rng, 4, 8)
    nothing = np.zeros((4, 4), bool)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(FORMS[form](x, b, TAU, nothing)))(a)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_places_are_different_beyond_the_radius_or_in_another_sequence():
    position = np.array([[0.0, 0.0], [20.0, 0.0], [20.1, 0.0], [0.0, 0.0]], np.float32)
    sequence = np.array([0, 0, 0, 1], np.int32)
    found = np.asarray(contrastive.different_places(position, sequence, 20.0))
    expected = [[0, 0, 1, 1], [0, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0]]
    np.testing.assert_array_equal(found, np.array(expected, bool))
    assert np.asarray(contrastive.different_places(position, sequence, 0.0)).all()
