"""The smallest network learns pairs by heart, under the losses as released and under all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import saliency_i2ploc as configs
from placerec_jax.methods import saliency_i2ploc as i2p
from placerec_jax.training.state import TrainState
from placerec_jax.training.step import make_train_step

PLACES, STEPS = 16, 150


def pairs(cfg) -> dict[str, np.ndarray]:
    """Images of coloured stripes, submaps of some walls: nothing relates them but that they are pairs."""
    rng = np.random.default_rng(0)
    batch = {n: np.zeros((PLACES, *f.shape), f.dtype) for n, f in i2p.features(cfg).items()}
    stripes = rng.integers(0, 256, (PLACES, 4, 8, 3), dtype=np.uint8)
    batch["image"] = stripes.repeat(16, axis=1).repeat(16, axis=2)
    walls = rng.uniform(-20, 20, (PLACES, 8, 1, 3)) + rng.normal(size=(PLACES, 8, 32, 3))
    batch["points"] = walls.reshape(PLACES, 256, 3).astype(np.float32)
    batch["point_mask"][:] = True
    batch["position"][:, 0] = 100.0 * np.arange(PLACES)
    return batch


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"loss.relation_e": 1.0, "loss.relation_h": 1.0}])
def test_pairs_are_learned_by_heart(settings: dict):
    """Every image finds its submap, and every submap its image, with the running statistics of evaluation."""
    cfg = configs.get_config("tiny")
    cfg.update_from_flattened_dict(settings)
    model, batch = i2p.model(cfg), jax.device_put(pairs(cfg))
    variables = jax.jit(lambda b: model.init(jax.random.key(0), b, train=False))(batch)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 20, STEPS)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
    state = TrainState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        rng=jax.random.key(1),
    )
    step = jax.jit(make_train_step(i2p, cfg, model, tx, schedule), donate_argnums=0)
    for _ in range(STEPS):
        state, _ = step(state, batch)
    found = jax.jit(lambda v, b: model.apply(v, b, train=False))(state.variables, batch)
    similarity = np.asarray(found["image"]["descriptor"]) @ np.asarray(found["cloud"]["descriptor"]).T
    np.testing.assert_array_equal(similarity.argmax(axis=1), np.arange(PLACES))
    np.testing.assert_array_equal(similarity.argmax(axis=0), np.arange(PLACES))
