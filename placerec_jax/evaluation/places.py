"""The evaluator of place recognition with keyframes: AR@K of queries that look for their place in a database.

A row is a keyframe: `descriptor` (N, D), `location`, `scene` (N,) names, `timestamp` (N,) µs, `global_T_ego`
(N, 4, 4) in the map of its location and `is_query` (N,). Queries search the database of their own location;
an entry at most `radius` metres away on the ground plane is right. AR@K (percent in reports, a share here) is
the share of queries with a right entry among the K nearest by descriptor. Queries without any right entry are
dropped, as LCPR and AutoPlace do (`cfg.eval.drop_empty`); the figure with them as misses stands beside it.

The database of NUSC-PR spans all dates, so that a query may find frames of its own drive. Every figure is
therefore given under several conditions: as the protocol has it (`plain`), without the entries of the
query's own scene (`exclude_same_scene`), and without those taken less than `min_gap_days` from it. What is
left out is neither retrieved nor right. Under each, queries are told apart by the best that they could find:
a frame in their lane, only frames in another lane, or only frames that head the other way.

Chance stands beside every figure: what a random order of the same entries is expected to score. Training-free
references (`cfg.eval.references`) are searched and scored by the same code.

Hooks are those of `evaluation/loop_closure.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import ml_collections
import numpy as np

from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.data.records import as_text
from placerec_jax.errors import ConfigError, UserError
from placerec_jax.evaluation import reference_descriptors, retrieval, targets
from placerec_jax.evaluation import references as references_folder
from placerec_jax.evaluation.inference import spread
from placerec_jax.evaluation.loop_retrieval import KINDS, revisit_kinds
from placerec_jax.evaluation.retrieval import Answers, Barred, Task

if TYPE_CHECKING:
    from placerec_jax.evaluation.report import Section, Table

# Outputs of `predict` that are kept for a whole split, however large.
SCORED = ("descriptor",)
KEEP = SCORED

MODEL = "model"
ALL = "all"  # the locations together
PLAIN, OTHER_SCENES, OTHER_DATES = "plain", "exclude_same_scene", "min_gap_days"
MOVED = "other_lane_or_reverse"  # queries of those two kinds together
CURVE_DEPTH = 25  # recall curves go at least as far
SHOWN = 2  # retrieved entries that are kept of a query: for the picture, and for who comes second
DAY = 86_400_000_000  # µs

# What tables of variants show (`benchmarks/ablation_figures.py`).
ABLATION_TABLES = {
    "as the protocol has it": (
        *((f"AR@{k}", f"recall_at_{k}", 3) for k in (1, 5, 10, 20)),
        ("chance AR@1", "chance_recall_at_1", 3),
    ),
    "without the query's own scene": (
        *((f"AR@{k}", f"exclude_same_scene_recall_at_{k}", 3) for k in (1, 5, 10, 20)),
        ("AR@1, another lane or direction", f"exclude_same_scene_{MOVED}_recall_at_1", 3),
        ("chance AR@1", "chance_exclude_same_scene_recall_at_1", 3),
    ),
    "at another date": (
        *((f"AR@{k}", f"min_gap_days_recall_at_{k}", 3) for k in (1, 5, 10, 20)),
        ("AR@1, another lane or direction", f"min_gap_days_{MOVED}_recall_at_1", 3),
        ("chance AR@1", "chance_min_gap_days_recall_at_1", 3),
    ),
}


class RowsError(UserError, ValueError):
    """Predictions that cannot be scored."""


class Rule(NamedTuple):
    """`cfg.eval`, checked."""

    radius: float
    k: tuple[int, ...]
    locations: tuple[str, ...]  # () for all there are
    min_gap_days: float  # 0: no such condition
    lane_offset: float
    drop_empty: bool
    seed: int

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions that are scored."""
        return (PLAIN, OTHER_SCENES, *((OTHER_DATES,) if self.min_gap_days else ()))


