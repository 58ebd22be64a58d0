"""Which frames of a dataset train, validate and test image-to-map retrieval, as record numbers.

A scheme says for each split which part of which sequences it takes:

    all    the frames of the sequence (of its CSV files, where there are some)
    test   the part that is held out of the sequence
    rest   what else there is of it, as far from the held-out part as is asked for

KITTI-360: the held-out part of 0000 is in its CSV files; nobody published them. Without, it is the end of the
drive with 1,501 frames of database, the number that is known, and `rest` keeps APART from it: drive 0000
comes back to its own streets. `official` trains on what the paper's text leaves for it and validates on 0007,
which its README holds out; `released_cfg` takes what the released configuration lists: 0007, 0008 and 0018
train as well, and what validates is what tests. KITTI: VXP's squares where absolute positions are known, else
whole sequences. The built-in city: by district; its `released_cfg` trains on the streets of val, too.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from data_prep import place_splits
from data_prep.errors import InputError
from data_prep.scan_sources import SPLITS

Scheme = Mapping[str, Sequence[tuple[str, str]]]  # split → sequences and their parts

URBAN_DATABASE = 1501  # frames of the database in the held-out part of KITTI-360's drive 0000
APART = 57.0  # m: two submaps of ±20 m cannot meet

# Squares of ±50 m, (east, north) in metres of `data_prep.raw.kitti_oxts`.
VXP_SQUARES = {
    "00": ((613180, 4116330), (613050, 4116230), (613050, 4116570), (613135, 4116455)),
    "02": ((619375, 4116915), (619400, 4116800), (619400, 4116700), (619390, 4116450)),
}
VXP_HALF = 50.0

_KITTI360_TEST = (("0000", "test"), ("0003", "all"))
_KITTI360_TRAIN = (("0000", "rest"), *((name, "all") for name in ("0002", "0004", "0005", "0006")))
_KITTI360_TRAIN = (*_KITTI360_TRAIN, ("0009", "all"), ("0010", "all"))
_KITTI: Scheme = {
    "train": tuple((f"{number:02d}", "rest") for number in range(11) if number != 3),
    "val": (("02", "test"),),
    "test": (("00", "test"),),
}
PUBLISHED: dict[str, dict[str, Scheme]] = {
    "kitti360": {
        "official": {"train": _KITTI360_TRAIN, "val": (("0007", "all"),), "test": _KITTI360_TEST},
        "released_cfg": {
            "train": (*_KITTI360_TRAIN, ("0007", "all"), ("0008", "all"), ("0018", "all")),
            "val": (("0000", "test"),),
            "test": _KITTI360_TEST,
        },
    },
    "kitti": {"official": _KITTI, "released_cfg": _KITTI},
}


def city_schemes(splits: Mapping[str, Sequence[str]]) -> dict[str, Scheme]:
    """The same two schemes for the built-in city, whose districts give split → sequences."""
    official = {split: tuple((name, "all") for name in splits.get(split, ())) for split in SPLITS}
    released = {
        "train": (*official["train"], *official["val"]),
        "val": official["test"],
        "test": official["test"],
    }
    return {"official": official, "released_cfg": released}


def with_chosen(scheme: Scheme, chosen: Mapping[str, Sequence[str]]) -> Scheme:
    """The scheme with whole sequences for the splits in `chosen`, which no other split then holds."""
    taken = {name for names in chosen.values() for name in names}
    rest = {split: tuple(it for it in members if it[0] not in taken) for split, members in scheme.items()}
    return {**rest, **{split: tuple((name, "all") for name in names) for split, names in chosen.items()}}


@dataclasses.dataclass(frozen=True)
class Drive:
    """The frames of one sequence in the order of their records, the first of which is number `first`."""

    name: str
    folder: str  # as the dataset calls it
    first: int
    frame_ids: np.ndarray  # (N,) int64
    xy: np.ndarray  # (N, 2) east, north, m
    queries: np.ndarray  # (N,) bool
    parts: Mapping[str, np.ndarray]  # all, test, rest: (N,) bool
    divided_by: str  # what the parts are from, in words
    listed_absent: int = 0  # frames of CSV files that are not here

    def records(self, mask: np.ndarray) -> np.ndarray:
        """Record numbers of the frames in a mask."""
        return self.first + np.flatnonzero(mask)


def divide(
    dataset: str,
    name: str,
    folder: str,
    first: int,
    frame_ids: np.ndarray,
    xy: np.ndarray,
    *,
    absolute: bool,
    csv_root: Path | None,
) -> Drive:
    """A sequence of `dataset` ("kitti360", "kitti", or "city") with its queries and its parts.

    `absolute` says that `xy` are the metres that VXP's squares are in. Under `csv_root` are CSV files by
    `folder`; sequences without any are divided as if it were None.
    """
    csv_folder = None if csv_root is None else csv_root / folder
    if csv_folder is not None and csv_folder.is_dir():
        return _divided_by_csv(csv_folder, name, folder, first, frame_ids, xy)
    rule = "spaced" if dataset == "kitti" else "travelled"
    queries = place_splits.RULES[rule](xy)
    everything, none = np.ones(len(xy), bool), np.zeros(len(xy), bool)
    parts, divided_by = {"all": everything, "test": everything, "rest": everything}, "not divided"
    if dataset == "kitti360" and name == "0000":
        test = place_splits.block_at_end(queries, URBAN_DATABASE)
        rest = ~test & place_splits.apart_from(xy, xy[test], APART)
        parts = {"all": everything, "test": test, "rest": rest}
        divided_by = (
            f"its end with {URBAN_DATABASE} frames of database; {int((~test & ~rest).sum())} frames nearer "
            f"than {APART:g} m to it are in no split"
        )
    elif dataset == "kitti" and name in VXP_SQUARES:
        test = place_splits.in_squares(xy, VXP_SQUARES[name], VXP_HALF) if absolute else everything
        parts = {"all": everything, "test": test, "rest": ~test}
        divided_by = "VXP's squares" if absolute else "whole, for want of absolute positions (raw OXTS)"
    elif dataset == "kitti":
        parts = {"all": everything, "test": none, "rest": everything}
    return Drive(name, folder, first, frame_ids, xy, queries, parts, divided_by)


_CSV_FILES = ("query.csv", "database.csv", "query_val.csv", "database_val.csv")
_CSV_FAR = 10.0  # m between a row and our position of its frame, beyond which they are not of one dataset


def _divided_by_csv(
    csv_folder: Path, name: str, folder: str, first: int, frame_ids: np.ndarray, xy: np.ndarray
) -> Drive:
    """The parts as four CSV files say: those of `val` are the held-out part, and they win."""
    place = {frame_id: i for i, frame_id in enumerate(frame_ids.tolist())}
    masks, absent = {}, 0
    for file in _CSV_FILES:
        mask = masks[file] = np.zeros(len(xy), bool)
        if not (csv_folder / file).is_file():
            continue
        listed, listed_xy = place_splits.read_csv(csv_folder / file)
        here = [(row, place[i]) for row, i in enumerate(listed.tolist()) if i in place]
        absent += len(listed) - len(here)
        if not here:
            continue
        rows, ours = np.array(here).T
        gap = np.linalg.norm(listed_xy[rows] - xy[ours], axis=1)
        if np.median(gap) > _CSV_FAR:
            raise InputError(
                f"{csv_folder / file}: expected positions of this sequence's frames, found them "
                f"{np.median(gap):.0f} m away (median). Give the CSV files of this dataset."
            )
        mask[ours] = True
    if not any(mask.any() for mask in masks.values()):
        raise InputError(
            f"{csv_folder}: expected {', '.join(_CSV_FILES)} with frames of this sequence, found none of "
            "them. Give the folder that holds a folder of CSV files for each sequence."
        )
    queries = masks["query.csv"] | masks["query_val.csv"]
    test = masks["query_val.csv"] | masks["database_val.csv"]
    listed = test | masks["query.csv"] | masks["database.csv"]
    parts = {"all": test if test.any() else listed, "test": test if test.any() else listed}
    parts["rest"] = listed & ~test
    return Drive(name, folder, first, frame_ids, xy, queries, parts, "CSV files", absent)


def split_arrays(scheme: Scheme, drives: Sequence[Drive], queries_in_database: bool) -> dict[str, np.ndarray]:
    """Split → record numbers; with _query and _database behind its name, those alone; and all sequences.

    `queries_in_database`: the databases hold the queries' frames as well.
    """
    by_name = {drive.name: drive for drive in drives}
    arrays = {}

    def add(name: str, members: Sequence[tuple[Drive, np.ndarray]]) -> None:
        masks = {
            "": lambda drive, mask: mask,
            "_query": lambda drive, mask: mask & drive.queries,
            "_database": lambda drive, mask: mask if queries_in_database else mask & ~drive.queries,
        }
        for suffix, chosen in masks.items():
            numbers = [drive.records(chosen(drive, mask)) for drive, mask in members]
            arrays[name + suffix] = np.sort(np.concatenate([np.zeros(0, np.int64), *numbers]))

    for split in SPLITS:
        wanted = [(by_name[name], part) for name, part in scheme.get(split, ()) if name in by_name]
        add(split, [(drive, drive.parts[part]) for drive, part in wanted])
    for drive in drives:
        add(drive.name, [(drive, np.ones(len(drive.frame_ids), bool))])
    return arrays


def csv_files(scheme: Scheme, drives: Sequence[Drive]) -> dict[str, bytes]:
    """The scheme as CSV files, path → content, which `divide` reads back: see the names in `_CSV_FILES`."""
    files = {}
    for drive in drives:
        held_out, other = np.zeros(len(drive.frame_ids), bool), np.zeros(len(drive.frame_ids), bool)
        for split in SPLITS:
            for name, part in scheme.get(split, ()):
                if name == drive.name:
                    (held_out if split == "test" or part == "test" else other)[drive.parts[part]] = True
        for mask, suffix in ((other & ~held_out, ""), (held_out, "_val")):
            for kind, chosen in (("query", mask & drive.queries), ("database", mask & ~drive.queries)):
                if mask.any():
                    content = place_splits.csv_bytes(drive.frame_ids[chosen], drive.xy[chosen])
                    files[f"{drive.folder}/{kind}{suffix}.csv"] = content
    return files
