"""Describes a keyframe by how far the rows of its range image see; depth is made up for the pictures."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from placerec_jax.methods import Encoder, run_encoders

ROWS, COLUMNS = 16, 66
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
PUBLISHED_PROTOCOL = "of a toy"
PUBLISHED = (
    {"table": "I", "model": "Toy", "sensors": "C+L", "recall_at_1": 12.34, "recall_at_5": 56.78},
    {"table": "III", "model": "Toy", "recall_at_1_by_location": {"north": 43.21, "elsewhere": 1.0}},
    {"table": "IV", "model": "Toy", "total_ms": 9.87},
)


def features(cfg, training=False):
    del cfg, training
    return {
        "range_image": jax.ShapeDtypeStruct((1, ROWS, COLUMNS, 1), np.float32),
        "index": jax.ShapeDtypeStruct((1,), np.int32),
    }


class Keyframes(nn.Module):
    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, ())

    def describe(self, range_image, train):
        del train
        return self.scale * range_image[:, 0, :, :, 0].mean(axis=-1)

    def __call__(self, batch, train):
        return run_encoders(self, encoders(None), batch, train)


def model(cfg):
    del cfg
    return Keyframes()


def encoders(cfg):
    del cfg
    return {"frame": Encoder(("range_image",), Keyframes.describe)}


def loss(cfg, representations, batch):
    del cfg, batch
    error = representations["frame"] - 1.0
    return {"square": (jnp.sum(error**2), jnp.float32(error.size))}


def predict(cfg, representations, batch):
    del cfg
    image = batch["range_image"][:, 0, :, :, 0]
    return {
        "descriptor": jnp.tile(representations["frame"], (1, 8)),  # wide, as real ones are
        "index": batch["index"][:, 0],
        "camera_range": jnp.repeat(image, 2, axis=1),
        "depth": jnp.broadcast_to(image[:, None, :, :20], (len(image), 6, ROWS, 20)),
    }


class Source:
    def __init__(self, prepared, records):
        self._table, self._records = prepared.table("frames"), records
        self._unit = prepared.manifest["range_unit_m"]

    def __len__(self):
        return len(self._records)

    def example(self, index, rng):
        del rng
        number = self._records[index]
        metres = self._table.read(int(number), images=False)["range_steps"] * np.float32(self._unit)
        return {"range_image": metres[None, ..., None], "index": np.array([number], np.int32)}


def source(cfg, prepared, split, training):
    del training
    return Source(prepared, prepared.split(cfg.data.scheme, split))
