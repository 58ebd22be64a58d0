"""Cross-fusion loop closure detection: LiDAR scans to loops, taught by a camera (Yue et al., RA-L).

    python -m placerec_jax.train --config=configs/cross_fusion_lcd.py[:ARG] [--workdir=DIR]
    python -m placerec_jax.evaluate --config=configs/cross_fusion_lcd.py[:ARG] [--workdir=DIR]

| ARG                       | what                                            | hardware and time           |
|---------------------------|-------------------------------------------------|-----------------------------|
| `cpu` (bare)              | small network, built-in city `small`            | 1 CPU core, 5 min           |
| `tiny`                    | for the tests, a few steps                      | seconds                     |
| `city`                    | the paper's network, built-in city `medium`     | an accelerator; not run yet |
| `kitti`                   | the paper's: train 00, 05-07, 09, validate 08   | an accelerator; not run yet |
| `kitti360`                | that network on KITTI-360 (workdir of `kitti`)  | an accelerator; not run yet |
| `kitti_bev`               | LiDAR branch on BEV pictures: train 06, test 05 | 2 CPU cores                 |
| `kitti_bev_reverse`       | the same: train 05, test 06                     | 2 CPU cores                 |
| `kitti_bev_polar`         | `kitti_bev`, backbone turning with the scan     | 1 CPU core, 9 min           |
| `kitti_bev_polar_reverse` | the same: train 05, test 06                     | 2 CPU cores                 |

The variants of the paper are settings, commented below: `model.fusion` (BEVLCD without),
`model.position_encoder` (+P), backbone, encoding of the BEV, forms of the losses. `ABLATIONS` are its tables,
which `python -m benchmarks.ablation` trains and prints.

The bodies of the paper's result tables are not known to us, so there is no published figure to expect. Recall
at 1 to expect of `cpu`: 0.997 on queries from the other lane, 1.000 on reverse ones (Scan Context: 0.944 and
0.967), by `model.rings`; of `kitti_bev_polar` 0.945 on 05, 0.946 with every query turned
(docs/results/).
"""

import ml_collections

from configs import common

_BEVLCD = {"model.fusion.enabled": False}

# The tables of the paper: {table: {row: (settings, the row of `PUBLISHED` it stands beside)}}, for
# `python -m benchmarks.ablation`.
ABLATIONS = {
    "II": {
        "BEVLCD": (_BEVLCD | {"model.position_encoder": False}, None),
        "BEVLCD+P": (_BEVLCD, None),
        "FUSION": ({}, None),
    },
    "IV": {
        "no fusion": (_BEVLCD, None),
        "without F_CVTKB": ({"model.fusion.use_cvtkb": False}, None),
        "without F_GENKB": ({"model.fusion.use_genkb": False}, None),
        "without F_CVTKI": ({"model.fusion.use_cvtki": False}, None),
        "all": ({}, None),
    },
}


def get_config(arg: str = "cpu") -> ml_collections.ConfigDict:
    """One of the presets in the table above."""
    recipes = {
        "cpu": _cpu,
        "tiny": _tiny,
        "city": _city,
        "kitti": _kitti,
        "kitti360": _kitti360,
        "kitti_bev": _kitti_bev,
        "kitti_bev_reverse": _kitti_bev_reverse,
        "kitti_bev_polar": _kitti_bev_polar,
        "kitti_bev_polar_reverse": _kitti_bev_polar_reverse,
    }
    if arg not in recipes:
        raise ValueError(f"configs/cross_fusion_lcd.py:{arg}: expected one of {sorted(recipes)}")
    return recipes[arg](arg)


