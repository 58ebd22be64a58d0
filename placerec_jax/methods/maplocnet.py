"""MapLocNet: surround cameras to a pose on an OpenStreetMap raster (Wu et al., arXiv 2407.08561).

Frames. p and p' are the true and the noisy ego pose in the map frame; the offset T satisfies p = p'·T. A
landmark at q in the true ego frame is found at T·q in the patch, which is cut in the noisy ego frame. The
network predicts T in two stages, T = T2·T1 (eq. 2): T1 from coarse features, T2 from fine features after the
camera BEV was moved by T1.

`data.draws` patches (K), each with its own noise, share one pass over the images of a training frame: B
frames give B·K registrations.
"""

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
from placerec_jax.errors import ConfigError
from placerec_jax.methods import Encoder, Pretrained, run_encoders
from placerec_jax.modules.conv import ConvBatchNormReLU
from placerec_jax.modules.efficientnet import EfficientNetB0
from placerec_jax.modules.position import sinusoidal_encoding_2d
from placerec_jax.modules.resnet import ResNetStage, ResNetTrunk
from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.modules.torch_names import efficientnet_b0_layouts, vgg16_layouts
from placerec_jax.modules.transformer import TransformerEncoder
from placerec_jax.modules.unet import UNetDecoder
from placerec_jax.modules.vgg import VGG16Trunk
from placerec_jax.ops import bev, projection
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.resize import upsample_bilinear
from placerec_jax.ops.rigid import se2_compose, se2_inverse, wrap_angle

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet, RGB
IMAGE_STD = (0.229, 0.224, 0.225)

# Channels of the maps table, and which of them the network reads and is asked to draw.
RASTER_CHANNELS = ("road", "building", "node", "drivable")
MAP_INPUTS = ("road", "building", "node")
SEGMENTATION_CLASSES = ("drivable", "building", "node")


def _row(model: str, cameras: int, position: tuple, orientation: tuple) -> dict[str, Any]:
    return {"model": model, "cameras": cameras, "position": position, "orientation": orientation}


# Recall in percent at 1, 2, 5, 10 m and degrees (Table I; longitudinal and lateral: Table II).
PUBLISHED_PROTOCOL = "nuScenes validation, offsets uniform in ±30 m and ±30°"
PUBLISHED = (
    _row("OrienterNet", 1, (5.83, 18.92, 52.83, 66.21), (32.13, 41.56, 65.63, 80.41)),
    _row("One-stage", 1, (7.14, 22.39, 60.48, 83.90), (35.68, 60.40, 87.49, 95.31)),
    _row("MapLocNet", 1, (8.96, 27.05, 64.57, 85.86), (40.36, 65.31, 89.66, 96.17)),
    _row("DETR", 6, (10.40, 29.76, 66.81, 86.81), (42.59, 68.05, 90.83, 96.63)),
    _row("CA", 6, (13.36, 35.16, 70.54, 88.25), (48.15, 73.09, 92.66, 97.34)),
    _row("One-stage", 6, (16.32, 40.56, 74.27, 89.69), (53.71, 78.13, 94.49, 98.05)),
    _row("MapLocNet", 6, (20.10, 45.54, 77.70, 91.89), (58.61, 84.10, 96.23, 98.62))
    | {"longitudinal": (32.08, 54.20, 81.97, 93.34), "lateral": (48.71, 71.91, 90.66, 97.11)},
)


# --- What the network reads


def bev_grid(cfg: ml_collections.ConfigDict) -> Grid2D:
    """The camera BEV, in the true ego frame."""
    return Grid2D(tuple(cfg.model.bev_extent), cfg.model.cell)


