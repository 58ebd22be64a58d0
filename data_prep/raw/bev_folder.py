"""Folders of pre-rendered bird's-eye-view pictures, one a scan.

    ROOT/<sequence>/imgs/000000.png   8-bit density, forward up, left on the left
    ROOT/<sequence>/pose.txt          row i: map_T_lidar of picture i, 3×4

ROOT may also be the folder of a single sequence. Every picture has its row and every row its picture.
"""

from collections.abc import Sequence
from pathlib import Path

from data_prep.errors import InputError
from data_prep.raw.number_files import read_poses
from data_prep.raw.scan_files import list_numbered
from data_prep.raw.scans import Scan, ScanSequence

POSES = "pose.txt"
PICTURES = "imgs"

_REMEDY = "Copy the folder again."


def read_sequences(root: Path, names: Sequence[str] | None = None) -> tuple[ScanSequence, ...]:
    """The sequences `names` of a root, or all, by name.

    Raises InputError for a root or a sequence that is not there, poses that are none, and a folder whose
    poses and pictures differ in number. Does not look into pictures.
    """
    if not root.is_dir():
        raise InputError(f"{root}: expected a folder of BEV sequences, found none. Give the folder's path.")
    if (root / POSES).is_file() or (root / PICTURES).is_dir():
        folders = {root.resolve().name: root}
    else:
        folders = {path.parent.name: path.parent for path in sorted(root.glob(f"*/{PICTURES}"))}
    if not folders:
        raise InputError(
            f"{root}: expected NAME/{POSES} and NAME/{PICTURES}/000000.png in it, found no folder "
            f"{PICTURES}. Give the folder that holds the sequences."
        )
    missing = [name for name in names or () if name not in folders]
    if missing:
        raise InputError(
            f"{root}: expected the sequences {', '.join(missing)}, found {', '.join(folders)} only. Copy "
            "them there, or leave them out."
        )
    return tuple(_read_sequence(name, folders[name]) for name in (folders if names is None else names))


def _read_sequence(name: str, folder: Path) -> ScanSequence:
    map_T_lidar = read_poses(folder / POSES, _REMEDY)
    pictures = list_numbered(folder / PICTURES, ".png")
    if len(pictures) != len(map_T_lidar):
        raise InputError(
            f"{folder}: expected one row of {POSES} a picture, found {len(map_T_lidar)} rows and "
            f"{len(pictures)} pictures in {PICTURES}/. {_REMEDY}"
        )
    if list(pictures) != list(range(len(pictures))):
        first = next(place for place, number in enumerate(pictures) if number != place)
        raise InputError(
            f"{folder / PICTURES}: expected pictures 0 to {len(pictures) - 1}, one a row of {POSES}, found "
            f"no picture {first}. {_REMEDY}"
        )
    return ScanSequence(
        name,
        tuple(Scan(name, i, float("nan"), path, map_T_lidar[i]) for i, path in pictures.items()),
        f"{name}/{POSES}",
    )
