"""Scores anyone's descriptors or distances as loop closure, with the evaluator of our own methods.

    python -m placerec_jax.score --prepared=DIR --sequence=08 --descriptors=X.npy [--ap_policy=standard]
    python -m placerec_jax.score --prepared=DIR --sequence=08 --descriptors=X.npy,Y.npy --distances=D.npy

DIR is a folder of `python -m data_prep lcd`; only the poses in it are read. N is the number of frames of the
sequence in it, in the order of the dataset (the error says how many it expects):

- `--descriptors`: (N, D), compared by Euclidean distance; normalise them first for cosine;
- `--distances`: (N, N), row = the frame that asks, column = the frame that answers, lower = nearer; what is
  never compared may be inf. Only the columns before the row's frame are read.

Frame i, from `--first_query` (100) on, retrieves the nearest frame among j < i − `--loop_gap` (50); a loop
lies nearer than `--loop_distance` (4 m, 3-D). Prints how many loops there are, R@1, average precision under
all three policies (`placerec_jax/evaluation/precision_recall.py` says what they are), largest F1 and recall
at full precision, each by kind of revisit, too; `--ap_policy` chooses the curve that is drawn. Several files
are scored side by side, under their names, with their curves in one picture. Writes a report to `--out`
(default: score-SEQUENCE beside the first file) with every query of the first in `queries.csv`.

    np.save("X.npy", np.stack([my_descriptor(points) for points in scans]))  # (N, D)
"""

import hashlib
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import app, flags

from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.data.records import as_text
from placerec_jax.errors import ConfigError, UserError
from placerec_jax.evaluation import loop_closure, loop_report, loop_retrieval
from placerec_jax.evaluation.precision_recall import POLICIES
from placerec_jax.evaluation.provenance import built_in_city
from placerec_jax.evaluation.report import text_table, write_report


class ArrayError(UserError, ValueError):
    """A file of descriptors or distances that cannot be scored."""


