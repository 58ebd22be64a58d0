"""Images and LiDAR submaps of KITTI-360 or KITTI to the prepared folder of image-to-map retrieval (`i2p`).

    python -m data_prep i2p --raw ROOT --format kitti360|kitti --out DIR

Table `frames`: one record a frame that has a pose, an image and a submap. A submap is a square of ±20 m about
the frame, in its LiDAR's axes, cut from the map of its whole sequence: all scans, those that the car took
later as well as earlier, less the car itself, in voxels of 0.1 m, without outliers (`data_prep.submaps`).
With --submap scan, the default for KITTI, it is the frame's own scan as it is.

Splits: `official` and `released_cfg`, see `data_prep.place_schemes`: for train, val and test, and for each
sequence under its own name, all frames, and with _query or _database behind the name, those. The same as
CSV files: OUT/splits_csv/<sequence>/{query,database}[_val].csv, which --split-csv reads.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep import (
    i2p_records,
    option_types,
    panorama,
    place_schemes,
    scan_sources,
    sequence_maps,
    tables,
)
from data_prep.errors import InputError
from data_prep.i2p_records import IMAGES, PANORAMA, ImageSettings, PairInput, SubmapSettings
from data_prep.images import JPEG_QUALITY
from data_prep.place_schemes import Drive
from data_prep.raw import kitti360_cameras, kitti_oxts, scan_files
from data_prep.raw.scans import ScanSequence
from data_prep.scan_sources import SPLITS, ScanSource
from data_prep.submaps import MapRecipe
from data_prep.worker_pool import WorkerPool
from placerec_jax.ops import rigid
from placerec_jax.ops.point_steps import POINT_UNIT

PAIRS_PER_SHARD = 64
SUBMAPS = ("map", "scan")
_DEFAULT_SUBMAP = {"kitti360": "map", "kitti": "scan"}


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    options = _parser().parse_args(argv)
    request = request_of(options)
    manifest = convert(request, options.out, workers=options.workers)
    print(describe(options.out, manifest))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep i2p", description="Images and LiDAR submaps to TFRecord, for retrieval."
    )
    recipe, submap = MapRecipe(), SubmapSettings()
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
    kinds = ", ".join(f"{name} ({kind.format})" for name, kind in IMAGES.items())
    parser.add_argument("--image", choices=tuple(IMAGES), help=f"{kinds}; default: the format's first")
    parser.add_argument(
        "--pano",
        choices=tuple(panorama.METHODS),
        help="how the fisheye pair is stitched (default equidistant185, as published)",
    )
    parser.add_argument("--image-size", type=image_size, help="as stored, e.g. 512x1024 (height x width)")
    parser.add_argument(
        "--pano-rows",
        type=shares,
        help="the part of a panorama's height to keep, e.g. 0.1,0.9 (default: all)",
    )
    parser.add_argument(
        "--submap",
        choices=SUBMAPS,
        help="map: cut from the map of the whole sequence; scan: the frame's own scan as it is (default: "
        + ", ".join(f"{value} for {name}" for name, value in _DEFAULT_SUBMAP.items())
        + ")",
    )
    metres = option_types.positive_metres
    for name, default, about in (
        ("voxel", recipe.voxel, "side of a voxel of the map"),
        ("crop", submap.half, "half the side of a submap's square"),
    ):
        parser.add_argument(f"--{name}", type=metres, default=default, help=f"m, {about} (default {default})")
    parser.add_argument(
        "--max-points",
        type=option_types.positive,
        default=submap.max_points,
        help=f"of a submap, chosen at random by the frame's name (default {submap.max_points})",
    )
    parser.add_argument(
        "--min-points",
        type=option_types.positive,
        default=1,
        help="frames with smaller submaps are left out and counted (default 1)",
    )
    parser.add_argument(
        "--remove-ground",
        action="store_true",
        help="take the ground plane out of every scan that goes into the map",
    )
    parser.add_argument(
        "--compensate-motion",
        action="store_true",
        help="move the points of scans that were not corrected for the car's motion (KITTI-360) to where "
        "they were at the scan's time",
    )
    parser.add_argument(
        "--missing-images",
        choices=("refuse", "skip"),
        default="refuse",
        help="what to do about frames without an image: refuse stops; skip leaves them out and counts them; "
        "their scans stay in the map (default refuse)",
    )
    parser.add_argument(
        "--split-csv",
        type=Path,
        help="a folder with query.csv, database.csv, query_val.csv and database_val.csv for each sequence, "
        "as published for KITTI-360 or as written before",
    )
    parser.add_argument(
        "--raw-oxts",
        type=Path,
        help="for KITTI: the root of the raw recordings (2011_10_03/…/oxts), for VXP's test squares",
    )
    parser.add_argument(
        "--queries-in-database", action="store_true", help="the databases hold the queries' frames as well"
    )
    for split in SPLITS:
        parser.add_argument(
            f"--{split}",
            type=option_types.names,
            help=f"the sequences of {split}, whole, e.g. 0000,0003; default: the dataset's own",
        )
    parser.add_argument(
        "--maps",
        type=Path,
        help="keep the maps of the sequences here, for further conversions with other images (default: "
        "OUT.maps, which is removed at the end)",
    )
    return parser


def image_size(text: str) -> tuple[int, int]:
    """ "512x1024" → (height, width)."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in pixels, found {text}")
    return int(parts[0]), int(parts[1])