def _paper(arg: str) -> ml_collections.ConfigDict:
    """The paper's network and losses; what it leaves open is decided as in the commented values."""
    config = common.base("cross_fusion_lcd", arg)

    data = config.data
    data.augmentation = ml_collections.ConfigDict(  # of every scan for itself, uniform in ±: metres, degrees
        {"shift_xy": 3.0, "shift_z": 0.3, "tilt": 3.0, "yaw": 180.0}
    )
    data.negative_distance = 10.0  # metres; nearer frames that are no loop are not drawn
    data.near_negatives = 0.0  # share of negatives that lie no more than `near_reach` metres beyond that
    data.near_reach = 10.0
    data.label_cells = 1.0  # cells; how far apart matching cells of a pair may lie
    data.image_dropout = 0.0  # share of training images shown as zeros, as all are at evaluation
    data.query_yaw = 0.0  # degrees, uniform in ±: turns scans at evaluation

    config.model = ml_collections.ConfigDict()
    model = config.model
    model.bev = ml_collections.ConfigDict(
        {
            "input": "points",  # or density: stored pictures
            "encoding": "statistics",  # or height_slices; placerec_jax.data.scans.ENCODINGS
            "extent": (-32.0, 32.0, -32.0, 32.0),
            "cell": 0.2,
            "z_range": (-2.5, 1.5),
            "disc_radius": 0.0,  # metres, of pictures: what is farther out is emptied; 0: nothing
            "interpolation": "linear",  # of pictures that are moved; or nearest
        }
    )
    model.backbone = "n"  # t, s, n, l of ALIKE; or polar, which turns with the scan
    # Of backbone polar: (harmonics an order, channels) at strides 2, 4, 8; blur of the input in cells.
    model.polar = ml_collections.ConfigDict(
        {"levels": ((8, 24), (8, 48), (10, 64)), "dim": 64, "smoothing": 1.5}
    )
    model.image_backbone = "n"  # t, s, n, l of ALIKE
    model.image_crop = (384, 1152)  # rows, columns of the stored image about its middle
    model.image_factor = 2  # the crop is made so many times smaller
    model.num_keypoints = 512
    model.nms_radius = 2  # cells
    model.border = 3  # cells without key points
    model.links = 1024  # BEV cells that the camera sees, a multiple of num_keypoints
    model.link_pixels = 16  # pixels of one of them
    model.position_encoder = True  # "+P"
    model.position_bins = 64
    model.heads = 4  # of the attention of converters, generator and fusion
    model.clusters = 16  # of NetVLAD
    # A learned descriptor of how things lie about the sensor, beside NetVLAD (modules/ring_layout.py, not
    # of the paper): its share of squared distances (0: none); the channel of the BEV that it weighs, to which
    # power; blur in metres.
    model.rings = ml_collections.ConfigDict(
        {
            "share": 0.0,
            "channel": 0,
            "power": 0.5,
            "smoothing": 1.5,
            "rings": 30,
            "azimuths": 120,
            "frequencies": 20,
            "channels": 4,
            "hidden": 16,
            "layers": 2,
        }
    )
    model.fusion = ml_collections.ConfigDict(  # enabled False: BEVLCD; the others are the rows of Table IV
        {"enabled": True, "use_cvtkb": True, "use_genkb": True, "use_cvtki": True}
    )
    model.eval_image = "zero"  # or real
    model.renormalize_descriptor = False
    model.pose_dim = 2  # or 3: key points at the mean height of their cell
    model.descriptor_loss = "triplet"  # or contrastive: against all far scans of the batch
    model.margin = 0.5  # of the triplet loss
    model.temperature = 0.1  # of the contrastive loss
    model.loss_form = "split"  # or literal: eqs. 7 and 8 as printed, where errors of two branches cancel
    model.detach_targets = True  # of the losses of converters and generator
    model.sinkhorn = ml_collections.ConfigDict(  # LCDNet begins at eps_init 1.03
        {"iters": 5, "eps_init": 0.1, "gamma_init": 1.0, "shared": True}
    )

    config.loss = ml_collections.ConfigDict(
        {"score": 1.0, "triplet": 1.0, "pose": 1.0, "match": 0.05, "cvtb": 1.0, "cvti": 1.0, "gen": 1.0}
    )

    config.optimizer.name = "adam_l2"
    config.optimizer.schedule = "staircase"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 5e-6
    config.optimizer.decay_rate = 0.99
    config.optimizer.decay_steps = 586  # an epoch of KITTI's 3,517 frames with a loop
    config.optimizer.clip_norm = 10.0

    evaluation = config.eval
    evaluation.evaluator = "loop_closure"
    evaluation.protocol = "growing"
    evaluation.loop_distance = 4.0  # metres, 3-D
    evaluation.loop_gap = 50  # frames
    evaluation.first_query = 100
    evaluation.ap_policy = "standard"  # or lcdnet_p1, pairs
    evaluation.rotated_queries = False
    evaluation.real_image_pass = False
    evaluation.references = ("scan_context", "m2dp")
    evaluation.ransac = ml_collections.ConfigDict(  # lengths in cells
        {"hypotheses": 1000, "radius": 3.0, "min_separation": 5.0}
    )
    # The layout about the sensor, beside what is learned (ops/polar.py, not of the paper; nothing in it is
    # trained): its share of squared distances between descriptors (0: none); form magnitudes, or products,
    # which also know how rings lie to each other; the channel of the BEV that it sees, to which power; blur
    # in metres.
    evaluation.layout = ml_collections.ConfigDict(
        {"share": 0.0, "form": "magnitudes", "channel": 0, "power": 0.5, "smoothing": 1.2}
    )
    evaluation.min_inliers = 15
    evaluation.rerank = 0  # so many retrieved scans are also shown in the order of their inliers
    evaluation.pose_tolerance = 1.0  # metres
    evaluation.min_queries = 1  # with a loop, that a verdict needs
    evaluation.best_metric = "ap"
    evaluation.best_mode = "max"
    return config


