"""Recall of retrieval: hand cases, scikit-learn's search, and what chance must give."""

import itertools

import jax
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from placerec_jax.evaluation import retrieval
from placerec_jax.evaluation.retrieval import NEVER


def one_task(query_xy, database_xy, radius=20.0):
    """The task of one sequence: queries first, then the database."""
    xy = np.concatenate([query_xy, database_xy]).astype(np.float64)
    is_query = np.arange(len(xy)) < len(query_xy)
    return retrieval.tasks(np.full(len(xy), "00"), xy, is_query, radius)["00"]


def everything(queries, database, count, barred=None):
    """Every block of `nearest` as one: places and distances (Q, K)."""
    parts = list(retrieval.nearest(queries, database, count, barred))
    assert [part[0].start for part in parts[1:]] == [part[0].stop for part in parts[:-1]]
    return np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])


# --- Search


@pytest.mark.parametrize(("queries", "entries", "count"), [(40, 300, 20), (7, 5, 5), (3, 5, 9), (1, 1, 1)])
def test_nearest_are_those_of_scikit_learn(queries, entries, count):
    rng = np.random.default_rng(entries)
    a, b = (
        rng.normal(size=(queries, 16)).astype(np.float32),
        rng.normal(size=(entries, 16)).astype(np.float32),
    )
    place, distance = everything(a, b, count)
    reference = NearestNeighbors(n_neighbors=min(count, entries), algorithm="brute").fit(b.astype(np.float64))
    expected_distance, expected = reference.kneighbors(a.astype(np.float64))
    np.testing.assert_array_equal(place, expected)
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-6)


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(53, 8)).astype(np.float32), rng.normal(size=(70, 8)).astype(np.float32)
    whole = everything(a, b, 6)
    monkeypatch.setattr(retrieval, "BLOCK_NUMBERS", 8 * (6 + retrieval.SLACK) * 10)
    sizes = [block.stop - block.start for block, _, _ in retrieval.nearest(a, b, 6)]
    assert sizes == [10, 10, 10, 10, 10, 3]
    place, distance = everything(a, b, 6)
    np.testing.assert_array_equal(place, whole[0])
    np.testing.assert_allclose(distance, whole[1], rtol=1e-6)


def test_alike_descriptors_are_told_apart():
    """A thousandth of what all have in common decides: 2ab − b² in float32 would keep three digits of it."""
    rng = np.random.default_rng(2)
    base = rng.normal(size=32)
    a, b = (base + 1e-3 * rng.normal(size=(n, 32)) for n in (30, 200))
    place, distance = everything(a, b, 10)
    expected_distance, expected = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(b).kneighbors(a)
    np.testing.assert_array_equal(place, expected)
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-4)


def test_equally_near_entries_come_in_the_order_of_the_database():
    rng = np.random.default_rng(3)
    kinds = rng.normal(size=(40, 24)).astype(np.float32)
    kind = rng.integers(0, 40, 200)
    place, distance = everything(kinds, kinds[kind], 8)
    for query in range(40):
        copies = np.flatnonzero(kind == query)[:8]
        np.testing.assert_array_equal(place[query, : len(copies)], copies)
        np.testing.assert_array_equal(distance[query, : len(copies)], 0.0)
        for value in np.unique(distance[query]):
            tied = place[query][distance[query] == value]
            np.testing.assert_array_equal(tied, np.sort(tied))


def test_a_collapsed_network_retrieves_the_same_each_time():
    same = np.full((30, 8), 0.25, np.float32)
    place, distance = everything(same, same, 4)
    assert (distance == 0).all()
    assert (place == place[0]).all()


def test_own_frames_are_left_out():
    rng = np.random.default_rng(4)
    b = rng.normal(size=(6, 4)).astype(np.float32)
    own = np.array([0, 1, 2, 3, -1, -1])
    place, distance = everything(b, b, 6, lambda query, entry: own[query] == entry)
    assert [query in place[query] for query in range(6)] == [False] * 4 + [True] * 2
    np.testing.assert_array_equal(place[:4, -1], -1)
    np.testing.assert_array_equal(distance[:4, -1], np.inf)
    np.testing.assert_array_equal(distance[4:, 0], 0)


