"""EINet: the place of six camera images and a LiDAR sweep, on the NUSC-PR benchmark.

    python -m placerec_jax.train    --config=configs/einet.py[:ARG] [--workdir=DIR]
    python -m placerec_jax.evaluate --config=configs/einet.py[:ARG] [--workdir=DIR]

| ARG                        | what                                            | hardware and time           |
|----------------------------|-------------------------------------------------|-----------------------------|
| `cpu` (bare)               | small network, built-in city, both of its towns | 2 CPU cores                 |
| `ablation`                 | `cpu` with fewer steps, for `ABLATIONS`         | 2 CPU cores                 |
| `tiny`                     | for the tests, a few steps                      | seconds                     |
| `city`                     | the paper's network on the same city            | an accelerator; not run yet |
| `nuscenes`                 | the paper's recipe, boston-seaport, supervised  | an accelerator; not run yet |
| `nuscenes_self_supervised` | the same, places not given                      | an accelerator; not run yet |
| `rL`, `rC`                 | `nuscenes` without depth supervision, colours   | an accelerator; not run yet |
| `camera`, `lidar`          | `nuscenes` with one branch alone                | an accelerator; not run yet |
| `overlap_transformer`      | baseline of `nuscenes`: range images            | an accelerator; not run yet |
| `cvtnet`                   | baseline: range and bird's-eye views in bands   | an accelerator; not run yet |
| `lcpr`                     | baseline: images and range image side by side   | an accelerator; not run yet |

On other data the variants are settings: `ABLATIONS`, which `python -m benchmarks.ablation` trains and prints.
The paper trains at one location and evaluates at four: `--config.data.locations` says where tuples come from
(() everywhere), `--config.eval.locations` where places are looked for.

An epoch of `nuscenes` is taken for 7,000 tuples; `python -m data_prep nusc_pr` prints how many there are.
With another number set optimizer.decay_steps to 5 and train.steps to 20 times that (over the batch).

What to expect of `cpu` is not known: it has not been run to its end, and its target is not shown to be met.
Training-free references on the same queries: AR@1 of 94 % (FFT of range images, Scan Context) and 70 % (range
rows), chance 1.4 %; of queries without their own scene, on another lane or in the other direction alone, 81,
77, 56 and 1.2 %.
"""

import ml_collections

from configs import common

_NUSCENES_TUPLES = 7_000  # boston-seaport, supervised; an estimate

# The variants of the paper and its baselines, as settings by dotted name.
_VARIANTS = {
    "rL": {"loss.depth": 0.0},
    "rC": {"model.render_rgb": False},
    "camera": {"model.modality": "camera"},
    "lidar": {"model.modality": "lidar"},
    "overlap_transformer": {"model.network": "overlap_transformer", "model.render_rgb": False},
    "cvtnet": {"model.network": "cvtnet", "model.render_rgb": False},
    "lcpr": {"model.network": "lcpr", "model.render_rgb": False},
}

# {table: {row: (settings, the row of `PUBLISHED` it stands beside)}}, for `python -m benchmarks.ablation`.
ABLATIONS = {
    "variants": {
        "EINet": ({}, ("I", "EINet")),
        "EINet-rL, no depth supervision": (_VARIANTS["rL"], ("II", "EINet-rL")),
        "EINet-rC, no colours on points": (_VARIANTS["rC"], ("II", "EINet-rC")),
        "EINet, cameras alone": (_VARIANTS["camera"], None),
        "EINet, LiDAR alone": (_VARIANTS["lidar"], None),
        "OverlapTransformer": (_VARIANTS["overlap_transformer"], ("I", "OverlapTransformer")),
        "CVTNet": (_VARIANTS["cvtnet"], ("I", "CVTNet")),
        "LCPR": (_VARIANTS["lcpr"], ("I", "LCPR")),
    },
}


def get_config(arg: str = "cpu") -> ml_collections.ConfigDict:
    """One of the presets in the table above."""
    recipes = {
        "cpu": _cpu,
        "ablation": _ablation,
        "tiny": _tiny,
        "city": _city,
        "nuscenes": _nuscenes,
        "nuscenes_self_supervised": _nuscenes_self_supervised,
    }
    recipes |= dict.fromkeys(_VARIANTS, _variant)
    if arg not in recipes:
        raise ValueError(f"configs/einet.py:{arg}: expected one of {sorted(recipes)}")
    return recipes[arg](arg)


