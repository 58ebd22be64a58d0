"""EINet: the place of six camera images and a LiDAR sweep (NUSC-PR), and what the paper compares it with.

Cameras and LiDAR each become a range image about the sensor: the cameras by a depth that is predicted under
the LiDAR's supervision and projected, the LiDAR with the cameras' colours painted onto its points. Each
range image becomes one token a column, the two sequences ask each other, and NetVLAD makes one descriptor of
them. A place is retrieved by the distance of descriptors. The authors never released their network: this
one is written from the paper and the code it cites.

Training reads tuples, a query with places near it (positives) and far from it (negatives): K = 1 + positives
+ negatives frames in this order. Evaluation reads frames, K = 1. `config.model.network` chooses among
`NETWORKS`, `config.model.modality` among the branches of EINet.

Shapes: B tuples of K frames, N cameras of H x W pixels, P points, range images of h rows (the cameras' as
many as images have) and w columns. Points are in LiDAR axes (x right, y forward), metres.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from placerec_jax.data import image_augmentation, submaps
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.data.records import decode_image
from placerec_jax.errors import ConfigError, one_of
from placerec_jax.methods import Encoder, Pretrained, run_encoders
from placerec_jax.modules.cross_view_transformer import CrossViewTransformer
from placerec_jax.modules.cvtnet import CVTNet
from placerec_jax.modules.depth_decoder import DepthDecoder, depth_from_disparity
from placerec_jax.modules.lcpr import LCPR
from placerec_jax.modules.modality_fusion import ModalityFusion
from placerec_jax.modules.netvlad import LoupeNetVLAD
from placerec_jax.modules.overlap_transformer import OverlapTransformer, RangeImageEncoder, leg_for
from placerec_jax.modules.pose_net import PoseNet
from placerec_jax.modules.resnet import RESNETS, ResNetLevels
from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.modules.torch_names import TorchLayout, lcpr_layouts, resnet_layouts
from placerec_jax.ops import depth_supervision, range_image, scan_views, triplet
from placerec_jax.ops.image_size import fitted
from placerec_jax.ops.point_steps import decode_points
from placerec_jax.ops.range_image import SphericalGrid
from placerec_jax.ops.rigid import rigid_inverse
from placerec_jax.ops.unit_norm import unit_norm

# Clockwise from the front, as the authors' data scripts and LCPR have them.
CAMERAS = (
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_RIGHT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_FRONT_LEFT",
)
CONVERTER = "nusc_pr"  # of a prepared folder
SPLIT_OF_QUERIES = "{location}_{split}_query"  # and the same with positives, negatives

LEVELS = 5  # of the image encoder
PUBLISHED_BACKBONES = ("resnet18", "resnet34")
RANGE_UNITS = ("normalised", "metres")
DEPTH_REDUCTIONS = ("mean", "sum")
TERMS = ("triplet", "depth", "reprojection")

_IMAGE_MEAN, _IMAGE_DEVIATION = 0.45, 0.225  # of RGB from 0 to 1


def _recalls(table: str, model: str, sensors: str, *recalls: float) -> dict[str, Any]:
    named = {f"recall_at_{k}": recall for k, recall in zip((1, 5, 10, 20), recalls, strict=True)}
    return {"table": table, "model": model, "sensors": sensors, **named}


def _transfer(model: str, *recalls: float) -> dict[str, Any]:
    places = ("boston-seaport", "singapore-onenorth", "singapore-queenstown", "singapore-hollandvillage")
    return {
        "table": "III",
        "model": model,
        "sensors": "C+L",
        "recall_at_1_by_location": dict(zip(places, recalls, strict=True)),
    }


# The paper's tables. III: trained on Boston, AR@1 at all four locations. IV: milliseconds on an unnamed GPU.
PUBLISHED_PROTOCOL = "nuScenes, NUSC-PR supervised, boston-seaport; right within 9 m"
PUBLISHED = (
    _recalls("I", "NetVLAD", "C", 73.98, 82.33, 84.89, 85.97),
    _recalls("I", "MultiRes-NetVLAD", "C", 75.31, 84.49, 86.40, 88.23),
    _recalls("I", "OverlapTransformer", "L", 74.67, 84.23, 87.12, 89.70),
    _recalls("I", "CVTNet", "L", 79.20, 87.96, 90.35, 92.44),
    _recalls("I", "AdaFusion", "C+L", 80.90, 87.74, 90.08, 92.31),
    _recalls("I", "LCPR", "C+L", 85.63, 92.21, 94.55, 95.75),
    _recalls("I", "EINet", "C+L", 91.40, 97.30, 98.75, 99.39),
    _recalls("II", "EINet-rL", "C+L", 84.95, 93.58, 95.92, 98.02),
    _recalls("II", "EINet-rC", "C+L", 87.29, 95.76, 97.54, 98.83),
    _recalls("II", "EINet", "C+L", 91.40, 97.30, 98.75, 99.39),
    _transfer("AdaFusion", 80.90, 82.24, 60.04, 62.14),
    _transfer("LCPR", 85.63, 93.76, 67.53, 69.29),
    _transfer("EINet", 91.40, 98.29, 73.84, 85.25),
    {
        "table": "IV",
        "model": "EINet",
        "image_encoder_ms": 5.14,
        "image_decoder_ms": 58.23,  # with the cross-view transformers
        "depth_to_range_ms": 114.70,
        "camera_tokens_ms": 2.14,
        "lidar_tokens_ms": 1.39,
        "fusion_ms": 3.96,
        "total_ms": 186.48,  # as printed; the parts sum to 185.56
    },
)


# --- Settings


def camera_grid(cfg: ml_collections.ConfigDict) -> SphericalGrid:
    """The range image that the cameras' depth is projected into."""
    r = cfg.model.range_image
    return SphericalGrid(r.camera_rows, r.size[1], r.fov_up, r.fov_down)


