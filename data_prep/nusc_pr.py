"""nuScenes to the prepared folder of the place-recognition benchmark NUSC-PR (`nusc_pr`).

    python -m data_prep nusc_pr --raw ROOT --out DIR

Table `frames`: every keyframe once, in the order of scene.json and of each scene's samples, with six images,
the sweep and its range image (`data_prep.nusc_pr_records`). Table `scenes`: one record a scene with its poses
and times, so that places are compared without reading images.

Splits, one file a scheme: `supervised` and `self_supervised` as the published code of EINet makes them,
`supervised_paper` and `self_supervised_paper` as the paper's text does (`data_prep.place_recognition`). Each
holds for every location LOC `LOC_database`, `LOC_train_query`, `LOC_val_query`, `LOC_test_query` and, a row a
training query, `LOC_train_positives` and `LOC_train_negatives`; and of all locations together `database`,
`train`, `val` and `test`. manifest.json has the counts and the hash of each, over the tokens of its samples,
so that two people can tell whether they have the same benchmark.
"""

import argparse
import dataclasses
import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import nusc_pr_records, option_types, tables
from data_prep import place_recognition as places
from data_prep.errors import InputError
from data_prep.nusc_pr_records import FrameInput, SceneInput
from data_prep.raw import nuscenes
from placerec_jax.ops.point_steps import POINT_UNIT
from placerec_jax.ops.range_image import SphericalGrid

FRAMES_PER_SHARD = 64
_LISTED = 10  # files named in a message
_LOCATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    options = _parser().parse_args(argv)
    manifest = convert(
        options.raw,
        options.out,
        version=options.version,
        workers=options.workers,
        image_size=options.image_size,
        grid=grid_of(options),
        rules=rules_of(options),
        locations=options.locations or None,
        missing_images=options.missing_images,
        lacking=options.lacking,
        gaps=options.min_gap_days,
    )
    print(describe(options.out, manifest))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep nusc_pr",
        description="nuScenes to TFRecord, for place recognition (NUSC-PR).",
    )
    add = parser.add_argument
    add("--raw", type=Path, required=True, help="dataset root (real, or written by the built-in city)")
    add("--out", type=Path, required=True, help="the prepared folder to write")
    add("--version", help="e.g. v1.0-trainval; default: the only one in the root")
    add(
        "--workers",
        type=option_types.positive,
        default=os.cpu_count(),
        help="processes; default: one a CPU core",
    )
    add(
        "--image-size",
        type=option_types.height_width,
        default=(352, 640),
        help="height x width of the stored images (default 352x640)",
    )
    add(
        "--range-image",
        type=option_types.height_width,
        default=(32, 1056),
        help="height x width of the range images (default 32x1056)",
    )
    add("--fov-up", type=float, default=10.0, help="degrees of a range image's upper edge (default 10)")
    add("--fov-down", type=float, default=-30.0, help="degrees of its lower edge (default -30)")
    add("--locations", type=option_types.names, help="only these, with commas between; default: all")
    add(
        "--missing-images",
        choices=("refuse", "mask"),
        default="refuse",
        help="what to do about image files that are not there: refuse lists them and stops; mask stores a "
        "black image and marks the camera as absent (default refuse). Cameras without a record are masked",
    )
    add(
        "--lacking",
        choices=("refuse", "keep"),
        default="refuse",
        help="what to do about a location that has no training or no test queries under a scheme of the "
        "published code: refuse stops; keep writes what there is, and says so (default refuse)",
    )
    add(
        "--min-gap-days",
        type=option_types.days,
        default=(1.0, 30.0),
        help="count test queries that keep a right place when those taken within so many days do not count "
        "(default 1,30)",
    )
    rule = parser.add_argument_group("rules of the schemes (defaults are NUSC-PR's)")
    defaults, own = places.SupervisedRule(), places.SelfSupervisedRule()
    rule.add_argument("--delta", type=option_types.positive_metres, default=defaults.interval, metavar="M")
    rule.add_argument(
        "--gamma",
        type=option_types.days_by_name,
        default={},
        help="days from which on frames are test queries, as LOCATION=DAYS,...; or DAYS for every location "
        "(default: 105, and 50 in singapore-onenorth and -hollandvillage; the paper's text: 105 everywhere)",
    )
    for name, value in (("positive", defaults.positive_radius), ("negative", defaults.negative_radius)):
        rule.add_argument(f"--{name}-radius", type=option_types.positive_metres, default=value, metavar="M")
    rule.add_argument("--positives", type=option_types.positive, default=defaults.positives)
    rule.add_argument("--negatives", type=option_types.positive, default=defaults.negatives)
    rule.add_argument("--val-ratio", type=option_types.share, default=defaults.val_ratio)
    rule.add_argument(
        "--negative-gap", type=option_types.zero_or_more, default=own.negative_gap, metavar="FRAMES"
    )
    rule.add_argument(
        "--by-date", action="store_true", help="self-supervised: divide scenes by date, not by chance"
    )
    rule.add_argument("--date-threshold", type=float, default=own.gamma, metavar="DAYS", help="for --by-date")
    rule.add_argument(
        "--test-scenes",
        type=option_types.positive,
        help="self-supervised: so many scenes are drawn; default: 150 of 850, and in proportion",
    )
    rule.add_argument("--seed", type=option_types.zero_or_more, default=defaults.seed)
    return parser


