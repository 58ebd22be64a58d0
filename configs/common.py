"""What the configurations of all methods share. Nothing here depends on the machine it is read on."""

import ml_collections

# Of the built-in city and its conversion: another version is another folder, so that figures never come from
# an older city unnoticed. Equal to `CITY_VERSION` of data_prep/city/generate.py, which a test holds.
CITY_VERSION = 3


def base(method: str, arg: str) -> ml_collections.ConfigDict:
    """Defaults of training, sharding and evaluation; a method's file fills in the rest."""
    config = ml_collections.ConfigDict()
    config.method = method
    config.name = f"{method}-{arg}"
    config.workdir = f"runs/{method}-{arg}"
    config.seed = 0
    config.dtype = "float32"  # of the networks; geometry, losses and parameters stay float32

    config.data = ml_collections.ConfigDict()
    config.data.root = ""
    config.data.scheme = "official"
    config.data.train_split = "train"
    config.data.eval_split = "val"  # watched while training; chooses the best checkpoint
    config.data.test_split = "test"
    config.data.prepare = ()  # commands of `python -m data_prep` that make `root`
    config.data.workers = 0  # reader processes; 0: threads of the trainer

    config.train = ml_collections.ConfigDict()
    config.train.batch_size = 8  # examples of one update, on all devices together
    config.train.gradients = "whole"  # or accumulated, cached; placerec_jax.training.gradients
    config.train.accumulate = 1  # micro-batches of an update
    config.train.steps = 1000
    config.train.log_every = 50
    config.train.eval_every = 1000
    config.train.eval_examples = 512
    config.train.checkpoint_every = 1000

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adamw"  # or adam_l2, sgd; placerec_jax.training.optimizer
    config.optimizer.groups = ()  # (pattern of parameters' names, "frozen" or pairs of settings of their own)
    config.optimizer.schedule = "cosine"  # or staircase, warmup_cosine_epochs
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_steps = 0
    config.optimizer.hold = 0.0  # share of the steps after warm-up that stay at the peak
    config.optimizer.clip_norm = 5.0

    config.mesh = ml_collections.ConfigDict()
    config.mesh.data = -1  # all the devices that fsdp leaves
    config.mesh.fsdp = 1
    config.mesh.rules = ()  # (pattern of a parameter's name, mesh axes), before the inferred sharding
    config.mesh.fsdp_min_size = 2**16  # smaller parameters stay replicated

    config.eval = ml_collections.ConfigDict()
    config.eval.seed = 1000
    config.eval.batch_size = 16
    config.eval.pictures = 2  # frames drawn of the best, of the median and of the worst
    return config


# What a converter is given of the built-in city: the formats that are written, and its own arguments.
_CITY_INPUTS = {
    "maploc": ("nuscenes,osm", lambda raw: ("--raw", f"{raw}/nuscenes", "--osm", f"{raw}/osm")),
    "nusc_pr": ("nuscenes", lambda raw: ("--raw", f"{raw}/nuscenes")),
    "lcd": ("kitti", lambda raw: ("--raw", f"{raw}/kitti", "--format", "kitti")),
    "i2p": ("kitti360", lambda raw: ("--raw", f"{raw}/kitti360", "--format", "kitti360", "--image", "pano")),
}


def built_in_city(config: ml_collections.ConfigDict, converter: str, size: str, *options: str) -> None:
    """Points `config.data` at the built-in city of `size`; `converter` prepares it with `options`."""
    folder = f"data/city-{size}-v{CITY_VERSION}"
    raw, root = f"{folder}/raw", f"{folder}/{converter}"
    formats, arguments = _CITY_INPUTS[converter]
    config.data.root = root
    config.data.prepare = (
        ("city", "--out", raw, "--size", size, "--formats", formats, "--seed", "0"),
        (converter, *arguments(raw), *options, "--out", root),
    )
