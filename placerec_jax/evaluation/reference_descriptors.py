"""Descriptors of training-free references of the frames of a split, made once and kept on disk.

A file of the cache is called after everything its content depends on: the data's fingerprint, the frames, and
the reference's code.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.evaluation import reference_inputs
from placerec_jax.evaluation import references as references_folder
from placerec_jax.evaluation.reference_inputs import Stack


def described(
    prepared: PreparedFolder, name: str, index: np.ndarray, cache: Path, progress: bool = True
) -> Stack:
    """{array: (N, ...)} descriptors by the reference `name` of the frames with numbers `index` (N,)."""
    index = np.asarray(index, np.int64)
    path = cache / f"{name}-descriptors-{_key(prepared, name, index)}.npz"
    try:
        with np.load(path) as known:
            return dict(known)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        pass  # absent or damaged: described again below
    stack = references_folder.describe_split(prepared, name, index, progress=progress)
    if jax.process_index() == 0:
        _save(path, stack)
    return stack


def _key(prepared: PreparedFolder, name: str, index: np.ndarray) -> str:
    found = hashlib.sha256(json.dumps([prepared.fingerprint, name]).encode())
    for module in (references_folder, reference_inputs, references_folder.load(name)):
        found.update(Path(module.__file__).read_bytes())
    found.update(index.tobytes())
    return found.hexdigest()[:16]


def _save(path: Path, stack: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **stack)
    temporary.replace(path)
