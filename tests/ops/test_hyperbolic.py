"""Identities of the Poincaré ball."""

import jax
import numpy as np
import pytest

from placerec_jax.ops import hyperbolic

C = 0.1


def tangents(seed: int, count: int = 20, length: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6))
    lengths = length * rng.uniform(0.1, 1, (count, 1))
    return (lengths * x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def points(seed: int, c: float = C, length: float = 1.0) -> np.ndarray:
    return np.asarray(hyperbolic.exp0(tangents(seed, length=length), c))


@pytest.mark.parametrize("form", [hyperbolic.distance, hyperbolic.distance_arccosh])
@pytest.mark.parametrize("c", [0.1, 1.0])
def test_it_is_a_metric(form, c):
    x, y, z = (points(seed, c) for seed in range(3))
    np.testing.assert_allclose(form(x, x, c), 0, atol=1e-5)
    np.testing.assert_allclose(form(x, y, c), form(y, x, c), rtol=1e-5)
    assert (np.asarray(form(x, z, c)) <= np.asarray(form(x, y, c) + form(y, z, c)) + 1e-5).all()


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_distance_from_the_origin_is_twice_the_tangent(c):
    u = tangents(3)
    found = hyperbolic.distance(np.zeros_like(u), hyperbolic.exp0(u, c), c)
    np.testing.assert_allclose(found, 2 * np.linalg.norm(u, axis=1), rtol=1e-4)


def test_unit_vectors():
    """Opposite ones are 4 apart, orthogonal ones 2.9163 at c = 0.1; their radius is 0.968."""
    x = np.asarray(hyperbolic.exp0(np.eye(3, dtype=np.float32), C))
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 0.968, atol=5e-4)
    for form in (hyperbolic.distance, hyperbolic.distance_arccosh):
        np.testing.assert_allclose(form(x[0], -x[0], C), 4.0, rtol=1e-4)
        np.testing.assert_allclose(form(x[0], x[1], C), 2.9163, rtol=1e-4)


def test_flat_in_the_limit():
    x, y = tangents(4), tangents(5)
    found = hyperbolic.distance(hyperbolic.exp0(x, 1e-5), hyperbolic.exp0(y, 1e-5), 1e-5)
    np.testing.assert_allclose(found, 2 * np.linalg.norm(x - y, axis=1), rtol=1e-3)


def test_forms_agree():
    x, y = points(6), points(7)
    np.testing.assert_allclose(
        hyperbolic.distance(x, y, C), hyperbolic.distance_arccosh(x, y, C), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_pairwise_is_every_pair(c):
    x = points(8, c)
    expected = hyperbolic.distance(x[:, None], x[None], c)
    found = hyperbolic.pairwise_distances(x, c)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(np.diagonal(found), 0)


def test_sum_with_the_origin_and_with_the_opposite():
    x = points(9)
    np.testing.assert_allclose(hyperbolic.mobius_add(np.zeros_like(x), x, C), x, rtol=2e-5)
    np.testing.assert_allclose(hyperbolic.mobius_add(-x, x, C), 0, atol=1e-6)


@pytest.mark.parametrize("c", [0.1, 1.0])
def test_points_stay_inside(c):
    far = np.asarray(hyperbolic.exp0(1e4 * tangents(10), c))
    np.testing.assert_allclose(np.linalg.norm(far, axis=1), (1 - 1e-3) / np.sqrt(c), rtol=1e-5)
    near = points(11, c)
    np.testing.assert_allclose(hyperbolic.project(near, c), near, rtol=1e-6)
    assert np.isfinite(np.asarray(hyperbolic.pairwise_distances(far, c))).all()


def test_gradients_are_finite_at_the_origin_and_where_points_meet():
    same = np.zeros((3, 4), np.float32)
    for f in (
        lambda u: hyperbolic.pairwise_distances(hyperbolic.exp0(u, C), C).sum(),
        lambda u: hyperbolic.distance(hyperbolic.exp0(u, C), hyperbolic.exp0(u, C), C).sum(),
        lambda u: hyperbolic.distance_arccosh(hyperbolic.exp0(u, C), hyperbolic.exp0(u, C), C).sum(),
    ):
        gradient = jax.jit(jax.grad(f))
        assert np.isfinite(np.asarray(gradient(same))).all()
        assert np.isfinite(np.asarray(gradient(same + 0.3))).all()
