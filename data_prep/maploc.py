"""nuScenes and OpenStreetMap to the prepared folder of map localization (`maploc`).

    python -m data_prep maploc --raw ROOT --osm FILE [FILE ...] --out DIR

Table `frames`: one record a keyframe, with six JPEG images, their calibration and the ego pose in the map.
Images wider than --image-width are made smaller by area interpolation, so that training is not bound by
decoding; others keep their bytes. Table `maps`: one record a location, a raster of 0 and 1 with the channels
road, building, node (OpenStreetMap) and drivable (map expansion), over the drives and so far beyond them that
every map patch lies inside.

Splits: `official` by scene name, as nuScenes publishes them (its val shares streets with train), and
`geographic`, see `data_prep.splits`.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep import geodesy, images, rasterize, splits, tables
from data_prep.errors import InputError
from data_prep.raw import nuscenes, osm
from placerec_jax.ops.grid import Grid2D

MAP_CHANNELS = ("road", "building", "node", "drivable")
CELL = 0.5  # m
# A patch of 128 m and any heading reaches 64·√2 m from its centre, and noise of 30 m an axis moves that by
# 30·√2 m: 132.9 m in all.
MAP_MARGIN = 136.0  # m

FRAMES_PER_SHARD = 128

# OSM covers a frame if a road is within half a patch of it; vehicles are hardly ever further from one.
COVERED_WITHIN = 64.0  # m
MIN_COVERAGE = 0.95


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep maploc",
        description="nuScenes and OpenStreetMap to TFRecord, for map localization.",
    )
    parser.add_argument(
        "--raw", type=Path, required=True, help="nuScenes root (real, or written by the built-in city)"
    )
    parser.add_argument(
        "--osm",
        type=Path,
        required=True,
        nargs="+",
        help=f"OpenStreetMap extracts ({', '.join(osm.SUFFIXES)}), or folders that hold them",
    )
    parser.add_argument("--out", type=Path, required=True, help="the prepared folder to write")
    parser.add_argument("--version", choices=nuscenes.VERSIONS, help="default: the only one in the root")
    parser.add_argument(
        "--workers", type=positive, default=os.cpu_count(), help="processes; default: one a CPU core"
    )
    parser.add_argument("--limit", type=positive, help="keep this many frames, evenly spread over all scenes")
    parser.add_argument(
        "--image-width",
        type=positive,
        default=400,
        help="pixels to which wider images are reduced (default 400)",
    )
    options = parser.parse_args(argv)
    manifest = convert(
        options.raw,
        _extracts(options.osm),
        options.out,
        options.version,
        options.workers,
        options.limit,
        options.image_width,
    )
    print(
        f"{options.out}: {manifest['tables']['frames']['records']} frames, "
        f"{manifest['tables']['maps']['records']} maps, "
        f"{sum(t['bytes'] for t in manifest['tables'].values()) / 1e6:.1f} MB, splits "
        f"{json.dumps(manifest['splits'])}, fingerprint {manifest['fingerprint'][:12]}"
    )


def _extracts(paths: Sequence[Path]) -> list[Path]:
    """The paths, with every folder replaced by the extracts in it."""
    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(file for file in path.iterdir() if file.name.endswith(osm.SUFFIXES))
        if not found:
            raise InputError(f"{path}: expected extracts ({', '.join(osm.SUFFIXES)}) in it, found none.")
        files.extend(found)
    return files


def convert(
    raw: Path,
    osm_files: Sequence[Path],
    out: Path,
    version: str | None,
    workers: int,
    limit: int | None,
    image_width: int,
) -> dict[str, Any]:
    """Write the prepared folder `out`; returns its manifest.

    Raises InputError for bad input. Only damage inside an image shows after writing has begun; the whole
    shards that are there by then serve the next run.
    """
    version = nuscenes.find_version(raw, version)
    frames = nuscenes.read_frames(raw, version)
    poses = np.array([frame.map_pose_ego for frame in frames])
    _check_positions(frames, poses)
    split_of_frame = {
        "official": splits.official_split(frames, version),
        "geographic": splits.geographic_split([frame.location for frame in frames], poses[:, :2]),
    }
    # The splits are of all frames, so that a limit only thins them.
    kept = np.arange(len(frames))
    if limit is not None and limit < len(frames):
        kept = np.linspace(0, len(frames) - 1, limit).round().astype(int)
    frames = [frames[i] for i in kept]
    poses = poses[kept]
    numbers = {
        scheme: {split: np.flatnonzero(labels[kept] == split) for split in splits.SPLITS}
        for scheme, labels in split_of_frame.items()
    }

    nuscenes.check_files(frames)
    extracts = [
        osm.read_osm(path)
        for path in tqdm(osm_files, desc="reading OpenStreetMap", unit="file", delay=1, leave=False)
    ]
    map_sources = [
        _map_source(raw, location, poses[[f.location == location for f in frames], :2], extracts)
        for location in sorted({frame.location for frame in frames})
    ]
    frame_inputs = [FrameInput(frame, image_width) for frame in frames]
    coverage = {source.location: source.coverage for source in map_sources}
    built_in_city = (raw / nuscenes.CITY_MARKER).exists()
    attribution = {} if built_in_city else {"osm_attribution": "© OpenStreetMap contributors, ODbL 1.0"}
    return tables.write_prepared_folder(
        out,
        converter="maploc",
        settings={
            "version": version,
            "limit": limit,
            "image_width": image_width,
            "frames": _hash_frames(frames),
            "osm": [_hash_file(path) for path in osm_files],
            "map_expansion": {
                source.location: _hash_file(nuscenes.map_expansion_file(raw, source.location))
                for source in map_sources
            },
        },
        source={
            "dataset": "nuscenes",
            "version": version,
            "built_in_city": built_in_city,
            "osm": [_describe_extract(extract) for extract in extracts],
            **attribution,
        },
        tables=[
            tables.Table("maps", map_features, map_examples, tables.split_into_shards(map_sources, 1)),
            tables.Table(
                "frames",
                frame_features,
                frame_examples,
                tables.split_into_shards(frame_inputs, FRAMES_PER_SHARD),
            ),
        ],
        splits=numbers,
        counts={
            "frames": len(frames),
            "scenes": len({frame.scene for frame in frames}),
            "frames_by_location": dict(sorted(Counter(frame.location for frame in frames).items())),
            "osm_coverage_by_location": coverage,
        },
        extra={"cameras": list(nuscenes.CAMERAS), "map_channels": list(MAP_CHANNELS)},
        workers=workers,
    )


@dataclasses.dataclass(frozen=True)
class FrameInput:
    """A frame and what to do to it, for a worker process."""

    frame: nuscenes.Frame
    image_width: int


def frame_features() -> tfds.features.FeaturesDict:
    """The table `frames`; C = 6 cameras in the order of the manifest's `cameras`."""
    cameras = len(nuscenes.CAMERAS)
    return tfds.features.FeaturesDict(
        {
            "token": tfds.features.Text(),
            "scene": tfds.features.Text(),
            "location": tfds.features.Text(),
            "timestamp": tfds.features.Scalar(np.int64, doc="of the keyframe, µs"),
            "images": tfds.features.Sequence(
                tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"), length=cameras
            ),
            "intrinsics": tfds.features.Tensor(
                shape=(cameras, 3, 3), dtype=np.float32, doc="K of the stored images"
            ),
            "ego_T_camera": tfds.features.Tensor(shape=(cameras, 4, 4), dtype=np.float32),
            # As bytes: a tf.train.Example has no float64, TFDS would round it to float32.
            "map_pose_ego": tfds.features.Tensor(
                shape=(3,),
                dtype=np.float64,
                encoding="bytes",
                doc="x, y (m), yaw (rad) at the LiDAR's time, in the location's map frame",
            ),
        }
    )


