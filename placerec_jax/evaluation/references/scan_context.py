"""Scan Context: the greatest height over polar sectors, compared under every turn that is likely.

Kim and Kim, "Scan Context: Egocentric spatial descriptor for place recognition within 3D point cloud map",
IROS 2018. Written from the description: 20 rings × 60 sectors within 80 m.
"""

from typing import NamedTuple

import numpy as np

from placerec_jax.evaluation.reference_inputs import Stack, check_points, check_stacks

NEEDS = "points"
PRESELECTS = True

RINGS = 20
SECTORS = 60
REACH = 80.0  # m
SENSOR_HEIGHT = 2.0  # m added to z, so that the ground is about 0
REFINE = 3  # sectors to either side of the sector keys' best turn: a tenth of all sectors are looked at
_AT_ONCE = 2**18  # pairs compared at once; their distances under 60 turns then take 63 MB


def describe(points: np.ndarray) -> Stack:
    """(N, 3) points (m) → `context` (20, 60) and its `ring_key` (20,), float32.

    A cell holds max(z + 2 m) of its points; empty cells, and those wholly below −2 m, hold 0. The ring key is
    the mean over sectors, which no turn changes.
    """
    points = check_points(points)
    distance = np.hypot(points[:, 0], points[:, 1])
    points, distance = points[distance < REACH], distance[distance < REACH]
    ring = np.minimum((distance * (RINGS / REACH)).astype(np.int64), RINGS - 1)
    turn = np.arctan2(points[:, 1], points[:, 0]) / (2 * np.pi)  # −1/2 to 1/2
    sector = np.floor(turn * SECTORS).astype(np.int64) % SECTORS
    context = np.zeros(RINGS * SECTORS, np.float32)
    np.maximum.at(context, ring * SECTORS + sector, points[:, 2] + np.float32(SENSOR_HEIGHT))
    context = context.reshape(RINGS, SECTORS)
    return {"context": context, "ring_key": context.mean(axis=1)}


def distances(
    queries: Stack,
    database: Stack,
    allowed: np.ndarray | None = None,
    *,
    candidates: int | None = 10,
    all_turns: bool = False,
) -> np.ndarray:
    """(Q, D) float32: 1 − mean cosine of the sectors that both scans see, at the best turn.

    Args:
      queries, database: stacks of `describe`.
      allowed: (Q, D) bool, which pairs may be compared; ring keys are searched among these only.
      candidates: how many scans with the nearest ring keys are compared, the others get inf; None: all.
      all_turns: try all 60 turns instead of the seven about the sector keys' best.
    """
    check_stacks(queries, database, "context", allowed)
    result = np.full((len(queries["context"]), len(database["context"])), np.inf, np.float32)
    if not result.size:
        return result
    if candidates is None:
        whole = _spectra(database["context"])
        step = max(1, _AT_ONCE // result.shape[1])
        for start in range(0, len(result), step):
            rows = slice(start, start + step)
            result[rows] = _compare(_spectra(queries["context"][rows]), whole, all_turns)[0]
    else:
        chosen = _nearest_ring_keys(queries["ring_key"], database["ring_key"], allowed, candidates)
        step = max(1, _AT_ONCE // chosen.shape[1] // RINGS)
        for start in range(0, len(result), step):
            rows = slice(start, start + step)
            query = _spectra(queries["context"][rows, None])
            found, _ = _compare(query, _spectra(database["context"][chosen[rows]]), all_turns)
            np.put_along_axis(result[rows], chosen[rows], found[:, 0], axis=1)
    if allowed is not None:
        result[~np.asarray(allowed, bool)] = np.inf
    return result


def compare(
    queries: np.ndarray, database: np.ndarray, *, all_turns: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """(..., M, 20, 60) and (..., K, 20, 60) contexts → (..., M, K) distances and turns in whole sectors.

    A turn t of 0 to 59 says: sector j of the query is sector j + t of the database scan, so the query's
    vehicle heads t · 6° further to the left.
    """
    return _compare(_spectra(queries), _spectra(database), all_turns)


class _Spectra(NamedTuple):
    """Fourier series over the sectors: products of them are sums over sectors under every turn at once."""

    unit: np.ndarray  # (..., 31, N, 20) complex64: sectors scaled to length one
    seen: np.ndarray  # (..., 31, N, 1): 1 where a sector holds anything
    key: np.ndarray  # (..., 31, N, 1): the sector key, each sector's mean height


def _spectra(context: np.ndarray) -> _Spectra:
    """(..., N, 20, 60) → spectra with the frequency ahead of the scans."""
    length = np.linalg.norm(context, axis=-2, keepdims=True)
    unit = context / np.where(length > 0, length, 1)
    parts = unit, (length > 0).astype(np.float32), context.mean(axis=-2, keepdims=True)
    return _Spectra(*(np.moveaxis(np.fft.rfft(part, axis=-1), -1, -3) for part in parts))


def _correlate(query: np.ndarray, database: np.ndarray) -> np.ndarray:
    """(..., 31, M, R), (..., 31, K, R) → (..., 60, M, K): Σ_rj query[r, j] database[r, j + t] of turn t."""
    product = query.conj() @ np.swapaxes(database, -1, -2)
    return np.fft.irfft(product, n=SECTORS, axis=-3)


def _compare(query: _Spectra, database: _Spectra, all_turns: bool) -> tuple[np.ndarray, np.ndarray]:
    """(..., M, K) distances and turns."""
    both_see = np.rint(_correlate(query.seen, database.seen))
    cosines = _correlate(query.unit, database.unit)
    similarity = np.where(both_see > 0, cosines / np.maximum(both_see, 1), 0)
    if not all_turns:
        # Turning leaves a key's length as it is: the least difference is the greatest product.
        best = _correlate(query.key, database.key).argmax(axis=-3, keepdims=True)
        turns = np.arange(SECTORS).reshape(-1, 1, 1)
        apart = np.abs(turns - best)
        similarity = np.where(np.minimum(apart, SECTORS - apart) <= REFINE, similarity, -np.inf)
    turn = similarity.argmax(axis=-3)
    return np.clip(1 - similarity.max(axis=-3), 0, 1), turn


def _nearest_ring_keys(
    queries: np.ndarray, database: np.ndarray, allowed: np.ndarray | None, count: int
) -> np.ndarray:
    """(Q, min(count, D)) numbers of the allowed database scans with the nearest keys; padded with others."""
    queries, database = queries.astype(np.float64), database.astype(np.float64)
    squared = (queries**2).sum(1)[:, None] + (database**2).sum(1) - 2 * queries @ database.T
    if allowed is not None:
        squared = np.where(allowed, squared, np.inf)
    count = min(count, len(database))
    return np.argpartition(squared, count - 1, axis=1)[:, :count]
