"""Compiles a configuration's steps for TPUs that are not there, and says what they need: does it fit?

    python -m placerec_jax.aot --config=configs/saliency_i2ploc.py:released --topology=v5e:1x1
        [--batch=N] [--step=train|inference|both] [--json]

The training step is the one that `placerec_jax.train` runs, the inference step that of `evaluate`: sharded
over the slice by `config.mesh`, state donated. Needs libtpu (make env-aot), no TPU; nothing is run. Big
networks take minutes to compile. The exit status is 1 where something does not fit.

Peak memory, arguments and temporaries are the compiler's. FLOPs are counted from the program's equations
(`placerec_jax.training.cost`), with the turns of loops and what is computed again, and divided by the chips.
"""

import dataclasses
import importlib
import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
from absl import app, flags
from jax.sharding import Mesh
from ml_collections import config_flags

from placerec_jax import methods
from placerec_jax.errors import ConfigError, UserError
from placerec_jax.evaluation.inference import lower_prediction
from placerec_jax.training.cost import function_cost
from placerec_jax.training.optimizer import make_optimizer, make_schedule
from placerec_jax.training.sharding import batch_sharding, make_mesh
from placerec_jax.training.state import abstract_state, abstract_variables
from placerec_jax.training.step import make_train_step
from placerec_jax.training.tpu_slices import GIB, Slice, compile_without_tpu, tpu_slice


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step; bytes and FLOPs are those of one chip."""

    name: str
    batch: int  # examples, on all chips together
    micro_batches: int  # that they are cut into
    fits: bool
    peak: int  # bytes at the worst moment; where it does not fit, what the compiler would need
    usable: int  # bytes of HBM that programs have; 0 where the compiler did not say
    arguments: int
    temporaries: int
    flops: float
    seconds: float  # of compiling


def compile_steps(
    cfg: ml_collections.ConfigDict, where: Slice, steps: tuple[str, ...] = ("train", "inference")
) -> list[Program]:
    """The steps of `cfg` called `steps`, compiled for a slice.

    Raises:
        ConfigError: no such step, or settings that do not fit each other or the slice.
    """
    mesh = make_mesh(cfg.mesh, where.devices)
    return [STEPS[step](cfg, mesh) for step in steps]


def _train_step(cfg: ml_collections.ConfigDict, mesh: Mesh) -> Program:
    method, frozen = methods.load(cfg.method), ml_collections.FrozenConfigDict(cfg)
    model = method.model(frozen)
    schedule = make_schedule(frozen.optimizer, cfg.train.steps)
    tx = make_optimizer(frozen.optimizer, schedule)
    state = abstract_state(method, frozen, model, tx, mesh)
    batch = _abstract_batch(method.features(frozen, training=True), cfg.train.batch_size, mesh)
    step = make_train_step(method, frozen, model, tx, schedule)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    with jax.set_mesh(mesh):
        flops = function_cost(step, state, batch).total.flops
        lowered = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)).lower(state, batch)
    return _compiled("train step", lowered, cfg.train.batch_size, cfg.train.accumulate, flops / mesh.size)


def _inference_step(cfg: ml_collections.ConfigDict, mesh: Mesh) -> Program:
    method, frozen = methods.load(cfg.method), ml_collections.FrozenConfigDict(cfg)
    model = method.model(frozen)
    variables = abstract_variables(method, frozen, model, mesh)
    batch = _abstract_batch(method.features(frozen), cfg.eval.batch_size, mesh)
    evaluator = importlib.import_module(f"placerec_jax.evaluation.{cfg.eval.evaluator}")
    with jax.set_mesh(mesh):
        cost = function_cost(
            lambda v, x: method.predict(frozen, model.apply(v, x, train=False), x), variables, batch
        )
    lowered = lower_prediction(method, cfg, mesh, variables, batch, getattr(evaluator, "SCORED", ()))
    return _compiled("inference step", lowered, cfg.eval.batch_size, 1, cost.total.flops / mesh.size)


STEPS: dict[str, Callable[[ml_collections.ConfigDict, Mesh], Program]] = {
    "train": _train_step,
    "inference": _inference_step,
}


def _abstract_batch(
    features: dict[str, jax.ShapeDtypeStruct], rows: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    if rows % mesh.size:
        raise ConfigError(f"a batch of {rows} cannot be divided among {mesh.size} chips; see --batch")
    sharding = batch_sharding(mesh)
    return {
        name: jax.ShapeDtypeStruct((rows, *feature.shape), feature.dtype, sharding=sharding)
        for name, feature in features.items()
    }


def _compiled(name: str, lowered: jax.stages.Lowered, batch: int, pieces: int, flops: float) -> Program:
    started = time.perf_counter()
    try:
        memory = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        peak, usable = _out_of_memory(str(error))
        seconds = time.perf_counter() - started
        return Program(name, batch, pieces, False, peak, usable, 0, 0, flops, seconds)
    return Program(
        name,
        batch,
        pieces,
        True,
        memory.peak_memory_in_bytes,
        0,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        flops,
        time.perf_counter() - started,
    )


# What it says, depending on how early it notices: (needed, usable), each with a unit.
_OUT_OF_MEMORY = (
    r"Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm",
    r"HLO temporaries \(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)",
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _out_of_memory(message: str) -> tuple[int, int]:
    """(needed, usable) bytes from what the compiler says; any other failure is raised as it was."""
    for pattern in _OUT_OF_MEMORY:
        if found := re.search(pattern, message):
            needed, usable = (
                int(float(size.rstrip("KMGT")) * _UNITS[size.lstrip("0123456789.")])
                for size in found.groups()
            )
            return needed, usable
    raise RuntimeError(message)


def as_text(cfg: ml_collections.ConfigDict, where: Slice, programs: list[Program]) -> str:
    """What was found, "does it fit" first."""
    lines = [
        f"{cfg.name} ({cfg.dtype}) on {where.name}: {len(where.devices)} chip(s) of "
        f"{where.chip.hbm / GIB:.0f} GiB HBM; figures are those of one chip"
    ]
    for program in programs:
        pieces = f" in {program.micro_batches} micro-batches" if program.micro_batches > 1 else ""
        lines += ["", f"{program.name}, {program.batch} examples{pieces}: {_verdict(program, where)}"]
        if program.fits:
            arguments, temporaries = program.arguments / GIB, program.temporaries / GIB
            lines.append(f"  arguments {arguments:.2f} GiB, temporaries {temporaries:.2f} GiB")
        lines.append(f"  {program.flops / 1e12:.3f} TFLOP; compiled in {program.seconds:.0f} s")
    return "\n".join(lines)


def _verdict(program: Program, where: Slice) -> str:
    peak = f"{program.peak / GIB:.2f} GiB"
    if program.fits:
        return f"FITS, peak {peak}, {program.peak / where.chip.hbm:.0%} of HBM"
    return f"DOES NOT FIT, needs {peak}, programs have {program.usable / GIB:.2f} GiB"


def as_json(cfg: ml_collections.ConfigDict, where: Slice, programs: list[Program]) -> dict[str, Any]:
    """A plain dictionary of the same."""
    return {
        "config": cfg.name,
        "topology": where.name,
        "chips": len(where.devices),
        "hbm": where.chip.hbm,
        "programs": [dataclasses.asdict(program) for program in programs],
    }


def _main(_: Any) -> None:
    values = flags.FLAGS
    cfg = values.config
    try:
        compile_without_tpu()
        where = tpu_slice(values.topology)
        if values.batch is not None:
            cfg.train.batch_size = cfg.eval.batch_size = values.batch
        programs = compile_steps(cfg, where, tuple(STEPS) if values.step == "both" else (values.step,))
    except UserError as error:
        sys.exit(f"error: {error}")
    found = as_json(cfg, where, programs)
    print(json.dumps(found, indent=2) if values.json else as_text(cfg, where, programs))
    sys.exit(0 if all(program.fits for program in programs) else 1)


def main() -> None:
    """Defines the flags, which no import does, and runs."""
    config_flags.DEFINE_config_file("config", None, "Config file, as configs/saliency_i2ploc.py:released.")
    flags.DEFINE_string("topology", None, "Kind of TPU and chips along each axis, as v5e:4x4.")
    flags.DEFINE_integer("batch", None, "Examples of a step on all chips (default: those of the config).")
    flags.DEFINE_enum("step", "both", [*STEPS, "both"], "What is compiled.")
    flags.DEFINE_bool("json", False, "Print JSON instead of text.")
    flags.mark_flags_as_required(["config", "topology"])
    app.run(_main)


if __name__ == "__main__":
    main()
