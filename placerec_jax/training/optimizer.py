"""AdamW under a cosine schedule with optional warm-up and gradient clipping."""

import ml_collections
import optax


def make_schedule(cfg: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up over `warmup_steps`, then half a cosine to zero at `steps`."""
    if not 0 <= cfg.warmup_steps < steps:
        raise ValueError(
            f"config.optimizer.warmup_steps is {cfg.warmup_steps}; expected at least 0 and below "
            f"config.train.steps ({steps})."
        )
    # The first update has a share of the peak, not zero: no step is wasted.
    return optax.warmup_cosine_decay_schedule(
        init_value=cfg.learning_rate / (cfg.warmup_steps + 1),
        peak_value=cfg.learning_rate,
        warmup_steps=cfg.warmup_steps,
        decay_steps=steps,
    )


def make_optimizer(cfg: ml_collections.ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clips the global norm to `clip_norm` (0: no clipping), then AdamW; decay acts on every parameter."""
    clip = optax.clip_by_global_norm(cfg.clip_norm) if cfg.clip_norm else optax.identity()
    return optax.chain(clip, optax.adamw(schedule, weight_decay=cfg.weight_decay))