def shares(text: str) -> tuple[float, float]:
    """ "0.1,0.9" → (0.1, 0.9)."""
    try:
        first, last = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected two numbers with a comma between, found {text}") from None
    if not 0 <= first < last <= 1:
        raise argparse.ArgumentTypeError(f"expected shares from 0 to 1 in ascending order, found {text}")
    return first, last


@dataclasses.dataclass(frozen=True)
class Request:
    """A conversion: what is read, and what it shall become."""

    source: ScanSource
    root: Path
    image: ImageSettings
    submap_from: str  # of SUBMAPS
    submap: SubmapSettings
    recipe: MapRecipe
    min_points: int = 1
    limit: int | None = None
    missing_images: str = "refuse"
    split_csv: Path | None = None
    raw_oxts: Path | None = None
    queries_in_database: bool = False
    chosen: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    maps: Path | None = None


def request_of(options: argparse.Namespace) -> Request:
    """What the options say; InputError where they do not fit together or the input is bad."""
    kinds = [name for name, kind in IMAGES.items() if kind.format == options.format]
    if not kinds:
        raise InputError(
            f"--format: expected kitti360 or kitti, found {options.format!r}, which is pictures."
        )
    kind = options.image or kinds[0]
    if kind not in kinds:
        raise InputError(
            f"--image: expected {' or '.join(kinds)} for the format {options.format}, found {kind!r}."
        )
    submap_from = options.submap or _DEFAULT_SUBMAP[options.format]
    if submap_from == "scan" and (options.remove_ground or options.compensate_motion):
        raise InputError(
            "--submap scan: expected no --remove-ground nor --compensate-motion: scans stay as they are."
        )
    for option in ("split_csv", "raw_oxts"):
        folder = getattr(options, option)
        if folder is not None and not folder.is_dir():
            raise InputError(f"--{option.replace('_', '-')}: expected a folder, found nothing at {folder}.")
    panoramic = kind == PANORAMA
    if not panoramic and (options.pano or options.pano_rows):
        raise InputError(f"--image {kind}: expected no --pano nor --pano-rows, which are of panoramas.")
    if options.raw_oxts is not None and options.format != "kitti":
        raise InputError(f"--raw-oxts: expected --format kitti, found {options.format}.")
    return Request(
        source=scan_sources.open_source(options, require_scans=True, camera=scan_sources.NO_CAMERA),
        root=options.raw,
        image=ImageSettings(
            kind,
            options.image_size or IMAGES[kind].size,
            options.raw,
            (options.pano or "equidistant185") if panoramic else None,
            options.pano_rows or (0.0, 1.0),
        ),
        submap_from=submap_from,
        submap=SubmapSettings(options.crop, options.max_points),
        recipe=MapRecipe(
            voxel=options.voxel,
            remove_ground=options.remove_ground,
            compensate_motion=options.compensate_motion,
        ),
        min_points=options.min_points,
        limit=options.limit,
        missing_images=options.missing_images,
        split_csv=options.split_csv,
        raw_oxts=options.raw_oxts,
        queries_in_database=options.queries_in_database,
        chosen={s: getattr(options, s) for s in SPLITS if getattr(options, s) is not None},
        maps=options.maps,
    )


