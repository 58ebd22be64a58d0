"""Recall of place retrieval: descriptors of queries against those of a database, on the ground plane.

Nothing here knows what a descriptor was made of. A database entry is right for a query when the two lie at
most `radius` metres apart; search never leaves a sequence; R@K is the share of queries with a right entry
among the K nearest, and a query that no entry is right for counts as a miss at every K.

Search is exact. On the device a block of queries is one matrix product with the whole database, `top_k`
takes a few entries more than asked for, and those are compared once more by their differences: so distances
are exact to float32 however alike the descriptors are, and of equally near entries the first in the database
comes first.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Numbers in the largest array of a block: 64 Mi float32 are 256 MiB, whatever the size of the database.
BLOCK_NUMBERS = 2**26
# Entries beyond those asked for that are compared once more, so that rounding of the product loses none.
SLACK = 16
BOOTSTRAP_RESAMPLES = 1000
NEVER = np.iinfo(np.int32).max  # the rank of a right entry that is not among those retrieved


@dataclasses.dataclass(frozen=True)
class Task:
    """The queries and the database of one sequence.

    `query` (Q,), `database` (M,): row numbers, ascending; `query_xy` (Q, 2), `database_xy` (M, 2): metres;
    `own` (Q,): the place in the database of the query's own frame, −1 where that is not in it; `right` (Q,):
    how many entries are right, the own frame included; `radius`: metres, within which entries are.
    """

    query: np.ndarray
    database: np.ndarray
    query_xy: np.ndarray
    database_xy: np.ndarray
    own: np.ndarray
    right: np.ndarray
    radius: float

    def apart(self, candidate: np.ndarray) -> np.ndarray:
        """(Q, K) places in the database, −1 for none → (Q, K) metres to each query; inf for none."""
        return np.sqrt(_squared_distance(self.query_xy, self.database_xy, candidate))

    def gallery(self, without_own: bool) -> tuple[np.ndarray, np.ndarray]:
        """(Q,) right entries and (Q,) entries that a query chooses from, with or without its own frame."""
        own = (self.own >= 0) if without_own else np.zeros(len(self.query), bool)
        return self.right - own, len(self.database) - own.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Answers:
    """What the queries of one task retrieved.

    `rank` (Q,): how many wrong entries came before the first right one, `NEVER` where none was retrieved;
    `candidate` (Q, K), `distance` (Q, K): the nearest entries as places in the database, and how far their
    descriptors are; −1 and inf where the database has fewer; `right` (Q,), `gallery` (Q,): right entries and
    all entries that the query could have retrieved.
    """

    rank: np.ndarray
    candidate: np.ndarray
    distance: np.ndarray
    right: np.ndarray
    gallery: np.ndarray


def tasks(
    sequence: np.ndarray,
    xy: np.ndarray,
    is_query: np.ndarray,
    radius: float,
    queries_in_database: bool = False,
) -> dict[str, Task]:
    """{sequence: Task} of frames with names (N,), positions (N, 2) and `is_query` (N,).

    The database is what is no query, or with `queries_in_database` every frame. Sequences without a query
    have no task; without a database every query of a sequence is a miss.
    """
    found = {}
    for name in np.unique(sequence):
        here = np.asarray(sequence) == name
        query = np.flatnonzero(here & is_query)
        database = np.flatnonzero(here) if queries_in_database else np.flatnonzero(here & ~is_query)
        if not query.size:
            continue
        places = np.asarray(xy, np.float64)
        own = np.full(len(query), -1)
        if queries_in_database:
            own = np.searchsorted(database, query)
        right = count_within(places[query], places[database], radius)
        found[str(name)] = Task(query, database, places[query], places[database], own, right, float(radius))
    return found


def count_within(queries: np.ndarray, database: np.ndarray, radius: float) -> np.ndarray:
    """(Q, 2), (M, 2) metres → (Q,) how many of the database lie within `radius`, the boundary included.

    Both are taken in the order of x, so that a block of neighbouring queries meets only a strip.
    """
    count = np.zeros(len(queries), np.int64)
    order = np.argsort(queries[:, 0], kind="stable")
    database = database[np.argsort(database[:, 0], kind="stable")]
    strip = 1.001 * radius  # generous: what is counted is decided by the distance alone
    rows = min(256, max(1, BLOCK_NUMBERS // (8 * max(len(database), 1))))
    for start in range(0, len(queries), rows):
        block = order[start : start + rows]
        x = queries[block, 0]
        low, high = np.searchsorted(database[:, 0], [x[0] - strip, x[-1] + strip])
        squared = _squared(queries[block, None], database[None, low:high])
        count[block] = (squared <= radius**2).sum(axis=1)
    return count


def _squared(a_xy: np.ndarray, b_xy: np.ndarray) -> np.ndarray:
    """(..., 2), (..., 2) → (...) squared metres; one formula, so that counts and hits agree at the radius."""
    return (a_xy[..., 0] - b_xy[..., 0]) ** 2 + (a_xy[..., 1] - b_xy[..., 1]) ** 2


def _squared_distance(queries: np.ndarray, database: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """(Q, 2), (M, 2), (Q, K) → (Q, K) squared metres; inf where `candidate` is −1."""
    if not len(database):
        return np.full(candidate.shape, np.inf)
    squared = _squared(queries[:, None], database[np.maximum(candidate, 0)])
    return np.where(candidate >= 0, squared, np.inf)


# --- Search -------------------------------------------------------------------------------------------------


def retrieve(
    task: Task, queries: np.ndarray, database: np.ndarray, depth: int, kept: int, without_own: bool = False
) -> Answers:
    """Searches the descriptors `database` (M, D) with `queries` (Q, D), both in the order of the task.

    The first right entry is looked for among the `depth` nearest, of which `kept` are given back.
    `without_own` leaves each query's own frame out.
    """
    rank = np.full(len(queries), NEVER, np.int64)
    candidate = np.full((len(queries), kept), -1)
    distance = np.full((len(queries), kept), np.inf, np.float32)
    excluded = task.own if without_own else np.full(len(queries), -1)
    for block, index, apart in nearest(queries, database, max(depth, kept), excluded):
        squared = _squared_distance(task.query_xy[block], task.database_xy, index)
        hit = squared[:, :depth] <= task.radius**2
        rank[block] = np.where(hit.any(axis=1), hit.argmax(axis=1), NEVER)
        width = min(kept, index.shape[1])
        candidate[block, :width] = index[:, :width]
        distance[block, :width] = apart[:, :width]
    return Answers(rank, candidate, distance, *task.gallery(without_own))


def nearest(
    queries: np.ndarray, database: np.ndarray, count: int, excluded: np.ndarray
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Blocks (which queries, (b, K) places in the database, (b, K) Euclidean distances), nearest first.

    K is `count` or the size of the database. `excluded` (Q,) is the place of an entry that the query must not
    find, −1 for none; what is not there has place −1 and distance inf.
    """
    if not len(database) or not len(queries):
        return
    count = min(count, len(database))
    taken = min(count + SLACK, len(database))
    # Moved to a common centre in float64: what all descriptors share would cost the digits that tell them
    # apart.
    centre = database.mean(axis=0, dtype=np.float64)
    moved = jax.device_put((database - centre).astype(np.float32))
    width = max(len(database), taken * database.shape[1])
    rows = min(len(queries), max(1, BLOCK_NUMBERS // width))
    for start in range(0, len(queries), rows):
        block = slice(start, min(start + rows, len(queries)))
        here = (queries[block] - centre).astype(np.float32)
        short = rows - len(here)  # the last block is filled up: one shape, one compilation
        asking = np.pad(here, ((0, short), (0, 0)))
        left_out = np.pad(excluded[block].astype(np.int32), (0, short), constant_values=-1)
        squared, index = jax.device_get(_nearest(asking, moved, left_out, count, taken))
        used = slice(0, rows - short)
        reached = np.isfinite(squared[used])
        yield block, np.where(reached, index[used], -1), np.sqrt(squared[used])


@functools.partial(jax.jit, static_argnames=("count", "taken"))
def _nearest(
    queries: jax.Array, database: jax.Array, excluded: jax.Array, count: int, taken: int
) -> tuple[jax.Array, jax.Array]:
    """(b, D), (M, D), (b,) → (b, count) squared distances and places, by distance and then by place."""
    product = jnp.matmul(queries, database.T, precision=jax.lax.Precision.HIGHEST)
    nearness = 2.0 * product - jnp.sum(database**2, axis=1)
    nearness = jnp.where(jnp.arange(len(database)) == excluded[:, None], -jnp.inf, nearness)
    _, place = jax.lax.top_k(nearness, taken)
    squared = jnp.sum((queries[:, None] - database[place]) ** 2, axis=-1)
    squared = jnp.where(place == excluded[:, None], jnp.inf, squared)
    squared, place = jax.lax.sort((squared, place.astype(jnp.int32)), num_keys=2)
    return squared[:, :count], place[:, :count]


# --- Figures ------------------------------------------------------------------------------------------------


def one_percent(entries: int) -> int:
    """K of R@1 %: max(1, round(0.01·entries)), halves to even as Python rounds; 15 of 1501."""
    return max(1, round(0.01 * entries))


def recall(rank: np.ndarray, k: int | np.ndarray) -> float | None:
    """(Q,) ranks and K, one or one a query → the share of queries with a right entry among the first K; None
    without queries."""
    return float(np.mean(rank < k)) if len(rank) else None


def chance(right: np.ndarray, gallery: np.ndarray, k: int | np.ndarray) -> float | None:
    """What R@K is expected to be when entries come in random order, exactly: the mean over queries of
    1 − C(N − p, K) / C(N, K), with p `right` (Q,) of N `gallery` (Q,) entries. At K = 1 it is the mean share
    of right entries."""
    if not len(right):
        return None
    k = np.broadcast_to(k, right.shape)
    missed = np.ones(len(right))
    for drawn in range(int(k.max())):
        left = gallery - drawn
        share = np.divide(left - right, left, out=np.ones(len(right)), where=left > 0)
        # An empty rest gives no further chance; fewer wrong entries than draws make a hit certain.
        missed *= np.where(drawn < k, np.clip(share, 0.0, 1.0), 1.0)
    return float(np.mean(1.0 - missed))


def stretches(sequence: Sequence[str] | np.ndarray, length: int) -> np.ndarray:
    """(Q,) sequence of every query, in the order driven → (Q,) number of the stretch of `length` successive
    queries of one sequence that it belongs to."""
    _, number = np.unique(np.asarray(sequence), return_inverse=True)
    within = np.zeros(len(number), np.int64)
    for value in np.unique(number):
        here = number == value
        within[here] = np.arange(here.sum()) // length
    _, found = np.unique(np.stack([number, within]), axis=1, return_inverse=True)
    return found.ravel()


def recall_interval(hits: np.ndarray, groups: np.ndarray, seed: int) -> list[float] | None:
    """95 % percentile-bootstrap interval of the share of `hits` (Q,), resampling whole `groups` (Q,).

    Neighbouring queries look alike and share their right entries; resampling stretches of a drive instead of
    queries keeps an interval honest. None where there are fewer than two groups.
    """
    size = np.bincount(groups)
    if len(size) < 2:
        return None
    reached = np.bincount(groups, weights=hits)
    draws = np.random.default_rng(seed).multinomial(
        len(size), np.full(len(size), 1 / len(size)), size=BOOTSTRAP_RESAMPLES
    )
    shares = (draws @ reached) / (draws @ size)
    return [float(bound) for bound in np.percentile(shares, [2.5, 97.5])]


def joined(parts: Mapping[str, Answers]) -> Answers:
    """Answers of several tasks as one, in their order; candidates stay places in their own databases."""
    names = [field.name for field in dataclasses.fields(Answers)]
    return Answers(*(np.concatenate([getattr(part, name) for part in parts.values()]) for name in names))