def _paper(arg: str) -> ml_collections.ConfigDict:
    """The network and training of the paper, on no data yet; what it leaves open is as docs say."""
    config = common.base("einet", arg)
    config.dtype = "bfloat16"  # of the networks; depth, projection and losses stay float32

    data = config.data
    data.scheme = "supervised"  # supervised_paper, self_supervised, self_supervised_paper
    data.locations = ()  # whose tuples are trained on; (): all
    data.positives, data.negatives = 2, 4  # of a tuple
    data.workers = 16
    data.eval_split, data.test_split = "database+val", "database+test"
    # Colours alone, not of the paper; with this probability all of them.
    data.augmentation = ml_collections.ConfigDict(
        {"probability": 0.0, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
    )

    config.model = ml_collections.ConfigDict()
    model = config.model
    model.network = "einet"  # or a baseline: overlap_transformer, cvtnet, lcpr
    model.modality = "fused"  # of einet: fused, camera, lidar
    model.image_size = (352, 640)  # multiples of 32
    model.image_backbone = "resnet34"  # or resnet18; resnet_mini for CPUs
    model.image_weights = ""  # ResNet of torchvision or timm, .pth or .safetensors; or ""
    # Cross-view transformers: at which levels of the encoder (0 is the finest), how many blocks.
    model.cvt = ml_collections.ConfigDict({"levels": (0, 1, 2, 3, 4), "blocks": 4, "heads": 8})
    model.decoder_channels = (16, 32, 64, 128, 256)  # finest first
    model.depth_start = 0.2  # metres that a fresh decoder predicts: a disparity of a half, as SurroundDepth
    model.range_image = ml_collections.ConfigDict(
        {
            "size": (32, 1056),  # of sweeps, as prepared
            "camera_rows": 352,  # of what the cameras' depth is projected into; columns as those of sweeps
            "fov_up": 10.0,  # degrees
            "fov_down": -30.0,
            "camera_leg": "auto",  # built for the rows; or by name: leg352, ot64
            "lidar_leg": "auto",
        }
    )
    model.range_units = "normalised"  # or metres, with -1 where nothing is
    model.render_rgb = True  # colours of the cameras on the points of the sweep; False: EINet-rC
    model.points = 34_816  # of a sweep, for the losses
    # Of every range image: channels of leg and transformer, of a token.
    model.tokens = ml_collections.ConfigDict(
        {"leg_width": 128, "dim": 128, "width": 256, "heads": 4, "mlp_dim": 1024}
    )
    model.fusion_stages = 2
    model.clusters = 64
    model.descriptor_dim = 256
    # Of the baselines, beside what they share with EINet.
    model.cvtnet = ml_collections.ConfigDict(
        {
            "ranges": (0.0, 15.0, 30.0, 45.0, 60.0),
            "heights": (-4.0, -1.0, 0.0, 2.0, 12.0),
        }  # edges of bands, m
    )
    model.lcpr = ml_collections.ConfigDict({"image_backbone": "resnet18", "clusters": 32})
    model.use_posenet = True
    model.pose_width = 256
    model.triplet = ml_collections.ConfigDict({"form": "hinge", "margin": 0.5})  # or paper, as printed
    model.depth_reduction = "mean"  # over points; or sum, as printed
    model.reproj_mode = "scatter"  # as printed, which hardly teaches rotation; or sample
    model.remat = True  # compute activations again in the backward pass rather than keep them

    # λ_t, λ_d, λ_r; 0: not computed. depth 0 is EINet-rL.
    config.loss = ml_collections.ConfigDict({"triplet": 1.0, "depth": 0.01, "reprojection": 0.01})

    config.train.batch_size = 1  # tuples: 7 frames, the paper's batch
    optimizer = config.optimizer
    optimizer.name = "adamw"  # without decay it is Adam
    optimizer.weight_decay = 0.0
    optimizer.clip_norm = 0.0
    optimizer.learning_rate = 1e-5
    optimizer.schedule = "staircase"  # halved after every 5 epochs
    optimizer.decay_rate = 0.5
    optimizer.decay_steps = 1

    evaluation = config.eval
    evaluation.evaluator = "places"
    evaluation.radius = 9.0  # metres on the ground plane, within which a place is right
    evaluation.k = (1, 5, 10, 20)
    evaluation.locations = ()  # where places are looked for; (): everywhere
    evaluation.best_metric = "recall_at_1"
    evaluation.best_mode = "max"
    # Training-free descriptors of the sweep, scored by the same code.
    evaluation.references = ("range_fft", "range_rows", "scan_context")
    return config


def _epochs(config: ml_collections.ConfigDict, tuples: int, epochs: int = 20) -> None:
    """Steps, schedule and evaluations for about so many training tuples."""
    steps = max(1, tuples // config.train.batch_size)
    config.optimizer.decay_steps = 5 * steps
    config.train.steps = epochs * steps
    config.train.eval_every = config.train.checkpoint_every = steps
    config.train.log_every = 50


def _nuscenes(arg: str) -> ml_collections.ConfigDict:
    config = _paper(arg)
    config.data.root = "data/nuscenes/nusc_pr"
    config.data.locations = ("boston-seaport",)
    config.train.eval_examples = 4_000
    _epochs(config, _NUSCENES_TUPLES)
    return config


def _nuscenes_self_supervised(arg: str) -> ml_collections.ConfigDict:
    """Tuples from single scenes. There is no validation split: take `evaluate --checkpoint=last`, as the best
    is chosen on the test split."""
    config = _nuscenes(arg)
    config.data.scheme = "self_supervised"
    config.data.eval_split = config.data.test_split
    return config


def _variant(arg: str) -> ml_collections.ConfigDict:
    config = _nuscenes(arg)
    config.update_from_flattened_dict(_VARIANTS[arg])
    return config


# The city's streets are driven on several dates in both directions and on both lanes. At the paper's δ of 1 m
# nearly every frame of another lane would be in the database; 4 m is how far its keyframes are apart.
_CITY_RULE = (
    *("--delta", "4", "--gamma", "boston-seaport=150,singapore-onenorth=105"),
    *("--by-date", "--date-threshold", "180"),  # of the self-supervised scheme
)


def _built_in_city(config: ml_collections.ConfigDict) -> None:
    """Both presets of the city share a folder; its images are 160x90, its sweeps have 360 columns."""
    sizes = ("--image-size", "64x128", "--range-image", "32x264")
    common.built_in_city(config, "nusc_pr", "revisited", *_CITY_RULE, *sizes)
    config.model.image_size = (64, 128)
    config.model.range_image.size = (32, 264)
    config.model.range_image.camera_rows = 64
    config.model.points = 11_520
    config.model.depth_start = 10.0  # from 0.2 m it would take the small network most of its steps
    config.eval.min_database = 300


def _city(arg: str) -> ml_collections.ConfigDict:
    """The paper's network from scratch."""
    config = _paper(arg)
    _built_in_city(config)
    config.train.batch_size = 4
    config.train.steps = 5_000
    config.train.eval_every = config.train.checkpoint_every = 500
    config.train.eval_examples = 1_200
    config.optimizer.learning_rate = 1e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 250
    config.optimizer.clip_norm = 1.0
    return config


def _cpu(arg: str) -> ml_collections.ConfigDict:
    """A narrow network on small images."""
    config = _paper(arg)
    _built_in_city(config)
    config.dtype = "float32"
    config.data.workers = 0
    config.data.augmentation.probability = 0.5

    model = config.model
    model.image_backbone = "resnet_mini"
    model.cvt.update({"levels": (3, 4), "blocks": 1, "heads": 4})
    model.decoder_channels = (8, 8, 16, 16, 32)
    model.points = 4_096
    model.tokens.update({"leg_width": 64, "dim": 32, "width": 64, "heads": 4, "mlp_dim": 128})
    model.clusters = 16
    model.lcpr.update({"image_backbone": "resnet_mini", "clusters": 16})
    model.pose_width = 32
    model.remat = False

    config.train.batch_size = 2
    config.train.steps = 1_000
    config.train.log_every = 50
    config.train.eval_every = config.train.checkpoint_every = 250
    config.train.eval_examples = 600
    optimizer = config.optimizer
    optimizer.schedule = "cosine"
    optimizer.learning_rate = 1e-3
    optimizer.warmup_steps = 50
    optimizer.clip_norm = 1.0
    config.eval.batch_size = 16
    # Queries whose right entries of other drives stand on the other lane or head the other way.
    moved = "exclude_same_scene_other_lane_or_reverse_recall_at_1"
    config.eval.target = ml_collections.ConfigDict(
        {
            "times_chance": {"recall_at_1": 10.0},
            "figures": (moved,),
            "references": config.eval.references,
        }
    )
    return config


def _ablation(arg: str) -> ml_collections.ConfigDict:
    """`cpu` in fewer steps: what tells variants apart in four minutes a run."""
    config = _cpu(arg)
    config.train.steps = 400
    config.train.eval_every = config.train.checkpoint_every = 200
    return config


def _tiny(arg: str) -> ml_collections.ConfigDict:
    """Seconds, for the tests: the smallest network, a few steps."""
    config = _cpu(arg)
    sizes = ("--image-size", "32x64", "--range-image", "32x132")
    common.built_in_city(config, "nusc_pr", "tiny_revisited", "--delta", "4", "--gamma", "150", *sizes)
    model = config.model
    model.image_size = (32, 64)
    model.image_backbone = "resnet_test"
    model.cvt.update({"levels": (3, 4), "blocks": 1, "heads": 2})
    model.decoder_channels = (4, 4, 8, 8, 8)
    model.range_image.size = (32, 132)
    model.range_image.camera_rows = 32
    model.points = 512
    model.tokens.update({"leg_width": 32, "dim": 16, "width": 16, "heads": 2, "mlp_dim": 16})
    model.clusters = 4
    model.lcpr.update({"image_backbone": "resnet_test", "clusters": 4})
    model.descriptor_dim = 16
    model.pose_width = 8
    config.train.batch_size = 8
    config.train.steps = 6
    config.optimizer.warmup_steps = 2
    config.train.log_every = 1
    config.train.eval_every = config.train.checkpoint_every = 3
    config.train.eval_examples = 16
    config.eval.batch_size = 8
    config.eval.min_database = 1
    config.eval.target = ml_collections.ConfigDict()
    return config