def test_search_inside_the_mesh_of_training():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(9, 8)).astype(np.float32), rng.normal(size=(30, 8)).astype(np.float32)
    outside = everything(a, b, 5)
    with jax.set_mesh(jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))):
        inside = everything(a, b, 5)
    for found, expected in zip(inside, outside, strict=True):
        np.testing.assert_array_equal(found, expected)


# --- Tasks and right entries


def test_the_radius_includes_its_boundary():
    task = one_task([[0, 0]], [[20, 0], [12, 16], [-20.0001, 0], [0, 20.1], [3, -4]])
    assert task.right.tolist() == [3]
    np.testing.assert_allclose(task.apart(np.array([[1, 2, -1]])), [[20.0, 20.0001, np.inf]])
    unit = np.eye(5, dtype=np.float32)
    ranks = [
        retrieval.retrieve(one_task([[0, 0]], [place, [90, 0]]), unit[:1], unit[:2], 2, 1).rank[0]
        for place in ([20, 0], [12, 16], [-20.0001, 0])
    ]
    assert ranks == [0, 0, NEVER]


def test_right_entries_are_those_of_all_pairs(monkeypatch):
    rng = np.random.default_rng(6)
    queries, database = rng.uniform(-100, 100, (90, 2)), rng.uniform(-100, 100, (400, 2))
    expected = np.stack(np.nonzero(np.linalg.norm(queries[:, None] - database, axis=-1) <= 20))
    for _ in range(2):
        found = retrieval.pairs_within(queries, database, 20.0)
        np.testing.assert_array_equal(np.stack(found), expected)
        monkeypatch.setattr(retrieval, "BLOCK_NUMBERS", 8 * 400 * 7)
    assert [len(part) for part in retrieval.pairs_within(queries, np.zeros((0, 2)), 20.0)] == [0, 0]


def test_sequences_are_never_mixed():
    """The right descriptor of `b`'s query lies in `a`, at the same coordinates: it must not be found."""
    sequence = np.array(["a", "a", "a", "b", "b", "b"])
    xy = np.array([[0, 0], [5, 0], [500, 0], [0, 0], [500, 0], [6, 0]], float)
    is_query = np.array([True, False, False, True, False, False])
    found = retrieval.tasks(sequence, xy, is_query, 20.0)
    assert {name: (task.query.tolist(), task.database.tolist()) for name, task in found.items()} == {
        "a": ([0], [1, 2]),
        "b": ([3], [4, 5]),
    }
    descriptor = np.array([[0], [0], [9], [0], [1], [9]], np.float32)
    answers = {
        name: retrieval.retrieve(task, descriptor[task.query], descriptor[task.database], 2, 2)
        for name, task in found.items()
    }
    assert {name: part.rank.tolist() for name, part in answers.items()} == {"a": [0], "b": [1]}
    assert retrieval.joined(answers).rank.tolist() == [0, 1]


def test_frames_of_a_sequence_need_not_follow_each_other():
    sequence = np.array(["b", "a", "b", "a"])
    found = retrieval.tasks(sequence, np.zeros((4, 2)), np.array([1, 1, 0, 0], bool), 20.0)
    assert (found["a"].query.tolist(), found["a"].database.tolist()) == ([1], [3])
    assert (found["b"].query.tolist(), found["b"].database.tolist()) == ([0], [2])


