"""Precision and recall under each policy: by hand, and scikit-learn where definitions meet."""

import numpy as np
import pytest
from sklearn import metrics

from placerec_jax.evaluation import precision_recall
from placerec_jax.evaluation.precision_recall import Curve, Retrieved


def retrieved(distance, correct, has_loop):
    return Retrieved(np.array(distance, np.float32), np.array(correct, bool), np.array(has_loop, bool))


# By threshold: a true loop; a wrong candidate of a query that has one; a false alarm; a true loop at the same
# distance as a false alarm; a loop whose query retrieved nothing.
EXAMPLE = retrieved(
    [0.1, 0.2, 0.3, 0.4, 0.4, np.inf],
    [1, 0, 0, 1, 0, 0],
    [1, 1, 0, 1, 0, 1],
)


def test_standard_curve_keeps_every_query_with_a_loop_in_the_denominator():
    curve = precision_recall.standard_curve(EXAMPLE)
    np.testing.assert_allclose(curve.threshold, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 1 / 3, 2 / 5])
    np.testing.assert_allclose(curve.recall, [1 / 4, 1 / 4, 1 / 4, 2 / 4])
    assert precision_recall.average_precision(curve) == pytest.approx(1 / 4 + 1 / 4 * 2 / 5)
    assert precision_recall.recall_at_1(EXAMPLE) == 2 / 4


def test_lcdnet_curve_forgets_queries_that_accepted_a_wrong_candidate():
    curve = precision_recall.lcdnet_curve(EXAMPLE)
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 1 / 3, 2 / 5])
    np.testing.assert_allclose(curve.recall, [1 / 4, 1 / 3, 1 / 3, 2 / 3])
    # The first segment, a quarter at precision 1, is dropped.
    expected = (1 / 3 - 1 / 4) * 1 / 2 + (2 / 3 - 1 / 3) * 2 / 5
    assert precision_recall.average_precision_by("lcdnet_p1", EXAMPLE) == pytest.approx(expected)


def test_lcdnet_recall_of_nothing_left_is_zero():
    only_wrong = retrieved([0.1, 0.2], [0, 0], [1, 1])
    np.testing.assert_array_equal(precision_recall.lcdnet_curve(only_wrong).recall, [0, 0])


def test_equal_distances_are_accepted_together_whatever_their_order():
    order = np.array([4, 3, 2, 1, 0, 5])
    turned = EXAMPLE.subset(order)
    for policy in precision_recall.CURVES:
        assert precision_recall.average_precision_by(policy, turned) == pytest.approx(
            precision_recall.average_precision_by(policy, EXAMPLE)
        )
    assert len(precision_recall.standard_curve(EXAMPLE).threshold) == 4


def test_pairs_by_hand_with_ties_and_blocks_of_any_shape():
    true = np.float32([1, 2, 2, np.inf])
    false = [np.float32([[2, 5]]), np.float32([0.5]), np.zeros((0, 3), np.float32), np.float32([np.inf])]
    curve = precision_recall.pair_curve(true, false)
    np.testing.assert_allclose(curve.threshold, [1, 2])
    np.testing.assert_allclose(curve.precision, [1 / 2, 3 / 5])
    np.testing.assert_allclose(curve.recall, [1 / 4, 3 / 4])
    assert precision_recall.average_precision(curve) == pytest.approx(1 / 4 * 1 / 2 + 2 / 4 * 3 / 5)


def random_retrievals(rng, count=300):
    """Distances on a coarse scale, so that many are equal."""
    correct = rng.random(count) < 0.4
    distance = np.round(rng.normal(np.where(correct, 1.0, 1.8), 0.6, count), 1)
    return np.abs(distance).astype(np.float32), correct


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    distance, correct = random_retrievals(rng)
    expected = metrics.average_precision_score(correct, -distance)
    # Every query with a loop retrieved one: the definitions coincide.
    all_found = Retrieved(distance, correct, correct)
    assert precision_recall.average_precision_by("standard", all_found) == pytest.approx(expected, abs=1e-9)
    # Some retrieved something else: they stay in the denominator, which scales recall by R@1.
    has_loop = correct | (rng.random(len(correct)) < 0.3)
    some_missed = Retrieved(distance, correct, has_loop)
    assert precision_recall.average_precision_by("standard", some_missed) == pytest.approx(
        expected * precision_recall.recall_at_1(some_missed), abs=1e-9
    )
    pairs = precision_recall.pair_curve(distance[correct], np.array_split(distance[~correct], 7))
    assert precision_recall.average_precision(pairs) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_lcdnet_policy_is_what_counting_query_by_query_gives(seed):
    rng = np.random.default_rng(seed)
    distance, correct = random_retrievals(rng, 80)
    has_loop = correct | (rng.random(80) < 0.3)
    precision, recall = [], []
    for threshold in np.unique(distance):
        true = false = missed = 0
        for d, right, loop in zip(distance, correct, has_loop, strict=True):
            if d <= threshold:
                true, false = true + (loop and right), false + (not right)
            else:
                missed += loop
        precision.append(true / (true + false))
        recall.append(true / (true + missed) if true + missed else 0.0)
    expected = sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)))
    found = precision_recall.average_precision_by("lcdnet_p1", Retrieved(distance, correct, has_loop))
    assert found == pytest.approx(expected, abs=1e-9)


def test_best_f1_and_recall_at_full_precision():
    curve = Curve(np.array([1.0, 2.0, 3.0]), np.array([1.0, 1.0, 0.5]), np.array([0.2, 0.5, 0.8]))
    f1, threshold = precision_recall.best_f1(curve)
    assert (f1, threshold) == (pytest.approx(2 * 0.5 / 1.5), 2.0)
    assert precision_recall.recall_at_full_precision(curve) == 0.5
    never = Curve(np.array([1.0]), np.array([0.5]), np.array([0.8]))
    assert precision_recall.recall_at_full_precision(never) == 0.0


def test_without_loops_and_without_queries():
    no_loop = retrieved([0.5, 0.7], [0, 0], [0, 0])
    assert precision_recall.recall_at_1(no_loop) is None
    assert precision_recall.best_f1(precision_recall.standard_curve(no_loop)) == (0.0, None)
    nobody = retrieved([], [], [])
    assert precision_recall.recall_at_1(nobody) is None
    for policy, curve in precision_recall.CURVES.items():
        assert len(curve(nobody).threshold) == 0
        assert precision_recall.average_precision_by(policy, nobody) == 0.0
    empty = precision_recall.pair_curve(np.zeros(0), [np.float32([1.0, 2.0])])
    assert precision_recall.average_precision(empty) == 0.0
