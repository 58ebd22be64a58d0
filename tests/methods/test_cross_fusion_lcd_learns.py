"""The smallest network can learn: four places, each seen twice from anywhere, by heart."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import cross_fusion_lcd as configs
from placerec_jax.data import scans
from placerec_jax.methods import cross_fusion_lcd as lcd
from placerec_jax.ops.rigid import rigid_inverse, se2_apply
from placerec_jax.training.state import TrainState
from placerec_jax.training.step import make_train_step

PLACES, STEPS = 4, 300
MOTION = scans.ScanAugmentation(shift_xy=2.0, shift_z=0.0, tilt=0.0, yaw=180.0)


def small_config():
    """BEVLCD+P of 64 x 64 cells of 0.5 m, size t."""
    cfg = configs.get_config("cpu")
    cfg.model.fusion.enabled = False
    for term in ("cvtb", "cvti", "gen"):
        del cfg.loss[term]
    cfg.model.bev.extent, cfg.model.bev.cell = (-16.0, 16.0, -16.0, 16.0), 0.5
    cfg.model.num_keypoints = 64
    # NetVLAD alone, without what the preset does for the city.
    cfg.model.rings.share, cfg.optimizer.groups = 0.0, ()
    cfg.model.temperature, cfg.data.negative_distance = 0.1, 10.0
    return cfg


def walls(rng: np.random.Generator) -> np.ndarray:
    """(N, 3) points of some straight walls about the origin."""
    pieces = []
    for _ in range(14):
        start, heading, length = rng.uniform(-11, 11, 2), rng.uniform(0, 2 * np.pi), rng.uniform(2, 7)
        along = np.arange(0, length, 0.1)[:, None]
        xy = start + along * [np.cos(heading), np.sin(heading)]
        height = np.full((len(xy), 1), rng.uniform(-2, 1))
        pieces.append(np.hstack([xy, height]))
    return np.concatenate(pieces).astype(np.float32)


def view(cfg, points: np.ndarray, move: np.ndarray) -> np.ndarray:
    """BEV of points that were moved."""
    bev, moved = cfg.model.bev, scans.move_points(move, points)
    reflectance = np.full(len(points), 0.5, np.float32)
    return scans.encode_bev(moved, reflectance, lcd.bev_grid(cfg), tuple(bev.z_range), bev.encoding)


def triplets(cfg, seed: int) -> dict[str, np.ndarray]:
    """One batch: each place as query and positive, the next one as negative, seen from places of `seed`."""
    rng = np.random.default_rng(0)
    places = [walls(rng) for _ in range(PLACES)]
    rng = np.random.default_rng([1, seed])
    grid, rows = lcd.bev_grid(cfg), []
    for number in range(PLACES):
        seen = [places[number], places[number], places[(number + 1) % PLACES]]
        moves = [scans.draw_augmentation(MOTION, rng) for _ in seen]
        bev = np.stack([view(cfg, points, move) for points, move in zip(seen, moves, strict=True)])
        pose = scans.planar_transform(moves[1], np.eye(4), np.eye(4), moves[0])
        label = scans.matching_labels(*scans.occupied_cells(bev[:2]), pose, grid, grid.cell)
        row = {
            "bev": bev,
            "true_pose": pose.astype(np.float32),
            "score_label": np.stack(label),
            "map_T_lidar": np.stack([rigid_inverse(move) for move in moves]).astype(np.float32),
        }
        rows.append(row)
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    for name, feature in lcd.features(cfg, training=True).items():
        batch.setdefault(name, np.zeros((PLACES, *feature.shape), feature.dtype))
    return batch


def learn(cfg, batches):
    """State after a step on each of `batches`, and the function of (variables, batch) → representations."""
    model = lcd.model(cfg)
    first = triplets(cfg, 0)
    one = {
        name: first[name][:, :1] if feature.shape else first[name]
        for name, feature in lcd.features(cfg).items()
    }
    variables = jax.jit(lambda b: model.init(jax.random.key(0), b, train=False))(one)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 30, STEPS)
    tx = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule))
    state = TrainState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        rng=jax.random.key(1),
    )
    step = jax.jit(make_train_step(lcd, cfg, model, tx, schedule), donate_argnums=0)
    for batch in batches:
        state, _ = step(state, batch)
    return state, jax.jit(lambda v, b: model.apply(v, b, train=False))


def retrieved(out) -> np.ndarray:
    """(PLACES,) which positive every query found."""
    descriptor = np.asarray(out["descriptor"]["descriptor"])
    return np.linalg.norm(descriptor[:, None, 0] - descriptor[:, 1], axis=-1).argmin(axis=1)


@pytest.mark.slow
def test_four_places_are_learned_by_heart():
    """Every query finds its positive among those of all places, and the pose between them to 0.3 m."""
    cfg = small_config()
    batch = jax.device_put(triplets(cfg, 0))
    state, apply = learn(cfg, (batch for _ in range(STEPS)))
    out = apply(state.variables, batch)
    np.testing.assert_array_equal(retrieved(out), np.arange(PLACES))
    points = np.asarray(out["alignment"]["query"])
    found = se2_apply(np.asarray(out["alignment"]["bev_pose"])[:, None], points)
    truth = se2_apply(np.asarray(batch["true_pose"])[:, None], points)
    mask = np.asarray(out["alignment"]["mask"])
    error = np.linalg.norm(found - truth, axis=-1)
    for place in range(PLACES):
        assert error[place][mask[place]].mean() < 0.3


@pytest.mark.slow
def test_places_learned_from_every_heading_are_found_from_others():
    """A trend, not exact: ordinary convolutions learn rotation from examples alone. Chance is a quarter."""
    cfg = small_config()
    state, apply = learn(cfg, (triplets(cfg, seed) for seed in range(STEPS)))
    hits = [
        retrieved(apply(state.variables, triplets(cfg, STEPS + seed))) == np.arange(PLACES)
        for seed in range(8)
    ]
    assert np.mean(hits) > 0.6
