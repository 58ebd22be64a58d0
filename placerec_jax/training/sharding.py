"""The device mesh and where every array of the training state lives on it.

Axis `data` only splits the batch; axis `fsdp` splits the batch and the large parameters with their optimiser
moments (fully sharded data parallelism). Shardings are inferred from names and shapes, so modules know
nothing of them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from placerec_jax.errors import ConfigError
from placerec_jax.modules.sharding import BATCH_AXES

Rules = Sequence[tuple[str, tuple[str | None, ...]]]  # (pattern of the name, mesh axis of every array axis)


def make_mesh(cfg: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config.mesh`: `data` x `fsdp` over all devices; -1 takes what the other leaves.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {"data": cfg.data, "fsdp": cfg.fsdp}
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) == 1:
        known = int(np.prod([size for size in sizes.values() if size != -1]))
        sizes[free[0]] = len(devices) // known if known > 0 else 0
    if min(sizes.values()) < 1 or int(np.prod(list(sizes.values()))) != len(devices):
        raise ConfigError(
            f"config.mesh.data={cfg.data}, config.mesh.fsdp={cfg.fsdp}: expected sizes whose product is the "
            f"number of devices, {len(devices)} (one of them may be -1: what the other leaves)."
        )
    # Auto axes: the compiler places what is not constrained. Explicit ones, the default, reject dropout on
    # sharded inputs.
    return jax.make_mesh(
        tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes), devices=devices
    )


def infer_shardings(tree: Any, mesh: Mesh, *, rules: Rules = (), min_size: int = 2**16) -> Any:
    """A NamedSharding for every leaf of `tree` (arrays or ShapeDtypeStructs).

    The first rule whose pattern is found in the leaf's name ("params/bev_encoder/stem/kernel") decides.
    Without one, a leaf of at least `min_size` elements is split over `fsdp` along its largest axis that
    `fsdp` divides (the last of equals); any other leaf is replicated. Optimiser moments carry their
    parameter's name at the end of theirs, so they follow it.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = leaf_name(path)
        for pattern, axes in rules:
            if re.search(pattern, name):
                return NamedSharding(mesh, PartitionSpec(*axes))
        return NamedSharding(mesh, _fsdp_spec(leaf.shape, mesh.shape["fsdp"], min_size))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def constrain_parameters(tree: Any, cfg: ml_collections.ConfigDict) -> Any:
    """Within a traced function: `tree`, shaped as parameters, is placed on the mesh as they are.

    `cfg` is `config.mesh`. For gradients that a loop sums up: the compiler would otherwise be free to keep a
    whole copy on each device. Outside `jax.set_mesh` it is the identity.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    shardings = infer_shardings({"params": tree}, mesh, rules=cfg.rules, min_size=cfg.fsdp_min_size)["params"]
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis over all devices, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows {name: (B / processes, ...)} → global {name: (B, ...)} sharded over the devices.

    Raises:
        ConfigError: the devices do not divide B.
    """
    sharding = batch_sharding(mesh)
    rows = len(next(iter(batch.values()))) * jax.process_count()
    if rows % mesh.size:
        raise ConfigError(
            f"a batch of {rows} cannot be divided among {mesh.size} devices; set --config.train.batch_size "
            "(or config.eval.batch_size) to a multiple of them, or use fewer devices"
        )
    return {name: jax.make_array_from_process_local_data(sharding, value) for name, value in batch.items()}


def leaf_name(path: tuple[Any, ...]) -> str:
    """A key path as "params/stem/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _fsdp_spec(shape: tuple[int, ...], size: int, min_size: int) -> PartitionSpec:
    divisible = [axis for axis, length in enumerate(shape) if length % size == 0]
    if size == 1 or not divisible or np.prod(shape) < min_size:
        return PartitionSpec()
    split = max(divisible, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*("fsdp" if axis == split else None for axis in range(len(shape))))
