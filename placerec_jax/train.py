"""Trains a method.

    python -m placerec_jax.train --config=configs/maplocnet.py [--workdir=DIR] [--config.train.steps=100]

Running the same command again goes on from the newest checkpoint in the working directory. Exit status 75:
a signal stopped the run, which was saved. `--config.train.steps=0` saves what a run would start from, so that
`evaluate` can score published weights as they are.
"""

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags

from placerec_jax import methods
from placerec_jax.data import pipeline, preparation
from placerec_jax.errors import UserError
from placerec_jax.evaluation.inference import predict_split
from placerec_jax.training import loop, process
from placerec_jax.training.checkpoint import Checkpointer, CheckpointError, config_as_json
from placerec_jax.training.metrics import MetricsLog
from placerec_jax.training.optimizer import make_optimizer, make_schedule
from placerec_jax.training.pretrained import PRETRAINED, load_pretrained
from placerec_jax.training.sharding import make_mesh
from placerec_jax.training.state import TrainState, abstract_state, count_parameters, init_state
from placerec_jax.training.step import checked_tensors, make_train_step


def run(
    cfg: ml_collections.ConfigDict,
    workdir: Path,
    init_from: str | None = None,
    restore_step: int | None = None,
) -> bool:
    """Trains `cfg` in `workdir`; returns whether `train.steps` was reached (False: stopped by a signal).

    Starts from the newest checkpoint there (or that of `restore_step`), else from the weights of the working
    directory `init_from`, else from the published weights that the config names, else from scratch.
    """
    method = methods.load(cfg.method)
    prepared = preparation.ensure_prepared(cfg)
    mesh = make_mesh(cfg.mesh)
    frozen = ml_collections.FrozenConfigDict(cfg)
    model = method.model(frozen)
    schedule = make_schedule(cfg.optimizer, cfg.train.steps)
    tx = make_optimizer(cfg.optimizer, schedule)
    workdir.mkdir(parents=True, exist_ok=True)
    checkpointer = Checkpointer(workdir, cfg, prepared.fingerprint, writable=True)

    abstract = abstract_state(method, frozen, model, tx, mesh)
    if checkpointer.steps():
        state = checkpointer.restore(abstract, restore_step)
        checkpointer.discard_after(int(state.step))
        _say(f"going on from step {int(state.step)} of {workdir}")
    else:
        state = init_state(method, frozen, model, tx, mesh)
        if jax.process_index() == 0:
            (workdir / PRETRAINED).unlink(missing_ok=True)  # of a start that came to nothing
        if init_from:
            state = _with_old_weights(state, cfg, Path(init_from))
        elif hasattr(method, "pretrained"):
            state = _with_published_weights(state, method.pretrained(frozen), workdir)
    start_step = int(state.step)
    if jax.process_index() == 0:
        _write_json(workdir / "config.json", config_as_json(cfg))
    _describe(cfg, mesh, state)

    source = method.source(frozen, prepared, cfg.data.train_split, training=True)
    batches = pipeline.train_batches(
        source,
        features=method.features(frozen, training=True),
        batch_size=cfg.train.batch_size,
        seed=cfg.seed,
        start_step=start_step,
        workers=cfg.data.workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = jax.jit(
        make_train_step(method, frozen, model, tx, schedule),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    log = MetricsLog(workdir, start_step) if jax.process_index() == 0 else None
    evaluator = importlib.import_module(f"placerec_jax.evaluation.{cfg.eval.evaluator}")

    # An evaluator that needs more than evenly spread examples says which, and what it knows of them.
    examples, known = None, {}
    if hasattr(evaluator, "watched"):
        examples, known = evaluator.watched(cfg, prepared, cfg.data.eval_split, cfg.train.eval_examples)

    def evaluate(state: TrainState) -> dict[str, float]:
        rows = predict_split(
            method,
            cfg,
            state.variables,
            prepared,
            cfg.data.eval_split,
            mesh,
            limit=cfg.train.eval_examples,
            progress=False,
            keep=getattr(evaluator, "SCORED", ()),
            examples=examples,
        )
        return evaluator.summarize(evaluator.score(cfg, {**rows, **known}))

    with jax.set_mesh(mesh):
        state, finished = loop.train(
            loop.Run(
                cfg=cfg,
                mesh=mesh,
                step=step,
                tensor_names=lambda *shapes: checked_tensors(method, frozen, model, *shapes),
                batches=batches,
                evaluate=evaluate,
                checkpointer=checkpointer,
                log=log,
            ),
            state,
        )
    if log is not None:
        log.close()
    checkpointer.close()
    best = checkpointer.best_step()
    if finished:
        _say(
            f"done: step {int(state.step)}; best {cfg.eval.best_metric} at step {best}; "
            f"everything is in {workdir}"
        )
    else:
        _say(
            f"stopped and saved at step {int(state.step)} of {cfg.train.steps}; "
            "the same command goes on from there"
        )
    return finished


def _with_old_weights(state: TrainState, cfg: ml_collections.ConfigDict, old: Path) -> TrainState:
    if not old.is_dir():
        raise CheckpointError(f"--init_from={old}: no such working directory.")
    checkpointer = Checkpointer(old, cfg, "")
    variables, matched, unmatched = checkpointer.initial_variables(state.variables)
    checkpointer.close()
    _say(f"weights from {old}: {len(matched)} arrays match")
    for line in unmatched:
        _say(f"  no match: {line}")
    return state.replace(**variables)


def _with_published_weights(
    state: TrainState, wanted: dict[str, methods.Pretrained], workdir: Path
) -> TrainState:
    loaded = load_pretrained(state.variables, wanted)
    for line in loaded.lines:
        _say(line)
    if loaded.record and jax.process_index() == 0:
        _write_json(workdir / PRETRAINED, loaded.record)
    return state.replace(**loaded.variables)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(values, indent=2) + "\n")
    temporary.replace(path)


def _describe(cfg: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, state: TrainState) -> None:
    devices = jax.devices()
    _say(
        f"{cfg.name}: {count_parameters(state.params):,} parameters on {len(devices)} x "
        f"{devices[0].device_kind} (mesh {dict(mesh.shape)}, {jax.process_count()} process(es)); "
        f"batch {cfg.train.batch_size}, {_at_once(cfg, mesh)}; "
        f"steps {int(state.step)} to {cfg.train.steps}"
    )


def _at_once(cfg: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> str:
    """How a batch is gone through, in words."""
    rows = cfg.train.batch_size // cfg.train.accumulate // mesh.size
    if cfg.train.gradients == "whole":
        return f"{rows} a device"
    return f"{cfg.train.gradients} from {cfg.train.accumulate} x {rows} a device"


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def _main(_: Any) -> None:
    values = flags.FLAGS
    process.start(values.distributed)
    try:
        workdir = process.local_folder(values.workdir or values.config.workdir)
        finished = run(values.config, workdir, values.init_from, values.restore_step)
    except UserError as error:
        sys.exit(f"error: {error}")
    if not finished:
        # Not 0, so that what would come next (an evaluation, the end of a queue) waits for the rest.
        sys.exit(os.EX_TEMPFAIL)


def main() -> None:
    """Defines the flags, which no import does, and runs."""
    config_flags.DEFINE_config_file(
        "config", None, "Config file, as configs/maplocnet.py or configs/maplocnet.py:tiny."
    )
    flags.DEFINE_string("workdir", None, "Where the run lives (default: config.workdir).")
    flags.DEFINE_string("init_from", None, "Working directory of an older run: start with its best weights.")
    flags.DEFINE_integer("restore_step", None, "Go on from this checkpoint; newer ones are deleted.")
    flags.DEFINE_bool("distributed", False, "One of several processes; see jax.distributed.initialize.")
    flags.mark_flag_as_required("config")
    app.run(_main)


if __name__ == "__main__":
    main()