def frame_examples(inputs: Sequence[FrameInput]) -> Iterator[dict[str, Any]]:
    """One example of `frame_features` a frame."""
    for frame, image_width in ((i.frame, i.image_width) for i in inputs):
        jpegs, intrinsics = zip(
            *(images.stored_image(camera, image_width) for camera in frame.cameras), strict=True
        )
        yield {
            "token": frame.token,
            "scene": frame.scene,
            "location": frame.location,
            "timestamp": frame.timestamp,
            "images": list(jpegs),
            "intrinsics": np.stack(intrinsics).astype(np.float32),
            "ego_T_camera": np.stack([camera.ego_T_camera for camera in frame.cameras]).astype(np.float32),
            "map_pose_ego": frame.map_pose_ego,
        }


@dataclasses.dataclass(frozen=True)
class MapSource:
    """What one location's raster is drawn from; coordinates (N, 2) in metres in the map frame."""

    location: str
    grid: Grid2D
    roads: list[np.ndarray]
    buildings: list[list[np.ndarray]]
    points: np.ndarray
    drivable: list[list[np.ndarray]]
    coverage: float  # share of the frames with an OSM road near


def map_features() -> tfds.features.FeaturesDict:
    """The table `maps`: row i of a raster is map x, column j is map y."""
    return tfds.features.FeaturesDict(
        {
            "location": tfds.features.Text(),
            "raster": tfds.features.Tensor(
                shape=(None, None, len(MAP_CHANNELS)),
                dtype=np.uint8,
                encoding="zlib",
                doc=", ".join(MAP_CHANNELS),
            ),
            "origin": tfds.features.Tensor(
                shape=(2,),
                dtype=np.float64,
                encoding="bytes",
                doc="map x, y (m) of the outer corner of cell (0, 0)",
            ),
            "cell": tfds.features.Scalar(np.float32, doc="side of a cell, m"),
        }
    )


def map_examples(sources: Sequence[MapSource]) -> Iterator[dict[str, Any]]:
    """One example of `map_features` a location."""
    for source in sources:
        channels = (
            rasterize.draw_polylines(source.roads, source.grid),
            rasterize.fill_polygons(source.buildings, source.grid),
            rasterize.draw_points(source.points, source.grid),
            rasterize.fill_polygons(source.drivable, source.grid),
        )
        yield {
            "location": source.location,
            "raster": np.stack(channels, axis=-1),
            "origin": np.array(source.grid.lower, np.float64),
            "cell": np.float32(source.grid.cell),
        }


