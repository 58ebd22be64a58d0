"""Describes an image by its colours and a cloud by its first point; where a place is, both agree."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from placerec_jax.methods import Encoder, run_encoders
from placerec_jax.ops.point_steps import decode_points

HEIGHT, WIDTH, PATCH, POINTS = 32, 64, 16, 64
PUBLISHED_PROTOCOL = "of a toy"
PUBLISHED = ({"table": "1", "model": "Toy", "image_to_point_recall_at_1": 12.34},)


def features(cfg, training=False):
    del cfg, training
    return {
        "image": jax.ShapeDtypeStruct((HEIGHT, WIDTH, 3), np.uint8),
        "points": jax.ShapeDtypeStruct((POINTS, 3), np.float32),
        "point_mask": jax.ShapeDtypeStruct((POINTS,), np.bool_),
        "index": jax.ShapeDtypeStruct((), np.int32),
    }


class Pairs(nn.Module):
    def setup(self):
        self.scale = self.param("scale", nn.initializers.ones, ())

    def describe_image(self, image, train):
        del train
        return self.scale * image.astype(jnp.float32).mean(axis=(1, 2)) / 10

    def describe_cloud(self, points, train):
        del train
        return self.scale * points[:, 0]

    def __call__(self, batch, train):
        return run_encoders(self, encoders(None), batch, train)


def model(cfg):
    del cfg
    return Pairs()


def encoders(cfg):
    del cfg
    return {
        "image": Encoder(("image",), Pairs.describe_image),
        "cloud": Encoder(("points",), Pairs.describe_cloud),
    }


def loss(cfg, representations, batch):
    del cfg, batch
    error = representations["image"] - representations["cloud"]
    return {"square": (jnp.sum(error**2), jnp.float32(error.size))}


def predict(cfg, representations, batch):
    del cfg
    points, patches = batch["points"], (HEIGHT // PATCH) * (WIDTH // PATCH)
    blocks = batch["image"].astype(jnp.float32).reshape(len(points), patches, -1)
    return {
        "image_descriptor": jnp.tile(representations["image"], (1, 30)),  # wide, as real ones are
        "cloud_descriptor": jnp.tile(representations["cloud"], (1, 30)),
        "image_saliency": blocks.mean(axis=-1),
        "cloud_saliency": points[:, :8, 2],
        "cloud_centres": points[:, :8],
        "cloud_token_mask": batch["point_mask"][:, :8],
        "index": batch["index"],
    }


class Source:
    def __init__(self, prepared, records):
        self._table, self._records = prepared.table("frames"), records

    def __len__(self):
        return len(self._records)

    def example(self, index, rng):
        record = self._table.read(int(self._records[index]))
        points = decode_points(record["point_steps"])
        return {
            "image": record["image"],
            "points": points,
            "point_mask": np.arange(POINTS) < POINTS - rng.integers(0, 8),
            "index": np.int32(self._records[index]),
        }


def source(cfg, prepared, split, training):
    del training
    return Source(prepared, prepared.split(cfg.data.scheme, split))
