"""Random access to the records of a prepared table: TFRecord shards with TFDS metadata, no TensorFlow."""

import json
import os
import struct
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import google_crc32c
import numpy as np
import tensorflow_datasets as tfds

from placerec_jax.errors import UserError

_HEADER = struct.Struct("<QI")  # length of the payload, masked CRC-32C of those eight bytes
_FOOTER = struct.Struct("<I")  # masked CRC-32C of the payload


class RecordError(UserError, ValueError):
    """A table is not what its metadata says, or its bytes are damaged."""


class RecordTable:
    """The records of one TFDS folder by number, decoded to NumPy.

    The shards' framing is scanned once for the offset of every record; a read is then one `pread`, so threads
    may share a table. The checksum of the payload is verified at each read. A pickled table reopens its files
    where it lands.

    Raises:
        RecordError: metadata or a shard is absent, truncated, or holds another number of records than the
            metadata says; on reading, a checksum differs. The message names the file and the byte.
        IndexError: no record has that number.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._features = _read_features(self.folder)
        self._features_encoded = _with_encoded_images(self._features)
        self._shards, lengths = _read_shards(self.folder)
        offsets = [_scan(path, length) for path, length in zip(self._shards, lengths, strict=True)]
        self._shard_of = np.repeat(np.arange(len(self._shards)), lengths)
        self._offset_of = np.concatenate(offsets) if offsets else np.zeros(0, np.int64)
        self._open()

    def __len__(self) -> int:
        return len(self._offset_of)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Record `index` with every feature decoded, images included."""
        return self.read(index)

    def read(self, index: int, *, images: bool = True) -> dict[str, Any]:
        """Record `index` as {feature: value}.

        With `images=False` image features stay as they are stored, a `bytes` each (a sequence of images: a
        list of `bytes`), for `decode_image`: a method that wants one camera of six need not decode the other
        five.
        """
        features = self._features if images else self._features_encoded
        return features.deserialize_example_np(self._payload(index))

    def columns(self, names: Sequence[str], numbers: Iterable[int]) -> dict[str, np.ndarray]:
        """{name: (N, ...)} of the records `numbers`; nothing but the features `names` is decoded, so that the
        poses of a dataset are read without its images. Raises RecordError where the table lacks one."""
        missing = sorted(set(names) - self._features.keys())
        if missing:
            raise RecordError(
                f"{self.folder}: expected features {missing}, found {sorted(self._features.keys())}. Prepare "
                "the folder again with the converter that the config names."
            )
        wanted = tfds.features.FeaturesDict({name: self._features[name] for name in names})
        records = [wanted.deserialize_example_np(self._payload(int(number))) for number in numbers]
        return {name: np.array([record[name] for record in records]) for name in names}

    def _payload(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: record {index} of {len(self)}")
        shard, offset = int(self._shard_of[index]), int(self._offset_of[index])
        file = self._files[shard]
        length, _ = _HEADER.unpack(os.pread(file, _HEADER.size, offset))
        block = os.pread(file, length + _FOOTER.size, offset + _HEADER.size)
        if len(block) != length + _FOOTER.size:
            raise RecordError(
                f"{self._shards[shard]}: truncated since it was opened: record {index} at byte {offset} "
                f"needs {length + _FOOTER.size} bytes after its header, {len(block)} are left. Prepare the "
                "table again."
            )
        payload, (expected,) = block[:length], _FOOTER.unpack(block[length:])
        found = _masked_crc(payload)
        if found != expected:
            raise RecordError(
                f"{self._shards[shard]}: the payload of record {index} at byte {offset} has checksum "
                f"{found:#010x}, expected {expected:#010x}. The file is damaged: copy it again or prepare "
                "the table again."
            )
        return payload

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def _open(self) -> None:
        self._files = [os.open(path, os.O_RDONLY) for path in self._shards]
        # Not at exit: the system closes them then, and reader threads may still be at work.
        weakref.finalize(self, _close, self._files).atexit = False


def as_text(value: bytes | str) -> str:
    """A text feature as `str`: records give bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)


def decode_image(encoded: bytes) -> np.ndarray:
    """JPEG or PNG bytes → (H, W, 3) uint8 RGB. Raises RecordError if they are no image."""
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise RecordError(f"expected an encoded image, found {len(encoded)} bytes starting {encoded[:8]!r}")
    return image


def _close(files: list[int]) -> None:
    for file in files:
        os.close(file)


def _masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and offset as TFRecord stores it."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _read_features(folder: Path) -> tfds.features.FeaturesDict:
    if not (folder / "features.json").is_file():
        raise RecordError(f"{folder}: expected a table with features.json, found none. Prepare it again.")
    return tfds.features.FeaturesDict.from_config(str(folder))


def _read_shards(folder: Path) -> tuple[list[Path], list[int]]:
    """The shard files of the folder's only split and how many records each has."""
    path = folder / "dataset_info.json"
    try:
        info = json.loads(path.read_text())
        (split,) = info["splits"]
        lengths = [int(n) for n in split["shardLengths"]]
        prefix = f"{info['name']}-{split['name']}.{info['fileFormat']}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"{path}: expected TFDS metadata with a name, a fileFormat and one split, found "
            f"{type(error).__name__}: {error}. Prepare the table again."
        ) from error
    shards = [folder / f"{prefix}-{i:05d}-of-{len(lengths):05d}" for i in range(len(lengths))]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise RecordError(
            f"{folder}: {len(missing)} of {len(shards)} shards are absent: {', '.join(missing[:5])}. "
            "Copy them or prepare the table again."
        )
    return shards, lengths


def _scan(path: Path, expected: int) -> np.ndarray:
    """(expected,) int64 byte offsets of the records, from their headers alone."""
    size = path.stat().st_size
    offsets = []
    offset = 0
    with path.open("rb", buffering=0) as file:
        while offset < size:
            header = os.pread(file.fileno(), _HEADER.size, offset)
            if len(header) < _HEADER.size:
                raise _truncated(path, len(offsets), offset, _HEADER.size, size)
            length, checksum = _HEADER.unpack(header)
            found = _masked_crc(header[:8])
            if found != checksum:
                raise RecordError(
                    f"{path}: the length of record {len(offsets)} at byte {offset} has checksum "
                    f"{found:#010x}, expected {checksum:#010x}. The file is damaged or no TFRecord: copy it "
                    "again or prepare the table again."
                )
            end = offset + _HEADER.size + length + _FOOTER.size
            if end > size:
                raise _truncated(path, len(offsets), offset, end - offset, size)
            offsets.append(offset)
            offset = end
    if len(offsets) != expected:
        raise RecordError(
            f"{path}: expected {expected} records (dataset_info.json), found {len(offsets)} up to its end at "
            f"byte {size}. Copy it again or prepare the table again."
        )
    return np.asarray(offsets, np.int64)


def _truncated(path: Path, record: int, offset: int, needed: int, size: int) -> RecordError:
    return RecordError(
        f"{path}: truncated: record {record} at byte {offset} needs {needed} bytes, the file ends at byte "
        f"{size}. Copy it again or prepare the table again."
    )


def _with_encoded_images(features: tfds.features.FeaturesDict) -> tfds.features.FeaturesDict:
    """The same features with images as the bytes they are stored as, one by one or in sequences."""
    encoded = dict(features.items())
    for name, feature in features.items():
        if isinstance(feature, tfds.features.Image):
            encoded[name] = tfds.features.Text()
        elif isinstance(getattr(feature, "feature", None), tfds.features.Image):
            encoded[name] = tfds.features.Sequence(tfds.features.Text())
    return tfds.features.FeaturesDict(encoded)
