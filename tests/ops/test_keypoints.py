"""Key points: suppression against a plain loop, selection under masks, histograms against counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.ops import keypoints, rigid

distance_histogram = jax.jit(keypoints.distance_histogram, static_argnums=(2, 3))
REACH = 64 * np.sqrt(2)


def scores(shape=(2, 24, 31), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def suppressed_by_loops(score: np.ndarray, radius: int) -> np.ndarray:
    """(H, W) → (H, W), the rule cell by cell: three rounds, and what a kept cell's window holds is out."""
    kept, struck = np.zeros(score.shape, bool), np.zeros(score.shape, bool)
    for _ in range(3):
        open_score = np.where(struck, 0, score)
        new = [
            cell
            for cell in np.ndindex(score.shape)
            if not struck[cell] and open_score[cell] >= open_score[window(cell, radius)].max()
        ]
        for cell in new:
            kept[cell] = True
            struck[window(cell, radius)] = True
    return np.where(kept, score, 0)


def window(cell: tuple[int, int], radius: int) -> tuple[slice, slice]:
    return tuple(slice(max(i - radius, 0), i + radius + 1) for i in cell)


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_suppression_is_that_of_a_plain_loop(radius):
    score = scores() * (scores(seed=1) < 0.6)  # empty cells among them
    kept = keypoints.non_maximum_suppression(jnp.asarray(score), radius)
    np.testing.assert_array_equal(kept, [suppressed_by_loops(s, radius) for s in score])
    assert 10 < np.count_nonzero(kept) < np.count_nonzero(score) / 2


def test_kept_cells_are_farther_apart_than_the_radius_and_recovery_adds_some():
    score = scores()
    kept = np.asarray(keypoints.non_maximum_suppression(jnp.asarray(score), 2))
    for image in kept:
        cells = np.argwhere(image > 0)
        apart = np.abs(cells[:, None] - cells).max(axis=-1) + 99 * np.eye(len(cells), dtype=int)
        assert apart.min() > 2
    local_maxima = sum(
        image[cell] == image[window(cell, 2)].max() for image in score for cell in np.ndindex(image.shape)
    )
    assert np.count_nonzero(kept) > local_maxima


def test_top_keypoints_are_occupied_inner_distinct_and_best_first():
    score, occupied = scores(), scores(seed=1) < 0.5
    index, mask, best = map(np.asarray, keypoints.top_keypoints(score, occupied, k=12, border=3))
    assert index.dtype == np.int32
    assert mask.all()
    assert (np.diff(best, axis=1) <= 0).all()
    row, column = np.divmod(index, score.shape[2])
    assert row.min() >= 3
    assert row.max() < 24 - 3
    assert column.min() >= 3
    assert column.max() < 31 - 3
    for b in range(2):
        assert len(set(index[b])) == 12
        assert occupied[b][row[b], column[b]].all()
        np.testing.assert_array_equal(score[b][row[b], column[b]], best[b])
    # Border and emptiness hide nothing better: the best of all that a loop leaves is the first.
    for b in range(2):
        left = suppressed_by_loops(np.where(occupied[b], score[b], 0), 2)[3:-3, 3:-3]
        np.testing.assert_array_equal(np.sort(left[left > 0])[::-1][:12], best[b])


def test_too_few_maxima_are_padded_and_an_empty_map_has_none():
    occupied = np.zeros((2, 20, 20), bool)
    occupied[0, 5, 7] = occupied[0, 12, 4] = True
    index, mask, best = keypoints.top_keypoints(jnp.full((2, 20, 20), 0.5), jnp.asarray(occupied), k=6)
    np.testing.assert_array_equal(mask, [[1, 1, 0, 0, 0, 0], [0] * 6])
    assert set(np.asarray(index[0, :2])) == {5 * 20 + 7, 12 * 20 + 4}
    np.testing.assert_array_equal(np.where(mask, 0, best), 0)
    assert ((index >= 0) & (index < 400)).all()


