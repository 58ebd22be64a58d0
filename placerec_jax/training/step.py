"""One update of the state, the same for every method."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from placerec_jax.errors import ConfigError
from placerec_jax.training.sharding import leaf_name
from placerec_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

_TINY = 1e-12  # a term with no weight in the batch (all its targets masked) counts as zero


def make_train_step(
    method: ModuleType,
    cfg: ml_collections.ConfigDict,
    model: nn.Module,
    tx: optax.GradientTransformation,
    schedule: optax.Schedule,
) -> TrainStep:
    """The pure function (state, batch) → (state, metrics); jit it with the state donated.

    loss = Σ_term cfg.loss[term] · sum / max(weight, tiny) over the terms of `method.loss`. Metrics: `loss`,
    `loss/<term>`, `grad_norm` (before clipping), `learning_rate`, and `nonfinite`: (K,) bool over the tensors
    of `checked_tensors`, True where one holds a NaN or an infinity.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        pass_ = _forward_backward(method, cfg, model, state, batch)
        updates, opt_state = tx.update(pass_["gradients"], state.opt_state, state.params)
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=pass_["batch_stats"],
            opt_state=opt_state,
        )
        metrics = {
            "loss": pass_["loss"],
            **{f"loss/{name}": value for name, value in pass_["terms"].items()},
            "grad_norm": optax.tree.norm(pass_["gradients"]),
            "learning_rate": schedule(state.step),
            "nonfinite": jnp.stack(
                [_nonfinite(leaf) for _, leaf in _checked(method, cfg, state, batch, pass_)]
            ),
        }
        return new_state, metrics

    return train_step


def checked_tensors(
    method: ModuleType, cfg: ml_collections.ConfigDict, model: nn.Module, state: TrainState, batch: Batch
) -> list[str]:
    """Names for `metrics["nonfinite"]`, in the order in which a bad value would spread through a step."""
    pass_ = jax.eval_shape(lambda s, b: _forward_backward(method, cfg, model, s, b), state, batch)
    return [name for name, _ in _checked(method, cfg, state, batch, pass_)]


def _forward_backward(
    method: ModuleType, cfg: ml_collections.ConfigDict, model: nn.Module, state: TrainState, batch: Batch
) -> dict[str, Any]:
    """Loss, its terms, representations, new running statistics and gradients."""
    rng = jax.random.fold_in(state.rng, state.step)

    def loss_function(params: Any) -> tuple[jax.Array, dict[str, Any]]:
        representations, updated = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        terms = {
            name: total / jnp.maximum(weight, _TINY)
            for name, (total, weight) in method.loss(cfg, representations, batch).items()
        }
        loss = sum(_loss_weight(cfg, name) * value for name, value in terms.items())
        aside = {
            "terms": terms,
            "representations": representations,
            "batch_stats": updated.get("batch_stats", {}),
        }
        return loss, aside

    (loss, aside), gradients = jax.value_and_grad(loss_function, has_aux=True)(state.params)
    return {"loss": loss, "gradients": gradients, **aside}


def _loss_weight(cfg: ml_collections.ConfigDict, term: str) -> float:
    if term not in cfg.loss:
        raise ConfigError(
            f"config.loss has no weight for the term {term!r} of method {cfg.method!r}; it has "
            f"{sorted(cfg.loss)}."
        )
    return cfg.loss[term]


def _checked(
    method: ModuleType, cfg: ml_collections.ConfigDict, state: TrainState, batch: Batch, pass_: dict[str, Any]
) -> list[tuple[str, Any]]:
    """(name, tensor) of all floating-point tensors of a step, causes before effects."""
    groups = [
        ("batch", batch),
        ("params", state.params),
        ("batch_stats", state.batch_stats),
        # In the order of evaluation; as one tree they would be sorted by name.
        *((f"representations/{name}", pass_["representations"][name]) for name in method.encoders(cfg)),
        ("loss", pass_["terms"]),
        ("gradients", pass_["gradients"]),
    ]
    return [
        (f"{group}/{leaf_name(path)}" if path else group, leaf)
        for group, tree in groups
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]


def _nonfinite(x: jax.Array) -> jax.Array:
    return ~jnp.all(jnp.isfinite(x))