def map_grid(cfg: ml_collections.ConfigDict) -> Grid2D:
    """The map patch, in the noisy ego frame. As long as the BEV and wider, centred on the ego alike."""
    return Grid2D(tuple(cfg.model.map_extent), cfg.model.cell)


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
        maps = prepared.table("maps")
        for record in (maps[i] for i in range(len(maps))):
            location = LocationRaster(record["raster"], record["origin"], float(record["cell"]))
            self._labels[record["location"]] = location
            channels = tuple(RASTER_CHANNELS.index(name) for name in MAP_INPUTS)
            self._inputs[record["location"]] = location.reduced(cfg.model.cell, channels)

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
        patches = [inputs.sample_bilinear(self._map, pose) for pose in map_pose_noisy]
        return {
            "images": images,
            "intrinsics": intrinsics,
            "ego_T_camera": record["ego_T_camera"][self._cameras],
            "camera_mask": self._camera_mask(rng),
            "map_patch": np.rint(np.stack(patches)).astype(np.uint8),
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
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, fine: jax.Array, coarse: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        x = jnp.concatenate([fine, upsample_bilinear(coarse, 2)], axis=-1)
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

    @nn.compact
    def __call__(self, skips: list[jax.Array], train: bool) -> dict[str, jax.Array]:
        levels = UNetDecoder(self.widths, dtype=self.dtype)(skips, train)
        return _heads(levels[1], levels[0], self.coarse_dim, self.fine_dim, self.dtype)


def _heads(
    half: jax.Array, full: jax.Array, coarse_dim: int, fine_dim: int, dtype: Any
) -> dict[str, jax.Array]:
    """Matching features at two scales and segmentation logits, for the compact module that calls it."""
    logits = nn.Conv(len(SEGMENTATION_CLASSES), (1, 1), dtype=dtype, name="segmentation")(full)
    return {
        "coarse": constrain_batch(nn.Conv(coarse_dim, (1, 1), dtype=dtype, name="coarse")(half)),
        "fine": constrain_batch(nn.Conv(fine_dim, (1, 1), dtype=dtype, name="fine")(full)),
        "logits": constrain_batch(logits.astype(jnp.float32)),
    }


class NeuralLocalization(nn.Module):
    """Registers BEV and map features: (N, H, W, D), (N, H, W', D) → (N, 3) offset in (m, m, degrees).

    The BEV is zero-padded to the map's width so that the ego stays centred; both are embedded together by a
    7x7 convolution with stride 4 (after 2x2 pooling for `pool=2`, so that both stages see the same number of
    tokens), encoded with an origin-centred position code, and averaged. The last layer starts at zero:
    training starts at the identity.
    """

    dim: int
    layers: int
    heads: int
    mlp_dim: int
    dropout: float
    pool: int = 1
    scale: float = 1.0
    stride: int = 4
    norm: str = "post"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, bev_features: jax.Array, map_features: jax.Array, train: bool) -> jax.Array:
        side = (map_features.shape[2] - bev_features.shape[2]) // 2
        padded = jnp.pad(bev_features, ((0, 0), (0, 0), (side, side), (0, 0)))
        x = jnp.concatenate([padded, map_features], axis=-1)
        if self.pool > 1:
            window = (self.pool, self.pool)
            x = nn.avg_pool(x, window, strides=window)
        x = nn.Conv(
            self.dim,
            (7, 7),
            strides=(self.stride, self.stride),
            padding=((3, 3), (3, 3)),
            dtype=self.dtype,
            name="embed",
        )(x)
        x = nn.gelu(x, approximate=False)
        count, rows, columns, _ = x.shape
        x = x + sinusoidal_encoding_2d(rows, columns, self.dim).astype(x.dtype)
        x = TransformerEncoder(
            self.layers, self.heads, self.mlp_dim, self.dropout, self.dtype, self.norm, name="encoder"
        )(x.reshape(count, rows * columns, self.dim), train)
        x = jnp.mean(x.astype(jnp.float32), axis=1)
        for _ in range(2):
            x = nn.relu(nn.Dense(self.dim)(x))
        return self.scale * nn.Dense(3, kernel_init=nn.initializers.zeros, name="offset")(x)


def _image_trunk(cfg: ml_collections.ConfigDict, dtype: Any) -> nn.Module:
    """The backbone that `model.image_trunk` names; its taps are called `reduction_<log2 of the stride>`."""
    if cfg.name == "efficientnet_b0":
        return EfficientNetB0(cfg.drop_path, dtype, cfg.convention)
    if cfg.name == "resnet":
        return ResNetTrunk(tuple(cfg.widths), tuple(cfg.blocks), cfg.stem, dtype=dtype)
    raise ConfigError(
        f"config.model.image_trunk.name is {cfg.name!r}; expected 'efficientnet_b0' or 'resnet'"
    )


