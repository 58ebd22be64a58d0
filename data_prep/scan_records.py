"""The records of the loop-closure converter: what is stored of a scan, of a BEV picture and of a sequence."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds

from data_prep.errors import InputError
from data_prep.raw.scans import Scan, ScanSequence

_PNG_END = b"IEND"  # the last chunk: OpenCV fills what a truncated file lacks and says nothing


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
    content = np.fromfile(path, np.uint8)
    picture = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if len(content) else None
    if picture is None or _PNG_END not in content[-16:].tobytes():
        raise InputError(
            f"{path}: expected a whole PNG picture, found {len(content)} bytes that are none: the file is "
            "truncated or damaged. Copy it again."
        )
    if picture.ndim != 2 or picture.dtype != np.uint8:
        raise InputError(
            f"{path}: expected one channel of 8 bits (density), found {picture.shape} {picture.dtype}. Save "
            "the pictures as 8-bit grey PNG."
        )
    return np.ascontiguousarray(picture[::-1, ::-1])
