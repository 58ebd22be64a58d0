"""Where the figures of a report come from: command, checkpoint, config, dataset, versions, devices."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import ml_collections

from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.training.checkpoint import About, config_as_json, config_differences
from placerec_jax.training.pretrained import PRETRAINED

PACKAGES = ("placerec_jax", "jax", "jaxlib", "flax", "numpy")


def provenance(
    cfg: ml_collections.ConfigDict,
    about: About,
    prepared: PreparedFolder,
    split: str,
    scores: Mapping[str, Any],
    workdir: str | os.PathLike[str],
    checkpoint: int | str,
) -> dict[str, Any]:
    """Plain nested values: what one needs to make the same figures again, and to tell two reports apart."""
    config = config_as_json(cfg)
    manifest = prepared.manifest
    devices = jax.devices()
    return {
        "command": shlex.join(["python", "-m", "placerec_jax.evaluate", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": {
            "workdir": str(workdir),
            "step": about.step,
            "asked_for": checkpoint,
            "best_by": f"{cfg.eval.best_metric} ({cfg.eval.best_mode}) on split {cfg.data.eval_split}",
            "scores_when_saved": {name: about.scores[name] for name in sorted(about.scores)},
            "started_from": _started_from(Path(workdir)),
        },
        "dataset": {
            "root": str(prepared.root),
            "built_in_city": built_in_city(prepared),
            "fingerprint": prepared.fingerprint,
            "scheme": cfg.data.scheme,
            "split": split,
            "queries": scores["queries"],
            "database": {name: table["records"] for name, table in manifest["tables"].items()},
            "source": manifest.get("source", {}),
        },
        "evaluation_seed": int(cfg.eval.seed),
        "config_hash": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
        "config": config,
        "changed_since_training": config_differences(about.config, config),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
    }


def _started_from(workdir: Path) -> dict[str, Any]:
    """The published weights (file, sha256, ...) that the trainer wrote down; {} without any."""
    record = workdir / PRETRAINED
    return json.loads(record.read_text()) if record.exists() else {}


def summary_line(facts: Mapping[str, Any]) -> str:
    """The provenance in one line, for the head of the page."""
    dataset, checkpoint = facts["dataset"], facts["checkpoint"]
    return (
        f"{dataset['queries']} queries, split {dataset['split']} ({dataset['scheme']}) of {dataset['root']} "
        f"with fingerprint {dataset['fingerprint'][:12]} · checkpoint of step {checkpoint['step']} · "
        f"config {facts['config_hash'][:12]} · seed {facts['evaluation_seed']} · {facts['created']}"
    )


def built_in_city(prepared: PreparedFolder) -> bool:
    """Whether the data is synthetic, by the manifest's source."""
    return bool(prepared.manifest.get("source", {}).get("built_in_city", False))


def notices(about: About, prepared: PreparedFolder) -> list[str]:
    """What a reader must know before the first figure."""
    found = []
    if built_in_city(prepared):
        found.append(
            "Every figure and picture here is from the built-in city, a synthetic world: it shows that the "
            "method works, not how well it does on real streets."
        )
    if about.fingerprint != prepared.fingerprint:
        found.append(
            f"Trained on a dataset with fingerprint {about.fingerprint}, evaluated on another: "
            f"{prepared.fingerprint}."
        )
    return found
