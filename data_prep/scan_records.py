"""The records of the loop-closure converter: what is stored of a scan, of a BEV picture and of a sequence."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from data_prep.errors import InputError
from data_prep.images import JPEG_QUALITY, read_png
from data_prep.raw import kitti, kitti360
from data_prep.raw.scans import Scan, ScanImage, ScanSequence
from placerec_jax.ops.point_steps import POINT_UNIT, encode_points

NEAREST = 0.5  # m in front of a camera: what is nearer belongs to the car, or is noise


@dataclasses.dataclass(frozen=True)
class SequenceInput:
    """A sequence and the record number of its first frame."""

    sequence: ScanSequence
    first: int


def _float64(shape: tuple[int | None, ...], doc: str) -> tfds.features.Tensor:
    # As bytes: a tf.train.Example has no float64, TFDS would round it to float32.
    return tfds.features.Tensor(shape=shape, dtype=np.float64, encoding="bytes", doc=doc)


def sequence_features() -> tfds.features.FeaturesDict:
    """The table `sequences`: one record a sequence, whose frames are consecutive records of `frames`."""
    return tfds.features.FeaturesDict(
        {
            "sequence": tfds.features.Text(),
            "pose_source": tfds.features.Text(),
            "first": tfds.features.Scalar(np.int64, doc="record number of its first frame"),
            "frame_id": tfds.features.Tensor(shape=(None,), dtype=np.int64, encoding="bytes"),
            "time": _float64((None,), "s; NaN where the dataset has none"),
            "map_T_lidar": _float64((None, 4, 4), "in the map frame of this sequence"),
        }
    )


def sequence_examples(inputs: Sequence[SequenceInput]) -> Iterator[dict[str, Any]]:
    """One example of `sequence_features` a sequence."""
    for sequence, first in ((i.sequence, i.first) for i in inputs):
        scans = sequence.scans
        yield {
            "sequence": sequence.name,
            "pose_source": sequence.pose_source,
            "first": first,
            "frame_id": np.array([scan.frame_id for scan in scans], np.int64),
            "time": np.array([scan.time for scan in scans], np.float64),
            "map_T_lidar": np.array([scan.map_T_lidar for scan in scans], np.float64).reshape(-1, 4, 4),
        }


def _frame_features() -> dict[str, Any]:
    """What the records of scans and of BEV pictures have in common."""
    return {
        "sequence": tfds.features.Text(),
        "frame_id": tfds.features.Scalar(np.int64, doc="the number in the file's name"),
        "time": _float64((), "s; NaN where the dataset has none"),
        "map_T_lidar": _float64((4, 4), "in the map frame of the sequence"),
    }


def _frame_example(scan: Scan) -> dict[str, Any]:
    return {
        "sequence": scan.sequence,
        "frame_id": scan.frame_id,
        "time": np.float64(scan.time),
        "map_T_lidar": np.asarray(scan.map_T_lidar, np.float64),
    }


def point_features(images: bool) -> tfds.features.FeaturesDict:
    """The table `frames` of scans, with the image of a camera or without.

    With images: point number link_point[i] is seen in pixel link_pixel[i] of the stored image.
    """
    points = {
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
    camera = {
        "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
        "intrinsics": _float64((3, 3), "K of the image"),
        "camera_T_lidar": _float64((4, 4), "camera: x right, y down, z forward"),
        "link_point": tfds.features.Tensor(
            shape=(None,), dtype=np.int32, encoding="zlib", doc="points that the image sees, ascending"
        ),
        "link_pixel": tfds.features.Tensor(
            shape=(None, 2), dtype=np.uint16, encoding="zlib", doc="their pixels (row, column)"
        ),
    }
    return tfds.features.FeaturesDict({**_frame_features(), **points, **(camera if images else {})})


def point_examples(
    scans: Sequence[Scan], *, images: bool, compensate_motion: bool
) -> Iterator[dict[str, Any]]:
    """One example of `point_features` a scan.

    With `compensate_motion` the points of a dataset that has not taken the car's motion out are moved to
    where they were at the scan's time.
    """
    for scan in scans:
        points = read_points(scan.path)
        if compensate_motion:
            points = kitti360.compensate_motion(points, scan.sweep_motion)
        example = {
            **_frame_example(scan),
            "point_steps": encode_points(points[:, :3]),
            "reflectance": np.rint(points[:, 3] * 255).astype(np.uint8),
        }
        if images:
            link_point, link_pixel = links(points[:, :3], scan.image)
            example |= {
                "image": stored_image(scan.image),
                "intrinsics": np.asarray(scan.image.intrinsics, np.float64),
                "camera_T_lidar": np.asarray(scan.image.camera_T_lidar, np.float64),
                "link_point": link_point,
                "link_pixel": link_pixel,
            }
        yield example


def read_points(path: Path) -> np.ndarray:
    """(N, 4) float32 x, y, z (m, LiDAR frame) and reflectance from 0 to 1; InputError for bad content."""
    points = kitti.read_points(path)
    low, high = float(points[:, 3].min()), float(points[:, 3].max())
    if low < 0 or high > 1:
        raise InputError(
            f"{path}: expected reflectances from 0 to 1, found {low:g} to {high:g}. Scale the fourth column."
        )
    return points


def links(lidar_xyz: np.ndarray, image: ScanImage) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) → (M,) int32 ascending numbers of the points that the image sees, (M, 2) uint16 their pixels.

    A point is seen more than NEAREST in front of the camera and inside the image; what hides it is not asked.
    A pixel (row, column) reaches from its numbers to the next ones: floor of v and u.
    """
    pixel_T_lidar = (
        image.intrinsics @ image.camera_T_lidar[:3]
    )  # s·(u, v, 1) = it · (x, y, z, 1), s the depth
    x, y, z = lidar_xyz.astype(np.float64).T
    scaled = [row[0] * x + row[1] * y + row[2] * z + row[3] for row in pixel_T_lidar]
    point = np.flatnonzero(scaled[2] > NEAREST)
    u, v, depth = (values[point] for values in scaled)
    column, row = np.floor(u / depth), np.floor(v / depth)
    inside = (column >= 0) & (column < image.width) & (row >= 0) & (row < image.height)
    pixel = np.stack([row[inside], column[inside]], axis=-1)
    return point[inside].astype(np.int32), pixel.astype(np.uint16)


