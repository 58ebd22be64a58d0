"""What every command does to its process before it computes."""

import os
from pathlib import Path

import jax
from absl import logging

from placerec_jax.errors import ConfigError


def start(distributed: bool) -> None:
    """Joins the other processes where `distributed`, keeps compiled programs on disk, quietens Orbax.

    With the cache a run that starts again, or the evaluation after the training, starts at once. It lies in
    JAX_COMPILATION_CACHE_DIR, by default `.cache/jax` of the current folder.

    On TPU slices, under Slurm and the like JAX finds the other processes by itself. Elsewhere
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID say who they are.
    """
    logging.set_verbosity(logging.ERROR)  # Orbax reports every file it touches
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path(".cache/jax").absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    if distributed:
        jax.distributed.initialize(
            num_processes=_integer("JAX_NUM_PROCESSES"), process_id=_integer("JAX_PROCESS_ID")
        )


def local_folder(path: str) -> Path:
    """`path` as a local folder; ConfigError for a URL, which would quietly become a folder of that name."""
    if "://" in path:
        raise ConfigError(
            f"--workdir={path}: expected a local folder, found a URL. Mount the bucket (Cloud Storage FUSE, "
            "Filestore) and name the folder."
        )
    return Path(path)


def _integer(variable: str) -> int | None:
    value = os.environ.get(variable)
    return None if value is None else int(value)
