"""The map of a whole sequence on disk, in tiles: more points than memory holds.

    MAPS/<sequence>-<hash>/chunk-00000.npy     voxels of SCANS_PER_CHUNK scans: sums and counts, by tile
                           voxels.npy          all voxels of the sequence: x, y, z, reflectance, by tile
                           distances-00000.npy mean distances to neighbours of TILES_PER_TASK tiles
                           map.npy             the voxels that are no outliers
                           map.json            where each tile starts; written last

Each file is written whole or not at all and is not written twice, so that a run that was stopped goes on; the
hash is over recipe, poses and files. Chunks, tiles and sequences are worked on in parallel and summed in one
order: the map does not depend on the number of workers. It holds all scans of the sequence, what the car saw
later as well as earlier.
"""

import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import submaps, tables
from data_prep.errors import InputError
from data_prep.raw import kitti360
from data_prep.raw.scans import Scan
from data_prep.scan_records import read_points
from data_prep.submaps import MapRecipe
from data_prep.worker_pool import WorkerPool
from placerec_jax.ops import rigid

SCANS_PER_CHUNK = 32
TILES_PER_TASK = 16
TILE_VOXELS = 200  # along a side of a tile

_VOXEL = np.dtype([("tile", "<i8"), ("voxel", "<i8"), ("sum", "<f4", 4), ("count", "<i4")])
_FARTHEST = 50_000.0  # m from the first pose


@dataclasses.dataclass(frozen=True)
class MapFolder:
    """Where the map of a sequence is, the corner of a tile that its coordinates are from, and its voxels."""

    path: Path
    origin: tuple[float, float, float]
    voxel: float

    @property
    def tile_side(self) -> float:
        return TILE_VOXELS * self.voxel


@dataclasses.dataclass(frozen=True)
class MapJob:
    """A sequence whose map is wanted."""

    folder: MapFolder
    scans: tuple[Scan, ...]
    recipe: MapRecipe

    @property
    def chunks(self) -> list[tuple[Scan, ...]]:
        return [self.scans[i : i + SCANS_PER_CHUNK] for i in range(0, len(self.scans), SCANS_PER_CHUNK)]

    @property
    def done(self) -> bool:
        return (self.folder.path / "map.json").is_file()


