"""The records of the image-to-map converter: one image and the submap about it."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from data_prep import panorama, sequence_maps
from data_prep.images import encoded, read_png
from data_prep.raw.kitti360_cameras import FISHEYES, PERSPECTIVES, read_fisheye
from data_prep.raw.scan_files import POINT_BYTES, png_size
from data_prep.raw.scans import Scan
from data_prep.scan_records import read_points
from data_prep.sequence_maps import MapFolder
from placerec_jax.ops.image_size import fitted
from placerec_jax.ops.point_steps import POINT_UNIT, encode_points


@dataclasses.dataclass(frozen=True)
class PairInput:
    """What one record is made from. `map_folder` None: the submap is the frame's own scan."""

    scan: Scan
    images: tuple[Path, ...]
    position: np.ndarray  # (3,) m
    is_query: bool
    map_folder: MapFolder | None


@dataclasses.dataclass(frozen=True)
class SubmapSettings:
    """`half` (m) of the square that is cut from a map; `max_points` are kept of what is in it."""

    half: float = 20.0
    max_points: int = 120_000


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """`kind` of IMAGES, `method` of `data_prep.panorama` for panoramas, `size` (height, width) as stored."""

    kind: str
    size: tuple[int, int]
    root: Path
    method: str | None = None
    rows: tuple[float, float] = (0.0, 1.0)  # the part of a panorama's height that is kept


def features() -> tfds.features.FeaturesDict:
    """The table `frames`: one record a frame that has a pose, an image and a submap, sequences in order."""

    def float64(shape: tuple[int, ...], doc: str) -> tfds.features.Tensor:
        # As bytes: a tf.train.Example has no float64, TFDS would round it to float32.
        return tfds.features.Tensor(shape=shape, dtype=np.float64, encoding="bytes", doc=doc)

    return tfds.features.FeaturesDict(
        {
            "sequence": tfds.features.Text(),
            "frame_id": tfds.features.Scalar(np.int64, doc="the number in the file's name"),
            "time": float64((), "s; NaN where the dataset has none"),
            "map_T_lidar": float64((4, 4), "in the map frame of the sequence"),
            "position": float64((3,), "m; of the sensor that manifest.json names; x, y are the ground plane"),
            "is_query": tfds.features.Scalar(np.bool_, doc="by the scheme `official`"),
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "point_steps": tfds.features.Tensor(
                shape=(None, 3),
                dtype=np.int16,
                encoding="zlib",
                doc=f"x, y, z in units of {POINT_UNIT} m, each less that of the point before: sum them up "
                "(placerec_jax.ops.point_steps)",
            ),
            "reflectance": tfds.features.Tensor(
                shape=(None,), dtype=np.uint8, encoding="zlib", doc="255 is a reflectance of 1"
            ),
        }
    )


def examples(
    pairs: Sequence[PairInput], *, image: ImageSettings, submap: SubmapSettings
) -> Iterator[dict[str, Any]]:
    """One example of `features` a pair."""
    for pair in pairs:
        points = submap_points(pair, submap)
        yield {
            "sequence": pair.scan.sequence,
            "frame_id": pair.scan.frame_id,
            "time": np.float64(pair.scan.time),
            "map_T_lidar": np.asarray(pair.scan.map_T_lidar, np.float64),
            "position": np.asarray(pair.position, np.float64),
            "is_query": pair.is_query,
            "image": encoded(IMAGES[image.kind].make(pair.images, image)),
            "point_steps": encode_points(points[:, :3]),
            "reflectance": np.rint(np.clip(points[:, 3], 0, 1) * 255).astype(np.uint8),
        }


def submap_points(pair: PairInput, settings: SubmapSettings) -> np.ndarray:
    """(N, 4) float32 x, y, z in the frame's LiDAR axes and reflectance; none where the map is empty there."""
    if pair.map_folder is None:
        points = read_points(pair.scan.path)
    else:
        points = sequence_maps.submap(pair.map_folder, pair.scan.map_T_lidar, settings.half)
    if len(points) > settings.max_points:
        rng = np.random.default_rng([zlib.crc32(pair.scan.sequence.encode()), pair.scan.frame_id])
        points = points[np.sort(rng.choice(len(points), settings.max_points, replace=False))]
    return points


def count_points(pairs: Sequence[PairInput], settings: SubmapSettings) -> np.ndarray:
    """(N,) int64 points of each pair's submap; scans are not read for it."""

    def points_of(pair: PairInput) -> int:
        if pair.map_folder is None:
            return min(pair.scan.path.stat().st_size // POINT_BYTES, settings.max_points)
        return len(submap_points(pair, settings))

    return np.array([points_of(pair) for pair in pairs], np.int64)


def _perspective(files: tuple[Path, ...], settings: ImageSettings) -> np.ndarray:
    """The image, shrunk or stretched to the size."""
    pixels = read_png(files[0], cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return fitted(pixels, settings.size)


def _panorama(files: tuple[Path, ...], settings: ImageSettings) -> np.ndarray:
    """The two fisheye images stitched."""
    return _stitcher(settings, png_size(files[0]), png_size(files[1])).stitch_files(*files)


@functools.lru_cache(maxsize=4)
def _stitcher(settings: ImageSettings, left: tuple[int, int], right: tuple[int, int]) -> panorama.Stitcher:
    """For fisheye images of two sizes (width, height); calibration is read where the method wants it."""
    lenses: tuple[panorama.Lens, panorama.Lens] = (left, right)
    if panorama.METHODS[settings.method].calibrated:
        lenses = tuple(read_fisheye(settings.root, name) for name in FISHEYES)
    return panorama.Stitcher(settings.method, *lenses, size=settings.size, rows=settings.rows)


def _kitti360_folders(cameras: Sequence[str], kind: str) -> Callable[[Path, str], tuple[Path, ...]]:
    def folders(root: Path, sequence: str) -> tuple[Path, ...]:
        drive = root / "data_2d_raw" / f"2013_05_28_drive_{sequence}_sync"
        return tuple(drive / camera / kind for camera in cameras)

    return folders


def _kitti_folders(camera: str) -> Callable[[Path, str], tuple[Path, ...]]:
    def folders(root: Path, sequence: str) -> tuple[Path, ...]:
        dataset = root / "dataset" if (root / "dataset").is_dir() else root
        return (dataset / "sequences" / sequence / camera,)

    return folders


@dataclasses.dataclass(frozen=True)
class ImageKind:
    """A choice of --image: of which `format`, which folders of a root hold the files of a sequence, how they
    become one image (H, W, 3), and its `size` unless told."""

    format: str
    folders: Callable[[Path, str], tuple[Path, ...]]
    make: Callable[[tuple[Path, ...], ImageSettings], np.ndarray]
    size: tuple[int, int]


PANORAMA = "pano"
IMAGES: Mapping[str, ImageKind] = {
    PANORAMA: ImageKind("kitti360", _kitti360_folders(FISHEYES, "data_rgb"), _panorama, (512, 1024)),
    **{
        camera: ImageKind("kitti360", _kitti360_folders([camera], "data_rect"), _perspective, (368, 1408))
        for camera in PERSPECTIVES
    },
    **{
        camera: ImageKind("kitti", _kitti_folders(camera), _perspective, (368, 1232))
        for camera in ("image_2", "image_3")
    },
}
