"""Scores of an estimated SE(2) offset: recalls, medians, and what doing nothing would have scored.

Rows hold `pose` (N, 3), the predicted offset T̂, `true_pose` (N, 3), the true offset T, and where the method has a coarse stage
`coarse_pose` (N, 3); all (m, m, rad). The error is E = T⁻¹·T̂, so its translation R(θ)ᵀ(t̂ − t) is expressed in the frame of the
true vehicle: x longitudinal, y lateral (MapLocNet, arXiv 2407.08561, section IV).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from placerec_jax.ops.rigid import se2_compose, se2_inverse

# Error → its unit, in the order of the tables.
ERRORS = {"position": "m", "longitudinal": "m", "lateral": "m", "orientation": "deg"}
BOOTSTRAP_RESAMPLES = 1000


def pose_errors(pose: np.ndarray, true_pose: np.ndarray) -> dict[str, np.ndarray]:
    """(..., 3), (..., 3) offsets (m, m, rad) → absolute errors (...): metres, and degrees for `orientation`."""
    error = se2_compose(se2_inverse(true_pose.astype(np.float64)), pose.astype(np.float64))
    return {
        "position": np.hypot(error[..., 0], error[..., 1]),
        "longitudinal": np.abs(error[..., 0]),
        "lateral": np.abs(error[..., 1]),
        "orientation": np.rad2deg(np.abs(error[..., 2])),
    }


def estimates(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What is scored side by side: the prediction, the coarse stage where there is one, and the zero offset (N, 3)."""
    found = {"prediction": rows["pose"]}
    if "coarse_pose" in rows:
        found["coarse"] = rows["coarse_pose"]
    found["do_nothing"] = np.zeros_like(rows["pose"])
    return found


def recall(errors: np.ndarray, thresholds: Sequence[float]) -> list[float]:
    """(N,) errors → the percentage at or below each threshold."""
    return [100.0 * float(np.mean(errors <= threshold)) for threshold in thresholds]


def median_interval(
    errors: np.ndarray, groups: np.ndarray, seed: int, resamples: int = BOOTSTRAP_RESAMPLES
) -> list[float]:
    """95 % percentile-bootstrap interval of the median of (N,) errors, resampling whole (N,) groups with replacement.

    Neighbouring frames of a drive are alike; resampling drives instead of frames keeps the interval honest.
    """
    _, group_of_row = np.unique(groups, return_inverse=True)
    count = group_of_row.max() + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    order = np.argsort(errors)
    # How often each sorted error is in a resample; the median is where half of the resample is reached.
    cumulative = np.cumsum(draws[:, group_of_row[order]], axis=1)
    reached = 2 * cumulative >= cumulative[:, -1:]
    medians = errors[order][np.argmax(reached, axis=1)]
    return [float(bound) for bound in np.percentile(medians, [2.5, 97.5])]


def check_rows(rows: dict[str, np.ndarray]) -> None:
    """Raises ValueError naming the array when rows cannot be scored."""
    for name in ("pose", "true_pose"):
        if name not in rows:
            raise ValueError(
                f"the pose evaluator needs {name!r} (N, 3) among the method's predictions; found {sorted(rows)}"
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
                f"{name}: {bad.sum()} of {queries} rows are not finite, the first is row {int(np.argmax(bad))}; "
                "the model has diverged or the checkpoint is damaged"
            )


def score(cfg: Any, rows: dict[str, np.ndarray]) -> dict[str, Any]:
    """Rows → nested, JSON-able scores of the prediction, the coarse stage and doing nothing, by the same code.

    Reads `cfg.eval.thresholds` (m and degrees), `cfg.eval.seed` and, where set, `cfg.eval.target` with
    `cfg.eval.min_queries`. `rows["scene"]` (N,), where given, groups the frames of a drive for the intervals.
    Raises ValueError on missing, misshapen, empty or non-finite rows.
    """
    check_rows(rows)
    thresholds = [float(threshold) for threshold in cfg.eval.thresholds]
    queries = len(rows["true_pose"])
    groups = rows.get("scene", np.arange(queries))
    scored: dict[str, Any] = {}
    for name, pose in estimates(rows).items():
        scored[name] = {}
        for kind, errors in pose_errors(pose, rows["true_pose"]).items():
            scored[name][kind] = {
                "recall": recall(errors, thresholds),
                "median": float(np.median(errors)),
                "median_interval_95": median_interval(errors, groups, cfg.eval.seed),
                "mean": float(np.mean(errors)),
                "p90": float(np.percentile(errors, 90)),
            }
    scores = {
        "queries": queries,
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


def judge(target: dict[str, float], min_queries: int, scores: dict[str, Any]) -> dict[str, Any]:
    """Compares medians with the shares of the do-nothing median that `target` allows.

    `target` is {"position_median": 0.5, ...}: error name + "_median" → largest ratio. Fails also for too few queries.
    """
    checks = []
    for name, allowed in target.items():
        kind, _, statistic = name.rpartition("_")
        if kind not in ERRORS or statistic != "median":
            raise ValueError(
                f"config.eval.target.{name}: expected one of {[f'{kind}_median' for kind in ERRORS]}"
            )
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


def verdict(scores: dict[str, Any]) -> list[str]:
    """The target's outcome in words, one line a check; empty when the config sets no target."""
    if "target" not in scores:
        return []
    target = scores["target"]
    lines = [f"{'PASS' if target['passed'] else 'FAIL'}: medians against the allowed share of doing nothing"]
    for check in target["checks"]:
        relation = "within" if check["passed"] else "above"
        limit = check["allowed_ratio"] * check["do_nothing_median"]
        lines.append(
            f"{check['error']} median {check['median']:.2f} {check['unit']}, {relation} {limit:.2f} {check['unit']} = "
            f"{check['allowed_ratio']:g} x {check['do_nothing_median']:.2f} {check['unit']} of doing nothing"
        )
    relation = "at least" if target["enough_queries"] else "fewer than"
    lines.append(f"{target['queries']} queries, {relation} the {target['min_queries']} asked for")
    return lines


def summarize(scores: dict[str, Any]) -> dict[str, float]:
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
