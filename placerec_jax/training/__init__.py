"""State, step, sharding, checkpoints, progress."""