def test_asking_for_more_key_points_than_cells_names_both():
    with pytest.raises(ValueError, match="k = 500 key points of a map of 400 cells"):
        keypoints.top_keypoints(jnp.zeros((1, 20, 20)), jnp.ones((1, 20, 20), bool), k=500)


def test_no_gradient_passes_the_selection():
    occupied = jnp.ones((1, 20, 20), bool)
    gradient = jax.grad(lambda s: keypoints.top_keypoints(s, occupied, 5)[2].sum())(scores((1, 20, 20)))
    assert not gradient.any()


def test_gather_reads_the_cells_and_its_gradient_returns_to_them():
    features = np.random.default_rng(0).normal(size=(2, 5, 6, 3)).astype(np.float32)
    index = np.array([[7, 0, 29], [3, 3, 12]], np.int32)
    expected = [[features[b, i // 6, i % 6] for i in index[b]] for b in range(2)]
    np.testing.assert_array_equal(keypoints.gather(features, index), expected)
    gradient = jax.grad(lambda f: keypoints.gather(f, index).sum())(features)
    assert gradient[1, 0, 3, 0] == 2
    assert gradient.sum() == 6 * 3


def positions(seed=0, count=40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.uniform(-30, 30, (2, count, 2)).astype(np.float32), rng.random((2, count)) < 0.7


def test_histogram_is_that_of_numpy_and_sums_to_one():
    xy, mask = positions()
    histogram = distance_histogram(xy, mask, 64, REACH)
    for b in range(2):
        for i in range(xy.shape[1]):
            others = np.flatnonzero(mask[b] & (np.arange(xy.shape[1]) != i))
            distance = np.linalg.norm(xy[b, others] - xy[b, i], axis=-1)
            counts = np.histogram(distance, bins=64, range=(0, REACH))[0]
            expected = counts / len(others) if mask[b, i] else np.zeros(64)
            np.testing.assert_allclose(histogram[b, i], expected, atol=1e-6)
    np.testing.assert_allclose(histogram.sum(axis=-1), mask, atol=1e-6)


def test_histogram_ignores_pose_order_and_masked_positions():
    # Integer positions with bins that begin at half metres: rounding cannot move a distance across an edge
    # (a half squared is no integer, a distance's square is).
    rng = np.random.default_rng(3)
    xy = rng.integers(-15, 15, (1, 30, 2)).astype(np.float32)
    mask = np.ones((1, 30), bool)
    bins, reach = 43, 43 * 1.0009  # no integer's root near a multiple of 1.0009
    histogram = distance_histogram(xy, mask, bins, reach)

    edges = np.arange(1, bins) * reach / bins
    distance = np.linalg.norm(xy[0, :, None] - xy[0], axis=-1)
    assert np.abs(distance[..., None] - edges).min() > 1e-4
    moved = rigid.se2_apply(np.array([3.0, -2.0, 1.1]), xy).astype(np.float32)
    np.testing.assert_allclose(distance_histogram(moved, mask, bins, reach), histogram, atol=1e-6)

    order = rng.permutation(30)
    permuted = distance_histogram(xy[:, order], mask, bins, reach)
    np.testing.assert_allclose(permuted, histogram[:, order], atol=1e-6)

    garbage = np.concatenate([xy, np.full((1, 3, 2), [[[np.nan, 7], [1e30, 0], [0, 0]]])], axis=1)
    padded = distance_histogram(garbage, np.arange(33)[None] < 30, bins, reach)
    np.testing.assert_allclose(padded[:, :30], histogram, atol=1e-6)
    assert not padded[:, 30:].any()


def test_what_lies_beyond_the_reach_is_in_the_last_bin_and_a_lone_key_point_has_no_histogram():
    xy = jnp.array([[[0.0, 0.0], [500.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]]])
    histogram = distance_histogram(xy, jnp.array([[True, True], [True, False]]), 4, 8.0)
    np.testing.assert_array_equal(histogram, [[[0, 0, 0, 1]] * 2, [[0, 0, 0, 0]] * 2])
