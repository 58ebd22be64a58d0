"""Starts submodules of a fresh model from published torch weights that the user names.

Arrays find their place by name (`modules.torch_names.TorchLayout`); what finds none, on either side, is
listed.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from placerec_jax.methods import Pretrained
from placerec_jax.modules.torch_names import TorchLayout
from placerec_jax.training.sharding import leaf_name
from placerec_jax.training.torch_files import WeightsError, read_state_dict

PRETRAINED = "pretrained.json"  # in the working directory: `Loaded.record`

_NAMED = 6  # arrays that are not needed are counted beyond these


class Loaded(NamedTuple):
    """Variables with pretrained arrays in place, what to tell the user, and what to write down."""

    variables: dict[str, Any]
    lines: list[str]
    record: dict[str, dict[str, Any]]  # submodule → {"file", "sha256", "library", "arrays"}


def load_pretrained(variables: Mapping[str, Any], wanted: Mapping[str, Pretrained]) -> Loaded:
    """`variables` {"params", "batch_stats"} with the submodules of `wanted` filled from their files.

    Every array keeps its dtype and its sharding; each process reads the whole file. Submodules whose path is
    empty stay as initialised, and a line says so.

    Raises:
        WeightsError: a file cannot be read, holds no array of the network, one in another shape, or one that
            is not finite.
    """
    variables, lines, record = dict(variables), [], {}
    for submodule, source in wanted.items():
        if not source.path:
            lines.append(f"{submodule}: trained from scratch ({source.setting} is empty)")
            continue
        path = Path(source.path).expanduser()
        if not source.layouts:
            raise WeightsError(
                f"{source.setting}={source.path}: no published weights are known for this {submodule}; "
                "choose another network or leave the setting empty."
            )
        state_dict = read_state_dict(path)
        part = {collection: tree[submodule] for collection, tree in variables.items() if submodule in tree}
        layout, prefix = _best_layout(path, state_dict, source.layouts)
        part, found = _filled(path, part, state_dict, layout, prefix)
        for collection, tree in part.items():
            variables[collection] = {**variables[collection], submodule: tree}
        record[submodule] = {
            "file": path.name,
            "sha256": _sha256(path),
            "library": layout.library,
            "arrays": len(found.matched),
        }
        lines += _report(submodule, path, layout, prefix, state_dict, found)
    return Loaded(variables, lines, record)


class _Found(NamedTuple):
    matched: set[str]  # their names
    missing: list[str]  # ours → theirs that the file lacks


def _best_layout(
    path: Path, state_dict: Mapping[str, np.ndarray], layouts: tuple[TorchLayout, ...]
) -> tuple[TorchLayout, str]:
    """The layout and the prefix ("module.", "backbone.", or "") under which most names are found."""
    best, count = None, 0
    for layout in layouts:
        theirs = [name for ours in layout.names for name in layout.theirs(ours)]
        prefixes = {
            name.removesuffix(first): None
            for first in theirs[:1]  # the first layer: a model that lacks it is not this one
            for name in state_dict
            if name == first or name.endswith(f".{first}")
        }
        for prefix in prefixes:
            found = sum(prefix + name in state_dict for name in theirs)
            if found > count:
                best, count = (layout, prefix), found
    if best is None:
        raise WeightsError(
            f"{path}: none of its {len(state_dict)} arrays has a name of this network: expected "
            + " or ".join(f"{next(iter(layout.names.values()))} ({layout.library})" for layout in layouts)
            + f", found {', '.join(list(state_dict)[:5])} …"
        )
    if best[0].refusal:
        raise WeightsError(f"{path}: {best[0].refusal}.")
    return best


def _filled(
    path: Path,
    part: dict[str, Any],
    state_dict: Mapping[str, np.ndarray],
    layout: TorchLayout,
    prefix: str,
) -> tuple[dict[str, Any], _Found]:
    matched, missing, problems = set(), [], []

    def fill(key_path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        name = leaf_name(key_path)
        sources = [prefix + source for source in layout.theirs(name)]
        absent = [source for source in sources if source not in state_dict]
        if absent or not sources:
            wanted = ", ".join(absent) or "a name"
            missing.append(f"{name}: {wanted} is not in the file, stays as initialised")
            return leaf
        theirs = ", ".join(sources)
        value = _joined([state_dict[source] for source in sources])
        if name in layout.arranged:
            value = layout.arranged[name](value, leaf.shape)
        else:
            value = _in_our_layout(value, leaf.ndim)
        if value.shape != leaf.shape:
            problems.append(
                f"{theirs} is {list(value.shape)} in our order of axes, {name} is {list(leaf.shape)}"
            )
            return leaf
        value = np.asarray(value, leaf.dtype)
        if not np.isfinite(value).all():
            problems.append(f"{theirs} holds NaN or infinity")
        matched.update(sources)
        # A callback, so that a process fills the devices it has: those of others need not be reached.
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])

    filled = jax.tree_util.tree_map_with_path(fill, part)
    if problems:
        raise WeightsError(
            f"{path}: not of this network ({layout.library}):\n  "
            + "\n  ".join(problems)
            + "\nGive the weights of the published network, or its widths to the config."
        )
    return filled, _Found(matched, missing)


def _joined(values: list[np.ndarray]) -> np.ndarray:
    """Along the first axis; arrays that do not fit together stay one, so that its shape is reported."""
    if len({value.shape[1:] for value in values}) > 1 or not values[0].ndim:
        return values[0]
    return np.concatenate(values) if len(values) > 1 else values[0]


def _in_our_layout(value: np.ndarray, axes: int) -> np.ndarray:
    """torch → Flax: (out, in, h, w) → (h, w, in, out), (out, in[, 1[, 1]]) → (in, out); the rest as it is."""
    if value.ndim > 2 and axes == 2 and set(value.shape[2:]) == {1}:
        value = value.reshape(value.shape[:2])
    return value.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(value.ndim, range(value.ndim)))


def _report(
    submodule: str,
    path: Path,
    layout: TorchLayout,
    prefix: str,
    state_dict: Mapping[str, np.ndarray],
    found: _Found,
) -> list[str]:
    below = f", below {prefix!r}" if prefix else ""
    lines = [f"{submodule}: {len(found.matched)} arrays from {path} ({layout.library}{below})"]
    if layout.note:
        lines.append(f"  note: {layout.note}")
    lines += [f"  no match: {line}" for line in found.missing]
    unused = [name for name in state_dict if name not in found.matched]
    for what, pattern in layout.leftovers:
        group = [name for name in unused if re.search(pattern, name.removeprefix(prefix))]
        if group:
            named = ", ".join(group[:_NAMED]) + (f", … {len(group)} in all" if len(group) > _NAMED else "")
            lines.append(f"  not needed, {what}: {named}")
        unused = [name for name in unused if name not in group]
    return lines + [f"  no match: {name}: only in the file" for name in unused]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
