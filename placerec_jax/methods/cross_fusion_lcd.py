"""Cross-fusion loop closure detection: LiDAR scans to loops, taught by a camera (Yue et al., RA-L).

A scan is seen from above. A backbone finds key points in the bird's-eye view (BEV); NetVLAD makes one
descriptor of their features, and the features themselves verify a loop: matches, then a planar pose. In
training, converters and a generator learn what an image would show of the same places and a second descriptor
is made of both (`fusion`); at test time the image is zero, so a scan alone suffices.

Frames: x' = A·x is the augmentation of a scan, map_T_lidar its pose. The pose between query q and positive p
maps the augmented query into the augmented positive, p_T_q = A_p·T_p⁻¹·T_q·A_q⁻¹.

Shapes: B examples of S scans (query, positive, negative in training, else one), K key points, N cells that
the camera sees ("links"), R pixels a cell, D channels.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from placerec_jax.data import scans
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.errors import ConfigError, one_of
from placerec_jax.methods import Encoder, run_encoders
from placerec_jax.modules import alike
from placerec_jax.modules.cross_modal import Converter, Fusion, Generator, PixelPool, sort_tokens
from placerec_jax.modules.harmonic import HarmonicBackbone, HarmonicSize
from placerec_jax.modules.loop_position import PositionEncoder
from placerec_jax.modules.netvlad import NetVLAD, l2_normalize
from placerec_jax.modules.ring_layout import RingLayout
from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.ops import keypoints, matching, transport
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.polar import LAYOUTS, layout_descriptor
from placerec_jax.ops.rigid import rigid_apply, rigid_inverse, se2_apply
from placerec_jax.ops.rigid_fit import fit_se2, fit_se3

# The tables of the paper are lost to us; its text gives these times, of a workstation with a TITAN RTX.
PUBLISHED_PROTOCOL = "milliseconds a scan on KITTI 08, from the text; the bodies of the tables are not known"
PUBLISHED = (
    {
        "table": "runtime",
        "model": "FUSION",
        "extraction_ms": 42.50,
        "retrieval_ms": 0.89,
        "verification_ms": 3.05,
        "total_ms": 46.44,
    },
)

TRIPLET = 3  # scans of a training example: query, positive, negative
PAIR = 2  # the first two of them
LEAST_EPSILON = 0.03  # of the transport, whatever is learned


# --- Settings


def _alike(size: str, model: ml_collections.ConfigDict, dtype: Any) -> nn.Module:
    del model  # a size says all
    return alike.Alike(alike.SIZES[size], dtype=dtype)


def _polar(model: ml_collections.ConfigDict, dtype: Any) -> nn.Module:
    p = model.polar
    levels = tuple(tuple(level) for level in p.levels)
    return HarmonicBackbone(HarmonicSize(levels, p.dim, p.smoothing), dtype)


# What looks at the BEV, by `config.model.backbone`: (config.model, dtype) → a module with `stride`, of which
# both sides of the BEV are multiples, `size.dim`, the D of its features, and
# __call__(bev (B, H, W, C), train) → (what features are read from, score (B, H, W) in (0, 1)) and
# features_at(what was returned, cell (B, K)) → features (B, K, D).
BACKBONES: dict[str, Callable[[ml_collections.ConfigDict, Any], nn.Module]] = {
    **{size: functools.partial(_alike, size) for size in alike.SIZES},
    "polar": _polar,  # turns with the scan, not of the paper
}

INPUTS = {"points": "points", "density": "bev"}  # to the records of a prepared folder (`data_prep lcd`)
EVALUATION_IMAGES = ("zero", "real")


class PoseKind(NamedTuple):
    """How a transform is fitted to weighted matches and applied to points."""

    fit: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
    apply: Callable[[jax.Array, jax.Array], jax.Array]
    truth: str  # the feature that holds the true one


# By `config.model.pose_dim`.
POSES = {
    2: PoseKind(fit_se2, lambda pose, xy: se2_apply(pose[:, None], xy), "true_pose"),
    3: PoseKind(fit_se3, rigid_apply, "true_transform"),
}


def check(cfg: ml_collections.ConfigDict) -> None:
    """Raises ConfigError for settings of network and layout that do not exist or contradict each other."""
    m = cfg.model
    for name, choices in (
        ("backbone", BACKBONES),
        ("image_backbone", alike.SIZES),
        ("eval_image", EVALUATION_IMAGES),
        ("descriptor_loss", DESCRIPTOR_LOSSES),
        ("loss_form", LOSS_FORMS),
        ("pose_dim", POSES),
    ):
        one_of(m, "config.model", name, choices)
    one_of(m.bev, "config.model.bev", "input", INPUTS)
    one_of(m.bev, "config.model.bev", "encoding", scans.ENCODINGS)
    one_of(m.bev, "config.model.bev", "interpolation", scans.INTERPOLATIONS)
    one_of(cfg.eval.layout, "config.eval.layout", "form", LAYOUTS)
    _check_sizes(cfg)
    if m.bev.input == "density" and (fused(cfg) or m.pose_dim == 3):
        raise ConfigError(
            "config.model.bev.input 'density' has neither points nor images: expected "
            "config.model.fusion.enabled False and config.model.pose_dim 2"
        )
    for name, channel in (("eval.layout", cfg.eval.layout.channel), ("model.rings", m.rings.channel)):
        if not 0 <= channel < bev_channels(cfg):
            raise ConfigError(
                f"config.{name}.channel is {channel}; expected one of the {bev_channels(cfg)} channels of "
                "the BEV"
            )
    if m.rings.frequencies > m.rings.azimuths // 2 + 1:
        raise ConfigError(
            f"config.model.rings.frequencies is {m.rings.frequencies}; expected at most "
            f"{m.rings.azimuths // 2 + 1}, of {m.rings.azimuths} azimuths"
        )
    if fused(cfg) and m.links % m.num_keypoints:
        raise ConfigError(
            f"config.model.links is {m.links}; expected a multiple of config.model.num_keypoints "
            f"({m.num_keypoints}), so that the generator averages whole tokens"
        )


def _check_sizes(cfg: ml_collections.ConfigDict) -> None:
    """Raises ConfigError where cells, pixels, channels or shares do not come out even."""
    m = cfg.model
    try:
        bev, image = bev_grid(cfg).shape, image_window(cfg).shape
    except ValueError as error:
        raise ConfigError(
            f"config.model.bev.extent and cell, or config.model.image_crop and image_factor: {error}"
        ) from None
    backbone = BACKBONES[m.backbone](m, jnp.float32)
    sides = [("config.model.bev.extent / cell", bev, backbone.stride)]
    if fused(cfg):
        sides.append(("config.model.image_crop / image_factor", image, alike.STRIDE))
    for name, shape, stride in sides:
        if any(side % stride for side in shape):
            raise ConfigError(f"{name} is {shape}; expected multiples of {stride} for its backbone")
    if fused(cfg) and backbone.size.dim % m.heads:
        raise ConfigError(
            f"config.model.heads is {m.heads}; expected a divisor of the {backbone.size.dim} channels of "
            f"config.model.backbone {m.backbone!r}"
        )
    if m.num_keypoints > bev[0] * bev[1]:
        raise ConfigError(f"config.model.num_keypoints is {m.num_keypoints}; the BEV has {bev} cells")
    if not m.bev.z_range[0] < m.bev.z_range[1]:
        raise ConfigError(f"config.model.bev.z_range is {tuple(m.bev.z_range)}; expected (lowest, highest)")
    shares = {
        "eval.layout.share": cfg.eval.layout.share,
        "model.rings.share": m.rings.share,
        "data.image_dropout": cfg.data.image_dropout,
        "data.near_negatives": cfg.data.near_negatives,
    }
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ConfigError(f"config.{name} is {share}; expected a share from 0 to 1")


def check_data(cfg: ml_collections.ConfigDict, prepared: PreparedFolder) -> None:
    """Raises ConfigError where a prepared folder holds other records than the config's BEV is made of.

    Pictures of other cells would be seen at another scale, and nothing else would tell.
    """
    b, manifest = cfg.model.bev, prepared.manifest
    found, expected = manifest.get("records"), INPUTS[b.input]
    if found != expected:
        raise ConfigError(
            f"{prepared.root}: config.model.bev.input is {b.input!r}, which needs records of {expected!r} "
            f"(python -m data_prep lcd); manifest.json says {found!r}. Set config.data.root or the input."
        )
    cell = manifest.get("recipe", {}).get("bev_cell_m")
    if b.input == "density" and cell != b.cell:
        raise ConfigError(
            f"{prepared.root}: its pictures have cells of {cell} m (manifest.json, recipe.bev_cell_m), "
            f"config.model.bev.cell is {b.cell}. Expected the same: convert with --bev-cell, or change it."
        )


def bev_grid(cfg: ml_collections.ConfigDict) -> Grid2D:
    """The BEV, in the frame of the (augmented) scan."""
    return Grid2D(tuple(cfg.model.bev.extent), cfg.model.bev.cell)


def bev_channels(cfg: ml_collections.ConfigDict) -> int:
    """Channels of the BEV."""
    b = cfg.model.bev
    return 1 if b.input == "density" else scans.bev_channels(bev_grid(cfg), tuple(b.z_range), b.encoding)


def image_window(cfg: ml_collections.ConfigDict) -> scans.ImageWindow:
    """The part of the camera image that the network sees."""
    return scans.ImageWindow(tuple(cfg.model.image_crop), cfg.model.image_factor)


def fused(cfg: ml_collections.ConfigDict) -> bool:
    """Whether there is a second branch that imagines an image; without (BEVLCD) D = D_B."""
    f = cfg.model.fusion
    return f.enabled and (f.use_cvtkb or f.use_genkb or f.use_cvtki)


def sees_image(cfg: ml_collections.ConfigDict, training: bool) -> bool:
    """Whether examples hold images and links."""
    return fused(cfg) and (training or cfg.model.eval_image == "real")


# --- What the network reads


def features(cfg: ml_collections.ConfigDict, training: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of one example: a triplet with labels in training, else one scan."""
    check(cfg)
    m, count = cfg.model, TRIPLET if training else 1
    grid, shape = bev_grid(cfg).shape, jax.ShapeDtypeStruct
    found = {
        "bev": shape((count, *grid, bev_channels(cfg)), np.float32),
        "map_T_lidar": shape((count, 4, 4), np.float32),  # from the first pose of the sequence
        "sequence": shape((count,), np.int32),
        "sequence_position": shape((count,), np.int32),
        "index": shape((), np.int32),
    }
    if sees_image(cfg, training):
        found |= {
            "image": shape((count, *image_window(cfg).shape, 3), np.uint8),
            "link_cell": shape((count, m.links), np.int32),
            "link_pixel": shape((count, m.links, m.link_pixels), np.int32),
            "link_mask": shape((count, m.links, m.link_pixels), np.bool_),
        }
    if training:
        found |= {
            "score_label": shape((PAIR, *grid), np.uint8),
            "true_pose": shape((3,), np.float32),  # p_T_q
        }
        if m.pose_dim == 3:
            found |= {
                "height": shape((PAIR, *grid), np.float32),  # mean z of a cell, metres
                "true_transform": shape((4, 4), np.float32),  # p_T_q
            }
    return found


