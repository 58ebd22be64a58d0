"""The first few retrieved frames in the order of their geometric agreement with the query.

A descriptor says that two scans are alike; that their key points fit one planar motion says more. What is
retrieved first by the descriptor is compared so, and the candidate with most inliers comes first.
"""

from collections.abc import Callable

import numpy as np

from placerec_jax.evaluation.loop_retrieval import Task, first_few

# (query frames (M,), candidate frames (M,)) → (M,) inliers of each pair.
CountInliers = Callable[[np.ndarray, np.ndarray], np.ndarray]


def reranked(
    task: Task, distances: np.ndarray, count: int, most: int, inliers_of: CountInliers
) -> np.ndarray:
    """(n, n) distances → (n, n) float32 by which the `count` nearest of every query are ordered by inliers.

    A pair of i inliers, the r-th nearest of its query, has most − i + r / (count + 1): more inliers are
    nearer, among equals the descriptor decides. `most` is the largest number of inliers there can be. All
    other pairs are inf: not to be had.
    """
    candidate = first_few(task, distances, count)
    place, rank = np.nonzero(candidate >= 0)
    query, chosen = task.query[place], candidate[place, rank]
    found = np.full(distances.shape, np.inf, np.float32)
    if len(query):
        found[query, chosen] = most - inliers_of(query, chosen) + rank / (count + 1)
    return found
