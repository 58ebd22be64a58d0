"""Which frames ask, which may answer, which answers are right, and what each query retrieves.

Frames belong to a sequence and are compared within it: distances are an (n, n) matrix a sequence, row = the
frame that asks, column = the frame that answers, lower = nearer, inf = not to be had.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from placerec_jax.evaluation.precision_recall import Curve, Retrieved, pair_curve
from placerec_jax.ops.rigid import rigid_inverse

# How a query meets its loops again, in the order of the tables; 0 is for queries without any.
KINDS = ("same_lane", "other_lane", "reverse")
BLOCK = 512  # queries at a time


@dataclasses.dataclass(frozen=True)
class Frames:
    """n frames of a sequence: `position` (n,) ascending place in the whole sequence, `map_T_lidar` (n, 4,
    4)."""

    name: str
    position: np.ndarray
    map_T_lidar: np.ndarray

    def __len__(self) -> int:
        return len(self.position)


@dataclasses.dataclass(frozen=True)
class Task:
    """`query` (Q,) ascending numbers of frames that ask; `allows(queries, stop)` says (b, stop) bool which of
    the frames before `stop` may answer them; `stop(queries)` where the last that may ends.

    `pair_query`, `pair_candidate` (M,) are all true loops among those, by query; `pair_kind` (M,) their place
    in `KINDS` plus 1; `reverse` (Q,) whether the nearest true loop was passed in the opposite direction.
    """

    query: np.ndarray
    allows: Callable[[np.ndarray, int], np.ndarray]
    stop: Callable[[np.ndarray], int]
    pair_query: np.ndarray
    pair_candidate: np.ndarray
    pair_kind: np.ndarray
    reverse: np.ndarray

    def blocks(self) -> Iterator[tuple[slice, np.ndarray, int, np.ndarray]]:
        """(place among the queries, their numbers, stop, who may answer) for blocks of queries."""
        for start in range(0, len(self.query), BLOCK):
            part = slice(start, min(start + BLOCK, len(self.query)))
            stop = self.stop(self.query[part])
            yield part, self.query[part], stop, self.allows(self.query[part], stop)

    def truth(self, queries: np.ndarray, stop: int) -> np.ndarray:
        """(b, stop) bool: the true loops of a block of queries."""
        first, last = np.searchsorted(self.pair_query, [queries[0], queries[-1] + 1])
        found = np.zeros((len(queries), stop), bool)
        found[np.searchsorted(queries, self.pair_query[first:last]), self.pair_candidate[first:last]] = True
        return found


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the queries of a task retrieved: `query` and `candidate` (Q,) numbers of frames (candidate −1:
    none was allowed), `kind` (Q,) as in `Task`, the best of the query's loops, 0 where it has none."""

    query: np.ndarray
    candidate: np.ndarray
    kind: np.ndarray
    reverse: np.ndarray
    retrieved: Retrieved


def growing(frames: Frames, distance: float, gap: int, first_query: int, lane_offset: float) -> Task:
    """The database grows with the drive: frame i, from position `first_query` on, asks those of positions
    below i − `gap`; loops lie nearer than `distance` metres in 3-D."""
    query = np.flatnonzero(frames.position >= first_query)
    # Positions ascend, so the frames that may answer are the first so many.
    count = np.searchsorted(frames.position, frames.position - gap, side="left")

    def allows(queries: np.ndarray, stop: int) -> np.ndarray:
        return np.arange(stop) < count[queries][:, None]

    return _task(frames, query, allows, lambda queries: int(count[queries[-1]]), distance, lane_offset)


def fixed(
    frames: Frames, database: tuple[int, int], queries: tuple[int, int], distance: float, lane_offset: float
) -> Task:
    """Database and queries are the frames of these positions (first, last; both belong to it); queries
    without a database frame nearer than `distance` metres in 3-D are dropped."""
    inside = (frames.position >= database[0]) & (frames.position <= database[1])
    query = np.flatnonzero((frames.position >= queries[0]) & (frames.position <= queries[1]))
    end = int(np.flatnonzero(inside)[-1]) + 1 if inside.any() else 0

    def allows(asking: np.ndarray, stop: int) -> np.ndarray:
        return np.broadcast_to(inside[:stop], (len(asking), stop))

    task = _task(frames, query, allows, lambda asking: end, distance, lane_offset)
    matched = np.isin(task.query, task.pair_query)
    return dataclasses.replace(task, query=task.query[matched], reverse=task.reverse[matched])


def _task(
    frames: Frames,
    query: np.ndarray,
    allows: Callable[[np.ndarray, int], np.ndarray],
    stop: Callable[[np.ndarray], int],
    distance: float,
    lane_offset: float,
) -> Task:
    none = np.zeros(0, np.int64)
    bare = Task(query, allows, stop, none, none, none, np.zeros(len(query), bool))
    xyz = np.asarray(frames.map_T_lidar[:, :3, 3], np.float64)
    found, apart = [], []
    for _, asking, end, allowed in bare.blocks():
        squared = np.zeros((len(asking), end))
        for axis in range(3):  # an axis at a time: no (b, n, 3) array
            squared += (xyz[asking, None, axis] - xyz[None, :end, axis]) ** 2
        block_query, candidate = np.nonzero(allowed & (squared < distance**2))
        found.append(np.stack([asking[block_query], candidate]))
        apart.append(squared[block_query, candidate])
    pair_query, pair_candidate = np.concatenate([np.zeros((2, 0), np.int64), *found], axis=1)
    separation = np.concatenate([np.zeros(0), *apart])
    kind = revisit_kinds(frames.map_T_lidar[pair_query], frames.map_T_lidar[pair_candidate], lane_offset)
    nearest_first = np.lexsort((separation, pair_query))
    closing, first = np.unique(pair_query[nearest_first], return_index=True)
    backwards = closing[kind[nearest_first][first] == KINDS.index("reverse") + 1]
    return Task(query, allows, stop, pair_query, pair_candidate, kind, np.isin(query, backwards))


