"""Folders of pre-rendered bird's-eye-view pictures, one a scan.

    ROOT/<sequence>/imgs/%06d.png    8-bit density, forward up, left left
    ROOT/<sequence>/pose.txt         one row a picture: 3×4 map_T_lidar, row-major

ROOT may also be the folder of a single sequence. Rows of pose.txt and pictures belong together in order.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.errors import InputError
from data_prep.raw.scans import Scan, ScanSequence

POSES = "pose.txt"
PICTURES = "imgs"

# Rounded text keeps rotations orthonormal to about this much.
ORTHONORMAL_TO = 1e-3


def read_sequences(root: Path, names: Sequence[str] | None = None) -> tuple[ScanSequence, ...]:
    """All sequences of a root by name, or those in `names`.

    Raises InputError for a root or a sequence that is not there, poses that are none, and a folder whose
    poses and pictures differ in number.
    """
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder of BEV sequences, found none. Give its path with --raw.")
    if (root / POSES).is_file():
        folders = {root.resolve().name: root}
    else:
        folders = {path.parent.name: path.parent for path in sorted(root.glob(f"*/{POSES}"))}
    if not folders:
        raise InputError(
            f"{root}: expected SEQUENCE/{POSES} and SEQUENCE/{PICTURES}/000000.png in it, found no {POSES}."
        )
    missing = [name for name in names or () if name not in folders]
    if missing:
        raise InputError(
            f"{root}: expected the sequences {', '.join(missing)}, found {', '.join(folders)} only."
        )
    return tuple(_read_sequence(name, folders[name]) for name in names or folders)


def _read_sequence(name: str, folder: Path) -> ScanSequence:
    poses = _read_poses(folder / POSES)
    pictures = {}
    for path in (folder / PICTURES).glob("*.png"):
        if not path.stem.isascii() or not path.stem.isdigit():
            raise InputError(f"{path}: expected a name of digits such as 000000.png. Rename or remove it.")
        pictures[int(path.stem)] = path
    if len(pictures) != len(poses):
        raise InputError(
            f"{folder}: expected one row of {POSES} a picture, found {len(poses)} rows and {len(pictures)} "
            f"pictures in {PICTURES}/. Copy the folder again, or remove what does not belong."
        )
    scans = tuple(
        Scan(name, frame_id, float("nan"), pictures[frame_id], pose)
        for frame_id, pose in zip(sorted(pictures), poses, strict=True)
    )
    return ScanSequence(name, scans, f"{name}/{POSES}")


def _read_poses(path: Path) -> np.ndarray:
    """(N, 4, 4) float64."""
    try:
        rows = np.array([line.split() for line in path.read_text().splitlines() if line.strip()], np.float64)
        rows = rows.reshape(-1, 12)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected rows of 12 numbers, found otherwise ({error}). Copy it again."
        ) from None
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3] = rows.reshape(-1, 3, 4)
    rotation = poses[:, :3, :3]
    finite = np.isfinite(poses).all(axis=(1, 2))
    off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0.0)
    bad = np.flatnonzero(~finite | (off > ORTHONORMAL_TO) | (np.linalg.det(rotation) < 0))
    if len(bad):
        raise InputError(
            f"{path}: expected a rigid 3×4 transform a row, row {bad[0]} (from 0) is none "
            f"({len(bad)} such of {len(poses)}). Mend or remove the row and its picture."
        )
    return poses
