"""SaliencyI2PLoc: the LiDAR submap in which an image was taken (arXiv 2412.15577, Information Fusion 2025).

Two encoders without shared weights: a vision transformer over the patches of a panorama (or of a perspective
image), and a transformer over groups of a submap's points. Each makes one unit-length descriptor by NetVLAD,
guided by what its CLS token attends to (`saliency`). Training is contrastive over the pairs of a batch, and
the descriptors of the two modalities shall relate alike to each other (`ops.relations`). A submap is
retrieved by its descriptor's inner product with that of the image.

Shapes: B pairs, T patches of the image (row by row), N points of a submap in LiDAR axes (metres), G groups of
them, D descriptor.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax.sharding import PartitionSpec

from placerec_jax.data import image_augmentation, submaps
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.data.records import as_text
from placerec_jax.errors import ConfigError, one_of
from placerec_jax.methods import Encoder, Pretrained, run_encoders
from placerec_jax.modules import saliency as saliency_module
from placerec_jax.modules import torch_names_i2ploc as released
from placerec_jax.modules import torch_names_vit
from placerec_jax.modules.aggregation import AGGREGATORS, NORMALISED
from placerec_jax.modules.point_tokenizer import PointTokenizer
from placerec_jax.modules.point_transformer import PointTransformer
from placerec_jax.modules.vit import POSITION_INITS, EncodedTokens, ViT, patch_grid, variant_sizes
from placerec_jax.ops import contrastive, pointset, relations
from placerec_jax.ops.image_size import fitted
from placerec_jax.ops.point_steps import decode_points
from placerec_jax.ops.unit_norm import unit_norm

# All figures of the paper that are known to us, from a summary and its project page.
PUBLISHED_PROTOCOL = "KITTI-360, 1501 pairs of sequence 00, image to point, positives within 20 m"
PUBLISHED = (
    {
        "table": "urban",
        "model": "SaliencyI2PLoc",
        "image_to_point_recall_at_1": 78.92,
        "image_to_point_recall_at_20": 97.59,
        "image_to_point_recall_at_1_percent": 97.59,
        "note": "the same 97.59 is called recall at 20 in a summary and recall at 1 % on the project page",
    },
)

# Mean and standard deviation of RGB from 0 to 1, by `config.model.image.normalisation`.
NORMALISATIONS = {
    "kitti360": ((0.396197, 0.452953, 0.490031), (0.315778, 0.343629, 0.369563)),  # of the released code
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # what the AugReg weights were trained with
}

CONVERTER, PANORAMA = "i2p", "pano"  # of a prepared folder, and its kind of image

_LARGEST_SCALE = 100.0  # of a learned 1/τ, as in CLIP


# --- Settings


def check(cfg: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for settings of network and losses that do not exist or contradict each other."""
    m = cfg.model
    one_of(m.image, "config.model.image", "normalisation", NORMALISATIONS)
    one_of(m.image, "config.model.image", "position_init", POSITION_INITS)
    one_of(m.saliency, "config.model.saliency", "source", saliency_module.SOURCES)
    one_of(m.saliency, "config.model.saliency", "squash", saliency_module.SQUASHES)
    one_of(m.saliency, "config.model.saliency", "reduce", saliency_module.REDUCTIONS)
    one_of(m.points, "config.model.points", "fps_start", pointset.STARTS)
    one_of(m.contrast, "config.model.contrast", "form", contrastive.FORMS)
    for branch in ("image_aggregator", "cloud_aggregator"):
        one_of(m, "config.model", branch, AGGREGATORS)
        if m[branch] == "cls" and m.discard_cls:
            raise ConfigError(f"config.model.{branch} is 'cls', which config.model.discard_cls takes away")
    if not 0 < m.saliency.keep <= 1:
        raise ConfigError(
            f"config.model.saliency.keep is {m.saliency.keep}; expected a share above 0, up to 1"
        )
    patch_grid(tuple(m.image.size), variant_sizes(m.image.variant).patch)
    p = m.points
    for name in ("groups", "k"):
        if not 1 <= p[name] <= p.num:
            raise ConfigError(
                f"config.model.points.{name} is {p[name]}; expected 1 to config.model.points.num ({p.num})"
            )
    if p.width % p.heads:
        raise ConfigError(f"config.model.points.heads is {p.heads}; expected a divisor of width ({p.width})")
    for name, value in (
        ("contrast.temperature", m.contrast.temperature),
        ("points.position_std", p.position_std),
        ("relation.curvature", m.relation.curvature),
    ):
        if not value > 0:
            raise ConfigError(f"config.model.{name} is {value}; expected more than 0")
    if m.contrast.learnable and m.contrast.temperature < 1 / _LARGEST_SCALE:
        raise ConfigError(
            f"config.model.contrast.temperature is {m.contrast.temperature}; one that is learned stays at "
            f"{1 / _LARGEST_SCALE:g} or above: begin there, or set config.model.contrast.learnable=False"
        )
    unknown = sorted(set(cfg.loss) ^ set(LOSSES))
    if unknown:
        raise ConfigError(f"config.loss has the terms {sorted(cfg.loss)}; expected {sorted(LOSSES)}")
    micro = cfg.train.batch_size // max(cfg.train.accumulate, 1)
    rows = micro if cfg.train.gradients == "accumulated" else cfg.train.batch_size
    _check_relations(cfg, rows)
    normalised = [b for b in ("image_aggregator", "cloud_aggregator") if m[b] in NORMALISED]
    if rows < 2 or (normalised and micro < 2):
        reason = f"{normalised[0]} normalises descriptors over it" if normalised else "one has no negatives"
        raise ConfigError(
            f"config.train.batch_size is {cfg.train.batch_size} and config.train.accumulate "
            f"{cfg.train.accumulate}; expected at least 2 pairs in a micro-batch: {reason}"
        )


