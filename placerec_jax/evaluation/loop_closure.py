"""The loop-closure evaluator: retrieval over a growing or a fixed database, and verification of what it
found.

A row is a frame: `descriptor` (N, D), `sequence` (N,), `sequence_position` (N,) in it and `map_T_lidar`
(N, 4, 4). Two frames of a sequence are a loop when they lie nearer than `loop_distance` metres (3-D) and more
than `loop_gap` frames apart.

- Protocol `growing`, always: frame i, from position `first_query` on, retrieves the nearest descriptor among
  the frames j < i − `loop_gap`.
- Protocol `fixed`, where `cfg.eval.protocol` says so: database and queries are fixed stretches of each
  sequence (`database`, `query`), a hit lies within `hit_distance`, and queries without a true match are
  dropped.

Scored side by side, by the same code: the model; the model in further passes (queries turned at random, real
images); both with the first `cfg.eval.rerank` candidates in the order of their inliers; training-free
references (`cfg.eval.references`). Verification (`second_stage`) matches every query of the growing protocol
with what it retrieved; a loop is verified by `min_inliers` inliers, and false when the estimated pose is more
than `pose_tolerance` metres off (Table III of the paper: a count and a precision, since no recall is
definable).

Hooks beyond what `evaluation/pose.py` lists, each of which an evaluator may have, in the order of their use:

- `watched(cfg, prepared, split, limit)` → (examples, rows known of them): what training looks at;
- `SCORED`, `KEEP`: outputs kept for a whole split however large, by training and by `placerec_jax.evaluate`;
- `passes(cfg)` → {name: config}: further passes over the split, whose rows are called `name/output`;
- `references(cfg, prepared, rows, cache)` → rows with baselines, after `annotate`;
- `second_stage(method, cfg, rows)` → rows with what takes two examples at once.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import ml_collections
import numpy as np
from tqdm import tqdm

from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.data.records import as_text
from placerec_jax.errors import ConfigError, UserError
from placerec_jax.evaluation import loop_reranking, loop_retrieval, reference_distances
from placerec_jax.evaluation.inference import spread
from placerec_jax.evaluation.loop_retrieval import KINDS, Answers, Frames, Task
from placerec_jax.evaluation.precision_recall import (
    CURVES,
    POLICIES,
    Retrieved,
    average_precision,
    average_precision_by,
    best_f1,
    recall_at_1,
    recall_at_full_precision,
)
from placerec_jax.ops.rigid import rigid_inverse, wrap_angle, yaw_of

if TYPE_CHECKING:
    from placerec_jax.evaluation.report import Section, Table

# Outputs of `predict` that are kept for a whole split, however large: to score, and to verify and draw.
SCORED = ("descriptor", "map_T_lidar")
KEYPOINTS = ("keypoint_xy", "keypoint_mask", "keypoint_feature", "keypoint_score")
KEEP = (*SCORED, *KEYPOINTS)

# Further passes over the split: the switch of `cfg.eval`, and the settings that it changes.
PASSES = {
    "rotated": ("rotated_queries", {"data.query_yaw": 180.0}),
    "real_image": ("real_image_pass", {"model.eval_image": "real"}),
}
_BOTH_SIDES = ("real_image",)  # of these passes the database is taken, too; else the queries alone
ALL = "all"  # the sequences together

# What tables of variants show (`benchmarks/ablation_figures.py`): {caption: ((heading, figure of `summarize`,
# decimals), ...)}.
ABLATION_TABLES = {
    "growing database": (
        ("R@1", "recall_at_1", 3),
        ("AP", "ap", 3),
        ("max F1", "max_f1", 3),
        ("R@1, queries turned", "rotated_recall_at_1", 3),
        ("AP, queries turned", "rotated_ap", 3),
    ),
    "by kind of revisit": tuple(
        (f"{kind.replace('_', ' ')} {heading}", f"{kind}_{figure}", 3)
        for kind in KINDS
        for heading, figure in (("R@1", "recall_at_1"), ("AP", "ap"))
    ),
    "fixed database": (
        ("R@1", "fixed_recall_at_1", 3),
        ("AP", "fixed_ap", 3),
        ("R@1, queries turned", "fixed_rotated_recall_at_1", 3),
        ("AP, queries turned", "fixed_rotated_ap", 3),
    ),
    "verified loops": (("verified", "verified", 0), ("precision", "verified_precision", 3)),
}


class RowsError(UserError, ValueError):
    """Predictions that cannot be scored."""


# --- What is scored -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One estimate under one protocol: tasks, distances and answers by sequence, and where its frames' rows
    are."""

    tasks: dict[str, Task]
    distances: dict[str, np.ndarray]
    answers: dict[str, Answers]

    def retrieved(self, sequence: str = ALL) -> tuple[Retrieved, np.ndarray]:
        """What the queries of a sequence, or of all, retrieved, and the kind (Q,) of each."""
        chosen = list(self.answers.values()) if sequence == ALL else [self.answers[sequence]]
        parts = [answers.retrieved for answers in chosen]
        joined = Retrieved(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("distance", "correct", "has_loop")
            )
        )
        return joined, np.concatenate([answers.kind for answers in chosen])