def rule_of(cfg: ml_collections.ConfigDict) -> Rule:
    """The rule of `cfg.eval`; ConfigError names what is not possible."""
    rule = cfg.eval
    k = tuple(int(value) for value in rule.k)
    if not k or min(k) < 1 or list(k) != sorted(set(k)):
        raise ConfigError(f"config.eval.k is {k}; expected ascending numbers from 1 on, such as (1, 5, 20)")
    radius, gap = float(rule.radius), float(rule.get("min_gap_days", 1.0))
    lane = float(rule.get("lane_offset", 1.5))
    if not 0 < radius < np.inf:
        raise ConfigError(f"config.eval.radius is {radius}; expected metres above 0")
    if not 0 <= gap < np.inf:
        raise ConfigError(f"config.eval.min_gap_days is {gap}; expected days, or 0 for no such figures")
    if not lane > 0:
        raise ConfigError(f"config.eval.lane_offset is {lane}; expected metres above 0")
    locations = rule.get("locations", ())
    locations = (locations,) if isinstance(locations, str) else tuple(locations)
    return Rule(
        radius,
        k,
        tuple(name for name in locations if name),
        gap,
        lane,
        bool(rule.get("drop_empty", True)),
        int(rule.seed),
    )


# --- What is scored -----------------------------------------------------------------------------------------


def check_rows(rows: Mapping[str, np.ndarray]) -> None:
    """Raises RowsError naming the array when rows cannot be scored."""
    for name in ("descriptor", "location", "scene", "timestamp", "global_T_ego", "is_query"):
        if name not in rows:
            raise RowsError(f"the evaluator of places needs {name!r} a frame; found {sorted(rows)}")
    count = len(rows["is_query"])
    if not count:
        raise RowsError("there is nothing to score: 0 frames; is the split empty?")
    for name in ("descriptor", "global_T_ego"):
        values = np.asarray(rows[name])
        if len(values) != count or values.ndim < 2:
            raise RowsError(f"{name}: expected shape ({count}, ...), found {values.shape}")
        bad = ~np.isfinite(values).reshape(count, -1).all(axis=1)
        if bad.any():
            raise RowsError(
                f"{name}: {bad.sum()} of {count} frames are not finite, the first is row "
                f"{int(np.argmax(bad))} of the split; the model has diverged, or the checkpoint or the data "
                "is damaged"
            )


def tasks_of(rule: Rule, rows: Mapping[str, np.ndarray]) -> dict[str, Task]:
    """{location: Task} in the order of the config, else of the rows.

    Raises ConfigError for a location that the rows lack, RowsError where nothing asks or nothing answers.
    """
    location = np.asarray(rows["location"])
    known = list(dict.fromkeys(location.tolist()))
    unknown = [name for name in rule.locations if name not in known]
    if unknown:
        raise ConfigError(
            f"config.eval.locations: no frame of the split was taken in {unknown[0]!r}; there are {known}"
        )
    chosen = rule.locations or tuple(known)
    is_query = np.asarray(rows["is_query"], bool)
    # The benchmark's ground truth is of float32 positions.
    xy = np.asarray(rows["global_T_ego"], np.float64)[:, :2, 3].astype(np.float32).astype(np.float64)
    found = retrieval.tasks(location, xy, is_query, rule.radius)
    tasks = {name: found[name] for name in chosen if name in found}
    if not tasks:
        raise RowsError(
            f"none of the {int(np.isin(location, chosen).sum())} frames in {', '.join(chosen)} is a query: "
            "the split has no revisits, or config.data.test_split names the database alone; expected one "
            "such as database+test, and at preparation a date threshold that leaves queries"
        )
    if not any(len(task.database) for task in tasks.values()):
        raise RowsError(
            f"all frames in {', '.join(tasks)} are queries, so there is nothing to search: expected a split "
            "with the database, too, such as database+test"
        )
    if not any(len(task.pair_query) for task in tasks.values()):
        queries, entries = (
            sum(len(getattr(task, side)) for task in tasks.values()) for side in ("query", "database")
        )
        raise RowsError(
            f"none of the {queries} queries in {', '.join(tasks)} has one of the {entries} database entries "
            f"within {rule.radius:g} m: these places are not visited again, so recall is not defined"
        )
    return tasks


def barred_of(rule: Rule, rows: Mapping[str, np.ndarray], task: Task, condition: str) -> Barred | None:
    """What the queries of a task must not retrieve under a condition."""
    if condition == PLAIN:
        return None
    if condition == OTHER_SCENES:
        _, scene = np.unique(np.asarray(rows["scene"]), return_inverse=True)
        asks, answers = scene[task.query], scene[task.database]
        return lambda query, entry: asks[query] == answers[entry]
    time = np.asarray(rows["timestamp"], np.int64)
    asked, answered = time[task.query], time[task.database]
    gap = round(rule.min_gap_days * DAY)
    return lambda query, entry: np.abs(asked[query] - answered[entry]) < gap


