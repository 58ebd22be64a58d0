"""LiDAR scans with poses (KITTI, KITTI-360, BEV pictures) to the prepared folder of loop closure (`lcd`).

    python -m data_prep lcd --raw ROOT --format kitti|kitti360|bev --out DIR

Table `frames`: one record a scan, those of a sequence consecutive and in order. Table `sequences`: one record
a sequence with all its poses, so that pairs are chosen without reading scans. What a record holds is in
`data_prep.scan_records`.

Splits: `official`, by sequence: the paper's for the real datasets, by district for the built-in city, or what
--train, --val and --test say; beside them one split a sequence under its own name. `loops`: all true loops of
frame f are positive[offset[f]:offset[f + 1]], by the rule of `data_prep.loops`.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep import loops, option_types, scan_records, scan_sources, tables
from data_prep.errors import InputError
from data_prep.images import JPEG_QUALITY
from data_prep.raw import scan_files
from data_prep.raw.scans import Scan, ScanSequence
from data_prep.scan_sources import SPLITS, ScanSource, Splits
from placerec_jax.ops.point_steps import POINT_UNIT

SCANS_PER_SHARD = 64
BEV_PER_SHARD = 512


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep lcd", description="LiDAR scans with poses to TFRecord, for loop closure."
    )
    scan_sources.add_source_options(parser)
    parser.add_argument("--out", type=Path, required=True, help="the prepared folder to write")
    parser.add_argument(
        "--workers",
        type=option_types.positive,
        default=os.cpu_count(),
        help="processes; default: one a CPU core",
    )
    parser.add_argument(
        "--limit", type=option_types.positive, help="keep the first so many scans of each sequence"
    )
    loops.add_rule_options(parser, "loop-")
    for split in SPLITS:
        parser.add_argument(
            f"--{split}",
            type=option_types.names,
            help=f"the sequences of the official split {split}, e.g. 05,06; default: the dataset's own",
        )
    scan_sources.add_camera_option(parser)
    parser.add_argument(
        "--compensate-motion",
        action="store_true",
        help="move the points of scans that were not corrected for the car's motion (KITTI-360) to where "
        "they were at the scan's time",
    )
    parser.add_argument(
        "--bad-scans",
        choices=sorted(BAD_SCANS),
        default="refuse",
        help="what to do about scans that are damaged: refuse stops at the first; skip reads all scans "
        "beforehand, leaves those out and lists them (default refuse)",
    )
    parser.add_argument(
        "--bev-cell",
        type=option_types.positive_metres,
        default=0.4,
        help="metres a pixel of BEV pictures, written to the manifest (default 0.4)",
    )
    options = parser.parse_args(argv)
    chosen = {split: getattr(options, split) for split in SPLITS if getattr(options, split) is not None}
    source = scan_sources.open_source(options, require_scans=True, camera=options.camera)
    manifest = convert(
        source,
        options.out,
        rule=loops.rule_of(options),
        splits={**source.splits, **chosen},
        required_splits=chosen,
        workers=options.workers,
        limit=options.limit,
        recipe=Recipe(options.compensate_motion, options.bev_cell),
        bad_scans=options.bad_scans,
    )
    print(describe(options.out, manifest))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What one may choose about the records: of scans whether they are corrected for the car's motion, of
    pictures how many metres a pixel is."""

    compensate_motion: bool = False
    bev_cell: float = 0.4


