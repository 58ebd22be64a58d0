"""Queries and databases of image-to-map retrieval: which frame is which, and the CSV files that say so.

A drive is walked once. Of KITTI-360, a frame is a query when the car has travelled more than 3 m (as the sum
of the steps between frames, on the ground plane) since the last query or the start; all others are the
database. Of KITTI, as upstream makes it from VXP's tables, the first frame is a query and then each that is
3 m or more, straight, from the last query.

CSV files have one row a frame, as those of KITTI-360 for SaliencyI2PLoc: a running number, `key` (the frame's
number filled up with letters to ten characters, "12350aaaaa"), `east` and `north` in metres.
"""

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep.errors import InputError

TRAVEL = 3.0  # m

_HEADER = ["", "key", "east", "north"]
_KEY_LENGTH, _KEY_FILL = 10, "a"
_KEY = re.compile(r"^(\d+)[a-zA-Z]*$")


def travelled_queries(xy: np.ndarray, travel: float = TRAVEL) -> np.ndarray:
    """(N, 2) positions in order → (N,) bool: more than `travel` metres on the way since the last query."""
    steps = np.linalg.norm(np.diff(xy, axis=0), axis=1)
    queries = np.zeros(len(xy), bool)
    way = 0.0
    for frame, step in enumerate(steps.tolist(), 1):
        way += step
        if way > travel:
            queries[frame], way = True, 0.0
    return queries


def spaced_queries(xy: np.ndarray, travel: float = TRAVEL) -> np.ndarray:
    """(N, 2) positions in order → (N,) bool: the first, then `travel` metres or more from the last query."""
    queries = np.zeros(len(xy), bool)
    last = None
    for frame, position in enumerate(xy):
        if last is None or np.hypot(*(position - last)) >= travel:
            queries[frame], last = True, position
    return queries


RULES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "travelled": travelled_queries,
    "spaced": spaced_queries,
}


def in_squares(xy: np.ndarray, centres: Sequence[tuple[float, float]], half: float) -> np.ndarray:
    """(N, 2) → (N,) bool: less than `half` metres from a centre in x and in y."""
    offsets = np.abs(xy[:, None] - np.asarray(centres, np.float64))
    return (offsets < half).all(axis=2).any(axis=1)


def block_at_end(queries: np.ndarray, database: int) -> np.ndarray:
    """(N,) bool → (N,) bool: the end of the drive that holds `database` frames which are no queries.

    The whole drive where it has not that many.
    """
    from_end = np.cumsum(~queries[::-1])[::-1]  # frames of the database from here on
    return from_end <= database


def apart_from(xy: np.ndarray, others: np.ndarray, distance: float) -> np.ndarray:
    """(N, 2), (M, 2) → (N,) bool: at least `distance` metres from all of the others."""
    if not len(others):
        return np.ones(len(xy), bool)
    apart = np.ones(len(xy), bool)
    for start in range(0, len(xy), 1024):
        gaps = xy[start : start + 1024, None] - others
        apart[start : start + 1024] = np.hypot(*gaps.transpose(2, 0, 1)).min(axis=1) >= distance
    return apart


def format_key(frame_id: int) -> str:
    """12350 → "12350aaaaa"."""
    return str(frame_id).ljust(_KEY_LENGTH, _KEY_FILL)


def parse_key(key: str) -> int:
    """ "12350aaaaa" → 12350. Raises ValueError where there is no number first and letters after it."""
    found = _KEY.match(key.strip())
    if found is None:
        raise ValueError(f"expected a frame's number filled up with letters, found {key!r}")
    return int(found[1])


def csv_bytes(frame_ids: np.ndarray, xy: np.ndarray) -> bytes:
    """The CSV file of (N,) frames at (N, 2) metres (east, north), in the given order."""
    content = io.StringIO(newline="")
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(_HEADER)
    for row, (frame_id, (east, north)) in enumerate(zip(frame_ids.tolist(), xy.tolist(), strict=True)):
        writer.writerow([row, format_key(frame_id), repr(east), repr(north)])
    return content.getvalue().encode()


def read_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 frame numbers and (N, 2) metres (east, north); InputError for what is no such file."""
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        rows = list(reader)
        if not {*_HEADER[1:]} <= {*(reader.fieldnames or ())}:
            raise ValueError("no line of names")
        frame_ids = np.array([parse_key(row["key"]) for row in rows], np.int64)
        xy = np.array([[float(row["east"]), float(row["north"])] for row in rows]).reshape(-1, 2)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        raise InputError(
            f"{path}: expected rows of a number, key, east and north, found {type(error).__name__}: {error}. "
            "Copy the file again."
        ) from None
    repeated = len(frame_ids) - len(np.unique(frame_ids))
    if repeated or not np.isfinite(xy).all():
        what = f"{repeated} frames twice" if repeated else "positions that are no numbers"
        raise InputError(f"{path}: expected each frame once, with its position; found {what}.")
    return frame_ids, xy
