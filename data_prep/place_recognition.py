"""NUSC-PR: which frames are database, queries, positives and negatives, from places, scenes and dates alone.

Two schemes, Algorithms 1 and 2 of the paper (Explicit Interaction for Fusion-Based Place Recognition). The
settings of their rules tell its published code from its text; docs/nusc_pr.md lists where the two differ.
Frames are in the order of the dataset's file: scene by scene, sample by sample. Everything is a function of
the frames, a rule and its seed.

Where the published code leaves chance to the machine (the order of a set, NumPy without a seed), ours is
fixed: sets are sorted, and every draw has a generator of its own, seeded by the rule's seed and the name of
the location or scene.
"""

import dataclasses
import random
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.spatial import cKDTree

from data_prep.errors import InputError

DAY = 86_400_000_000  # µs
OFFICIAL_LOCATIONS = {  # in the order in which the published code draws; abbreviation, days γ of the code
    "boston-seaport": ("bs", 105.0),
    "singapore-onenorth": ("son", 50.0),
    "singapore-queenstown": ("sq", 105.0),
    "singapore-hollandvillage": ("shv", 50.0),
}
PAPER_GAMMA = 105.0  # days, everywhere


@dataclasses.dataclass(frozen=True)
class Frames:
    """All keyframes of a dataset in file order, as arrays over them."""

    tokens: np.ndarray  # (N,) str
    locations: np.ndarray  # (N,) str
    scenes: np.ndarray  # (N,) int64 number of the scene in file order
    scene_names: tuple[str, ...]
    xyz: np.ndarray  # (N, 3) float64 of the ego in the location's map, m
    time: np.ndarray  # (N,) int64 µs

    def location_names(self) -> list[str]:
        """Every location once: the four of NUSC-PR in its order, then others as the file has them."""
        there = list(dict.fromkeys(self.locations.tolist()))
        known = [name for name in OFFICIAL_LOCATIONS if name in there]
        return known + [name for name in there if name not in OFFICIAL_LOCATIONS]


@dataclasses.dataclass(frozen=True)
class SupervisedRule:
    """Algorithm 1. Distances in metres on the ground plane, dates in days since a location's first frame."""

    interval: float = 1.0  # δ between frames of the database
    admits_equal: bool = False  # whether a frame exactly δ from the database joins it: the paper's ≥
    gamma: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {name: days for name, (_, days) in OFFICIAL_LOCATIONS.items()}
    )
    other_gamma: float = PAPER_GAMMA  # of locations that `gamma` does not name
    positive_radius: float = 9.0
    negative_radius: float = 18.0
    positives: int = 2
    negatives: int = 4
    val_ratio: float = 0.25
    seed: int = 1


@dataclasses.dataclass(frozen=True)
class SelfSupervisedRule:
    """Algorithm 2. Scenes are old (training, database) or new (test) by date, or by chance."""

    by_date: bool = False
    gamma: float = PAPER_GAMMA  # days since the first scene of the whole dataset
    test_scenes: int | None = None  # drawn at random; None: 150 of 850, and in proportion
    queue_negatives: bool = False  # the paper's set of negatives: see `_queued_negatives`
    positive_radius: float = 9.0
    negative_gap: int = 6  # σ, frames
    positives: int = 2
    negatives: int = 4
    seed: int = 1