def _check_relations(cfg: ml_collections.ConfigDict, rows: int) -> None:
    """Raises ConfigError where a relation loss would see `rows` pairs, too few to relate."""
    wanted = [name for name in RELATIONS if cfg.loss[name]]
    if wanted and rows < relations.LEAST_BATCH:
        raise ConfigError(
            f"config.loss.{wanted[0]} compares the pairs of a batch with each other, and a loss sees {rows} "
            "(config.train.batch_size, over config.train.accumulate where gradients are 'accumulated'); "
            f"expected at least {relations.LEAST_BATCH}, or --config.loss.{wanted[0]}=0"
        )


# --- What the network reads


def features(cfg: ml_collections.ConfigDict, training: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one example, an image and the submap about it; the same in training and at evaluation."""
    del training
    check(cfg)
    m, shape = cfg.model, jax.ShapeDtypeStruct
    return {
        "image": shape((*m.image.size, 3), np.uint8),
        "points": shape((m.points.num, 3), np.float32),  # metres, LiDAR axes
        "point_mask": shape((m.points.num,), np.bool_),
        "position": shape((2,), np.float32),  # metres on the ground plane, from the first of the sequence
        "sequence": shape((), np.int32),
        "is_query": shape((), np.bool_),
        "index": shape((), np.int32),
    }


class Source:
    """Every frame of a split: its image and the submap about it."""

    def __init__(
        self, cfg: ml_collections.ConfigDict, prepared: PreparedFolder, split: str, training: bool
    ) -> None:
        check(cfg)
        check_data(cfg, prepared)
        self._cfg, self._training = cfg, training
        self._frames = prepared.table("frames")
        self._records = prepared.split(cfg.data.scheme, split)
        self._numbers = {name: number for number, name in enumerate(prepared.manifest["sequences"])}
        firsts = [prepared.split(cfg.data.scheme, name)[:1] for name in self._numbers]
        self._starts = [
            self._frames.columns(("position",), first)["position"][0, :2] if len(first) else np.zeros(2)
            for first in firsts
        ]

    def __len__(self) -> int:
        return len(self._records)

    def example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Example `index`.

        In training, points and augmentation are drawn from `rng`; at evaluation the points depend on the name
        of the frame alone.
        """
        number = int(self._records[index])
        record = self._frames.read(number)
        sequence = as_text(record["sequence"])
        draw = rng if self._training else submaps.evaluation_rng(sequence, int(record["frame_id"]))
        image, points = self._seen(record, draw)
        if self._training:
            settings = self._cfg.data.augmentation
            image, points = augmented(settings, image, points, rng)
            others = rng.choice(self._records, settings.sectors - 1)
            scenes = [augmented(settings, *self._seen(self._frames.read(int(i)), rng), rng) for i in others]
            image, points = sectors_of([(image, points), *scenes], rng)
        points, mask = submaps.sample_points(points, self._cfg.model.points.num, draw)
        return {
            "image": image,
            "points": points,
            "point_mask": mask,
            "position": (record["position"][:2] - self._starts[self._numbers[sequence]]).astype(np.float32),
            "sequence": np.int32(self._numbers[sequence]),
            "is_query": np.bool_(record["is_query"]),
            "index": np.int32(number),
        }

    def _seen(self, record: dict[str, Any], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A record → image (H, W, 3) uint8 of the network's size and (n, 3) points, no more than it takes."""
        image = fitted(record["image"], tuple(self._cfg.model.image.size))
        xyz = decode_points(record["point_steps"])
        points, mask = submaps.sample_points(xyz, self._cfg.model.points.num, rng)
        return image, points[mask]


def source(cfg: ml_collections.ConfigDict, prepared: PreparedFolder, split: str, training: bool) -> Source:
    """Examples of `split`; see `Source`."""
    return Source(cfg, prepared, split, training)


def check_data(cfg: ml_collections.ConfigDict, prepared: PreparedFolder) -> None:
    """Raises ConfigError where a prepared folder was not made for this method or for its augmentation."""
    manifest = prepared.manifest
    if manifest.get("converter") != CONVERTER:
        raise ConfigError(
            f"{prepared.root}: expected a folder of python -m data_prep {CONVERTER}, manifest.json says "
            f"{manifest.get('converter')!r}. Set config.data.root."
        )
    kind = manifest["image"]["kind"]
    if kind != cfg.data.image_kind:
        raise ConfigError(
            f"{prepared.root}: its images are {kind!r}, config.data.image_kind is {cfg.data.image_kind!r}. "
            f"Set config.data.root to a folder made with --image {cfg.data.image_kind}, or "
            f"--config.data.image_kind={kind} with a config.model.image.size of such images."
        )
    for name, off in (("turn", 0), ("sectors", 1)):
        if cfg.data.augmentation[name] > off and kind != PANORAMA:
            raise ConfigError(
                f"{prepared.root}: config.data.augmentation.{name} needs panoramas, its images are {kind!r}. "
                f"Set --config.data.augmentation.{name}={off} or convert with --image pano."
            )


def augmented(
    settings: ml_collections.ConfigDict, image: np.ndarray, points: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """(H, W, 3) uint8, (N, 3) metres → the same, changed at random as `config.data.augmentation` says.

    `mirror` and `turn` move image and submap together, as if the world were mirrored left to right or the car
    stood at another angle: column c of a panorama looks at the azimuth π(1 − 2(c + ½)/W), left positive.
    """
    if rng.random() < settings.mirror:
        image, points = image[:, ::-1], points * np.float32([1, -1, 1])
    if settings.turn:
        columns = image.shape[1]
        shift = int(np.rint(rng.uniform(-1, 1) * settings.turn / 360 * columns))  # whole columns
        image, points = np.roll(image, shift, axis=1), turned(points, -2 * np.pi * shift / columns)
    image = image_augmentation.augment(np.ascontiguousarray(image), rng, **settings.image)
    if settings.cloud_yaw:
        points = submaps.turn_about_z(points, rng)
    return image, points


def sectors_of(
    scenes: Sequence[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """S panoramas (H, W, 3) with their points (n, 3) → one with a sector of each, cut at random azimuths.

    No place looks like it, so that none can be known by heart: what remains to be learned is how a wall that
    is seen in a direction stands there in the submap. One scene alone stays as it is.
    """
    columns = scenes[0][0].shape[1]
    cuts = np.sort(rng.integers(0, columns, len(scenes)))
    scene_of = np.searchsorted(cuts, np.arange(columns), side="right") % len(scenes)  # of every column
    image = np.zeros_like(scenes[0][0])
    points = []
    for number, (part, xyz) in enumerate(scenes):
        image[:, scene_of == number] = part[:, scene_of == number]
        azimuth = np.arctan2(xyz[:, 1], xyz[:, 0])
        column = np.floor((1 - azimuth / np.pi) / 2 * columns).astype(int) % columns
        points.append(xyz[scene_of[column] == number])
    return image, np.concatenate(points)


def turned(points: np.ndarray, angle: float) -> np.ndarray:
    """(N, 3) → (N, 3) float32, turned about z by `angle` (rad, from x to y)."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x, y, z = points.T
    return np.stack([cos * x - sin * y, sin * x + cos * y, z], axis=-1)


# --- The network


class SaliencyI2PLoc(nn.Module):
    """The whole model; submodule names are the components that `describe` reports."""

    cfg: ml_collections.FrozenConfigDict

    def setup(self) -> None:
        check(self.cfg)
        m, p, dtype = self.cfg.model, self.cfg.model.points, jnp.dtype(self.cfg.dtype)
        self.image_encoder = ViT(m.image.variant, tuple(m.image.size), dtype, m.remat, m.image.position_init)
        self.image_aggregator = AGGREGATORS[m.image_aggregator](m.descriptor_dim)
        self.point_tokenizer = PointTokenizer(p.width, tuple(p.widths), dtype, m.remat)
        self.point_transformer = PointTransformer(
            p.width, p.depth, p.heads, position_std=p.position_std, dtype=dtype, remat=m.remat
        )
        self.cloud_aggregator = AGGREGATORS[m.cloud_aggregator](m.descriptor_dim)
        if m.contrast.learnable:
            start = nn.initializers.constant(-np.log(m.contrast.temperature))
            self.log_scale = self.param("log_scale", start, ())

    def encode_image(self, image: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """(B, H, W, 3) uint8 → `descriptor` (B, D) of unit length, `saliency` (B, T).

        With a learned temperature also `scale` (), 1/τ.
        """
        mean, deviation = (jnp.asarray(x) for x in NORMALISATIONS[self.cfg.model.image.normalisation])
        normalised = (image.astype(jnp.float32) / 255.0 - mean) / deviation
        heads = variant_sizes(self.cfg.model.image.variant).heads
        found = self._describe(
            self.image_encoder, self.image_encoder(normalised), heads, self.image_aggregator, train
        )
        if self.cfg.model.contrast.learnable:
            found["scale"] = self.scale()
        return found

    def scale(self) -> jax.Array:
        """() 1/τ as learned."""
        return jnp.minimum(jnp.exp(self.log_scale), _LARGEST_SCALE)

    def encode_cloud(self, points: jax.Array, mask: jax.Array, *, train: bool) -> dict[str, jax.Array]:
        """(B, N, 3) metres, (B, N) mask → `descriptor` (B, D) of unit length; `saliency` (B, G), `centres`
        (B, G, 3) and `token_mask` (B, G) of the groups."""
        p = self.cfg.model.points
        groups = pointset.group_points(points, mask, p.groups, p.k, p.exclude_radius, p.fps_start)
        tokens = self.point_tokenizer(groups, train)
        encoded = self.point_transformer(tokens, groups.centres, groups.mask)
        found = self._describe(self.point_transformer, encoded, p.heads, self.cloud_aggregator, train)
        return found | {"centres": groups.centres, "token_mask": groups.mask}

    def _describe(
        self, encoder: Any, encoded: EncodedTokens, heads: int, aggregator: nn.Module, train: bool
    ) -> dict[str, jax.Array]:
        """Tokens (B, 1 + T, C) → `descriptor` (B, D), and `saliency` (B, T) of all but CLS."""
        s = self.cfg.model.saliency
        saliency = encoder.saliency(encoded, s.source, s.stop_gradient)
        tokens, mask, weight = unit_norm(encoded.tokens), encoded.mask, None
        if s.enabled:
            weight = saliency_module.token_weight(saliency, mask, heads, s.squash, s.reduce, s.keep)
        if self.cfg.model.discard_cls:
            tokens, mask, weight = (None if x is None else x[:, 1:] for x in (tokens, mask, weight))
        return {"descriptor": aggregator(tokens, weight, mask, train), "saliency": saliency[:, 1:]}

    def __call__(self, batch: dict[str, jax.Array], train: bool) -> dict[str, Any]:
        return run_encoders(self, encoders(self.cfg), batch, train)


def model(cfg: ml_collections.ConfigDict) -> SaliencyI2PLoc:
    """The network `cfg` describes."""
    return SaliencyI2PLoc(ml_collections.FrozenConfigDict(cfg))


def encoders(cfg: ml_collections.ConfigDict) -> dict[str, Encoder]:
    """Image and cloud; neither sees the other."""
    del cfg  # the same under all settings
    return {
        "image": Encoder(("image",), SaliencyI2PLoc.encode_image),
        "cloud": Encoder(("points", "point_mask"), SaliencyI2PLoc.encode_cloud),
    }


def pretrained(cfg: ml_collections.ConfigDict) -> dict[str, Pretrained]:
    """The image encoder may start from weights of its variant, or all parts from a released checkpoint."""
    m = cfg.model
    own = released.image_encoder_layout(m.image.variant)
    if not m.checkpoint_weights:
        layouts = (own, *torch_names_vit.vit_layouts(m.image.variant, tuple(m.image.size)))
        setting = "config.model.image_encoder_weights"
        frozen = [pattern for pattern, its in cfg.optimizer.groups if its == "frozen"]
        if not m.image_encoder_weights and any("image_encoder" in pattern for pattern in frozen):
            raise ConfigError(
                f"{setting} is empty and config.optimizer.groups freezes parts of the image encoder, which "
                f"would stay random: expected a file of weights of {m.image.variant}. Set it, or "
                "config.model.checkpoint_weights, or freeze nothing."
            )
        return {"image_encoder": Pretrained(setting, m.image_encoder_weights, layouts)}
    if m.image_encoder_weights:
        raise ConfigError(
            "config.model.checkpoint_weights and image_encoder_weights are both set; expected one of them: a "
            "checkpoint has an image encoder of its own"
        )
    aggregators = {
        submodule: (released.aggregator_layout(branch),) if m[submodule] == "netvlad" else ()
        for submodule, branch in (("image_aggregator", "image"), ("cloud_aggregator", "point"))
    }
    layouts = {
        "image_encoder": (own,),
        "point_tokenizer": (released.point_tokenizer_layout(),),
        "point_transformer": (released.point_transformer_layout(m.points.depth),),
        **aggregators,
    }
    setting = "config.model.checkpoint_weights"
    return {part: Pretrained(setting, m.checkpoint_weights, names) for part, names in layouts.items()}


# --- Losses


def loss(
    cfg: ml_collections.ConfigDict, representations: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, tuple[jax.Array, jax.Array]]:
    """`nce`, `relation_e`, `relation_a`, `relation_h`; a relation without weight in the config is (0, 0).

    All compare every pair with every other of the batch that is seen, on all devices.
    """
    rows = len(batch["position"])
    _check_relations(cfg, rows)
    image, cloud = (_everywhere(representations[name]["descriptor"]) for name in ("image", "cloud"))
    scale = representations["image"].get("scale", 1.0 / cfg.model.contrast.temperature)
    terms = {"nce": (jnp.sum(_contrast(cfg, image, cloud, scale, batch)), jnp.float32(rows))}
    for name, relation in RELATIONS.items():
        if cfg.loss[name]:
            terms[name] = rows * relation(cfg.model.relation, image, cloud), jnp.float32(rows)
        else:
            terms[name] = jnp.float32(0), jnp.float32(0)
    return terms


def _contrast(
    cfg: ml_collections.ConfigDict,
    image: jax.Array,
    cloud: jax.Array,
    scale: jax.Array | float,
    batch: dict[str, jax.Array],
) -> jax.Array:
    """(B, D), (B, D), 1/τ → (B,) losses."""
    c = cfg.model.contrast
    position, sequence = (_everywhere(batch[name]) for name in ("position", "sequence"))
    negative = contrastive.different_places(position, sequence, c.exclude_radius)
    return contrastive.FORMS[c.form](cloud, image, 1.0 / scale, negative)


# By the term's name in `config.loss`: (settings of `config.model.relation`, image, cloud) → mean.
RELATIONS = {
    "relation_e": lambda _, image, cloud: relations.euclidean_relation(image, cloud),
    "relation_a": lambda _, image, cloud: relations.angle_relation(image, cloud),
    "relation_h": lambda r, image, cloud: relations.hyperbolic_relation(
        image, cloud, r.curvature, r.clip_radius
    ),
}
LOSSES = ("nce", *RELATIONS)


def _everywhere(x: jax.Array) -> jax.Array:
    """(B, ...) → the same on every device: what all pairs are compared with."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())


# --- Predictions


def predict(
    cfg: ml_collections.ConfigDict, representations: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Both descriptors, what the two branches look at, and where the pair was taken."""
    del cfg
    image, cloud = representations["image"], representations["cloud"]
    return {
        "image_descriptor": image["descriptor"],
        "cloud_descriptor": cloud["descriptor"],
        "image_saliency": image["saliency"],
        "cloud_saliency": cloud["saliency"],
        "cloud_centres": cloud["centres"],
        "cloud_token_mask": cloud["token_mask"],
        "index": batch["index"],
        "sequence": batch["sequence"],
        "is_query": batch["is_query"],
    }