def _lidar_alone(config: ml_collections.ConfigDict) -> None:
    """BEVLCD+P: no image branch, and no weights of its losses."""
    config.model.fusion.enabled = False
    for term in ("cvtb", "cvti", "gen"):
        del config.loss[term]


def _kitti(arg: str) -> ml_collections.ConfigDict:
    config = _paper(arg)
    config.dtype = "bfloat16"
    config.data.root = "data/kitti/lcd"
    config.data.test_split = "val"  # 08 is what the paper validates and reports
    config.data.workers = 16
    config.train.batch_size = 6  # triplets
    config.train.steps = 58_600  # 100 epochs
    config.train.eval_every = config.train.checkpoint_every = 2_930
    config.train.eval_examples = 4_071  # all of 08
    return config


def _kitti360(arg: str) -> ml_collections.ConfigDict:
    config = _kitti(arg)
    config.data.root = "data/kitti360/lcd"
    config.data.eval_split = config.data.test_split = "test"
    return config


def _city(arg: str) -> ml_collections.ConfigDict:
    config = _kitti(arg)
    common.built_in_city(config, "lcd", "medium")
    config.data.test_split = "test"
    config.model.image_crop, config.model.image_factor = (192, 576), 1  # its images are half as wide
    config.train.steps = 20_000
    config.train.eval_every = config.train.checkpoint_every = 1_000
    config.train.eval_examples = 1_000
    return config


def _cpu(arg: str) -> ml_collections.ConfigDict:
    """A coarse and wide BEV, a backbone that turns with the scan, a third of the image.

    The paper's window (±32 m, up to 1.5 m above the sensor) leaves out what tells streets of this city apart:
    how high the buildings are and where the next street begins. Window and rings were chosen on training and
    validation sequences.
    """
    config = _paper(arg)
    common.built_in_city(config, "lcd", "small")
    _turning(config)
    model = config.model
    model.bev.extent, model.bev.cell = (-80.0, 80.0, -80.0, 80.0), 1.0
    model.bev.z_range = (-1.0, 15.0)  # the ground looks the same everywhere
    config.data.augmentation.tilt = 0.5  # degrees: 3 would lift what stands 80 m away by 4 m
    config.data.augmentation.shift_xy = 0.5  # metres: passes in other lanes are shifts enough
    # Retrieval must tell 4 m from a little more, which far negatives do not teach.
    config.data.negative_distance, config.data.near_negatives = 5.0, 0.7
    config.model.temperature = 0.05
    config.data.image_dropout = 0.5  # no image is seen at evaluation: what is made of one must not be missed
    model.rings.update({"share": 0.8, "channel": 1, "power": 1.0, "smoothing": 3.0})  # of heights
    model.rings.update({"rings": 20, "channels": 2, "hidden": 8, "layers": 2})
    model.image_backbone = "t"
    model.image_crop, model.image_factor = (128, 384), 2
    model.num_keypoints, model.links, model.link_pixels = 128, 256, 8
    # The one loss of the image branch whose gradient reaches the BEV backbone: as large as the descriptor's
    # there, and against it.
    config.loss.cvti = 0.1
    config.train.batch_size = 6
    config.train.steps = 120
    config.train.log_every = 20
    config.train.eval_every = config.train.checkpoint_every = 60
    config.train.eval_examples = 400
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 20
    config.optimizer.groups = (("ring_layout", (("learning_rate", 1e-3),)),)  # () without rings
    config.eval.ransac.radius, config.eval.ransac.min_separation = 1.0, 2.0  # cells
    config.eval.layout.share = 0.0
    config.eval.min_queries = 300
    # Better than both references where they are weakest.
    config.eval.target = ml_collections.ConfigDict(
        {
            "figures": ("other_lane_recall_at_1", "reverse_recall_at_1"),
            "references": config.eval.references,
        }
    )
    return config