class Trajectories:
    """Where every record of `frames` stands: sequence (F,), position in it (F,), map_T_lidar (F, 4, 4)."""

    def __init__(self, prepared: PreparedFolder) -> None:
        table = prepared.table("sequences")
        records = [table.read(i) for i in range(len(table))]
        lengths = [len(record["map_T_lidar"]) for record in records]
        self.names = tuple(record["sequence"].decode() for record in records)
        self.sequence = np.repeat(np.arange(len(records)), lengths)
        self.position = np.concatenate([np.arange(length) for length in lengths])
        self.map_T_lidar = np.concatenate([np.asarray(r["map_T_lidar"], np.float64) for r in records])
        self.first = np.array([int(record["first"]) for record in records])

    def relative_pose(self, number: int) -> np.ndarray:
        """(4, 4) pose of a record in the frame of its sequence's first."""
        start = self.map_T_lidar[self.first[self.sequence[number]]]
        return rigid_inverse(start) @ self.map_T_lidar[number]


class Source:
    """Scans of a split: triplets about the frames that have a loop in training, else every frame."""

    def __init__(
        self, cfg: ml_collections.ConfigDict, prepared: PreparedFolder, split: str, training: bool
    ) -> None:
        check(cfg)
        check_data(cfg, prepared)
        self._cfg, self._training = cfg, training
        self._frames = prepared.table("frames")
        self._grid = bev_grid(cfg)
        self._image = sees_image(cfg, training)
        self._trajectories = Trajectories(prepared)
        self._split = prepared.split(cfg.data.scheme, split)
        self._records = self._split
        self._augmentation = scans.ScanAugmentation(**cfg.data.augmentation)
        if training:
            self._offset = prepared.split("loops", "offset")
            self._positive = prepared.split("loops", "positive")
            self._member = np.zeros(len(self._frames), np.bool_)
            self._member[self._split] = True
            self._records = self._queries(f"{prepared.root}: split {split!r} of scheme {cfg.data.scheme!r}")

    def __len__(self) -> int:
        return len(self._records)

    def example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Example `index`; partners, augmentation and links are drawn from `rng`."""
        query = int(self._records[index])
        numbers = [query]
        if self._training:
            numbers += [int(rng.choice(self._positives(query))), self._draw_negative(query, rng)]
        moves = [self._move(rng) for _ in numbers]
        read = {"points": self._read_points, "density": self._read_density}[self._cfg.model.bev.input]
        seen = [read(number, move, rng) for number, move in zip(numbers, moves, strict=True)]
        poses = [
            self._trajectories.relative_pose(number) @ rigid_inverse(move)
            for number, move in zip(numbers, moves, strict=True)
        ]
        example = {name: np.stack([scan[name] for scan in seen]) for name in seen[0] if name != "height"}
        example |= {
            "map_T_lidar": np.stack(poses).astype(np.float32),
            "sequence": self._trajectories.sequence[numbers].astype(np.int32),
            "sequence_position": self._trajectories.position[numbers].astype(np.int32),
            "index": np.int32(query),
        }
        return example | (self._labels(numbers, moves, seen) if self._training else {})

    def _queries(self, where: str) -> np.ndarray:
        """Frames of the split that have both a positive and a negative in it."""
        with_positive = [number for number in self._split if len(self._positives(int(number)))]
        if not with_positive:
            names = sorted({self._trajectories.names[i] for i in self._trajectories.sequence[self._split]})
            raise ConfigError(
                f"{where} has {len(self._split)} frames (sequences {names}) and no loop among them: no place "
                "is visited twice by the rule of the converter (manifest.json). There is nothing to learn "
                "from; choose sequences with loops (config.data.train_split, or `data_prep lcd --train`)."
            )
        queries = [number for number in with_positive if len(self._negatives(int(number)))]
        if not queries:
            raise ConfigError(
                f"{where}: no frame has another of its sequence farther than "
                f"config.data.negative_distance ({self._cfg.data.negative_distance} m)."
            )
        return np.array(queries)

    def _positives(self, number: int) -> np.ndarray:
        found = self._positive[self._offset[number] : self._offset[number + 1]]
        return found[self._member[found]]

    def _draw_negative(self, number: int, rng: np.random.Generator) -> int:
        """Any negative, or in a share of the cases one of those that are just too far."""
        d = self._cfg.data
        near = d.near_negatives > 0 and rng.random() < d.near_negatives
        chosen = self._negatives(number, d.negative_distance + d.near_reach) if near else ()
        return int(rng.choice(chosen if len(chosen) else self._negatives(number)))

    def _negatives(self, number: int, farthest: float = np.inf) -> np.ndarray:
        place, of = self._trajectories.map_T_lidar[:, :3, 3], self._trajectories.sequence
        others = self._split[of[self._split] == of[number]]
        distance = np.linalg.norm(place[others] - place[number], axis=1)
        return others[(distance > self._cfg.data.negative_distance) & (distance < farthest)]

    def _move(self, rng: np.random.Generator) -> np.ndarray:
        """(4, 4) A of one scan."""
        if self._training:
            return scans.draw_augmentation(self._augmentation, rng)
        largest = self._cfg.data.query_yaw
        return scans.draw_augmentation(scans.ScanAugmentation(0.0, 0.0, 0.0, largest), rng)

    def _read_points(self, number: int, move: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        b = self._cfg.model.bev
        record = self._frames.read(number, images=self._image)
        points, reflectance = scans.points_of(record)
        points = scans.move_points(move, points)
        cells = scans.cells_of(points, self._grid, tuple(b.z_range))
        bev = scans.encode_bev(points, reflectance, self._grid, tuple(b.z_range), b.encoding, cells)
        found = {"bev": bev}
        if self._training and self._cfg.model.pose_dim == 3:
            found["height"] = _mean_height(points[:, 2], cells, self._grid)
        if self._image:
            found |= self._links(record, cells, rng)
        return found

    def _links(
        self, record: dict[str, Any], cells: np.ndarray, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        """Image and link table of a record with points in `cells`."""
        m, window = self._cfg.model, image_window(self._cfg)
        if "image" not in record:
            raise ConfigError(
                "config.model.fusion.enabled needs images, and the frames of config.data.root have none: "
                "convert a dataset with images, or set --config.model.fusion.enabled=False (BEVLCD)"
            )
        found = scans.link_table(cells, record, window, m.links, m.link_pixels, rng)
        found["image"] = window.cut(record["image"])
        if self._training and rng.random() < self._cfg.data.image_dropout:
            found["image"] = np.zeros_like(found["image"])
        return found

    def _read_density(self, number: int, move: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        del rng  # a picture has no links to draw
        b, picture = self._cfg.model.bev, self._frames.read(number)["bev"]
        radius = b.disc_radius or None
        return {
            "bev": scans.density_bev(picture, self._grid, move, radius=radius, interpolation=b.interpolation)
        }

    def _labels(
        self, numbers: list[int], moves: list[np.ndarray], seen: list[dict[str, np.ndarray]]
    ) -> dict[str, np.ndarray]:
        """Score labels and true pose of query and positive."""
        q, p = (self._trajectories.map_T_lidar[number] for number in numbers[:PAIR])
        p_T_q = scans.planar_transform(moves[1], p, q, moves[0])
        occupied = [scans.occupied_cells(scan["bev"]) for scan in seen[:PAIR]]
        distance = self._cfg.data.label_cells * self._grid.cell
        labels = {
            "score_label": np.stack(scans.matching_labels(*occupied, p_T_q, self._grid, distance)),
            "true_pose": p_T_q.astype(np.float32),
        }
        if self._cfg.model.pose_dim == 3:
            transform = moves[1] @ rigid_inverse(p) @ q @ rigid_inverse(moves[0])
            labels["true_transform"] = transform.astype(np.float32)
            labels["height"] = np.stack([scan["height"] for scan in seen[:PAIR]])
        return labels


def _mean_height(z: np.ndarray, cells: np.ndarray, grid: Grid2D) -> np.ndarray:
    """(N,) heights (m), (N,) cells or -1 → (H, W) float32 means; 0 in empty cells."""
    inside, size = cells >= 0, grid.shape[0] * grid.shape[1]
    count = np.bincount(cells[inside], minlength=size)
    total = np.bincount(cells[inside], weights=z[inside], minlength=size)
    return (total / np.maximum(count, 1)).reshape(grid.shape).astype(np.float32)


def source(cfg: ml_collections.ConfigDict, prepared: PreparedFolder, split: str, training: bool) -> Source:
    """Examples of `split`; see `Source`."""
    return Source(cfg, prepared, split, training)


# --- The network


def _flat(x: jax.Array) -> jax.Array:
    """(B, S, ...) → (B·S, ...)."""
    return constrain_batch(x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]))


def _unflat(tree: dict[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """(B·S, ...) → (B, S, ...) of every array."""
    return {name: x.reshape(-1, count, *x.shape[1:]) for name, x in tree.items()}


class SoftMatch(nn.Module):
    """Features (B, K, D) of two scans → mean partner (B, K, 2|3) of each point of the first, its mass (B, K).

    Unbalanced transport under the cosine distance; how sharp it is and what staying alone costs is learned.
    """

    iterations: int
    eps_init: float
    gamma_init: float

    @nn.compact
    def __call__(
        self,
        query: jax.Array,
        target: jax.Array,
        query_mask: jax.Array,
        target_mask: jax.Array,
        target_xy: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        if self.eps_init <= LEAST_EPSILON or self.gamma_init <= 0:
            raise ConfigError(
                f"config.model.sinkhorn: eps_init is {self.eps_init} and gamma_init {self.gamma_init}; "
                f"expected more than {LEAST_EPSILON} and more than 0"
            )
        constant = nn.initializers.constant
        log_epsilon = self.param("log_epsilon", constant(np.log(self.eps_init - LEAST_EPSILON)), ())
        log_gamma = self.param("log_gamma", constant(np.log(self.gamma_init)), ())
        similarity = jnp.einsum(
            "bkd,bnd->bkn", l2_normalize(query), l2_normalize(target), precision=jax.lax.Precision.HIGHEST
        )
        plan = transport.unbalanced_sinkhorn(
            1.0 - similarity,
            jnp.exp(log_epsilon) + LEAST_EPSILON,
            jnp.exp(log_gamma),
            self.iterations,
            query_mask,
            target_mask,
        )
        return transport.soft_targets(plan, target_xy)


class CrossFusionLCD(nn.Module):
    """The whole model; submodule names are the components that `describe` reports."""

    cfg: ml_collections.FrozenConfigDict

    def setup(self) -> None:
        check(self.cfg)
        m, dtype = self.cfg.model, jnp.dtype(self.cfg.dtype)
        self.bev_backbone = BACKBONES[m.backbone](m, dtype)
        if m.position_encoder:
            x_min, x_max, y_min, y_max = bev_grid(self.cfg).extent
            reach = float(np.hypot(x_max - x_min, y_max - y_min))  # no two cells are farther apart
            self.position_encoder = PositionEncoder(reach, m.position_bins, dtype)
        self.bev_vlad = NetVLAD(m.clusters)
        if m.rings.share:
            settings = {name: value for name, value in m.rings.items() if name != "share"}
            self.ring_layout = RingLayout(bev_grid(self.cfg), **settings, dtype=dtype)
        if fused(self.cfg):
            # With borders replicated, an image of zeros has the same feature everywhere.
            self.image_backbone = alike.Alike(alike.SIZES[m.image_backbone], "replicate", dtype)
            self.to_image = Converter(m.heads, dtype)
            self.to_bev = Converter(m.heads, dtype)
            if m.fusion.use_genkb:
                self.generator = Generator(m.heads, dtype)
            self.pixel_pool = PixelPool(dtype)
            self.fuse = Fusion(m.heads, dtype)
            self.fused_vlad = NetVLAD(m.clusters)
            self.mix = self.param("mix", nn.initializers.zeros, ())
        settings = (m.sinkhorn.iters, m.sinkhorn.eps_init, m.sinkhorn.gamma_init)
        self.match_bev = SoftMatch(*settings)
        if fused(self.cfg) and not m.sinkhorn.shared:
            self.match_fused = SoftMatch(*settings)

    def encode_scan(
        self, bev: jax.Array, link_cell: jax.Array | None = None, *, train: bool
    ) -> dict[str, jax.Array]:
        """(B, S, H, W, C) float32 [, (B, S, N) cells] → score (B, S, H, W) and key points of every scan.

        `cell` (B, S, K), `xy` (m), `mask`, `keypoint_score`, `features` F_KB of unit length (zero where
        masked). With links also `link_features` F_B (B, S, N, D) and `link_score` (B, S, N).
        """
        m, grid, count = self.cfg.model, bev_grid(self.cfg), bev.shape[1]
        bev = _flat(bev)
        occupied = jnp.any(bev != 0, axis=-1)
        values, score = self.bev_backbone(bev, train)
        score = jnp.where(occupied, score, 0.0)
        cell, mask, best = keypoints.top_keypoints(score, occupied, m.num_keypoints, m.nms_radius, m.border)
        xy = _centre(cell, grid)
        found = l2_normalize(self.bev_backbone.features_at(values, cell))
        if m.position_encoder:
            found = l2_normalize(self.position_encoder(found, xy, mask))
        out = {
            "score": score,
            "cell": cell,
            "xy": xy,
            "mask": mask,
            "keypoint_score": best,
            "features": found * mask[..., None],
        }
        if m.rings.share:
            out["rings"] = self.ring_layout(bev)
        if (layout := self.cfg.eval.layout).share:
            weight = bev[..., layout.channel, None] ** layout.power
            out["layout"] = layout_descriptor(weight, grid, layout.smoothing, layout.form)
        if link_cell is not None:
            link_cell = _flat(link_cell)
            out["link_features"] = l2_normalize(self.bev_backbone.features_at(values, link_cell))
            out["link_score"] = keypoints.gather(score[..., None], link_cell)[..., 0]
        return _unflat(out, count)

    def encode_image(
        self,
        image: jax.Array,
        link_pixel: jax.Array,
        link_mask: jax.Array,
        scan: dict[str, jax.Array],
        train: bool,
    ) -> dict[str, jax.Array]:
        """(B, S, h, w, 3) uint8 and links (B, S, N, R) → what linked cells look like, for BEV and key points.

        `features` F_I and `converted` CVT_B(F_I) (B, S, N, D), `converted_scan` CVT_I(F_B), `mask` (B, S, N),
        `generated` F_GENKB (B, S, K, D), `seen` (B, S): whether there is any link.
        """
        count = image.shape[1]
        image, link_pixel, link_mask = _flat(image), _flat(link_pixel), _flat(link_mask)
        link_features, link_score = _flat(scan["link_features"]), _flat(scan["link_score"])
        values = self.image_backbone.encode(image.astype(jnp.float32) / 255.0, train)
        pixels = keypoints.gather(values, link_pixel.reshape(len(image), -1))
        pixels = self.image_backbone.read(pixels).reshape(*link_pixel.shape, -1)
        pooled = self.pixel_pool(pixels, link_mask, link_features.shape[-1])
        mask = link_mask.any(axis=-1)
        out = {
            "features": pooled,
            "mask": mask,
            "converted": self.to_bev(pooled, mask),
            "converted_scan": self.to_image(link_features, mask),
            "seen": mask.any(axis=-1),
        }
        if self.cfg.model.fusion.use_genkb:
            # In the order of the key points, which is that of their scores: no turn of the scan changes it.
            tokens, token_mask = sort_tokens(out["converted"], mask, link_score)
            out["generated"] = self.generator(tokens, token_mask, scan["mask"].shape[2])
        return _unflat(out, count)

    def imagine_image(self, scan: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        """What `encode_image` would generate from an image of zeros, of which no pixel differs from another.

        All linked cells then have one and the same feature, so the smallest image the backbone takes stands
        for any size, one token for any number of links (a multiple of the key points), and F_GENKB is one
        vector, which depends on the weights alone.
        """
        batch, count, points, dim = scan["features"].shape
        image = jnp.zeros((batch, alike.STRIDE, alike.STRIDE, 3), jnp.float32)
        pixels = self.image_backbone.read(self.image_backbone.encode(image, train)[:, :1, :1])
        mask = jnp.ones((batch, 1), bool)
        token = self.to_bev(self.pixel_pool(pixels, mask[..., None], dim), mask)
        out = {"seen": jnp.ones((batch, count), bool)}
        if self.cfg.model.fusion.use_genkb:
            generated = self.generator(token, mask, 1)
            out["generated"] = jnp.broadcast_to(generated[:, None], (batch, count, points, dim))
        return out

    def encode_fusion(
        self, scan: dict[str, jax.Array], image: dict[str, jax.Array], train: bool
    ) -> dict[str, jax.Array]:
        """Eq. 3 and the fusion: `features` F_KBI (B, S, K, D) of unit length, zero where masked."""
        del train
        f, count = self.cfg.model.fusion, scan["mask"].shape[1]
        found, mask = _flat(scan["features"]), _flat(scan["mask"])
        as_image = self.to_image(found, mask)  # F_CVTKI
        sources, known = [found], [jnp.ones(len(found), bool)]
        if f.use_cvtkb:
            sources.append(self.to_bev(as_image, mask))  # F_CVTKB
            known.append(jnp.ones(len(found), bool))
        if f.use_genkb:
            sources.append(_flat(image["generated"]))  # F_GENKB
            known.append(_flat(image["seen"]))
        memory = as_image if f.use_cvtki else None
        both = self.fuse(found, jnp.stack(sources, axis=2), jnp.stack(known, axis=1), memory, mask)
        return _unflat({"features": l2_normalize(both) * mask[..., None]}, count)

    def describe(
        self, scan: dict[str, jax.Array], fusion: dict[str, jax.Array] | None = None, *, train: bool
    ) -> dict[str, jax.Array]:
        """Eq. 4: `learned` (B, S, clusters · D), σ(λ)·D_BI + (1 − σ(λ))·D_B, and the `descriptor` of a place.

        `model.rings.share` gives the learned ring layout a share of the squared distances of `learned`, and
        `eval.layout.share` the layout in which nothing is learned one of those of `descriptor`.
        """
        del train
        count, mask = scan["mask"].shape[1], _flat(scan["mask"])
        descriptor = self.bev_vlad(_flat(scan["features"]), mask)
        if fusion is not None:
            share = nn.sigmoid(self.mix)
            descriptor = share * self.fused_vlad(_flat(fusion["features"]), mask) + (1 - share) * descriptor
        if self.cfg.model.renormalize_descriptor:
            descriptor = l2_normalize(descriptor)
        learned = _unflat({"learned": descriptor}, count)["learned"]
        if share_of_rings := self.cfg.model.rings.share:
            learned = _joined(learned, scan["rings"], share_of_rings)
        out = {"learned": learned, "descriptor": learned}
        if share_of_layout := self.cfg.eval.layout.share:
            out["descriptor"] = _joined(learned, scan["layout"], share_of_layout)
        return out

    def align(
        self,
        scan: dict[str, jax.Array],
        fusion: dict[str, jax.Array] | None = None,
        height: jax.Array | None = None,
        *,
        train: bool,
    ) -> dict[str, jax.Array]:
        """Soft matches of query and positive and the pose they give; {} where there is no pair.

        `query` (B, K, 2|3) and `mask` (B, K), and for every branch `<branch>_target` (B, K, 2|3) and
        `<branch>_pose` (B, 3) or (B, 4, 4), p_T_q.
        """
        del train
        if scan["mask"].shape[1] < PAIR and not self.is_initializing():
            return {}
        q, p = 0, min(1, scan["mask"].shape[1] - 1)  # a model is initialised from examples of one scan
        mask, points = scan["mask"], scan["xy"]
        fit = fit_se2
        if height is not None:
            fit = fit_se3
            z = keypoints.gather(_flat(height)[..., None], _flat(scan["cell"][:, :PAIR]))
            points = jnp.concatenate([points[:, :PAIR], z.reshape(*points[:, :PAIR].shape[:-1], 1)], axis=-1)
        out = {"query": points[:, q], "mask": mask[:, q] & mask[:, p].any(axis=-1, keepdims=True)}
        branches = {"bev": (self.match_bev, scan["features"])}
        if fusion is not None:
            matcher = self.match_bev if self.cfg.model.sinkhorn.shared else self.match_fused
            branches["fused"] = (matcher, fusion["features"])
        for branch, (matcher, found) in branches.items():
            target, weight = matcher(found[:, q], found[:, p], mask[:, q], mask[:, p], points[:, p])
            out[f"{branch}_target"] = target
            out[f"{branch}_pose"] = fit(points[:, q], target, weight)
        return out

    def __call__(self, batch: dict[str, jax.Array], train: bool) -> dict[str, Any]:
        return run_encoders(self, encoders(self.cfg, train), batch, train)


def _joined(first: jax.Array, second: jax.Array, share: float) -> jax.Array:
    """(..., D), (..., E) → (..., D + E), of whose squared distances the second has `share`."""
    return jnp.concatenate([(1 - share) ** 0.5 * first, share**0.5 * second], axis=-1)


def _centre(cell: jax.Array, grid: Grid2D) -> jax.Array:
    """(...) int32 flat cells → (..., 2) float32 centres (x, y) in metres."""
    row, column = cell // grid.shape[1], cell % grid.shape[1]
    index = jnp.stack([row, column], axis=-1).astype(jnp.float32)
    return (index + 0.5) * grid.cell + jnp.asarray(grid.lower, jnp.float32)


def model(cfg: ml_collections.ConfigDict) -> CrossFusionLCD:
    """The network `cfg` describes."""
    return CrossFusionLCD(ml_collections.FrozenConfigDict(cfg))


def encoders(cfg: ml_collections.ConfigDict, train: bool = False) -> dict[str, Encoder]:
    """Scan, image and fusion (where there is a second branch), descriptor, alignment of query and positive.

    Names do not depend on `train`; what is read does: at evaluation there is no image unless it is asked for.
    """
    height = ("height",) if train and cfg.model.pose_dim == 3 else ()
    if not fused(cfg):
        return {
            "scan": Encoder(("bev",), CrossFusionLCD.encode_scan),
            "descriptor": Encoder(("scan",), CrossFusionLCD.describe),
            "alignment": Encoder(("scan", *height), _align_without_fusion),
        }
    if sees_image(cfg, train):
        scan = Encoder(("bev", "link_cell"), CrossFusionLCD.encode_scan)
        image = Encoder(("image", "link_pixel", "link_mask", "scan"), CrossFusionLCD.encode_image)
    else:
        scan = Encoder(("bev",), CrossFusionLCD.encode_scan)
        image = Encoder(("scan",), CrossFusionLCD.imagine_image)
    return {
        "scan": scan,
        "image": image,
        "fusion": Encoder(("scan", "image"), CrossFusionLCD.encode_fusion),
        "descriptor": Encoder(("scan", "fusion"), CrossFusionLCD.describe),
        "alignment": Encoder(("scan", "fusion", *height), CrossFusionLCD.align),
    }


def _align_without_fusion(
    module: CrossFusionLCD, scan: dict[str, jax.Array], height: jax.Array | None = None, *, train: bool
) -> dict[str, jax.Array]:
    return module.align(scan, None, height, train=train)


# --- Losses


Terms = dict[str, tuple[jax.Array, jax.Array]]


def loss(
    cfg: ml_collections.ConfigDict, representations: dict[str, Any], batch: dict[str, jax.Array]
) -> Terms:
    """Eqs. 5-11: `score`, `triplet`, `pose`, `match`, and of the second branch `cvtb`, `cvti`, `gen`.

    Examples of one scan have nothing to compare with: every term is then (0, 0).
    """
    if batch["bev"].shape[1] < TRIPLET:
        return {name: (jnp.float32(0), jnp.float32(0)) for name in loss_terms(cfg)}
    scan, alignment = representations["scan"], representations["alignment"]
    kind = POSES[cfg.model.pose_dim]
    branches = ("bev", "fused") if fused(cfg) else ("bev",)
    truth = kind.apply(batch[kind.truth], alignment["query"])
    moved = [kind.apply(alignment[f"{branch}_pose"], alignment["query"]) for branch in branches]
    targets = [alignment[f"{branch}_target"] for branch in branches]
    compare = LOSS_FORMS[cfg.model.loss_form]
    terms = {
        "score": _score_loss(scan["score"][:, :PAIR], batch["score_label"]),
        "triplet": DESCRIPTOR_LOSSES[cfg.model.descriptor_loss](
            cfg, representations["descriptor"]["learned"], batch
        ),
        "pose": compare(moved, truth, alignment["mask"]),
        "match": compare(targets, truth, alignment["mask"]),
    }
    if fused(cfg):
        terms |= _image_losses(cfg, scan, representations["image"])
    return terms


def loss_terms(cfg: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The terms that `loss` has under these settings; each needs a weight in `config.loss`."""
    terms = ("score", "triplet", "pose", "match")
    if not fused(cfg):
        return terms
    return (*terms, "cvtb", "cvti", "gen") if cfg.model.fusion.use_genkb else (*terms, "cvtb", "cvti")


