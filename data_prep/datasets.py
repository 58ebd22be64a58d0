"""What the map-localization converter asks of a raw dataset, and how each dataset answers.

To add one: write `open_<name>(root, version) -> Dataset` and enter it in OPENERS.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from data_prep import geodesy, rasterize, splits
from data_prep.errors import InputError
from data_prep.raw import argoverse, nuscenes
from data_prep.raw.frames import Frame
from placerec_jax.ops.grid import Grid2D


class DrivableArea(Protocol):
    """Ground for vehicles, as the dataset's own map has it. Goes to worker processes: must be picklable."""

    def draw(self, grid: Grid2D) -> np.ndarray:
        """(rows, columns) uint8 of 0 and 1."""


@dataclasses.dataclass(frozen=True)
class Place:
    """A location's map. `files_hash` tells its inputs from others."""

    location: str
    extent: tuple[float, float, float, float]  # x_min, x_max, y_min, y_max of the map in its frame, m
    drivable: DrivableArea
    files_hash: str


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A raw dataset, read but for its images. Positions are in map frames that `data_prep.geodesy` knows.

    `official` (N,) str is the published split of each frame. `map_extents` bounds each location's positions.
    `check_files(frames)` raises InputError for files that are not there or not whole, and `place(location)`
    for what is wrong with its map. `read_sweep(path)` is (N, 3 or more) points in the LiDAR's frame.
    `counts` goes into the manifest as it is.
    """

    name: str
    version: str
    built_in_city: bool
    cameras: tuple[str, ...]
    frames: Sequence[Frame]
    official: np.ndarray
    map_extents: Mapping[str, tuple[float, float, float, float]]
    check_files: Callable[[Sequence[Frame]], object]
    read_sweep: Callable[[Path], np.ndarray]
    place: Callable[[str], Place]
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DrivablePolygons:
    """Drivable ground as polygons, each a list of rings (N, 2) in map metres."""

    polygons: list[list[np.ndarray]]

    def draw(self, grid: Grid2D) -> np.ndarray:
        """(rows, columns) uint8 of 0 and 1."""
        return rasterize.fill_polygons(self.polygons, grid)


def open_dataset(name: str, root: Path, version: str | None) -> Dataset:
    """Read the raw dataset `name` at `root`; InputError for bad input."""
    return OPENERS[name](root, version)


def open_nuscenes(root: Path, version: str | None) -> Dataset:
    """nuScenes, real or written by the built-in city."""
    version = nuscenes.find_version(root, version)
    frames = nuscenes.read_frames(root, version)
    locations = {frame.location for frame in frames}

    def place(location: str) -> Place:
        drivable = DrivablePolygons(nuscenes.read_drivable_area(root, location))
        expansion = nuscenes.map_expansion_file(root, location)
        return Place(location, extents[location], drivable, hash_file(expansion))

    extents = {name: (0.0, geodesy.SIZES[name][0], 0.0, geodesy.SIZES[name][1]) for name in locations}
    return Dataset(
        name="nuscenes",
        version=version,
        built_in_city=(root / nuscenes.CITY_MARKER).exists(),
        cameras=nuscenes.CAMERAS,
        frames=frames,
        official=splits.official_split(frames, version),
        map_extents=extents,
        check_files=nuscenes.check_files,
        read_sweep=nuscenes.read_sweep,
        place=place,
    )


def open_argoverse(root: Path, version: str | None) -> Dataset:
    """Argoverse 1 Tracking with its HD maps, real or written by the built-in city; two keyframes a second."""
    argoverse.check_version(root, version)
    recordings = argoverse.read_frames(root)
    areas = {
        city: argoverse.read_drivable_area(root, city)
        for city in sorted({frame.location for frame in recordings.frames})
    }

    def place(city: str) -> Place:
        hashes = [hash_file(path) for path in argoverse.drivable_files(root, city)]
        return Place(city, areas[city].extent(), areas[city], " ".join(hashes))

    return Dataset(
        name="argoverse",
        version=argoverse.VERSION,
        built_in_city=(root / argoverse.CITY_MARKER).exists(),
        cameras=argoverse.RING_CAMERAS,
        frames=recordings.frames,
        official=np.array([recordings.split_of_log[frame.scene] for frame in recordings.frames]),
        map_extents={city: area.extent() for city, area in areas.items()},
        check_files=argoverse.check_files,
        read_sweep=argoverse.read_sweep,
        place=place,
        counts={"sweeps": recordings.sweeps, "sweeps_without_images": recordings.sweeps_without_images},
    )


OPENERS: dict[str, Callable[[Path, str | None], Dataset]] = {
    "argoverse": open_argoverse,
    "nuscenes": open_nuscenes,
}


def check_positions(dataset: Dataset, margin: float) -> None:
    """InputError for a frame more than `margin` (m) off its map: a raster over it would be of any size."""
    for frame in dataset.frames:
        x_min, x_max, y_min, y_max = dataset.map_extents[frame.location]
        x, y = frame.map_T_ego[:2, 3]
        if not (x_min - margin <= x <= x_max + margin and y_min - margin <= y <= y_max + margin):
            raise InputError(
                f"{dataset.name} {dataset.version}: frame {frame.token} ({frame.scene}): expected a position "
                f"on the map of {frame.location}, x in [{x_min}, {x_max}], y in [{y_min}, {y_max}] m; found "
                f"{x:.1f}, {y:.1f} (coordinates out of range). Unpack the metadata again, or correct the "
                "location of its log."
            )


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
