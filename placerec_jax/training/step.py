"""One update of the state, the same for every method."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from placerec_jax.training import gradients
from placerec_jax.training.gradients import Batch, Gradients, Objective
from placerec_jax.training.optimizer import learning_rates, split_parameters
from placerec_jax.training.partition import join_tree
from placerec_jax.training.sharding import leaf_name
from placerec_jax.training.state import TrainState

Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    method: ModuleType,
    cfg: ml_collections.ConfigDict,
    model: nn.Module,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> TrainStep:
    """The pure function (state, batch) → (state, metrics); jit it with the state donated.

    loss = Σ_term cfg.loss[term] · sum / max(weight, tiny) over the terms of `method.loss`; the batch is gone
    through as `config.train.gradients` says. Metrics: `loss`, `loss/<term>`, `grad_norm` (before clipping, of
    what is not frozen), `learning_rate` and, of every trained group, `learning_rate/<pattern>`, and
    `nonfinite`: (K,) bool over the tensors of `checked_tensors`, True where one holds a NaN or an infinity.

    Raises:
        ConfigError: `config.train` does not fit; see `gradients.check`.
    """
    gradients.check(cfg)
    objective = Objective(method, cfg, model)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        found = gradients.loss_and_gradients(objective, state, batch)
        updates, opt_state = tx.update(found.gradients, state.opt_state, state.params)
        trained, frozen = split_parameters(cfg.optimizer, state.params)
        new_state = state.replace(
            step=state.step + 1,
            params=join_tree(optax.apply_updates(trained, updates), frozen),
            batch_stats=found.batch_stats,
            opt_state=opt_state,
        )
        metrics = {
            "loss": found.loss,
            **{f"loss/{name}": value for name, value in found.means.items()},
            "grad_norm": optax.tree.norm(found.gradients),
            **learning_rates(schedule, state.step),
            "nonfinite": jnp.stack([bad for _, bad in _checked(method, cfg, state, batch, found)]),
        }
        return new_state, metrics

    return train_step


def checked_tensors(
    method: ModuleType, cfg: ml_collections.ConfigDict, model: nn.Module, state: TrainState, batch: Batch
) -> list[str]:
    """Names for `metrics["nonfinite"]`, in the order in which a bad value would spread through a step."""

    def names(state: TrainState, batch: Batch) -> dict[str, jax.Array]:
        found = gradients.loss_and_gradients(Objective(method, cfg, model), state, batch)
        checked.extend(name for name, _ in _checked(method, cfg, state, batch, found))
        return {}

    checked: list[str] = []
    jax.eval_shape(names, state, batch)
    return checked


def _checked(
    method: ModuleType, cfg: ml_collections.ConfigDict, state: TrainState, batch: Batch, found: Gradients
) -> list[tuple[str, jax.Array]]:
    """(name, whether it holds a bad value) of all floating-point tensors of a step, causes before effects."""

    def tested(group: str, tree: Any) -> list[tuple[str, jax.Array]]:
        return [
            (f"{group}/{leaf_name(path)}", gradients.nonfinite(leaf))
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        ]

    return [
        *tested("batch", batch),
        *tested("params", state.params),
        *tested("batch_stats", state.batch_stats),
        # In the order of evaluation; as one tree they would be sorted by name.
        *(
            ("/".join(["representations", name, *filter(None, [leaf_name(path)])]), bad)
            for name in method.encoders(cfg)
            for path, bad in jax.tree_util.tree_leaves_with_path(found.nonfinite[name])
        ),
        *tested("loss", found.means),
        *tested("gradients", found.gradients),
    ]
