"""Driving datasets and OpenStreetMap to the prepared folder of map localization (`maploc`).

    python -m data_prep maploc --raw ROOT --osm FILE [FILE ...] --out DIR

Table `frames`: one record a keyframe, with a JPEG image a camera, their calibration and the ego pose in the
map. Images wider than --image-width are made smaller by area interpolation, so that training is not bound by
decoding; others keep their bytes. Table `maps`: one record a location, over the drives and so far beyond them
that every map patch lies inside: a raster of 0 and 1 with the channels road, building, node (OpenStreetMap)
and drivable (the dataset's own map), three planes of class indices (OpenStreetMap, `data_prep.raw.osm_tags`),
and how well the two maps lie on each other (`data_prep.alignment`).

Splits: `official`, as the dataset publishes them (nuScenes' val shares streets with train), and `geographic`,
see `data_prep.splits`. What is asked of a raw dataset is in `data_prep.datasets`.
"""

import argparse
import dataclasses
import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import shapely
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep import alignment, datasets, geodesy, images, option_types, rasterize, splits, tables
from data_prep.errors import InputError
from data_prep.raw import osm, osm_tags
from data_prep.raw.frames import Camera, Frame
from placerec_jax.ops import rigid
from placerec_jax.ops.grid import Grid2D

MAP_CHANNELS = ("road", "building", "node", "drivable")
OSM_CLASSES = {  # of the planes in the field `classes`, in their order; index 0 is nothing
    "areas": tuple(osm_tags.AREAS),
    "ways": tuple(osm_tags.WAYS),
    "nodes": tuple(osm_tags.NODES),
}
CELL = 0.5  # m
# A patch of 128 m and any heading reaches 64·√2 m from its centre, and noise of 30 m an axis moves that by
# 30·√2 m: 132.9 m in all.
MAP_MARGIN = 136.0  # m

FRAMES_PER_SHARD = 128

WORTH_APPLYING = 0.01  # share of road samples that a fit brings inside the drivable area

OSM_ATTRIBUTION = "© OpenStreetMap contributors, ODbL 1.0"

# OSM covers a frame if a road is within half a patch of it; vehicles are hardly ever further from one.
COVERED_WITHIN = 64.0  # m
MIN_COVERAGE = 0.95


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep maploc",
        description="Driving datasets and OpenStreetMap to TFRecord, for map localization.",
    )
    parser.add_argument(
        "--raw", type=Path, required=True, help="dataset root (real, or written by the built-in city)"
    )
    parser.add_argument(
        "--dataset", choices=sorted(datasets.OPENERS), default="nuscenes", help="default: nuscenes"
    )
    parser.add_argument(
        "--osm",
        type=Path,
        required=True,
        nargs="+",
        help=f"OpenStreetMap extracts ({', '.join(osm.SUFFIXES)}), or folders that hold them",
    )
    parser.add_argument("--out", type=Path, required=True, help="the prepared folder to write")
    parser.add_argument("--version", help="e.g. v1.0-trainval; default: the only one in the root")
    parser.add_argument(
        "--workers",
        type=option_types.positive,
        default=os.cpu_count(),
        help="processes; default: one a CPU core",
    )
    parser.add_argument(
        "--limit", type=option_types.positive, help="keep this many frames, evenly spread over all scenes"
    )
    parser.add_argument(
        "--image-width",
        type=option_types.positive,
        default=400,
        help="pixels to which wider images are reduced (default 400)",
    )
    parser.add_argument(
        "--align",
        choices=ALIGN_MODES,
        default="report",
        help="what to do with the move that fits OpenStreetMap to the drivable area: store and print "
        "it, or draw OpenStreetMap through it as well (default: report)",
    )
    options = parser.parse_args(argv)
    manifest = convert(
        options.raw,
        extracts_in(options.osm),
        options.out,
        options.version,
        options.workers,
        options.limit,
        options.image_width,
        dataset=options.dataset,
        align=options.align,
    )
    for location, fit in manifest["alignment"].items():
        print(f"{location}: {fit['statement']}")
        if fit["advice"]:
            print(f"{location}: {fit['advice']}")
    print(
        f"{options.out}: {manifest['tables']['frames']['records']} frames, "
        f"{manifest['tables']['maps']['records']} maps, "
        f"{sum(t['bytes'] for t in manifest['tables'].values()) / 1e6:.1f} MB, splits "
        f"{json.dumps(manifest['splits'])}, fingerprint {manifest['fingerprint'][:12]}"
    )


