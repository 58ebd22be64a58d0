"""AdamW under a cosine schedule with optional warm-up, hold and gradient clipping."""

import ml_collections
import optax

from placerec_jax.errors import ConfigError


def make_schedule(cfg: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, the share `hold` of the rest at the peak, then half a cosine."""
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


def make_optimizer(cfg: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clips the global norm to `clip_norm` (0: no clipping), then AdamW; decay acts on every parameter."""
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    return optax.chain(clip, optax.adamw(schedule, weight_decay=cfg.weight_decay))