class MapLocNet(nn.Module):
    """The two-stage model; submodule names are the components that `describe` reports."""

    cfg: ml_collections.FrozenConfigDict

    def setup(self) -> None:
        m, dtype = self.cfg.model, jnp.dtype(self.cfg.dtype)
        self.image_trunk = _image_trunk(m.image_trunk, dtype)
        self.image_neck = ImageNeck(m.neck_width, self.depth_bins, m.context, dtype=dtype)
        self.bev_encoder = BevEncoder(tuple(m.bev_widths), tuple(m.bev_blocks), dtype=dtype)
        self.bev_decoder = BevDecoder(tuple(m.bev_decoder_widths), m.coarse_dim, m.fine_dim, dtype=dtype)
        self.map_trunk = VGG16Trunk(m.map_depth, tuple(m.map_widths), dtype=dtype)
        self.map_decoder = MapDecoder(tuple(m.map_decoder_widths), m.coarse_dim, m.fine_dim, dtype=dtype)
        registration = {
            name: m.registration[name]
            for name in ("dim", "layers", "heads", "mlp_dim", "dropout", "scale", "stride", "norm")
        }
        self.localize_coarse = NeuralLocalization(**registration, dtype=dtype)
        self.localize_fine = NeuralLocalization(**registration, pool=2, dtype=dtype)

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
        rows, columns = depth.shape[1:3]

        points = projection.frustum((height, width), (rows, columns), tuple(m.depths))
        ids = bev.cell_ids(projection.pixels_to_ego(points, intrinsics, ego_T_camera), grid, tuple(m.z_range))
        outside = grid.shape[0] * grid.shape[1]
        ids = jnp.where(camera_mask[:, :, None, None, None], ids, outside)
        lead = (batch, cameras)
        pooled = bev.splat_segment_sum(
            context.reshape(*lead, *context.shape[1:]), depth.reshape(*lead, *depth.shape[1:]), ids, grid
        )
        fine, coarse = self.bev_encoder(constrain_batch(pooled), train)
        return self.bev_decoder(fine, coarse, train)

    def encode_map(self, map_patch: jax.Array, train: bool) -> dict[str, jax.Array]:
        """(B, K, H, W, 3) uint8, 255 where a cell is covered → features and logits of the B·K patches."""
        patches = map_patch.reshape(-1, *map_patch.shape[2:]).astype(jnp.float32) / 255.0
        return self.map_decoder(self.map_trunk(constrain_batch(patches)), train)

    def register(
        self, frame: dict[str, jax.Array], patch: dict[str, jax.Array], train: bool
    ) -> dict[str, jax.Array]:
        """Features of B frames and B·K patches → offsets (B·K, 3) in (m, m, rad).

        `coarse` is T1, `residual` T2 and `pose` their composition T2·T1.
        """
        draws = patch["fine"].shape[0] // frame["fine"].shape[0]
        repeat = {name: jnp.repeat(frame[name], draws, axis=0) for name in ("coarse", "fine")}
        coarse = to_radians(self.localize_coarse(repeat["coarse"], patch["coarse"], train))
        # Neither the warp nor the fine target passes gradients to the coarse stage: a target must not
        # chase the prediction.
        fixed = jax.lax.stop_gradient(coarse)
        moved = bev.warp_se2(
            repeat["fine"].astype(jnp.float32), fixed, bev_grid(self.cfg), map_grid(self.cfg)
        )
        moved = constrain_batch(moved.astype(patch["fine"].dtype))
        residual = to_radians(self.localize_fine(moved, patch["fine"], train))
        return {"coarse": coarse, "residual": residual, "pose": se2_compose(residual, fixed)}

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


def to_radians(offset: jax.Array) -> jax.Array:
    """(..., 3) (m, m, degrees) → (m, m, radians)."""
    return offset * jnp.asarray([1.0, 1.0, np.pi / 180])


def to_degrees(offset: jax.Array) -> jax.Array:
    """(..., 3) (m, m, radians) → (m, m, degrees), in which offsets and turns span alike."""
    return offset * jnp.asarray([1.0, 1.0, 180 / np.pi])


def loss(
    cfg: ml_collections.ConfigDict, representations: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Eqs. 3-6: smooth-L1 of the coarse offset and of what it leaves to the fine stage, BCE of both maps."""
    del cfg
    true_pose = batch["true_pose"].reshape(-1, 3)
    stages = representations["registration"]
    # T2 = T·T1⁻¹ (eq. 4), T1 taken as given.
    left = se2_compose(true_pose, se2_inverse(jax.lax.stop_gradient(stages["coarse"])))
    map_label = batch["map_label"].reshape(-1, *batch["map_label"].shape[2:])
    return {
        "coarse": _smooth_l1(stages["coarse"], true_pose),
        "fine": _smooth_l1(stages["residual"], left),
        "bev": _cross_entropy(representations["frame"]["logits"], batch["bev_label"]),
        "map": _cross_entropy(representations["map"]["logits"], map_label),
    }


def _smooth_l1(predicted: jax.Array, true: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum and count of smooth-L1 (kink at 1 m and 1°) over offsets (N, 3)."""
    difference = predicted - true
    turn = wrap_angle(difference[..., 2:])
    difference = to_degrees(jnp.concatenate([difference[..., :2], turn], axis=-1))
    return jnp.sum(optax.losses.huber_loss(difference, delta=1.0)), jnp.float32(difference.size)


def _cross_entropy(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum and count of the sigmoid cross-entropy over cells and classes."""
    values = optax.losses.sigmoid_binary_cross_entropy(logits, label.astype(jnp.float32))
    return jnp.sum(values), jnp.float32(values.size)


def predict(
    cfg: ml_collections.ConfigDict, representations: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Per frame (one draw): `pose`, `coarse_pose`, `true_pose` (3,) in (m, m, rad), both segmentations'
    probabilities, and the record's `index`."""
    del cfg
    stages = representations["registration"]
    return {
        "pose": stages["pose"],
        "coarse_pose": stages["coarse"],
        "true_pose": batch["true_pose"][:, 0],
        "bev_probability": jax.nn.sigmoid(representations["frame"]["logits"]),
        "map_probability": jax.nn.sigmoid(representations["map"]["logits"]),
        "index": batch["index"],
    }
