"""Makes the prepared folder that a config names, when it is absent."""

import subprocess
import sys
from pathlib import Path

import jax
import ml_collections
from jax.experimental import multihost_utils

from placerec_jax.data.prepared import PreparedError, PreparedFolder


def ensure_prepared(cfg: ml_collections.ConfigDict) -> PreparedFolder:
    """Opens `config.data.root`; where it has no manifest, process 0 first makes it.

    It runs the commands of `config.data.prepare`, each `python -m data_prep ...` in a process of its own: the
    trainer needs none of what preparation needs.

    Raises:
        PreparedError: the folder is absent and the config has no commands, or a command failed.
    """
    root = Path(cfg.data.root)
    failure = None
    if jax.process_index() == 0 and not (root / "manifest.json").is_file():
        failure = _prepare(root, cfg.data.prepare)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("prepared folder")
    if failure:
        raise PreparedError(failure)
    return PreparedFolder(root)


def _prepare(root: Path, commands: tuple[tuple[str, ...], ...]) -> str | None:
    """Runs the commands in turn; what went wrong, or None."""
    if not commands:
        return (
            f"{root}: no prepared folder there (config.data.root), and config.data.prepare has no command "
            f"that makes it. Prepare your dataset with `python -m data_prep NAME --raw RAW --out {root}` "
            "(`python -m data_prep --help` lists the converters), or set --config.data.root."
        )
    for arguments in commands:
        command = [sys.executable, "-m", "data_prep", *arguments]
        print(f"{root} is absent; running: {' '.join(command)}", file=sys.stderr, flush=True)
        status = subprocess.run(command, check=False).returncode
        if status:
            return f"{root}: `{' '.join(command)}` ended with status {status}; its message is above."
    if not (root / "manifest.json").is_file():
        return f"{root}: the commands of config.data.prepare ended well, yet it has no manifest.json."
    return None