def kinds_of(rule: Rule, rows: Mapping[str, np.ndarray], task: Task, barred: Barred | None) -> np.ndarray:
    """(Q,) the best kind of revisit among each query's right entries, its place in `KINDS` plus 1; 0 where it
    has none."""
    pose = np.asarray(rows["global_T_ego"], np.float64)
    query, entry = task.pair_query, task.pair_entry
    kept = np.ones(len(query), bool) if barred is None else ~barred(query, entry)
    query, entry = query[kept], entry[kept]
    kind = revisit_kinds(pose[task.query[query]], pose[task.database[entry]], rule.lane_offset)
    best = np.full(len(task.query), len(KINDS) + 1)
    np.minimum.at(best, query, kind)
    return np.where(best > len(KINDS), 0, best)


def estimates_of(rows: Mapping[str, np.ndarray]) -> list[str]:
    """What is scored side by side: the model, then the references."""
    return [MODEL, *dict.fromkeys(name.split("/")[1] for name in rows if name.startswith("reference/"))]


def answers_of(
    rule: Rule, rows: Mapping[str, np.ndarray], task: Task, estimate: str, barred: Barred | None
) -> Answers:
    """What the queries of one location retrieved by one estimate under one condition."""
    depth = max(*rule.k, CURVE_DEPTH)
    if estimate == MODEL:
        descriptor = np.asarray(rows["descriptor"])
        return retrieval.retrieve(
            task, descriptor[task.query], descriptor[task.database], depth, SHOWN, barred
        )
    prefix = f"reference/{estimate}/"
    stack = {name.removeprefix(prefix): rows[name] for name in rows if name.startswith(prefix)}
    asks, answers = (
        {key: values[side] for key, values in stack.items()} for side in (task.query, task.database)
    )

    preselects = getattr(references_folder.load(estimate), "PRESELECTS", False)

    def distances(block: slice) -> np.ndarray:
        allowed = None
        if barred is not None:
            allowed = ~retrieval.mask_of(barred, block, len(task.database))
        asking = {key: values[block] for key, values in asks.items()}
        # Of what a reference compares in two steps, as many are compared as are looked at.
        settings = {"candidates": depth} if preselects else {}
        return references_folder.distances(estimate, asking, answers, allowed, progress=False, **settings)

    blocks = task.blocks() if len(task.database) else iter(())
    return retrieval.answers(task, retrieval.nearest_by(distances, blocks, depth), depth, SHOWN, barred)


# --- Scores -------------------------------------------------------------------------------------------------


