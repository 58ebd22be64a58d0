"""The pose evaluator: errors of an estimated SE(2) offset, and what doing nothing would have scored.

Rows hold `pose` (N, 3), the predicted offset T̂, `true_pose` (N, 3), the true offset T, and where the method
has a coarse stage `coarse_pose` (N, 3); all (m, m, rad). The error is E = T⁻¹·T̂, so its translation
R(θ)ᵀ(t̂ − t) is expressed in the frame of the true vehicle: x longitudinal, y lateral (MapLocNet,
arXiv 2407.08561, section IV).

What every evaluator module defines: `annotate`, `score`, `summarize`, `verdict`, `tables`, `choose_examples`,
`report` and `files`. Training calls `score` and `summarize`; `placerec_jax.evaluate` calls them all.
Optional hooks (`SCORED`, `KEEP`, `passes`, `references`, `second_stage`, `watched`) are described in
`loop_closure.py`.
"""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import ml_collections
import numpy as np

from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.data.records import as_text
from placerec_jax.errors import ConfigError
from placerec_jax.ops.rigid import se2_compose, se2_inverse

if TYPE_CHECKING:
    from placerec_jax.evaluation.report import Section, Table

# Error → its unit, in the order of the tables.
ERRORS = {"position": "m", "longitudinal": "m", "lateral": "m", "orientation": "deg"}
BOOTSTRAP_RESAMPLES = 1000


def pose_errors(pose: np.ndarray, true_pose: np.ndarray) -> dict[str, np.ndarray]:
    """(..., 3), (..., 3) offsets (m, m, rad) → absolute errors (...), in the units of `ERRORS`."""
    error = se2_compose(se2_inverse(true_pose.astype(np.float64)), pose.astype(np.float64))
    return {
        "position": np.hypot(error[..., 0], error[..., 1]),
        "longitudinal": np.abs(error[..., 0]),
        "lateral": np.abs(error[..., 1]),
        "orientation": np.rad2deg(np.abs(error[..., 2])),
    }


