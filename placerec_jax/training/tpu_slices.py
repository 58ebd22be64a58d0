"""TPU slices that need not be there: their devices as the TPU compiler knows them.

Only libtpu is asked, which holds that compiler; no TPU and no cloud. `make env-aot` puts it into the folder
.libtpu of the checkout; where it is installed as a package, that is taken.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from placerec_jax.errors import ConfigError, UserError

GIB = 2**30


class Chip(NamedTuple):
    """What a kind of TPU is, by its public data sheet."""

    hbm: int  # bytes a chip
    axes: int  # of the torus that slices are cut from
    options: tuple[tuple[str, Any], ...] = ()  # of its topology


CHIPS = {
    # As one device of two cores; otherwise there would be two devices a chip.
    "v4": Chip(32 * GIB, 3, (("chip_config_name", "megacore"),)),
    "v5e": Chip(16 * GIB, 2),
    "v5p": Chip(95 * GIB, 3),
    "v6e": Chip(32 * GIB, 2),
}
_LIBRARY = Path(__file__).resolve().parents[2] / ".libtpu" / "libtpu" / "libtpu.so"
_HOST = (2, 2, 1)  # chips of one host machine along each axis, at the most


class Slice(NamedTuple):
    """A slice of `chips` TPUs of one kind."""

    name: str
    chip: Chip
    devices: Sequence[jax.Device]  # to compile for; nothing can be run on them


def compile_without_tpu() -> None:
    """Keeps libtpu from looking for a TPU or asking the cloud. Call it before JAX starts a backend."""
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-1"),  # any that it knows, or it complains
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),  # another process may be compiling
    ):
        os.environ.setdefault(variable, value)
    if _LIBRARY.exists():
        os.environ.setdefault("TPU_LIBRARY_PATH", str(_LIBRARY))
    jax.config.update("jax_platforms", "cpu")


def tpu_slice(topology: str) -> Slice:
    """The slice called `topology`, such as "v5e:4x4" or "v4:2x2x2".

    Once a process: the compiler takes the devices of two calls for different machines.

    Raises:
        ConfigError: no such chip or shape.
        UserError: libtpu is absent.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", topology)
    chip = CHIPS.get(match[1]) if match else None
    sides = tuple(int(side) for side in match[2].split("x")) if match else ()
    if chip is None or len(sides) != chip.axes or min(sides) < 1:
        shapes = ", ".join(f"{name}:{'x'.join('2' * known.axes)}" for name, known in CHIPS.items())
        raise ConfigError(
            f"--topology={topology}: expected a kind of TPU and the chips along each axis, as {shapes}"
        )
    sides_of_host = tuple(min(a, b) for a, b in zip((*sides, 1), _HOST, strict=False))
    options = {**dict(chip.options), "chips_per_host_bounds": sides_of_host}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    except RuntimeError as error:
        raise _explained(topology, str(error)) from error
    return Slice(topology, chip, found.devices)


def _explained(topology: str, message: str) -> UserError:
    if "support not installed" in message or "libtpu" in message:
        return UserError(
            "compiling for a TPU needs its compiler, libtpu, which is not installed: make env-aot "
            f"({message.splitlines()[0][:300]})"
        )
    return ConfigError(f"--topology={topology}: the TPU compiler knows no such slice: {message[:300]}")