def rows_by_sequence(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{name: (n,) row numbers} of every sequence, by position."""
    names = rows.get("sequence_name", rows["sequence"])
    order = np.argsort(rows["sequence_position"], kind="stable")
    return {str(name): order[names[order] == name] for name in np.unique(names)}


def frames_of(rows: Mapping[str, np.ndarray]) -> dict[str, Frames]:
    """The frames of every sequence; raises RowsError where a position occurs twice."""
    found = {}
    for name, numbers in rows_by_sequence(rows).items():
        position = np.asarray(rows["sequence_position"])[numbers]
        if (np.diff(position) <= 0).any():
            twice = int(position[1:][np.diff(position) <= 0][0])
            raise RowsError(
                f"position {twice} of sequence {name} occurs twice; expected each frame of the split once"
            )
        found[name] = Frames(name, position, np.asarray(rows["map_T_lidar"])[numbers])
    return found


def tasks_of(cfg: ml_collections.ConfigDict, frames: Mapping[str, Frames]) -> dict[str, dict[str, Task]]:
    """{protocol: {sequence: Task}}: `growing` for all sequences, `fixed` for those that the config lists."""
    rule = cfg.eval
    lane = float(rule.get("lane_offset", 1.5))
    tasks = {
        "growing": {
            name: loop_retrieval.growing(
                part, float(rule.loop_distance), int(rule.loop_gap), int(rule.first_query), lane
            )
            for name, part in frames.items()
        }
    }
    protocol = rule.get("protocol", "growing")
    if protocol not in ("growing", "fixed"):
        raise ConfigError(f"config.eval.protocol is {protocol!r}; expected growing or fixed")
    if protocol == "fixed":
        database, query = rule.get("database") or {}, rule.get("query") or {}
        listed = [name for name in frames if name in database and name in query]
        if not listed:
            raise ConfigError(
                "config.eval.protocol is fixed, and config.eval.database and query list none of the "
                f"sequences {sorted(frames)}; expected {{sequence: (first, last)}}"
            )
        tasks["fixed"] = {
            name: loop_retrieval.fixed(
                frames[name],
                tuple(database[name]),
                tuple(query[name]),
                float(rule.get("hit_distance", 5.0)),
                lane,
            )
            for name in listed
        }
    return tasks


def outcomes(
    cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray], only: str | None = None
) -> dict[str, dict[str, Outcome]]:
    """{estimate: {protocol: Outcome}} of the model, its further passes and the references (or `only` of
    one)."""
    frames = frames_of(rows)
    tasks = tasks_of(cfg, frames)
    numbers = rows_by_sequence(rows)
    found = {}
    for estimate, distances in _distances(rows, numbers, tasks):
        if only in (None, estimate):
            found[estimate] = {
                protocol: _outcome(of_sequence, distances[protocol])
                for protocol, of_sequence in tasks.items()
            }
    return found


def _outcome(tasks: dict[str, Task], distances: Mapping[str, np.ndarray]) -> Outcome:
    here = {name: distances[name] for name in tasks}
    answers = {name: loop_retrieval.retrieve(task, here[name]) for name, task in tasks.items()}
    return Outcome(tasks, here, answers)


class _Descriptors(Mapping):
    """{sequence: distances} of descriptors, each computed when it is asked for the first time."""

    def __init__(
        self,
        queries: np.ndarray,
        database: np.ndarray,
        numbers: Mapping[str, np.ndarray],
        tasks: Mapping[str, Mapping[str, Task]],
    ) -> None:
        self._queries, self._database, self._numbers, self._tasks = queries, database, numbers, tasks
        self._known: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._known:
            rows = self._numbers[name]
            compared = [of_sequence[name] for of_sequence in self._tasks.values() if name in of_sequence]
            self._known[name] = loop_retrieval.descriptor_distances(
                self._queries[rows], self._database[rows], compared
            )
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


def _distances(
    rows: Mapping[str, np.ndarray],
    numbers: Mapping[str, np.ndarray],
    tasks: Mapping[str, Mapping[str, Task]],
) -> Iterator[tuple[str, Mapping[str, Mapping[str, np.ndarray]]]]:
    """(estimate, {protocol: {sequence: (n, n) distances}}): the model first."""
    if "descriptor" in rows:
        found = _Descriptors(rows["descriptor"], rows["descriptor"], numbers, tasks)
        yield "model", dict.fromkeys(tasks, found)
    for name in PASSES:
        queries = rows.get(f"{name}/descriptor")
        if queries is not None:
            database = queries if name in _BOTH_SIDES else rows["descriptor"]
            yield f"model_{name}", dict.fromkeys(tasks, _Descriptors(queries, database, numbers, tasks))
    for estimate in dict.fromkeys(key.split("/")[1] for key in rows if key.startswith("distances/")):
        yield (
            estimate,
            {
                protocol: {name: rows[f"distances/{estimate}/{protocol}/{name}"] for name in of_sequence}
                for protocol, of_sequence in tasks.items()
            },
        )


# --- Scores -------------------------------------------------------------------------------------------------


def check_rows(rows: Mapping[str, np.ndarray]) -> None:
    """Raises RowsError naming the array when rows cannot be scored."""
    for name in ("sequence", "sequence_position", "map_T_lidar"):
        if name not in rows:
            raise RowsError(f"the loop-closure evaluator needs {name!r} a frame; found {sorted(rows)}")
    count = len(rows["sequence_position"])
    if not count:
        raise RowsError("there is nothing to score: 0 frames; is the split empty?")
    if not any(name == "descriptor" or name.startswith("distances/") for name in rows):
        raise RowsError(f"the loop-closure evaluator needs 'descriptor' (N, D) a frame; found {sorted(rows)}")
    for name in ("descriptor", "map_T_lidar", *(f"{name}/descriptor" for name in PASSES)):
        if name not in rows:
            continue
        values = np.asarray(rows[name])
        if len(values) != count or values.ndim < 2:
            raise RowsError(f"{name}: expected shape ({count}, ...), found {values.shape}")
        bad = ~np.isfinite(values).reshape(count, -1).all(axis=1)
        if bad.any():
            row = int(np.argmax(bad))
            raise RowsError(
                f"{name}: {bad.sum()} of {count} frames are not finite, the first is row {row}, frame "
                f"{int(rows['sequence_position'][row])} of its sequence; the model has diverged, or the "
                "checkpoint or the data is damaged"
            )


def annotate(prepared: PreparedFolder, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Says what the sequences table knows of every `index`: `sequence`, `sequence_name`, `sequence_position`,
    `frame_id` and `map_T_lidar` (N, 4, 4) float64 in the map of the sequence.

    A method that turned its scans says so by its own `map_T_lidar`, relative to the sequence's first: what it
    adds is kept in `map_T_scan`, for relative poses. Loops and their kinds are those of the drive.
    """
    table = sequence_table(prepared)
    first = np.array([record["first"] for record in table], np.int64)
    index = np.asarray(rows["index"], np.int64)
    sequence = np.searchsorted(first, index, side="right") - 1
    position = index - first[sequence]
    places = list(zip(sequence, position, strict=True))
    map_T_lidar = np.array([table[s]["map_T_lidar"][p] for s, p in places]).reshape(-1, 4, 4)
    known = {
        "sequence": sequence,
        "sequence_name": np.array([record["sequence"] for record in table])[sequence],
        "sequence_position": position,
        "frame_id": np.array([table[s]["frame_id"][p] for s, p in places]),
        "map_T_lidar": map_T_lidar,
    }
    if "map_T_lidar" in rows:
        map_T_first = np.array([record["map_T_lidar"][0] for record in table])[sequence]
        lidar_T_scan = rigid_inverse(map_T_lidar) @ map_T_first @ rows["map_T_lidar"]
        yaw = yaw_of(lidar_T_scan[:, :3, :3])
        # Below that it is the rounding of float32.
        known["map_T_scan"] = map_T_lidar @ _turn(np.where(np.abs(yaw) < 1e-3, 0.0, yaw))
    return {**rows, **known}


def _turn(yaw: np.ndarray) -> np.ndarray:
    """(N,) rad → (N, 4, 4) rotations about the vertical."""
    found = np.broadcast_to(np.eye(4), (len(yaw), 4, 4)).copy()
    cos, sin = np.cos(yaw), np.sin(yaw)
    found[:, 0, 0], found[:, 0, 1], found[:, 1, 0], found[:, 1, 1] = cos, -sin, sin, cos
    return found


def sequence_table(prepared: PreparedFolder) -> list[dict[str, Any]]:
    """The records of the `sequences` table, their names as text, in the order of their frames."""
    table = prepared.table("sequences")
    records = [table[i] for i in range(len(table))]
    for record in records:
        record["sequence"] = as_text(record["sequence"])
    return sorted(records, key=lambda record: int(record["first"]))


def score(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Rows → nested, JSON-able scores; None stands for what is not defined (a recall without any loop).

    Any subset of the frames can be scored: what asks and what answers is decided by the frames' positions in
    the whole sequence, and a query has a loop when a frame of the subset is one. Raises RowsError on
    missing, misshapen, empty or non-finite rows.
    """
    check_rows(rows)
    policy = cfg.eval.get("ap_policy", "standard")
    if policy not in POLICIES:
        raise ConfigError(f"config.eval.ap_policy is {policy!r}; expected one of {list(POLICIES)}")
    found = outcomes(cfg, rows)
    counts = next(iter(found.values()))
    scores: dict[str, Any] = {
        "queries": len(counts["growing"].retrieved()[0]),
        "frames": len(rows["sequence_position"]),
        "rule": {
            "loop_distance_m": float(cfg.eval.loop_distance),
            "loop_gap": int(cfg.eval.loop_gap),
            "first_query": int(cfg.eval.first_query),
            "lane_offset_m": float(cfg.eval.get("lane_offset", 1.5)),
            "ap_policy": policy,
        },
        "counts": {protocol: _counts(outcome) for protocol, outcome in counts.items()},
        "estimates": {
            estimate: {protocol: _figures_by_sequence(outcome) for protocol, outcome in by_protocol.items()}
            for estimate, by_protocol in found.items()
        },
    }
    if "match/candidate" in rows:
        scores["verification"] = verification(cfg, rows)
    if cfg.eval.get("target"):
        scores["target"] = judge(cfg.eval.target, int(cfg.eval.get("min_queries", 1)), scores)
    return scores


def _counts(outcome: Outcome) -> dict[str, dict[str, int]]:
    found = {}
    for name, answers in outcome.answers.items():
        found[name] = {
            "queries": len(answers.query),
            "with_loop": int(answers.retrieved.has_loop.sum()),
            "reverse_nearest": int(answers.reverse.sum()),
            **{kind: int((answers.kind == i + 1).sum()) for i, kind in enumerate(KINDS)},
        }
    found[ALL] = {key: sum(part[key] for part in found.values()) for key in next(iter(found.values()))}
    return found


def _figures_by_sequence(outcome: Outcome) -> dict[str, dict[str, Any]]:
    found = {}
    for name in [*outcome.tasks, ALL]:
        retrieved, kind = outcome.retrieved(name)
        chosen = list(outcome.tasks) if name == ALL else [name]
        if name == ALL and len(outcome.tasks) == 1:
            found[ALL] = found[next(iter(outcome.tasks))]
            continue
        pairs = loop_retrieval.pairs_curve([(outcome.tasks[s], outcome.distances[s]) for s in chosen])
        found[name] = figures(retrieved, kind)
        found[name]["ap"]["pairs"] = average_precision(pairs) if retrieved.has_loop.any() else None
    return found


def figures(retrieved: Retrieved, kind: np.ndarray) -> dict[str, Any]:
    """Every figure of some queries, `kind` (Q,) as in `loop_retrieval.Task`.

    The figures of a kind of revisit are those of its queries and of the queries without any loop, so that its
    AP counts the false alarms, too.
    """
    any_loop = bool(retrieved.has_loop.any())
    curve = CURVES["standard"](retrieved)
    f1, threshold = best_f1(curve)
    by_kind = {}
    for number, name in enumerate(KINDS, start=1):
        part = retrieved.subset((kind == number) | (kind == 0))
        count = int((kind == number).sum())
        by_kind[name] = {
            "queries": count,
            "recall_at_1": recall_at_1(part),
            "ap": average_precision_by("standard", part) if count else None,
        }
    return {
        "recall_at_1": recall_at_1(retrieved),
        "ap": {name: average_precision_by(name, retrieved) if any_loop else None for name in CURVES},
        "max_f1": f1 if any_loop else None,
        "max_f1_threshold": threshold,
        "recall_at_full_precision": recall_at_full_precision(curve) if any_loop else None,
        "kinds": by_kind,
    }


def true_poses(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N, 3) candidate_T_query (m, m, rad) of every row and the candidate it was matched with."""
    map_T_scan = np.asarray(rows.get("map_T_scan", rows["map_T_lidar"]), np.float64)
    candidate_T_query = rigid_inverse(map_T_scan[np.maximum(rows["match/candidate"], 0)]) @ map_T_scan
    return np.concatenate(
        [candidate_T_query[:, :2, 3], yaw_of(candidate_T_query[:, :3, :3])[:, None]], axis=-1
    )


def pose_errors(rows: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) metres on the ground plane and (N,) degrees between estimated and true candidate_T_query."""
    difference = np.asarray(rows["match/pose"], np.float64) - true_poses(rows)
    return np.hypot(difference[:, 0], difference[:, 1]), np.rad2deg(np.abs(wrap_angle(difference[:, 2])))


def verified(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N,) bool: the frames whose retrieved candidate has enough inliers."""
    return (rows["match/candidate"] >= 0) & (rows["match/inliers"] >= int(cfg.eval.min_inliers))


def verification(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """{sequence: verified loops, how many of them are true, precision, median errors of the pose}."""
    accepted = verified(cfg, rows)
    translation, rotation = pose_errors(rows)
    tolerance = float(cfg.eval.pose_tolerance)
    found = {}
    for name, numbers in [*rows_by_sequence(rows).items(), (ALL, np.arange(len(accepted)))]:
        chosen = numbers[accepted[numbers]]
        true = int((translation[chosen] <= tolerance).sum())
        found[name] = {
            "verified": len(chosen),
            "true": true,
            "precision": true / len(chosen) if len(chosen) else None,
            "median_translation_m": float(np.median(translation[chosen])) if len(chosen) else None,
            "median_rotation_deg": float(np.median(rotation[chosen])) if len(chosen) else None,
        }
    return {
        "min_inliers": int(cfg.eval.min_inliers),
        "pose_tolerance_m": tolerance,
        "sequences": found,
    }


def summarize(scores: Mapping[str, Any]) -> dict[str, float]:
    """Nested scores → flat figures, of all sequences together, for the training log, the choice of the best
    checkpoint and targets.

    Keys: `recall_at_1`, `ap` (by `ap_policy`), `ap_standard`, `ap_lcdnet_p1`, `ap_pairs`, `max_f1`,
    `recall_at_full_precision`, `reverse_recall_at_1`, `reverse_ap` (and the other `KINDS`), with `fixed_`
    before those of the fixed protocol and then `rotated_`, `real_image_` or the name of a reference;
    `verified` and `verified_precision`. What is not defined is left out.
    """
    flat: dict[str, float | None] = {"queries": float(scores["queries"])}
    for estimate, protocols in scores["estimates"].items():
        name = estimate.removeprefix("model").removeprefix("_")
        for protocol, of_sequence in protocols.items():
            prefix = ("fixed_" if protocol == "fixed" else "") + (f"{name}_" if name else "")
            found = of_sequence[ALL]
            flat[f"{prefix}ap"] = found["ap"][scores["rule"]["ap_policy"]]
            flat |= {f"{prefix}ap_{policy}": value for policy, value in found["ap"].items()}
            for key in ("recall_at_1", "max_f1", "recall_at_full_precision"):
                flat[f"{prefix}{key}"] = found[key]
            for kind, part in found["kinds"].items():
                flat |= {f"{prefix}{kind}_{key}": part[key] for key in ("recall_at_1", "ap")}
    if "verification" in scores:
        part = scores["verification"]["sequences"][ALL]
        flat |= {"verified": float(part["verified"]), "verified_precision": part["precision"]}
    return {key: value for key, value in flat.items() if value is not None}


def judge(target: Mapping[str, Any], min_queries: int, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Compares figures of `summarize` with those of references and with fixed bounds.

    `target` is {"figures": (figure, ...), "references": (name, ...), "at_least": {figure: bound}}: the model
    must be above every reference in every figure, and reach every bound. A figure that is not defined,
    because no query is of its kind, fails; so do fewer than `min_queries` queries with a loop.
    """
    flat = summarize(scores)
    wanted = [
        (figure, reference_figure(figure, reference), f"above {reference}")
        for figure in target.get("figures", ())
        for reference in target.get("references", ())
    ]
    checks = []
    for figure, rival, words in wanted:
        ours, theirs = flat.get(figure), flat.get(rival)
        passed = ours is not None and theirs is not None and ours > theirs
        checks.append({"figure": figure, "ours": ours, "bound": theirs, "words": words, "passed": passed})
    for figure, bound in dict(target.get("at_least", {})).items():
        ours = flat.get(figure)
        passed = ours is not None and ours >= bound
        checks.append(
            {"figure": figure, "ours": ours, "bound": float(bound), "words": "at least", "passed": passed}
        )
    if not checks:
        raise ConfigError(
            "config.eval.target: expected figures with references, or at_least; found "
            f"{sorted(target)} with nothing to check"
        )
    queries = scores["counts"]["growing"][ALL]["with_loop"]
    enough = queries >= min_queries
    return {
        "checks": checks,
        "queries_with_loop": queries,
        "min_queries": min_queries,
        "enough_queries": enough,
        "passed": enough and all(check["passed"] for check in checks),
    }


def reference_figure(figure: str, reference: str) -> str:
    """What `summarize` calls that figure of a reference: `fixed_` stands before its name."""
    fixed = "fixed_" if figure.startswith("fixed_") else ""
    return f"{fixed}{reference}_{figure.removeprefix('fixed_')}"


def ablation_sizes(scores: Mapping[str, Any]) -> dict[str, int]:
    """{what: how many} queries stand behind the figures of the growing database, all sequences together."""
    counts = scores["counts"]["growing"][ALL]
    kinds = {kind.replace("_", " "): counts[kind] for kind in KINDS}
    return {"queries": counts["queries"], "with a loop": counts["with_loop"], **kinds}


def verdict(scores: Mapping[str, Any]) -> list[str]:
    """The target's outcome in words, one line a check; empty when the config sets no target."""
    if "target" not in scores:
        return []
    target = scores["target"]
    lines = [f"{'PASS' if target['passed'] else 'FAIL'}: figures against references and bounds"]
    for check in target["checks"]:
        ours, bound = (
            "not defined (no such query)" if v is None else f"{v:.3f}"
            for v in (check["ours"], check["bound"])
        )
        word = "met" if check["passed"] else "missed"
        lines.append(f"{check['figure']} {ours}, {check['words']} {bound}: {word}")
    relation = "at least" if target["enough_queries"] else "fewer than"
    lines.append(
        f"{target['queries_with_loop']} queries with a loop, {relation} the {target['min_queries']} asked for"
    )
    return lines


# --- Hooks of the commands ----------------------------------------------------------------------------------


def passes(cfg: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """{name: config} of the further passes that `cfg.eval` asks for; their rows are called `name/output`."""
    found = {}
    for name, (switch, settings) in PASSES.items():
        if cfg.eval.get(switch, False):
            changed = ml_collections.ConfigDict(cfg.to_dict())
            changed.update_from_flattened_dict(settings)
            found[name] = changed
    return found


def references(
    cfg: ml_collections.ConfigDict, prepared: PreparedFolder, rows: Mapping[str, np.ndarray], cache: Path
) -> dict[str, np.ndarray]:
    """Adds `distances/<estimate>/<protocol>/<sequence>` (n, n) of every reference in `cfg.eval.references`.

    An estimate is a reference, and where queries are turned at random also that, `<reference>_rotated`. The
    distances are computed from the prepared frames once and kept in the folder `cache`.
    """
    names = tuple(cfg.eval.get("references", ()))
    found = dict(rows)
    if not names:
        return found
    frames, numbers = frames_of(rows), rows_by_sequence(rows)
    tasks = tasks_of(cfg, frames)
    for sequence, here in numbers.items():
        index = np.asarray(rows["index"])[here]
        computed = reference_distances.References(prepared, index, cache)
        turned = {"": None}
        if cfg.eval.get("rotated_queries", False):
            turned["_rotated"] = np.array(
                [np.random.default_rng([cfg.eval.seed, i]).uniform(-np.pi, np.pi) for i in index]
            )
        for name in names:
            for suffix, yaw in turned.items():
                for protocol, of_sequence in tasks.items():
                    if sequence in of_sequence:
                        found[f"distances/{name}{suffix}/{protocol}/{sequence}"] = computed.distances(
                            name, of_sequence[sequence], yaw
                        )
    return found


def second_stage(
    method: ModuleType, cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Matches every query of the growing protocol with what it retrieved, in batches on the device.

    Adds what was retrieved, `retrieved/asked` (N,) bool, `retrieved/candidate` (N,) row number or −1,
    `retrieved/distance`, `retrieved/correct` and `retrieved/kind` (N,); and where the method gives key points
    `match/candidate` (N,) and `match/<output>` (N, ...) of its `match`: `pose` (N, 3) candidate_T_query,
    `inliers` (N,), `partner` and `inlier_mask` (N, K). With `config.eval.rerank` also the distances of
    `model_reranked`: see `loop_reranking`.
    """
    known = {**rows, **retrieved_rows(cfg, rows)}
    present = [name for name in KEYPOINTS if name in rows]
    if not hasattr(method, "match") or "keypoint_xy" not in present:
        return known
    count, candidate = len(known["retrieved/candidate"]), known["retrieved/candidate"]
    known["match/candidate"] = candidate
    asked = np.flatnonzero(candidate >= 0)
    if not asked.size:
        return known | _nothing_matched(count)
    matcher = _Matcher(method, cfg)
    features = {name: rows[name] for name in present}
    for name, values in matcher.match(features, features, asked, candidate[asked], "verify").items():
        whole = np.zeros((count, *values.shape[1:]), values.dtype)
        whole[asked] = values
        known[f"match/{name}"] = whole
    return known | _reranked_rows(cfg, rows, matcher)


class _Matcher:
    """The `match` of a method, compiled once for batches of `config.eval.match_batch` pairs."""

    def __init__(self, method: ModuleType, cfg: ml_collections.ConfigDict) -> None:
        frozen = ml_collections.FrozenConfigDict(cfg)
        self._match = jax.jit(lambda query, answer: method.match(frozen, query, answer))
        self._size = int(cfg.eval.get("match_batch", 32))

    def match(
        self,
        asking: Mapping[str, np.ndarray],
        answering: Mapping[str, np.ndarray],
        query: np.ndarray,
        candidate: np.ndarray,
        label: str,
    ) -> dict[str, np.ndarray]:
        """Key points of frames as they ask and as they answer, M > 0 pairs of rows → outputs (M, ...)."""
        parts = []
        with tqdm(total=len(query), desc=label, unit="loop", disable=jax.process_index() > 0) as bar:
            for start in range(0, len(query), self._size):
                here = np.arange(start, min(start + self._size, len(query)))
                # The last batch is filled up with its first row: one shape, one compilation.
                filled = np.concatenate([here, np.repeat(here[:1], self._size - len(here))])
                sides = (
                    {name: values[query[filled]] for name, values in asking.items()},
                    {name: values[candidate[filled]] for name, values in answering.items()},
                )
                parts.append({k: v[: len(here)] for k, v in jax.device_get(self._match(*sides)).items()})
                bar.update(len(here))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def inliers(
        self,
        asking: Mapping[str, np.ndarray],
        answering: Mapping[str, np.ndarray],
        numbers: np.ndarray,
        query: np.ndarray,
        candidate: np.ndarray,
    ) -> np.ndarray:
        """Pairs of frames of a sequence whose rows are `numbers` (n,) → (M,) inliers."""
        return self.match(asking, answering, numbers[query], numbers[candidate], "re-rank")["inliers"]


def _reranked_rows(
    cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray], matcher: _Matcher
) -> dict[str, np.ndarray]:
    """`distances/model_reranked[_pass]/<protocol>/<sequence>`: the model's first `config.eval.rerank` of each
    query in the order of their inliers; nothing where that is 0."""
    count = int(cfg.eval.get("rerank", 0))
    if not count:
        return {}
    numbers = rows_by_sequence(rows)
    tasks = tasks_of(cfg, frames_of(rows))
    features = {name: rows[name] for name in KEYPOINTS if name in rows}
    found = {}
    described = {name: values for name, values in rows.items() if name.endswith("descriptor")}
    for estimate, distances in _distances(described, numbers, tasks):
        suffix = estimate.removeprefix("model")
        pass_ = suffix.removeprefix("_")
        asking = {name: rows[f"{pass_}/{name}"] for name in features} if pass_ else features
        answering = asking if pass_ in _BOTH_SIDES else features
        for protocol, of_sequence in tasks.items():
            for name, task in of_sequence.items():
                found[f"distances/model_reranked{suffix}/{protocol}/{name}"] = loop_reranking.reranked(
                    task,
                    distances[protocol][name],
                    count,
                    most=features["keypoint_mask"].shape[1],
                    inliers_of=functools.partial(matcher.inliers, asking, answering, numbers[name]),
                )
    return found


def retrieved_rows(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`retrieved/...` of `second_stage` for the first estimate: the model, where there is one."""
    count = len(rows["sequence_position"])
    found = {
        "asked": np.zeros(count, bool),
        "candidate": np.full(count, -1),
        "distance": np.full(count, np.inf, np.float32),
        "correct": np.zeros(count, bool),
        "kind": np.zeros(count, np.int64),
    }
    numbers = rows_by_sequence(rows)
    first = next(iter(outcomes(cfg, rows, only="model" if "descriptor" in rows else None).values()))
    for name, answers in first["growing"].answers.items():
        query = numbers[name][answers.query]
        found["asked"][query] = True
        reached = answers.candidate >= 0
        found["candidate"][query[reached]] = numbers[name][answers.candidate[reached]]
        found["distance"][query] = answers.retrieved.distance
        found["correct"][query] = answers.retrieved.correct
        found["kind"][query] = answers.kind
    return {f"retrieved/{name}": values for name, values in found.items()}


def _nothing_matched(count: int) -> dict[str, np.ndarray]:
    return {"match/pose": np.zeros((count, 3), np.float32), "match/inliers": np.zeros(count, np.int32)}


def watched(
    cfg: ml_collections.ConfigDict, prepared: PreparedFolder, split: str, limit: int | None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(≤ limit,) ascending numbers of the examples of a split that training's evaluation looks at, and what
    `annotate` knows of them.

    An even stride would tear loops apart: with every eighth frame the nearest earlier one is metres away. So
    of a split larger than `limit` half are queries with a loop, evenly spread, with the nearest of their
    loops, and the rest are evenly spread over the other frames. R@1 then means what it does for the whole
    split, among fewer candidates; precision is of another share of queries with a loop, so that AP can be
    compared between checkpoints and not with the report's.
    """
    known = annotate(prepared, {"index": prepared.split(cfg.data.scheme, split)})
    examples = np.arange(len(known["index"]))
    if limit is not None and limit < len(examples):
        examples = _loops_and_others(cfg, known, limit)
    return examples, {name: values[examples] for name, values in known.items() if name != "index"}


def _loops_and_others(
    cfg: ml_collections.ConfigDict, known: Mapping[str, np.ndarray], limit: int
) -> np.ndarray:
    """(limit,) ascending row numbers: see `watched`."""
    chosen = np.zeros(len(known["index"]), bool)
    pairs = []
    numbers = rows_by_sequence(known)
    for name, task in tasks_of(cfg, frames_of(known))["growing"].items():
        xyz = known["map_T_lidar"][numbers[name]][:, :3, 3]
        apart = np.linalg.norm(xyz[task.pair_query] - xyz[task.pair_candidate], axis=1)
        nearest_first = np.lexsort((apart, task.pair_query))
        query, first = np.unique(task.pair_query[nearest_first], return_index=True)
        nearest = task.pair_candidate[nearest_first][first]
        pairs.append(np.stack([numbers[name][query], numbers[name][nearest]], axis=-1))
    loops = np.concatenate([np.zeros((0, 2), np.int64), *pairs])
    chosen[loops[spread(len(loops), limit // 4)]] = True
    others = np.flatnonzero(~chosen)
    chosen[others[spread(len(others), limit - int(chosen.sum()))]] = True
    return np.flatnonzero(chosen)


# --- The report ---------------------------------------------------------------------------------------------


def choose_examples(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{group: row numbers}: query, candidate, query, candidate, ...; `cfg.eval.pictures` pairs of each
    group."""
    from placerec_jax.evaluation import loop_report

    return loop_report.choose_examples(cfg, rows)


def tables(scores: Mapping[str, Any], method: ModuleType) -> "list[Table]":
    """The tables of the report, for the terminal."""
    from placerec_jax.evaluation import loop_report  # draws with matplotlib, which training does not load

    return loop_report.tables(scores)


def report(
    cfg: ml_collections.ConfigDict,
    scores: Mapping[str, Any],
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]],
    method: ModuleType,
    prepared: PreparedFolder,
) -> "list[Section]":
    """Annotated rows and {group: (features, predictions)} of chosen examples → the sections of the page."""
    from placerec_jax.evaluation import loop_report

    return loop_report.sections(cfg, scores, rows, examples, method)


def files(rows: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """What the report's folder holds beside the page: every query in `queries.csv`."""
    from placerec_jax.evaluation import loop_report

    return {"queries.csv": loop_report.queries_csv(rows)}
