"""What every command does to its process before it computes."""

import os
from pathlib import Path

import jax
from absl import logging


def start(distributed: bool) -> None:
    """Joins the other processes where `distributed`, keeps compiled programs on disk, quietens Orbax.

    With the cache a run that starts again, or the evaluation after the training, starts at once. It lies in
    JAX_COMPILATION_CACHE_DIR, by default `.cache/jax` of the current folder.
    """
    logging.set_verbosity(logging.ERROR)  # Orbax reports every file it touches
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path(".cache/jax").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if distributed:
        jax.distributed.initialize()
