"""Optimisers and schedules by name, with gradient clipping, and groups of parameters that differ or stay.

`config.optimizer.groups` is a sequence of (pattern, settings). A pattern is searched in the name of a
parameter, as "params/image_encoder/blocks0/kernel"; the first that is found decides, and a parameter without
one follows the settings of `config.optimizer` itself. The settings are "frozen", or pairs such as
(("learning_rate", 1e-4), ("weight_decay", 0.0)) that replace the optimizer's own. A frozen parameter gets no
update, no decay and no optimiser state; its gradient is not computed.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from placerec_jax.errors import ConfigError
from placerec_jax.training.partition import split_tree
from placerec_jax.training.sharding import leaf_name

FROZEN = "frozen"
_SETTINGS = ("learning_rate", "weight_decay")  # what a group may have of its own
_REST = ""  # the label of parameters in no group; no pattern is empty


@dataclasses.dataclass(frozen=True)
class LearningRates:
    """Learning rate by step of the parameters in no group, and {pattern: schedule} of the trained groups."""

    rest: optax.Schedule
    groups: Mapping[str, optax.Schedule]

    def __call__(self, step: jax.typing.ArrayLike) -> jax.typing.ArrayLike:
        return self.rest(step)


def make_schedule(cfg: ml_collections.ConfigDict, steps: int) -> LearningRates:
    """Learning rates by step: those of `SCHEDULES[schedule]`, each with its group's peak.

    Raises:
        ConfigError: no such schedule, settings that do not fit it, or groups that are none.
    """
    schedule = _chosen(cfg, "schedule", SCHEDULES)
    groups = {
        pattern: schedule(_with_settings(cfg, settings), steps)
        for pattern, settings in _groups(cfg)
        if settings != FROZEN
    }
    return LearningRates(schedule(cfg, steps), groups)


def learning_rates(schedule: optax.Schedule, step: jax.Array) -> dict[str, jax.typing.ArrayLike]:
    """`learning_rate` of the parameters in no group and `learning_rate/<pattern>` of every trained group."""
    groups = schedule.groups if isinstance(schedule, LearningRates) else {}
    return {
        "learning_rate": schedule(step),
        **{f"learning_rate/{pattern}": rate(step) for pattern, rate in groups.items()},
    }


def make_optimizer(cfg: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clips the global norm to `clip_norm` (0: no clipping), then updates by `OPTIMIZERS[name]`.

    Decay acts on every parameter that is not frozen. With groups, `init` and `update` take whole trees of
    parameters, and gradients as `split_parameters` gives the trained part.
    """
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    optimizer = _chosen(cfg, "name", OPTIMIZERS)
    if not cfg.groups:
        return optax.chain(clip, optimizer(cfg, schedule))
    by_label = {
        pattern: optimizer(_with_settings(cfg, settings), schedule.groups[pattern])
        for pattern, settings in _groups(cfg)
        if settings != FROZEN
    }
    grouped = optax.partition(
        {_REST: optimizer(cfg, schedule.rest), **by_label}, lambda params: _labels(cfg, params)
    )
    return _of_trained(cfg, optax.chain(clip, grouped))


def split_parameters(cfg: ml_collections.ConfigDict, params: Any) -> tuple[Any, Any]:
    """(trained, frozen) parts of a tree of parameters, each with None in the place of the other.

    Raises:
        ConfigError: a group has no parameter: its pattern is found in none, or earlier ones take them all.
    """
    labels = _labels(cfg, params)
    groups = dict(_groups(cfg))
    for pattern in groups.keys() - set(jax.tree.leaves(labels)):
        raise ConfigError(
            f"config.optimizer.groups: the pattern {pattern!r} decides for no parameter: it is found in "
            "none, or only where an earlier pattern is, too. Names are as params/image_encoder/norm/scale; "
            "python -m placerec_jax.describe --parameters lists them (without params/)."
        )
    frozen = {pattern for pattern, settings in groups.items() if settings == FROZEN}
    return split_tree(params, lambda path, _: _label(groups, path) not in frozen)


def _groups(cfg: ml_collections.ConfigDict) -> list[tuple[str, Any]]:
    """The checked (pattern, settings) of `config.optimizer.groups`."""
    checked: dict[str, Any] = {}
    for group in cfg.groups:
        try:
            pattern, settings = group
            re.compile(pattern)
            unknown = [] if settings == FROZEN else [name for name in dict(settings) if name not in _SETTINGS]
        except (TypeError, ValueError, re.error) as error:
            raise ConfigError(
                f"config.optimizer.groups: {group!r} is no (pattern, settings); expected settings {FROZEN!r} "
                f'or pairs such as (("learning_rate", 1e-4), ("weight_decay", 0.0)) ({error})'
            ) from None
        if unknown or not pattern or pattern in checked:
            raise ConfigError(
                f"config.optimizer.groups: {group!r}: expected a pattern that is not empty and not given "
                f"before, and settings among {list(_SETTINGS)}"
            )
        checked[pattern] = settings
    return list(checked.items())


def _with_settings(
    cfg: ml_collections.ConfigDict, settings: Iterable[tuple[str, float]]
) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({**cfg.to_dict(), **dict(settings)})