def _score_loss(score: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eq. 5: squared error over cells whose label is 0 or 1, which are not empty."""
    known = label != scans.IGNORE
    error = jnp.where(known, score - label.astype(jnp.float32), 0.0)
    return jnp.sum(error**2), jnp.sum(known, dtype=jnp.float32)


def _triplet_loss(
    cfg: ml_collections.ConfigDict, descriptor: jax.Array, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Eq. 6 on (B, 3, D): the positive nearer than the negative by the margin, in Euclidean distance."""
    del batch
    query, positive, negative = descriptor[:, 0], descriptor[:, 1], descriptor[:, 2]
    near, far = (jnp.sqrt(jnp.sum((query - x) ** 2, axis=-1) + 1e-12) for x in (positive, negative))
    return jnp.sum(nn.relu(near - far + cfg.model.margin)), jnp.float32(len(query))


def _contrastive_loss(
    cfg: ml_collections.ConfigDict, descriptor: jax.Array, batch: dict[str, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """InfoNCE on (B, 3, D): query and positive find each other among all scans of the batch that are far.

    A scan is far in another sequence, or beyond `data.negative_distance`. Two are alike by minus half their
    squared distance, which is the cosine less one where descriptors have unit length. Not of the paper: a
    triplet's random negative is soon too easy, of many the hardest counts.
    """
    flat = descriptor.reshape(-1, descriptor.shape[-1])
    place, sequence = batch["map_T_lidar"][..., :3, 3].reshape(-1, 3), batch["sequence"].reshape(-1)
    numbers = jnp.arange(len(flat)).reshape(-1, TRIPLET)
    anchor = numbers[:, :PAIR].reshape(-1)
    partner = numbers[:, PAIR - 1 :: -1].reshape(-1)
    distance = jnp.linalg.norm(place[anchor][:, None] - place, axis=-1)
    far = (distance > cfg.data.negative_distance) | (sequence[anchor][:, None] != sequence)
    far &= numbers.reshape(-1) != partner[:, None]  # both were shifted, and may be farther apart than driven
    # What retrieval orders by. An inner product would reward long descriptors, and a mean of two (eq. 4) is
    # the longer the more alike they are.
    product = jnp.matmul(flat[anchor], flat.T, precision=jax.lax.Precision.HIGHEST)
    half_norms = 0.5 * jnp.sum(flat**2, axis=-1)
    similarity = (product - half_norms[anchor][:, None] - half_norms) / cfg.model.temperature
    right = jnp.take_along_axis(similarity, partner[:, None], axis=1)[:, 0]
    others = jax.nn.logsumexp(jnp.where(far, similarity, -jnp.inf), axis=1)
    return jnp.sum(jnp.logaddexp(right, others) - right), jnp.float32(len(anchor))


DESCRIPTOR_LOSSES = {"triplet": _triplet_loss, "contrastive": _contrastive_loss}


def split_form(found: list[jax.Array], truth: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Σ over branches of |found − truth|₁ (m) at (B, K) points: what eqs. 7 and 8 must mean.

    It is zero only where every branch is right.
    """
    error = sum(jnp.sum(jnp.abs(x - truth), axis=-1) for x in found)
    return jnp.sum(jnp.where(mask, error, 0.0)), jnp.sum(mask, dtype=jnp.float32)


def literal_form(found: list[jax.Array], truth: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """|Σ over branches of (found − truth)|₁ (m), as eqs. 7 and 8 are printed: opposite errors cancel."""
    error = jnp.sum(jnp.abs(sum(x - truth for x in found)), axis=-1)
    return jnp.sum(jnp.where(mask, error, 0.0)), jnp.sum(mask, dtype=jnp.float32)


LOSS_FORMS = {"split": split_form, "literal": literal_form}


def _image_losses(
    cfg: ml_collections.ConfigDict, scan: dict[str, jax.Array], image: dict[str, jax.Array]
) -> Terms:
    """Eqs. 9-11: 1 − cos between what was converted or generated and what it should be like."""
    target = jax.lax.stop_gradient if cfg.model.detach_targets else lambda x: x
    terms = {
        "cvtb": _cosine_loss(image["converted"], target(scan["link_features"]), image["mask"]),
        "cvti": _cosine_loss(image["converted_scan"], target(image["features"]), image["mask"]),
    }
    if "generated" in image:
        mask = scan["mask"] & image["seen"][..., None]
        terms["gen"] = _cosine_loss(image["generated"], target(scan["features"]), mask)
    return terms


def _cosine_loss(found: jax.Array, target: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    cosine = jnp.sum(l2_normalize(found) * l2_normalize(target), axis=-1)
    return jnp.sum(jnp.where(mask, 1.0 - cosine, 0.0)), jnp.sum(mask, dtype=jnp.float32)


# --- Predictions and verification


def predict(
    cfg: ml_collections.ConfigDict, representations: dict[str, Any], batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Of every scan `descriptor`, `keypoint_{xy,mask,feature,score}` (m, float16), and where it was taken."""
    scan = representations["scan"]
    found = representations["fusion"] if fused(cfg) else scan
    return {
        "descriptor": representations["descriptor"]["descriptor"][:, 0],
        "keypoint_xy": scan["xy"][:, 0],
        "keypoint_mask": scan["mask"][:, 0],
        "keypoint_feature": found["features"][:, 0].astype(jnp.float16),
        "keypoint_score": scan["keypoint_score"][:, 0],
        "map_T_lidar": batch["map_T_lidar"][:, 0],
        "sequence": batch["sequence"][:, 0],
        "sequence_position": batch["sequence_position"][:, 0],
        "index": batch["index"],
    }


def match(
    cfg: ml_collections.ConfigDict, query: dict[str, jax.Array], candidate: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Verifies B pairs of scans by their `keypoint_*` predictions; the same answer every time.

    Returns `pose` (B, 3) candidate_T_query, `inliers` (B,), `partner` (B, K) of every key point of the query
    among the candidate's (−1: none), and `inlier_mask` (B, K).
    """
    r, cell = cfg.eval.ransac, cfg.model.bev.cell
    partner, _ = matching.mutual_nearest(
        query["keypoint_feature"].astype(jnp.float32),
        candidate["keypoint_feature"].astype(jnp.float32),
        query["keypoint_mask"],
        candidate["keypoint_mask"],
    )
    target = jnp.take_along_axis(candidate["keypoint_xy"], jnp.maximum(partner, 0)[..., None], axis=1)
    pose, inliers, inlier_mask, _ = matching.ransac_se2(
        query["keypoint_xy"],
        target,
        partner >= 0,
        jax.random.key(0),
        hypotheses=r.hypotheses,
        radius=r.radius * cell,
        min_separation=r.min_separation * cell,
    )
    return {"pose": pose, "inliers": inliers, "partner": partner, "inlier_mask": inlier_mask}