def lidar_grid(cfg: ml_collections.ConfigDict) -> SphericalGrid:
    """The range image of a sweep."""
    r = cfg.model.range_image
    return SphericalGrid(*r.size, r.fov_up, r.fov_down)


def check(cfg: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for settings of network and losses that do not exist or contradict each other."""
    m = cfg.model
    one_of(m, "config.model", "network", NETWORKS)
    one_of(m, "config.model", "modality", BRANCHES)
    if m.network != "einet" and m.modality != "fused":
        raise ConfigError(
            f"config.model.modality is {m.modality!r} and network {m.network!r}: the branches of a baseline "
            "are its own. Leave modality at 'fused', or take network 'einet'."
        )
    one_of(m, "config.model", "image_backbone", RESNETS)
    one_of(m.lcpr, "config.model.lcpr", "image_backbone", RESNETS)
    one_of(m, "config.model", "range_units", RANGE_UNITS)
    one_of(m, "config.model", "depth_reduction", DEPTH_REDUCTIONS)
    one_of(m, "config.model", "reproj_mode", range_image.DIFFERENCES)
    one_of(m.triplet, "config.model.triplet", "form", triplet.FORMS)
    if any(side % 32 for side in m.image_size):
        raise ConfigError(
            f"config.model.image_size is {tuple(m.image_size)}; expected multiples of 32, which the image "
            "encoder divides it by"
        )
    unknown = sorted(set(m.cvt.levels) - set(range(LEVELS)))
    if unknown or len(set(m.cvt.levels)) != len(m.cvt.levels):
        raise ConfigError(
            f"config.model.cvt.levels is {tuple(m.cvt.levels)}; expected different numbers from 0 (finest) "
            f"to {LEVELS - 1}"
        )
    if len(m.decoder_channels) != LEVELS:
        raise ConfigError(
            f"config.model.decoder_channels is {tuple(m.decoder_channels)}; expected {LEVELS}, finest first"
        )
    if set(cfg.loss) != set(TERMS):
        raise ConfigError(f"config.loss has the terms {sorted(cfg.loss)}; expected {sorted(TERMS)}")
    for name in ("positives", "negatives"):
        if cfg.data[name] < 1:
            raise ConfigError(f"config.data.{name} is {cfg.data[name]}; expected at least 1")
    try:
        lidar_grid(cfg), camera_grid(cfg)
    except ValueError as error:
        raise ConfigError(f"config.model.range_image: {error}") from error
    r = m.range_image
    if "lidar" in branches_of(cfg) or m.network in ("overlap_transformer", "cvtnet"):
        leg_for(*r.size, r.lidar_leg)
    if "camera" in branches_of(cfg):
        leg_for(r.camera_rows, r.size[1], r.camera_leg)


# The branches of EINet, by `config.model.modality`.
BRANCHES = {"fused": ("camera", "lidar"), "camera": ("camera",), "lidar": ("lidar",)}


def branches_of(cfg: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The branches of EINet that `cfg` has; () of another network."""
    return BRANCHES[cfg.model.modality] if cfg.model.network == "einet" else ()


# --- What the network reads


def features(cfg: ml_collections.ConfigDict, training: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one example: the frames of a tuple in training, a single frame at evaluation.

    What the chosen network does not read, and losses without weight do not want, is not there.
    """
    check(cfg)
    m, shape = cfg.model, jax.ShapeDtypeStruct
    frames = 1 + cfg.data.positives + cfg.data.negatives if training else 1
    cameras = len(CAMERAS)
    known = {
        "images": shape((frames, cameras, *m.image_size, 3), np.uint8),
        "camera_mask": shape((frames, cameras), np.bool_),
        "intrinsics": shape((frames, cameras, 3, 3), np.float32),
        "lidar_T_camera": shape((frames, cameras, 4, 4), np.float32),
        "range_image": shape((frames, *m.range_image.size, 4 if m.render_rgb else 1), np.float32),
        "points": shape((frames, m.points, 3), np.float32),
        "point_mask": shape((frames, m.points), np.bool_),
        "ego_T_lidar": shape((frames, 4, 4), np.float32),
        "index": shape((frames,), np.int32),
    }
    wanted = {name for encoder in encoders(cfg).values() for name in encoder.inputs}
    if training and "camera" in branches_of(cfg):
        wanted |= {"points", "point_mask"} if cfg.loss.depth or _has_pose(cfg) else set()
        wanted |= {"ego_T_lidar"} if _has_pose(cfg) else set()
    return {name: known[name] for name in known if name in wanted or name == "index"}


class Source:
    """Tuples of the chosen locations in training, all frames of a split at evaluation."""

    def __init__(
        self, cfg: ml_collections.ConfigDict, prepared: PreparedFolder, split: str, training: bool
    ) -> None:
        check(cfg)
        check_data(cfg, prepared)
        self._cfg, self._training = cfg, training
        self._wanted = features(cfg, training)
        self._frames = prepared.table("frames")
        self._unit = float(prepared.manifest["range_unit_m"])
        self._cameras = _camera_numbers(prepared)
        if training:
            self._tuples = _tuples(cfg, prepared, split)
        else:
            self._records = prepared.split(cfg.data.scheme, split)

    def __len__(self) -> int:
        return len(self._tuples.query) if self._training else len(self._records)

    def example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Example `index`; in training, the order of positives and negatives, points and colours are drawn
        from `rng`, at evaluation nothing is."""
        if self._training:
            numbers = self._tuples.numbers(index, self._cfg.data.positives, self._cfg.data.negatives, rng)
        else:
            numbers = self._records[index : index + 1]
        frames = [self._frame(int(number), rng) for number in numbers]
        return {name: np.stack([frame[name] for frame in frames]) for name in self._wanted}

    def _frame(self, number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The wanted features of one record, without the axis of frames."""
        record = self._frames.read(number, images=False)
        found = {"index": np.int32(number)}
        pictures = {}
        if "images" in self._wanted:
            found |= self._images(record)
            pictures["images"] = found["images"]
        if "range_image" in self._wanted and self._cfg.model.render_rgb:
            pictures["colours"] = record["rendered_rgb"]
        if self._training:
            pictures = recoloured(pictures, rng, self._cfg.data.augmentation)
        if "images" in pictures:
            found["images"] = pictures["images"]
        if "range_image" in self._wanted:
            found["range_image"] = self._range_image(record["range_steps"], pictures.get("colours"))
        if "points" in self._wanted:
            found |= self._points(record, number, rng)
        if "ego_T_lidar" in self._wanted:
            found["ego_T_lidar"] = record["ego_T_lidar"].astype(np.float32)
        return found

    def _images(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        """Images of the network's size, with intrinsics that fit them; zeros of a camera that is missing."""
        size = tuple(self._cfg.model.image_size)
        images = np.zeros((len(self._cameras), *size, 3), np.uint8)
        intrinsics = np.empty((len(self._cameras), 3, 3), np.float32)
        mask = record["camera_mask"][self._cameras]
        for slot, camera in enumerate(self._cameras):
            image = decode_image(record["images"][camera])
            scale = np.diag([size[1] / image.shape[1], size[0] / image.shape[0], 1.0])
            intrinsics[slot] = scale @ record["intrinsics"][camera]
            if mask[slot]:
                images[slot] = fitted(image, size)
        lidar_T_camera = rigid_inverse(record["camera_T_lidar"][self._cameras].astype(np.float64))
        found = {
            "images": images,
            "camera_mask": mask,
            "intrinsics": intrinsics,
            "lidar_T_camera": lidar_T_camera.astype(np.float32),
        }
        return {name: value for name, value in found.items() if name in self._wanted}

    def _range_image(self, steps: np.ndarray, colours: np.ndarray | None) -> np.ndarray:
        """(h, w) steps, (h, w, 3) uint8 or None → (h, w, 4 or 1) metres, EMPTY where nothing is, and red,
        green and blue from 0 to 1."""
        metres = np.where(steps > 0, steps * np.float32(self._unit), np.float32(range_image.EMPTY))[..., None]
        return metres if colours is None else np.concatenate([metres, colours / np.float32(255)], axis=-1)

    def _points(self, record: dict[str, Any], number: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Points of the sweep, drawn where there are more than the network takes: at evaluation always the
        same ones."""
        draw = rng if self._training else np.random.default_rng(number)
        xyz = decode_points(record["point_steps"])
        points, mask = submaps.sample_points(xyz, self._cfg.model.points, draw)
        return {"points": points, "point_mask": mask}


def source(cfg: ml_collections.ConfigDict, prepared: PreparedFolder, split: str, training: bool) -> Source:
    """Examples of `split`; see `Source`."""
    return Source(cfg, prepared, split, training)


class Tuples(NamedTuple):
    """Record numbers: of every query, of places near it and of places far from it."""

    query: np.ndarray  # (Q,)
    positives: np.ndarray  # (Q, p)
    negatives: np.ndarray  # (Q, n)

    def numbers(self, index: int, positives: int, negatives: int, rng: np.random.Generator) -> np.ndarray:
        """(1 + positives + negatives,) record numbers of tuple `index`: the query, and so many of its places,
        drawn in random order."""
        near = rng.permutation(self.positives[index])[:positives]
        far = rng.permutation(self.negatives[index])[:negatives]
        return np.concatenate([self.query[index : index + 1], near, far])


def _tuples(cfg: ml_collections.ConfigDict, prepared: PreparedFolder, split: str) -> Tuples:
    """The tuples of the locations of `cfg`, one after the other."""
    there = list(prepared.manifest["locations"])
    chosen = list(cfg.data.locations) or there
    unknown = [location for location in chosen if location not in there]
    if unknown:
        raise ConfigError(
            f"config.data.locations names {unknown[0]!r}; {prepared.root} has {there} (() takes all)"
        )
    found = []
    for location in chosen:
        name = SPLIT_OF_QUERIES.format(location=location, split=split)
        kinds = {"positives": cfg.data.positives, "negatives": cfg.data.negatives}
        near, far = (prepared.split(cfg.data.scheme, name.replace("_query", f"_{kind}")) for kind in kinds)
        query = prepared.split(cfg.data.scheme, name)
        for (kind, count), stored in zip(kinds.items(), (near, far), strict=True):
            if len(query) and stored.shape[1] < count:
                raise ConfigError(
                    f"{prepared.root}: config.data.{kind} is {count}, and the tuples of {location} in scheme "
                    f"{cfg.data.scheme!r} have {stored.shape[1]}. Set --config.data.{kind}={stored.shape[1]} "
                    f"or prepare the folder again with --{kind} {count}."
                )
        if len(query):
            found.append(Tuples(query, near, far))
    if not found:
        raise ConfigError(
            f"{prepared.root}: scheme {cfg.data.scheme!r} has no training queries at {chosen}: nothing lies "
            "below the age threshold, or nothing was visited twice. See `python -m data_prep nusc_pr --help` "
            "(--gamma, --delta), or set config.data.locations."
        )
    return Tuples(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def check_data(cfg: ml_collections.ConfigDict, prepared: PreparedFolder) -> None:
    """Raises ConfigError where a prepared folder was not made for this method, or at another size."""
    manifest = prepared.manifest
    if manifest.get("converter") != CONVERTER:
        raise ConfigError(
            f"{prepared.root}: expected a folder of python -m data_prep {CONVERTER}, manifest.json says "
            f"{manifest.get('converter')!r}. Set config.data.root."
        )
    stored, r = manifest["range_image"], cfg.model.range_image
    size = (stored["height"], stored["width"])
    if size != tuple(r.size):
        raise ConfigError(
            f"{prepared.root}: its range images are {size[0]}x{size[1]}, config.model.range_image.size is "
            f"{tuple(r.size)}. Set it to {size}, or prepare the folder again with --range-image "
            f"{r.size[0]}x{r.size[1]}."
        )
    for name in ("fov_up", "fov_down"):
        if stored[name] != r[name]:
            raise ConfigError(
                f"{prepared.root}: its range images were made with a {name} of {stored[name]} degrees, "
                f"config.model.range_image.{name} is {r[name]}. Set it to that."
            )


def _camera_numbers(prepared: PreparedFolder) -> list[int]:
    """Where a record has the cameras, in the order of CAMERAS."""
    stored = list(prepared.manifest["cameras"])
    missing = [name for name in CAMERAS if name not in stored]
    if missing:
        raise ConfigError(f"{prepared.root}: expected the cameras {list(CAMERAS)}, found {stored}")
    return [stored.index(name) for name in CAMERAS]


def recoloured(
    pictures: dict[str, np.ndarray], rng: np.random.Generator, settings: ml_collections.ConfigDict
) -> dict[str, np.ndarray]:
    """{name: (..., 3) uint8} of one frame → the same in another light: one change for all their pixels.

    What is black stays black: missing cameras, and points that no camera sees. With the probability in
    `settings`, else nothing changes.
    """
    if not pictures or rng.random() >= settings.probability:
        return pictures
    pixels = np.concatenate([picture.reshape(-1, 1, 3) for picture in pictures.values()])
    ranges = (settings.brightness, settings.contrast, settings.saturation, settings.hue)
    changed = image_augmentation.jitter(pixels, rng, *ranges)
    changed = np.where(pixels.any(axis=-1, keepdims=True), changed, 0)
    ends = np.cumsum([picture.size // 3 for picture in pictures.values()])
    parts = np.split(changed, ends[:-1])
    return {
        name: part.reshape(picture.shape)
        for (name, picture), part in zip(pictures.items(), parts, strict=True)
    }


# --- The network


class EINet(nn.Module):
    """The whole model; submodule names are the components that `describe` reports."""

    cfg: ml_collections.FrozenConfigDict

    def setup(self) -> None:
        check(self.cfg)
        m, dtype = self.cfg.model, jnp.dtype(self.cfg.dtype)
        branches = branches_of(self.cfg)
        if "camera" in branches:
            self.image_encoder = ResNetLevels(m.image_backbone, dtype, m.remat)
            self.cross_view = [
                CrossViewTransformer(2 ** (LEVELS - 1 - level), m.cvt.blocks, m.cvt.heads, dtype, m.remat)
                for level in m.cvt.levels
            ]
            channels = tuple(m.decoder_channels)
            self.depth_decoder = DepthDecoder(channels, start=m.depth_start, dtype=dtype, remat=m.remat)
            self.camera_tokens = self._range_image_encoder(m.range_image.camera_leg)
            if _has_pose(self.cfg):
                self.pose_net = PoseNet(m.pose_width, dtype)
        if "lidar" in branches:
            self.lidar_tokens = self._range_image_encoder(m.range_image.lidar_leg)
        if len(branches) > 1:
            self.fusion = ModalityFusion(m.tokens.heads, m.tokens.mlp_dim, m.fusion_stages, dtype)
        self.netvlad = LoupeNetVLAD(m.clusters, m.descriptor_dim, dtype)

    def _range_image_encoder(self, leg: str) -> RangeImageEncoder:
        m = self.cfg.model
        return RangeImageEncoder(leg=leg, **m.tokens, dtype=jnp.dtype(self.cfg.dtype))

    def encode_camera(
        self,
        images: jax.Array,
        camera_mask: jax.Array,
        intrinsics: jax.Array,
        lidar_T_camera: jax.Array,
        *,
        train: bool,
    ) -> dict[str, jax.Array]:
        """(B, K, N, H, W, 3) uint8 and calibration → `depth` (B, K, N, H, W) metres, `range` (B, K, h, w)
        metres with EMPTY, `tokens` (B, K, w, C), `deepest` (B, K, N, H/32, W/32, C)."""
        lead = images.shape[:2]
        images, camera_mask, intrinsics, lidar_T_camera = (
            constrain_batch(_frames(x)) for x in (images, camera_mask, intrinsics, lidar_T_camera)
        )
        levels = self.image_levels(images, train)
        levels = self.exchange_views(levels, camera_mask)
        depth = self.decode_depth(levels, intrinsics)
        ranges = range_image.from_depth(depth, intrinsics, lidar_T_camera, camera_mask, camera_grid(self.cfg))
        tokens = self.camera_tokens(range_input(self.cfg, ranges[..., None]))
        found = {"depth": depth, "range": ranges, "tokens": tokens, "deepest": levels[-1]}
        return {name: _unframed(x, lead) for name, x in found.items()}

    def image_levels(self, images: jax.Array, train: bool) -> list[jax.Array]:
        """(F, N, H, W, 3) uint8 → five levels (F, N, H/2, W/2, ·) … (F, N, H/32, W/32, ·)."""
        levels = self.image_encoder(constrain_batch(_frames(normalised(images))), train)
        return [_unframed(x, images.shape[:2]) for x in levels]

    def exchange_views(self, levels: list[jax.Array], camera_mask: jax.Array) -> list[jax.Array]:
        """Levels (F, N, ·, ·, C) → the same, with what the other cameras add."""
        levels = list(levels)
        for level, transformer in zip(self.cfg.model.cvt.levels, self.cross_view, strict=True):
            levels[level] = levels[level] + transformer(levels[level], camera_mask)
        return levels

    def decode_depth(self, levels: list[jax.Array], intrinsics: jax.Array) -> jax.Array:
        """Levels (F, N, ·, ·, C), (F, N, 3, 3) → (F, N, H, W) metres along the optical axis."""
        lead = intrinsics.shape[:2]
        disparity = _unframed(self.depth_decoder([_frames(level) for level in levels])[0], lead)
        return depth_from_disparity(disparity, intrinsics[..., 0, 0], disparity.shape[-1])

    def encode_lidar(self, image: jax.Array, *, train: bool) -> jax.Array:
        """(B, K, h, w, 1 or 4) → tokens (B, K, w, C)."""
        del train  # neither dropout nor batch statistics
        tokens = self.lidar_tokens(range_input(self.cfg, constrain_batch(_frames(image))))
        return _unframed(tokens, image.shape[:2])

    def describe_fused(self, camera: dict[str, jax.Array], lidar: jax.Array, *, train: bool) -> jax.Array:
        """Tokens of both branches → descriptors (B, K, D) of unit length."""
        del train
        together, _ = self.fusion(_frames(camera["tokens"]), _frames(lidar))
        return _unframed(self.netvlad(together), lidar.shape[:2])

    def describe_camera(self, camera: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Tokens of the cameras alone → descriptors (B, K, D)."""
        return self.describe_lidar(camera["tokens"], train=train)

    def describe_lidar(self, tokens: jax.Array, *, train: bool) -> jax.Array:
        """Tokens (B, K, w, C) of one branch → descriptors (B, K, D)."""
        del train
        return _unframed(self.netvlad(unit_norm(_frames(tokens))), tokens.shape[:2])

    def estimate_pose(
        self, camera: dict[str, jax.Array], camera_mask: jax.Array, *, train: bool
    ) -> jax.Array:
        """What the cameras of the query and of its first positive saw → (B, 4, 4) query_T_positive.

        Between ego frames; of a single frame: of the frame to itself.
        """
        del train
        deepest, other = camera["deepest"], min(1, camera["deepest"].shape[1] - 1)
        return self.pose_net(deepest[:, 0], camera_mask[:, 0], deepest[:, other], camera_mask[:, other])

    def __call__(self, batch: dict[str, jax.Array], train: bool) -> dict[str, Any]:
        return run_encoders(self, encoders(self.cfg), batch, train)


def normalised(images: jax.Array) -> jax.Array:
    """uint8 → float32 about 0, as SurroundDepth has it."""
    return (images.astype(jnp.float32) / 255.0 - _IMAGE_MEAN) / _IMAGE_DEVIATION


def range_input(cfg: ml_collections.ConfigDict, image: jax.Array) -> jax.Array:
    """(..., 1 or 4) metres with EMPTY, colours → what the network reads.

    `normalised`: the range over the farthest trusted one, 0 where nothing is, so that it is of the size of
    the colours beside it; `metres`: as it is.
    """
    if cfg.model.range_units == "metres":
        return image
    metres, colours = image[..., :1], image[..., 1:]
    ranges = jnp.where(metres > 0, metres / range_image.FAR, 0.0)
    return jnp.concatenate([ranges, colours], axis=-1)


def _frames(x: jax.Array) -> jax.Array:
    """(B, K, ...) → (B·K, ...)."""
    return x.reshape(-1, *x.shape[2:])


def _unframed(x: jax.Array, lead: tuple[int, int]) -> jax.Array:
    """(B·K, ...) → (B, K, ...)."""
    return x.reshape(*lead, *x.shape[1:])


def _has_pose(cfg: ml_collections.ConfigDict) -> bool:
    """Whether there is a PoseNet, which learns from the reprojection loss alone."""
    return bool("camera" in branches_of(cfg) and cfg.model.use_posenet and cfg.loss.reprojection)


_CAMERA_INPUTS = ("images", "camera_mask", "intrinsics", "lidar_T_camera")
_DESCRIBE = {
    "fused": Encoder(("camera", "lidar"), EINet.describe_fused),
    "camera": Encoder(("camera",), EINet.describe_camera),
    "lidar": Encoder(("lidar",), EINet.describe_lidar),
}


def _einet_encoders(cfg: ml_collections.ConfigDict) -> dict[str, Encoder]:
    """The branches of the modality, the descriptor, and the pose where a loss wants it."""
    branches = {
        "camera": Encoder(_CAMERA_INPUTS, EINet.encode_camera),
        "lidar": Encoder(("range_image",), EINet.encode_lidar),
    }
    found = {name: branches[name] for name in branches_of(cfg)}
    found["descriptor"] = _DESCRIBE[cfg.model.modality]
    if _has_pose(cfg):
        found["pose"] = Encoder(("camera", "camera_mask"), EINet.estimate_pose)
    return found


class Network(NamedTuple):
    """A choice of `config.model.network`; functions of a config."""

    module: type[nn.Module]
    encoders: Callable[[ml_collections.ConfigDict], dict[str, Encoder]]
    layouts: Callable[[ml_collections.ConfigDict], dict[str, tuple[TorchLayout, ...]]]  # by submodule


def _einet_layouts(cfg: ml_collections.ConfigDict) -> dict[str, tuple[TorchLayout, ...]]:
    """Published names of the image encoder; those of our own size have none."""
    if "camera" not in branches_of(cfg):
        return {}
    backbone = cfg.model.image_backbone
    return {"image_encoder": resnet_layouts(backbone) if backbone in PUBLISHED_BACKBONES else ()}


def _lcpr_layouts(cfg: ml_collections.ConfigDict) -> dict[str, tuple[TorchLayout, ...]]:
    """The images' ResNet-18, whose last stages the range image starts from, too."""
    return {"network": lcpr_layouts() if cfg.model.lcpr.image_backbone == "resnet18" else ()}


# --- The networks that the paper compares with


class Baseline(nn.Module):
    """A network that makes one descriptor of a frame; subclasses say which, and of what."""

    cfg: ml_collections.FrozenConfigDict

    def setup(self) -> None:
        check(self.cfg)
        self.network = self.build(self.cfg.model, jnp.dtype(self.cfg.dtype))

    def build(self, m: ml_collections.FrozenConfigDict, dtype: jnp.dtype) -> nn.Module:
        """The network by the settings `config.model`."""
        raise NotImplementedError

    def __call__(self, batch: dict[str, jax.Array], train: bool) -> dict[str, Any]:
        return run_encoders(self, encoders(self.cfg), batch, train)


class OverlapTransformerBaseline(Baseline):
    """Range images alone."""

    def build(self, m: ml_collections.FrozenConfigDict, dtype: jnp.dtype) -> nn.Module:
        t = m.tokens
        return OverlapTransformer(
            m.range_image.lidar_leg,
            2 * t.dim,  # twice as wide as the same network's copy in EINet, its tokens four times
            4 * t.width,
            t.mlp_dim,
            t.leg_width,
            m.clusters,
            m.descriptor_dim,
            dtype,
        )

    def describe(self, image: jax.Array, *, train: bool) -> jax.Array:
        """(B, K, h, w, ·) range images → descriptors (B, K, D)."""
        del train  # neither dropout nor batch statistics
        ranges = range_input(self.cfg, constrain_batch(_frames(image[..., :1])))
        return _unframed(self.network(ranges), image.shape[:2])


class CVTNetBaseline(Baseline):
    """Range views and bird's-eye views of a sweep, in bands."""

    def build(self, m: ml_collections.FrozenConfigDict, dtype: jnp.dtype) -> nn.Module:
        t = m.tokens
        return CVTNet(
            m.range_image.lidar_leg,
            t.dim,
            t.width,
            t.mlp_dim,
            t.leg_width,
            m.clusters,
            m.descriptor_dim,
            dtype,
        )

    def describe(self, points: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
        """(B, K, P, 3), (B, K, P) → descriptors (B, K, 3·D), three of length one side by side."""
        del train
        xyz, there = constrain_batch(_frames(points)), constrain_batch(_frames(mask))
        grid, bands = lidar_grid(self.cfg), self.cfg.model.cvtnet
        ranges = scan_views.range_views(xyz, there, grid, tuple(bands.ranges))
        heights = scan_views.height_views(xyz, there, grid, tuple(bands.heights), bands.ranges[-1])
        views = [jnp.where(ranges > 0, ranges / bands.ranges[-1], 0.0), heights / _HEIGHT_UNIT]
        return _unframed(self.network(*views), points.shape[:2])


_HEIGHT_UNIT = 10.0  # metres; heights are as large as ranges then


class LCPRBaseline(Baseline):
    """Images and range images that attend to each other at every scale."""

    def build(self, m: ml_collections.FrozenConfigDict, dtype: jnp.dtype) -> nn.Module:
        return LCPR(m.lcpr.image_backbone, m.tokens.heads, m.lcpr.clusters, m.descriptor_dim // 2, dtype)

    def describe(
        self, images: jax.Array, camera_mask: jax.Array, image: jax.Array, *, train: bool
    ) -> jax.Array:
        """(B, K, N, H, W, 3) uint8, (B, K, N), (B, K, h, w, ·) → descriptors (B, K, D)."""
        lead = images.shape[:2]
        images, camera_mask, image = (constrain_batch(_frames(x)) for x in (images, camera_mask, image))
        ranges = range_input(self.cfg, image[..., :1])
        return _unframed(self.network(normalised(images), camera_mask, ranges, train), lead)


def _baseline(module: type[Baseline], *inputs: str, layouts: Callable[..., Any] = lambda _: {}) -> Network:
    """A network whose only encoder reads `inputs`."""
    return Network(module, lambda cfg: {"descriptor": Encoder(inputs, module.describe)}, layouts)


NETWORKS = {
    "einet": Network(EINet, _einet_encoders, _einet_layouts),
    "overlap_transformer": _baseline(OverlapTransformerBaseline, "range_image"),
    "cvtnet": _baseline(CVTNetBaseline, "points", "point_mask"),
    "lcpr": _baseline(LCPRBaseline, "images", "camera_mask", "range_image", layouts=_lcpr_layouts),
}


def model(cfg: ml_collections.ConfigDict) -> nn.Module:
    """The network `cfg` describes."""
    one_of(cfg.model, "config.model", "network", NETWORKS)
    return NETWORKS[cfg.model.network].module(ml_collections.FrozenConfigDict(cfg))


def encoders(cfg: ml_collections.ConfigDict) -> dict[str, Encoder]:
    """What the chosen network computes, in order; its `descriptor` is (B, K, D)."""
    return NETWORKS[cfg.model.network].encoders(cfg)


def pretrained(cfg: ml_collections.ConfigDict) -> dict[str, Pretrained]:
    """What reads images may start from a published ResNet."""
    setting, path = "config.model.image_weights", cfg.model.image_weights
    layouts = NETWORKS[cfg.model.network].layouts(cfg)
    return {part: Pretrained(setting, path, names) for part, names in layouts.items()}


# --- Losses


Term = tuple[jax.Array, jax.Array]


def loss(
    cfg: ml_collections.ConfigDict, representations: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, Term]:
    """`triplet`, `depth` and `reprojection` (equations 2, 1 and 3); (0, 0) of one without weight, without a
    branch to learn it, or of single frames, which are no tuples."""
    found = dict.fromkeys(TERMS, (jnp.float32(0), jnp.float32(0)))
    descriptors = representations["descriptor"]
    if descriptors.shape[1] == 1:
        return found
    if cfg.loss.triplet:
        found["triplet"] = _triplet(cfg, descriptors)
    if cfg.loss.depth and "camera" in representations:
        found["depth"] = _depth(cfg, representations["camera"]["depth"], batch)
    if "pose" in representations:
        found["reprojection"] = _reprojection(cfg, representations["pose"], batch)
    return found


def _triplet(cfg: ml_collections.ConfigDict, descriptors: jax.Array) -> Term:
    """(B, K, D) → over tuples."""
    anchor, near, far = jnp.split(descriptors, [1, 1 + cfg.data.positives], axis=1)
    t = cfg.model.triplet
    values = triplet.lazy_triplet(anchor[:, 0], near, far, t.margin, t.form)
    return values.sum(), jnp.float32(len(values))


def _depth(cfg: ml_collections.ConfigDict, depth: jax.Array, batch: dict[str, jax.Array]) -> Term:
    """(B, K, N, H, W) → over the points that the cameras see; with `sum`, over frames."""
    names = ("points", "point_mask", "intrinsics", "lidar_T_camera", "camera_mask")
    points, mask, intrinsics, lidar_T_camera, camera_mask = (_frames(batch[name]) for name in names)
    sums, counts = depth_supervision.depth_differences(
        points, mask, _frames(depth), intrinsics, lidar_T_camera, camera_mask
    )
    weight = counts.sum() if cfg.model.depth_reduction == "mean" else jnp.float32(len(counts))
    return sums.sum(), weight


def _reprojection(cfg: ml_collections.ConfigDict, pose: jax.Array, batch: dict[str, jax.Array]) -> Term:
    """(B, 4, 4) between the ego frames of the query and of its first positive → over cells or points.

    The positive's sweep, moved by the pose, should look like the query's.
    """
    ego_T_lidar = batch["ego_T_lidar"].astype(jnp.float32)
    moved = jnp.matmul(pose, ego_T_lidar[:, 1], precision="highest")
    query_T_positive = jnp.matmul(rigid_inverse(ego_T_lidar[:, 0]), moved, precision="highest")
    points, mask = batch["points"], batch["point_mask"]
    sums, counts = range_image.DIFFERENCES[cfg.model.reproj_mode](
        points[:, 0], mask[:, 0], points[:, 1], mask[:, 1], query_T_positive, lidar_grid(cfg)
    )
    return sums.sum(), counts.sum()


# --- Predictions

_SHOWN_DEPTH = 4  # depth is shown at a quarter of its sides


def predict(
    cfg: ml_collections.ConfigDict, representations: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Of the first frame: `descriptor` (B, D) and `index`; with a camera branch, what it made for pictures:
    `camera_range` (B, h, w) metres, EMPTY without, and `depth` (B, N, H/4, W/4) metres."""
    del cfg
    found = {"descriptor": representations["descriptor"][:, 0], "index": batch["index"][:, 0]}
    if "camera" in representations:
        camera = representations["camera"]
        found["camera_range"] = camera["range"][:, 0]
        found["depth"] = camera["depth"][:, 0, :, ::_SHOWN_DEPTH, ::_SHOWN_DEPTH]
    return found