def convert(request: Request, out: Path, *, workers: int) -> dict[str, Any]:
    """Write the prepared folder `out`; returns its manifest.

    Raises InputError for bad input. What was done by then (maps, whole shards) serves the next run.
    """
    sequences = [
        dataclasses.replace(sequence, scans=sequence.scans[: request.limit])
        for sequence in request.source.sequences
    ]
    _check_names(sequences, request.chosen)
    _check_folders(sequences, request)
    scan_files.check_files(sequences)
    images = {sequence.name: _image_files(sequence, request) for sequence in sequences}
    _check_calibration(request, images)
    positions = {sequence.name: _positions(sequence, request) for sequence in sequences}
    settings = _settings(request, sequences, images, positions)
    finished = tables.finished_manifest(out, "i2p", settings)
    if finished is not None:
        return finished
    maps = request.maps or out.with_name(out.name + ".maps")
    with WorkerPool(workers) as pool:
        pairs, reports = _pairs(request, sequences, images, positions, maps, pool)
        counted = _count_points(pairs, request.submap, pool)
    kept = {
        name: [pair for pair, points in zip(its, counted[name], strict=True) if points >= request.min_points]
        for name, its in pairs.items()
    }
    for name, its in pairs.items():
        few = [
            pair.scan.frame_id for pair, n in zip(its, counted[name], strict=True) if n < request.min_points
        ]
        reports[name] |= {"too_few_points": len(few), "too_few_points_frames": few[:_LISTED]}
    drives = _drives(request, kept)
    kept = {
        drive.name: [
            dataclasses.replace(pair, is_query=bool(query))
            for pair, query in zip(kept[drive.name], drive.queries, strict=True)
        ]
        for drive in drives
    }
    frames = [pair for its in kept.values() for pair in its]
    if not frames:
        raise InputError(
            "expected frames with a pose, an image and a submap, found none in any sequence: "
            f"{json.dumps(reports)}. Check --raw and --sequences."
        )
    schemes = _schemes(request)
    points = {name: counts[counts >= request.min_points] for name, counts in counted.items()}
    manifest = tables.write_prepared_folder(
        out,
        converter="i2p",
        settings=settings,
        source={
            "dataset": request.source.format,
            "pose_source": request.source.pose_source,
            "built_in_city": request.source.built_in_city,
        },
        tables=[
            tables.Table(
                "frames",
                i2p_records.features,
                functools.partial(i2p_records.examples, image=request.image, submap=request.submap),
                tables.split_into_shards(frames, PAIRS_PER_SHARD),
            )
        ],
        splits={
            scheme: place_schemes.split_arrays(content, drives, request.queries_in_database)
            for scheme, content in schemes.items()
        },
        files={
            f"splits_csv/{name}": content
            for name, content in place_schemes.csv_files(schemes["official"], drives).items()
        },
        counts={
            "frames": len(frames),
            "sequences": len(drives),
            "queries": int(sum(drive.queries.sum() for drive in drives)),
        },
        extra={
            "raw_format": request.source.format,
            **_described(request),
            "sequences_without_poses": _without_poses(request),
            "sequences": {
                drive.name: {
                    "frames": len(drive.frame_ids),
                    "queries": int(drive.queries.sum()),
                    "database": int((~drive.queries).sum()),
                    "points": _spread(points[drive.name]),
                    "divided_by": drive.divided_by,
                    "csv_frames_absent": drive.listed_absent,
                    **reports[drive.name],
                }
                for drive in drives
            },
        },
        workers=workers,
    )
    if request.maps is None:
        shutil.rmtree(maps, ignore_errors=True)
    return manifest


