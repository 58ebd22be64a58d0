"""What a raw dataset root holds, what is missing, and how long and large its conversion will be.

    python -m data_prep check ROOT [--dataset NAME] [--version VERSION] [--workers N] [--image-width PIXELS]

Takes seconds: of nuScenes the gigabyte tables are not read through, only their ends and their first
keyframes; files are counted by folder and looked up for those keyframes. Of Argoverse file names are read,
not files. Exit status 1 if anything is missing.
"""

import argparse
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_prep import geodesy, images, option_types
from data_prep.errors import InputError
from data_prep.raw import argoverse, nuscenes

Findings = Iterator[tuple[bool, str]]  # whether it is as it should be, one line to read

_KEYFRAMES_LOOKED_UP = 500
_OSM_MARGIN = 300.0  # m around a map
_IMAGES_TIMED = 12


def main(argv: Sequence[str]) -> int:
    """The command line; returns 0 if everything is there, 1 if not."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep check",
        description="What a raw dataset root holds, and what its conversion takes.",
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--dataset", choices=sorted(CHECKS), default="nuscenes", help="default: nuscenes")
    parser.add_argument("--version", help="e.g. v1.0-trainval; default: the only one in the root")
    parser.add_argument(
        "--workers",
        type=option_types.positive,
        default=os.cpu_count(),
        help="for the estimate; default: one a CPU core",
    )
    parser.add_argument(
        "--image-width", type=option_types.positive, default=400, help="for the estimate; default 400"
    )
    options = parser.parse_args(argv)
    version, findings = CHECKS[options.dataset](
        options.root, options.version, options.workers, options.image_width
    )
    built_in = " (written by the built-in city)" if (options.root / nuscenes.CITY_MARKER).exists() else ""
    print(f"{options.root}: {options.dataset} {version}{built_in}")
    whole = True
    for good, line in findings:
        whole &= good
        print(f"{'  ok     ' if good else '  MISSING'} {line}")
    print("Everything is there." if whole else "Not all is there: see the lines marked MISSING.")
    if whole:
        print("How OpenStreetMap lies on these maps: `python -m data_prep align`, before converting.")
    return 0 if whole else 1


def check_nuscenes(root: Path, version: str | None, workers: int, image_width: int) -> tuple[str, Findings]:
    """The version, and what is found of it."""
    version = nuscenes.find_version(root, version)
    return version, _nuscenes_findings(root, version, workers, image_width)


def check_argoverse(root: Path, version: str | None, workers: int, image_width: int) -> tuple[str, Findings]:
    """The version, and what is found of it."""
    argoverse.check_version(root, version)
    return argoverse.VERSION, _argoverse_findings(root, workers, image_width)


CHECKS: dict[str, Callable[[Path, str | None, int, int], tuple[str, Findings]]] = {
    "argoverse": check_argoverse,
    "nuscenes": check_nuscenes,
}


def _argoverse_findings(root: Path, workers: int, image_width: int) -> Findings:
    try:
        logs = argoverse.find_logs(root)
    except InputError as error:
        yield False, str(error)
        return
    splits = Counter(log.split for log in logs)
    cities = Counter(log.city for log in logs)
    yield True, f"{len(logs)} logs ({_counted(splits)}; {_counted(cities)})"
    keyframes = sum(len(log.keyframes) for log in logs)
    lacking = sum(log.sweeps_without_images for log in logs)
    yield (
        True,
        f"{keyframes} keyframes, {argoverse.KEYFRAME_RATE:g} a second; {lacking} of "
        f"{sum(log.sweeps for log in logs)} sweeps lack a pose or an image and are passed over",
    )
    for city in sorted(cities):
        try:
            area = argoverse.read_drivable_area(root, city)
        except InputError as error:
            yield False, str(error)
            continue
        south, west, north, east = geodesy.wgs84_bounds(area.extent(), city, _OSM_MARGIN)
        columns, rows = area.cells.shape[::-1]
        yield (
            True,
            f"drivable area of {city}: {columns} x {rows} cells; the OpenStreetMap to fetch: latitude "
            f"{south:.5f} to {north:.5f}, longitude {west:.5f} to {east:.5f}",
        )
    camera = argoverse.RING_CAMERAS[0]
    firsts = ((log.path, log.keyframes[0][1][camera]) for log in logs[:_IMAGES_TIMED])
    timed = [path / camera / f"{camera}_{time}.jpg" for path, time in firsts]
    yield from _estimate(timed, keyframes * len(argoverse.RING_CAMERAS), workers, image_width)


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _nuscenes_findings(root: Path, version: str, workers: int, image_width: int) -> Findings:
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
    yield bool(total), f"{len(scenes)} scenes, {total} keyframes ({_counted(keyframes)})"

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
    yield from _estimate(timed, total * len(nuscenes.CAMERAS), workers, image_width)


def _estimate(timed: Sequence[Path], count: int, workers: int, image_width: int) -> Findings:
    """What converting `count` images takes, from the images in `timed`."""
    if not timed:
        return
    try:
        seconds, size = _time_images(timed, image_width)
    except InputError as error:
        yield False, str(error)
        return
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
