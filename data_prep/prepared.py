"""Prepared folders, read back by the commands that draw and export them. (Training reads its own way.)"""

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from data_prep.errors import InputError


def read_manifest(prepared: Path, converter: str) -> dict[str, Any]:
    """The manifest of a folder that `converter` wrote; InputError for anything else."""
    path = prepared / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        found = manifest["converter"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected the manifest of a prepared folder, found {error!r}.") from None
    if found != converter:
        raise InputError(f"{path}: expected a folder that {converter} wrote, found one of {found}.")
    return manifest


def payloads(prepared: Path, manifest: Mapping[str, Any], table: str) -> Iterator[bytes]:
    """The serialized records of a table in order: u64 length, checksum, payload, checksum."""
    shards = manifest["tables"][table]["shards"]
    for shard in range(shards):
        path = prepared / table / f"{table}-{table}.tfrecord-{shard:05d}-of-{shards:05d}"
        with path.open("rb") as file:
            while head := file.read(12):
                (length,) = struct.unpack("<Q", head[:8])
                yield file.read(length)
                file.seek(4, os.SEEK_CUR)


def table_features(
    prepared: Path, table: str, names: Sequence[str] | None = None
) -> tfds.features.FeaturesDict:
    """What decodes a table's payloads; with `names` those fields alone, which saves decoding the others."""
    features = tfds.features.FeaturesDict.from_config(str(prepared / table))
    return features if names is None else tfds.features.FeaturesDict({n: features[n] for n in names})
