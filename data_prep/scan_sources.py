"""Raw datasets of LiDAR scans: how the loop-closure commands open each of them.

To add one: write a reader in `data_prep.raw` and enter it in FORMATS.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from data_prep import option_types
from data_prep.errors import InputError
from data_prep.raw import bev_folder, kitti, kitti360
from data_prep.raw.scans import ScanSequence

_DRIVE_FOLDER = re.compile(r"^\d{4}_\d\d_\d\d_drive_(\d{4})_sync$")  # of KITTI-360

CITY_MARKER = "BUILT-IN-CITY.json"  # stands in a root that the built-in city wrote

SPLITS = ("train", "val", "test")
Splits = Mapping[str, Sequence[str]]  # split → names of its sequences


@dataclasses.dataclass(frozen=True)
class Format:
    """A raw format.

    `read` yields the sequences; `pose_sources` and `cameras` are the choices, the default first. `records` is
    what its scans are: "points" or "bev". `official` says which sequences train, validate and test in the
    paper.
    """

    read: "Reader"
    pose_sources: tuple[str, ...]
    cameras: tuple[str, ...]
    records: str
    official: Splits


class Reader(Protocol):
    """Sequences of a root, by name or all; a camera of None leaves images out."""

    def __call__(
        self,
        root: Path,
        names: Sequence[str] | None,
        *,
        pose_source: str,
        camera: str | None,
        require_scans: bool,
    ) -> Sequence[ScanSequence]: ...


@dataclasses.dataclass(frozen=True)
class ScanSource:
    """A raw dataset, read but for its scans and images. `splits` are its official ones."""

    format: str
    records: str
    pose_source: str
    camera: str | None
    sequences: tuple[ScanSequence, ...]
    splits: Splits
    built_in_city: bool


def _read_bev(
    root: Path, names: Sequence[str] | None, *, pose_source: str, camera: str | None, require_scans: bool
) -> Sequence[ScanSequence]:
    return bev_folder.read_sequences(root, names)


FORMATS: dict[str, Format] = {
    "kitti": Format(
        kitti.read_sequences,
        tuple(kitti.POSE_SOURCES),
        ("image_2", *(name for name in kitti.CAMERAS if name != "image_2")),
        "points",
        {"train": ("00", "05", "06", "07", "09"), "val": ("08",)},
    ),
    "kitti360": Format(
        kitti360.read_sequences,
        tuple(kitti360.POSE_SOURCES),
        kitti360.CAMERAS,
        "points",
        {"test": ("0000", "0004", "0005", "0006", "0009")},
    ),
    "bev": Format(_read_bev, ("pose.txt",), (), "bev", {}),
}

NO_CAMERA = "none"


def open_source(options: argparse.Namespace, *, require_scans: bool, camera: str | None = None) -> ScanSource:
    """Read what the options of `add_source_options` name; InputError for bad input.

    `camera` is one of the format's, NO_CAMERA, or None for the format's default.
    """
    form = FORMATS[options.format]
    pose_source = options.pose_source or form.pose_sources[0]
    if pose_source not in form.pose_sources:
        raise InputError(
            f"--pose-source: expected {' or '.join(form.pose_sources)} for the format {options.format}, "
            f"found {pose_source!r}."
        )
    if camera is None:
        camera = form.cameras[0] if form.cameras else NO_CAMERA
    if camera not in (*form.cameras, NO_CAMERA):
        raise InputError(
            f"--camera: expected {' or '.join((*form.cameras, NO_CAMERA))} for the format {options.format}, "
            f"found {camera!r}."
        )
    camera = None if camera == NO_CAMERA else camera
    marker = find_marker(options.raw)
    sequences = form.read(
        options.raw, options.sequences, pose_source=pose_source, camera=camera, require_scans=require_scans
    )
    return ScanSource(
        format=options.format,
        records=form.records,
        pose_source=pose_source,
        camera=camera,
        sequences=tuple(sequences),
        splits=form.official if marker is None else city_splits(marker),
        built_in_city=marker is not None,
    )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """--raw, --format, --sequences and --pose-source."""
    parser.add_argument(
        "--raw", type=Path, required=True, help="dataset root (real, or written by the built-in city)"
    )
    parser.add_argument("--format", choices=tuple(FORMATS), required=True)
    parser.add_argument(
        "--sequences",
        type=option_types.names,
        help="names with commas between, e.g. 00,08; default: all there are",
    )
    parser.add_argument(
        "--pose-source",
        help=f"which poses are read, the first being the default ({_choices('pose_sources')})",
    )


def add_camera_option(parser: argparse.ArgumentParser) -> None:
    """--camera."""
    parser.add_argument(
        "--camera",
        help=f"whose images belong to the scans, the first being the default ({_choices('cameras')}), or "
        f"{NO_CAMERA}: points alone",
    )


def _choices(field: str) -> str:
    choices = {name: getattr(form, field) for name, form in FORMATS.items()}
    return "; ".join(f"{name}: {', '.join(values)}" for name, values in choices.items() if values)


def find_marker(root: Path) -> Path | None:
    """The city's marker of a root or, where `root` is the folder `dataset` of one, of that root."""
    folders = (root, root.parent) if root.name == "dataset" else (root,)
    return next((folder / CITY_MARKER for folder in folders if (folder / CITY_MARKER).is_file()), None)


def city_splits(marker: Path) -> Splits:
    """The city's sequences by district, from the marker's `sequences`: name or folder of a drive → split."""
    try:
        content = json.loads(marker.read_text())["sequences"]
        split_of = {_DRIVE_FOLDER.sub(r"\1", name): split for name, split in content.items()}
        splits = {split: tuple(name for name in split_of if split_of[name] == split) for split in SPLITS}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{marker}: expected JSON with the split of each of its `sequences`, found {error!r}. Write the "
            "city again."
        ) from None
    return splits


def check_names(sequences: Sequence[ScanSequence], required: Splits) -> None:
    """InputError where a sequence is called like a split, or one that `required` names is not there."""
    names = [sequence.name for sequence in sequences]
    reserved = sorted({*names} & {*SPLITS})
    if reserved:
        raise InputError(
            f"sequence {reserved[0]!r}: expected another name, that is one of a split. Rename its folder."
        )
    for split, wanted in required.items():
        absent = [name for name in wanted if name not in names]
        if absent:
            raise InputError(
                f"--{split}: expected names of sequences ({', '.join(names)}), found {', '.join(absent)}."
            )
