"""Unbalanced transport: against POT and OTT at convergence, the scaling form, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn

from placerec_jax.ops.transport import soft_targets, unbalanced_sinkhorn

solve = jax.jit(unbalanced_sinkhorn, static_argnums=3)


def features(count: int, seed: int, dimensions=128) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(count, dimensions))
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def noisy_match(count=64, seed=0, noise=0.03) -> tuple[np.ndarray, np.ndarray]:
    """(N, N) cosine cost between features and a noisy permutation of them; partner of every row."""
    source = features(count, seed)
    partner = np.random.default_rng(seed + 1).permutation(count)
    target = source + np.random.default_rng(seed + 2).normal(0, noise, source.shape)
    target = target / np.linalg.norm(target, axis=-1, keepdims=True)
    return 1 - source @ target[np.argsort(partner)].T, partner


def scaling_form(cost: np.ndarray, epsilon: float, gamma: float, iterations: int) -> np.ndarray:
    """The iteration as FLOT and LCDNet state it, in float64: T = diag(a) K diag(b)."""
    rows, columns = cost.shape
    kernel, power = np.exp(-cost / epsilon), gamma / (gamma + epsilon)
    a = np.full(rows, 1 / rows)
    for _ in range(iterations):
        b = ((1 / columns) / (kernel.T @ a)) ** power
        a = ((1 / rows) / (kernel @ b)) ** power
    return a[:, None] * kernel * b


@pytest.mark.parametrize("epsilon", [1.03, 0.1])
def test_converged_plans_are_those_of_pot_and_ott(epsilon):
    gamma, rho = 1.0, 1 / (1 + epsilon)
    cost = 1 - features(30, 0, 16) @ features(41, 1, 16).T
    plan = np.asarray(solve(cost, epsilon, gamma, 2000))

    marginals = np.full(30, 1 / 30), np.full(41, 1 / 41)
    with pytest.warns(UserWarning, match="overwritten by the one matrix"):
        expected = ot.unbalanced.sinkhorn_unbalanced(
            *marginals, cost, epsilon, gamma, reg_type="entropy", stopThr=1e-14, numItermax=100_000
        )
    np.testing.assert_allclose(plan, expected, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(), expected.sum(), rtol=1e-6)

    with jax.enable_x64(True):
        problem = linear_problem.LinearProblem(
            geometry.Geometry(cost_matrix=jnp.asarray(cost), epsilon=epsilon), tau_a=rho, tau_b=rho
        )
        answer = sinkhorn.Sinkhorn(threshold=1e-12, max_iterations=20_000)(problem)
        assert answer.converged
    np.testing.assert_allclose(plan, answer.matrix, rtol=1e-5)
    # Entries that the solvers could not agree on by rounding alone, or by all being equal.
    assert expected.max() / expected.min() > (2 if epsilon > 1 else 100)


@pytest.mark.parametrize("iterations", [1, 5, 100])
@pytest.mark.parametrize("epsilon", [1.03, 0.1, 0.03])
def test_the_log_form_is_the_scaling_form(epsilon, iterations):
    cost, _ = noisy_match()
    plan = solve(cost, epsilon, 1.0, iterations)
    np.testing.assert_allclose(plan, scaling_form(cost, epsilon, 1.0, iterations), rtol=3e-5)


def test_an_infinite_gamma_gives_exact_marginals_and_a_large_one_comes_near():
    cost = 1 - features(20, 0, 16) @ features(30, 1, 16).T
    plan = solve(cost, 0.1, jnp.inf, 2000)
    np.testing.assert_allclose(plan.sum(axis=1), 1 / 20, rtol=1e-5)
    np.testing.assert_allclose(plan.sum(axis=0), 1 / 30, rtol=1e-4)
    expected = ot.sinkhorn(np.full(20, 1 / 20), np.full(30, 1 / 30), cost, 0.1, stopThr=1e-13)
    np.testing.assert_allclose(plan, expected, rtol=1e-4)
    np.testing.assert_allclose(solve(cost, 0.1, 1e4, 2000).sum(axis=1), 1 / 20, rtol=1e-3)
    assert np.abs(solve(cost, 0.1, 1.0, 2000).sum(axis=1) * 20 - 1).max() > 0.05


@pytest.mark.parametrize(
    ("epsilon", "share", "mass", "from_convergence"),
    [(1.03, 0.039, 12.4, 0.0015), (0.1, 0.956, 1.33, 0.09), (0.03, 1.0, 1.11, 0.05)],
)
def test_what_five_iterations_make_of_a_perfect_match(epsilon, share, mass, from_convergence):
    """Why ε should begin at 0.1 and not, as LCDNet's, at 1.03: on 64 random features of 16 numbers."""
    f = features(64, 0, 16)
    plan = np.asarray(solve(1 - f @ f.T, epsilon, 1.0, 5))
    np.testing.assert_allclose((np.diag(plan) / plan.sum(axis=1)).mean(), share, atol=0.002)
    np.testing.assert_allclose(plan.sum(), mass, rtol=0.005)
    converged = scaling_form(1 - f @ f.T, epsilon, 1.0, 20_000)
    np.testing.assert_allclose(plan.sum() / converged.sum() - 1, from_convergence, rtol=0.1)