def job_of(maps: Path, scans: Sequence[Scan], recipe: MapRecipe) -> MapJob:
    """The map of `scans`, all of one sequence; its folder's name says what it is made from."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(recipe), sort_keys=True).encode())
    for scan in scans:
        digest.update(f"{scan.frame_id} {scan.path.name} {scan.path.stat().st_size}".encode())
        digest.update(np.asarray(scan.map_T_lidar, np.float64).tobytes())
        if scan.sweep_motion is not None:
            digest.update(np.asarray(scan.sweep_motion, np.float64).tobytes())
    side = TILE_VOXELS * recipe.voxel
    origin = np.floor(scans[0].map_T_lidar[:3, 3] / side) * side
    path = maps / f"{scans[0].sequence}-{digest.hexdigest()[:16]}"
    return MapJob(MapFolder(path, tuple(origin.tolist()), recipe.voxel), tuple(scans), recipe)


def build_maps(jobs: Sequence[MapJob], pool: WorkerPool) -> dict[str, dict[str, Any]]:
    """Build the maps that are not there; sequence → what went in and out, for the manifest.

    Raises InputError for damaged scans.
    """
    for job in jobs:
        job.folder.path.mkdir(parents=True, exist_ok=True)
    todo = [job for job in jobs if not job.done]
    chunks = [(job.folder, n, scans, job.recipe) for job in todo for n, scans in enumerate(job.chunks)]
    pool.run(write_chunk, chunks, "voxels of scans", "chunk")
    pool.run(write_voxels, [(job.folder, len(job.chunks)) for job in todo], "merging voxels", "sequence")
    parts = [(job.folder, n, job.recipe.neighbours) for job in todo for n in range(_parts(job.folder))]
    pool.run(write_distances, parts, "neighbours", "part")
    maps = [(job.folder, len(job.chunks), job.recipe.deviations) for job in todo]
    pool.run(write_map, maps, "removing outliers", "sequence")
    return {job.scans[0].sequence: _read_json(job.folder, "map.json")["report"] for job in jobs}


# --- Scans to voxels


def write_chunk(folder: MapFolder, number: int, scans: Sequence[Scan], recipe: MapRecipe) -> None:
    """The voxels of one run of scans."""
    path = _chunk_file(folder, number)
    if path.is_file():
        return
    keys, values, without_ground = [], [], 0
    for scan in scans:
        points, ground_found = _prepared_points(scan, recipe)
        without_ground += not ground_found
        index, offsets = _scan_voxels(points, scan, folder)
        keys.append(index)
        values.append(offsets)
    index, values = np.concatenate(keys), np.concatenate(values)
    tables.write_whole(path.with_suffix(".json"), json.dumps({"no_ground": without_ground}).encode())
    _save(path, _summed(index[:, 0], index[:, 1], values, np.ones(len(values))))


def _prepared_points(scan: Scan, recipe: MapRecipe) -> tuple[np.ndarray, bool]:
    """(N, 4) points of a scan that go into the map, and whether its ground was found where it is wanted."""
    points = read_points(scan.path)
    if recipe.compensate_motion and scan.sweep_motion is not None:
        points = kitti360.compensate_motion(points, scan.sweep_motion)
    found = True
    if recipe.remove_ground:
        rng = np.random.default_rng([scan.frame_id, len(points)])
        ground = submaps.ground_points(points[:, :3], recipe.ground_distance, rng)
        found = ground is not None
        points = points[~ground] if found else points
    return submaps.outside_own_box(points, recipe.own_box), found


def _scan_voxels(points: np.ndarray, scan: Scan, folder: MapFolder) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) points of a scan → (M, 2) int64 tile and voxel, (M, 4) mean offset and reflectance in it."""
    size = folder.voxel
    xyz = rigid.rigid_apply(scan.map_T_lidar, points[:, :3].astype(np.float64)) - folder.origin
    if len(xyz) and np.abs(xyz).max() > _FARTHEST:
        raise InputError(
            f"sequence {scan.sequence}: expected poses of one drive, found that of frame {scan.frame_id} "
            f"{np.abs(xyz).max() / 1000:.0f} km from the first. Check the file of poses."
        )
    voxel = submaps.voxel_index(xyz, size)
    tile = voxel[:, :2] // TILE_VOXELS
    inside = voxel.copy()
    inside[:, :2] -= tile * TILE_VOXELS
    values = np.concatenate([xyz - voxel * size, points[:, 3:4]], axis=1)
    found = _summed(_tile_key(tile), submaps.pack(inside), values, np.ones(len(xyz)))
    return np.stack([found["tile"], found["voxel"]], axis=-1), found["sum"] / found["count"][:, None].astype(
        np.float32
    )


def _tile_key(tile: np.ndarray) -> np.ndarray:
    """(N, 2) → (N,) int64 that sort as the tiles do."""
    return ((tile[:, 0] + (1 << 20)) << 21) | (tile[:, 1] + (1 << 20))


def _tile_of(key: np.ndarray | int) -> np.ndarray:
    """(...) of `_tile_key` → (..., 2)."""
    key = np.asarray(key)
    return np.stack([(key >> 21) - (1 << 20), (key & ((1 << 21) - 1)) - (1 << 20)], axis=-1)


