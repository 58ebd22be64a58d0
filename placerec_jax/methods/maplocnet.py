"""MapLocNet: surround cameras to a pose on an OpenStreetMap raster (Wu et al., arXiv 2407.08561).

Frames. p and p' are the true and the noisy ego pose in the map frame; the offset T satisfies p = p'·T. A
landmark at q in the true ego frame is found at T·q in the patch, which is cut in the noisy ego frame. The
network predicts T in two stages, T = T2·T1 (eq. 2): T1 from coarse features, T2 from fine features after the
camera BEV was moved by T1. `model.head` chooses among the paper's variants and exhaustive voting (`HEADS`).

`data.draws` patches (K), each with its own noise, share one pass over the images of a training frame: B
frames give B·K registrations.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from placerec_jax.data import augmentation
from placerec_jax.data.map_patch import LocationRaster
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.data.records import decode_image
from placerec_jax.errors import ConfigError, one_of
from placerec_jax.methods import Encoder, Pretrained, run_encoders
from placerec_jax.modules.conv import ConvBatchNormReLU
from placerec_jax.modules.efficientnet import EfficientNetB0
from placerec_jax.modules.registration import CrossRegression, FusedRegression, QueryRegression
from placerec_jax.modules.resnet import ResNetStage, ResNetTrunk
from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.modules.torch_names import efficientnet_b0_layouts, vgg16_layouts
from placerec_jax.modules.unet import UNetDecoder
from placerec_jax.modules.vgg import VGG16Trunk
from placerec_jax.modules.voting import PoseVoting
from placerec_jax.ops import bev, splat, voting
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.resize import upsample_bilinear
from placerec_jax.ops.rigid import se2_compose, se2_inverse, wrap_angle

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB
IMAGE_STD = (0.229, 0.224, 0.225)

# Channels of the maps table, and which of them the network reads and is asked to draw.
RASTER_CHANNELS = ("road", "building", "node", "drivable")
MAP_INPUTS = ("road", "building", "node")
SEGMENTATION_CLASSES = ("drivable", "building", "node")


# Styles of the map: three coverage planes, or three planes of class numbers that are embedded (OrienterNet,
# arXiv 2304.02009), with how many classes each has beside "nothing".
OSM_STYLES = ("maplocnet", "orienternet")
OSM_CLASSES = {"areas": 7, "ways": 10, "nodes": 33}

# What registers camera and map features, by stage.
HEADS = {
    "fr": (FusedRegression, FusedRegression),
    "fr_onestage": (FusedRegression,),
    "detr": (QueryRegression,),
    "ca": (CrossRegression,),
    "exhaustive": (PoseVoting, PoseVoting),
}
COARSE_GRADIENTS = ("none", "warp", "target", "both")
POSE_UNITS = ("m_deg", "m_rad", "normalised")


def _row(table: str, model: str, cameras: int, **recalls: tuple[float, ...]) -> dict[str, Any]:
    return {"table": table, "model": model, "cameras": cameras, **recalls}


_FULL = {"longitudinal": (32.08, 54.20, 81.97, 93.34), "lateral": (48.71, 71.91, 90.66, 97.11)}
_FULL_TURN = (58.61, 84.10, 96.23, 98.62)

# Recall in percent at 1, 2, 5, 10 m and degrees. The orientation of Table II's "lanes" and of Table III's
# "pose loss" repeat rows of Table I digit for digit, which may be a slip of the paper.
PUBLISHED_PROTOCOL = "nuScenes validation, Table IV: Argoverse 1; offsets uniform in ±30 m and ±30°"
PUBLISHED = (
    _row(
        "I", "OrienterNet", 1, position=(5.83, 18.92, 52.83, 66.21), orientation=(32.13, 41.56, 65.63, 80.41)
    ),
    _row("I", "One-stage", 1, position=(7.14, 22.39, 60.48, 83.90), orientation=(35.68, 60.40, 87.49, 95.31)),
    _row("I", "MapLocNet", 1, position=(8.96, 27.05, 64.57, 85.86), orientation=(40.36, 65.31, 89.66, 96.17)),
    _row("I", "DETR", 6, position=(10.40, 29.76, 66.81, 86.81), orientation=(42.59, 68.05, 90.83, 96.63)),
    _row("I", "CA", 6, position=(13.36, 35.16, 70.54, 88.25), orientation=(48.15, 73.09, 92.66, 97.34)),
    _row(
        "I", "One-stage", 6, position=(16.32, 40.56, 74.27, 89.69), orientation=(53.71, 78.13, 94.49, 98.05)
    ),
    _row("I", "MapLocNet", 6, position=(20.10, 45.54, 77.70, 91.89), orientation=_FULL_TURN, **_FULL),
    _row(
        "II",
        "lanes and buildings",
        6,
        longitudinal=(28.07, 48.75, 77.64, 90.79),
        lateral=(41.48, 64.73, 88.00, 96.54),
        orientation=(51.44, 75.74, 93.61, 97.67),
    ),
    _row(
        "II",
        "lanes",
        6,
        longitudinal=(22.92, 41.53, 72.58, 88.80),
        lateral=(34.66, 58.12, 85.72, 96.04),
        orientation=(42.59, 68.05, 90.83, 96.63),
    ),
    _row(
        "III",
        "pose and BEV losses",
        6,
        longitudinal=(27.21, 47.62, 76.89, 90.49),
        lateral=(40.48, 63.73, 87.69, 96.52),
        orientation=(50.01, 74.54, 93.20, 97.53),
    ),
    _row(
        "III",
        "pose loss",
        6,
        longitudinal=(21.31, 39.21, 70.56, 87.95),
        lateral=(32.32, 55.62, 84.85, 95.83),
        orientation=(40.36, 65.31, 89.66, 96.17),
    ),
    _row(
        "IV", "OrienterNet", 1, position=(8.56, 21.20, 54.90, 72.16), orientation=(18.72, 31.07, 63.05, 81.97)
    ),
    _row(
        "IV", "MapLocNet", 1, position=(9.12, 27.61, 66.31, 88.71), orientation=(41.22, 66.54, 90.32, 96.53)
    ),
    _row(
        "IV", "MapLocNet", 6, position=(23.26, 47.24, 79.13, 94.33), orientation=(62.35, 86.28, 96.24, 98.61)
    ),
)


# --- What the network reads


def bev_grid(cfg: ml_collections.ConfigDict) -> Grid2D:
    """The camera BEV, in the true ego frame."""
    return Grid2D(tuple(cfg.model.bev_extent), cfg.model.cell)


def map_grid(cfg: ml_collections.ConfigDict) -> Grid2D:
    """The map patch, in the noisy ego frame. As long as the BEV and wider, centred on the ego alike."""
    return Grid2D(tuple(cfg.model.map_extent), cfg.model.cell)


def pose_unit(cfg: ml_collections.ConfigDict) -> np.ndarray:
    """(3,) m, m and rad that one unit of the heads' output and of the pose losses stands for."""
    largest = np.array([cfg.data.noise_xy, cfg.data.noise_xy, np.deg2rad(cfg.data.noise_yaw)])
    units = {"m_deg": np.array([1.0, 1.0, np.pi / 180]), "m_rad": np.ones(3), "normalised": largest}
    unit = units[one_of(cfg.model, "config.model", "pose_units", POSE_UNITS)]
    if not unit.all():
        raise ConfigError(
            "config.model.pose_units 'normalised' needs config.data.noise_xy and noise_yaw above 0"
        )
    return unit