def test_orthonormal_features_have_the_plan_that_symmetry_demands():
    n, epsilon, gamma = 32, 0.5, 1.0
    plan = np.asarray(solve(1 - np.eye(n), epsilon, gamma, 500))
    # a_i = b_j = s with s = (1/(n κ s))^ρ, κ the sum of a row of the kernel.
    kappa, rho = 1 + (n - 1) * np.exp(-1 / epsilon), gamma / (gamma + epsilon)
    s = (1 / (n * kappa)) ** (rho / (1 + rho))
    expected = s**2 * np.where(np.eye(n) > 0, 1, np.exp(-1 / epsilon))
    np.testing.assert_allclose(plan, expected, rtol=1e-5)


def test_permuted_features_are_matched_to_their_partners():
    cost, partner = noisy_match()
    plan = solve(cost, 0.1, 1.0, 5)
    np.testing.assert_array_equal(plan.argmax(axis=1), partner)
    target_xy = np.random.default_rng(0).uniform(-30, 30, (64, 2)).astype(np.float32)
    soft, weight = soft_targets(plan, target_xy)
    np.testing.assert_allclose(weight, plan.sum(axis=1))
    np.testing.assert_allclose(soft, target_xy[partner], atol=1.0)
    sharp, _ = soft_targets(solve(cost, 0.03, 1.0, 5), target_xy)
    np.testing.assert_allclose(sharp, target_xy[partner], atol=1e-3)


def masked_problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Costs (3, 6, 7), NaN where masked: some, all rows, all columns."""
    rows = np.array([[1, 1, 1, 1, 0, 0], [0] * 6, [1] * 6], bool)
    columns = np.array([[1, 0, 1, 1, 1, 1, 0], [1] * 7, [0] * 7], bool)
    cost = np.random.default_rng(0).random((3, 6, 7)).astype(np.float32)
    return np.where(rows[:, :, None] & columns[:, None], cost, np.nan), rows, columns


@pytest.mark.parametrize("gamma", [1.0, np.inf])
def test_masked_rows_and_columns_carry_no_mass_and_change_nothing(gamma):
    cost, rows, columns = masked_problem()
    plan = np.asarray(solve(cost, 0.1, gamma, 5, rows, columns))
    assert (plan[~(rows[:, :, None] & columns[:, None])] == 0).all()
    valid = np.ix_(rows[0], columns[0])
    alone = solve(cost[0][valid], 0.1, gamma, 5)
    np.testing.assert_allclose(plan[0][valid], alone, rtol=1e-6)
    soft, weight = soft_targets(plan, np.ones((3, 7, 2), np.float32))
    np.testing.assert_array_equal(weight[0, 4:], 0)
    np.testing.assert_array_equal(soft[0, 4:], 0)
    np.testing.assert_allclose(soft[0, :4], 1, rtol=1e-5)


@pytest.mark.parametrize("epsilon", [0.1, 1e-3])
@pytest.mark.parametrize("gamma", [1.0, 1e-3, np.inf])
def test_gradients_are_finite_and_none_reaches_what_is_masked(epsilon, gamma):
    cost, rows, columns = masked_problem()

    def loss(cost, epsilon, gamma):
        soft, weight = soft_targets(solve(cost, epsilon, gamma, 5, rows, columns), jnp.eye(7)[:, :3])
        return (soft * jnp.arange(3.0)).sum() + (weight**2).sum()

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    for gradient in gradients(cost, np.float32(epsilon), np.float32(gamma)):
        assert np.isfinite(gradient).all()
        if gradient.ndim:
            assert (np.asarray(gradient)[~(rows[:, :, None] & columns[:, None])] == 0).all()
            assert epsilon < 0.1 or np.abs(gradient[0]).max() > 0


def test_gradients_are_those_of_finite_differences():
    cost, _ = noisy_match(count=8)

    def value(cost, epsilon, gamma):
        return (scaling_form(cost, epsilon, gamma, 5) * np.arange(8)).sum()

    by_cost, by_epsilon, by_gamma = jax.grad(
        lambda c, e, g: (solve(c, e, g, 5) * jnp.arange(8)).sum(), argnums=(0, 1, 2)
    )(cost.astype(np.float32), 0.2, 1.0)
    step = 1e-5
    moved = cost + step * (np.arange(64).reshape(8, 8) == 19)
    np.testing.assert_allclose(
        by_cost[2, 3], (value(moved, 0.2, 1.0) - value(cost, 0.2, 1.0)) / step, rtol=1e-3
    )
    up, down = value(cost, 0.2 + step, 1.0), value(cost, 0.2 - step, 1.0)
    np.testing.assert_allclose(by_epsilon, (up - down) / (2 * step), rtol=1e-3)
    up, down = value(cost, 0.2, 1 + step), value(cost, 0.2, 1 - step)
    np.testing.assert_allclose(by_gamma, (up - down) / (2 * step), rtol=1e-3)


def test_a_batch_may_have_its_own_epsilon_and_gamma():
    cost = np.random.default_rng(0).random((2, 3, 5, 4)).astype(np.float32)
    epsilon = np.random.default_rng(1).uniform(0.1, 1, (2, 3)).astype(np.float32)
    plan = solve(cost, epsilon, 2 * epsilon, 5)
    for i in np.ndindex(2, 3):
        np.testing.assert_allclose(plan[i], solve(cost[i], epsilon[i], 2 * epsilon[i], 5), rtol=1e-5)
