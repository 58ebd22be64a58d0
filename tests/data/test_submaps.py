"""Points of submaps: as many as asked for, each once, and the same again in evaluation."""

import numpy as np
import pytest

from placerec_jax.data.submaps import evaluation_rng, sample_points, turn_about_z


def cloud(n: int) -> np.ndarray:
    return np.arange(3.0 * n, dtype=np.float32).reshape(n, 3) + 1


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 50])
def test_each_point_at_most_once_then_masked_zeros(n):
    points, mask = sample_points(cloud(n), 8, np.random.default_rng(0))
    assert points.shape == (8, 3)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(mask, np.arange(8) < n)
    found = {tuple(point) for point in points[mask]}
    assert len(found) == min(n, 8)
    assert found <= {tuple(point) for point in cloud(n)}
    assert not points[~mask].any()


def test_sampling_is_uniform():
    """10 of 40, 2000 times: each point about 500 times (deviation √(2000·¼·¾) = 19), at any place."""
    rng = np.random.default_rng(1)
    drawn = np.concatenate([sample_points(cloud(40), 10, rng)[0][:, 0] for _ in range(2000)])
    counts = np.unique(drawn, return_counts=True)[1]
    assert len(counts) == 40
    assert np.abs(counts - 500).max() < 5 * 19.4


def test_evaluation_repeats_and_frames_differ():
    def draw(name, frame):
        return sample_points(cloud(100), 10, evaluation_rng(name, frame))[0]

    np.testing.assert_array_equal(draw("0003", 5), draw("0003", 5))
    assert (draw("0003", 5) != draw("0003", 6)).any()
    assert (draw("0003", 5) != draw("0004", 5)).any()


def test_turns_keep_heights_and_distances():
    turned = turn_about_z(cloud(9), np.random.default_rng(2))
    assert turned.dtype == np.float32
    np.testing.assert_allclose(turned[:, 2], cloud(9)[:, 2])
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(cloud(9), axis=1), rtol=1e-6)
    gap = np.linalg.norm(turned[0] - turned[5])
    np.testing.assert_allclose(gap, np.linalg.norm(cloud(9)[0] - cloud(9)[5]), rtol=1e-6)
    assert np.abs(turned - cloud(9)).max() > 0.1
