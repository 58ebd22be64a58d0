"""SaliencyI2PLoc: the LiDAR submap in which an image was taken (arXiv 2412.15577, Information Fusion 2025).

    python -m placerec_jax.train --config=configs/saliency_i2ploc.py[:ARG] [--workdir=DIR]
    python -m placerec_jax.evaluate --config=configs/saliency_i2ploc.py[:ARG] [--workdir=DIR]

| ARG             | what                                                     | hardware and time           |
|-----------------|----------------------------------------------------------|-----------------------------|
| `cpu` (bare)    | small network, built-in city `small`                     | 2 CPU cores, 7 min          |
| `tiny`          | for the tests, a few steps                               | seconds                     |
| `ablation`      | `cpu` with a third of its steps, for tables over seeds   | 1 CPU core, 4 min           |
| `city`          | the paper's network, built-in city `medium`              | an accelerator; not run yet |
| `kitti360`      | the paper's, panoramas of KITTI-360                      | an accelerator; not run yet |
| `kitti360_persp`| the same with the left perspective image                 | an accelerator; not run yet |
| `kitti`         | KITTI odometry: contrast alone, the ViT's blocks frozen  | an accelerator; not run yet |
| `released`      | `kitti360`, with a slip of the released code             | an accelerator; not run yet |
| `released_cfg`  | that on its training sequences: some test generalisation | an accelerator; not run yet |
| `contrast_only` | `kitti360` without relation losses                       | an accelerator; not run yet |
| `contrast_E`    | with the Euclidean relation alone                        | an accelerator; not run yet |
| `contrast_H`    | with the hyperbolic relation alone                       | an accelerator; not run yet |
| `paper_EH`      | with both, as the paper's text has it                    | an accelerator; not run yet |

`released`, the three `contrast_*` and `paper_EH` with `_nosal` behind them have no saliency. On other data
the same variants are settings: `ABLATIONS`, which
`python -m benchmarks.ablation --config=configs/saliency_i2ploc.py:ablation` trains and prints.

Image to point R@1 to expect of `cpu`: 0.168 and 0.177 (two seeds) on the 333 queries of `test` with 371
submaps, of which 0.041 are right (chance); point to image 0.183 and 0.192.
"""

import ml_collections

from configs import common

_NO_SALIENCY = "_nosal"
_LAMBDA = 2.0  # of the relation losses; a weight below is λ times that of the relation

# The losses of every variant: weights of the Euclidean, the angle and the hyperbolic relation.
_RELATIONS = {
    "released": (0.0, _LAMBDA, 0.0),
    "contrast_only": (0.0, 0.0, 0.0),
    "contrast_E": (_LAMBDA, 0.0, 0.0),
    "contrast_H": (0.0, 0.0, _LAMBDA),
    "paper_EH": (_LAMBDA, 0.0, _LAMBDA),
}


def _loss(variant: str) -> dict[str, float]:
    """Weights in `config.loss` of a variant."""
    e, a, h = _RELATIONS[variant]
    return {"nce": 1.0, "relation_e": e, "relation_a": a, "relation_h": h}


def _settings(variant: str, saliency: bool) -> dict[str, float | bool]:
    """A variant as settings by dotted name."""
    losses = {f"loss.{name}": weight for name, weight in _loss(variant).items()}
    return losses | {"model.saliency.enabled": saliency}


# Losses by saliency: {table: {row: (settings, the row of `PUBLISHED` it stands beside)}}, for
# `python -m benchmarks.ablation`. The bodies of the paper's tables are not known to us.
ABLATIONS = {
    "losses": {
        f"{variant}{suffix}": (_settings(variant, saliency), None)
        for variant in _RELATIONS
        for suffix, saliency in (("", True), (_NO_SALIENCY, False))
    },
}


def get_config(arg: str = "cpu") -> ml_collections.ConfigDict:
    """One of the presets in the table above."""
    recipes = {
        "cpu": _cpu,
        "tiny": _tiny,
        "ablation": _ablation,
        "city": _city,
        "kitti360": _kitti360,
        "kitti360_persp": _kitti360_persp,
        "kitti": _kitti,
        "released": _released,
        "released_cfg": _released_cfg,
    }
    recipes |= {variant: _variant for variant in _RELATIONS if variant not in recipes}
    recipes |= {f"{variant}{_NO_SALIENCY}": recipes[variant] for variant in _RELATIONS}
    if arg not in recipes:
        raise ValueError(f"configs/saliency_i2ploc.py:{arg}: expected one of {sorted(recipes)}")
    config = recipes[arg](arg)
    if arg.endswith(_NO_SALIENCY):
        config.model.saliency.enabled = False
    return config


