"""MapLocNet: surround cameras to a pose on an OpenStreetMap raster.

    python -m placerec_jax.train --config=configs/maplocnet.py[:ARG] [--workdir=DIR]

| ARG              | what                                             | hardware and time             |
|------------------|--------------------------------------------------|-------------------------------|
| `cpu` (bare)     | small network, built-in city, ±10 m and ±15°     | 2 CPU cores, 6.5 min          |
| `ablation`       | `cpu` with half the steps, for `ABLATIONS`       | 2 CPU cores, 4 min            |
| `tiny`           | for the tests, a few steps                       | seconds                       |
| `city`           | the paper's network, built-in city `medium`      | an accelerator; not run yet   |
| `nuscenes`       | the paper's recipe, ±30 m and ±30°, your data    | 8 accelerators; not run yet   |
| `nuscenes_front` | the same with the front camera alone             | 8 accelerators; not run yet   |
| `argoverse`      | Argoverse 1, seven cameras; `--init_from` nuScenes | 8 accelerators; not run yet |
| `argoverse_six`  | the same without the camera straight ahead       | 8 accelerators; not run yet   |
| `argoverse_front` | the same with the camera straight ahead alone   | 8 accelerators; not run yet   |

The variants of the paper are settings of `config.model`, commented below: head, splat, map_channels,
osm_style, fine_tokens, coarse_grad, pose_units, stage_skip. `ABLATIONS` are its tables, which
`python -m benchmarks.ablation` trains and prints.

Median errors to expect of `cpu`: 1.2 m and 1.1° (doing nothing: 8.3 m, 6.9°). Of `nuscenes`: Table I of the
paper, which nobody has reproduced with this code yet.
"""

import ml_collections

from configs import common

SURROUND = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")
RING = (
    "ring_front_left",
    "ring_front_center",
    "ring_front_right",
    "ring_side_left",
    "ring_side_right",
    "ring_rear_left",
    "ring_rear_right",
)
# The six of them that leave the least out of sight; the paper does not say which six it used.
RING_SIX = tuple(name for name in RING if name != "ring_front_center")

_FRONT = {"model.num_cameras": 1, "data.dropped_cameras": 0}