def grid_of(options: argparse.Namespace) -> SphericalGrid:
    """The range image's grid, of parsed options; InputError for what is none."""
    try:
        return SphericalGrid(*options.range_image, options.fov_up, options.fov_down)
    except ValueError as error:
        raise InputError(f"--fov-up, --fov-down: {error}.") from None


Rule = places.SupervisedRule | places.SelfSupervisedRule


def rules_of(options: argparse.Namespace) -> dict[str, Rule]:
    """Scheme → rule, of parsed options; InputError where they contradict each other."""
    if not options.delta <= options.positive_radius <= options.negative_radius:
        raise InputError(
            "--delta, --positive-radius, --negative-radius: expected each no larger than the next, found "
            f"{options.delta:g}, {options.positive_radius:g}, {options.negative_radius:g} m: a frame that is "
            "left out of the database must have a right place in it, and no right place may be a negative."
        )
    everywhere = options.gamma.get("")
    named = {name: days for name, days in options.gamma.items() if name}
    official = {} if everywhere is not None else places.SupervisedRule().gamma
    supervised = places.SupervisedRule(
        interval=options.delta,
        gamma={**official, **named},
        other_gamma=places.PAPER_GAMMA if everywhere is None else everywhere,
        positive_radius=options.positive_radius,
        negative_radius=options.negative_radius,
        positives=options.positives,
        negatives=options.negatives,
        val_ratio=options.val_ratio,
        seed=options.seed,
    )
    self_supervised = places.SelfSupervisedRule(
        by_date=options.by_date,
        gamma=options.date_threshold,
        test_scenes=options.test_scenes,
        positive_radius=options.positive_radius,
        negative_gap=options.negative_gap,
        positives=options.positives,
        negatives=options.negatives,
        seed=options.seed,
    )
    return {
        "supervised": supervised,
        "supervised_paper": dataclasses.replace(supervised, admits_equal=True, gamma=named),
        "self_supervised": self_supervised,
        "self_supervised_paper": dataclasses.replace(self_supervised, by_date=True, queue_negatives=True),
    }


# The algorithm of a rule, and in how many dimensions it says whether a place is right.
_ALGORITHMS: Mapping[type, tuple[Callable[..., dict[str, places.Division]], int]] = {
    places.SupervisedRule: (places.supervised, 2),
    places.SelfSupervisedRule: (places.self_supervised, 3),
}


def convert(
    raw: Path,
    out: Path,
    *,
    version: str | None,
    workers: int,
    image_size: tuple[int, int],
    grid: SphericalGrid,
    rules: Mapping[str, Rule],
    locations: Sequence[str] | None = None,
    missing_images: str = "refuse",
    lacking: str = "refuse",
    gaps: Sequence[float] = (1.0, 30.0),
) -> dict[str, Any]:
    """Write the prepared folder `out`; returns its manifest.

    `rules` is scheme → rule. Raises InputError for bad input. Only damage inside a sweep or an image shows
    after writing has begun; the whole shards that are there by then serve the next run.
    """
    version = nuscenes.find_version(raw, version)
    scenes = _of_locations(nuscenes.read_scenes(raw, version), locations)
    scenes, masked = _with_files(scenes, missing_images)
    frames = arrays_of(scenes)
    schemes = {name: _scheme(frames, rule, gaps) for name, rule in rules.items()}
    _refuse_lacking(schemes, lacking)
    inputs = [
        FrameInput(frame, number, sample, scene.date_captured)
        for number, scene in enumerate(scenes)
        for sample, frame in enumerate(scene.frames)
    ]
    first = np.concatenate([[0], np.cumsum([len(scene.frames) for scene in scenes])])
    absent = Counter(
        channel
        for one in inputs
        for channel in {*nusc_pr_records.CAMERAS} - {camera.channel for camera in one.frame.cameras}
    )
    written = {"image_size": list(image_size), "range_image": dataclasses.asdict(grid)}
    return tables.write_prepared_folder(
        out,
        converter="nusc_pr",
        settings={
            "version": version,
            **written,
            "missing_images": missing_images,
            "locations": None if locations is None else sorted(locations),
            "schemes": {name: scheme.manifest["rule"] for name, scheme in schemes.items()},
            "frames": _hash_frames(scenes),
        },
        source={
            "dataset": "nuscenes",
            "version": version,
            "built_in_city": (raw / nuscenes.CITY_MARKER).exists(),
        },
        tables=[
            tables.Table(
                "scenes",
                nusc_pr_records.scene_features,
                nusc_pr_records.scene_examples,
                tables.split_into_shards(
                    [SceneInput(scene, int(start)) for scene, start in zip(scenes, first, strict=False)], 1024
                ),
            ),
            tables.Table(
                "frames",
                functools.partial(nusc_pr_records.frame_features, grid),
                functools.partial(nusc_pr_records.frame_examples, image_size=image_size, grid=grid),
                tables.split_into_shards(inputs, FRAMES_PER_SHARD),
            ),
        ],
        splits={name: scheme.splits for name, scheme in schemes.items()},
        counts={
            "frames": len(inputs),
            "scenes": len(scenes),
            "frames_by_location": dict(Counter(frames.locations.tolist())),
            "absent_cameras": dict(sorted(absent.items())),
            "masked_image_files": masked,
        },
        extra={
            "cameras": list(nusc_pr_records.CAMERAS),
            **written,
            "range_unit_m": nusc_pr_records.RANGE_UNIT,
            "point_unit_m": POINT_UNIT,
            "locations": frames.location_names(),
            "schemes": {name: scheme.manifest for name, scheme in schemes.items()},
        },
        workers=workers,
    )


