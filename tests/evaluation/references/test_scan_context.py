"""Scan Context against a double loop over pairs, turns and sectors, and against what turning means."""

import numpy as np
import pytest

from placerec_jax.evaluation.reference_inputs import turn
from placerec_jax.evaluation.references import scan_context


def points_in_sectors(rng: np.random.Generator, count: int = 800) -> np.ndarray:
    """(count, 3) float32 points well inside their cells: turning by whole sectors moves whole cells."""
    ring, sector = rng.integers(0, 20, count), rng.integers(0, 60, count)
    distance = (ring + rng.uniform(0.1, 0.9, count)) * 4
    angle = (sector + rng.uniform(0.1, 0.9, count)) * (2 * np.pi / 60)
    height = rng.uniform(-1.9, 4, count)
    return np.stack([distance * np.cos(angle), distance * np.sin(angle), height], axis=1).astype(np.float32)


def random_contexts(rng: np.random.Generator, count: int, seen: float) -> np.ndarray:
    """(count, 20, 60) float32 contexts in which a sector holds something with probability `seen`."""
    filled = (rng.random((count, 1, 60)) < seen) & (rng.random((count, 20, 60)) < 0.5)
    return np.where(filled, rng.uniform(0.1, 6, filled.shape), 0).astype(np.float32)


def stack(contexts: np.ndarray) -> dict[str, np.ndarray]:
    return {"context": contexts, "ring_key": contexts.mean(axis=2)}


def plain_distance(query: np.ndarray, candidate: np.ndarray, all_turns: bool) -> float:
    """One pair the plain way: turn, compare column by column, keep the best."""
    key = query.mean(axis=0)
    best = min(range(60), key=lambda t: np.linalg.norm(key - np.roll(candidate, -t, axis=1).mean(axis=0)))
    turns = range(60) if all_turns else [(best + step) % 60 for step in range(-3, 4)]
    distances = []
    for t in turns:
        turned = np.roll(candidate, -t, axis=1)
        cosines = [
            query[:, j] @ turned[:, j] / np.linalg.norm(query[:, j]) / np.linalg.norm(turned[:, j])
            for j in range(60)
            if query[:, j].any() and turned[:, j].any()
        ]
        distances.append(1 - np.mean(cosines) if cosines else 1.0)
    return min(distances)


def test_cells_hold_the_greatest_height_above_the_ground() -> None:
    points = [
        [2, 0.1, -1.5],
        [2.5, 0.1, 1.0],
        [0.1, 2, 0.25],
        [-79.9, -0.1, 3],
        [80.1, 0.1, 9],
        [-6, 0.1, -2.5],
    ]
    context = scan_context.describe(np.array(points))["context"]
    expected = np.zeros((20, 60), np.float32)
    expected[0, 0] = 3.0  # forward, the higher of two
    expected[0, 14] = 2.25  # 87°, left
    expected[19, 30] = 5.0  # just past 180°; what lies beyond 80 m or below the ground leaves no trace
    np.testing.assert_array_equal(context, expected)


@pytest.mark.parametrize("all_turns", [False, True])
@pytest.mark.parametrize("sectors", [0, 1, 17, 59])
def test_turning_by_whole_sectors_leaves_distance_zero_and_finds_the_turn(
    sectors: int, all_turns: bool
) -> None:
    points = points_in_sectors(np.random.default_rng(sectors))
    # The vehicle has turned left, so the world about it has turned right.
    query = scan_context.describe(turn(points, -sectors * 2 * np.pi / 60))["context"]
    database = scan_context.describe(points)["context"]
    np.testing.assert_array_equal(query, np.roll(database, -sectors, axis=1))
    distance, found = scan_context.compare(query[None], database[None], all_turns=all_turns)
    assert distance[0, 0] < 1e-5
    assert found[0, 0] == sectors


def test_moving_and_changing_the_scan_changes_the_distance() -> None:
    points = points_in_sectors(np.random.default_rng(0), 4000)
    contexts = [
        scan_context.describe(points + np.float32([x, 0, 0]))["context"][None] for x in (0, 0.5, 3.0, 12.0)
    ]
    distances = [scan_context.compare(contexts[0], context)[0].item() for context in contexts]
    assert distances[0] < 1e-5 < distances[1] < distances[2] < distances[3]


@pytest.mark.parametrize("all_turns", [False, True])
@pytest.mark.parametrize("seen", [1.0, 0.3, 0.03])
def test_all_pairs_agree_with_a_double_loop(seen: float, all_turns: bool) -> None:
    """Down to two sectors a scan, of which under most turns none is seen by both."""
    rng = np.random.default_rng(1)
    queries, database = random_contexts(rng, 5, seen), random_contexts(rng, 6, seen)
    found = scan_context.distances(stack(queries), stack(database), candidates=None, all_turns=all_turns)
    expected = [[plain_distance(q, d, all_turns) for d in database] for q in queries]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_no_common_sector_is_distance_one() -> None:
    one, other = np.zeros((2, 20, 60), np.float32)
    one[3, 10], other[7, 10] = 1.0, 1.0  # a common sector, no common ring
    found = scan_context.compare(np.stack([one, 0 * one]), np.stack([one, other, 0 * one]))[0]
    np.testing.assert_allclose(found, [[0, 1, 1], [1, 1, 1]], atol=1e-6)


def test_only_the_nearest_ring_keys_among_those_allowed_are_compared() -> None:
    rng = np.random.default_rng(2)
    queries, database = stack(random_contexts(rng, 7, 0.8)), stack(random_contexts(rng, 40, 0.8))
    allowed = rng.random((7, 40)) < 0.5
    allowed[0], allowed[1] = False, np.arange(40) < 4  # fewer than are looked for
    full = scan_context.distances(queries, database, candidates=None)
    found = scan_context.distances(queries, database, allowed, candidates=6)
    for row, key in enumerate(queries["ring_key"]):
        apart = np.linalg.norm(database["ring_key"] - key, axis=1)
        nearest = [i for i in np.argsort(apart) if allowed[row, i]][:6]
        assert sorted(nearest) == sorted(np.flatnonzero(np.isfinite(found[row])))
        np.testing.assert_allclose(found[row, nearest], full[row, nearest], atol=1e-5)


def test_more_candidates_than_scans_is_all_of_them() -> None:
    contexts = stack(random_contexts(np.random.default_rng(3), 4, 0.8))
    every = scan_context.distances(contexts, contexts, candidates=None)
    np.testing.assert_allclose(scan_context.distances(contexts, contexts), every, atol=1e-6)


def test_blocks_inside_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = stack(random_contexts(np.random.default_rng(4), 9, 0.8))
    for settings in ({"candidates": None}, {"candidates": 3}):
        whole = scan_context.distances(contexts, contexts, **settings)
        with monkeypatch.context() as patch:
            patch.setattr(scan_context, "_AT_ONCE", 20)
            np.testing.assert_allclose(
                scan_context.distances(contexts, contexts, **settings), whole, atol=1e-6
            )
