"""What a raw nuScenes root holds, what is missing, and how long and large its conversion will be.

    python -m data_prep check ROOT [--version VERSION] [--workers N] [--image-width PIXELS]

Takes seconds: the gigabyte tables are not read through, only their ends and their first keyframes; files are
counted by folder and looked up for those keyframes. Exit status 1 if anything is missing.
"""

import argparse
import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep import images, maploc
from data_prep.errors import InputError
from data_prep.raw import nuscenes

_KEYFRAMES_LOOKED_UP = 500
_IMAGES_TIMED = 12


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0 if everything is there, 1 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep check",
        description="What a raw nuScenes root holds, and what its conversion takes.",
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--version", choices=nuscenes.VERSIONS, help="default: the only one in the root")
    parser.add_argument(
        "--workers",
        type=maploc.positive,
        default=os.cpu_count(),
        help="for the estimate; default: one a CPU core",
    )
    parser.add_argument(
        "--image-width", type=maploc.positive, default=400, help="for the estimate; default 400"
    )
    options = parser.parse_args(argv)
    version = nuscenes.find_version(options.root, options.version)
    built_in = " (written by the built-in city)" if (options.root / nuscenes.CITY_MARKER).exists() else ""
    print(f"{options.root}: nuScenes {version}{built_in}")
    whole = True
    for good, line in check(options.root, version, options.workers, options.image_width):
        whole &= good
        print(f"{'  ok     ' if good else '  MISSING'} {line}")
    print("Everything is there." if whole else "Not all is there: see the lines marked MISSING.")
    return 0 if whole else 1


def check(root: Path, version: str, workers: int, image_width: int) -> Iterator[tuple[bool, str]]:
    """Findings: (whether it is as it should be, one line to read)."""
    tables = {name: root / version / f"{name}.json" for name in nuscenes.TABLES}
    missing = [name for name, path in tables.items() if not path.is_file()]
    damaged = [name for name, path in tables.items() if name not in missing and not _ends_whole(path)]
    yield not missing, f"tables: {len(tables) - len(missing)} of {len(tables)}" + _list(missing)
    if damaged:
        yield False, f"tables that end before their time (truncated){_list(damaged)}"
    if missing or damaged:
        return

    try:
        locations = {r["token"]: r["location"] for r in nuscenes.read_records(tables["log"])}
        scenes = {r["token"]: locations[r["log_token"]] for r in nuscenes.read_records(tables["scene"])}
        keyframes = Counter(scenes[r["scene_token"]] for r in nuscenes.read_records(tables["sample"]))
        data = list(itertools.islice(_keyframe_data(tables["sample_data"]), _KEYFRAMES_LOOKED_UP))
    except InputError as error:
        yield False, str(error)
        return
    except KeyError as error:
        yield False, f"tables: {error} is a field that is not there, or a token that points nowhere"
        return
    total = sum(keyframes.values())
    by_location = ", ".join(f"{location} {count}" for location, count in sorted(keyframes.items()))
    yield bool(total), f"{len(scenes)} scenes, {total} keyframes ({by_location})"

    for channel in (*nuscenes.CAMERAS, nuscenes.LIDAR):
        folder = root / "samples" / channel
        files = sum(entry.is_file() for entry in os.scandir(folder)) if folder.is_dir() else 0
        yield files >= total, f"samples/{channel}: {files} files for {total} keyframes"
    absent = [r["filename"] for r in data if not (root / r["filename"]).is_file()]
    example = f", the first {absent[0]}" if absent else ""
    yield (
        not absent,
        f"of the first {len(data)} keyframe files of sample_data.json {len(absent)} are missing{example}",
    )

    for location in sorted(keyframes):
        try:
            polygons = nuscenes.read_drivable_area(root, location)
            yield True, f"map expansion of {location}: {len(polygons)} drivable polygons"
        except InputError as error:
            yield False, str(error)

    timed = [root / r["filename"] for r in data if r["filename"].endswith(".jpg")][:_IMAGES_TIMED]
    timed = [path for path in timed if path.is_file()]
    if timed:
        seconds, size = _time_images(timed, image_width)
        count = total * len(nuscenes.CAMERAS)
        yield (
            True,
            f"`maploc` would take about {_duration(seconds * count / workers)} with {workers} workers and "
            f"write {size * count / 1e9:.2f} GB (from {len(timed)} images: {seconds * 1e3:.1f} ms, "
            f"{size / 1e3:.0f} kB each)",
        )


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 64))
        return file.read().rstrip().endswith(b"]")


def _keyframe_data(table: Path) -> Iterator[dict]:
    """Keyframes of the sensors that are converted, as far as their names tell."""
    channels = (*nuscenes.CAMERAS, nuscenes.LIDAR)
    return (
        r
        for r in nuscenes.read_records(table)
        if r["is_key_frame"] and any(f"/{c}/" in r["filename"] for c in channels)
    )


def _time_images(paths: Sequence[Path], image_width: int) -> tuple[float, float]:
    """Mean seconds and mean bytes of an image as the converter stores it."""
    begin = time.perf_counter()
    sizes = [len(images.reduced_image(path, image_width)[0]) for path in paths]
    return (time.perf_counter() - begin) / len(paths), float(np.mean(sizes))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _list(names: Sequence[str]) -> str:
    return f"; {', '.join(names)}" if names else ""
