"""The smallest network tells four places apart, whose second visit it has seen, on a third."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import einet as configs
from placerec_jax.methods import einet
from placerec_jax.training.state import TrainState
from placerec_jax.training.step import make_train_step
from tests.methods.test_einet import random_batch

PLACES, STEPS = 4, 150


def visits(cfg, seed: int) -> dict[str, np.ndarray]:
    """One frame of each place: its stripes and walls, with noise of the visit."""
    base, noise = np.random.default_rng(0), np.random.default_rng(seed)
    frames = random_batch(cfg, PLACES, training=True, seed=1)
    frames = {name: value[:, :1].copy() for name, value in frames.items()}
    height, width = cfg.model.image_size
    stripes = base.uniform(0, 255, (PLACES, 1, 6, 4, 8, 3))
    images = stripes.repeat(height // 4, axis=3).repeat(width // 8, axis=4)
    frames["images"] = np.clip(images + noise.normal(0, 10, images.shape), 0, 255).astype(np.uint8)
    rows, columns = cfg.model.range_image.size
    ranges = base.uniform(3, 60, (PLACES, 1, rows // 4, columns // 6, 1)).repeat(4, axis=2).repeat(6, axis=3)
    frames["range_image"][..., :1] = ranges + noise.normal(0, 0.3, ranges.shape)
    colours = base.uniform(0, 1, (PLACES, 1, rows // 4, columns // 6, 3)).repeat(4, axis=2).repeat(6, axis=3)
    frames["range_image"][..., 1:] = np.clip(colours + noise.normal(0, 0.03, colours.shape), 0, 1)
    return frames


def tuples(cfg, query: dict, database: dict) -> dict[str, np.ndarray]:
    """A tuple a place: its query, its entry, and the three others."""
    found = {}
    for name in query:
        rows = [
            [query[name][i, 0], *(database[name][j, 0] for j in (i, *(j for j in range(PLACES) if j != i)))]
            for i in range(PLACES)
        ]
        found[name] = np.stack([np.stack(row) for row in rows])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["fused", "camera", "lidar"])
def test_four_places_are_learned_by_heart(modality: str):
    """AR@1 is 100 on a visit that was not trained on, with the running statistics of evaluation."""
    cfg = configs.get_config("tiny")
    cfg.data.positives, cfg.data.negatives = 1, PLACES - 1
    full = cfg.copy_and_resolve_references()
    cfg.model.modality = modality
    database, again, new = (visits(full, seed) for seed in (2, 3, 4))
    wanted = set(einet.features(cfg, training=True))
    batch = {n: v for n, v in tuples(full, again, database).items() if n in wanted}
    model = einet.model(cfg)
    variables = jax.jit(lambda b: model.init(jax.random.key(0), b, train=False))(batch)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 20, STEPS)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    state = TrainState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(variables["params"]),
        rng=jax.random.key(1),
    )
    step = jax.jit(make_train_step(einet, cfg, model, tx, schedule), donate_argnums=0)
    batch = jax.device_put(batch)
    for _ in range(STEPS):
        state, _ = step(state, batch)

    @jax.jit
    def describe(variables, frames):
        frames = {name: frames[name] for name in einet.features(cfg)}
        return model.apply(variables, frames, train=False)["descriptor"][:, 0]

    asked, entries = (np.asarray(describe(state.variables, frames)) for frames in (new, database))
    distance = np.linalg.norm(asked[:, None] - entries[None], axis=-1)
    np.testing.assert_array_equal(distance.argmin(axis=1), np.arange(PLACES))
