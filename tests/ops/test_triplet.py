"""The lazy triplet losses at hand-made distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.ops import triplet

lazy_triplet = jax.jit(triplet.lazy_triplet, static_argnums=(3, 4))
POSITIVE, NEGATIVE = (0.2, 0.6), (0.3, 0.9, 2.0, 1.4)


def at_distances(squared):
    """(n,) squared distances → (1, n, 2) points so far from the origin, in different directions."""
    angle = np.arange(len(squared)) + 0.3
    return (np.sqrt(squared)[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1))[None]


@pytest.mark.parametrize(("form", "expected"), [("hinge", 1.0), ("paper", -2.4)])
def test_values_by_hand(form, expected):
    """Hinge: 0.8 + 0.2 (0.5 + 0.6 − d); paper: 2 · (0.5 + 0.6) − 4.6."""
    loss = lazy_triplet(jnp.zeros((1, 2)), at_distances(POSITIVE), at_distances(NEGATIVE), 0.5, form)
    np.testing.assert_allclose(loss, [expected], rtol=1e-5)


@pytest.mark.parametrize("form", triplet.FORMS)
def test_only_the_farthest_positive_pulls_and_moving_all_changes_nothing(form):
    rng = np.random.default_rng(0)
    anchor, positives, negatives = (
        rng.normal(size=s).astype(np.float32) for s in ((3, 8), (3, 2, 8), (3, 4, 8))
    )
    loss = lazy_triplet(anchor, positives, negatives, 5.0, form)
    shifted = lazy_triplet(anchor + 2, positives + 2, negatives + 2, 5.0, form)
    np.testing.assert_allclose(shifted, loss, rtol=1e-4)
    gradient = jax.grad(lambda p: lazy_triplet(anchor, p, negatives, 5.0, form).sum())(positives)
    farthest = np.square(anchor[:, None] - positives).sum(-1).argmax(1)
    pulled = np.abs(gradient).sum(-1) > 0
    np.testing.assert_array_equal(pulled, np.arange(2) == farthest[:, None])


def test_far_negatives_cost_nothing_under_the_hinge_alone():
    far = at_distances((4.0, 9.0))
    near = at_distances((0.1, 0.2))
    assert lazy_triplet(jnp.zeros((1, 2)), near, far, 0.5, "hinge")[0] == 0
    assert lazy_triplet(jnp.zeros((1, 2)), near, far, 0.5, "paper")[0] < 0
