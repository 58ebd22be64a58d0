"""The CPU-size network can learn: sixteen frames with fixed offsets, by heart."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import maplocnet as configs
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.methods import maplocnet
from placerec_jax.ops.rigid import wrap_angle
from placerec_jax.training.state import TrainState
from placerec_jax.training.step import make_train_step

FRAMES, STEPS = 16, 200


@pytest.fixture(scope="module")
def tiny_city(tmp_path_factory: pytest.TempPathFactory, run_command: Callable) -> PreparedFolder:
    """The tiny city, all of whose splits together have enough frames."""
    folder = tmp_path_factory.mktemp("city")
    for command in configs.get_config("tiny").data.prepare:
        run_command("-m", "data_prep", *command, cwd=folder)
    return PreparedFolder(folder / configs.get_config("tiny").data.root)


def fixed_batch(cfg, prepared: PreparedFolder) -> dict[str, np.ndarray]:
    """The first frames of the train and test splits, each with one offset that never changes."""
    examples = []
    for split in ("train", "test"):
        source = maplocnet.source(cfg, prepared, split, training=False)
        examples += [source.example(i, np.random.default_rng([7, i])) for i in range(len(source))]
    return {name: np.stack([example[name] for example in examples[:FRAMES]]) for name in examples[0]}


def median_errors(pose: jax.Array, true: np.ndarray) -> tuple[float, float]:
    """Medians of the position error in metres and the orientation error in degrees."""
    difference = np.asarray(pose, np.float64) - true
    turn = np.rad2deg(np.abs(wrap_angle(difference[:, 2])))
    return float(np.median(np.hypot(*difference[:, :2].T))), float(np.median(turn))


@pytest.mark.slow
def test_sixteen_frames_are_learned_by_heart(tiny_city: PreparedFolder) -> None:
    """Under 0.5 m and 0.5° in the median, by the coarse stage and by both together."""
    cfg = configs.get_config("cpu")
    batch = fixed_batch(cfg, tiny_city)
    assert len(batch["index"]) == FRAMES
    model = maplocnet.model(cfg)
    variables = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False))()
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 50, STEPS)
    tx = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(schedule))
    state = TrainState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        rng=jax.random.key(1),
    )
    step = jax.jit(make_train_step(maplocnet, cfg, model, tx, schedule), donate_argnums=0)
    batch = jax.device_put(batch)
    for _ in range(STEPS):
        state, _ = step(state, batch)
    out = jax.jit(lambda variables: model.apply(variables, batch, train=False))(state.variables)
    true = np.asarray(batch["true_pose"][:, 0], np.float64)
    for stage in ("coarse", "pose"):
        position, orientation = median_errors(out["registration"][stage], true)
        assert position < 0.5
        assert orientation < 0.5