def extracts_in(paths: Sequence[Path]) -> list[Path]:
    """The paths, with every folder replaced by the extracts in it; InputError for a folder without one."""
    files = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        found = sorted(file for file in path.iterdir() if file.name.endswith(osm.FOLDER_SUFFIXES))
        if not found:
            raise InputError(
                f"{path}: expected extracts ({', '.join(osm.FOLDER_SUFFIXES)}) in it, found none."
            )
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
    *,
    dataset: str = "nuscenes",
    align: str = "report",
) -> dict[str, Any]:
    """Write the prepared folder `out`; returns its manifest.

    Raises InputError for bad input. Only damage inside an image shows after writing has begun; the whole
    shards that are there by then serve the next run.
    """
    source = datasets.open_dataset(dataset, raw, version)
    datasets.check_positions(source, MAP_MARGIN)
    poses = np.array([frame.map_pose_ego for frame in source.frames])
    split_of_frame = {
        "official": source.official,
        "geographic": splits.geographic_split([frame.location for frame in source.frames], poses[:, :2]),
    }
    # The splits are of all frames, so that a limit only thins them.
    kept = np.arange(len(source.frames))
    if limit is not None and limit < len(kept):
        kept = np.linspace(0, len(kept) - 1, limit).round().astype(int)
    frames = [source.frames[i] for i in kept]
    poses = poses[kept]
    numbers = {
        scheme: {split: np.flatnonzero(labels[kept] == split) for split in splits.SPLITS}
        for scheme, labels in split_of_frame.items()
    }

    source.check_files(frames)
    extracts = [
        osm.read_osm(path)
        for path in tqdm(osm_files, desc="reading OpenStreetMap", unit="file", delay=1, leave=False)
    ]
    map_sources = [
        map_source(
            source.place(location), poses[[f.location == location for f in frames], :2], extracts, align
        )
        for location in sorted({frame.location for frame in frames})
    ]
    frame_inputs = [FrameInput(frame, image_width) for frame in frames]
    attribution = {} if source.built_in_city else {"osm_attribution": OSM_ATTRIBUTION}
    return tables.write_prepared_folder(
        out,
        converter="maploc",
        settings={
            "dataset": source.name,
            "version": source.version,
            "limit": limit,
            "image_width": image_width,
            "align": align,
            "frames": _hash_frames(frames),
            "osm": [datasets.hash_file(path) for path in osm_files],
            "maps": {s.place.location: s.place.files_hash for s in map_sources},
        },
        source={
            "dataset": source.name,
            "version": source.version,
            "built_in_city": source.built_in_city,
            "osm": [_describe_extract(extract) for extract in extracts],
            **attribution,
        },
        tables=[
            tables.Table("maps", map_features, map_examples, tables.split_into_shards(map_sources, 1)),
            tables.Table(
                "frames",
                functools.partial(frame_features, len(source.cameras)),
                frame_examples,
                tables.split_into_shards(frame_inputs, FRAMES_PER_SHARD),
            ),
        ],
        splits=numbers,
        counts={
            "frames": len(frames),
            "scenes": len({frame.scene for frame in frames}),
            "frames_by_location": dict(sorted(Counter(frame.location for frame in frames).items())),
            "osm_coverage_by_location": {s.place.location: s.coverage for s in map_sources},
            **source.counts,
        },
        extra={
            "cameras": list(source.cameras),
            "map_channels": list(MAP_CHANNELS),
            "osm_classes": {plane: list(names) for plane, names in OSM_CLASSES.items()},
            "alignment": {
                s.place.location: {
                    **s.fit.summary(),
                    "applied": align == "apply",
                    "statement": s.fit.statement(),
                    "advice": _advice(s.fit, align),
                }
                for s in map_sources
            },
        },
        workers=workers,
    )


def _advice(fit: alignment.Alignment, align: str) -> str | None:
    """What to do about a fit that is much better than what is drawn, or None."""
    if align == "apply" or fit.gain < WORTH_APPLYING:
        return None
    return (
        "the fit is clearly better than the geodesy alone and was not applied. Look at it (`python -m "
        "data_prep align`), and if it is right convert with --align apply."
    )


