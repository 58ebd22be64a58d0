"""Precision and recall of retrieved loops, under the three ways of counting that are in use.

Every query retrieves its nearest candidate at a distance; it is accepted when that is at or below a
threshold, and the threshold is swept over the distances that occur. Equal distances are accepted together. Of
an accepted query, T is one whose candidate is a true loop, F one whose candidate is none.

- `standard`: precision T / (T + F), recall T / (queries that have a loop). What a query with a loop retrieves
  wrongly stays missed. AP = Σ_i (r_i − r_{i−1}) p_i with r_0 = 0. Where every query with a loop retrieves
  one, this is scikit-learn's `average_precision_score`; else that times R@1, since a wrong retrieval never
  becomes right.
- `lcdnet_p1`: as LCDNet's first protocol. Recall T / (T + rejected queries that have a loop): a query that
  has a loop and accepts a wrong candidate leaves the denominator, so that the last recall is 1 whatever was
  retrieved wrongly. AP is the same sum without its first segment.
- `pairs`: every pair of a query and a candidate is a sample, true or not; scikit-learn's definition exactly.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

POLICIES = ("standard", "lcdnet_p1", "pairs")


@dataclasses.dataclass(frozen=True)
class Retrieved:
    """What Q queries retrieved: `distance` (Q,) to the nearest candidate, inf where there is none; `correct`
    (Q,) whether it is a true loop; `has_loop` (Q,) whether any candidate is."""

    distance: np.ndarray
    correct: np.ndarray
    has_loop: np.ndarray

    def __len__(self) -> int:
        return len(self.distance)

    def subset(self, chosen: np.ndarray) -> "Retrieved":
        """The queries where `chosen` (Q,) is True."""
        return Retrieved(self.distance[chosen], self.correct[chosen], self.has_loop[chosen])


@dataclasses.dataclass(frozen=True)
class Curve:
    """Precision and recall (T,) at ascending thresholds (T,); empty where nothing is ever accepted."""

    threshold: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


def standard_curve(retrieved: Retrieved) -> Curve:
    """Precision and recall, the latter over all queries that have a loop (0 where none has)."""
    threshold, true, false, _ = _sweep(retrieved)
    return Curve(threshold, true / (true + false), true / max(int(retrieved.has_loop.sum()), 1))


def lcdnet_curve(retrieved: Retrieved) -> Curve:
    """Precision and recall, the latter over right acceptances and rejected queries that have a loop."""
    threshold, true, false, rejected = _sweep(retrieved)
    # Where every query with a loop accepted a wrong candidate, nothing is left to recall: 0 of 0 counts as 0.
    return Curve(threshold, true / (true + false), true / np.maximum(true + rejected, 1))


CURVES: dict[str, Callable[[Retrieved], Curve]] = {"standard": standard_curve, "lcdnet_p1": lcdnet_curve}


def pair_curve(true_distances: np.ndarray, false_distances: Iterable[np.ndarray]) -> Curve:
    """(P,) distances of the true pairs and blocks of those of the false ones → precision and recall at every
    distance of a true pair, all that average precision needs.

    Blocks may be of any shape and are read once: a sequence has some 10^7 pairs. Pairs at infinity are never
    accepted.
    """
    finite = true_distances[np.isfinite(true_distances)]
    threshold, count = np.unique(finite, return_counts=True)
    true, false = np.cumsum(count), np.zeros(len(threshold), np.int64)
    for block in false_distances:
        # Sorting a block costs less than looking up each of its distances among the thresholds.
        false += np.searchsorted(np.sort(block, axis=None), threshold, side="right")
    return Curve(threshold, true / (true + false), true / max(len(true_distances), 1))


def average_precision(curve: Curve, *, drop_first: bool = False) -> float:
    """Σ_i (r_i − r_{i−1}) p_i over the thresholds, r_0 = 0; without i = 0 where `drop_first`
    (`lcdnet_p1`)."""
    gained = np.diff(curve.recall, prepend=0.0)
    return float(np.sum((gained * curve.precision)[int(drop_first) :]))


def average_precision_by(policy: str, retrieved: Retrieved) -> float:
    """Average precision of retrievals under `standard` or `lcdnet_p1`."""
    return average_precision(CURVES[policy](retrieved), drop_first=policy == "lcdnet_p1")


def recall_at_1(retrieved: Retrieved) -> float | None:
    """Share of the queries with a loop whose nearest candidate is one; None where none has a loop."""
    asked = int(retrieved.has_loop.sum())
    return float(retrieved.correct.sum() / asked) if asked else None


def best_f1(curve: Curve) -> tuple[float, float | None]:
    """The largest F1 = 2pr / (p + r) of a curve and the threshold that gives it; (0, None) without any."""
    total = curve.precision + curve.recall
    f1 = np.divide(2 * curve.precision * curve.recall, total, out=np.zeros_like(total), where=total > 0)
    if not f1.size or f1.max() <= 0:
        return 0.0, None
    best = int(np.argmax(f1))
    return float(f1[best]), float(curve.threshold[best])


def recall_at_full_precision(curve: Curve) -> float:
    """The largest recall at a threshold that accepts no false candidate; 0 where every threshold does."""
    clean = curve.recall[curve.precision == 1.0]
    return float(clean.max()) if clean.size else 0.0


def _sweep(retrieved: Retrieved) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(T,) distinct distances ascending; T and F accepted up to each; queries with a loop rejected there."""
    reached = np.isfinite(retrieved.distance)
    threshold, place = np.unique(retrieved.distance[reached], return_inverse=True)

    def accepted(which: np.ndarray) -> np.ndarray:
        return np.cumsum(np.bincount(place[which[reached]], minlength=len(threshold)))

    rejected = int(retrieved.has_loop.sum()) - accepted(retrieved.has_loop)
    return threshold, accepted(retrieved.correct), accepted(~retrieved.correct), rejected
