"""Describes a density picture by its coarse content; its key points and its match say "the same pose"."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from placerec_jax.methods import Encoder, run_encoders
from placerec_jax.ops.grid import Grid2D

SIZE, BLOCK = 144, 12  # cells that are looked at, cells pooled to one number
KEYPOINTS = 4


def bev_grid(cfg):
    del cfg
    return Grid2D((-28.8, 28.8, -28.8, 28.8), 0.4)


def features(cfg, training=False):
    del cfg, training
    return {
        "bev": jax.ShapeDtypeStruct((1, SIZE, SIZE, 1), np.float32),
        "map_T_lidar": jax.ShapeDtypeStruct((4, 4), np.float32),
        "sequence": jax.ShapeDtypeStruct((), np.int32),
        "sequence_position": jax.ShapeDtypeStruct((), np.int32),
        "index": jax.ShapeDtypeStruct((), np.int32),
    }


class Places(nn.Module):
    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, ())

    def describe(self, bev, train):
        del train
        pooled = bev.reshape(len(bev), SIZE // BLOCK, BLOCK, SIZE // BLOCK, BLOCK).mean(axis=(2, 4))
        return self.scale * pooled.reshape(len(bev), -1)

    def __call__(self, batch, train):
        return run_encoders(self, encoders(None), batch, train)


def model(cfg):
    del cfg
    return Places()


def encoders(cfg):
    del cfg
    return {"descriptor": Encoder(("bev",), Places.describe)}


def loss(cfg, representations, batch):
    del cfg, batch
    descriptor = representations["descriptor"]
    return {"square": (jnp.sum(descriptor**2), jnp.float32(descriptor.size))}


def predict(cfg, representations, batch):
    del cfg
    count = len(batch["index"])
    return {
        "descriptor": representations["descriptor"],
        "keypoint_xy": jnp.tile(jnp.arange(2.0 * KEYPOINTS).reshape(KEYPOINTS, 2), (count, 1, 1)),
        "keypoint_mask": jnp.ones((count, KEYPOINTS), bool),
        "keypoint_feature": jnp.zeros((count, KEYPOINTS, 32)),  # more than is kept without being asked for
    } | {name: batch[name] for name in ("map_T_lidar", "sequence", "sequence_position", "index")}


def match(cfg, query, candidate):
    del cfg, candidate
    mask = query["keypoint_mask"]
    assert query["keypoint_feature"].shape[1:] == (KEYPOINTS, 32)
    return {
        "pose": jnp.zeros((len(mask), 3)),
        "inliers": mask.sum(axis=1),
        "partner": jnp.tile(jnp.arange(KEYPOINTS), (len(mask), 1)),
        "inlier_mask": mask,
    }


class Source:
    def __init__(self, cfg, prepared, split):
        self._frames = prepared.table("frames")
        sequences = prepared.table("sequences")
        self._first = [(int(sequences[i]["first"]), sequences[i]) for i in range(len(sequences))]
        self._records = prepared.split(cfg.data.scheme, split)
        self._turned = cfg.data.query_yaw > 0

    def __len__(self):
        return len(self._records)

    def example(self, index, rng):
        record = int(self._records[index])
        number = max(i for i, (first, _) in enumerate(self._first) if first <= record)
        position = record - self._first[number][0]
        map_T_lidar = self._first[number][1]["map_T_lidar"]
        bev = self._frames[record]["bev"].astype(np.float32)[3:-4, 3:-4] / 255
        quarter = int(rng.integers(1, 4)) if self._turned else 0
        return {
            "bev": np.rot90(bev, quarter, axes=(0, 1))[None].copy(),
            "map_T_lidar": (np.linalg.inv(map_T_lidar[0]) @ map_T_lidar[position]).astype(np.float32),
            "sequence": np.int32(number),
            "sequence_position": np.int32(position),
            "index": np.int32(record),
        }


def source(cfg, prepared, split, training):
    del training
    return Source(cfg, prepared, split)
