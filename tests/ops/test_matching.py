"""Verification: mutual nearest neighbours against a loop; RANSAC on planted and on degenerate motions."""

import jax
import jax.numpy as jnp
import numpy as np

from placerec_jax.ops import rigid
from placerec_jax.ops.matching import _distinct_pairs, mutual_nearest, ransac_se2

KEY = jax.random.key(0)
ransac = jax.jit(ransac_se2, static_argnames=("hypotheses", "radius", "min_separation"))


def mutual_by_loops(a, b, a_mask, b_mask) -> list[int]:
    cosine = {
        (i, j): a[i] @ b[j] / np.linalg.norm(a[i]) / np.linalg.norm(b[j])
        for i in np.flatnonzero(a_mask)
        for j in np.flatnonzero(b_mask)
    }
    partner = []
    for i in range(len(a)):
        row = {j: c for (k, j), c in cosine.items() if k == i}
        j = max(row, key=row.get) if row else -1
        column = {k: c for (k, m), c in cosine.items() if m == j}
        partner.append(j if row and max(column, key=column.get) == i else -1)
    return partner


def test_mutual_neighbours_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 40, 16)), rng.normal(size=(3, 30, 16))
    a[:, :15] = b[:, 5:20] + rng.normal(0, 0.3, (3, 15, 16))
    a *= rng.uniform(0.1, 10, (3, 40, 1))  # a cosine does not see lengths
    a_mask, b_mask = rng.random((3, 40)) < 0.8, rng.random((3, 30)) < 0.8
    b_mask[2] = False
    a[~a_mask], b[~b_mask] = np.nan, 1e30
    partner, similarity = jax.jit(mutual_nearest)(*map(jnp.asarray, (a, b, a_mask, b_mask)))
    assert partner.dtype == jnp.int32
    for n in range(3):
        np.testing.assert_array_equal(partner[n], mutual_by_loops(a[n], b[n], a_mask[n], b_mask[n]))
        for i in np.flatnonzero(partner[n] >= 0):
            x, y = a[n, i], b[n, partner[n, i]]
            cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            np.testing.assert_allclose(similarity[n, i], cosine, atol=1e-5)
    assert (partner[:2] >= 0).sum() > 15
    assert (partner[2] == -1).all()
    np.testing.assert_array_equal(similarity[partner < 0], -1)


def matches(outliers: float, seed: int, count=512, valid=400, noise=0.15):
    """Key points, where a planted motion brings them (outliers: anywhere), mask, motion, the true matches."""
    rng = np.random.default_rng(seed)
    source = rng.uniform(-32, 32, (count, 2))
    pose = rng.uniform([-3, -3, -np.pi], [3, 3, np.pi])
    target = rigid.se2_apply(pose, source) + rng.normal(0, noise, source.shape)
    true = rng.random(count) >= outliers
    target[~true] = rng.uniform(-32, 32, ((~true).sum(), 2))
    mask = rng.permutation(count) < valid
    return source.astype(np.float32), target.astype(np.float32), mask, pose, true & mask


def batch_of(outliers: float, first_seed=0, **kwargs):
    """Always eight, so that most tests share one compiled program."""
    columns = zip(*(matches(outliers, first_seed + n, **kwargs) for n in range(8)), strict=True)
    return tuple(np.stack(column) for column in columns)


def test_a_planted_motion_is_found_under_seventy_percent_of_outliers():
    source, target, mask, pose, true = batch_of(0.7)
    found = ransac(source, target, mask, KEY)
    error = rigid.se2_compose(rigid.se2_inverse(pose), np.asarray(found.pose, np.float64))
    assert np.linalg.norm(error[:, :2], axis=-1).max() < 0.1
    assert np.abs(error[:, 2]).max() < np.deg2rad(0.2)
    for n in range(8):
        expected = np.linalg.norm(rigid.se2_apply(pose[n], source[n]) - target[n], axis=-1) <= 0.6
        different = np.asarray(found.inlier_mask[n]) != (expected & mask[n])
        assert different.sum() <= 2  # at the edge of the radius
        assert found.inlier_mask[n][true[n]].mean() > 0.97
    np.testing.assert_array_equal(found.inliers, found.inlier_mask.sum(axis=-1))
    assert found.inliers.dtype == jnp.int32


def test_exact_matches_give_the_exact_motion():
    source, target, mask, pose, true = batch_of(0.5, noise=0)
    found = ransac(source, target, mask, KEY)
    np.testing.assert_allclose(found.pose, pose, atol=1e-4)
    assert np.asarray(found.inlier_mask)[true].all()


