"""The cross-modal evaluator: recall of images and LiDAR submaps that look for each other within a radius.

A row is a frame, which is an image and a submap: `image_descriptor` and `cloud_descriptor` (N, D),
`sequence_name` (N,), `xy` (N, 2) metres on the ground plane and `is_query` (N,). Queries search the database
of their own sequence, in four directions (image to point is the headline of SaliencyI2PLoc,
arXiv 2412.15577); an entry at most `radius` metres away is right, and a query without right entries is a
miss. `placerec_jax/evaluation/retrieval.py` does the searching and counting.

With `cfg.eval.queries_in_database` every frame is in the database. Then an image may retrieve the submap of
its own frame; where a modality searches itself, the query's own frame is left out, for it would always be
first.

Chance stands beside every figure: what a random order of the same database is expected to score.
"""

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import ml_collections
import numpy as np

from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.data.records import as_text
from placerec_jax.errors import ConfigError, UserError
from placerec_jax.evaluation import retrieval, targets
from placerec_jax.evaluation.retrieval import Answers, Task

if TYPE_CHECKING:
    from placerec_jax.evaluation.report import Section, Table

IMAGE, CLOUD = "image_descriptor", "cloud_descriptor"
# {direction: (what asks, what answers)}
DIRECTIONS = {
    "image_to_point": (IMAGE, CLOUD),
    "point_to_image": (CLOUD, IMAGE),
    "image_to_image": (IMAGE, IMAGE),
    "point_to_point": (CLOUD, CLOUD),
}
# Outputs of `predict` that are kept for a whole split, however large.
SCORED = (IMAGE, CLOUD)
KEEP = SCORED

ALL = "all"  # the sequences together
SHOWN = 3  # retrieved entries that a picture shows
CURVE_DEPTH = 25  # recall curves go at least as far
STRETCH = 20  # successive queries that are resampled together: some 60 m of the drive
ONE_PERCENT = "1_percent"

# What tables of variants show (`benchmarks/ablation_figures.py`).
ABLATION_TABLES = {
    "image to point": (
        ("R@1", "image_to_point_recall_at_1", 3),
        ("R@5", "image_to_point_recall_at_5", 3),
        ("R@10", "image_to_point_recall_at_10", 3),
        ("R@20", "image_to_point_recall_at_20", 3),
        ("R@1 %", "image_to_point_recall_at_1_percent", 3),
        ("chance R@1", "chance_image_to_point_recall_at_1", 3),
    ),
    "R@1 in the other directions": tuple(
        (name.replace("_", " "), f"{name}_recall_at_1", 3) for name in list(DIRECTIONS)[1:]
    ),
}


class RowsError(UserError, ValueError):
    """Predictions that cannot be scored."""


class Rule(NamedTuple):
    """`cfg.eval`, checked."""

    radius: float
    k: tuple[int, ...]
    directions: tuple[str, ...]
    queries_in_database: bool
    seed: int


def rule_of(cfg: ml_collections.ConfigDict) -> Rule:
    """The rule of `cfg.eval`; ConfigError names what is not possible."""
    rule = cfg.eval
    directions = tuple(rule.directions)
    unknown = [name for name in directions if name not in DIRECTIONS]
    if unknown or not directions:
        raise ConfigError(f"config.eval.directions is {directions}; expected some of {list(DIRECTIONS)}")
    k = tuple(int(value) for value in rule.k)
    if not k or min(k) < 1 or list(k) != sorted(set(k)):
        raise ConfigError(f"config.eval.k is {k}; expected ascending numbers from 1 on, such as (1, 5, 20)")
    if not rule.radius > 0:
        raise ConfigError(f"config.eval.radius is {rule.radius}; expected metres above 0")
    inside = bool(rule.get("queries_in_database", False))
    return Rule(float(rule.radius), k, directions, inside, int(rule.seed))


# --- What is scored -----------------------------------------------------------------------------------------


def tasks_of(rule: Rule, rows: Mapping[str, np.ndarray]) -> dict[str, Task]:
    """{sequence: Task} of annotated rows. Raises RowsError where nothing asks or nothing answers."""
    sequence, xy = np.asarray(rows["sequence_name"]), rows["xy"]
    is_query = np.asarray(rows["is_query"], bool)
    found = retrieval.tasks(sequence, xy, is_query, rule.radius, rule.queries_in_database)
    if not found:
        raise RowsError(
            f"none of the {len(is_query)} frames is a query: expected `is_query` in the frames of the split; "
            "is config.data.eval_split or test_split a split of all frames, such as test?"
        )
    if not any(len(task.database) for task in found.values()):
        raise RowsError(
            f"all {len(is_query)} frames are queries, so there is nothing to search: expected a split with "
            "database frames, too, such as test; or set --config.eval.queries_in_database=True"
        )
    return found