def pose_lattices(cfg: ml_collections.ConfigDict) -> tuple[voting.PoseLattice, voting.PoseLattice]:
    """The poses that exhaustive voting compares: all that the noise can draw, then those around one."""
    v, degree = cfg.model.voting, np.pi / 180
    return (
        voting.PoseLattice(
            cfg.data.noise_xy, 2 * cfg.model.cell, cfg.data.noise_yaw * degree, v.turn_step * degree
        ),
        voting.PoseLattice(v.fine_reach, cfg.model.cell, v.fine_turn * degree, v.fine_turn_step * degree),
    )


def posterior_grid(cfg: ml_collections.ConfigDict) -> Grid2D:
    """Where `position_posterior` of exhaustive voting lies, in the noisy ego frame."""
    lattice = pose_lattices(cfg)[0]
    edge = (lattice.half[0] + 0.5) * lattice.cell
    return Grid2D((-edge, edge, -edge, edge), lattice.cell)


def features(cfg: ml_collections.ConfigDict, training: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one example; training examples hold `data.draws` noisy patches, others one."""
    cameras, draws = cfg.model.num_cameras, cfg.data.draws if training else 1
    bev_shape, map_shape = bev_grid(cfg).shape, map_grid(cfg).shape
    shape = jax.ShapeDtypeStruct
    return {
        "images": shape((cameras, *cfg.model.image_size, 3), np.uint8),
        "intrinsics": shape((cameras, 3, 3), np.float32),
        "ego_T_camera": shape((cameras, 4, 4), np.float32),
        "camera_mask": shape((cameras,), np.bool_),
        "map_patch": shape((draws, *map_shape, len(MAP_INPUTS)), np.uint8),
        "bev_label": shape((*bev_shape, len(SEGMENTATION_CLASSES)), np.uint8),
        "map_label": shape((draws, *map_shape, len(SEGMENTATION_CLASSES)), np.uint8),
        "true_pose": shape((draws, 3), np.float32),
        "index": shape((), np.int32),
    }


class Source:
    """Frames of a split with noisy map patches cut beside them."""

    def __init__(
        self, cfg: ml_collections.ConfigDict, prepared: PreparedFolder, split: str, training: bool
    ) -> None:
        self._frames = prepared.table("frames")
        self._records = prepared.split(cfg.data.scheme, split)
        self._training = training
        self._bev, self._map = bev_grid(cfg), map_grid(cfg)
        self._draws = cfg.data.draws if training else 1
        self._noise = np.array([cfg.data.noise_xy, cfg.data.noise_xy, np.deg2rad(cfg.data.noise_yaw)])
        self._image_size = tuple(cfg.model.image_size)
        self._augmentation = augmentation.ImageAugmentation(
            tuple(cfg.data.resize), tuple(cfg.data.bottom_cut), cfg.data.flip
        )
        self._dropped_cameras = cfg.data.dropped_cameras if training else 0
        self._cameras = _camera_indices(cfg, prepared.manifest["cameras"])
        self._inputs, self._labels = {}, {}
        read_inputs = {"maplocnet": _coverage, "orienternet": _classes}[
            one_of(cfg.model, "config.model", "osm_style", OSM_STYLES)
        ]
        maps = prepared.table("maps")
        for record in (maps[i] for i in range(len(maps))):
            location = LocationRaster(record["raster"], record["origin"], float(record["cell"]))
            self._labels[record["location"]] = location
            self._inputs[record["location"]] = read_inputs(cfg, location, record)

    def __len__(self) -> int:
        return len(self._records)

    def example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Example `index` of the split; noise and augmentation are drawn from `rng`."""
        record_number = int(self._records[index])
        record = self._frames.read(record_number, images=False)
        # Noise first: the offsets of an evaluation frame do not depend on the image settings.
        offsets = rng.uniform(-1.0, 1.0, (self._draws, 3)) * self._noise
        images, intrinsics = self._images(record, rng)
        map_pose_ego = record["map_pose_ego"]
        map_pose_noisy = se2_compose(map_pose_ego[None], se2_inverse(offsets))
        inputs, labels = self._inputs[record["location"]], self._labels[record["location"]]
        classes = tuple(RASTER_CHANNELS.index(name) for name in SEGMENTATION_CLASSES)
        patches = np.stack([inputs(self._map, pose) for pose in map_pose_noisy])
        return {
            "images": images,
            "intrinsics": intrinsics,
            "ego_T_camera": record["ego_T_camera"][self._cameras],
            "camera_mask": self._camera_mask(rng),
            "map_patch": patches,
            "bev_label": labels.sample_nearest(self._bev, map_pose_ego, classes),
            "map_label": np.stack([labels.sample_nearest(self._map, p, classes) for p in map_pose_noisy]),
            "true_pose": offsets.astype(np.float32),
            "index": np.int32(record_number),
        }

    def _images(self, record: dict[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        images = np.empty((len(self._cameras), *self._image_size, 3), np.uint8)
        intrinsics = np.empty((len(self._cameras), 3, 3), np.float32)
        for slot, camera in enumerate(self._cameras):
            image = decode_image(record["images"][camera])
            if self._training:
                homography = augmentation.random_homography(
                    image.shape[:2], self._image_size, self._augmentation, rng
                )
            else:
                homography = augmentation.evaluation_homography(
                    image.shape[:2], self._image_size, self._augmentation
                )
            images[slot] = augmentation.warp_image(image, homography, self._image_size)
            intrinsics[slot] = homography @ record["intrinsics"][camera]
        return images, intrinsics

    def _camera_mask(self, rng: np.random.Generator) -> np.ndarray:
        # Cameras are dropped by mask, never by shape: one compilation serves all.
        mask = np.ones(len(self._cameras), np.bool_)
        mask[rng.permutation(len(self._cameras))[: self._dropped_cameras]] = False
        return mask


CutMap = Callable[[Grid2D, np.ndarray], np.ndarray]  # (grid, map_pose_grid) → (*grid.shape, 3) uint8


def _coverage(cfg: ml_collections.ConfigDict, location: LocationRaster, record: dict[str, Any]) -> CutMap:
    """Coverage in 0..255 of `MAP_INPUTS`; those not among `model.map_channels` are zero."""
    del record
    unknown = sorted(set(cfg.model.map_channels) - set(MAP_INPUTS))
    if unknown:
        raise ConfigError(
            f"config.model.map_channels names {unknown[0]!r}; expected a choice of {MAP_INPUTS}"
        )
    channels = tuple(RASTER_CHANNELS.index(name) for name in MAP_INPUTS)
    reduced = location.reduced(cfg.model.cell, channels)
    shown = np.array([name in cfg.model.map_channels for name in MAP_INPUTS])
    return lambda grid, pose: np.rint(reduced.sample_bilinear(grid, pose) * shown).astype(np.uint8)


def _classes(cfg: ml_collections.ConfigDict, location: LocationRaster, record: dict[str, Any]) -> CutMap:
    """Class numbers of area, way and node, 0 where there is none."""
    if tuple(cfg.model.map_channels) != MAP_INPUTS:
        raise ConfigError("config.model.map_channels chooses among the planes of osm_style 'maplocnet' only")
    if "classes" not in record:
        raise ConfigError(
            "config.model.osm_style is 'orienternet', but the maps of config.data.root have no 'classes': "
            "convert the dataset again with this version of `python -m data_prep maploc`"
        )
    if list(record["classes"].shape[2:]) != [len(OSM_CLASSES)]:
        raise ConfigError(
            f"the maps of config.data.root: expected classes of shape (H, W, {len(OSM_CLASSES)}), for "
            f"{list(OSM_CLASSES)}; found {record['classes'].shape}"
        )
    for plane, (name, count) in enumerate(OSM_CLASSES.items()):
        largest = int(record["classes"][..., plane].max())
        if largest > count:
            raise ConfigError(
                f"the maps of config.data.root: expected at most {count} classes of {name}; found {largest}"
            )
    classes = LocationRaster(record["classes"], location.origin, location.cell)
    planes = tuple(range(len(OSM_CLASSES)))
    return lambda grid, pose: classes.sample_nearest(grid, pose, planes)


def _camera_indices(cfg: ml_collections.ConfigDict, stored: list[str]) -> list[int]:
    """Positions of the configured cameras among the stored ones."""
    names = list(cfg.data.cameras)
    missing = [name for name in names if name not in stored]
    if missing or len(names) != cfg.model.num_cameras:
        raise ConfigError(
            f"config.data.cameras: expected {cfg.model.num_cameras} (config.model.num_cameras) of the stored "
            f"cameras {stored}; found {names}"
        )
    return [stored.index(name) for name in names]


def source(cfg: ml_collections.ConfigDict, prepared: PreparedFolder, split: str, training: bool) -> Source:
    """Examples of `split`; see `Source`."""
    return Source(cfg, prepared, split, training)


# --- The network


class ImageNeck(nn.Module):
    """(M, h, w, C1), (M, h/2, w/2, C2) taps → (M, h, w, D) depth distribution and (M, h, w, C) context."""

    width: int
    depth_bins: int
    context: int
    align_corners: bool = False  # of the upsampling; Lift, Splat, Shoot has True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, fine: jax.Array, coarse: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        x = jnp.concatenate([fine, upsample_bilinear(coarse, 2, self.align_corners)], axis=-1)
        for _ in range(2):
            x = ConvBatchNormReLU(self.width, dtype=self.dtype)(x, train)
        x = nn.Conv(self.depth_bins + self.context, (1, 1), dtype=self.dtype, name="depth_context")(x)
        logits, context = jnp.split(x.astype(jnp.float32), [self.depth_bins], axis=-1)
        return jax.nn.softmax(logits, axis=-1), context


class BevEncoder(nn.Module):
    """(B, H, W, C) → stride 2 and stride 8 features: a 7x7 stem and the first three stages of ResNet-18."""

    widths: tuple[int, int, int]
    blocks: tuple[int, int, int] = (2, 2, 2)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        x = ConvBatchNormReLU(self.widths[0], kernel=7, stride=2, dtype=self.dtype, name="stem")(x, train)
        fine = ResNetStage(self.widths[0], self.blocks[0], 1, dtype=self.dtype)(x, train)
        x = ResNetStage(self.widths[1], self.blocks[1], 2, dtype=self.dtype)(fine, train)
        return fine, ResNetStage(self.widths[2], self.blocks[2], 2, dtype=self.dtype)(x, train)


class BevDecoder(nn.Module):
    """Stride 2 and 8 features → coarse (B, H/2, W/2, D_c), fine (B, H, W, D_f), logits (B, H, W, 3)."""

    widths: tuple[int, int]
    coarse_dim: int
    fine_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, fine: jax.Array, coarse: jax.Array, train: bool) -> dict[str, jax.Array]:
        x = jnp.concatenate([upsample_bilinear(coarse, 4), fine], axis=-1)
        for _ in range(2):
            x = ConvBatchNormReLU(self.widths[0], dtype=self.dtype)(x, train)
        half = x
        x = ConvBatchNormReLU(self.widths[1], dtype=self.dtype)(upsample_bilinear(x, 2), train)
        return _heads(half, x, self.coarse_dim, self.fine_dim, self.dtype)


class MapDecoder(nn.Module):
    """VGG skips → coarse (B, H/2, W/2, D_c), fine (B, H, W, D_f), logits (B, H, W, 3)."""

    widths: tuple[int, int, int]
    coarse_dim: int
    fine_dim: int
    dtype: Any = jnp.float32
    padding: str = "zeros"

    @nn.compact
    def __call__(self, skips: list[jax.Array], train: bool) -> dict[str, jax.Array]:
        levels = UNetDecoder(self.widths, self.dtype, self.padding)(skips, train)
        return _heads(levels[1], levels[0], self.coarse_dim, self.fine_dim, self.dtype)


def _heads(
    half: jax.Array, full: jax.Array, coarse_dim: int, fine_dim: int, dtype: Any
) -> dict[str, jax.Array]:
    """Matching features at two scales and segmentation logits, for the compact module that calls it.

    `fine_dim` 0: a head with one stage reads coarse features only.
    """
    logits = nn.Conv(len(SEGMENTATION_CLASSES), (1, 1), dtype=dtype, name="segmentation")(full)
    found = {
        "coarse": nn.Conv(coarse_dim, (1, 1), dtype=dtype, name="coarse")(half),
        "logits": logits.astype(jnp.float32),
    }
    if fine_dim:
        found["fine"] = nn.Conv(fine_dim, (1, 1), dtype=dtype, name="fine")(full)
    return {name: constrain_batch(value) for name, value in found.items()}


class MapEmbedding(nn.Module):
    """(M, H, W, 3) class numbers of area, way and node → (M, H, W, 3·dim)."""

    dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, classes: jax.Array) -> jax.Array:
        planes = [
            # In float32: the gradient sums thousands of cells into a row.
            nn.Embed(count + 1, self.dim, name=name)(classes[..., i])
            for i, (name, count) in enumerate(OSM_CLASSES.items())
        ]
        return jnp.concatenate(planes, axis=-1).astype(self.dtype)


def _image_trunk(cfg: ml_collections.ConfigDict, dtype: Any) -> nn.Module:
    """The backbone that `model.image_trunk` names; its taps are called `reduction_<log2 of the stride>`."""
    if cfg.name == "efficientnet_b0":
        return EfficientNetB0(cfg.drop_path, dtype, cfg.convention)
    if cfg.name == "resnet":
        return ResNetTrunk(tuple(cfg.widths), tuple(cfg.blocks), cfg.stem, dtype=dtype)
    raise ConfigError(
        f"config.model.image_trunk.name is {cfg.name!r}; expected 'efficientnet_b0' or 'resnet'"
    )


def _regression_stages(
    cfg: ml_collections.ConfigDict, stages: tuple[type[nn.Module], ...], dtype: Any
) -> list[nn.Module]:
    """One module a stage. `fine_tokens` of the fine stage lie on each side of its grid of tokens."""
    m = cfg.model
    settings = {
        name: m.registration[name]
        for name in ("dim", "layers", "heads", "mlp_dim", "dropout", "scale", "stride", "norm")
    }
    modules = [stages[0](**settings, dtype=dtype)]
    if len(stages) == 2:
        most = map_grid(cfg).shape[0] // m.registration.stride
        pool = {most: 1, most // 2: 2}.get(m.fine_tokens)
        if pool is None or (m.stage_skip and pool == 1):
            raise ConfigError(
                f"config.model.fine_tokens is {m.fine_tokens}; expected {most // 2}, as many as the coarse "
                f"stage has, or {most} (without stage_skip) for this map and registration.stride"
            )
        modules.append(stages[1](**settings, pool=pool, dtype=dtype))
    return modules


def _voting_stages(
    cfg: ml_collections.ConfigDict, stages: tuple[type[nn.Module], ...], dtype: Any
) -> list[nn.Module]:
    """Voting over all poses on coarse features, then around the best on fine ones."""
    v, (lattice, fine_lattice) = cfg.model.voting, pose_lattices(cfg)
    half = 2 * cfg.model.cell
    coarse, fine = stages
    return [
        coarse(
            v.dim,
            Grid2D(bev_grid(cfg).extent, half),
            Grid2D(map_grid(cfg).extent, half),
            lattice,
            v.correlation,
            dtype,
        ),
        fine(v.dim, bev_grid(cfg), map_grid(cfg), fine_lattice, v.correlation, dtype),
    ]


def _coarse_gradient(cfg: ml_collections.ConfigDict, way: str) -> bool:
    """Whether the fine loss reaches the coarse stage by `way`: 'warp' or 'target'.

    By default by neither: a target must not chase the prediction.
    """
    return one_of(cfg.model, "config.model", "coarse_grad", COARSE_GRADIENTS) in (way, "both")


class MapLocNet(nn.Module):
    """The whole model; submodule names are the components that `describe` reports."""

    cfg: ml_collections.FrozenConfigDict

    def setup(self) -> None:
        m, dtype = self.cfg.model, jnp.dtype(self.cfg.dtype)
        stages = HEADS[one_of(self.cfg.model, "config.model", "head", HEADS)]
        one_of(self.cfg.model, "config.model", "pose_units", POSE_UNITS)
        one_of(self.cfg.model, "config.model", "coarse_grad", COARSE_GRADIENTS)
        if m.head != "fr" and (m.stage_skip or m.coarse_grad != "none"):
            raise ConfigError(
                f"config.model.stage_skip and coarse_grad belong to head 'fr'; the head is {m.head!r}"
            )
        fine_dim = m.fine_dim if len(stages) == 2 else 0
        self.image_trunk = _image_trunk(m.image_trunk, dtype)
        self.image_neck = ImageNeck(
            m.neck_width, self.depth_bins, m.context, m.neck_align_corners, dtype=dtype
        )
        self.bev_encoder = BevEncoder(tuple(m.bev_widths), tuple(m.bev_blocks), dtype=dtype)
        self.bev_decoder = BevDecoder(tuple(m.bev_decoder_widths), m.coarse_dim, fine_dim, dtype=dtype)
        if one_of(self.cfg.model, "config.model", "osm_style", OSM_STYLES) == "orienternet":
            self.map_embedding = MapEmbedding(m.osm_embedding, dtype=dtype)
        self.map_trunk = VGG16Trunk(m.map_depth, tuple(m.map_widths), dtype, m.map_padding)
        self.map_decoder = MapDecoder(
            tuple(m.map_decoder_widths), m.coarse_dim, fine_dim, dtype, m.map_padding
        )
        make = _voting_stages if m.head == "exhaustive" else _regression_stages
        self.localize_coarse, *finer = make(self.cfg, stages, dtype)
        if finer:
            self.localize_fine = finer[0]

    @property
    def depth_bins(self) -> int:
        first, last, step = self.cfg.model.depths
        return len(np.arange(first, last, step))

    def encode_frame(
        self,
        images: jax.Array,
        intrinsics: jax.Array,
        ego_T_camera: jax.Array,
        camera_mask: jax.Array,
        train: bool,
    ) -> dict[str, jax.Array]:
        """(B, N, h, w, 3) uint8, (B, N, 3, 3), (B, N, 4, 4), (B, N) → features and logits of the BEV."""
        m, grid = self.cfg.model, bev_grid(self.cfg)
        batch, cameras, height, width, _ = images.shape
        pixels = (images.astype(jnp.float32) / 255.0 - jnp.asarray(IMAGE_MEAN)) / jnp.asarray(IMAGE_STD)
        taps = self.image_trunk(
            constrain_batch(pixels.reshape(batch * cameras, height, width, 3)), train=train
        )
        level = int(np.log2(m.feature_stride))
        depth, context = self.image_neck(taps[f"reduction_{level}"], taps[f"reduction_{level + 1}"], train)
        lead = (batch, cameras)
        view = splat.View((height, width), tuple(m.depths), intrinsics, ego_T_camera, camera_mask)
        pooled = splat.MODES[one_of(self.cfg.model, "config.model", "splat", splat.MODES)](
            context.reshape(*lead, *context.shape[1:]),
            depth.reshape(*lead, *depth.shape[1:]),
            view,
            grid,
            tuple(m.z_range),
        )
        fine, coarse = self.bev_encoder(constrain_batch(pooled), train)
        return self.bev_decoder(fine, coarse, train)

    def encode_map(self, map_patch: jax.Array, train: bool) -> dict[str, jax.Array]:
        """(B, K, H, W, 3) uint8 → features and logits of the B·K patches.

        255 where a cell is covered, or class numbers for `osm_style` 'orienternet'.
        """
        patches = map_patch.reshape(-1, *map_patch.shape[2:])
        if self.cfg.model.osm_style == "orienternet":
            patches = self.map_embedding(patches)
        else:
            patches = patches.astype(jnp.float32) / 255.0
        return self.map_decoder(self.map_trunk(constrain_batch(patches)), train)

    def register(
        self, frame: dict[str, jax.Array], patch: dict[str, jax.Array], train: bool
    ) -> dict[str, jax.Array]:
        """Features of B frames and B·K patches → offsets (B·K, 3) in (m, m, rad).

        `coarse` is T1; with two stages, `residual` is T2 and `pose` their composition T2·T1; with one, `pose`
        is T1. Exhaustive voting looks for its residual about the ego, `pose` = T1·T2, and adds the
        log-probabilities of both stages' lattices.
        """
        register = self._register_voting if self.cfg.model.head == "exhaustive" else self._register_regression
        draws = patch["coarse"].shape[0] // frame["coarse"].shape[0]
        repeated = {
            name: jnp.repeat(frame[name], draws, axis=0) for name in ("coarse", "fine") if name in frame
        }
        return register(repeated, patch, train)

    def _register_regression(
        self, frame: dict[str, jax.Array], patch: dict[str, jax.Array], train: bool
    ) -> dict[str, jax.Array]:
        unit = jnp.asarray(pose_unit(self.cfg), jnp.float32)
        offset, tokens = self.localize_coarse(frame["coarse"], patch["coarse"], train)
        coarse = offset * unit
        if len(HEADS[self.cfg.model.head]) == 1:
            return {"coarse": coarse, "pose": coarse}
        warped_by = coarse if _coarse_gradient(self.cfg, "warp") else jax.lax.stop_gradient(coarse)
        moved = self._move(frame["fine"], warped_by)
        earlier = {"earlier": tokens} if self.cfg.model.stage_skip else {}
        offset, _ = self.localize_fine(moved, patch["fine"], train, **earlier)
        residual = offset * unit
        return {"coarse": coarse, "residual": residual, "pose": se2_compose(residual, warped_by)}

    def _register_voting(
        self, frame: dict[str, jax.Array], patch: dict[str, jax.Array], train: bool
    ) -> dict[str, jax.Array]:
        del train  # voting has neither dropout nor batch statistics
        lattice, fine_lattice = pose_lattices(self.cfg)
        posterior = self.localize_coarse(frame["coarse"], patch["coarse"])
        coarse = jax.lax.stop_gradient(voting.mode_pose(posterior, lattice))
        # The map is moved, not the BEV: around(q) = map(T1·q), and the ego is looked for about the origin.
        around = self._move_map(patch["fine"], se2_inverse(coarse))
        known = self._move_map(jnp.ones_like(patch["fine"][..., :1]), se2_inverse(coarse))
        fine_posterior = self.localize_fine(frame["fine"], around, known.astype(jnp.float32))
        residual = voting.mode_pose(fine_posterior, fine_lattice)
        return {
            "coarse": coarse,
            "residual": residual,
            "pose": se2_compose(coarse, residual),
            "log_posterior": posterior,
            "fine_log_posterior": fine_posterior,
        }

    def _move(self, features: jax.Array, pose: jax.Array) -> jax.Array:
        """Fine camera features moved by T1 onto the grid of the map."""
        moved = bev.warp_se2(features.astype(jnp.float32), pose, bev_grid(self.cfg), map_grid(self.cfg))
        return constrain_batch(moved.astype(features.dtype))

    def _move_map(self, features: jax.Array, pose: jax.Array) -> jax.Array:
        """Fine map features moved by a pose, on their own grid; zero where they came from outside."""
        moved = bev.warp_se2(features.astype(jnp.float32), pose, map_grid(self.cfg), map_grid(self.cfg))
        return constrain_batch(moved.astype(features.dtype))

    def __call__(self, batch: dict[str, jax.Array], train: bool) -> dict[str, Any]:
        return run_encoders(self, encoders(self.cfg), batch, train)


def model(cfg: ml_collections.ConfigDict) -> MapLocNet:
    """The network `cfg` describes."""
    return MapLocNet(ml_collections.FrozenConfigDict(cfg))


def pretrained(cfg: ml_collections.ConfigDict) -> dict[str, Pretrained]:
    """Published weights of the two backbones; a plain convolutional image trunk has none."""
    m = cfg.model
    published = m.image_trunk.name == "efficientnet_b0"
    image = efficientnet_b0_layouts(m.image_trunk.convention) if published else ()
    return {
        "image_trunk": Pretrained("config.model.image_weights", m.image_weights, image),
        "map_trunk": Pretrained("config.model.map_weights", m.map_weights, vgg16_layouts(m.map_depth)),
    }


def encoders(cfg: ml_collections.ConfigDict) -> dict[str, Encoder]:
    """Camera BEV, map, and the registration of the two."""
    del cfg  # the same for every configuration
    return {
        "frame": Encoder(("images", "intrinsics", "ego_T_camera", "camera_mask"), MapLocNet.encode_frame),
        "map": Encoder(("map_patch",), MapLocNet.encode_map),
        "registration": Encoder(("frame", "map"), MapLocNet.register),
    }


# --- Losses and predictions


Terms = dict[str, tuple[jax.Array, jax.Array]]


def loss(
    cfg: ml_collections.ConfigDict, representations: dict[str, Any], batch: dict[str, jax.Array]
) -> Terms:
    """Eqs. 3-6: of the coarse offset, of what it leaves to the fine stage, and BCE of both maps.

    Offsets by smooth-L1 or, for exhaustive voting, by the negative log-likelihood of the true pose.
    """
    pose_loss = _voting_loss if cfg.model.head == "exhaustive" else _regression_loss
    map_label = batch["map_label"].reshape(-1, *batch["map_label"].shape[2:])
    return {
        **pose_loss(cfg, representations["registration"], batch["true_pose"].reshape(-1, 3)),
        "bev": _cross_entropy(cfg, representations["frame"]["logits"], batch["bev_label"]),
        "map": _cross_entropy(cfg, representations["map"]["logits"], map_label),
    }


def _regression_loss(cfg: ml_collections.ConfigDict, stages: dict[str, jax.Array], true: jax.Array) -> Terms:
    terms = {"coarse": _smooth_l1(cfg, stages["coarse"], true)}
    if "residual" in stages:
        coarse = stages["coarse"]
        coarse = coarse if _coarse_gradient(cfg, "target") else jax.lax.stop_gradient(coarse)
        # T2 = T·T1⁻¹ (eq. 4).
        terms["fine"] = _smooth_l1(cfg, stages["residual"], se2_compose(true, se2_inverse(coarse)))
    return terms


def _smooth_l1(
    cfg: ml_collections.ConfigDict, predicted: jax.Array, true: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sum and count of smooth-L1 over offsets (N, 3), its kink at one pose unit."""
    difference = predicted - true
    turn = wrap_angle(difference[..., 2:])
    difference = jnp.concatenate([difference[..., :2], turn], axis=-1) / pose_unit(cfg)
    return jnp.sum(optax.losses.huber_loss(difference, delta=1.0)), jnp.float32(difference.size)


def _voting_loss(cfg: ml_collections.ConfigDict, stages: dict[str, jax.Array], true: jax.Array) -> Terms:
    lattice, fine_lattice = pose_lattices(cfg)
    left = se2_compose(se2_inverse(stages["coarse"]), true)
    left = jnp.concatenate([left[..., :2], wrap_angle(left[..., 2:])], axis=-1)
    # What the fine lattice does not reach, it cannot learn from.
    within = voting.contains(fine_lattice, left).astype(jnp.float32)
    likelihood = voting.interpolate(stages["log_posterior"], lattice.index(true))
    fine_likelihood = voting.interpolate(stages["fine_log_posterior"], fine_lattice.index(left))
    return {
        "coarse": (-jnp.sum(likelihood), jnp.float32(likelihood.size)),
        "fine": (-jnp.sum(within * fine_likelihood), jnp.sum(within)),
    }


def _cross_entropy(
    cfg: ml_collections.ConfigDict, logits: jax.Array, label: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Sum and count of the sigmoid cross-entropy over cells and classes, cells of a class weighted up."""
    label = label.astype(jnp.float32)
    weight = 1.0 + (jnp.asarray(cfg.model.segmentation_weights, jnp.float32) - 1.0) * label
    values = weight * optax.losses.sigmoid_binary_cross_entropy(logits, label)
    return jnp.sum(values), jnp.float32(values.size)


def predict(
    cfg: ml_collections.ConfigDict, representations: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Per frame (one draw): `pose`, `true_pose` and of two stages `coarse_pose` (3,) in (m, m, rad), both
    segmentations' probabilities, and the record's `index`.

    Exhaustive voting adds `position_posterior` on `posterior_grid(cfg)`, and its standard deviation as
    `position_spread` in metres.
    """
    stages = representations["registration"]
    found = {
        "pose": stages["pose"],
        "true_pose": batch["true_pose"][:, 0],
        "bev_probability": jax.nn.sigmoid(representations["frame"]["logits"]),
        "map_probability": jax.nn.sigmoid(representations["map"]["logits"]),
        "index": batch["index"],
    }
    if "residual" in stages:
        found["coarse_pose"] = stages["coarse"]
    if "log_posterior" in stages:
        probability = jnp.exp(stages["log_posterior"]).sum(axis=1)
        places = jnp.asarray(pose_lattices(cfg)[0].poses()[0, ..., :2])
        mean = jnp.einsum("nxy,xyi->ni", probability, places, precision="highest")
        offset = jnp.sum(jnp.square(places - mean[:, None, None]), axis=-1)
        found["position_posterior"] = probability
        found["position_spread"] = jnp.sqrt(jnp.sum(probability * offset, axis=(1, 2)))
    return found
