"""The toy method's config: `get_config(root)` reads the prepared folder at `root`."""

import ml_collections

from configs import common


def get_config(root: str = "") -> ml_collections.ConfigDict:
    config = common.base("toy", "tests")
    config.data.root = root
    config.model = ml_collections.ConfigDict({"width": 64, "dropout": 0.1, "conv_weights": ""})
    config.loss = ml_collections.ConfigDict({"square": 1.0, "absolute": 0.5})
    config.train.batch_size = 8
    config.train.steps = 40
    config.train.log_every = 1
    config.train.eval_every = 10
    config.train.checkpoint_every = 5
    config.train.eval_examples = 8
    config.eval.batch_size = 8
    config.eval.evaluator = "toy_scores"
    config.eval.best_metric = "error"
    config.eval.best_mode = "min"
    config.mesh.fsdp_min_size = 128
    config.data.workers = 0
    return config
