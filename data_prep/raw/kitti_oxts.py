"""Absolute positions of KITTI odometry's sequences, from the GPS of the raw recordings they were cut from.

    2011_10_03/2011_10_03_drive_0027_sync/oxts/data/0000000000.txt    latitude, longitude, altitude, …

(or `_extract` for `_sync`.) Latitude and longitude are degrees; metres are Mercator's, scaled by the cosine
of the drive's first latitude, as KITTI's development kit has it:

    east = s·R·lon, north = s·R·ln tan(π/4 + lat/2), s = cos(lat of the first frame), R = 6,378,137 m

The kit subtracts the first position; here it stays, so that squares on the ground can be named.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_prep.errors import InputError
from data_prep.raw.number_files import read_rows
from data_prep.raw.scan_files import list_numbered

# Sequence → date, drive, and the raw frame that is the sequence's frame 0. From the odometry kit's readme.
DRIVES = {
    "00": ("2011_10_03", "0027", 0),
    "01": ("2011_10_03", "0042", 0),
    "02": ("2011_10_03", "0034", 0),
    "03": ("2011_09_26", "0067", 0),
    "04": ("2011_09_30", "0016", 0),
    "05": ("2011_09_30", "0018", 0),
    "06": ("2011_09_30", "0020", 0),
    "07": ("2011_09_30", "0027", 0),
    "08": ("2011_09_30", "0028", 1100),
    "09": ("2011_09_30", "0033", 0),
    "10": ("2011_09_30", "0034", 0),
}
EARTH_RADIUS = 6_378_137.0  # m

_COLUMNS = 30
_REMEDY = "Download the raw recording (synced or unsynced) of this drive again."


def oxts_folder(root: Path, sequence: str) -> Path | None:
    """Where the recording of an odometry sequence is under a root of KITTI raw; None where it is not."""
    if sequence not in DRIVES:
        return None
    date, drive, _ = DRIVES[sequence]
    folders = (root / date / f"{date}_drive_{drive}_{kind}" / "oxts" / "data" for kind in ("sync", "extract"))
    return next((folder for folder in folders if folder.is_dir()), None)


def read_positions(folder: Path, sequence: str, frame_ids: Sequence[int]) -> np.ndarray:
    """(N, 3) float64 east, north (Mercator) and altitude of frames of an odometry sequence, m.

    InputError where a frame is missing or a file is damaged.
    """
    first = DRIVES[sequence][2]
    files = list_numbered(folder, ".txt")
    missing = [frame_id for frame_id in frame_ids if frame_id + first not in files]
    if missing or not files:
        raise InputError(
            f"{folder}: expected a file of each of {len(frame_ids)} frames of sequence {sequence}, found "
            f"none of {len(missing)}, the first being {first + (missing or [0])[0]:010d}.txt. {_REMEDY}"
        )
    scale = np.cos(np.deg2rad(_read(next(iter(files.values())))[0]))
    return np.array([_mercator(_read(files[frame_id + first]), scale) for frame_id in frame_ids])


def _read(path: Path) -> np.ndarray:
    """(3,) latitude, longitude (degrees), altitude (m)."""
    row = read_rows(path, (_COLUMNS,), _REMEDY)[0]
    if abs(row[0]) >= 90 or abs(row[1]) > 180:
        raise InputError(
            f"{path}: expected latitude and longitude in degrees first, found {row[0]:g} and {row[1]:g}. "
            f"{_REMEDY}"
        )
    return row[:3]


def _mercator(place: np.ndarray, scale: float) -> tuple[float, float, float]:
    latitude, longitude = np.deg2rad(place[:2])
    north = scale * EARTH_RADIUS * np.log(np.tan(np.pi / 4 + latitude / 2))
    return scale * EARTH_RADIUS * longitude, north, place[2]