def score(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Annotated rows → nested, JSON-able scores of every estimate under every condition, by location and
    pooled.

    Shares are in 0..1; None stands for what is not defined (a recall without queries). Raises RowsError on
    missing, misshapen, empty or non-finite rows, ConfigError on a rule that is not possible.
    """
    rule = rule_of(cfg)
    check_rows(rows)
    tasks = tasks_of(rule, rows)
    scene = np.asarray(rows["scene"])
    scores: dict[str, Any] = {
        "queries": sum(len(task.query) for task in tasks.values()),
        "frames": len(rows["is_query"]),
        "rule": {
            "radius_m": rule.radius,
            "k": list(rule.k),
            "min_gap_days": rule.min_gap_days,
            "lane_offset_m": rule.lane_offset,
            "drop_empty": rule.drop_empty,
            "conditions": list(rule.conditions),
        },
        "databases": {name: len(task.database) for name, task in tasks.items()},
        "interval": {
            "method": "percentile bootstrap",
            "resamples": retrieval.BOOTSTRAP_RESAMPLES,
            "unit": "scene of the queries",
            "units": len(np.unique(np.concatenate([scene[task.query] for task in tasks.values()]))),
            "seed": rule.seed,
        },
        "own_scene": _own_scene(rule, rows, tasks),
        "estimates": {},
    }
    barred = {
        condition: {name: barred_of(rule, rows, task, condition) for name, task in tasks.items()}
        for condition in rule.conditions
    }
    kinds = {
        condition: {name: kinds_of(rule, rows, task, barred[condition][name]) for name, task in tasks.items()}
        for condition in rule.conditions
    }
    for estimate in estimates_of(rows):
        scores["estimates"][estimate] = {}
        for condition in rule.conditions:
            answers = {
                name: answers_of(rule, rows, task, estimate, barred[condition][name])
                for name, task in tasks.items()
            }
            scores["estimates"][estimate][condition] = {
                part: figures(
                    rule,
                    retrieval.joined({name: answers[name] for name in names}),
                    np.concatenate([kinds[condition][name] for name in names]),
                    np.concatenate([scene[tasks[name].query] for name in names]),
                )
                for part, names in [*((name, [name]) for name in tasks), (ALL, list(tasks))]
            }
    if cfg.eval.get("target") and _named_references(cfg) <= set(scores["estimates"]):
        scores["target"] = targets.judge(
            cfg.eval.target,
            summarize(scores),
            reference_figure,
            scores["queries"],
            scores["databases"],
            int(cfg.eval.get("min_queries", 1)),
            int(cfg.eval.get("min_database", 1)),
        )
    return scores


def _named_references(cfg: ml_collections.ConfigDict) -> set[str]:
    """What the target compares with. Training's evaluation scores no references: it judges no such target.

    Raises ConfigError for one that no evaluation would score.
    """
    named = set(cfg.eval.target.get("references", ()))
    unknown = sorted(named - set(cfg.eval.get("references", ())))
    if unknown:
        raise ConfigError(
            f"config.eval.target.references names {unknown[0]!r}; expected some of config.eval.references, "
            f"{sorted(cfg.eval.get('references', ()))}"
        )
    return named


def figures(rule: Rule, answers: Answers, kind: np.ndarray, scene: np.ndarray) -> dict[str, Any]:
    """Figures of some queries with their kinds (Q,) of revisit and their scenes (Q,), which are resampled as
    wholes.

    `recall`, `recall_of_all` (queries without a right entry are misses), `recall_without_empty`, `chance` and
    `interval_95` have the keys "1", "5", ...; the first is one of the two that follow, by `drop_empty`.
    `curve` and `chance_curve` are AR@1, AR@2, ...; `kinds` the same figures of the queries of each kind.
    """
    whole = np.ones(len(kind), bool)
    known = answers.right > 0
    counted = known if rule.drop_empty else whole
    found = _figures_of(rule, answers, counted, scene)
    depth = max(*rule.k, CURVE_DEPTH)
    right, gallery = answers.right[counted], answers.gallery[counted]
    return {
        "queries": len(kind),
        "without_right": int((~known).sum()),
        **found,
        "recall_of_all": {str(k): retrieval.recall(answers.rank, k) for k in rule.k},
        "recall_without_empty": {str(k): retrieval.recall(answers.rank[known], k) for k in rule.k},
        "curve": [retrieval.recall(answers.rank[counted], k) for k in range(1, depth + 1)],
        "chance_curve": [retrieval.chance(right, gallery, k) for k in range(1, depth + 1)],
        "kinds": {
            name: _figures_of(rule, answers, which, scene)
            for name, which in (
                *((name, kind == number) for number, name in enumerate(KINDS, start=1)),
                (MOVED, kind > 1),
            )
        },
    }


def _figures_of(rule: Rule, answers: Answers, which: np.ndarray, scene: np.ndarray) -> dict[str, Any]:
    rank = answers.rank[which]
    _, group = np.unique(scene[which], return_inverse=True)
    return {
        "counted": int(which.sum()),
        "recall": {str(k): retrieval.recall(rank, k) for k in rule.k},
        "chance": {str(k): retrieval.chance(answers.right[which], answers.gallery[which], k) for k in rule.k},
        "interval_95": {
            str(k): retrieval.recall_interval(rank < k, group, rule.seed) if len(rank) else None
            for k in rule.k
        },
    }


def _own_scene(
    rule: Rule, rows: Mapping[str, np.ndarray], tasks: Mapping[str, Task]
) -> dict[str, dict[str, float | None]]:
    """{location: shares} of the queries with a right entry: `nearest` on the ground is of the query's own
    scene; `any` right entry is; `only` such are right."""
    parts = {}
    for name, task in tasks.items():
        own = barred_of(rule, rows, task, OTHER_SCENES)
        query, entry = task.pair_query, task.pair_entry
        ours = own(query, entry)
        apart = np.linalg.norm(task.query_xy[query] - task.database_xy[entry], axis=1)
        order = np.lexsort((apart, query))
        asked, first = np.unique(query[order], return_index=True)
        count = np.bincount(query, minlength=len(task.query))[asked]
        of_own = np.bincount(query[ours], minlength=len(task.query))[asked]
        parts[name] = np.stack([ours[order][first], of_own > 0, of_own == count])
    parts[ALL] = np.concatenate(list(parts.values()), axis=1)
    return {
        name: {
            key: float(row.mean()) if len(row) else None
            for key, row in zip(("nearest", "any", "only"), part, strict=True)
        }
        for name, part in parts.items()
    }


def summarize(scores: Mapping[str, Any]) -> dict[str, float]:
    """Nested scores → flat figures for the training log, the choice of the best checkpoint and targets.

    A key is `[reference_][location_][condition_][kind_]recall_at_<k>`: without a reference it is the model's
    (`chance` is a reference), without a location all together, without a condition as the protocol has it,
    without a kind those of all kinds. What is not defined is left out. Beside them `queries`, `database`,
    `without_right`, and `own_scene_nearest`, the share of queries whose nearest right entry is of their own
    scene.
    """
    plain = scores["estimates"][MODEL][PLAIN][ALL]
    flat = {
        "queries": float(plain["queries"]),
        "database": float(sum(scores["databases"].values())),
        "without_right": float(plain["without_right"]),
        "own_scene_nearest": scores["own_scene"][ALL]["nearest"],
    }
    for estimate, conditions in scores["estimates"].items():
        for condition, parts in conditions.items():
            for location, part in parts.items():
                for kind, counted in ((None, part), *part["kinds"].items()):
                    words = (
                        *((location,) if location != ALL else ()),
                        *((condition,) if condition != PLAIN else ()),
                        *((kind,) if kind else ()),
                        "recall_at_",
                    )
                    for k, value in counted["recall"].items():
                        figure = "_".join(words) + k
                        name = figure if estimate == MODEL else reference_figure(figure, estimate)
                        flat[name] = value
                        flat[reference_figure(figure, targets.CHANCE)] = counted["chance"][k]
    return {name: value for name, value in flat.items() if value is not None}


def reference_figure(figure: str, reference: str) -> str:
    """What `summarize` calls that figure of a reference; `chance` is one, too."""
    return f"{reference}_{figure}"


def ablation_sizes(scores: Mapping[str, Any]) -> dict[str, int]:
    """{what: how many} queries stand behind the figures, all locations together."""
    conditions = scores["estimates"][MODEL]
    plain, other = conditions[PLAIN][ALL], conditions[OTHER_SCENES][ALL]
    return {
        "queries": plain["queries"],
        "without a right entry": plain["without_right"],
        "without one of another scene": other["without_right"],
        "with such in another lane or direction alone": other["kinds"][MOVED]["counted"],
    }


def verdict(scores: Mapping[str, Any]) -> list[str]:
    """The target's outcome in words, one line a check; empty when the config sets no target."""
    return targets.verdict(scores.get("target"))


# --- Hooks of the commands ----------------------------------------------------------------------------------


def annotate(prepared: PreparedFolder, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds what the scenes table says of every `index`: `location`, `scene`, `date_captured`,
    `sample_number` in the scene, `timestamp` (N,) and `global_T_ego` (N, 4, 4)."""
    table = prepared.table("scenes")
    records = sorted((table[i] for i in range(len(table))), key=lambda record: int(record["first"]))
    first = np.array([record["first"] for record in records], np.int64)
    index = np.asarray(rows["index"], np.int64)
    scene = np.searchsorted(first, index, side="right") - 1
    timestamp = np.concatenate([record["timestamp"] for record in records])
    poses = np.concatenate([record["global_T_ego"] for record in records])
    texts = {
        name: np.array([as_text(record[name]) for record in records])[scene]
        for name in ("location", "scene", "date_captured")
    }
    return {
        **rows,
        **texts,
        "sample_number": index - first[scene],
        "timestamp": timestamp.astype(np.int64)[index],
        "global_T_ego": np.asarray(poses, np.float64).reshape(-1, 4, 4)[index],
    }


def asks(cfg: ml_collections.ConfigDict, prepared: PreparedFolder, index: np.ndarray) -> np.ndarray:
    """(N,) bool: which of the records are queries, that is not in the database of `config.data.scheme`."""
    return ~np.isin(np.asarray(index), prepared.split(cfg.data.scheme, "database"))


def references(
    cfg: ml_collections.ConfigDict, prepared: PreparedFolder, rows: Mapping[str, np.ndarray], cache: Path
) -> dict[str, np.ndarray]:
    """Adds `is_query` (N,), and `reference/<name>/<array>` (N, ...) of every reference in
    `config.eval.references`, described once and kept in the folder `cache`."""
    found = {**rows, "is_query": asks(cfg, prepared, rows["index"])}
    for name in tuple(cfg.eval.get("references", ())):
        stack = reference_descriptors.described(
            prepared, name, rows["index"], cache, progress=jax.process_index() == 0
        )
        found |= {f"reference/{name}/{key}": values for key, values in stack.items()}
    return found


def second_stage(
    method: ModuleType, cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Adds what the model's queries retrieved, for the map, the pictures and the table of queries: see
    `retrieval.rows_of`.

    Without the entries of their own scene, which would show the same street a moment later; with them
    (`retrieved/own_scene_left_out` (N,) is False) where nothing else is right.
    """
    del method
    rule = rule_of(cfg)
    check_rows(rows)
    tasks = tasks_of(rule, rows)
    count = len(rows["is_query"])
    for condition in (OTHER_SCENES, PLAIN):
        answers = {
            name: answers_of(rule, rows, task, MODEL, barred_of(rule, rows, task, condition))
            for name, task in tasks.items()
        }
        if any(part.right.any() for part in answers.values()):
            break
    left_out = np.full(count, condition == OTHER_SCENES)
    return {**rows, **retrieval.rows_of(tasks, answers, count), "retrieved/own_scene_left_out": left_out}


def watched(
    cfg: ml_collections.ConfigDict, prepared: PreparedFolder, split: str, limit: int | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(≤ limit,) ascending numbers of the examples of a split that training's evaluation looks at, and what
    is known of them.

    Frames of a database are metres apart: evenly thinned, it would hold nothing right for most queries. So of
    more than `limit` a quarter are queries that something is right for, evenly spread, with the nearest right
    entry of each, of another scene where there is one; the rest are evenly spread over the database. Its
    recall compares checkpoints, and is not the report's.
    """
    rule = rule_of(cfg)
    index = prepared.split(cfg.data.scheme, split)
    known = annotate(prepared, {"index": index}) | {"is_query": asks(cfg, prepared, index)}
    tasks = tasks_of(rule, known)
    examples = np.sort(
        np.concatenate([side for task in tasks.values() for side in (task.query, task.database)])
    )
    if limit is not None and limit < len(examples):
        pairs = np.concatenate([_nearest_right(rule, known, task) for task in tasks.values()])
        chosen = np.unique(pairs[spread(len(pairs), max(1, limit // 4))])
        others = np.setdiff1d(examples[~known["is_query"][examples]], chosen)
        rest = others[spread(len(others), max(0, limit - len(chosen)))]
        examples = np.sort(np.concatenate([chosen, rest]))
    return examples, {name: values[examples] for name, values in known.items() if name != "index"}


def _nearest_right(rule: Rule, rows: Mapping[str, np.ndarray], task: Task) -> np.ndarray:
    """(A, 2) row numbers of every query that something is right for and of the nearest right entry, one of
    another scene before any of its own."""
    query, entry = task.pair_query, task.pair_entry
    own = barred_of(rule, rows, task, OTHER_SCENES)(query, entry)
    apart = np.linalg.norm(task.query_xy[query] - task.database_xy[entry], axis=1)
    order = np.lexsort((apart, own, query))
    asked, first = np.unique(query[order], return_index=True)
    return np.stack([task.query[asked], task.database[entry[order][first]]], axis=1)


# --- The report ---------------------------------------------------------------------------------------------


def choose_examples(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{group: row numbers}: a query and what came first, again and again; `cfg.eval.pictures` queries of each
    group."""
    from placerec_jax.evaluation import places_report

    return places_report.choose_examples(cfg, rows)


def tables(scores: Mapping[str, Any], method: ModuleType) -> "list[Table]":
    """The tables of the report, for the terminal."""
    from placerec_jax.evaluation import places_report  # draws with matplotlib, not loaded by training

    return places_report.tables(scores, method)


def report(
    cfg: ml_collections.ConfigDict,
    scores: Mapping[str, Any],
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]],
    method: ModuleType,
    prepared: PreparedFolder,
) -> "list[Section]":
    """Annotated rows and {group: (features, predictions)} of chosen examples → the sections of the page."""
    from placerec_jax.evaluation import places_report

    return places_report.sections(cfg, scores, rows, examples, method, prepared)


def files(rows: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """What the report's folder holds beside the page: every query in `queries.csv`."""
    from placerec_jax.evaluation import places_report

    return {"queries.csv": places_report.queries_csv(rows)}