def test_the_fit_to_the_inliers_is_better_than_the_best_of_two_points():
    source, target, mask, pose, _ = batch_of(0.5, first_seed=20)
    found = ransac(source, target, mask, KEY)
    offset = rigid.se2_compose(rigid.se2_inverse(pose), np.asarray(found.pose, np.float64))
    # Some 200 inliers of 0.15 m noise each determine the motion to about 0.015 m; two not even to 0.1 m.
    assert np.linalg.norm(offset[:, :2], axis=-1).mean() < 0.03


def test_unrelated_matches_have_few_inliers():
    source, target, mask, _, _ = batch_of(1.0)
    assert ransac(source, target, mask, KEY).inliers.max() < 15


def test_seeded_and_the_same_whatever_it_is_batched_and_padded_with():
    source, target, mask, _, _ = batch_of(0.7)
    found = ransac(source, target, mask, KEY)
    jax.tree.map(np.testing.assert_array_equal, ransac(source, target, mask, KEY), found)

    alone = ransac(source[1], target[1], mask[1], KEY)
    np.testing.assert_allclose(alone.pose, found.pose[1], atol=1e-5)
    np.testing.assert_array_equal(alone.inlier_mask, found.inlier_mask[1])

    order = np.argsort(~mask, axis=1, kind="stable")  # the masked at the end instead of between
    points = [np.take_along_axis(x, order[..., None], axis=1) for x in (source, target)]
    packed = ransac(*points, np.take_along_axis(mask, order, axis=1), KEY)
    np.testing.assert_allclose(packed.pose, found.pose, atol=1e-4)
    np.testing.assert_array_equal(packed.inliers, found.inliers)

    garbage = [np.where(mask[..., None], x, np.nan) for x in (source, target)]
    jax.tree.map(np.testing.assert_array_equal, ransac(*garbage, mask, KEY), found)


def test_another_seed_draws_other_hypotheses():
    source, target, mask, _, _ = matches(0.7, 0)
    scores = {float(ransac(source, target, mask, jax.random.key(n), hypotheses=3).score) for n in range(8)}
    assert len(scores) > 1  # three hypotheses meet the true motion or do not


def padded(*cases: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Up to eight lists of (source, target) as one batch of the shape that the other tests have."""
    source, target, mask = np.zeros((8, 512, 2)), np.zeros((8, 512, 2)), np.zeros((8, 512), bool)
    for n, (case_source, case_target) in enumerate(cases):
        count = len(case_source)
        source[n, :count], target[n, :count], mask[n, :count] = case_source, case_target, True
    return source.astype(np.float32), target.astype(np.float32), mask


def test_matches_that_determine_no_motion_score_zero():
    rng = np.random.default_rng(0)
    near, far = rng.uniform(0, 0.5, (16, 2)), rng.uniform(-30, 30, (16, 2))
    batch = padded(
        (near, near),  # no two are min_separation apart, although all agree
        (far[:1], far[:1]),
        (far[:2], 3 * far[:2]),  # lengths that no rigid motion makes equal
        (far[:2], far[:2] * 0),
    )  # and four without any match
    found = ransac(*batch, KEY)
    for value in found:
        np.testing.assert_array_equal(value, np.zeros_like(value))


def test_two_matches_are_enough_for_a_motion():
    rng = np.random.default_rng(1)
    source, pose = rng.uniform(-30, 30, (8, 2, 2)), np.array([1.0, -2.0, 0.7])
    found = ransac(*padded(*zip(source, rigid.se2_apply(pose, source), strict=True)), KEY)
    np.testing.assert_allclose(found.pose, np.tile(pose, (8, 1)), atol=1e-4)
    np.testing.assert_array_equal(found.inliers, 2)


def test_every_valid_pair_is_drawn_and_none_twice_the_same_point():
    mask = np.array([0, 1, 1, 0, 1, 1, 0], bool)
    first, second = map(np.asarray, _distinct_pairs(mask, KEY, 2000))
    assert (first != second).all()
    drawn = {(int(i), int(j)) for i, j in zip(first, second, strict=True)}
    valid = np.flatnonzero(mask)
    assert drawn == {(i, j) for i in valid for j in valid if i != j}
    counts = np.bincount(first * 7 + second)
    assert counts[counts > 0].min() > 0.7 * 2000 / 12


def test_no_gradient_passes_the_verification():
    source, target, mask, _, _ = batch_of(0.5)

    def loss(source, target):
        return ransac_se2(source, target, mask, KEY).pose.sum()

    for gradient in jax.jit(jax.grad(loss, argnums=(0, 1)))(source, target):
        np.testing.assert_array_equal(gradient, 0)