def _paper(arg: str) -> ml_collections.ConfigDict:
    """The network, losses and training of the released code, on no data yet."""
    config = common.base("saliency_i2ploc", arg)
    config.dtype = "bfloat16"

    data = config.data
    data.image_kind = "pano"  # or that of `data_prep i2p --image`, as image_00
    data.train_split = "train_query"  # or train, with the frames between the queries, too
    data.workers = 16
    data.augmentation = ml_collections.ConfigDict(
        {
            "image": {  # with this probability both: colour jitter, then a turn and a shift
                "probability": 0.5,
                "brightness": 0.5,
                "contrast": 0.5,
                "saturation": 0.4,
                "hue": 0.3,  # of the circle
                "degrees": 5.0,
                "shift": 0.1,  # of each side
            },
            "cloud_yaw": False,  # turn submaps alone by any angle; the paper's authors found it harmful
            # Not of the paper, image and submap together: how often the world is mirrored; degrees in ± that
            # the car is turned by (panoramas alone).
            "mirror": 0.0,
            "turn": 0.0,
            "sectors": 1,  # of as many frames, put together to one panorama and one submap
        }
    )

    config.model = ml_collections.ConfigDict()
    model = config.model
    model.image = ml_collections.ConfigDict(
        {
            "size": (512, 1024),  # multiples of the patch
            "variant": "vit_small",  # placerec_jax.modules.vit.VARIANTS
            "normalisation": "kitti360",  # or imagenet, half
            "position_init": "normal",  # or sincos: where tokens are counts from the first step
        }
    )
    model.image_encoder_weights = ""  # timm's or transformers' file of the variant; empty: from scratch
    model.checkpoint_weights = ""  # a released checkpoint, for all parts
    model.points = ml_collections.ConfigDict(
        {
            "num": 20480,  # of a submap, drawn without replacement
            "groups": 3072,
            "k": 32,  # points of a group
            "fps_start": "first",  # or farthest, which does not depend on the order of the points
            "exclude_radius": 0.0316227766,  # metres: no centre is nearer to the sensor, √1e-3
            "widths": (128, 256, 512, 1024),  # of the PointNet
            "width": 384,
            "depth": 12,
            "heads": 3,
            "position_std": 0.02,  # of the initial weights that embed the positions of groups
        }
    )
    model.saliency = ml_collections.ConfigDict(
        {
            "enabled": True,
            "source": "recomputed_cls",  # or forward_block: what the last block attended to
            "reduce": "sum",  # or mean, over the heads
            "squash": "sigmoid",  # nearly flat; or none, mean1, minmax
            "keep": 1.0,  # share of the tokens, the most salient first; the rest count for nothing
            "stop_gradient": True,  # the weights of tokens are taken as given
        }
    )
    model.discard_cls = False  # of the tokens that are aggregated
    model.image_aggregator = "netvlad"  # netvlad_original, gem, mean, cls, smd
    model.cloud_aggregator = "netvlad"
    model.descriptor_dim = 256
    model.contrast = ml_collections.ConfigDict(
        {
            "form": "joint",  # one softmax over both directions; or clip, one a direction
            "temperature": 0.07,
            "learnable": False,
            "exclude_radius": 0.0,  # metres, within which pairs are no negatives; 0: all are, as released
        }
    )
    model.relation = ml_collections.ConfigDict(
        {"curvature": 0.1, "clip_radius": 0.0}  # of the hyperbolic one; 0: descriptors are not shortened
    )
    model.remat = True  # compute activations again in the backward pass rather than keep them

    config.loss = ml_collections.ConfigDict(_loss("released"))

    # As released: what is compared in a loss is a micro-batch of 4. With `cached` it is all 256.
    config.train.gradients = "accumulated"
    config.train.batch_size = 256
    config.train.accumulate = 64

    optimizer = config.optimizer
    optimizer.name = "sgd"
    optimizer.momentum = 0.999
    optimizer.weight_decay = 1e-3
    optimizer.clip_norm = 0.0
    optimizer.schedule = "warmup_cosine_epochs"
    optimizer.warmup_start = 5e-6
    optimizer.warmup_epochs = 3
    optimizer.cosine_epochs = 100
    optimizer.floor = 1e-7

    evaluation = config.eval
    evaluation.evaluator = "cross_modal"
    evaluation.radius = 20.0  # metres on the ground plane, within which a submap is right
    evaluation.k = (1, 5, 10, 15, 20)
    evaluation.directions = ("image_to_point", "point_to_image", "image_to_image", "point_to_point")
    evaluation.queries_in_database = False
    evaluation.best_metric = "image_to_point_recall_at_1"
    evaluation.best_mode = "max"
    return config