def _summed(tile: np.ndarray, voxel: np.ndarray, values: np.ndarray, count: np.ndarray) -> np.ndarray:
    """(N,) tiles and voxels, (N, 4) sums, (N,) counts → (M,) of _VOXEL: each voxel once, in their order."""
    order = np.lexsort((voxel, tile))  # stable
    tile, voxel = tile[order], voxel[order]
    new = np.concatenate([[True], (tile[1:] != tile[:-1]) | (voxel[1:] != voxel[:-1])]) if len(tile) else []
    first = np.flatnonzero(new)
    result = np.zeros(len(first), _VOXEL)
    if len(first):
        result["tile"], result["voxel"] = tile[first], voxel[first]
        result["sum"] = np.add.reduceat(values[order].astype(np.float64), first, axis=0)
        result["count"] = np.add.reduceat(count[order], first)
    return result


# --- Voxels of chunks to those of the sequence


def write_voxels(folder: MapFolder, number_of_chunks: int) -> None:
    """Merge the chunks, tile by tile: the mean of the scans' means in each voxel."""
    path = folder.path / "voxels.npy"
    if path.is_file():
        return
    chunks = [np.load(_chunk_file(folder, n), mmap_mode="r") for n in range(number_of_chunks)]
    pieces: dict[int, list[tuple[int, int, int]]] = {}
    for number, chunk in enumerate(chunks):
        keys, start = np.unique(chunk["tile"], return_index=True)
        stop = np.append(start, len(chunk))[1:]
        for key, a, b in zip(keys.tolist(), start.tolist(), stop.tolist(), strict=True):
            pieces.setdefault(key, []).append((number, a, b))
    starts, total = {}, 0
    with (incomplete := path.with_name(path.name + tables.INCOMPLETE)).open("wb") as file:
        for key in sorted(pieces):
            part = np.concatenate([chunks[number][a:b] for number, a, b in pieces[key]])
            voxels = _summed(part["tile"], part["voxel"], part["sum"], part["count"])
            corner = np.append(_tile_of(key) * TILE_VOXELS, 0)
            index = submaps.unpack(voxels["voxel"]) + corner
            mean = voxels["sum"] / voxels["count"][:, None]
            mean[:, :3] += index * folder.voxel
            file.write(mean.astype("<f4").tobytes())
            starts[key] = total
            total += len(mean)
    index = {"tiles": list(starts.items()), "points": total}
    tables.write_whole(folder.path / "voxels.json", json.dumps(index).encode())
    incomplete.replace(path)


