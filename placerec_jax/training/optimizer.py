"""Optimisers and schedules by name, with gradient clipping."""

from collections.abc import Callable

import ml_collections
import optax

from placerec_jax.errors import ConfigError


def make_schedule(cfg: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate by step: that of `SCHEDULES[schedule]`.

    Raises:
        ConfigError: no such schedule, or settings that do not fit it.
    """
    return _chosen(cfg, "schedule", SCHEDULES)(cfg, steps)


def make_optimizer(cfg: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clips the global norm to `clip_norm` (0: no clipping), then updates by `OPTIMIZERS[name]`.

    Decay acts on every parameter.
    """
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    return optax.chain(clip, _chosen(cfg, "name", OPTIMIZERS)(cfg, schedule))


def _chosen(cfg: ml_collections.ConfigDict, key: str, table: dict[str, Callable]) -> Callable:
    if cfg[key] not in table:
        raise ConfigError(f"config.optimizer.{key} is {cfg[key]!r}; expected one of {sorted(table)}")
    return table[cfg[key]]


def _cosine(cfg: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Linear warm-up, the share `hold` of the rest at the peak, then half a cosine."""
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


def _adamw(cfg: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(schedule, weight_decay=cfg.weight_decay)


def _adam_l2(cfg: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Adam with the decay added to the gradient, as torch.optim.Adam has it: moments see it, too."""
    return optax.chain(
        optax.add_decayed_weights(cfg.weight_decay),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(schedule),
    )


SCHEDULES = {"cosine": _cosine, "staircase": _staircase}
OPTIMIZERS = {"adamw": _adamw, "adam_l2": _adam_l2}