def stored_image(image: ScanImage) -> bytes:
    """The image as JPEG; InputError for one that is damaged or of another size than its calibration says."""
    pixels = read_png(image.path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels.shape[:2] != (image.height, image.width):
        raise InputError(
            f"{image.path}: expected {image.width} x {image.height} pixels, found {pixels.shape[1]} x "
            f"{pixels.shape[0]}. Unpack images and calibration of one release."
        )
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return encoded.tobytes()


def bev_features() -> tfds.features.FeaturesDict:
    """The table `frames` of BEV pictures: row increases with x (forward), column with y (left)."""
    picture = tfds.features.Image(shape=(None, None, 1), dtype=np.uint8, encoding_format="png")
    return tfds.features.FeaturesDict({**_frame_features(), "bev": picture})


def bev_examples(scans: Sequence[Scan], *, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """One example of `bev_features` a picture; all must have `size` = (height, width)."""
    for scan in scans:
        bev = read_bev(scan.path)
        if bev.shape != size:
            raise InputError(
                f"{scan.path}: expected {size[1]} x {size[0]} pixels as in the first picture, found "
                f"{bev.shape[1]} x {bev.shape[0]}. Render all pictures alike."
            )
        _, encoded = cv2.imencode(".png", bev)
        yield {**_frame_example(scan), "bev": encoded.tobytes()}


def read_bev(path: Path) -> np.ndarray:
    """(rows along x forward, columns along y left) uint8 density of a picture that has forward up, left left.

    InputError for a file that is no whole 8-bit grey PNG.
    """
    picture = read_png(path, cv2.IMREAD_UNCHANGED)
    if picture.ndim != 2 or picture.dtype != np.uint8:
        raise InputError(
            f"{path}: expected one channel of 8 bits (density), found {picture.shape} {picture.dtype}. Save "
            "the pictures as 8-bit grey PNG."
        )
    return np.ascontiguousarray(picture[::-1, ::-1])