# The tables of the paper: {table: {row: (settings, the row of `PUBLISHED` it stands beside)}}, for
# `python -m benchmarks.ablation`. Rows of I to III belong to nuScenes' cameras, those of IV to Argoverse's.
ABLATIONS = {
    "I": {
        "exhaustive voting, 1 camera": (
            _FRONT | {"data.cameras": ("CAM_FRONT",), "model.head": "exhaustive"},
            ("I", "OrienterNet", 1),
        ),
        "one stage, 1 camera": (
            _FRONT | {"data.cameras": ("CAM_FRONT",), "model.head": "fr_onestage"},
            ("I", "One-stage", 1),
        ),
        "two stages, 1 camera": (_FRONT | {"data.cameras": ("CAM_FRONT",)}, ("I", "MapLocNet", 1)),
        "exhaustive voting, 6 cameras": ({"model.head": "exhaustive"}, None),
        "DETR, 6 cameras": ({"model.head": "detr"}, ("I", "DETR", 6)),
        "CA, 6 cameras": ({"model.head": "ca"}, ("I", "CA", 6)),
        "one stage, 6 cameras": ({"model.head": "fr_onestage"}, ("I", "One-stage", 6)),
        "two stages, 6 cameras": ({}, ("I", "MapLocNet", 6)),
    },
    "II": {
        "roads, buildings and nodes": ({}, ("I", "MapLocNet", 6)),
        "roads and buildings": (
            {"model.map_channels": ("road", "building")},
            ("II", "lanes and buildings", 6),
        ),
        "roads": ({"model.map_channels": ("road",)}, ("II", "lanes", 6)),
    },
    "III": {
        "pose, BEV and map losses": ({}, ("I", "MapLocNet", 6)),
        "pose and BEV losses": ({"loss.map": 0.0}, ("III", "pose and BEV losses", 6)),
        "pose loss": ({"loss.map": 0.0, "loss.bev": 0.0}, ("III", "pose loss", 6)),
    },
    "IV": {
        "exhaustive voting, 1 camera": (
            _FRONT | {"data.cameras": ("ring_front_center",), "model.head": "exhaustive"},
            ("IV", "OrienterNet", 1),
        ),
        "two stages, 1 camera": (_FRONT | {"data.cameras": ("ring_front_center",)}, ("IV", "MapLocNet", 1)),
        "two stages, 6 cameras": (
            {"data.cameras": RING_SIX, "model.num_cameras": 6},
            ("IV", "MapLocNet", 6),
        ),
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
        "nuscenes_front": _nuscenes_front,
        "argoverse": _argoverse,
        "argoverse_six": _argoverse_six,
        "argoverse_front": _argoverse_front,
    }
    if arg not in recipes:
        raise ValueError(f"configs/maplocnet.py:{arg}: expected one of {sorted(recipes)}")
    return recipes[arg](arg)


def _paper(arg: str) -> ml_collections.ConfigDict:
    """The network and noise of the paper; its widths are fitted to the parameters and MACs of its Table I."""
    config = common.base("maplocnet", arg)
    config.dtype = "bfloat16"

    data = config.data
    data.cameras = SURROUND
    data.noise_xy = 30.0  # metres, uniform in ± on each axis
    data.noise_yaw = 30.0  # degrees
    data.draws = 1  # noisy patches a training frame
    data.resize = (0.193 / 0.22, 0.225 / 0.22)
    data.bottom_cut = (0.0, 0.22)
    data.flip = 0.5
    data.dropped_cameras = 1

    config.model = ml_collections.ConfigDict()
    model = config.model
    model.num_cameras = 6
    model.image_size = (128, 352)
    model.depths = (4.0, 60.0, 1.0)  # first, last (excluded), step, metres
    model.z_range = (-10.0, 10.0)
    model.bev_extent = (-64.0, 64.0, -32.0, 32.0)
    model.map_extent = (-64.0, 64.0, -64.0, 64.0)
    model.cell = 0.5
    model.head = "fr"  # fr, fr_onestage, detr, ca, exhaustive
    model.splat = "segment_sum"  # placerec_jax.ops.splat.MODES; polar_matmul on a TPU
    model.map_channels = ("road", "building", "node")  # what the network is shown of the map
    model.osm_style = "maplocnet"  # or orienternet: class numbers, embedded
    model.osm_embedding = 16  # channels a class, of osm_style orienternet
    # convention: tensorflow or torch, which pad and normalise differently; that of the weights, if any.
    model.image_trunk = ml_collections.ConfigDict(
        {"name": "efficientnet_b0", "drop_path": 0.2, "convention": "tensorflow"}
    )
    model.image_weights = ""  # EfficientNet-B0 of torchvision or timm, .pth or .safetensors; or ""
    model.map_weights = ""  # the same of VGG-16
    model.feature_stride = 16
    model.neck_width = 256
    model.neck_align_corners = False
    model.context = 64
    model.bev_widths = (64, 128, 256)
    model.bev_blocks = (2, 2, 2)
    model.bev_decoder_widths = (192, 64)
    model.map_depth = "conv4_3"
    model.map_padding = "zeros"  # or replicate
    model.map_widths = (64, 128, 256, 512)
    model.map_decoder_widths = (128, 64, 64)
    model.coarse_dim = 64
    model.fine_dim = 32
    model.registration = ml_collections.ConfigDict(
        {
            "dim": 128,
            "layers": 3,
            "heads": 8,
            "mlp_dim": 2048,
            "dropout": 0.1,
            "scale": 1.0,
            "stride": 4,
            "norm": "post",
        }
    )

    model.fine_tokens = 32  # a side, of the fine stage: as many as the coarse stage has, or twice
    model.coarse_grad = "none"  # how the fine loss reaches the coarse stage: none, warp, target, both
    model.pose_units = "m_deg"  # of the pose losses: m_deg, m_rad, normalised (by the largest offset)
    model.stage_skip = (
        False  # add the coarse stage's tokens to the fine stage's; they carry its loss back, too
    )
    model.segmentation_weights = (1.0, 1.0, 1.0)  # of cells that are drivable, building, node; others have 1
    # Of head exhaustive: degrees between turns; the closer look's reach in metres and degrees; fft or conv.
    model.voting = ml_collections.ConfigDict(
        {
            "dim": 8,
            "turn_step": 1.5,
            "fine_reach": 2.0,
            "fine_turn": 3.0,
            "fine_turn_step": 0.5,
            "correlation": "fft",
        }
    )

    config.loss = ml_collections.ConfigDict({"coarse": 1.0, "fine": 1.0, "bev": 1.0, "map": 1.0})

    config.optimizer.learning_rate = 1e-4
    config.optimizer.weight_decay = 1e-7
    config.optimizer.clip_norm = 5.0

    evaluation = config.eval
    evaluation.evaluator = "pose"
    evaluation.thresholds = (1.0, 2.0, 5.0, 10.0)  # metres and degrees
    evaluation.best_metric = "position_median"
    evaluation.best_mode = "min"
    # What a run is held against: medians at most this share of doing nothing, on at least this many frames.
    evaluation.target = ml_collections.ConfigDict({"position_median": 0.5, "orientation_median": 0.5})
    evaluation.min_queries = 300
    return config


def _nuscenes(arg: str) -> ml_collections.ConfigDict:
    config = _paper(arg)
    config.data.root = "data/nuscenes/maploc"
    config.data.eval_split = config.data.test_split = "val"
    config.data.workers = 16
    config.train.batch_size = 64  # 8 for each of 8 accelerators
    config.train.steps = 28_130 * 200 // 64
    config.train.eval_every = config.train.checkpoint_every = 4_000
    return config


def _nuscenes_front(arg: str) -> ml_collections.ConfigDict:
    config = _nuscenes(arg)
    config.model.num_cameras = 1
    config.data.cameras = ("CAM_FRONT",)
    config.data.dropped_cameras = 0
    return config


def _argoverse(arg: str) -> ml_collections.ConfigDict:
    """Argoverse 1 Tracking. Its 1920x1200 images fill the width at 0.1833, where nuScenes' do at 0.22."""
    config = _nuscenes(arg)
    config.data.root = "data/argoverse/maploc"
    config.data.cameras = RING
    config.model.num_cameras = len(RING)
    config.train.steps = 20_000  # the paper gives no schedule for the fine-tuning
    config.train.eval_every = config.train.checkpoint_every = 1_000
    return config


def _argoverse_six(arg: str) -> ml_collections.ConfigDict:
    config = _argoverse(arg)
    config.data.cameras = RING_SIX
    config.model.num_cameras = len(RING_SIX)
    return config


def _argoverse_front(arg: str) -> ml_collections.ConfigDict:
    config = _argoverse(arg)
    config.data.cameras = ("ring_front_center",)
    config.model.num_cameras = 1
    config.data.dropped_cameras = 0
    return config


def _city(arg: str) -> ml_collections.ConfigDict:
    config = _paper(arg)
    common.built_in_city(config, "maploc", "medium")
    config.data.workers = 16
    config.train.batch_size = 64
    config.train.steps = 20_000
    config.train.eval_every = config.train.checkpoint_every = 1_000
    return config


def _cpu(arg: str) -> ml_collections.ConfigDict:
    """Half the paper's resolution and range, narrow, noise of ±10 m and ±15°.

    What made it learn within minutes, each seen on the built-in city (docs/results/maplocnet-cpu.md):
    pre-norm layers; many small steps, at a rate that is held until the fine stage has found the offset along
    the street; offsets scaled so that the last layer reaches metres early; several offsets for every pass
    over the images; segmentation weighted so that the camera BEV is sharp before the offsets need it; and a
    fixed crop, under which a pixel's row tells its distance.
    """
    config = _paper(arg)
    common.built_in_city(config, "maploc", "small")
    config.dtype = "float32"

    data = config.data
    data.noise_xy, data.noise_yaw = 10.0, 15.0
    data.draws = 4
    data.dropped_cameras = 0
    data.resize = (1.0, 1.0)
    data.bottom_cut = (0.11, 0.11)

    model = config.model
    model.image_size = (64, 176)
    model.depths = (2.0, 34.0, 1.0)
    model.bev_extent = (-32.0, 32.0, -16.0, 16.0)
    model.map_extent = (-32.0, 32.0, -32.0, 32.0)
    model.cell = 1.0
    # Plain convolutions, which a CPU computes at several times the rate of EfficientNet's depthwise ones.
    model.image_trunk = ml_collections.ConfigDict(
        {"name": "resnet", "stem": 16, "widths": (24, 48, 64), "blocks": (1, 1, 1)}
    )
    model.feature_stride = 8
    model.neck_width = 48
    model.context = 24
    model.bev_widths = (24, 32, 48)
    model.bev_blocks = (1, 1, 1)
    model.bev_decoder_widths = (40, 24)
    model.map_widths = (8, 16, 32, 48)
    model.map_decoder_widths = (32, 24, 16)
    model.coarse_dim = 24
    model.fine_dim = 12
    model.registration.update(
        {"layers": 2, "mlp_dim": 256, "heads": 4, "dropout": 0.0, "scale": 8.0, "norm": "pre"}
    )

    model.fine_tokens = 8
    model.voting.fine_reach = 4.0

    config.loss.bev, config.loss.map = 10.0, 2.0

    config.train.batch_size = 4
    config.train.steps = 2_400
    config.train.log_every = 25
    config.train.eval_every = config.train.checkpoint_every = 400
    config.train.eval_examples = 160
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup_steps = 100
    config.optimizer.hold = 5 / 7
    return config


def _ablation(arg: str) -> ml_collections.ConfigDict:
    """`cpu` in half the steps: what tells variants apart in four minutes a run."""
    config = _cpu(arg)
    config.train.steps = 1_200
    config.train.eval_every = config.train.checkpoint_every = 600
    config.optimizer.hold = 0.85
    return config


def _tiny(arg: str) -> ml_collections.ConfigDict:
    """Seconds, for the tests: the smallest city, the narrowest network, a few steps."""
    config = _cpu(arg)
    common.built_in_city(config, "maploc", "tiny")
    model = config.model
    model.image_size = (32, 96)
    model.image_trunk.update({"stem": 8, "widths": (8, 16, 16)})
    model.depths = (2.0, 34.0, 4.0)
    model.neck_width = model.context = 16
    model.bev_widths, model.bev_decoder_widths = (8, 8, 16), (16, 8)
    model.map_widths, model.map_decoder_widths = (8, 8, 8, 16), (16, 8, 8)
    model.coarse_dim = model.fine_dim = 8
    model.registration.update({"dim": 16, "layers": 1, "mlp_dim": 32})
    config.data.draws = 2
    config.train.batch_size = 8
    config.train.steps = 6
    config.optimizer.warmup_steps = 2
    config.train.log_every = 1
    config.train.eval_every = config.train.checkpoint_every = 3
    config.train.eval_examples = 8
    config.eval.batch_size = 8
    config.eval.min_queries = 1
    return config
