"""The files of scans and their images, which are named by their frame's number: 000042.bin, 0000000042.png.

Numbers may leave gaps; they, and not the place in the listing, say which pose and image belong together.
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_prep.errors import InputError
from data_prep.raw.scans import ScanImage, ScanSequence

POINT_BYTES = 16  # x, y, z, reflectance: four little-endian float32

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_HEAD = struct.Struct(">8sI4sII")  # signature, length, IHDR, width, height


def list_numbered(folder: Path, suffix: str) -> dict[int, Path]:
    """Number → file of all `*suffix` in a folder, ascending. Hidden files and other suffixes are left out.

    Empty where there is no such folder. Raises InputError for a name that is no number and for two names of
    one number.
    """
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries)
    numbered: dict[int, Path] = {}
    for name in names:
        if not name.endswith(suffix) or name.startswith("."):
            continue
        stem = name.removesuffix(suffix)
        if not (stem.isascii() and stem.isdigit()):
            raise InputError(
                f"{folder / name}: expected a frame's number before {suffix}, found {stem!r}. Rename the "
                "file or take it out of the folder."
            )
        if int(stem) in numbered:
            raise InputError(
                f"{folder / name}: expected one file of frame {int(stem)}, found {numbered[int(stem)].name} "
                "as well. Keep one of them."
            )
        numbered[int(stem)] = folder / name
    return dict(sorted(numbered.items()))


def images_of(
    folder: Path,
    frame_ids: Sequence[int],
    intrinsics: np.ndarray,
    camera_T_lidar: np.ndarray,
    size: tuple[int, int] | None = None,
) -> dict[int, ScanImage]:
    """Frame → its image in a folder, all of one camera.

    `size` (width, height) is what the calibration says; without, it is that of the first image. Raises
    InputError where images of some frames are missing.
    """
    files = list_numbered(folder, ".png")
    missing = [frame_id for frame_id in frame_ids if frame_id not in files]
    if missing:
        raise InputError(
            f"{folder}: expected a PNG image of each of {len(frame_ids)} scans, found none of {len(missing)} "
            f"of them, the first being frame {missing[0]}. Unpack the images of this sequence whole, or read "
            "scans alone (--camera none)."
        )
    width, height = size or png_size(files[frame_ids[0]])
    return {i: ScanImage(files[i], width, height, intrinsics, camera_T_lidar) for i in frame_ids}


def check_files(sequences: Sequence[ScanSequence]) -> int:
    """Total bytes of all scans and images; InputError for one missing, empty, truncated or of another size.

    Looks at names, sizes and the heads of images, not into them.
    """
    scans = [scan for sequence in sequences for scan in sequence.scans]
    total = 0
    for scan in tqdm(scans, desc="looking for files", unit="scan", delay=1, leave=False):
        if scan.path is not None:
            total += check_points(scan.path) if scan.path.suffix == ".bin" else check_png(scan.path)
        if scan.image is not None:
            total += check_png(scan.image.path, (scan.image.width, scan.image.height))
    return total


def check_points(path: Path) -> int:
    """Bytes of a scan; InputError unless they are those of one or more whole points."""
    if not path.is_file():
        raise InputError(f"{path}: expected a scan, found no file. Unpack the scans of this sequence.")
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path}: expected the points of a scan, found an empty file. Unpack it again.")
    if size % POINT_BYTES:
        raise InputError(
            f"{path}: expected a multiple of {POINT_BYTES} bytes (x, y, z, reflectance as float32), found "
            f"{size}: the file is truncated or of another format. Unpack it again."
        )
    return size


def check_png(path: Path, size: tuple[int, int] | None = None) -> int:
    """Bytes of a PNG; InputError where it is none, or not of `size` (width, height)."""
    found = png_size(path)
    if size is not None and found != size:
        raise InputError(
            f"{path}: expected {size[0]} x {size[1]} pixels, as the calibration or the first image of the "
            f"sequence has them; found {found[0]} x {found[1]}. Unpack images and calibration of one "
            "release."
        )
    return path.stat().st_size


def png_size(path: Path) -> tuple[int, int]:
    """(width, height) as the head of the file says; InputError where it is no PNG."""
    if not path.is_file():
        raise InputError(f"{path}: expected an image, found no file. Unpack the images of this sequence.")
    with path.open("rb") as file:
        head = file.read(_PNG_HEAD.size)
    if len(head) == _PNG_HEAD.size:
        start, _, chunk, width, height = _PNG_HEAD.unpack(head)
        if start == _PNG_START and chunk == b"IHDR" and width > 0 and height > 0:
            return width, height
    raise InputError(
        f"{path}: expected a PNG image, found {path.stat().st_size} bytes that start with {head[:8]!r}. "
        "Unpack it again."
    )