def estimates(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is scored side by side, (N, 3) each: prediction, coarse stage where there is one, zero offset."""
    found = {"prediction": rows["pose"]}
    if "coarse_pose" in rows:
        found["coarse"] = rows["coarse_pose"]
    found["do_nothing"] = np.zeros_like(rows["pose"])
    return found


def recall(errors: np.ndarray, thresholds: Sequence[float]) -> list[float]:
    """(N,) errors → the percentage at or below each threshold."""
    return [100.0 * float(np.mean(errors <= threshold)) for threshold in thresholds]


def bootstrap_counts(groups: np.ndarray, seed: int, resamples: int = BOOTSTRAP_RESAMPLES) -> np.ndarray:
    """(N,) group of every row → (resamples, N): how often each row is in a resample of whole groups.

    Neighbouring frames of a drive are alike; resampling drives instead of frames keeps an interval honest.
    """
    _, group_of_row = np.unique(groups, return_inverse=True)
    count = group_of_row.max() + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return draws.astype(np.int32)[:, group_of_row]


def median_interval(errors: np.ndarray, counts: np.ndarray) -> list[float]:
    """95 % percentile-bootstrap interval of the median of (N,) errors under `bootstrap_counts`."""
    order = np.argsort(errors)
    cumulative = np.cumsum(counts[:, order], axis=1)
    # A resample's median is where half of its rows are reached.
    medians = errors[order][np.argmax(2 * cumulative >= cumulative[:, -1:], axis=1)]
    return [float(bound) for bound in np.percentile(medians, [2.5, 97.5])]


def check_rows(rows: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError naming the array when rows cannot be scored."""
    for name in ("pose", "true_pose"):
        if name not in rows:
            raise ValueError(
                f"the pose evaluator needs {name!r} (N, 3) among the predictions; found {sorted(rows)}"
            )
    queries = len(rows["true_pose"])
    if queries == 0:
        raise ValueError("there is nothing to score: 0 queries; is the split empty?")
    for name in ("pose", "true_pose", "coarse_pose"):
        if name not in rows:
            continue
        if rows[name].shape != (queries, 3):
            raise ValueError(f"{name}: expected shape {(queries, 3)}, found {rows[name].shape}")
        bad = ~np.isfinite(rows[name]).all(axis=-1)
        if bad.any():
            raise ValueError(
                f"{name}: {bad.sum()} of {queries} rows are not finite, the first is row "
                f"{int(np.argmax(bad))}; the model has diverged or the checkpoint is damaged"
            )


def annotate(prepared: PreparedFolder, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds what the frames table says of every `index`: token, scene, location, `map_pose_ego` (N, 3)."""
    frames = prepared.table("frames")
    records = [frames.read(int(index), images=False) for index in rows["index"]]
    texts = {
        name: np.array([as_text(record[name]) for record in records])
        for name in ("token", "scene", "location")
    }
    return {**rows, **texts, "map_pose_ego": np.array([record["map_pose_ego"] for record in records])}


def score(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Rows → nested, JSON-able scores of prediction, coarse stage and doing nothing, all by the same code.

    Reads `cfg.eval.thresholds` (m and degrees), `cfg.eval.seed` and, where set, `cfg.eval.target` with
    `cfg.eval.min_queries`. `rows["scene"]` (N,), where given, groups the frames of a drive for the intervals.
    Raises ValueError on missing, misshapen, empty or non-finite rows.
    """
    check_rows(rows)
    thresholds = [float(threshold) for threshold in cfg.eval.thresholds]
    queries = len(rows["true_pose"])
    groups = rows.get("scene", np.arange(queries))
    counts = bootstrap_counts(groups, cfg.eval.seed)
    scored: dict[str, Any] = {}
    for name, pose in estimates(rows).items():
        scored[name] = {}
        for kind, errors in pose_errors(pose, rows["true_pose"]).items():
            scored[name][kind] = {
                "recall": recall(errors, thresholds),
                "median": float(np.median(errors)),
                "median_interval_95": median_interval(errors, counts),
                "mean": float(np.mean(errors)),
                "p90": float(np.percentile(errors, 90)),
            }
    largest = {kind: float(errors.max()) for kind, errors in _offsets(rows).items()}
    scores = {
        "queries": queries,
        "largest_offset": largest,
        "thresholds": thresholds,
        "units": dict(ERRORS),
        "seed": int(cfg.eval.seed),
        "interval": {
            "method": "percentile bootstrap",
            "resamples": BOOTSTRAP_RESAMPLES,
            "unit": "scene" if "scene" in rows else "frame",
            "units": len(np.unique(groups)),
        },
        "estimates": scored,
    }
    if cfg.eval.get("target"):
        scores["target"] = judge(dict(cfg.eval.target), int(cfg.eval.min_queries), scores)
    return scores


def _offsets(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sizes of the true offsets along the axes of the noisy frame, in which they were drawn."""
    return pose_errors(rows["true_pose"], np.zeros_like(rows["true_pose"]))


def judge(target: dict[str, float], min_queries: int, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Compares medians with the shares of the do-nothing median that `target` allows.

    `target` is {"position_median": 0.5, ...}: error + "_median" → largest ratio. Too few queries fail, too.
    """
    known = [f"{kind}_median" for kind in ERRORS]
    unknown = sorted(set(target) - set(known))
    if unknown:
        raise ConfigError(f"config.eval.target.{unknown[0]}: expected one of {known}")
    checks = []
    for kind in ERRORS:
        if f"{kind}_median" not in target:
            continue
        allowed = target[f"{kind}_median"]
        ours = scores["estimates"]["prediction"][kind]["median"]
        nothing = scores["estimates"]["do_nothing"][kind]["median"]
        checks.append(
            {
                "error": kind,
                "unit": ERRORS[kind],
                "median": ours,
                "do_nothing_median": nothing,
                "allowed_ratio": float(allowed),
                "passed": bool(ours <= allowed * nothing),
            }
        )
    enough = scores["queries"] >= min_queries
    return {
        "checks": checks,
        "queries": scores["queries"],
        "min_queries": min_queries,
        "enough_queries": enough,
        "passed": enough and all(check["passed"] for check in checks),
    }


def verdict(scores: Mapping[str, Any]) -> list[str]:
    """The target's outcome in words, one line a check; empty when the config sets no target."""
    if "target" not in scores:
        return []
    target = scores["target"]
    word = "PASS" if target["passed"] else "FAIL"
    lines = [f"{word}: medians against the allowed share of doing nothing"]
    for check in target["checks"]:
        relation = "within" if check["passed"] else "above"
        limit = check["allowed_ratio"] * check["do_nothing_median"]
        unit = check["unit"]
        lines.append(
            f"{check['error']} median {check['median']:.2f} {unit}, {relation} {limit:.2f} {unit} = "
            f"{check['allowed_ratio']:g} x {check['do_nothing_median']:.2f} {unit} of doing nothing"
        )
    relation = "at least" if target["enough_queries"] else "fewer than"
    lines.append(f"{target['queries']} queries, {relation} the {target['min_queries']} asked for")
    return lines


def summarize(scores: Mapping[str, Any]) -> dict[str, float]:
    """Nested scores → flat figures for the training log and the choice of the best checkpoint.

    Keys: `position_median`, `orientation_median`, `position_recall_1m`, `coarse_position_median`,
    `do_nothing_position_median` and so on.
    """
    flat = {"queries": float(scores["queries"])}
    for name, kinds in scores["estimates"].items():
        prefix = "" if name == "prediction" else f"{name}_"
        for kind, figures in kinds.items():
            flat[f"{prefix}{kind}_median"] = figures["median"]
            flat[f"{prefix}{kind}_mean"] = figures["mean"]
            for threshold, value in zip(scores["thresholds"], figures["recall"], strict=True):
                flat[f"{prefix}{kind}_recall_{threshold:g}{ERRORS[kind]}"] = value
    return flat


def choose_examples(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{"best", "median", "worst": row numbers} by position error, `cfg.eval.pictures` (default 2) of each."""
    order = np.argsort(pose_errors(rows["pose"], rows["true_pose"])["position"], kind="stable")
    count = min(cfg.eval.pictures, len(order))
    middle = max(0, len(order) // 2 - count // 2)
    return {
        "best": order[:count],
        "median": order[middle : middle + count],
        "worst": order[::-1][:count],
    }


def tables(scores: Mapping[str, Any], method: ModuleType) -> "list[Table]":
    """The tables of the report, for the terminal."""
    from placerec_jax.evaluation import pose_report  # draws with matplotlib, which training does not load

    return [pose_report.error_table(scores), *pose_report.recall_tables(scores, method)]


def report(
    cfg: ml_collections.ConfigDict,
    scores: Mapping[str, Any],
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]],
    method: ModuleType,
    prepared: PreparedFolder,
) -> "list[Section]":
    """Annotated rows and {group: (features, predictions)} of chosen examples → the sections of the page."""
    from placerec_jax.evaluation import pose_report

    return pose_report.sections(cfg, scores, rows, examples, method, prepared)


def files(rows: Mapping[str, np.ndarray]) -> dict[str, bytes]:
    """What the report's folder holds beside the page: every query in `queries.csv`."""
    from placerec_jax.evaluation import pose_report

    return {"queries.csv": pose_report.queries_csv(rows)}
