"""Writes a prepared folder for the toy method with TFDS alone, nothing of this project."""

import hashlib
import json
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

FEATURES = {
    "token": tfds.features.Text(),
    "image": tfds.features.Image(shape=(8, 8, 3), encoding_format="png"),
    "cameras": tfds.features.Sequence(tfds.features.Image(shape=(4, 6, 3), encoding_format="png"), length=2),
    "target": tfds.features.Tensor(shape=(2,), dtype=np.float32),
    "raster": tfds.features.Tensor(shape=(None, None, 3), dtype=np.uint8, encoding="zlib"),
}


def frames(count: int, seed: int = 0) -> list[dict]:
    """`count` records: an image, two small ones, and as target the image's mean red and green."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 255, (count, 8, 8, 3), dtype=np.uint8)
    return [
        {
            "token": f"frame-{i}",
            "image": images[i],
            "cameras": list(rng.integers(0, 255, (2, 4, 6, 3), dtype=np.uint8)),
            "target": images[i].mean(axis=(0, 1))[:2].astype(np.float32) / 255,
            "raster": np.full((2 + i % 3, 5, 3), i, np.uint8),
        }
        for i in range(count)
    ]


def write_table(folder: Path, name: str, records: list[dict], shards: int, features: dict = FEATURES) -> None:
    """A TFDS folder with one split called like the dataset."""
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(features)
    parts = np.array_split(np.arange(len(records)), shards)
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split=name, filetype_suffix="tfrecord"
    )
    for shard, part in enumerate(parts):
        path = template.sharded_filepath(shard_index=shard, num_shards=shards)
        with tf.io.TFRecordWriter(str(path)) as writer:
            for i in part:
                writer.write(features.serialize_example(records[i]))
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[len(p) for p in parts],
                num_bytes=0,
                filename_template=template,
            )
        ],
        check_data=False,
    )


def write_prepared(root: Path, train: int = 24, val: int = 8, nan: int | None = None) -> Path:
    """A whole prepared folder with the splits train and val; the target of record `nan` is not a number."""
    records = frames(train + val)
    if nan is not None:
        records[nan]["target"] = np.full(2, np.nan, np.float32)
    write_table(root / "frames", "frames", records, shards=3)
    splits = {"train": np.arange(train), "val": np.arange(train, train + val), "test": np.zeros(0, np.int64)}
    (root / "splits").mkdir()
    np.savez(root / "splits" / "official.npz", **splits)
    manifest = {
        "format": 1,
        "converter": "toy",
        "tables": {"frames": {"records": len(records)}},
        "splits": {"official": {name: len(numbers) for name, numbers in splits.items()}},
        "fingerprint": hashlib.sha256(f"{train} {val}".encode()).hexdigest(),
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root
