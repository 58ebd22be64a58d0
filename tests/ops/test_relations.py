"""Relation losses: against loops in float64, what must be zero, what must stay finite, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.ops import relations

LOSSES = {
    "euclidean": jax.jit(relations.euclidean_relation),
    "angle": jax.jit(relations.angle_relation),
    "hyperbolic": jax.jit(relations.hyperbolic_relation, static_argnames=("curvature", "clip_radius")),
}


def unit(rng, *shape) -> np.ndarray:
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def smooth_l1(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def poincare(x: np.ndarray, y: np.ndarray, c: float) -> float:
    """Closed form, of tangent vectors at the origin."""

    def point(u: np.ndarray) -> np.ndarray:
        length = np.sqrt(c) * np.linalg.norm(u)
        return np.tanh(length) * u / length

    p, q = point(x), point(y)
    z = 2 * c * np.sum((p - q) ** 2) / ((1 - c * p @ p) * (1 - c * q @ q))
    return float(np.arccosh(1 + z) / np.sqrt(c))


def by_loops(name: str, a: np.ndarray, b: np.ndarray) -> float:
    """The definitions of the paper's code, entry by entry."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    count = len(a)
    if name == "angle":
        total = 0.0
        for i in range(count):
            for j in range(count):
                for k in range(count):
                    angles = []
                    for f in (a, b):
                        ij, ik = f[j] - f[i], f[k] - f[i]
                        angles.append(
                            ij @ ik / max(np.linalg.norm(ij), 1e-12) / max(np.linalg.norm(ik), 1e-12)
                        )
                    total += smooth_l1(angles[0] - angles[1])
        return total / count**3
    metric = {"euclidean": lambda x, y: np.linalg.norm(x - y), "hyperbolic": lambda x, y: poincare(x, y, 0.1)}
    tables = []
    for f in (a, b):
        table = np.array([[metric[name](x, y) if x is not y else 0.0 for y in f] for x in f])
        tables.append(table / table[table > 0].mean())
    return float(np.mean([smooth_l1(x) for x in (tables[0] - tables[1]).ravel()]))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_against_loops(name, spread):
    """Also with differences above 1, where smooth-L1 is linear: clusters against an even spread."""
    rng = np.random.default_rng(0)
    a, b = unit(rng, 6, 5), unit(rng, 6, 5)
    if spread > 1:
        a[:5] = unit(rng, 1, 5) + 0.02 * a[:5]
    expected = by_loops(name, a, b)
    assert expected > 0.005
    np.testing.assert_allclose(LOSSES[name](a, b), expected, rtol=3e-3 if spread > 1 else 2e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_zero_for_identical_and_for_turned_sets(name):
    rng = np.random.default_rng(1)
    a = unit(rng, 8, 6)
    turn, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    np.testing.assert_allclose(LOSSES[name](a, a), 0, atol=1e-12)
    np.testing.assert_allclose(LOSSES[name](a, (a @ turn).astype(np.float32)), 0, atol=1e-10)


@pytest.mark.parametrize("name", LOSSES)
def test_zero_for_two_places(name):
    rng = np.random.default_rng(2)
    np.testing.assert_allclose(LOSSES[name](unit(rng, 2, 6), unit(rng, 2, 6)), 0, atol=1e-12)


@pytest.mark.parametrize("relation", [relations.euclidean_relation, relations.hyperbolic_relation])
def test_one_place_relates_to_nothing_and_is_no_nan(relation):
    one = np.float32([[1.0, 0.0, 0.0]])
    value, gradient = jax.value_and_grad(relation)(one, -one)
    assert value == 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["euclidean", "angle"])
def test_scale_does_not_count(name):
    rng = np.random.default_rng(3)
    a, b = unit(rng, 6, 4), unit(rng, 6, 4)
    np.testing.assert_allclose(LOSSES[name](a, 7 * b), LOSSES[name](a, b), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("doubles", ["two", "all"])
def test_gradients_are_finite_with_duplicate_rows(name, doubles):
    rng = np.random.default_rng(4)
    a, b = unit(rng, 6, 8), unit(rng, 6, 8)
    a[1 if doubles == "two" else slice(None)] = a[0]
    for number in (0, 1):
        gradient = jax.grad(LOSSES[name], argnums=number)(a, b)
        assert np.isfinite(gradient).all()
        if doubles == "two":
            assert np.abs(gradient).max() < 10  # not the 1e12 of a guard that divides by it


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_flow_to_both_and_agree_with_differences(name):
    rng = np.random.default_rng(5)
    a, b = unit(rng, 5, 4), unit(rng, 5, 4)
    for number in (0, 1):
        gradient = np.asarray(jax.grad(LOSSES[name], argnums=number)(a, b))
        assert np.abs(gradient).max() > 1e-3
        direction = rng.normal(size=a.shape)
        step = 1e-4
        values = []
        for sign in (1, -1):
            moved = [a.astype(np.float64), b.astype(np.float64)]
            moved[number] = moved[number] + sign * step * direction
            values.append(by_loops(name, *moved))
        np.testing.assert_allclose(
            np.sum(gradient * direction), (values[0] - values[1]) / (2 * step), rtol=2e-3, atol=1e-4
        )


def test_hyperbolic_is_nearly_euclidean_for_unit_descriptors():
    """At c = 0.1; a larger curvature makes it another loss."""
    rng = np.random.default_rng(6)
    a, b = unit(rng, 12, 16), unit(rng, 12, 16)
    a[:6] = a[:1] + 0.3 * a[:6]
    a = a / np.linalg.norm(a, axis=1, keepdims=True)
    euclidean = float(LOSSES["euclidean"](a, b))
    assert abs(float(LOSSES["hyperbolic"](a, b)) / euclidean - 1) < 0.05
    assert abs(float(LOSSES["hyperbolic"](a, b, curvature=5.0)) / euclidean - 1) > 0.1


def test_clipped_features_count_as_shorter_ones():
    rng = np.random.default_rng(7)
    a, b = 3 * unit(rng, 6, 4), unit(rng, 6, 4)
    clipped = LOSSES["hyperbolic"](a, b, clip_radius=1.5)
    np.testing.assert_allclose(clipped, LOSSES["hyperbolic"](a / 2, b), rtol=1e-5)


def test_angle_needs_no_cube_of_memory():
    """Forwards and backwards; 512 places would need 2 × 512 MiB for Θ alone."""
    f = jax.ShapeDtypeStruct((512, 16), jnp.float32)
    program = jax.jit(jax.value_and_grad(relations.angle_relation, argnums=(0, 1))).lower(f, f).compile()
    assert program.memory_analysis().temp_size_in_bytes < 32 * 512 * 512 * 4