def test_a_query_without_right_entries_is_a_miss_and_one_without_database_too():
    task = one_task([[0, 0], [1000, 0]], [[1, 0], [2, 0]])
    unit = np.eye(2, dtype=np.float32)
    answers = retrieval.retrieve(task, unit, unit, 2, 2)
    assert answers.right.tolist() == [2, 0]
    assert answers.rank.tolist() == [0, NEVER]
    assert [retrieval.recall(answers.rank, k) for k in (1, 2, 1000)] == [0.5] * 3

    bare = one_task([[0, 0]], np.zeros((0, 2)))
    answers = retrieval.retrieve(bare, unit[:1], np.zeros((0, 2), np.float32), 5, 3)
    assert (answers.rank.tolist(), answers.candidate.tolist()) == ([NEVER], [[-1, -1, -1]])
    assert (retrieval.recall(answers.rank, 5), retrieval.chance(answers.right, answers.gallery, 5)) == (0, 0)


def test_sequences_without_queries_have_no_task():
    assert retrieval.tasks(np.array(["a", "a"]), np.zeros((2, 2)), np.zeros(2, bool), 20.0) == {}
    assert retrieval.recall(np.zeros(0), 1) is None
    assert retrieval.chance(np.zeros(0), np.zeros(0), 1) is None


def test_queries_in_the_database_find_their_own_frame_unless_it_is_left_out():
    xy = np.array([[0, 0], [100, 0], [10, 0], [200, 0]], float)
    is_query = np.array([True, True, False, False])
    task = retrieval.tasks(np.full(4, "a"), xy, is_query, 20.0, queries_in_database=True)["a"]
    assert (task.database.tolist(), task.own.tolist(), task.right.tolist()) == ([0, 1, 2, 3], [0, 1], [2, 1])
    descriptor = np.array([[0], [10], [3], [11]], np.float32)
    own = retrieval.retrieve(task, descriptor[:2], descriptor, 4, 1)
    assert (own.rank.tolist(), own.candidate.tolist(), own.right.tolist()) == ([0, 0], [[0], [1]], [2, 1])
    other = retrieval.retrieve(task, descriptor[:2], descriptor, 4, 1, task.own_frames())
    assert (other.rank.tolist(), other.candidate.tolist()) == ([0, NEVER], [[2], [3]])
    assert (other.right.tolist(), other.gallery.tolist()) == ([1, 0], [3, 3])


def test_barred_entries_are_neither_retrieved_nor_right():
    """Against a loop over queries: entries with the query's remainder by three are barred."""
    rng = np.random.default_rng(9)
    query_xy, database_xy = rng.uniform(0, 60, (50, 2)), rng.uniform(0, 60, (80, 2))
    task = one_task(query_xy, database_xy)
    queries, database = (rng.normal(size=(n, 4)).astype(np.float32) for n in (50, 80))
    found = retrieval.retrieve(task, queries, database, 20, 3, lambda query, entry: query % 3 == entry % 3)
    for query in range(50):
        free = np.array([entry for entry in range(80) if entry % 3 != query % 3])
        order = free[np.argsort(np.linalg.norm(database[free] - queries[query], axis=1))]
        right = [np.hypot(*(database_xy[entry] - query_xy[query])) <= 20.0 for entry in order]
        assert (found.right[query], found.gallery[query]) == (sum(right), len(free))
        assert found.candidate[query].tolist() == order[:3].tolist()
        assert found.rank[query] == (right.index(True) if any(right[:20]) else NEVER)


def test_any_distance_is_searched_like_euclids():
    rng = np.random.default_rng(10)
    task = one_task(rng.uniform(0, 60, (30, 2)), rng.uniform(0, 60, (40, 2)))
    queries, database = (rng.normal(size=(n, 4)).astype(np.float32) for n in (30, 40))
    apart = np.linalg.norm(queries[:, None] - database, axis=-1)
    apart[3, 5:] = apart[4] = np.inf
    expected = retrieval.retrieve(
        task, queries, database, 10, 6, lambda query, entry: ~np.isfinite(apart[query, entry])
    )
    found = retrieval.nearest_by(lambda block: apart[block], iter([slice(0, 7), slice(7, 30)]), 10)
    answers = retrieval.answers(task, found, 10, 6)
    np.testing.assert_array_equal(answers.rank, expected.rank)
    np.testing.assert_array_equal(answers.candidate, expected.candidate)
    np.testing.assert_allclose(answers.distance, expected.distance, rtol=1e-5)
    assert answers.candidate[4].tolist() == [-1] * 6