def _label(groups: Iterable[str], path: tuple[Any, ...]) -> str:
    """The first pattern that is found in a parameter's name."""
    name = f"params/{leaf_name(path)}"
    return next((pattern for pattern in groups if re.search(pattern, name)), _REST)


def _labels(cfg: ml_collections.ConfigDict, params: Any) -> Any:
    groups = [pattern for pattern, _ in _groups(cfg)]
    return jax.tree_util.tree_map_with_path(lambda path, _: _label(groups, path), params)


def _of_trained(
    cfg: ml_collections.ConfigDict, inner: optax.GradientTransformation
) -> optax.GradientTransformation:
    """`inner` on the trained part of the parameters."""

    def init(params: Any) -> optax.OptState:
        return inner.init(split_parameters(cfg, params)[0])

    def update(updates: Any, state: optax.OptState, params: Any) -> tuple[Any, optax.OptState]:
        return inner.update(updates, state, split_parameters(cfg, params)[0])

    return optax.GradientTransformation(init, update)


def _chosen(cfg: ml_collections.ConfigDict, key: str, table: dict[str, Callable]) -> Callable:
    if cfg[key] not in table:
        raise ConfigError(f"config.optimizer.{key} is {cfg[key]!r}; expected one of {sorted(table)}")
    return table[cfg[key]]


def _cosine(cfg: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up, the share `hold` of the rest at the peak, then half a cosine."""
    if not steps:
        return optax.constant_schedule(0.0)  # nothing is trained
    if not 0 <= cfg.warmup_steps < steps:
        raise ConfigError(
            f"config.optimizer.warmup_steps is {cfg.warmup_steps}; expected at least 0 and below "
            f"config.train.steps ({steps})."
        )
    if not 0 <= cfg.hold < 1:
        raise ConfigError(f"config.optimizer.hold is {cfg.hold}; expected a share from 0 to below 1.")
    # The first update has a share of the peak, not zero: no step is wasted.
    warmup = optax.linear_schedule(
        cfg.learning_rate / (cfg.warmup_steps + 1), cfg.learning_rate, cfg.warmup_steps
    )
    rest = steps - cfg.warmup_steps
    decay_start = cfg.warmup_steps + min(round(cfg.hold * rest), rest - 1)  # one step of decay at the least
    decay = optax.cosine_decay_schedule(cfg.learning_rate, steps - decay_start)
    hold = optax.constant_schedule(cfg.learning_rate)
    return optax.join_schedules([warmup, hold, decay], [cfg.warmup_steps, decay_start])


def _staircase(cfg: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Times `decay_rate` after every `decay_steps` steps: an epoch, say."""
    del steps  # it has no end
    if cfg.decay_steps < 1 or not 0 < cfg.decay_rate <= 1:
        raise ConfigError(
            f"config.optimizer.decay_steps is {cfg.decay_steps} and decay_rate {cfg.decay_rate}; expected at "
            "least 1, and a factor above 0 and at most 1."
        )
    return optax.exponential_decay(cfg.learning_rate, cfg.decay_steps, cfg.decay_rate, staircase=True)


def _warmup_cosine_epochs(cfg: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """By whole epochs of `epoch_steps` updates: a line from `warmup_start`, then half a cosine to `floor`.

    The epoch t counts from 0. t < warmup_epochs: start + t (peak − start) / warmup_epochs; then
    floor + ½ (peak − floor) (1 + cos(π (t − warmup_epochs) / cosine_epochs)). The line falls where the peak
    is below its start, and the cosine rises again where a run is longer.
    """
    del steps  # it has no end
    if cfg.epoch_steps < 1 or cfg.cosine_epochs < 1 or cfg.warmup_epochs < 0:
        raise ConfigError(
            f"config.optimizer.epoch_steps is {cfg.epoch_steps}, cosine_epochs {cfg.cosine_epochs} and "
            f"warmup_epochs {cfg.warmup_epochs}; expected at least 1, 1 and 0."
        )
    peak, start, floor, warmup = cfg.learning_rate, cfg.warmup_start, cfg.floor, cfg.warmup_epochs

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        epoch = jnp.asarray(step) // cfg.epoch_steps
        line = start + epoch * (peak - start) / max(warmup, 1)
        cosine = floor + 0.5 * (peak - floor) * (1 + jnp.cos(jnp.pi * (epoch - warmup) / cfg.cosine_epochs))
        return jnp.where(epoch < warmup, line, cosine)

    return schedule


def _adamw(cfg: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, weight_decay=cfg.weight_decay)


def _adam_l2(cfg: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adam with the decay added to the gradient, as torch.optim.Adam has it: moments see it, too."""
    return optax.chain(
        optax.add_decayed_weights(cfg.weight_decay),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(schedule),
    )


def _sgd(cfg: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Momentum without dampening, the decay added to the gradient, as torch.optim.SGD has it."""
    return optax.chain(
        optax.add_decayed_weights(cfg.weight_decay),
        optax.trace(decay=cfg.momentum),
        optax.scale_by_learning_rate(schedule),
    )


SCHEDULES = {"cosine": _cosine, "staircase": _staircase, "warmup_cosine_epochs": _warmup_cosine_epochs}
OPTIMIZERS = {"adamw": _adamw, "adam_l2": _adam_l2, "sgd": _sgd}