def describe(out: Path, manifest: Mapping[str, Any]) -> str:
    """What was written, sequence by sequence and split by split, and what was left out."""
    sequences, official = manifest["sequences"], manifest["splits"]["official"]
    width = max(len("sequence"), *(len(name) for name in sequences))
    lines = [f"{'sequence':<{width}}  frames  queries  database  points: least, median, most"]
    for name, its in sequences.items():
        least, median, most = its["points"]
        lines.append(
            f"{name:<{width}}  {its['frames']:>6}  {its['queries']:>7}  {its['database']:>8}  "
            f"{least:>13}, {median:>6}, {most:>5}"
        )
    for split in SPLITS:
        lines.append(
            f"{split}: {official[split]} frames, {official[split + '_query']} queries, "
            f"{official[split + '_database']} of database"
        )
    if not any(official[split] for split in SPLITS):
        lines.append(
            "train, val and test are empty: none of their sequences is here. Take splits by the sequences' "
            "names, or convert with --train, --val and --test."
        )
    for name, its in sequences.items():
        if its["divided_by"] != "not divided":
            lines.append(f"{name} is divided by {its['divided_by']}")
    if manifest["sequences_without_poses"]:
        lines.append(f"{', '.join(manifest['sequences_without_poses'])}: scans without poses, left out")
    for key, about in _LEFT_OUT.items():
        total = sum(its[key] for its in sequences.values())
        if total:
            lines.append(f"{total} {about}")
    if any(its.get("scans_without_ground_plane") for its in sequences.values()):
        total = sum(its["scans_without_ground_plane"] for its in sequences.values())
        lines.append(f"no ground plane found in {total} scans, which stay whole")
    size = sum(table["bytes"] for table in manifest["tables"].values()) / 1e6
    lines.append(
        f"{out}: {manifest['counts']['frames']} frames of {len(sequences)} sequences, {size:.1f} MB, "
        f"positions of {manifest['position_of']}, fingerprint {manifest['fingerprint'][:12]}"
    )
    return "\n".join(lines)


_LISTED = 20  # frame numbers of each kind that the manifest lists
_LEFT_OUT = {
    "scans_without_pose": "scans have no pose and are left out",
    "missing_images": "frames have no image and are left out; their scans are in the map",
    "too_few_points": "frames have too small a submap and are left out",
    "csv_frames_absent": "frames of the CSV files are not here",
}


def _check_names(sequences: Sequence[ScanSequence], chosen: Mapping[str, Sequence[str]]) -> None:
    scan_sources.check_names(sequences, chosen)
    for split in ("val", "test"):
        trained = sorted({*chosen.get(split, ())} & {*chosen.get("train", ())})
        if trained:
            raise InputError(
                f"--{split}: expected sequences that do not train, found {', '.join(trained)} in --train as "
                "well. Name each in one of them."
            )


def _check_folders(sequences: Sequence[ScanSequence], request: Request) -> None:
    """Refuse a folder of lists or of recordings that has none of any sequence: it is the wrong folder."""
    folders = [_csv_folder(request, sequence.name) for sequence in sequences]
    root = request.split_csv
    if root is not None and folders and not any((root / folder).is_dir() for folder in folders):
        raise InputError(
            f"--split-csv {root}: expected a folder of CSV files for one sequence at least "
            f"({', '.join(folders[:3])}), found none. Give the folder that holds them."
        )
    if request.raw_oxts is not None and not any(_oxts_folder(s, request) for s in sequences):
        date, drive, _ = kitti_oxts.DRIVES["00"]
        raise InputError(
            f"--raw-oxts {request.raw_oxts}: expected the raw recording of one sequence at least (of 00: "
            f"{date}/{date}_drive_{drive}_sync/oxts/data), found none. Give the folder that holds the dates."
        )


def _csv_folder(request: Request, sequence: str) -> str:
    """What the dataset calls the folder of a sequence, and the CSV files' folder is called."""
    return f"2013_05_28_drive_{sequence}_sync" if request.source.format == "kitti360" else sequence


def _calibrated(request: Request) -> bool:
    return request.image.method is not None and panorama.METHODS[request.image.method].calibrated


def _check_calibration(request: Request, images: Mapping[str, Mapping[int, tuple[Path, ...]]]) -> None:
    """Read what the panoramas will need, so that a missing or another camera shows before long work."""
    if not _calibrated(request):
        return
    for number, name in enumerate(kitti360_cameras.FISHEYES):
        camera = kitti360_cameras.read_fisheye(request.root, name)
        for files in images.values():
            for pair in list(files.values())[:1]:
                scan_files.check_png(pair[number], camera.size)


def _without_poses(request: Request) -> list[str]:
    """KITTI-360's sequences that have scans and no poses: of some the poses are withheld."""
    if request.source.format != "kitti360":
        return []
    folders = sorted((request.root / "data_3d_raw").glob("2013_05_28_drive_????_sync"))
    posed = {sequence.name for sequence in request.source.sequences}
    return [
        name
        for name in (folder.name.split("_")[-2] for folder in folders)
        if name not in posed and not any((request.root / "data_poses").glob(f"*_{name}_sync/*.txt"))
    ]