# --- Figures


def test_recall_by_hand():
    """Four queries with one right entry each, which comes first, second, second and not at all."""
    places = np.array([[0, 0], [100, 0], [200, 0], [300, 0]], float)
    task = one_task(places, places)
    database = np.arange(4, dtype=np.float32)[:, None]
    queries = np.array([[0.1], [0.4], [3.4], [0.0]], np.float32)  # orders 0123, 0123, 3210, 0123
    answers = retrieval.retrieve(task, queries, database, 3, 2)
    assert answers.rank.tolist() == [0, 1, 1, NEVER]
    assert answers.candidate.tolist() == [[0, 1], [0, 1], [3, 2], [0, 1]]
    assert [retrieval.recall(answers.rank, k) for k in (1, 2, 3)] == [0.25, 0.75, 0.75]
    assert retrieval.recall(answers.rank, np.array([1, 1, 2, 2])) == 0.5


@pytest.mark.parametrize(
    ("entries", "k"),
    [(1501, 15), (1010, 10), (128, 1), (1, 1), (49, 1), (151, 2), (149, 1), (250, 2), (350, 4)],
)
def test_one_percent_is_rounded_and_at_least_one(entries, k):
    assert retrieval.one_percent(entries) == k


def test_chance_is_the_mean_over_all_orders():
    right, gallery = np.array([1, 2, 0, 4, 3]), np.array([4, 4, 4, 4, 3])
    for k in (1, 2, 3, 4, 9):
        shares = []
        for p, n in zip(right, gallery, strict=True):
            orders = itertools.permutations([True] * p + [False] * (n - p))
            shares.append(np.mean([any(order[:k]) for order in orders]))
        assert retrieval.chance(right, gallery, k) == pytest.approx(np.mean(shares))
    assert retrieval.chance(right, gallery, 1) == pytest.approx(np.mean(right / gallery))
    each = [retrieval.chance(right[i : i + 1], gallery[i : i + 1], k) for i, k in enumerate((1, 2, 3, 1, 2))]
    assert retrieval.chance(right, gallery, np.array([1, 2, 3, 1, 2])) == pytest.approx(np.mean(each))


def test_random_descriptors_retrieve_at_chance():
    rng = np.random.default_rng(7)
    task = one_task(rng.uniform(0, 400, (3000, 2)), rng.uniform(0, 400, (500, 2)), radius=30.0)
    answers = retrieval.retrieve(task, rng.normal(size=(3000, 64)), rng.normal(size=(500, 64)), 20, 1)
    for k in (1, 5, 20):
        expected = retrieval.chance(answers.right, answers.gallery, k)
        # Queries share the database: wider than the binomial's deviation, far narrower than the figure.
        assert retrieval.recall(answers.rank, k) == pytest.approx(expected, abs=0.03)
    assert 0.01 < retrieval.chance(answers.right, answers.gallery, 1) < 0.03


def test_stretches_are_successive_queries_of_one_sequence():
    found = retrieval.stretches(np.array(["a"] * 5 + ["b"] * 3), 2)
    assert found.tolist() == [0, 0, 1, 1, 2, 3, 3, 4]


def test_interval_widens_when_neighbours_are_alike():
    rng = np.random.default_rng(8)
    runs = np.repeat(rng.random(60) < 0.5, 20)
    alone, together = (
        np.ptp(retrieval.recall_interval(runs, groups, 0))
        for groups in (np.arange(1200), np.repeat(np.arange(60), 20))
    )
    assert alone == pytest.approx(4 * np.sqrt(0.25 / 1200), rel=0.15)
    assert together == pytest.approx(4 * np.sqrt(0.25 / 60), rel=0.15)
    low, high = retrieval.recall_interval(runs, np.repeat(np.arange(60), 20), 0)
    assert low < runs.mean() < high
    assert retrieval.recall_interval(runs, np.zeros(1200, int), 0) is None
