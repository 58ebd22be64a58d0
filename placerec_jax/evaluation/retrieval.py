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
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from placerec_jax.evaluation.inference import spread

# Numbers in the largest array of a block: 64 Mi float32 are 256 MiB, whatever the size of the database.
BLOCK_NUMBERS = 2**26
# Entries beyond those asked for that are compared once more, so that rounding of the product loses none.
SLACK = 16
BOOTSTRAP_RESAMPLES = 1000
NEVER = np.iinfo(np.int32).max  # the rank of a right entry that is not among those retrieved

# Which entries a query must not retrieve: places of queries and of entries in a task, broadcast against each
# other → bool.
Barred = Callable[[np.ndarray, np.ndarray], np.ndarray]
# Blocks of what queries retrieved: (which queries, (b, K) places in the database, (b, K) distances), nearest
# first; what is not there has place −1 and distance inf.
Neighbours = Iterator[tuple[slice, np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Task:
    """The queries and the database of one sequence.

    `query` (Q,), `database` (M,): row numbers, ascending; `query_xy` (Q, 2), `database_xy` (M, 2): metres;
    `own` (Q,): the place in the database of the query's own frame, −1 where that is not in it; `pair_query`,
    `pair_entry` (P,): places of all queries and entries that are right for each other, by query, own frames
    included; `radius`: metres, within which they are.
    """

    query: np.ndarray
    database: np.ndarray
    query_xy: np.ndarray
    database_xy: np.ndarray
    own: np.ndarray
    pair_query: np.ndarray
    pair_entry: np.ndarray
    radius: float

    @property
    def right(self) -> np.ndarray:
        """(Q,) how many entries are right, the own frame included."""
        return np.bincount(self.pair_query, minlength=len(self.query))

    def apart(self, candidate: np.ndarray) -> np.ndarray:
        """(Q, K) places in the database, −1 for none → (Q, K) metres to each query; inf for none."""
        return np.sqrt(_squared_distance(self.query_xy, self.database_xy, candidate))

    def own_frames(self) -> Barred | None:
        """Bars each query's own frame; None where the database has none of them."""
        return (lambda query, entry: self.own[query] == entry) if (self.own >= 0).any() else None

    def blocks(self) -> Iterator[slice]:
        """Stretches of queries whose pairs with the whole database are no more than `BLOCK_NUMBERS`."""
        rows = max(1, BLOCK_NUMBERS // max(len(self.database), 1))
        for start in range(0, len(self.query), rows):
            yield slice(start, min(start + rows, len(self.query)))

    def gallery(self, barred: Barred | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(Q,) right entries and (Q,) entries that a query may retrieve."""
        size = np.full(len(self.query), len(self.database))
        if barred is None:
            return self.right, size
        for block in self.blocks():
            size[block] -= mask_of(barred, block, len(self.database)).sum(axis=1)
        kept = ~barred(self.pair_query, self.pair_entry)
        return np.bincount(self.pair_query[kept], minlength=len(self.query)), size


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
        pairs = pairs_within(places[query], places[database], radius)
        found[str(name)] = Task(query, database, places[query], places[database], own, *pairs, float(radius))
    return found


def pairs_within(queries: np.ndarray, database: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """(Q, 2), (M, 2) metres → (P,) queries and (P,) entries at most `radius` apart, the boundary included, by
    query and then by entry.

    Both are taken in the order of x, so that a block of neighbouring queries meets only a strip.
    """
    order = np.argsort(queries[:, 0], kind="stable")
    entries = np.argsort(database[:, 0], kind="stable")
    strip = 1.001 * radius  # generous: what is right is decided by the distance alone
    rows = min(256, max(1, BLOCK_NUMBERS // (8 * max(len(database), 1))))
    found = [np.zeros((2, 0), np.int64)]
    for start in range(0, len(queries), rows):
        block = order[start : start + rows]
        x = queries[block, 0]
        low, high = np.searchsorted(database[entries, 0], [x[0] - strip, x[-1] + strip])
        squared = _squared(queries[block, None], database[None, entries[low:high]])
        query, entry = np.nonzero(squared <= radius**2)
        found.append(np.stack([block[query], entries[low:high][entry]]))
    query, entry = np.concatenate(found, axis=1)
    by_query = np.lexsort((entry, query))
    return query[by_query], entry[by_query]


def _squared(a_xy: np.ndarray, b_xy: np.ndarray) -> np.ndarray:
    """(..., 2), (..., 2) → (...) squared metres; one formula, so that counts and hits agree at the radius."""
    return (a_xy[..., 0] - b_xy[..., 0]) ** 2 + (a_xy[..., 1] - b_xy[..., 1]) ** 2


def _squared_distance(queries: np.ndarray, database: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """(Q, 2), (M, 2), (Q, K) → (Q, K) squared metres; inf where `candidate` is −1."""
    if not len(database):
        return np.full(candidate.shape, np.inf)
    squared = _squared(queries[:, None], database[np.maximum(candidate, 0)])
    return np.where(candidate >= 0, squared, np.inf)


def thinned(is_query: np.ndarray, limit: int | None) -> np.ndarray:
    """(N,) which frames ask → (≤ limit,) ascending numbers of those that training's evaluation looks at.

    Of more than `limit` a quarter are queries and the rest database, each evenly spread, so that a place
    keeps right entries although the gallery is thinner: its recall compares checkpoints, and is not the
    report's.
    """
    if limit is None or limit >= len(is_query):
        return np.arange(len(is_query))
    queries, others = np.flatnonzero(is_query), np.flatnonzero(~is_query)
    asked = min(len(queries), max(limit // 4, limit - len(others)))
    chosen = [queries[spread(len(queries), asked)], others[spread(len(others), limit - asked)]]
    return np.sort(np.concatenate(chosen))


# --- Search -------------------------------------------------------------------------------------------------


def retrieve(
    task: Task,
    queries: np.ndarray,
    database: np.ndarray,
    depth: int,
    kept: int,
    barred: Barred | None = None,
) -> Answers:
    """Searches the descriptors `database` (M, D) with `queries` (Q, D), both in the order of the task.

    The first right entry is looked for among the `depth` nearest, of which `kept` are given back. Barred
    entries are neither retrieved nor right.
    """
    return answers(task, nearest(queries, database, max(depth, kept), barred), depth, kept, barred)


def answers(
    task: Task, neighbours: Neighbours, depth: int, kept: int, barred: Barred | None = None
) -> Answers:
    """What was retrieved, however it was searched for; `neighbours` are those that are not barred."""
    rank = np.full(len(task.query), NEVER, np.int64)
    candidate = np.full((len(task.query), kept), -1)
    distance = np.full((len(task.query), kept), np.inf, np.float32)
    for block, index, apart in neighbours:
        squared = _squared_distance(task.query_xy[block], task.database_xy, index)
        hit = squared[:, :depth] <= task.radius**2
        rank[block] = np.where(hit.any(axis=1), hit.argmax(axis=1), NEVER)
        width = min(kept, index.shape[1])
        candidate[block, :width] = index[:, :width]
        distance[block, :width] = apart[:, :width]
    return Answers(rank, candidate, distance, *task.gallery(barred))


def mask_of(barred: Barred, block: slice, entries: int) -> np.ndarray:
    """(b, entries) bool: what a block of queries must not retrieve."""
    query = np.arange(block.start, block.stop)
    return np.broadcast_to(barred(query[:, None], np.arange(entries)[None]), (len(query), entries))


def nearest(
    queries: np.ndarray, database: np.ndarray, count: int, barred: Barred | None = None
) -> Neighbours:
    """The `count` nearest entries, or the whole database if it has fewer, by Euclidean distance."""
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
        mask = None
        if barred is not None:
            mask = np.pad(mask_of(barred, block, len(database)), ((0, short), (0, 0)))
        squared, index = jax.device_get(_nearest(asking, moved, mask, count, taken))
        used = slice(0, rows - short)
        reached = np.isfinite(squared[used])
        yield block, np.where(reached, index[used], -1), np.sqrt(squared[used])


def nearest_by(distances: Callable[[slice], np.ndarray], blocks: Iterator[slice], count: int) -> Neighbours:
    """The same of any distance: `distances(block)` (b, M), inf where an entry must not be retrieved."""
    for block in blocks:
        apart = distances(block)
        order = np.argsort(apart, axis=1, kind="stable")[:, :count]
        apart = np.take_along_axis(apart, order, axis=1)
        yield block, np.where(np.isfinite(apart), order, -1), apart


@functools.partial(jax.jit, static_argnames=("count", "taken"))
def _nearest(
    queries: jax.Array, database: jax.Array, barred: jax.Array | None, count: int, taken: int
) -> tuple[jax.Array, jax.Array]:
    """(b, D), (M, D), (b, M) → (b, count) squared distances and places, by distance and then by place."""
    product = jnp.matmul(queries, database.T, precision=jax.lax.Precision.HIGHEST)
    nearness = 2.0 * product - jnp.sum(database**2, axis=1)
    if barred is not None:
        nearness = jnp.where(barred, -jnp.inf, nearness)
    _, place = jax.lax.top_k(nearness, taken)
    squared = jnp.sum((queries[:, None] - database[place]) ** 2, axis=-1)
    if barred is not None:
        squared = jnp.where(jnp.take_along_axis(barred, place, axis=1), jnp.inf, squared)
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


def rows_of(
    tasks: Mapping[str, Task], answers_of: Mapping[str, Answers], count: int
) -> dict[str, np.ndarray]:
    """What the queries among `count` rows retrieved, for maps, pictures and tables of queries.

    `retrieved/asked` (N,) bool, `retrieved/rank` (N,), `retrieved/right`, `retrieved/gallery` (N,), and of
    the nearest kept `retrieved/candidate` (N, S) row numbers, −1 for none, `retrieved/distance` (N, S) of
    descriptors and `retrieved/apart` (N, S) metres.
    """
    kept = max((part.candidate.shape[1] for part in answers_of.values()), default=0)
    found = {
        "asked": np.zeros(count, bool),
        "rank": np.full(count, NEVER, np.int64),
        "right": np.zeros(count, np.int64),
        "gallery": np.zeros(count, np.int64),
        "candidate": np.full((count, kept), -1),
        "distance": np.full((count, kept), np.inf, np.float32),
        "apart": np.full((count, kept), np.inf),
    }
    for name, part in answers_of.items():
        task = tasks[name]
        found["asked"][task.query] = True
        for key in ("rank", "right", "gallery", "distance"):
            found[key][task.query] = getattr(part, key)
        found["apart"][task.query] = task.apart(part.candidate)
        if len(task.database):
            rows = task.database[np.maximum(part.candidate, 0)]
            found["candidate"][task.query] = np.where(part.candidate >= 0, rows, -1)
    return {f"retrieved/{key}": values for key, values in found.items()}


def joined(parts: Mapping[str, Answers]) -> Answers:
    """Answers of several tasks as one, in their order; candidates stay places in their own databases."""
    names = [field.name for field in dataclasses.fields(Answers)]
    return Answers(*(np.concatenate([getattr(part, name) for part in parts.values()]) for name in names))
