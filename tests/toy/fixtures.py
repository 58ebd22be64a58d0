"""The toy method and what a training step needs of it."""

import ml_collections
import numpy as np

from placerec_jax.training.optimizer import make_optimizer, make_schedule
from tests.toy import config as toy_config
from tests.toy.plugins import toy


class Setup:
    """Model, optimiser and batches of the toy method; `changes` to its config as `{"model.width": 8}`."""

    method = toy

    def __init__(self, changes: dict | None = None) -> None:
        self.config = toy_config.get_config()
        self.config.update_from_flattened_dict(changes or {})
        self.cfg = ml_collections.FrozenConfigDict(self.config)
        self.model = toy.model(self.cfg)
        self.schedule = make_schedule(self.cfg.optimizer, self.cfg.train.steps)
        self.tx = make_optimizer(self.cfg.optimizer, self.schedule)

    def batch(self, step: int, size: int = 8) -> dict[str, np.ndarray]:
        """A learnable batch: the target is the mean of two colours."""
        rng = np.random.default_rng(step)
        image = rng.integers(0, 255, (size, 8, 8, 3), dtype=np.uint8)
        return {
            "image": image,
            "target": image.mean(axis=(1, 2))[:, :2].astype(np.float32) / 255,
            "noise": rng.normal(size=(size, 2)).astype(np.float32),
            "index": np.arange(size, dtype=np.int32),
        }