def revisit_kinds(map_T_query: np.ndarray, map_T_candidate: np.ndarray, lane_offset: float) -> np.ndarray:
    """(M, 4, 4), (M, 4, 4) poses of loops → (M,) int, 1 + place in `KINDS`.

    `reverse`: headings differ by more than 90°; else `other_lane`: the query lies `lane_offset` metres or
    more to a side of the candidate, in the candidate's frame; else `same_lane`.
    """
    candidate_T_query = rigid_inverse(np.asarray(map_T_candidate, np.float64)) @ map_T_query
    kind = np.where(np.abs(candidate_T_query[:, 1, 3]) >= lane_offset, 2, 1)
    return np.where(candidate_T_query[:, 0, 0] < 0, 3, kind)


def descriptor_distances(queries: np.ndarray, database: np.ndarray, tasks: Iterable[Task]) -> np.ndarray:
    """(n, D) descriptors of the frames as they ask and as they answer → (n, n) float32 Euclidean distances,
    inf where no task compares.

    By |a|² + |b|² − 2ab in float64, of descriptors moved to a common centre: a block is one matrix product,
    and what cancellation leaves (about 1e-8 of a descriptor's length) is below float32.
    """
    centre = database.mean(axis=0, dtype=np.float64)
    a, b = queries - centre, database - centre
    a_squared, b_squared = (np.einsum("nd,nd->n", x, x) for x in (a, b))
    matrix = np.full((len(a), len(b)), np.inf, np.float32)
    for task in tasks:
        for _, asking, stop, allowed in task.blocks():
            length = a_squared[asking, None] + b_squared[None, :stop]
            squared = length - 2.0 * (a[asking] @ b[:stop].T)
            # Equal descriptors are at 0 and so are tied, whatever rounding has left of them.
            found = np.sqrt(np.where(squared > 1e-14 * length, squared, 0.0)).astype(np.float32)
            matrix[asking, :stop] = np.where(allowed, found, matrix[asking, :stop])
    return matrix


def retrieve(task: Task, distances: np.ndarray) -> Answers:
    """The nearest allowed candidate of every query; of equally near ones the earliest."""
    candidate = np.full(len(task.query), -1)
    distance = np.full(len(task.query), np.inf, np.float32)
    correct = np.zeros(len(task.query), bool)
    for part, queries, stop, allowed in task.blocks():
        if not stop:
            continue
        found = np.where(allowed, distances[queries, :stop], np.inf)
        nearest = np.argmin(found, axis=1)
        here = np.arange(len(queries))
        distance[part] = found[here, nearest]
        reached = np.isfinite(distance[part])
        candidate[part] = np.where(reached, nearest, -1)
        correct[part] = task.truth(queries, stop)[here, nearest] & reached
    kind = _kind_of_queries(task)
    return Answers(task.query, candidate, kind, task.reverse, Retrieved(distance, correct, kind > 0))


def first_few(task: Task, distances: np.ndarray, count: int) -> np.ndarray:
    """(Q, count) the nearest allowed candidates of every query, nearest first; −1 where there are fewer.

    Of equally near ones the earliest comes first.
    """
    candidate = np.full((len(task.query), count), -1)
    for part, queries, stop, allowed in task.blocks():
        if not stop:
            continue
        found = np.where(allowed, distances[queries, :stop], np.inf)
        order = np.argsort(found, axis=1, kind="stable")[:, :count]
        reached = np.isfinite(np.take_along_axis(found, order, axis=1))
        candidate[part, : order.shape[1]] = np.where(reached, order, -1)
    return candidate


def _kind_of_queries(task: Task) -> np.ndarray:
    """(Q,) the first of `KINDS` among each query's loops, plus 1; 0 without a loop."""
    best = np.full(len(task.query), len(KINDS) + 1)
    np.minimum.at(best, np.searchsorted(task.query, task.pair_query), task.pair_kind)
    return np.where(best > len(KINDS), 0, best)


def pairs_curve(parts: Sequence[tuple[Task, np.ndarray]]) -> Curve:
    """Precision and recall over every pair of (task, distances) of some sequences together."""
    true = [distances[task.pair_query, task.pair_candidate] for task, distances in parts]
    return pair_curve(np.concatenate([np.zeros(0, np.float32), *true]), _false_pairs(parts))


def _false_pairs(parts: Sequence[tuple[Task, np.ndarray]]) -> Iterator[np.ndarray]:
    """Blocks of the distances of all allowed pairs that are no loop."""
    for task, distances in parts:
        for _, queries, stop, allowed in task.blocks():
            if stop:
                yield distances[queries, :stop][allowed & ~task.truth(queries, stop)]