def arrays_of(scenes: Sequence[nuscenes.Scene]) -> places.Frames:
    """What the schemes ask of the frames, in the order of their records."""
    frames = [frame for scene in scenes for frame in scene.frames]
    return places.Frames(
        tokens=np.array([frame.token for frame in frames]),
        locations=np.array([frame.location for frame in frames]),
        scenes=np.repeat(np.arange(len(scenes)), [len(scene.frames) for scene in scenes]),
        scene_names=tuple(scene.name for scene in scenes),
        xyz=np.array([frame.map_T_ego[:3, 3] for frame in frames]),
        time=np.array([frame.timestamp for frame in frames], np.int64),
    )


def _of_locations(scenes: list[nuscenes.Scene], wanted: Sequence[str] | None) -> list[nuscenes.Scene]:
    there = Counter(scene.location for scene in scenes)
    odd = sorted(name for name in there if not _LOCATION.fullmatch(name))
    if odd:
        raise InputError(
            "log.json: field 'location': expected letters, digits, '-', '_' and '.': splits and files "
            f"have its name; found {odd[0]!r}. Rename it in the table."
        )
    absent = sorted(set(wanted or ()) - set(there))
    if absent:
        raise InputError(
            f"--locations: found no scene in {', '.join(absent)}; there are {', '.join(sorted(there))}."
        )
    return scenes if wanted is None else [scene for scene in scenes if scene.location in wanted]


def _with_files(scenes: list[nuscenes.Scene], missing_images: str) -> tuple[list[nuscenes.Scene], int]:
    """The scenes without the cameras whose files are not there, if they may lack, and how many those are.

    InputError that lists what is not there and may not lack.
    """
    bad = nuscenes.bad_files([frame for scene in scenes for frame in scene.frames])
    forbidden = [it for it in bad if missing_images == "refuse" or it[1] == nuscenes.LIDAR]
    if forbidden:
        counted = ", ".join(f"{channel} {n}" for channel, n in Counter(c for _, c, _ in forbidden).items())
        lines = "\n".join(f"  {text}" for _, _, text in forbidden[:_LISTED])
        more = f"\n  and {len(forbidden) - _LISTED} more" if len(forbidden) > _LISTED else ""
        raise InputError(
            f"{len(forbidden)} files are missing or damaged ({counted}). Images may lack with "
            f"--missing-images mask.\n{lines}{more}"
        )
    absent = {(frame.token, channel) for frame, channel, _ in bad}
    if not absent:
        return scenes, 0

    def without(frame: nuscenes.Frame) -> nuscenes.Frame:
        cameras = tuple(c for c in frame.cameras if (frame.token, c.channel) not in absent)
        return dataclasses.replace(frame, cameras=cameras)

    kept = [dataclasses.replace(s, frames=tuple(without(f) for f in s.frames)) for s in scenes]
    return kept, len(absent)


@dataclasses.dataclass(frozen=True)
class Scheme:
    """One scheme of a dataset: its splits by name, what the manifest says of it, what it lacks, in words."""

    splits: Mapping[str, np.ndarray]
    manifest: Mapping[str, Any]
    lacking: Sequence[str]


_TOGETHER = {"database": "database", "train": "train_query", "val": "val_query", "test": "test_query"}


