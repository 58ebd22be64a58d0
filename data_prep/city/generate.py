"""Make the built-in city and write it in the formats of real datasets.

The city is generated from a seed, with no data of any kind: it is what this project trains, tests and
demonstrates with where the real datasets are absent. A marker file in each folder says so.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from data_prep.city import write_argoverse, write_kitti, write_kitti360
from data_prep.city.drives import Log, Scene, plan_logs
from data_prep.city.loops import LoopDrive, plan_loops
from data_prep.city.recording import NUSCENES, Box, Layout, log_light, log_rig, record_scene
from data_prep.city.sizes import SIZE_TABLES, SIZES
from data_prep.city.world import World, build_world
from data_prep.city.write_nuscenes import TableWriter, make_folders, write_map
from data_prep.city.write_osm import write_osm
from data_prep.errors import InputError

CITY_VERSION = 3  # raise it with every change that alters a byte of what is written
FORMATS = ("nuscenes", "osm", "argoverse", "kitti", "kitti360")
DEFAULT_FORMATS = ("nuscenes", "osm")
MARKER = "BUILT-IN-CITY.json"
UNFINISHED = ".city-unfinished"


def main(argv: list[str]) -> None:
    """Command line of `python -m data_prep city`."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep city", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write the formats into")
    parser.add_argument("--size", choices=sorted(SIZES), default="small", help="see data_prep/city/sizes.py")
    parser.add_argument(
        "--formats",
        default=",".join(DEFAULT_FORMATS),
        help=f"comma-separated, of: {', '.join(FORMATS)}; default: {','.join(DEFAULT_FORMATS)}. argoverse, "
        "kitti and kitti360 have towns of their own, argoverse with their OpenStreetMap files",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed is another city")
    parser.add_argument("--workers", type=int, default=None, help="processes; default: one per usable core")
    arguments = parser.parse_args(argv)
    formats = tuple(arguments.formats.split(","))
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        parser.error(f"unknown format {', '.join(unknown)}; known are {', '.join(FORMATS)}")
    for name in formats:
        sizes = SIZE_TABLES.get(name, SIZES)
        if arguments.size not in sizes:
            parser.error(f"{name} has no size {arguments.size!r}; it has {', '.join(sorted(sizes))}")
    if arguments.seed < 0:
        parser.error(f"--seed must not be negative, it is {arguments.seed}")
    workers = arguments.workers if arguments.workers is not None else len(os.sched_getaffinity(0))
    if workers < 1:
        parser.error(f"--workers must be at least 1, it is {workers}")
    generate(arguments.out, arguments.size, formats, arguments.seed, workers)


def generate(out: Path, size_name: str, formats: tuple[str, ...], seed: int, workers: int) -> None:
    """Write the city to `out`, format by format, each renamed into place when whole.

    A format that is there already is left alone when it was made with the same settings; InputError when it
    was not, or when the folder was not made by the city.
    """
    settings = {name: _settings(name, size_name, seed) for name in formats}
    missing = [name for name in formats if not _finished(out / name, settings[name])]
    for name in formats:
        if name not in missing:
            print(f"{out / name}: already there, made with the same settings")
    if not missing:
        return
    started = time.monotonic()
    partial = out / UNFINISHED
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        told = _write(partial, missing, size_name, seed, workers)
        for name in missing:
            marker = {
                "what": "the built-in city of placerec_jax: generated, not recorded. "
                f"No figure from it is a figure on {_REAL_NAME[name]}.",
                "format": name,
                "settings": settings[name],
                **told.get(name, {}),
            }
            (partial / name / MARKER).write_text(json.dumps(marker, indent=1) + "\n")
            (partial / name).rename(out / name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(
        f"{out}: wrote {', '.join(missing)} of the city {size_name!r} in {time.monotonic() - started:.0f} s"
    )


_REAL_NAME = {
    "nuscenes": "nuScenes",
    "osm": "OpenStreetMap",
    "argoverse": "Argoverse",
    "kitti": "KITTI",
    "kitti360": "KITTI-360",
}


def _settings(name: str, size_name: str, seed: int) -> dict:
    """What decides about the content of a format, as JSON gives it back."""
    size = SIZE_TABLES.get(name, SIZES)[size_name]
    settings = {"city_version": CITY_VERSION, "size": size_name, "seed": seed, **asdict(size)}
    return json.loads(json.dumps(settings))


def _finished(folder: Path, settings: dict) -> bool:
    """Whether `folder` holds this very city. InputError when it holds something else."""
    if not folder.exists():
        return False
    marker = folder / MARKER
    if not marker.exists():
        raise InputError(
            f"{folder} exists and has no {MARKER}: it was not made by the city and is left alone. "
            "Choose another --out, or remove the folder yourself."
        )
    try:
        found = json.loads(marker.read_text())["settings"]
    except (json.JSONDecodeError, KeyError, UnicodeDecodeError) as error:
        raise InputError(f"{marker} cannot be read ({error!r}). Remove {folder} and run again.") from error
    if found != settings:
        changed = sorted(k for k in settings.keys() | found.keys() if settings.get(k) != found.get(k))
        difference = "; ".join(f"{k}: {found.get(k)!r} there, {settings.get(k)!r} asked" for k in changed)
        raise InputError(
            f"{folder} holds a city made with other settings ({difference}). "
            "Choose another --out, or remove the folder."
        )
    return True


def plan(size_name: str, seed: int, locations: Sequence[str] = ()) -> Iterator[tuple[World, list[Log]]]:
    """Every town with its drives, in order; by default the towns of the size."""
    taken = {"train": 0, "val": 0, "test": 0}
    for location in locations or SIZES[size_name].locations:
        world = build_world(location, SIZES[size_name], seed)
        yield world, plan_logs(world, SIZES[size_name], seed, taken)


def _write(root: Path, formats: list[str], size_name: str, seed: int, workers: int) -> dict[str, dict]:
    """Write the formats; what the marker of each of them says beside its settings."""
    told = {}
    for name, writer in _LOOP_WRITERS.items():
        if name in formats:
            told[name] = _write_loops(root / name, writer, size_name, seed, workers)
    if "argoverse" in formats:
        _write_argoverse(root / "argoverse", size_name, seed, workers)
    if not {"nuscenes", "osm"} & set(formats):
        return told
    towns = list(plan(size_name, seed))
    if "osm" in formats:
        _write_osm_files(root / "osm", towns)
    if "nuscenes" in formats:
        _write_nuscenes(root / "nuscenes", towns, size_name, seed, workers)
    return told


_LOOP_WRITERS = {"kitti": write_kitti, "kitti360": write_kitti360}


def plan_sequences(name: str, size_name: str, seed: int) -> list[tuple[World, list[LoopDrive]]]:
    """Every town of KITTI's or KITTI-360's format, `name`, with its drives."""
    writer = _LOOP_WRITERS[name]
    size = writer.LAYOUT.size(size_name)
    numbers = writer.Numbers()
    worlds = [build_world(location, size, seed) for location in size.locations]
    return [(world, plan_loops(world, size, seed, numbers, writer.DATE)) for world in worlds]


def _write_loops(root: Path, writer: ModuleType, size_name: str, seed: int, workers: int) -> dict:
    towns = plan_sequences(writer.LAYOUT.sizes, size_name, seed)
    drives = [(world, drive) for world, of_town in towns for drive in of_town]
    writer.make_folders(root, [drive for _, drive in drives])
    _record(root, towns, size_name, seed, workers, writer.LAYOUT)
    rigs = [log_rig(drive, size_name, seed, writer.LAYOUT) for _, drive in drives]
    writer.write_calibration(root, rigs[0])
    loops = {
        drive.sequence: writer.write_drive(root, world, drive, rig, seed)
        for (world, drive), rig in zip(drives, rigs, strict=True)
    }
    return {"sequences": {drive.sequence: drive.district for _, drive in drives}, "loops": loops}


def _write_osm_files(folder: Path, towns: list[tuple[World, list[Log]]]) -> None:
    folder.mkdir()
    for world, _ in towns:
        write_osm(folder / f"{world.location}.osm", world)


def _write_argoverse(root: Path, size_name: str, seed: int, workers: int) -> None:
    locations = write_argoverse.LOCATIONS[: len(SIZES[size_name].locations)]
    towns = list(plan(size_name, seed, locations))
    write_argoverse.make_folders(root, [log for _, logs in towns for log in logs])
    _write_osm_files(root / "osm", towns)
    recorded = _record(root, towns, size_name, seed, workers, write_argoverse.LAYOUT)
    for world, logs in towns:
        write_argoverse.write_map(root, world)
        for log in logs:
            rig = log_rig(log, size_name, seed, write_argoverse.LAYOUT)
            write_argoverse.write_log(root, world, log, rig, recorded, seed)


def _write_nuscenes(
    root: Path, towns: list[tuple[World, list[Log]]], size_name: str, seed: int, workers: int
) -> None:
    make_folders(root)
    recorded = _record(root, towns, size_name, seed, workers, NUSCENES)
    tables = TableWriter()
    for world, logs in towns:
        write_map(root, world)
        tables.add_location(world.location, logs)
        for log in logs:
            rig = log_rig(log, size_name, seed)
            tables.add_log(log, rig)
            for scene in log.scenes:
                tables.add_scene(world, log, scene, rig, log_light(log, seed), recorded[scene.name], seed)
    tables.write(root)


def _record(
    root: Path,
    towns: Sequence[tuple[World, Sequence[Log]]],
    size_name: str,
    seed: int,
    workers: int,
    layout: Layout,
) -> dict[str, list[list[Box]]]:
    """Record all scenes, with a bar; what `record_scene` gives, by scene."""
    tasks = [(log, scene) for _, logs in towns for log in logs for scene in log.scenes]
    recorded = {}
    total = sum(scene.keyframes for _, scene in tasks)
    results = _recorded(root, tasks, size_name, seed, workers, layout)
    with tqdm(total=total, unit="keyframe", desc=f"city {size_name}") as bar, closing(results):
        for scene, result in results:
            recorded[scene.name] = result
            bar.update(scene.keyframes)
    return recorded


def _recorded(
    root: Path,
    tasks: list[tuple[Log, Scene]],
    size_name: str,
    seed: int,
    workers: int,
    layout: Layout,
) -> Generator[tuple[Scene, list[list[Box]]], None, None]:
    """Record all scenes, in this process or in several; each scene's files are the same either way."""
    if workers == 1:
        for log, scene in tasks:
            yield scene, record_scene(root, log, scene, size_name, seed, layout)
        return
    # Spawned, not forked: Embree and OpenCV may have started threads here, which a fork would lose.
    context = multiprocessing.get_context("spawn")
    # Ctrl-C reaches all processes of a terminal; the parent alone answers it, by ending its workers.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(workers, len(tasks)), context, signal.signal, ignore) as pool:
        futures = {
            pool.submit(record_scene, root, log, scene, size_name, seed, layout): scene
            for log, scene in tasks
        }
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