def _image_files(sequence: ScanSequence, request: Request) -> dict[int, tuple[Path, ...]]:
    """Frame → its image files, for the frames that have all of them."""
    folders = IMAGES[request.image.kind].folders(request.root, sequence.name)
    found = []
    for folder in folders:
        files = scan_files.list_numbered(folder, ".png")
        missing = [scan.frame_id for scan in sequence.scans if scan.frame_id not in files]
        if missing and request.missing_images == "refuse":
            raise InputError(
                f"{folder}: expected a PNG image of each of {len(sequence.scans)} scans, found none of "
                f"{len(missing)} of them, the first being frame {missing[0]}. Unpack the images of this "
                "sequence whole, leave the sequence out, or pass over such frames with --missing-images skip."
            )
        found.append(files)
    complete = [s.frame_id for s in sequence.scans if all(s.frame_id in files for files in found)]
    for files in found:
        sizes = {scan_files.png_size(files[frame_id]) for frame_id in complete[:1]}
        label = f"looking at images of {sequence.name}"
        for frame_id in tqdm(complete, desc=label, unit="image", delay=1, leave=False):
            scan_files.check_png(files[frame_id], *sizes)
    return {frame_id: tuple(files[frame_id] for files in found) for frame_id in complete}


def _positions(sequence: ScanSequence, request: Request) -> np.ndarray:
    """(N, 3) positions of a sequence's frames, m."""
    map_T_lidar = np.array([scan.map_T_lidar for scan in sequence.scans]).reshape(-1, 4, 4)
    folder = _oxts_folder(sequence, request)
    if folder is not None:
        return kitti_oxts.read_positions(folder, sequence.name, [s.frame_id for s in sequence.scans])
    if request.source.format == "kitti360":
        root = request.root
        lidar_T_imu = rigid.rigid_inverse(kitti360_cameras.read_imu_T_lidar(root))
        map_T_lidar = map_T_lidar @ lidar_T_imu @ kitti360_cameras.read_imu_T_camera(root, "image_03")
    return map_T_lidar[:, :3, 3]


def _oxts_folder(sequence: ScanSequence, request: Request) -> Path | None:
    if request.raw_oxts is None or request.source.format != "kitti" or request.source.built_in_city:
        return None
    return kitti_oxts.oxts_folder(request.raw_oxts, sequence.name)


def _pairs(
    request: Request,
    sequences: Sequence[ScanSequence],
    images: Mapping[str, Mapping[int, tuple[Path, ...]]],
    positions: Mapping[str, np.ndarray],
    maps: Path,
    pool: WorkerPool,
) -> tuple[dict[str, list[PairInput]], dict[str, dict[str, Any]]]:
    """Builds the maps; the frames that have images, and what to report, both by sequence."""
    folders: dict[str, sequence_maps.MapFolder] = {}
    map_reports: dict[str, dict[str, Any]] = {}
    if request.submap_from == "map":
        jobs = [sequence_maps.job_of(maps, s.scans, request.recipe) for s in sequences if s.scans]
        map_reports = sequence_maps.build_maps(jobs, pool)
        folders = {job.scans[0].sequence: job.folder for job in jobs}
    pairs, reports = {}, {}
    for sequence in sequences:
        its_images = images[sequence.name]
        pairs[sequence.name] = [
            PairInput(scan, its_images[scan.frame_id], position, False, folders.get(sequence.name))
            for scan, position in zip(sequence.scans, positions[sequence.name], strict=True)
            if scan.frame_id in its_images
        ]
        missing = [scan.frame_id for scan in sequence.scans if scan.frame_id not in its_images]
        reports[sequence.name] = {
            "pose_source": sequence.pose_source,
            "scans_without_pose": sequence.scans_without_pose,
            "poses_without_scan": sequence.poses_without_scan,
            "missing_images": len(missing),
            "missing_images_frames": missing[:_LISTED],
            **map_reports.get(sequence.name, {}),
        }
    return pairs, reports


def _count_points(
    pairs: Mapping[str, Sequence[PairInput]], settings: SubmapSettings, pool: WorkerPool
) -> dict[str, np.ndarray]:
    """Points of every submap, by sequence: which are empty must be known before anything is written."""
    tasks = [
        (its[start : start + PAIRS_PER_SHARD], settings)
        for its in pairs.values()
        for start in range(0, len(its), PAIRS_PER_SHARD)
    ]
    found = iter(pool.run(i2p_records.count_points, tasks, "looking at submaps", "part"))
    counted = {}
    for name, its in pairs.items():
        parts = [next(found) for _ in range(0, len(its), PAIRS_PER_SHARD)]
        counted[name] = np.concatenate([np.zeros(0, np.int64), *parts])
    return counted


