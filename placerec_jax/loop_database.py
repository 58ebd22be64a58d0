"""Loops among the scans of any LiDAR, as they come: add a scan, ask for the place, verify.

    from configs import cross_fusion_lcd
    from placerec_jax.loop_database import LoopDatabase

    database = LoopDatabase.load(cross_fusion_lcd.get_config("kitti"), "runs/cross_fusion_lcd-kitti")
    for points in scans:                            # (N, 4): x forward, y left, z up (m), reflectance 0 to 1
        number = database.add(points)
        for candidate, distance in database.query(number):
            loop = database.verify(number, candidate)
            if loop.accepted:
                graph.add_edge(candidate, number, loop.pose)   # candidate_T_number: x, y (m), yaw

The sensor should stand as high above ground as the one that the network learned from (KITTI: 1.73 m): the BEV
keeps `config.model.bev.z_range` about it. Shift your points in z otherwise.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from placerec_jax.data import scans
from placerec_jax.errors import ConfigError, UserError
from placerec_jax.methods import cross_fusion_lcd as lcd
from placerec_jax.training.checkpoint import Checkpointer
from placerec_jax.training.sharding import make_mesh
from placerec_jax.training.state import abstract_variables

_ROUNDING = 1e-4  # of squared norms: far above what float32 loses in a product of a few thousand terms


class ScanError(UserError, ValueError):
    """Points that are no scan."""


class Loop(NamedTuple):
    """What `verify` found; `pose` is candidate_T_query (x, y, yaw), meaningful where `accepted`."""

    pose: np.ndarray  # (3,) m, m, rad
    inliers: int
    accepted: bool


class LoopDatabase:
    """Scans by the order in which they were added, from 0; kept are descriptor and key points of each.

    Args:
        cfg: of method cross_fusion_lcd with `model.bev.input` points; its images are taken as zeros.
        variables: the model's collections, `params` and `batch_stats`.
        gap: so many scans before the one that asks are no candidates (default: `cfg.eval.loop_gap`).

    Raises:
        ConfigError: the config is of another method, or its BEV is not made of points.
    """

    def __init__(
        self, cfg: ml_collections.ConfigDict, variables: dict[str, Any], gap: int | None = None
    ) -> None:
        if cfg.method != "cross_fusion_lcd" or cfg.model.bev.input != "points":
            raise ConfigError(
                f"LoopDatabase: config.method is {cfg.method!r}; expected cross_fusion_lcd with "
                "config.model.bev.input points"
            )
        cfg = ml_collections.ConfigDict(cfg.to_dict())
        cfg.model.eval_image = "zero"
        self._cfg = ml_collections.FrozenConfigDict(cfg)
        self._gap = cfg.eval.loop_gap if gap is None else gap
        self._describe = jax.jit(lambda bev: _describe(self._cfg, variables, bev))
        self._match = jax.jit(lambda query, candidate: lcd.match(self._cfg, query, candidate))
        self._keypoints: list[dict[str, np.ndarray]] = []
        # Room for as many rows again, doubled when it is full.
        self._descriptors = np.zeros((0, 0), np.float32)
        self._squared_norms = np.zeros(0, np.float32)  # of the descriptors

    @classmethod
    def load(
        cls,
        cfg: ml_collections.ConfigDict,
        workdir: str | Path,
        checkpoint: int | str = "best",
        gap: int | None = None,
    ) -> "LoopDatabase":
        """With the weights of a training run; raises CheckpointError where they are of another model."""
        frozen = ml_collections.FrozenConfigDict(cfg)
        abstract = abstract_variables(lcd, frozen, lcd.model(frozen), make_mesh(cfg.mesh))
        checkpointer = Checkpointer(workdir, cfg, fingerprint="")
        variables, _ = checkpointer.restore_variables(abstract, checkpoint)
        checkpointer.close()
        return cls(cfg, variables, gap)

    def __len__(self) -> int:
        return len(self._keypoints)

    def add(self, points: np.ndarray) -> int:
        """(N, 4) x, y, z (m), reflectance 0 to 1 → the scan's number. Raises ScanError for bad points."""
        return self.insert(self.describe(points))

    def describe(self, points: np.ndarray) -> dict[str, np.ndarray]:
        """(N, 4) points as in `add` → `descriptor` (1, D) and `keypoint_*` (1, K, ...), not yet added."""
        return jax.device_get(self._describe(self._bev(points)[None, None]))

    def insert(self, found: dict[str, np.ndarray]) -> int:
        """Adds what `describe` found of a scan, now or in an earlier session; returns the scan's number."""
        descriptor = found["descriptor"][0]
        number = len(self._keypoints)
        if number == len(self._descriptors):
            room = max(64, 2 * number)
            grown, norms = np.zeros((room, len(descriptor)), np.float32), np.zeros(room, np.float32)
            if number:
                grown[:number], norms[:number] = self._descriptors, self._squared_norms
            self._descriptors, self._squared_norms = grown, norms
        self._descriptors[number] = descriptor
        self._squared_norms[number] = descriptor @ descriptor
        self._keypoints.append({name: value for name, value in found.items() if name != "descriptor"})
        return number

    def query(self, number: int, count: int = 1) -> list[tuple[int, float]]:
        """The `count` scans most like scan `number` among those more than `gap` before it, nearest first."""
        self._check(number)
        allowed = max(0, number - self._gap)
        if not allowed or count < 1:
            return []
        asked = self._descriptors[number]
        # ‖d‖² − 2 d·q orders scans as ‖d − q‖² does and reads every descriptor once. Rounding may exchange
        # scans that are nearly equally far, so all of those are compared exactly.
        norms = self._squared_norms[:allowed]
        order = norms - 2 * (self._descriptors[:allowed] @ asked)
        last = np.partition(order, min(count, allowed) - 1)[min(count, allowed) - 1]
        likely = np.flatnonzero(order <= last + _ROUNDING * (norms.max() + self._squared_norms[number]))
        distance = np.linalg.norm(self._descriptors[likely] - asked, axis=1)
        nearest = np.argsort(distance, kind="stable")[:count]
        return [(int(likely[i]), float(distance[i])) for i in nearest]

    def verify(self, number: int, candidate: int) -> Loop:
        """Matches the key points of two scans; accepted from `cfg.eval.min_inliers` inliers on."""
        self._check(number)
        self._check(candidate)
        found = jax.device_get(self._match(self._keypoints[number], self._keypoints[candidate]))
        inliers = int(found["inliers"][0])
        return Loop(found["pose"][0], inliers, inliers >= self._cfg.eval.min_inliers)

    def _bev(self, points: np.ndarray) -> np.ndarray:
        points = np.asarray(points, np.float32)
        if points.ndim != 2 or points.shape[1] != 4 or not len(points):
            raise ScanError(f"a scan: expected points (N, 4) of x, y, z, reflectance; found {points.shape}")
        if not np.isfinite(points).all():
            bad = int(np.flatnonzero(~np.isfinite(points).all(axis=1))[0])
            raise ScanError(
                f"a scan: point {bad} of {len(points)} is {points[bad]}; remove what is not finite"
            )
        low, high = float(points[:, 3].min()), float(points[:, 3].max())
        if low < 0 or high > 1:
            raise ScanError(
                f"a scan: expected reflectances from 0 to 1, found {low:g} to {high:g}; scale them"
            )
        bev, grid = self._cfg.model.bev, lcd.bev_grid(self._cfg)
        seen = scans.encode_bev(points[:, :3], points[:, 3], grid, tuple(bev.z_range), bev.encoding)
        if not seen.any():
            raise ScanError(
                f"a scan: expected points within x, y {tuple(bev.extent)} m and z {tuple(bev.z_range)} m of "
                f"the sensor, found none of {len(points)}; metres are expected, x forward, z up"
            )
        return seen

    def _check(self, number: int) -> None:
        if not 0 <= number < len(self):
            raise IndexError(f"scan {number} of {len(self)} in the database")


def _describe(
    cfg: ml_collections.FrozenConfigDict, variables: dict[str, Any], bev: jax.Array
) -> dict[str, jax.Array]:
    """(1, 1, H, W, C) → descriptor and key points."""
    others = {n: jnp.zeros((1, *f.shape), f.dtype) for n, f in lcd.features(cfg).items() if n != "bev"}
    batch = {"bev": bev, **others}
    found = lcd.predict(cfg, lcd.model(cfg).apply(variables, batch, train=False), batch)
    return {name: found[name] for name in ("descriptor", *(n for n in found if n.startswith("keypoint_")))}
