"""A method that trains in a second, with all that a real one has: images, BatchNorm, dropout, two losses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from placerec_jax.data.records import decode_image
from placerec_jax.methods import Encoder, Pretrained, run_encoders
from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.modules.torch_names import TorchLayout


def features(cfg, training=False):
    del cfg, training
    return {
        "image": jax.ShapeDtypeStruct((8, 8, 3), np.uint8),
        "target": jax.ShapeDtypeStruct((2,), np.float32),
        "noise": jax.ShapeDtypeStruct((2,), np.float32),
        "index": jax.ShapeDtypeStruct((), np.int32),
    }


class Toy(nn.Module):
    width: int
    dropout: float

    def setup(self):
        self.conv = nn.Conv(8, (3, 3), use_bias=False)  # BatchNorm would cancel it
        self.norm = nn.BatchNorm(momentum=0.9)
        self.drop = nn.Dropout(self.dropout)
        self.hidden = nn.Dense(self.width)
        self.output = nn.Dense(2)

    def encode_image(self, image, train):
        x = self.conv(image.astype(jnp.float32) / 255.0)
        x = constrain_batch(nn.relu(self.norm(x, use_running_average=not train)))
        return self.drop(x.reshape(len(x), -1), deterministic=not train)

    def regress(self, encoded, noise, train):
        del train
        return self.output(nn.relu(self.hidden(encoded))) + 0.1 * noise

    def __call__(self, batch, train):
        return run_encoders(self, encoders(None), batch, train)


def model(cfg):
    return Toy(cfg.model.width, cfg.model.dropout)


def pretrained(cfg):
    layout = TorchLayout("torchtoy", {"params/kernel": "stem.weight"}, (("the classifier", r"^classifier"),))
    return {"conv": Pretrained("config.model.conv_weights", cfg.model.conv_weights, (layout,))}


def encoders(cfg):
    del cfg
    return {
        "encoded": Encoder(("image",), Toy.encode_image),
        "pose": Encoder(("encoded", "noise"), Toy.regress),
    }


def loss(cfg, representations, batch):
    del cfg
    error = representations["pose"] - batch["target"]
    return {
        "square": (jnp.sum(error**2), jnp.float32(error.size)),
        "absolute": (jnp.sum(jnp.abs(error)), jnp.float32(error.size)),
    }


def predict(cfg, representations, batch):
    del cfg
    return {"pose": representations["pose"], "true_pose": batch["target"], "index": batch["index"]}


class Source:
    def __init__(self, prepared, records):
        self._table, self._records = prepared.table("frames"), records

    def __len__(self):
        return len(self._records)

    def example(self, index, rng):
        record = self._table.read(int(self._records[index]), images=False)
        return {
            "image": decode_image(record["image"]),
            "target": record["target"],
            "noise": rng.normal(size=2).astype(np.float32),
            "index": np.int32(self._records[index]),
        }


def source(cfg, prepared, split, training):
    del training
    return Source(prepared, prepared.split(cfg.data.scheme, split))