def _drives(request: Request, pairs: Mapping[str, Sequence[PairInput]]) -> list[Drive]:
    """The sequences with their queries and parts, numbered as their records will be."""
    drives, first = [], 0
    for name, its in pairs.items():
        xy = np.array([pair.position[:2] for pair in its]).reshape(-1, 2)
        drives.append(
            place_schemes.divide(
                "city" if request.source.built_in_city else request.source.format,
                name,
                _csv_folder(request, name),
                first,
                np.array([pair.scan.frame_id for pair in its], np.int64),
                xy,
                absolute=name in _sequences_with_oxts(request),
                csv_root=request.split_csv,
            )
        )
        first += len(its)
    return drives


def _sequences_with_oxts(request: Request) -> set[str]:
    return {s.name for s in request.source.sequences if _oxts_folder(s, request) is not None}


def _schemes(request: Request) -> dict[str, place_schemes.Scheme]:
    source = request.source
    schemes = (
        place_schemes.city_schemes(source.splits)
        if source.built_in_city
        else place_schemes.PUBLISHED[source.format]
    )
    return {name: place_schemes.with_chosen(scheme, request.chosen) for name, scheme in schemes.items()}


def _described(request: Request) -> dict[str, Any]:
    """What a reader of the folder wants to know about its records: manifest and settings have it."""
    with_oxts = sorted(_sequences_with_oxts(request))
    if request.source.format == "kitti360":
        position_of = "camera 3 (the right fisheye)"
    else:
        position_of = "the LiDAR" + (
            f"; of {', '.join(with_oxts)} the GPS, in Mercator's metres" if with_oxts else ""
        )
    submap: dict[str, Any] = {
        "from": request.submap_from,
        "max_points": request.submap.max_points,
        "point_unit_m": POINT_UNIT,
    }
    if request.submap_from == "map":
        submap |= {"crop_m": request.submap.half, **dataclasses.asdict(request.recipe)}
    return {
        "image": {
            "kind": request.image.kind,
            "pano": request.image.method,
            "rows": list(request.image.rows),
            "size": list(request.image.size),
            "jpeg_quality": JPEG_QUALITY,
        },
        "submap": submap,
        "position_of": position_of,
        "queries_in_database": request.queries_in_database,
    }


def _settings(
    request: Request,
    sequences: Sequence[ScanSequence],
    images: Mapping[str, Mapping[int, tuple[Path, ...]]],
    positions: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """All that the folder depends on; files by name and size, without reading them."""
    digest = hashlib.sha256()
    for sequence in sequences:
        for scan, position in zip(sequence.scans, positions[sequence.name], strict=True):
            digest.update(f"{scan.sequence} {scan.frame_id} {scan.time} {scan.path.stat().st_size}".encode())
            digest.update(np.asarray(scan.map_T_lidar, np.float64).tobytes() + position.tobytes())
            for path in images[sequence.name].get(scan.frame_id, ()):
                digest.update(f"{path.parent.parent.name} {path.name} {path.stat().st_size}".encode())
    lists = sorted(request.split_csv.glob("*/*.csv")) if request.split_csv else []
    calibration = sorted((request.root / "calibration").glob("image_*.yaml")) if request.image.method else []
    if _calibrated(request):
        calibration += sorted((request.root / "calibration").glob("calib_cam_to_*.txt"))
    for path in (*lists, *calibration):
        digest.update(path.name.encode() + path.read_bytes())
    return {
        "format": request.source.format,
        "pose_source": request.source.pose_source,
        "limit": request.limit,
        "min_points": request.min_points,
        "missing_images": request.missing_images,
        "splits_by_csv": request.split_csv is not None,
        "splits": {split: list(names) for split, names in request.chosen.items()},
        **_described(request),
        "inputs": digest.hexdigest(),
    }


def _spread(counts: np.ndarray) -> list[int]:
    """Least, median and most; zeros without any."""
    return [int(counts.min()), int(np.median(counts)), int(counts.max())] if len(counts) else [0, 0, 0]