def _parts(folder: MapFolder) -> int:
    return -(-len(_read_json(folder, "voxels.json")["tiles"]) // TILES_PER_TASK)


@dataclasses.dataclass(frozen=True)
class TiledPoints:
    """Points on disk, (N, 4) float32 from an origin, and where each tile of them starts."""

    points: np.ndarray
    starts: dict[int, tuple[int, int]]
    side: float

    @classmethod
    def open(cls, folder: MapFolder, name: str) -> "TiledPoints":
        """The points `name`.npy of a folder."""
        content = _read_json(folder, f"{name}.json")
        tiles, total = content["tiles"], content["points"]
        points = np.zeros((0, 4), np.float32)
        if total:
            points = np.memmap(folder.path / f"{name}.npy", "<f4", "r", shape=(total, 4))
        ends = [*(start for _, start in tiles), total][1:]
        starts = {key: (start, end) for (key, start), end in zip(tiles, ends, strict=True)}
        return cls(points, starts, folder.tile_side)

    def of_tiles(self, keys: Sequence[int]) -> np.ndarray:
        """(N, 4) points of the tiles that are there, in their order."""
        found = [self.points[a:b] for a, b in (self.starts[k] for k in keys if k in self.starts)]
        return np.concatenate(found) if found else np.zeros((0, 4), np.float32)

    def near(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        """(N, 4) points of all tiles that the rectangle from `lower` to `upper` (x, y) touches."""
        first, last = (np.floor(corner / self.side).astype(np.int64) for corner in (lower, upper))
        grid = np.stack(
            np.meshgrid(np.arange(first[0], last[0] + 1), np.arange(first[1], last[1] + 1), indexing="ij"),
            axis=-1,
        )
        return self.of_tiles(_tile_key(grid.reshape(-1, 2)).tolist())


# --- Outliers


def write_distances(folder: MapFolder, number: int, neighbours: int) -> None:
    """Mean distances to neighbours of the points of some tiles."""
    path = _distance_file(folder, number)
    if path.is_file():
        return
    voxels = TiledPoints.open(folder, "voxels")
    found = []
    for key in _tiles_of_part(voxels, number):
        lower = _tile_of(key) * folder.tile_side - submaps.OUTLIER_REACH
        upper = lower + folder.tile_side + 2 * submaps.OUTLIER_REACH
        xyz, cloud = (points[:, :3] for points in (voxels.of_tiles([key]), voxels.near(lower, upper)))
        found.append(submaps.mean_neighbour_distances(xyz, cloud, neighbours))
    _save(path, np.concatenate(found).astype(np.float32))


def write_map(folder: MapFolder, number_of_chunks: int, deviations: float) -> None:
    """The voxels that are no outliers, by the statistics of the whole sequence."""
    voxels = TiledPoints.open(folder, "voxels")
    files = [_distance_file(folder, number) for number in range(_parts(folder))]
    count, total, squares = 0, 0.0, 0.0
    for file in files:
        distance = np.load(file).astype(np.float64)
        count += len(distance)
        total += distance.sum()
        squares += np.square(distance).sum()
    threshold = submaps.outlier_threshold(count, total, squares, deviations)
    tiles, kept = [], 0
    path = folder.path / "map.npy"
    with (incomplete := path.with_name(path.name + tables.INCOMPLETE)).open("wb") as out:
        for number, file in enumerate(files):
            stays = np.load(file) <= threshold
            for key in _tiles_of_part(voxels, number):
                points = voxels.of_tiles([key])
                points, stays = points[stays[: len(points)]], stays[len(points) :]
                out.write(np.ascontiguousarray(points).tobytes())
                tiles.append((key, kept))
                kept += len(points)
    incomplete.replace(path)
    notes = [_chunk_file(folder, n).with_suffix(".json") for n in range(number_of_chunks)]
    report = {
        "voxels": count,
        "outliers": count - kept,
        "scans_without_ground_plane": sum(json.loads(note.read_text())["no_ground"] for note in notes),
    }
    index = {"tiles": tiles, "points": kept, "report": report}
    tables.write_whole(folder.path / "map.json", json.dumps(index).encode())
    for file in [*files, *folder.path.glob("chunk-*"), *folder.path.glob("voxels.*")]:
        file.unlink()


def _tiles_of_part(voxels: TiledPoints, number: int) -> list[int]:
    return list(voxels.starts)[number * TILES_PER_TASK : (number + 1) * TILES_PER_TASK]


# --- Submaps


@functools.lru_cache(maxsize=4)
def _open_map(folder: MapFolder) -> TiledPoints:
    return TiledPoints.open(folder, "map")


def submap(folder: MapFolder, map_T_lidar: np.ndarray, half: float) -> np.ndarray:
    """(N, 4) float32 x, y, z, reflectance: the map about a pose, in its LiDAR's axes.

    |x| and |y| are below `half` metres; there is no limit in z.
    """
    pose = map_T_lidar.copy()
    pose[:3, 3] -= folder.origin
    reach = submaps.crop_reach(pose, half)
    points = _open_map(folder).near(pose[:2, 3] - reach, pose[:2, 3] + reach)
    return submaps.crop(points, pose, half)


def _chunk_file(folder: MapFolder, number: int) -> Path:
    return folder.path / f"chunk-{number:05d}.npy"


def _distance_file(folder: MapFolder, number: int) -> Path:
    return folder.path / f"distances-{number:05d}.npy"


def _read_json(folder: MapFolder, name: str) -> Any:
    return json.loads((folder.path / name).read_text())


def _save(path: Path, array: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, array)
    tables.write_whole(path, content.getvalue())
