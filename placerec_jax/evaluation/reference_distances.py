"""Distances of training-free references between the frames of a sequence, computed once and kept on disk.

Describing thousands of scans takes minutes. A file of the cache is called after everything its content
depends on: the data's fingerprint, the frames, who may answer whom, how queries are turned, and the
reference's code.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.evaluation import reference_inputs
from placerec_jax.evaluation import references as references_folder
from placerec_jax.evaluation.loop_retrieval import Task
from placerec_jax.evaluation.reference_inputs import Stack

Describe = Callable[[np.ndarray | None], Stack]


class References:
    """References on the frames `index` (n,), record numbers, of one sequence.

    Each reference's unturned descriptions are made at most once, when first needed.
    """

    def __init__(self, prepared: PreparedFolder, index: np.ndarray, cache: Path) -> None:
        self._prepared, self._index, self._cache = prepared, np.asarray(index, np.int64), cache
        self._plain = functools.lru_cache(maxsize=1)(lambda name: self._describe(name, self._index, None))

    def distances(self, name: str, task: Task, yaw: np.ndarray | None = None) -> np.ndarray:
        """(n, n) float32 distances of reference `name` for the queries of `task`, inf where it compares
        nothing.

        `yaw` (n,) rad turns the frames as they ask, not as they answer.
        """
        path = self._cache / f"{name}-{self._key(name, task, yaw)}.npy"
        size = len(self._index)
        try:
            known = np.load(path, mmap_mode="r")
            if known.shape == (size, size):
                return known
        except (OSError, ValueError):
            pass  # absent or damaged: computed again below
        matrix = np.full((size, size), np.inf, np.float32)
        if len(task.query):
            answers = self._plain(name)
            if yaw is None:
                asking = {key: value[task.query] for key, value in answers.items()}
            else:
                asking = self._describe(name, self._index[task.query], yaw[task.query])
            matrix[task.query] = references_folder.distances(
                name, asking, answers, task.allows(task.query, size), progress=jax.process_index() == 0
            )
        if jax.process_index() == 0:
            _save(path, matrix)
        return matrix

    def _describe(self, name: str, records: np.ndarray, yaw: np.ndarray | None) -> Stack:
        return references_folder.describe_split(
            self._prepared, name, records, yaw=yaw, progress=jax.process_index() == 0
        )

    def _key(self, name: str, task: Task, yaw: np.ndarray | None) -> str:
        found = hashlib.sha256(json.dumps([self._prepared.fingerprint, name, yaw is not None]).encode())
        for module in (references_folder, reference_inputs, references_folder.load(name)):
            found.update(Path(module.__file__).read_bytes())
        found.update(self._index.tobytes())
        found.update(np.asarray([] if yaw is None else yaw, np.float64).tobytes())
        found.update(task.query.astype(np.int64).tobytes())
        for _, _, _, allowed in task.blocks():
            found.update(np.packbits(allowed).tobytes())
        return found.hexdigest()[:16]


def _save(path: Path, matrix: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        np.save(file, matrix)
    temporary.replace(path)