def answers_of(
    rule: Rule, rows: Mapping[str, np.ndarray], tasks: Mapping[str, Task], direction: str
) -> dict[str, Answers]:
    """{sequence: Answers} of one direction."""
    asks, answers = (np.asarray(rows[name]) for name in DIRECTIONS[direction])
    found = {}
    for name, task in tasks.items():
        depth = max(*rule.k, CURVE_DEPTH, retrieval.one_percent(len(task.database)))
        found[name] = retrieval.retrieve(
            task,
            asks[task.query],
            answers[task.database],
            depth=depth,
            kept=SHOWN,
            barred=task.own_frames() if searches_itself(direction) else None,
        )
    return found


def searches_itself(direction: str) -> bool:
    """Whether queries and database are of one modality."""
    asks, answers = DIRECTIONS[direction]
    return asks == answers


# --- Scores -------------------------------------------------------------------------------------------------


def check_rows(rule: Rule, rows: Mapping[str, np.ndarray]) -> None:
    """Raises RowsError naming the array when rows cannot be scored."""
    asked = dict.fromkeys(name for direction in rule.directions for name in DIRECTIONS[direction])
    for name in (*asked, "sequence_name", "xy", "is_query"):
        if name not in rows:
            raise RowsError(f"the cross-modal evaluator needs {name!r} a frame; found {sorted(rows)}")
    count = len(rows["is_query"])
    if not count:
        raise RowsError("there is nothing to score: 0 frames; is the split empty?")
    for name in (*asked, "xy"):
        values = np.asarray(rows[name])
        if len(values) != count or values.ndim != 2:
            raise RowsError(f"{name}: expected shape ({count}, ...), found {values.shape}")
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise RowsError(
                f"{name}: {bad.sum()} of {count} frames are not finite, the first is row "
                f"{int(np.argmax(bad))} of the split; the model has diverged, or the checkpoint or the data "
                "is damaged"
            )
    widths = {name: np.asarray(rows[name]).shape[1] for name in asked}
    if len(set(widths.values())) > 1:
        raise RowsError(f"descriptors of different lengths cannot be compared: {widths}")