def _tiny(arg: str) -> ml_collections.ConfigDict:
    """Seconds, for the tests: the smallest city, the narrowest network, a few steps."""
    config = _cpu(arg)
    common.built_in_city(config, "lcd", "tiny")
    model = config.model
    model.bev.cell = 1.0
    model.image_crop, model.image_factor = (64, 128), 2
    model.num_keypoints, model.links, model.link_pixels = 32, 64, 4
    model.position_bins, model.clusters = 16, 4
    config.train.batch_size = 8
    config.train.steps = 6
    config.optimizer.warmup_steps = 2
    config.train.log_every = 1
    config.train.eval_every = config.train.checkpoint_every = 3
    config.train.eval_examples = 48
    config.eval.batch_size = 16
    config.eval.first_query = 0
    config.eval.references = ()
    config.eval.target = ml_collections.ConfigDict()
    config.eval.ransac.hypotheses = 64
    return config


def _kitti_bev(arg: str) -> ml_collections.ConfigDict:
    """Pictures of 151x151 cells of 0.4 m, four rows of zeros below and five above.

    The last checkpoint counts: both sequences are known by heart long before, so that none can be chosen on
    the one that is trained.
    """
    config = _paper(arg)
    _lidar_alone(config)
    config.data.root = "data/kitti_bev/lcd"
    config.data.train_split = config.data.eval_split = "06"
    config.data.test_split = "05"
    config.data.augmentation.shift_z = config.data.augmentation.tilt = 0.0
    bev = config.model.bev
    bev.input, bev.cell, bev.extent = "density", 0.4, (-31.8, 32.2, -31.8, 32.2)
    bev.disc_radius = 25.0  # the pictures end at 25 m
    config.model.backbone = "t"
    config.model.num_keypoints = 256
    config.train.batch_size = 6
    config.train.steps = 600
    config.train.log_every = 50
    config.train.eval_every = config.train.checkpoint_every = config.train.steps
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    evaluation = config.eval
    evaluation.protocol = "fixed"  # that of the published network, beside the growing database
    evaluation.database = ml_collections.ConfigDict({"05": (0, 999), "06": (0, 599)})
    evaluation.query = ml_collections.ConfigDict({"05": (1200, 2750), "06": (800, 1100)})
    evaluation.hit_distance = 5.0
    evaluation.rotated_queries = True
    evaluation.rerank = 5
    evaluation.references = ("pixels", "polar_fft")
    return config


def _turning(config: ml_collections.ConfigDict) -> None:
    """A backbone that turns with the scan, the layout beside its descriptor, every far scan a negative."""
    config.model.backbone = "polar"
    config.eval.layout.share = 0.5
    config.model.descriptor_loss = "contrastive"
    config.model.clusters = 32
    # Metres: beside the contrastive loss, which is of order 1, they would set the direction of every step.
    config.loss.pose, config.loss.match = 0.1, 0.005


def _kitti_bev_polar(arg: str) -> ml_collections.ConfigDict:
    config = _kitti_bev(arg)
    _turning(config)
    config.data.augmentation.shift_xy = 5.0  # metres: as far as a hit may lie
    config.train.batch_size = 12
    config.train.steps = 400
    config.train.eval_every = config.train.checkpoint_every = config.train.steps
    config.optimizer.learning_rate = 2e-3
    return config


def _reverse(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Trains on what was the test and the other way round."""
    data = config.data
    data.train_split, data.test_split = data.test_split, data.train_split
    data.eval_split = data.train_split
    return config


def _kitti_bev_reverse(arg: str) -> ml_collections.ConfigDict:
    return _reverse(_kitti_bev(arg))


def _kitti_bev_polar_reverse(arg: str) -> ml_collections.ConfigDict:
    return _reverse(_kitti_bev_polar(arg))