def convert(
    source: ScanSource,
    out: Path,
    *,
    rule: loops.LoopRule,
    splits: Splits,
    required_splits: Splits,
    workers: int,
    limit: int | None = None,
    recipe: Recipe,
    bad_scans: str = "refuse",
) -> dict[str, Any]:
    """Write the prepared folder `out`; returns its manifest.

    Of `splits` (split → sequences) those sequences count that are there; those of `required_splits` must be.
    `bad_scans` is one of BAD_SCANS. Raises InputError for bad input. Only damage inside a scan or an image
    shows after writing has begun; the whole shards that are there by then serve the next run.
    """
    sequences = _limited(source.sequences, limit)
    scan_sources.check_names(sequences, required_splits)
    left_out = BAD_SCANS[bad_scans](sequences, READERS[source.records], workers)
    sequences = [_without(sequence, left_out) for sequence in sequences]
    scan_files.check_files(sequences)
    found = {sequence.name: loops.find_loops(sequence, rule) for sequence in sequences}
    counts = {name: its.counts() for name, its in found.items()}
    first = np.concatenate([[0], np.cumsum([len(s.scans) for s in sequences])]).astype(np.int64)
    frames = [scan for sequence in sequences for scan in sequence.scans]
    if not frames:
        raise InputError("expected scans, found none in any sequence. Check --raw and --sequences.")
    kind = RECORDS[source.records](frames, source.camera, recipe)
    return tables.write_prepared_folder(
        out,
        converter="lcd",
        settings={
            "format": source.format,
            "pose_source": source.pose_source,
            "limit": limit,
            "loop_distance": rule.distance,
            "loop_gap": rule.gap,
            "gap_by": rule.gap_by,
            "splits": {split: list(splits.get(split, ())) for split in SPLITS},
            "recipe": kind.recipe,
            "left_out": len(left_out),
            "frames": _hash_frames(frames),
        },
        source={
            "dataset": source.format,
            "pose_source": source.pose_source,
            "built_in_city": source.built_in_city,
        },
        tables=[
            tables.Table(
                "sequences",
                scan_records.sequence_features,
                scan_records.sequence_examples,
                [
                    [scan_records.SequenceInput(s, int(start))]
                    for s, start in zip(sequences, first, strict=False)
                ],
            ),
            tables.Table(
                "frames", kind.features, kind.examples, tables.split_into_shards(frames, kind.per_shard)
            ),
        ],
        splits={
            "official": _numbers_of_splits(sequences, first, splits),
            "loops": _positives(list(found.values()), first),
        },
        counts={
            "frames": len(frames),
            "sequences": len(sequences),
            **{
                key: sum(count[key] for count in counts.values())
                for key in ("queries_with_past_loop", "reverse", "frames_with_any_loop")
            },
        },
        extra={
            "raw_format": source.format,
            "records": source.records,
            "camera": kind.camera,
            "recipe": kind.recipe,
            "loop_rule": {
                "distance_m": rule.distance,
                "more_than_frames_apart": rule.gap,
                "gap_by": rule.gap_by,
            },
            "sequences": {
                s.name: {
                    "pose_source": s.pose_source,
                    **counts[s.name],
                    "scans_without_pose": s.scans_without_pose,
                    "poses_without_scan": s.poses_without_scan,
                }
                for s in sequences
            },
            "left_out": [
                {"sequence": s.sequence, "frame_id": s.frame_id, "file": s.path.name, "why": why}
                for s, why in left_out
            ],
        },
        workers=workers,
    )


def describe(out: Path, manifest: Mapping[str, Any]) -> str:
    """What was written, with the loops of each sequence and where its poses are from."""
    sequences = manifest["sequences"]
    lines = [loops.table([(name, count, count["pose_source"]) for name, count in sequences.items()])]
    without = [name for name, count in sequences.items() if not count["frames_with_any_loop"]]
    if without:
        lines.append(
            f"no loop in {', '.join(without)}: there is nothing to train on and nothing to find; training on "
            "such sequences alone stops and says so."
        )
    official = {split: manifest["splits"]["official"][split] for split in SPLITS}
    if not any(official.values()):
        lines.append(
            "the splits train, val and test are empty: none of their sequences is here. Take splits by the "
            "sequences' names, or convert with --train, --val and --test."
        )
    if manifest["left_out"]:
        names = ", ".join(f"{scan['sequence']}/{scan['file']}" for scan in manifest["left_out"][:5])
        more = ", …" if len(manifest["left_out"]) > 5 else ""
        lines.append(f"{len(manifest['left_out'])} damaged scans left out (manifest.json): {names}{more}")
    unpaired = sum(count["scans_without_pose"] for count in sequences.values())
    if unpaired:
        lines.append(f"{unpaired} scans have no pose and are left out")
    if manifest["records"] == "points" and manifest["camera"] is None:
        lines.append("no images: what needs the camera in training is not in this folder")
    size = sum(table["bytes"] for table in manifest["tables"].values()) / 1e6
    lines.append(
        f"{out}: {manifest['counts']['frames']} frames of {len(sequences)} sequences, {size:.1f} MB, splits "
        f"{json.dumps(official)}, fingerprint {manifest['fingerprint'][:12]}"
    )
    return "\n".join(lines)


def _limited(sequences: Sequence[ScanSequence], limit: int | None) -> list[ScanSequence]:
    return [dataclasses.replace(sequence, scans=sequence.scans[:limit]) for sequence in sequences]


def _numbers_of_splits(
    sequences: Sequence[ScanSequence], first: np.ndarray, splits: Splits
) -> dict[str, np.ndarray]:
    """Split → record numbers, the sequences being splits of their own."""
    of_sequence = {s.name: np.arange(first[number], first[number + 1]) for number, s in enumerate(sequences)}
    official = {
        split: np.concatenate(
            [np.zeros(0, np.int64)]
            + [numbers for name, numbers in of_sequence.items() if name in splits.get(split, ())]
        )
        for split in SPLITS
    }
    return {**official, **of_sequence}


def _positives(found: Sequence[loops.Loops], first: np.ndarray) -> dict[str, np.ndarray]:
    """The positives of all sequences in record numbers."""
    offsets, positives = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)]
    for its, start in zip(found, first, strict=False):
        offset, positive = its.positives()
        offsets.append(offset[1:] + offsets[-1][-1])
        positives.append(positive + start)
    return {"offset": np.concatenate(offsets), "positive": np.concatenate(positives)}


