"""Text files of numbers: a pose a row, or a calibration of `key: numbers`.

Every complaint names the file and the row or key, says what stands there and what to do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep.errors import InputError

# Rotations come as rounded text (KITTI's are orthonormal to 3e-7). What is off by more was never one.
ORTHONORMAL_TO = 1e-3


def read_rows(path: Path, widths: Sequence[int], remedy: str) -> np.ndarray:
    """(N, width) float64, N ≥ 1: as many rows as lines, all of one of the `widths`.

    Blank lines may stand at the end only: row i belongs to frame i in most of these files. `remedy` ends
    the message of an InputError.
    """
    rows: list[list[float]] = []
    expected = " or ".join(map(str, widths))
    for number, line in enumerate(_read_text(path, remedy).rstrip().splitlines(), 1):
        try:
            row = [float(word) for word in line.split()]
        except ValueError:
            raise InputError(
                f"{path}: expected {expected} numbers in each row, found {_shortened(line)} in line "
                f"{number}. {remedy}"
            ) from None
        if len(row) not in widths or len(row) != len(rows[0] if rows else row):
            raise InputError(
                f"{path}: expected {len(rows[0]) if rows else expected} numbers in each row, found "
                f"{len(row)} in line {number}: the file is damaged or of another format. {remedy}"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{path}: expected rows of {expected} numbers, found an empty file. {remedy}")
    array = np.array(rows)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise InputError(
            f"{path}: expected finite numbers, found NaN or infinity in {len(bad)} of {len(array)} lines, "
            f"the first being {bad[0] + 1}. {remedy}"
        )
    return array


def read_poses(path: Path, remedy: str) -> np.ndarray:
    """(N, 4, 4) float64 from rows of 12 numbers, [R t] row by row."""
    return rigid_matrices(read_rows(path, (12,), remedy), path, remedy)


def read_poses_with_ids(path: Path, remedy: str) -> tuple[np.ndarray, np.ndarray]:
    """(N,) int64 ascending frame ids and (N, 4, 4) float64 from rows of an id and 12 or 16 numbers."""
    rows = read_rows(path, (13, 17), remedy)
    ids = rows[:, 0].astype(np.int64)
    bad = np.flatnonzero((ids != rows[:, 0]) | (ids < 0))
    if len(bad):
        raise InputError(
            f"{path}: expected a frame's number at the start of each line, found {rows[bad[0], 0]:g} in "
            f"line {bad[0] + 1}. {remedy}"
        )
    back = np.flatnonzero(np.diff(ids) <= 0)
    if len(back):
        line = int(back[0]) + 1
        raise InputError(
            f"{path}: expected frames in ascending order, found frame {ids[line]} in line {line + 1} after "
            f"frame {ids[line - 1]}. {remedy}"
        )
    return ids, rigid_matrices(rows[:, 1:], path, remedy)


def read_keys(path: Path, remedy: str) -> dict[str, str]:
    """What stands after the colon, by key. Lines without a colon say nothing."""
    lines = (line.partition(":") for line in _read_text(path, remedy).splitlines())
    return {key.strip(): text for key, colon, text in lines if colon}


def matrix_of(
    values: Mapping[str, str], key: str, shape: tuple[int, int], path: Path, remedy: str
) -> np.ndarray:
    """The float64 matrix of a key that `read_keys` found in `path`."""
    if key not in values:
        found = ", ".join(values) or "no key at all"
        raise InputError(f"{path}: expected the key {key}, found {found}. {remedy}")
    try:
        matrix = np.array([float(word) for word in values[key].split()])
    except ValueError:
        matrix = np.empty(0)
    if matrix.size != shape[0] * shape[1] or not np.isfinite(matrix).all():
        raise InputError(
            f"{path}: expected {shape[0] * shape[1]} finite numbers after {key}:, found "
            f"{_shortened(values[key])}. {remedy}"
        )
    return matrix.reshape(shape)


def rigid_matrices(rows: np.ndarray, path: Path, remedy: str) -> np.ndarray:
    """(N, 4, 4) float64 from (N, 12 or 16): checks that they are rotations and translations."""
    matrices = np.tile(np.eye(4), (len(rows), 1, 1))
    matrices[:, : rows.shape[1] // 4] = rows.reshape(len(rows), -1, 4)
    rotations = matrices[:, :3, :3]
    with np.errstate(over="ignore", invalid="ignore"):  # absurd numbers are refused all the same
        off = np.abs(rotations @ rotations.swapaxes(1, 2) - np.eye(3)).max(axis=(1, 2))
        rigid = (off < ORTHONORMAL_TO) & (np.linalg.det(rotations) > 0)
    bad = np.flatnonzero(~rigid | (matrices[:, 3] != [0, 0, 0, 1]).any(axis=1))
    if len(bad):
        first = " ".join(f"{number:g}" for number in rows[bad[0]])
        raise InputError(
            f"{path}: expected a rotation and a translation in each row, found {len(bad)} of {len(rows)} "
            f"that are none, the first being number {bad[0] + 1}: {_shortened(first)}. {remedy}"
        )
    return matrices


def _read_text(path: Path, remedy: str) -> str:
    if not path.is_file():
        raise InputError(f"{path}: expected this file, found none. {remedy}")
    return path.read_text(encoding="utf-8", errors="replace")


def _shortened(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else f"{text[:57]}…")