def camera_in_level_frame(frame: Frame, camera: Camera) -> np.ndarray:
    """(4, 4) float64 level_T_camera: from the camera at its image's time to the level ego frame of the frame.

    Poses on a map are (x, y, yaw): the frame they stand for is level, with the ego's heading, on the ground
    below its origin. How the vehicle tilts in it, and how far it drove between frame and image, belongs to
    the camera.
    """
    pose = frame.map_T_ego
    foot = pose[:3, 3] - [0.0, 0.0, frame.ego_height]
    yaw = rigid.yaw_of(pose[:3, :3])
    cos, sin = np.cos(yaw), np.sin(yaw)
    map_R_level = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    map_T_level = rigid.rigid_matrix(map_R_level, foot)
    return rigid.rigid_inverse(map_T_level) @ camera.map_T_ego @ camera.ego_T_camera


@dataclasses.dataclass(frozen=True)
class FrameInput:
    """A frame and what to do to it, for a worker process."""

    frame: Frame
    image_width: int


def frame_features(cameras: int) -> tfds.features.FeaturesDict:
    """The table `frames`; cameras are in the order of the manifest's `cameras`."""
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
            "ego_T_camera": tfds.features.Tensor(
                shape=(cameras, 4, 4),
                dtype=np.float32,
                doc="from the camera at the time of its image to the level ego frame that map_pose_ego is of",
            ),
            # As bytes: a tf.train.Example has no float64, TFDS would round it to float32.
            "map_pose_ego": tfds.features.Tensor(
                shape=(3,),
                dtype=np.float64,
                encoding="bytes",
                doc="x, y (m), yaw (rad) at the frame's time, in the location's map frame",
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
            "ego_T_camera": np.stack(
                [camera_in_level_frame(frame, camera) for camera in frame.cameras]
            ).astype(np.float32),
            "map_pose_ego": frame.map_pose_ego,
        }


@dataclasses.dataclass(frozen=True)
class MapSource:
    """What one location's raster is drawn from; coordinates (N, 2) in metres in the map frame.

    `areas`, `ways` and `nodes` are by class, as in `osm.OsmData`. `coverage` is the share of the frames with
    an OSM road near.
    """

    place: datasets.Place
    grid: Grid2D
    areas: dict[str, list[list[np.ndarray]]]
    ways: dict[str, list[np.ndarray]]
    nodes: dict[str, np.ndarray]
    coverage: float
    fit: alignment.Alignment


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
            "classes": tfds.features.Tensor(
                shape=(None, None, len(OSM_CLASSES)),
                dtype=np.uint8,
                encoding="zlib",
                doc=f"index in the manifest's osm_classes, from 1; 0 is nothing: {', '.join(OSM_CLASSES)}",
            ),
            "origin": tfds.features.Tensor(
                shape=(2,),
                dtype=np.float64,
                encoding="bytes",
                doc="map x, y (m) of the outer corner of cell (0, 0)",
            ),
            "cell": tfds.features.Scalar(np.float32, doc="side of a cell, m"),
            "alignment": tfds.features.Tensor(
                shape=(2, 3),
                dtype=np.float64,
                encoding="bytes",
                doc="(x, y, 1) of OpenStreetMap by the geodesy alone → where it fits the drivable area, m",
            ),
            "alignment_inside": tfds.features.Tensor(
                shape=(2,),
                dtype=np.float64,
                encoding="bytes",
                doc="share of OSM road samples inside the drivable area before and after; NaN: not fitted",
            ),
            "alignment_samples": tfds.features.Scalar(np.int64),
        }
    )


def map_examples(sources: Sequence[MapSource]) -> Iterator[dict[str, Any]]:
    """One example of `map_features` a location."""
    for source in sources:
        yield {
            "location": source.place.location,
            "raster": draw_raster(source),
            "classes": draw_classes(source),
            "origin": np.array(source.grid.lower, np.float64),
            "cell": np.float32(source.grid.cell),
            "alignment": source.fit.affine(),
            "alignment_inside": np.array([source.fit.before, source.fit.after]),
            "alignment_samples": source.fit.samples,
        }


def draw_raster(source: MapSource) -> np.ndarray:
    """(rows, columns, 4) uint8 of 0 and 1."""
    channels = (
        rasterize.draw_polylines(source.ways["road"], source.grid),
        rasterize.fill_polygons(source.areas["building"], source.grid),
        rasterize.draw_points(
            np.concatenate([source.nodes[name] for name in osm_tags.NAVIGATION_NODES]), source.grid
        ),
        source.place.drivable.draw(source.grid),
    )
    return np.stack(channels, axis=-1)