def annotate(prepared: PreparedFolder, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds what the frames table says of every `index`: `sequence_name`, `frame_id`, `xy` (N, 2), `is_query`
    (N,) and `map_T_lidar` (N, 4, 4)."""
    table = prepared.table("frames")
    names = ("sequence", "frame_id", "position", "is_query", "map_T_lidar")
    known = table.columns(names, np.asarray(rows["index"]))
    return {
        **rows,
        "sequence_name": np.array([as_text(name) for name in known["sequence"]]),
        "frame_id": known["frame_id"],
        "xy": np.asarray(known["position"], np.float64).reshape(-1, 3)[:, :2],
        "is_query": known["is_query"].astype(bool),
        "map_T_lidar": np.asarray(known["map_T_lidar"], np.float64).reshape(-1, 4, 4),
    }


def score(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Annotated rows → nested, JSON-able scores of every direction and of chance, by sequence and pooled.

    Shares are in 0..1. Raises RowsError on missing, misshapen, empty or non-finite rows, ConfigError on a
    rule that is not possible.
    """
    rule = rule_of(cfg)
    check_rows(rule, rows)
    tasks = tasks_of(rule, rows)
    groups = retrieval.stretches(
        np.concatenate([np.full(len(task.query), name) for name, task in tasks.items()]), STRETCH
    )
    one_percent = {name: retrieval.one_percent(len(task.database)) for name, task in tasks.items()}
    scores: dict[str, Any] = {
        "queries": sum(len(task.query) for task in tasks.values()),
        "frames": len(rows["is_query"]),
        "rule": {
            "radius_m": rule.radius,
            "k": list(rule.k),
            "directions": list(rule.directions),
            "queries_in_database": rule.queries_in_database,
        },
        "databases": {name: len(task.database) for name, task in tasks.items()},
        "k_of_1_percent": one_percent,
        "interval": {
            "method": "percentile bootstrap",
            "resamples": retrieval.BOOTSTRAP_RESAMPLES,
            "unit": f"stretch of {STRETCH} successive queries",
            "units": len(np.unique(groups)),
            "seed": rule.seed,
        },
        "directions": {},
    }
    for direction in rule.directions:
        answers = answers_of(rule, rows, tasks, direction)
        parts = {
            name: figures(rule, {name: part}, one_percent, groups[_places(tasks, name)])
            for name, part in answers.items()
        }
        parts[ALL] = figures(rule, answers, one_percent, groups)
        for name, part in parts.items():
            part["database"] = sum(scores["databases"].values()) if name == ALL else scores["databases"][name]
        scores["directions"][direction] = parts
    if cfg.eval.get("target"):
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


def _places(tasks: Mapping[str, Task], name: str) -> slice:
    """Where the queries of a sequence are among those of all, one task after the other."""
    names = list(tasks)
    start = sum(len(tasks[other].query) for other in names[: names.index(name)])
    return slice(start, start + len(tasks[name].query))


def figures(
    rule: Rule, answers: Mapping[str, Answers], one_percent: Mapping[str, int], groups: np.ndarray
) -> dict[str, Any]:
    """Figures of the queries of some sequences together; `groups` (Q,) are resampled as wholes.

    `recall`, `chance` and `interval_95` have the keys "1", "5", ... and "1_percent", the last with each
    query's own K. `curve` and `chance_curve` are R@1, R@2, ... as far as every sequence was searched.
    """
    pooled = retrieval.joined(answers)
    # One percent is another K in every sequence.
    percent = np.concatenate([np.full(len(part.rank), one_percent[name]) for name, part in answers.items()])
    cutoffs: dict[str, Any] = {str(k): k for k in rule.k} | {ONE_PERCENT: percent}
    depth = max(*rule.k, CURVE_DEPTH)
    return {
        "queries": len(pooled.rank),
        "without_positive": int((pooled.right == 0).sum()),
        "recall": {key: retrieval.recall(pooled.rank, k) for key, k in cutoffs.items()},
        "chance": {key: retrieval.chance(pooled.right, pooled.gallery, k) for key, k in cutoffs.items()},
        "interval_95": {
            key: retrieval.recall_interval(pooled.rank < k, groups - groups.min(), rule.seed)
            for key, k in cutoffs.items()
        },
        "curve": [retrieval.recall(pooled.rank, k) for k in range(1, depth + 1)],
        "chance_curve": [retrieval.chance(pooled.right, pooled.gallery, k) for k in range(1, depth + 1)],
    }


def summarize(scores: Mapping[str, Any]) -> dict[str, float]:
    """Nested scores → flat figures, sequences pooled, for the training log, the choice of the best checkpoint
    and targets.

    Keys: `<direction>_recall_at_<k>` and `<direction>_recall_at_1_percent`, the same with `chance_` before
    them, `queries`, `database` and `without_positive` (of the first direction).
    """
    first = next(iter(scores["directions"].values()))[ALL]
    flat = {name: float(first[name]) for name in ("queries", "database", "without_positive")}
    for direction, parts in scores["directions"].items():
        for key, value in parts[ALL]["recall"].items():
            figure = f"{direction}_recall_at_{key}"
            flat[figure] = value
            flat[reference_figure(figure, "chance")] = parts[ALL]["chance"][key]
    return flat


def reference_figure(figure: str, reference: str) -> str:
    """What `summarize` calls that figure of a reference, of which `chance` is the only one."""
    return f"{reference}_{figure}"


def ablation_sizes(scores: Mapping[str, Any]) -> dict[str, int]:
    """{what: how many} queries stand behind the figures, all sequences together."""
    first = next(iter(scores["directions"].values()))[ALL]
    return {"queries": first["queries"], "without a right submap": first["without_positive"]}


def verdict(scores: Mapping[str, Any]) -> list[str]:
    """The target's outcome in words, one line a check; empty when the config sets no target."""
    return targets.verdict(scores.get("target"))


# --- Hooks of the commands ----------------------------------------------------------------------------------


def second_stage(
    method: ModuleType, cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Adds what the queries retrieved in the first direction, for the map, the pictures and the table of
    queries: see `retrieval.rows_of`."""
    del method
    rule = rule_of(cfg)
    check_rows(rule, rows)
    tasks = tasks_of(rule, rows)
    answers = answers_of(rule, rows, tasks, rule.directions[0])
    return {**rows, **retrieval.rows_of(tasks, answers, len(rows["is_query"]))}


def watched(
    cfg: ml_collections.ConfigDict, prepared: PreparedFolder, split: str, limit: int | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(≤ limit,) ascending numbers of the examples of a split that training's evaluation looks at, and what
    `annotate` knows of them.

    See `retrieval.thinned` for which.
    """
    known = annotate(prepared, {"index": prepared.split(cfg.data.scheme, split)})
    examples = retrieval.thinned(known["is_query"], limit)
    return examples, {name: values[examples] for name, values in known.items() if name != "index"}


# --- The report ---------------------------------------------------------------------------------------------


def choose_examples(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{group: row numbers}: a query and the `SHOWN` entries it retrieved, again and again;
    `cfg.eval.pictures` queries of each group."""
    from placerec_jax.evaluation import cross_modal_report

    return cross_modal_report.choose_examples(cfg, rows)


def tables(scores: Mapping[str, Any], method: ModuleType) -> "list[Table]":
    """The tables of the report, for the terminal."""
    from placerec_jax.evaluation import cross_modal_report  # draws with matplotlib, not loaded by training

    return cross_modal_report.tables(scores, method)


def report(
    cfg: ml_collections.ConfigDict,
    scores: Mapping[str, Any],
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]],
    method: ModuleType,
    prepared: PreparedFolder,
) -> "list[Section]":
    """Annotated rows and {group: (features, predictions)} of chosen examples → the sections of the page."""
    from placerec_jax.evaluation import cross_modal_report

    return cross_modal_report.sections(cfg, scores, rows, examples, method, prepared)


def files(rows: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """What the report's folder holds beside the page: every query in `queries.csv`."""
    from placerec_jax.evaluation import cross_modal_report

    return {"queries.csv": cross_modal_report.queries_csv(rows)}