@dataclasses.dataclass(frozen=True)
class Division:
    """One location under one scheme: numbers of frames, (N,) int64, and of training tuples a row a query."""

    database: np.ndarray
    train_query: np.ndarray
    val_query: np.ndarray
    test_query: np.ndarray
    train_positives: np.ndarray  # (Q, positives)
    train_negatives: np.ndarray  # (Q, negatives)

    def arrays(self) -> dict[str, np.ndarray]:
        """By the names that splits have after the location's."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def supervised(frames: Frames, rule: SupervisedRule) -> dict[str, Division]:
    """Algorithm 1 → every location's division.

    The database takes, in file order, every frame farther than δ from all frames that it holds. Of the
    others, those younger than γ days are training queries, the rest a pool of which a share validates.
    """
    draw = random.Random(rule.seed)  # one for all locations, as the published code has it
    divisions = {}
    for location in frames.location_names():
        own = np.flatnonzero(frames.locations == location)
        # The published code compares float32 positions.
        xy = frames.xyz[own, :2].astype(np.float32).astype(np.float64)
        in_database = _spread(xy, rule.interval, rule.admits_equal)
        days = rule.gamma.get(location, rule.other_gamma)
        young = (frames.time[own] - frames.time[own].min()) < days * DAY
        train = np.flatnonzero(~in_database & young)
        pool = np.flatnonzero(~in_database & ~young).tolist()
        val = np.array(sorted(draw.sample(pool, int(len(pool) * rule.val_ratio))), np.int64)
        test = np.setdiff1d(np.array(pool, np.int64), val)
        database = np.flatnonzero(in_database)
        positives, negatives = _tuples_by_distance(frames, location, xy[database], xy[train], rule)
        divisions[location] = Division(
            own[database], own[train], own[val], own[test], own[database[positives]], own[database[negatives]]
        )
    return divisions


def _spread(xy: np.ndarray, interval: float, admits_equal: bool) -> np.ndarray:
    """(N, 2) → (N,) bool: which points are taken when every one joins that is far enough from those before.

    Taken points are kept in square cells of the interval, so that a new one meets its neighbours alone.
    """
    taken = np.zeros(len(xy), bool)
    cells: dict[tuple[int, int], list[int]] = {}
    for number, (x, y) in enumerate(xy.tolist()):
        column, row = int(x // interval), int(y // interval)
        near = (
            member
            for i in (column - 1, column, column + 1)
            for j in (row - 1, row, row + 1)
            for member in cells.get((i, j), ())
        )
        distance = min((float(np.hypot(*(xy[member] - (x, y)))) for member in near), default=np.inf)
        if distance > interval or (admits_equal and distance == interval):
            taken[number] = True
            cells.setdefault((column, row), []).append(number)
    return taken


def _tuples_by_distance(
    frames: Frames, location: str, database: np.ndarray, queries: np.ndarray, rule: SupervisedRule
) -> tuple[np.ndarray, np.ndarray]:
    """(D, 2), (Q, 2) positions → (Q, positives), (Q, negatives) int64 places in the database.

    Drawn with replacement, as the published code does, from what lies within ρ_pos and beyond ρ_neg.
    """
    shapes = (len(queries), rule.positives), (len(queries), rule.negatives)
    positives, negatives = (np.zeros(shape, np.int64) for shape in shapes)
    if not len(queries):
        return positives, negatives
    rng = np.random.default_rng([rule.seed, zlib.crc32(location.encode())])
    tree, everything = cKDTree(database), np.arange(len(database))
    near = tree.query_ball_point(queries, rule.positive_radius, return_sorted=True)
    not_far = tree.query_ball_point(queries, rule.negative_radius, return_sorted=True)
    for number, (right, close) in enumerate(zip(near, not_far, strict=True)):
        wrong = np.setdiff1d(everything, close, assume_unique=True)
        if len(database) < rule.negatives or not len(wrong):
            raise InputError(
                f"{location}: expected {rule.negatives} negatives for each training query, of database "
                f"frames more than {rule.negative_radius:g} m away; found {len(wrong)} of {len(database)} "
                "frames. Convert more drives of this location, leave it out with --locations, or ask for "
                "fewer with --negatives."
            )
        positives[number] = rng.choice(right, rule.positives)
        negatives[number] = rng.choice(wrong, rule.negatives)
    return positives, negatives


def self_supervised(frames: Frames, rule: SelfSupervisedRule) -> dict[str, Division]:
    """Algorithm 2 → every location's division.

    Positives are the frames just before the query, negatives frames of its own scene long before it. The
    database is all that old scenes saw, and queries are all that new scenes saw: no frame is left out.
    """
    first = np.array([np.flatnonzero(frames.scenes == n)[0] for n in range(len(frames.scene_names))])
    old = _old_scenes(frames, frames.time[first], rule)
    negatives_of = _queued_negatives if rule.queue_negatives else _early_negatives
    empty = np.zeros(0, np.int64)
    divisions = {}
    for location in frames.location_names():
        queries, positives, negatives = [], [], []
        for scene in np.flatnonzero(old & (frames.locations[first] == location)):
            own = np.flatnonzero(frames.scenes == scene)
            rng = random.Random(f"{rule.seed} {frames.scene_names[scene]}")
            start = rule.positives + rule.negatives + rule.negative_gap
            for j in range(start, len(own)):
                queries.append(own[j])
                positives.append(own[[j - back for back in range(1, rule.positives + 1)]])
                negatives.append(own[negatives_of(j, start, rule, rng)])
        here = frames.locations == location
        divisions[location] = Division(
            np.flatnonzero(here & old[frames.scenes]),
            np.array(queries, np.int64),
            empty,
            np.flatnonzero(here & ~old[frames.scenes]),
            np.array(positives, np.int64).reshape(-1, rule.positives),
            np.array(negatives, np.int64).reshape(-1, rule.negatives),
        )
    return divisions


def _old_scenes(frames: Frames, starts: np.ndarray, rule: SelfSupervisedRule) -> np.ndarray:
    """(S,) bool, which scenes train; `starts` (S,) are their first timestamps."""
    if rule.by_date:
        return starts - starts.min() < rule.gamma * DAY
    count = rule.test_scenes
    if count is None:
        count = min(max(1, round(len(starts) * 150 / 850)), len(starts) - 1)
    elif not 0 < count < len(starts):
        raise InputError(
            f"self-supervised scheme: expected from 1 to {len(starts) - 1} test scenes of {len(starts)}, "
            f"found {count}. Change --test-scenes, or divide by date with --by-date."
        )
    old = np.ones(len(starts), bool)
    old[random.Random(rule.seed).sample(range(len(starts)), count)] = False
    return old


def _early_negatives(j: int, start: int, rule: SelfSupervisedRule, rng: random.Random) -> list[int]:
    """The published code: without repeats, of the frames up to σ before the positives, ascending."""
    return sorted(rng.sample(range(j - rule.positives - rule.negative_gap), rule.negatives))


def _queued_negatives(j: int, start: int, rule: SelfSupervisedRule, rng: random.Random) -> list[int]:
    """The paper's lines 15 to 19: a list of the first frames of the scene, the first query's positives among
    them, that gains after each query the frame σ before it, although that may be in it already."""
    waiting = [*range(start), *(k - rule.negative_gap for k in range(start, j))]
    return rng.sample(waiting, rule.negatives)


# --- Ground truth, and what it says about a division


def ground_truth(frames: Frames, division: Division, radius: float, dimensions: int) -> list[np.ndarray]:
    """For each test query the database frames within `radius` (m, inclusive), nearest first.

    `dimensions`: 2 on the ground plane as in Algorithm 1, 3 in space as in the code of Algorithm 2.
    """
    return right_entries(frames, division.test_query, division.database, radius, dimensions)


def right_entries(
    frames: Frames, queries: np.ndarray, database: np.ndarray, radius: float, dimensions: int
) -> list[np.ndarray]:
    """As `ground_truth`, of any (Q,) queries and (D,) database, numbers of frames."""
    if not len(queries) or not len(database):
        return [np.zeros(0, np.int64) for _ in queries]
    places = frames.xyz[:, :dimensions].astype(np.float32).astype(np.float64)
    found = cKDTree(places[database]).query_ball_point(places[queries], radius, return_sorted=True)
    result = []
    for query, near in zip(queries, found, strict=True):
        entries = database[np.array(near, np.int64)]
        distance = np.linalg.norm(places[entries] - places[query], axis=1)
        result.append(entries[np.argsort(distance, kind="stable")])
    return result


def describe_truth(
    frames: Frames, division: Division, radius: float, dimensions: int, gaps: Sequence[float]
) -> dict[str, object]:
    """How many test queries have a right entry, how many the nearest of them in their own scene, and how many
    keep one when entries of their own scene, or taken within so many days (`gaps`), do not count."""
    truth = ground_truth(frames, division, radius, dimensions)
    queries = division.test_query
    pairs = list(zip(queries, truth, strict=True))
    own_scene = [e.size > 0 and frames.scenes[e[0]] == frames.scenes[q] for q, e in pairs]
    other_scene = [bool((frames.scenes[e] != frames.scenes[q]).any()) for q, e in pairs]
    apart = {
        f"{gap:g}": sum(bool((np.abs(frames.time[e] - frames.time[q]) >= gap * DAY).any()) for q, e in pairs)
        for gap in gaps
    }
    return {
        "test_queries": len(queries),
        "with_right_entry": sum(e.size > 0 for e in truth),
        "right_entries_per_query": round(float(np.mean([e.size for e in truth])), 3) if truth else 0.0,
        "nearest_right_entry_in_own_scene": int(np.sum(own_scene)),
        "with_right_entry_exclude_same_scene": int(np.sum(other_scene)),
        "with_right_entry_min_gap_days": apart,
    }


def lacking(location: str, division: Division) -> list[str]:
    """What makes a division useless, in words; nothing if it can be trained on and tested with."""
    reasons = []
    if not (len(division.train_query) or len(division.val_query) or len(division.test_query)):
        reasons.append(
            f"{location}: expected places that are visited again, found not one query: all "
            f"{len(division.database)} frames are in the database"
        )
        return reasons
    if not len(division.test_query):
        reasons.append(f"{location}: expected test queries, found none: no frame is old enough for its γ")
    if not len(division.train_query):
        reasons.append(f"{location}: expected training queries, found none: no frame is younger than its γ")
    if not len(division.database):
        reasons.append(f"{location}: expected a database, found no frame in it")
    return reasons