def draw_classes(source: MapSource) -> np.ndarray:
    """(rows, columns, 3) uint8 class indices: areas, ways and nodes."""
    grid = source.grid
    outlines = [ring for building in source.areas["building"] for ring in building]
    ways = {**source.ways, osm_tags.BUILDING_OUTLINE: outlines}
    width = {"road": rasterize.ROAD_WIDTH_CELLS, "busway": rasterize.ROAD_WIDTH_CELLS}
    planes = (
        (rasterize.fill_polygons(source.areas[name], grid) for name in OSM_CLASSES["areas"]),
        (rasterize.draw_polylines(ways[name], grid, width.get(name, 1)) for name in OSM_CLASSES["ways"]),
        (rasterize.draw_points(source.nodes[name], grid) for name in OSM_CLASSES["nodes"]),
    )
    return np.stack([rasterize.class_plane(masks, grid) for masks in planes], axis=-1)


def map_source(
    place: datasets.Place, xy: np.ndarray, extracts: Sequence[osm.OsmData], align: str
) -> MapSource:
    """Gather what lies about the drives; xy (N, 2) are the positions of the frames at `place`."""
    grid = rasterize.drive_grid(xy, MAP_MARGIN, CELL)
    fit = alignment.fit_place(place, extracts)
    move = ALIGN_MODES[align](fit)
    # What the fit may move into the grid, and the width of a road.
    reach = 2 * alignment.REACH
    near = functools.partial(geodesy.shapes_near, location=place.location, extent=grid.extent, reach=reach)

    def to_map(shapes: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
        return [[move(row) for row in shape] for shape in near(shapes)]

    def lines(name: str) -> list[np.ndarray]:
        return [line for e in extracts for (line,) in to_map([[line] for line in e.ways[name]])]

    def points(name: str) -> np.ndarray:
        return move(np.concatenate([geodesy.wgs84_to_map(e.nodes[name], place.location) for e in extracts]))

    areas = {name: [area for e in extracts for area in to_map(e.areas[name])] for name in osm_tags.AREAS}
    ways = {name: lines(name) for name in osm_tags.WAYS}
    nodes = {name: points(name) for name in osm_tags.NODES}
    coverage = _coverage(xy, ways["road"])
    if coverage < MIN_COVERAGE:
        south, west, north, east = geodesy.wgs84_bounds(place.extent, place.location, 300.0)
        raise InputError(
            f"{', '.join(str(e.path) for e in extracts)}: expected roads about the drives in "
            f"{place.location}, found them within {COVERED_WITHIN:.0f} m of {coverage:.1%} of its {len(xy)} "
            f"frames. Add an extract with --osm that covers latitude {south:.5f} to {north:.5f}, longitude "
            f"{west:.5f} to {east:.5f}."
        )
    return MapSource(place, grid, areas, ways, nodes, coverage, fit)


# How the alignment changes what is drawn: fit → a function of map metres.
ALIGN_MODES: dict[str, Callable[[alignment.Alignment], Callable[[np.ndarray], np.ndarray]]] = {
    "report": lambda fit: lambda xy: xy,
    "apply": lambda fit: fit.apply,
}


def _coverage(xy: np.ndarray, roads: Sequence[np.ndarray]) -> float:
    """The share of positions (N, 2) with a road within COVERED_WITHIN."""
    if not roads:
        return 0.0
    tree = shapely.STRtree([shapely.LineString(road) for road in roads])
    covered, _ = tree.query(shapely.points(xy), predicate="dwithin", distance=COVERED_WITHIN)
    return len(np.unique(covered)) / len(xy)


def _hash_frames(frames: Sequence[Frame]) -> str:
    """Over tokens, calibration, poses and sizes of the images: tells inputs apart without reading images."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(f"{frame.token} {frame.scene} {frame.location} {frame.timestamp}".encode())
        digest.update(frame.map_T_ego.tobytes())
        for camera in frame.cameras:
            digest.update(f"{camera.path.name} {camera.path.stat().st_size}".encode())
            for matrix in (camera.intrinsics, camera.ego_T_camera, camera.map_T_ego):
                digest.update(matrix.tobytes())
    return digest.hexdigest()


def _describe_extract(extract: osm.OsmData) -> dict[str, Any]:
    return {
        "file": extract.path.name,
        "snapshot": extract.snapshot,
        "newest_object": extract.newest_object,
        "roads": len(extract.roads),
        "buildings": len(extract.buildings),
        "building_multipolygons": extract.building_multipolygons,
        "points": len(extract.points),
        "ways_lacking_nodes": extract.ways_lacking_nodes,
        "buildings_left_out": extract.buildings_left_out,
    }