def _map_source(raw: Path, location: str, xy: np.ndarray, extracts: Sequence[osm.OsmData]) -> MapSource:
    """Gather what lies about the drives; xy (N, 2) are the positions of the frames at `location`."""
    grid = rasterize.drive_grid(xy, MAP_MARGIN, CELL)
    to_map = functools.partial(_to_map, location=location, grid=grid)
    roads = [road for extract in extracts for (road,) in to_map([[road] for road in extract.roads])]
    buildings = [building for extract in extracts for building in to_map(extract.buildings)]
    points = np.concatenate([geodesy.wgs84_to_map(extract.points, location) for extract in extracts])
    coverage = _coverage(xy, roads)
    if coverage < MIN_COVERAGE:
        south, west, north, east = geodesy.wgs84_box(location, 300.0)
        raise InputError(
            f"{', '.join(str(e.path) for e in extracts)}: expected roads about the drives in {location}, "
            f"found them within {COVERED_WITHIN:.0f} m of {coverage:.1%} of its {len(xy)} frames. Add an "
            f"extract with --osm that covers latitude {south:.5f} to {north:.5f}, longitude {west:.5f} to "
            f"{east:.5f}."
        )
    return MapSource(
        location, grid, roads, buildings, points, nuscenes.read_drivable_area(raw, location), coverage
    )


def _to_map(shapes: Sequence[Sequence[np.ndarray]], location: str, grid: Grid2D) -> list[list[np.ndarray]]:
    """Shapes, each a list of point rows (N, 2) in degrees → those that may touch the grid, in metres."""
    if not shapes:
        return []
    # One call for all points: an extract of a country has millions of ways.
    rows = [row for shape in shapes for row in shape]
    ends = np.cumsum([len(row) for row in rows])
    xy = geodesy.wgs84_to_map(np.concatenate(rows), location)
    starts = np.concatenate([[0], ends[:-1]])
    of_shape = np.concatenate([[0], np.cumsum([len(shape) for shape in shapes])])
    lower = np.minimum.reduceat(np.minimum.reduceat(xy, starts), of_shape[:-1])
    upper = np.maximum.reduceat(np.maximum.reduceat(xy, starts), of_shape[:-1])
    x_min, x_max, y_min, y_max = grid.extent
    reach = rasterize.ROAD_WIDTH_CELLS * grid.cell
    near = ((lower < [x_max + reach, y_max + reach]) & (upper > [x_min - reach, y_min - reach])).all(axis=1)
    return [
        [xy[starts[row] : ends[row]] for row in range(of_shape[shape], of_shape[shape + 1])]
        for shape in np.flatnonzero(near)
    ]


def _coverage(xy: np.ndarray, roads: Sequence[np.ndarray]) -> float:
    """The share of positions (N, 2) with a road within COVERED_WITHIN."""
    if not roads:
        return 0.0
    tree = shapely.STRtree([shapely.LineString(road) for road in roads])
    covered, _ = tree.query(shapely.points(xy), predicate="dwithin", distance=COVERED_WITHIN)
    return len(np.unique(covered)) / len(xy)


def _check_positions(frames: Sequence[nuscenes.Frame], poses: np.ndarray) -> None:
    """InputError for a frame far off its map: a raster over it would be of any size."""
    for location in sorted({frame.location for frame in frames}):
        at = [i for i, frame in enumerate(frames) if frame.location == location]
        size = np.array(geodesy.SIZES[location])
        off = ((poses[at, :2] < -MAP_MARGIN) | (poses[at, :2] > size + MAP_MARGIN)).any(axis=1)
        if off.any():
            frame = frames[at[int(np.argmax(off))]]
            x, y, _ = frame.map_pose_ego
            raise InputError(
                f"ego_pose.json: sample {frame.token} ({frame.scene}): expected a position on the map of "
                f"{location}, x in [0, {size[0]}], y in [0, {size[1]}] m; found {x:.1f}, {y:.1f} "
                "(coordinates out of range). Unpack the metadata archive again, or correct the location in "
                "log.json."
            )


def _hash_frames(frames: Sequence[nuscenes.Frame]) -> str:
    """Over tokens, calibration, poses and sizes of the images: tells inputs apart without reading images."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(f"{frame.token} {frame.scene} {frame.location} {frame.timestamp}".encode())
        digest.update(frame.map_pose_ego.tobytes())
        for camera in frame.cameras:
            digest.update(f"{camera.path.name} {camera.path.stat().st_size}".encode())
            digest.update(camera.intrinsics.tobytes() + camera.ego_T_camera.tobytes())
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe_extract(extract: osm.OsmData) -> dict[str, Any]:
    return {
        "file": extract.path.name,
        "snapshot": extract.snapshot,
        "roads": len(extract.roads),
        "buildings": len(extract.buildings),
        "points": len(extract.points),
        "ways_lacking_nodes": extract.ways_lacking_nodes,
        "buildings_left_out": extract.buildings_left_out,
    }


def positive(text: str) -> int:
    """A command-line number of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, found {text}")
    return value