def _scheme(frames: places.Frames, rule: Rule, gaps: Sequence[float]) -> Scheme:
    algorithm, dimensions = _ALGORITHMS[type(rule)]
    divisions = algorithm(frames, rule)
    splits = {
        name: np.sort(np.concatenate([getattr(division, part) for division in divisions.values()]))
        for name, part in _TOGETHER.items()
    }
    told, lacking = {}, []
    for location, division in divisions.items():
        arrays = division.arrays()
        splits |= {f"{location}_{part}": numbers for part, numbers in arrays.items()}
        told[location] = {
            "counts": {part: len(numbers) for part, numbers in arrays.items()},
            "sha256": {part: hash_tokens(frames.tokens[numbers]) for part, numbers in arrays.items()},
            "truth": places.describe_truth(frames, division, rule.positive_radius, dimensions, gaps),
        }
        lacking += places.lacking(location, division)
    manifest = {
        "rule": dataclasses.asdict(rule),
        "positive_radius_m": rule.positive_radius,
        "dimensions": dimensions,
        "locations": told,
        "lacking": lacking,
    }
    return Scheme(splits, manifest, lacking)


def hash_tokens(tokens: np.ndarray) -> str:
    """SHA-256 over sample tokens in order, one a line, those of a row with spaces between."""
    rows = (" ".join(row) for row in tokens) if tokens.ndim == 2 else tokens
    return hashlib.sha256("".join(f"{row}\n" for row in rows).encode()).hexdigest()


def _refuse_lacking(schemes: Mapping[str, Scheme], lacking: str) -> None:
    """InputError for what is wrong with a scheme of the published code, unless it is to be kept.

    Those of the paper's text are beside them: its one γ leaves some locations of nuScenes without a query.
    """
    wrong = [
        f"  {name}: {reason}"
        for name, scheme in schemes.items()
        if not name.endswith("_paper")
        for reason in scheme.lacking
    ]
    if wrong and lacking == "refuse":
        listed = "\n".join(wrong)
        raise InputError(
            f"expected places that are visited again on other dates; found\n{listed}\nChange the thresholds "
            "(--gamma, --delta, --by-date, --date-threshold), leave a location out (--locations), or write "
            "what there is with --lacking keep."
        )


def _hash_frames(scenes: Sequence[nuscenes.Scene]) -> str:
    """Over everything that records are made of, but for the content of images and sweeps."""
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update(f"{scene.name} {scene.location} {scene.date_captured}".encode())
        for frame in scene.frames:
            digest.update(f"{frame.token} {frame.timestamp} {frame.lidar.path.stat().st_size}".encode())
            digest.update(frame.lidar.map_T_ego.tobytes() + frame.lidar.ego_T_lidar.tobytes())
            for camera in frame.cameras:
                digest.update(f"{camera.channel} {camera.path.stat().st_size}".encode())
                for array in (camera.intrinsics, camera.ego_T_camera, camera.map_T_ego):
                    digest.update(array.tobytes())
    return digest.hexdigest()


_COLUMNS = ("database", "train_query", "val_query", "test_query")


def describe(out: Path, manifest: Mapping[str, Any]) -> str:
    """What was written: counts and the first digits of the hashes of every split, and of the ground truth."""
    lines = []
    for name, scheme in manifest["schemes"].items():
        lines.append(f"{name} (count and sha256 of the sample tokens)")
        header = ["location", *_COLUMNS, "positives", "negatives"]
        rows = [
            [
                location,
                *(f"{it['counts'][part]} {it['sha256'][part][:8]}" for part in _COLUMNS),
                *(it["sha256"][f"train_{part}"][:8] for part in ("positives", "negatives")),
            ]
            for location, it in scheme["locations"].items()
        ]
        lines += _aligned([header, *rows])
        for location, it in scheme["locations"].items():
            lines.append(f"  {location}: {_truth(it['truth'])}")
        lines += [f"  NOTE {reason}" for reason in scheme["lacking"]]
    absent = manifest["counts"]["absent_cameras"]
    if absent:
        listed = ", ".join(f"{channel} {n}" for channel, n in absent.items())
        lines.append(f"cameras that are absent and masked: {listed}")
    size = sum(table["bytes"] for table in manifest["tables"].values()) / 1e6
    lines.append(
        f"{out}: {manifest['counts']['frames']} frames of {manifest['counts']['scenes']} scenes, "
        f"{size:.1f} MB, fingerprint {manifest['fingerprint'][:12]}"
    )
    return "\n".join(lines)


def _truth(truth: Mapping[str, Any]) -> str:
    gaps = ", ".join(f"{gap} days {n}" for gap, n in truth["with_right_entry_min_gap_days"].items())
    return (
        f"of {truth['test_queries']} test queries {truth['with_right_entry']} have a right place, the "
        f"nearest in their own scene {truth['nearest_right_entry_in_own_scene']}; another scene has one for "
        f"{truth['with_right_entry_exclude_same_scene']}; at least so many days apart: {gaps}"
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows
    ]
