"""Training-free descriptors of places, scored by the same evaluator as a trained model.

A reference is a module of this folder with

- `NEEDS`: "points"; "bev" for those that take density images and points alike; or "range_image";
- `PRESELECTS` (optional): True where `distances` has the setting `candidates`, how many it compares;
- `describe(scan, **settings)`: {name: array} of one scan (`placerec_jax.evaluation.reference_inputs`);
- `distances(queries, database, allowed=None, **settings)`: (Q, D) float32 from stacks of descriptors, lower
  is nearer, inf where `allowed` (Q, D) bool is False or the reference does not look.

A new one is a new file; nothing else need be edited.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.errors import ConfigError
from placerec_jax.evaluation.reference_inputs import DescriptorError, Stack, turn
from placerec_jax.ops.point_steps import decode_points


def names() -> list[str]:
    """The references there are, by the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of a reference. Raises ConfigError that lists the names if there is none called so."""
    if name not in names():
        raise ConfigError(f"no training-free reference {name!r}; there are {names()}.")
    return importlib.import_module(f"{__name__}.{name}")


def describe_split(
    prepared: PreparedFolder,
    name: str,
    records: Sequence[int] | np.ndarray,
    *,
    yaw: np.ndarray | None = None,
    progress: bool = True,
    **settings: Any,
) -> Stack:
    """{name: (N, ...)} descriptors of the `frames` with the (N,) record numbers, in their order.

    Args:
      prepared: a folder of `python -m data_prep lcd` or `nusc_pr`.
      name: the reference.
      records: (N,) record numbers.
      yaw: (N,) rad by which each scan is turned first, e.g. to ask with queries in any heading.
      progress: show a bar with rate and time left.
      settings: passed on to the reference's `describe`.

    Raises:
        ConfigError: no such reference, no records, or the folder lacks what the reference needs.
        DescriptorError: a scan is damaged; the message names the record.
    """
    reference = load(name)
    if not len(records):
        raise ConfigError(f"{prepared.root}: reference {name!r}: no records to describe.")
    if yaw is not None and len(yaw) != len(records):
        raise DescriptorError(
            f"yaw: expected one angle for each of {len(records)} records, found {len(yaw)}."
        )
    described = []
    bar = tqdm(records, desc=f"describe {name}", unit="scan", disable=not progress, leave=False)
    for place, index in enumerate(bar):
        scan = _read_scan(prepared, name, reference.NEEDS, int(index))
        try:
            described.append(reference.describe(scan if yaw is None else turn(scan, yaw[place]), **settings))
        except DescriptorError as error:
            raise DescriptorError(f"{prepared.root}: record {index} of frames: {error}") from error
    return {key: np.stack([one[key] for one in described]) for key in described[0]}


def _read_scan(prepared: PreparedFolder, name: str, needs: str, index: int) -> np.ndarray:
    """What a reference takes, by the first of the features that will do and that the folder has."""
    table = prepared.table("frames")
    # Camera images stay as they are stored: nobody here looks at them.
    record = table.read(index, images=False)
    for feature, read in _READERS[needs].items():
        if feature in record:
            return read(table, index, record)
    raise ConfigError(
        f"{prepared.root}: reference {name!r} needs {' or '.join(_READERS[needs])}, the table frames holds "
        f"{sorted(record)}. Take it out of config.eval.references, or prepare a dataset that has them."
    )


def _points(table: Any, index: int, record: dict[str, Any]) -> np.ndarray:
    return decode_points(record["point_steps"])


def _picture(table: Any, index: int, record: dict[str, Any]) -> np.ndarray:
    return table.read(index)["bev"]


def _range_image(table: Any, index: int, record: dict[str, Any]) -> np.ndarray:
    return record["range_steps"]


# {what a reference needs: {feature of a record that gives it: how}}
_READERS = {
    "points": {"point_steps": _points},
    "bev": {"point_steps": _points, "bev": _picture},
    "range_image": {"range_steps": _range_image},
}


def distances(
    name: str,
    queries: Stack,
    database: Stack,
    allowed: np.ndarray | None = None,
    *,
    block: int = 256,
    progress: bool = True,
    **settings: Any,
) -> np.ndarray:
    """(Q, D) float32 distances of a reference, a block of queries at a time, so that memory stays bounded.

    `allowed` (Q, D) bool says which database scans a query may be compared with (a growing database leaves
    out the most recent ones); the others get inf, and count in no preselection.
    """
    reference = load(name)
    count = len(next(iter(queries.values())))
    if not count:
        return np.zeros((0, len(next(iter(database.values())))), np.float32)
    parts = []
    with tqdm(total=count, desc=f"compare {name}", unit="query", disable=not progress, leave=False) as bar:
        for start in range(0, count, block):
            rows = slice(start, start + block)
            part = {key: value[rows] for key, value in queries.items()}
            mask = None if allowed is None else allowed[rows]
            parts.append(reference.distances(part, database, mask, **settings))
            bar.update(len(parts[-1]))
    return np.concatenate(parts)
