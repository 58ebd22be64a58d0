"""AdamW under a cosine schedule with optional warm-up, hold and gradient clipping."""

import ml_collections
import optax


def make_schedule(cfg: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, `hold_steps` at the peak, half a cosine to zero at `steps`."""
    if min(cfg.warmup_steps, cfg.hold_steps) < 0 or cfg.warmup_steps + cfg.hold_steps >= steps:
        raise ValueError(
            f"config.optimizer.warmup_steps is {cfg.warmup_steps} and hold_steps {cfg.hold_steps}; expected "
            f"at least 0 each and together below config.train.steps ({steps})."
        )
    # The first update has a share of the peak, not zero: no step is wasted.
    warmup = optax.linear_schedule(
        cfg.learning_rate / (cfg.warmup_steps + 1), cfg.learning_rate, cfg.warmup_steps
    )
    decay_start = cfg.warmup_steps + cfg.hold_steps
    decay = optax.cosine_decay_schedule(cfg.learning_rate, steps - decay_start)
    hold = optax.constant_schedule(cfg.learning_rate)
    return optax.join_schedules([warmup, hold, decay], [cfg.warmup_steps, decay_start])


def make_optimizer(cfg: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clips the global norm to `clip_norm` (0: no clipping), then AdamW; decay acts on every parameter."""
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    return optax.chain(clip, optax.adamw(schedule, weight_decay=cfg.weight_decay))