def run(
    prepared: PreparedFolder,
    sequence: str,
    arrays: Sequence[tuple[str, Path]],
    rule: ml_collections.ConfigDict,
    out: Path,
) -> dict[str, Any]:
    """Scores `arrays`, (`descriptors` or `distances`, file) each; writes the report and returns scores.

    `rule` is `cfg.eval` of the loop-closure evaluator. Raises UserError.
    """
    cfg = ml_collections.ConfigDict({"eval": rule})
    table = loop_closure.sequence_table(prepared)
    names = [record["sequence"] for record in table]
    if sequence not in names:
        raise ConfigError(f"--sequence={sequence}: {prepared.root} has no such sequence; there are {names}")
    record = table[names.index(sequence)]
    count = len(record["frame_id"])
    rows = {"index": int(record["first"]) + np.arange(count), "position": np.arange(count)}
    rows = loop_closure.annotate(prepared, rows)
    _check_file_names([array for _, array in arrays])
    task = loop_closure.tasks_of(cfg, loop_closure.frames_of(rows))["growing"][sequence]
    about = []
    for kind, array in arrays:
        values = read_array(array, kind, count, sequence)
        distances = values
        if kind == "descriptors":
            distances = loop_retrieval.descriptor_distances(values, values, [task])
        rows[f"distances/{array.stem}/growing/{sequence}"] = distances
        digest = hashlib.sha256(array.read_bytes()).hexdigest()
        about.append({"file": str(array), "kind": kind, "shape": list(values.shape), "sha256": digest})
    rows |= loop_closure.retrieved_rows(cfg, rows)
    scores = loop_closure.score(cfg, rows)
    facts = {
        "command": shlex.join(["python", "-m", "placerec_jax.score", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "arrays": about,
        "dataset": {
            "root": str(prepared.root),
            "fingerprint": prepared.fingerprint,
            "sequence": sequence,
            "pose_source": as_text(record.get("pose_source", "")),
            "built_in_city": built_in_city(prepared),
        },
    }
    page = write_report(
        out,
        title=f"{', '.join(array.name for _, array in arrays)} on sequence {sequence}",
        subtitle=f"{facts['dataset']['pose_source']} · {facts['created']}",
        provenance=facts,
        scores=scores,
        sections=loop_report.retrieval_sections(cfg, scores, rows),
        files=loop_closure.files(rows),
    )
    print("\n\n".join(text_table(table) for table in loop_report.tables(scores)))
    print(f"\n{page}")
    return scores


def _check_file_names(paths: Sequence[Path]) -> None:
    stems = [path.stem for path in paths]
    for path in paths:
        if stems.count(path.stem) > 1:
            raise ArrayError(f"{path}: expected names that tell the files apart in the report")


def read_array(path: Path, kind: str, count: int, sequence: str) -> np.ndarray:
    """(count, D) descriptors or (count, count) distances from a .npy file. Raises ArrayError."""
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise ArrayError(f"{path}: expected an array written by numpy.save, found: {error}") from error
    wanted = f"({count}, D)" if kind == "descriptors" else f"({count}, {count})"
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu":
        raise ArrayError(f"{path}: expected {wanted} numbers, found {getattr(values, 'dtype', 'an archive')}")
    fits = (
        values.shape == (count, count) if kind == "distances" else values.ndim == 2 and len(values) == count
    )
    if not fits or not values.shape[1]:
        raise ArrayError(
            f"{path}: expected {kind} of shape {wanted}, since sequence {sequence} has {count} frames in the "
            f"prepared folder; found {values.shape}"
        )
    bad = np.isnan(values) if kind == "distances" else ~np.isfinite(values)
    if bad.any():
        row = int(np.flatnonzero(bad.any(axis=1))[0])
        raise ArrayError(
            f"{path}: {int(bad.any(axis=1).sum())} of {count} rows hold values that are not numbers, the "
            f"first is row {row}; give a frame without a descriptor one that is far from all others"
        )
    return values


def _main(_: Any) -> None:
    values = flags.FLAGS
    arrays = [(kind, Path(file)) for kind in ("descriptors", "distances") for file in values[kind].value]
    if not arrays:
        sys.exit("error: give --descriptors=X.npy, --distances=D.npy, or several of them")
    rule = ml_collections.ConfigDict(
        {
            "ap_policy": values.ap_policy,
            "protocol": "growing",
            "loop_distance": values.loop_distance,
            "loop_gap": values.loop_gap,
            "first_query": values.first_query,
        }
    )
    out = Path(values.out) if values.out else arrays[0][1].parent / f"score-{values.sequence}"
    try:
        run(PreparedFolder(values.prepared), values.sequence, arrays, rule, out)
    except UserError as error:
        sys.exit(f"error: {error}")


def main() -> None:
    """Defines the flags, which no import does, and runs."""
    flags.DEFINE_string("prepared", None, "Folder of `python -m data_prep lcd`.")
    flags.DEFINE_string("sequence", None, "Sequence of that folder, e.g. 08.")
    flags.DEFINE_list("descriptors", [], "(N, D) arrays of a descriptor a frame, written by numpy.save.")
    flags.DEFINE_list("distances", [], "(N, N) arrays of distances, written by numpy.save.")
    flags.DEFINE_enum("ap_policy", "standard", POLICIES, "How the curve and `ap` count.")
    flags.DEFINE_float("loop_distance", 4.0, "Metres (3-D) below which two frames are a loop.", lower_bound=0)
    flags.DEFINE_integer("loop_gap", 50, "Frames that must lie between a query and a loop.", lower_bound=0)
    flags.DEFINE_integer("first_query", 100, "Position of the first frame that asks.", lower_bound=0)
    flags.DEFINE_string("out", None, "Folder of the report (default: score-SEQUENCE beside the array).")
    flags.mark_flags_as_required(["prepared", "sequence"])
    app.run(_main)


if __name__ == "__main__":
    main()
