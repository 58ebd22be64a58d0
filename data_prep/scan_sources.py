"""Raw datasets of LiDAR scans: how the loop-closure commands open each of them.

To add one: write a reader in `data_prep.raw` and enter it in FORMATS.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from data_prep.errors import InputError
from data_prep.raw import bev_folder
from data_prep.raw.scans import ScanSequence

CITY_MARKER = "BUILT-IN-CITY.json"  # stands in a root that the built-in city wrote

SPLITS = ("train", "val", "test")
Splits = Mapping[str, Sequence[str]]  # split → names of its sequences


@dataclasses.dataclass(frozen=True)
class Format:
    """A raw format.

    `read(root, names, pose_source, require_scans)` yields the sequences; `pose_sources` are the choices, the
    default first. `records` is what its scans are: "points" or "bev". `official` says which sequences train,
    validate and test in the paper.
    """

    read: Callable[[Path, Sequence[str] | None, str, bool], Sequence[ScanSequence]]
    pose_sources: tuple[str, ...]
    records: str
    official: Splits


@dataclasses.dataclass(frozen=True)
class ScanSource:
    """A raw dataset, read but for its scans and images. `splits` are its official ones."""

    format: str
    records: str
    pose_source: str
    sequences: tuple[ScanSequence, ...]
    splits: Splits
    built_in_city: bool


def _read_bev(
    root: Path, names: Sequence[str] | None, pose_source: str, require_scans: bool
) -> Sequence[ScanSequence]:
    return bev_folder.read_sequences(root, names)


FORMATS: dict[str, Format] = {
    "bev": Format(_read_bev, ("pose.txt",), "bev", {}),
}


def open_source(options: argparse.Namespace, *, require_scans: bool) -> ScanSource:
    """Read what the options of `add_source_options` name; InputError for bad input."""
    reader = FORMATS[options.format]
    pose_source = options.pose_source or reader.pose_sources[0]
    if pose_source not in reader.pose_sources:
        raise InputError(
            f"--pose-source: expected {' or '.join(reader.pose_sources)} for the format {options.format}, "
            f"found {pose_source!r}."
        )
    marker = find_marker(options.raw)
    sequences = tuple(reader.read(options.raw, options.sequences, pose_source, require_scans))
    return ScanSource(
        format=options.format,
        records=reader.records,
        pose_source=pose_source,
        sequences=sequences,
        splits=reader.official if marker is None else city_splits(marker),
        built_in_city=marker is not None,
    )


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """--raw, --format, --sequences and --pose-source."""
    parser.add_argument(
        "--raw", type=Path, required=True, help="dataset root (real, or written by the built-in city)"
    )
    parser.add_argument("--format", choices=sorted(FORMATS), required=True)
    parser.add_argument(
        "--sequences",
        type=names_in,
        help="names with commas between, e.g. 00,08; default: all there are",
    )
    choices = "; ".join(f"{name}: {', '.join(f.pose_sources)}" for name, f in FORMATS.items())
    parser.add_argument(
        "--pose-source", help=f"which poses are read, the first being the default ({choices})"
    )


def names_in(text: str) -> list[str]:
    """A command-line list `A,B,C`; empty for nothing."""
    return [name.strip() for name in text.split(",") if name.strip()]


def find_marker(root: Path) -> Path | None:
    """The city's marker of a root or, where `root` is the folder `dataset` of one, of that root."""
    folders = (root, root.parent) if root.name == "dataset" else (root,)
    return next((folder / CITY_MARKER for folder in folders if (folder / CITY_MARKER).is_file()), None)


def city_splits(marker: Path) -> Splits:
    """The city's sequences by district; empty where the marker names none."""
    try:
        content = json.loads(marker.read_text())
        splits = content.get("splits", {})
        return {split: tuple(str(name) for name in splits.get(split, ())) for split in SPLITS}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{marker}: expected JSON with `splits` of sequence names, found {error!r}. Write the city again."
        ) from None
