"""Evaluates a trained method and writes its report.

    python -m placerec_jax.evaluate --config=configs/maplocnet.py [--workdir=DIR] [--checkpoint=best]

Prints the tables and writes WORKDIR/report/: `index.html` to look at, `report.json` to compute with.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags

from placerec_jax import methods
from placerec_jax.data.preparation import ensure_prepared
from placerec_jax.errors import UserError
from placerec_jax.evaluation.inference import predict_examples, predict_split
from placerec_jax.evaluation.provenance import notices, provenance, summary_line
from placerec_jax.evaluation.report import text_table, write_report
from placerec_jax.training import process
from placerec_jax.training.checkpoint import Checkpointer
from placerec_jax.training.sharding import make_mesh
from placerec_jax.training.state import abstract_variables


def run(
    cfg: ml_collections.ConfigDict, workdir: Path, checkpoint: int | str = "best", split: str | None = None
) -> dict[str, Any]:
    """Scores `checkpoint` ("best", "last" or a step) of `workdir` on `split` (default: `data.test_split`).

    Writes `workdir`/report and returns the scores.
    """
    split = split or cfg.data.test_split
    method = methods.load(cfg.method)
    evaluator = importlib.import_module(f"placerec_jax.evaluation.{cfg.eval.evaluator}")
    prepared = ensure_prepared(cfg)
    mesh = make_mesh(cfg.mesh)
    frozen = ml_collections.FrozenConfigDict(cfg)

    checkpointer = Checkpointer(workdir, cfg, prepared.fingerprint)
    abstract = abstract_variables(method, frozen, method.model(frozen), mesh)
    variables, about = checkpointer.restore_variables(abstract, checkpoint)
    checkpointer.close()
    _say(f"step {about.step} of {workdir}, split {split!r} of {prepared.root}")

    keep = getattr(evaluator, "KEEP", ())
    rows = predict_split(method, cfg, variables, prepared, split, mesh, keep=keep)
    for name, changed in getattr(evaluator, "passes", _no_passes)(cfg).items():
        _say(f"once more, {name}")
        again = predict_split(method, changed, variables, prepared, split, mesh, keep=keep)
        rows |= {f"{name}/{output}": values for output, values in again.items()}
    rows = evaluator.annotate(prepared, rows)
    if hasattr(evaluator, "references"):
        rows = evaluator.references(cfg, prepared, rows, workdir / "references")
    if hasattr(evaluator, "second_stage"):
        rows = evaluator.second_stage(method, cfg, rows)
    scores = evaluator.score(cfg, rows)
    chosen = evaluator.choose_examples(cfg, rows)
    examples = {
        group: predict_examples(method, cfg, variables, prepared, split, mesh, rows["position"][numbers])
        for group, numbers in chosen.items()
    }
    if jax.process_index() == 0:
        first = notices(about, prepared)
        facts = provenance(cfg, about, prepared, split, scores, workdir, checkpoint)
        page = write_report(
            workdir / "report",
            title=f"{cfg.name} on {split}",
            subtitle=summary_line(facts),
            provenance=facts,
            scores=scores,
            sections=evaluator.report(cfg, scores, rows, examples, method, prepared),
            notices=first,
            files=evaluator.files(rows),
        )
        blocks = [text_table(table) for table in evaluator.tables(scores, method)]
        print("\n\n".join([*first, *blocks, "\n".join(evaluator.verdict(scores))]))
        print(f"\n{page}")
    return scores


def _no_passes(cfg: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    return {}


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)


def _main(_: Any) -> None:
    values = flags.FLAGS
    process.start(values.distributed)
    checkpoint = int(values.checkpoint) if values.checkpoint.isdecimal() else values.checkpoint
    if isinstance(checkpoint, str) and checkpoint not in ("best", "last"):
        sys.exit(f"error: --checkpoint={checkpoint}: expected best, last or a step")
    try:
        workdir = process.local_folder(values.workdir or values.config.workdir)
        scores = run(values.config, workdir, checkpoint, values.split)
    except UserError as error:
        sys.exit(f"error: {error}")
    if values.require_target and not scores.get("target", {"passed": False})["passed"]:
        sys.exit("error: --require_target: the target of config.eval.target was missed; see the report")


def main() -> None:
    """Defines the flags, which no import does, and runs."""
    config_flags.DEFINE_config_file("config", None, "The config that the checkpoint was trained with.")
    flags.DEFINE_string("workdir", None, "The run's folder (default: config.workdir).")
    flags.DEFINE_string("checkpoint", "best", "best, last, or a step.")
    flags.DEFINE_string("split", None, "Split to evaluate (default: config.data.test_split).")
    flags.DEFINE_bool("require_target", False, "Exit with an error when config.eval.target is missed.")
    flags.DEFINE_bool("distributed", False, "One of several processes; see jax.distributed.initialize.")
    flags.mark_flag_as_required("config")
    app.run(_main)


if __name__ == "__main__":
    main()