def _hash_frames(frames: Sequence[Scan]) -> str:
    """Over names, ids, poses, calibration and sizes of the files: tells inputs apart without reading them."""
    digest = hashlib.sha256()
    for scan in frames:
        digest.update(f"{scan.sequence} {scan.frame_id} {scan.time} {scan.path.stat().st_size}".encode())
        digest.update(np.asarray(scan.map_T_lidar, np.float64).tobytes())
        if scan.image is not None:
            digest.update(f"{scan.image.path.name} {scan.image.path.stat().st_size}".encode())
            digest.update(scan.image.intrinsics.tobytes() + scan.image.camera_T_lidar.tobytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class FrameRecords:
    """How the table `frames` is written; `recipe` goes to the manifest, and its change makes other data.

    `camera` is whose images the records hold, None for none.
    """

    features: Callable[[], Any]
    examples: Callable[[Sequence[Scan]], Any]
    per_shard: int
    recipe: Mapping[str, Any]
    camera: str | None = None


def _point_records(frames: Sequence[Scan], camera: str | None, recipe: Recipe) -> FrameRecords:
    images = _all_with_images(frames)
    moved = recipe.compensate_motion and all(scan.sweep_motion is not None for scan in frames)
    if recipe.compensate_motion and not moved:
        raise InputError(
            "--compensate-motion: expected scans as they were measured, found a dataset that has taken the "
            "car's motion out already. Leave the option away."
        )
    return FrameRecords(
        functools.partial(scan_records.point_features, images),
        functools.partial(scan_records.point_examples, images=images, compensate_motion=moved),
        SCANS_PER_SHARD,
        {
            "point_unit_m": POINT_UNIT,
            "motion_compensated_here": moved,
            "nearest_linked_m": scan_records.NEAREST if images else None,
            "jpeg_quality": JPEG_QUALITY if images else None,
        },
        camera if images else None,
    )


def _all_with_images(frames: Sequence[Scan]) -> bool:
    """Whether the scans have images; InputError where some have and some have not."""
    without = sorted({scan.sequence for scan in frames if scan.image is None})
    if without and any(scan.image is not None for scan in frames):
        raise InputError(
            f"sequences {', '.join(without)}: expected images as the others have them, found none. Unpack "
            "them, choose the others with --sequences, or convert points alone with --camera none."
        )
    return not without


def _bev_records(frames: Sequence[Scan], camera: str | None, recipe: Recipe) -> FrameRecords:
    size = scan_records.read_bev(frames[0].path).shape
    return FrameRecords(
        scan_records.bev_features,
        functools.partial(scan_records.bev_examples, size=size),
        BEV_PER_SHARD,
        {
            "bev_size": list(size),
            "bev_cell_m": recipe.bev_cell,
            "bev_axes": "row increases with x (forward), column with y (left)",
            # The first and the last cell centre lie at ∓ this, so that the LiDAR is at the middle one.
            "bev_reach_m": [round((n - 1) / 2 * recipe.bev_cell, 9) for n in size],
        },
    )


RECORDS: dict[str, Callable[[Sequence[Scan], str | None, Recipe], FrameRecords]] = {
    "points": _point_records,
    "bev": _bev_records,
}

# What a scan's content is read by; raises InputError for damage.
READERS: dict[str, Callable[[Path], Any]] = {
    "points": scan_records.read_points,
    "bev": scan_records.read_bev,
}

LeftOut = list[tuple[Scan, str]]  # scans, and why


def _skip_bad(sequences: Sequence[ScanSequence], read: Callable[[Path], Any], workers: int) -> LeftOut:
    """The scans that `read` refuses: reads them all, in threads, which NumPy and OpenCV let run."""
    scans = [scan for sequence in sequences for scan in sequence.scans]

    def why(scan: Scan) -> str | None:
        try:
            read(scan.path)
        except InputError as error:
            return str(error)
        return None

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        reasons = list(tqdm(pool.map(why, scans), "looking for bad scans", len(scans), unit="scan", delay=1))
    return [(scan, reason) for scan, reason in zip(scans, reasons, strict=True) if reason is not None]


# What to do about damaged scans: sequences, reader, workers → which are left out.
BAD_SCANS: dict[str, Callable[[Sequence[ScanSequence], Callable[[Path], Any], int], LeftOut]] = {
    "refuse": lambda sequences, read, workers: [],
    "skip": _skip_bad,
}


def _without(sequence: ScanSequence, left_out: LeftOut) -> ScanSequence:
    frames = {scan.frame_id for scan, _ in left_out if scan.sequence == sequence.name}
    return dataclasses.replace(
        sequence, scans=tuple(scan for scan in sequence.scans if scan.frame_id not in frames)
    )