def _rates(
    config: ml_collections.ConfigDict,
    image: float,
    points: float,
    aggregators: float,
    frozen_blocks: int,
    aggregator_decay: float = 1e-3,
) -> None:
    """Learning rates of the parts; the first blocks of the ViT stay as they are."""
    blocks = "|".join(str(i) for i in range(frozen_blocks))
    config.optimizer.groups = (
        (rf"^params/image_encoder/blocks_({blocks})/", "frozen"),
        ("^params/image_encoder/", (("learning_rate", image),)),
        ("^params/point_", (("learning_rate", points),)),
    )
    # All that is left: both aggregators, and a temperature that is learned.
    config.optimizer.learning_rate = aggregators
    config.optimizer.groups += (
        ("aggregator/", (("learning_rate", aggregators), ("weight_decay", aggregator_decay))),
    )


def _epochs(config: ml_collections.ConfigDict, pairs: int, epochs: int = 99) -> None:
    """Steps, schedule and evaluations for about so many training pairs; `data_prep i2p` prints how many."""
    steps = max(1, pairs // config.train.batch_size)
    config.optimizer.epoch_steps = steps
    config.train.steps = epochs * steps
    config.train.eval_every = config.train.checkpoint_every = 3 * steps
    config.train.log_every = 10


def _kitti360(arg: str) -> ml_collections.ConfigDict:
    config = _paper(arg)
    config.data.root = "data/kitti360/i2p"
    config.data.eval_split, config.data.test_split = "val", "test"
    _rates(config, image=1e-4, points=1e-5, aggregators=5e-4, frozen_blocks=8)
    _epochs(config, pairs=16_500)
    config.train.eval_examples = 5_000
    return config


def _kitti360_persp(arg: str) -> ml_collections.ConfigDict:
    config = _kitti360(arg)
    config.data.root, config.data.image_kind = "data/kitti360/i2p_persp", "image_00"
    config.model.image.size = (368, 1408)
    _rates(config, image=5e-5, points=5e-6, aggregators=1e-5, frozen_blocks=8)
    return config


def _kitti(arg: str) -> ml_collections.ConfigDict:
    """Contrast alone and no saliency, as the released config has it."""
    config = _kitti360(arg)
    config.data.root, config.data.image_kind = "data/kitti/i2p", "image_2"
    config.data.train_split = "train"
    config.model.image.size = (368, 1232)
    config.model.saliency.enabled = False
    config.loss.update(_loss("contrast_only"))
    _rates(config, image=1e-5, points=1e-6, aggregators=5e-5, frozen_blocks=12)
    config.train.batch_size = 384
    _epochs(config, pairs=20_000)
    return config


def _released(arg: str) -> ml_collections.ConfigDict:
    """The aggregators decay by their learning rate: a slip of the released code, kept to compare with it."""
    config = _kitti360(arg)
    _rates(config, image=1e-4, points=1e-5, aggregators=5e-4, frozen_blocks=8, aggregator_decay=5e-4)
    return config


def _released_cfg(arg: str) -> ml_collections.ConfigDict:
    config = _released(arg)
    config.data.scheme = "released_cfg"
    _epochs(config, pairs=21_000)
    return config


def _variant(arg: str) -> ml_collections.ConfigDict:
    config = _kitti360(arg)
    config.loss.update(_loss(arg.removesuffix(_NO_SALIENCY)))
    return config


def _city(arg: str) -> ml_collections.ConfigDict:
    """From scratch, so that nothing is frozen; a batch whose negatives are all of it."""
    config = _paper(arg)
    common.built_in_city(config, "i2p", "medium", "--image-size", "256x512")
    _from_scratch(config)
    config.model.image.size = (256, 512)
    config.train.gradients = "cached"
    config.train.batch_size, config.train.accumulate = 128, 16
    config.train.steps = 5_000
    config.train.log_every = 10
    config.train.eval_every = config.train.checkpoint_every = 500
    config.train.eval_examples = 1_000
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 250
    return config


def _from_scratch(config: ml_collections.ConfigDict) -> None:
    """AdamW for a network without pretrained weights, every frame of training, near pairs no negatives.

    Where tokens are counts from the first step: as published, positions begin far smaller than what is there.
    """
    config.data.train_split = "train"
    config.model.image.position_init = "sincos"
    config.model.points.position_std = 0.1
    config.model.contrast.exclude_radius = 20.0
    optimizer = config.optimizer
    optimizer.name = "adamw"
    optimizer.schedule = "cosine"
    optimizer.weight_decay = 0.05
    optimizer.clip_norm = 1.0


def _cpu(arg: str) -> ml_collections.ConfigDict:
    """A small network on the horizon of the panoramas and on what stands on the ground.

    A few streets are soon known by heart, by their colours, and then unseen ones are not found. Turned and
    mirrored pairs in all colours leave only the layout, which images and submaps share: where things stand
    must count from the first step. A temperature that starts high finds what is common before it tells pairs
    apart.
    """
    config = _paper(arg)
    common.built_in_city(
        config,
        "i2p",
        "small",
        *("--image-size", "64x256", "--pano-rows", "0.35,0.65"),  # 27 degrees up and down
        *("--remove-ground", "--max-points", "20000"),
    )
    config.dtype = "float32"
    config.data.workers = 0
    _from_scratch(config)
    augmentation = config.data.augmentation
    augmentation.mirror, augmentation.turn = 0.5, 180.0
    # A row of a panorama is an elevation, so nothing is shifted.
    augmentation.image.update(
        {"probability": 1.0, "saturation": 1.0, "hue": 0.5, "degrees": 0.0, "shift": 0.0}
    )
    model = config.model
    model.image.size, model.image.variant = (64, 256), "vit_micro"
    points = model.points
    points.num, points.groups, points.k = 512, 48, 8
    points.widths, points.width, points.depth, points.heads = (32, 64, 128, 128), 64, 2, 2
    model.contrast.temperature, model.contrast.learnable = 0.3, True
    model.remat = False
    config.train.gradients, config.train.accumulate = "whole", 1
    config.train.batch_size = 64
    config.train.steps = 1_500
    config.train.log_every = 50
    config.train.eval_every = config.train.checkpoint_every = 300
    config.train.eval_examples = 400
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 30
    config.eval.batch_size = 32
    config.eval.min_queries = config.eval.min_database = 300
    config.eval.target = ml_collections.ConfigDict(
        {"times_chance": {"image_to_point_recall_at_1": 3.0}}  # of the mean share of right submaps
    )
    return config


def _ablation(arg: str) -> ml_collections.ConfigDict:
    config = _cpu(arg)
    config.train.steps = config.train.eval_every = config.train.checkpoint_every = 500
    return config


def _tiny(arg: str) -> ml_collections.ConfigDict:
    """Seconds, for the tests: the smallest city, the narrowest network, a few steps."""
    config = _cpu(arg)
    common.built_in_city(config, "i2p", "tiny", "--image-size", "64x128")
    model = config.model
    model.image.size, model.image.variant = (64, 128), "vit_test"
    points = model.points
    points.num, points.groups, points.k = 256, 16, 8
    points.widths, points.width, points.depth, points.heads = (8, 16, 16, 32), 16, 2, 2
    model.descriptor_dim = 32
    config.train.batch_size = 8
    config.train.steps = 6
    config.optimizer.warmup_steps = 2
    config.train.log_every = 1
    config.train.eval_every = config.train.checkpoint_every = 3
    config.train.eval_examples = 16
    config.eval.batch_size = 8
    config.eval.target = ml_collections.ConfigDict()
    return config
