"""Trains the variants of a paper's tables over seeds, and prints the tables beside the published ones.

    python -m benchmarks.ablation --config=configs/maplocnet.py:ablation --tables=II,III --seeds=3 \
        --out=docs/results/maplocnet-ablation.md

The tables are `ABLATIONS` of the config's file. They show errors of poses beside the published ones, or what
another evaluator declares (`benchmarks/ablation_figures.py`). Every run is a training and an evaluation of
its own below `--workdir`; its scores are a line of WORKDIR/results.jsonl. What is there is not run again: the
command can be stopped and goes on where it was. `--config.NAME=VALUE` holds for all runs. `--jobs=2` runs two
at a time, each on its share of the cores: small networks do not fill several.
"""

import hashlib
import importlib.util
import json
import os
import queue
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import ml_collections
from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from benchmarks import ablation_figures
from benchmarks.ablation_figures import markdown_table, mean_and_spread
from placerec_jax import methods
from placerec_jax.data.preparation import ensure_prepared
from placerec_jax.errors import ConfigError, UserError
from placerec_jax.training.checkpoint import config_as_json

KINDS = {"position": "m", "longitudinal": "m", "lateral": "m", "orientation": "°"}


class Form(NamedTuple):
    """How the results of an evaluator are kept and shown."""

    keep: Callable[[Mapping[str, Any]], dict[str, Any]]  # of a report's scores, for a line of results
    text: Callable[[str, Mapping[str, tuple], Mapping[str, list[dict[str, Any]]]], str]  # a table's Markdown
    shared: tuple[str, ...]  # folders of a workdir that all runs may share


class Run(NamedTuple):
    """One training of one variant."""

    settings: dict[str, Any]  # of the config, by dotted name, the seed among them
    key: str  # of what decides the result: config and data

    @property
    def seed(self) -> int:
        return self.settings["seed"]


def load_tables(path: str) -> dict[str, dict[str, tuple[dict[str, Any], tuple | None]]]:
    """`ABLATIONS` of a config file."""
    spec = importlib.util.spec_from_file_location("ablated_config", path)
    if spec is None or spec.loader is None or not Path(path).exists():
        raise ConfigError(f"--config: there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "ABLATIONS"):
        raise ConfigError(f"{path} defines no ABLATIONS; see configs/maplocnet.py for their form")
    return module.ABLATIONS


def vary(cfg: ml_collections.ConfigDict, settings: dict[str, Any]) -> ml_collections.ConfigDict:
    """A copy of the config with settings by dotted name."""
    varied = cfg.copy_and_resolve_references()
    varied.update_from_flattened_dict(settings)
    return varied


def plan(
    cfg: ml_collections.ConfigDict,
    tables: Mapping[str, Mapping[str, tuple[dict[str, Any], Any]]],
    seeds: int,
    fingerprint: str,
) -> dict[tuple[str, str], list[Run]]:
    """{(table, row): one run a seed}; rows with equal settings share their runs by key."""
    runs: dict[tuple[str, str], list[Run]] = {}
    for table, rows in tables.items():
        for row, (settings, _) in rows.items():
            runs[table, row] = []
            for seed in range(seeds):
                own = {**settings, "seed": seed}
                decides = {**config_as_json(vary(cfg, own)), "workdir": "", "fingerprint": fingerprint}
                key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]
                runs[table, row].append(Run(own, key))
    return runs


def read_results(path: Path) -> dict[str, dict[str, Any]]:
    """{key: line} of a results file; a last line that was cut off is dropped from the file."""
    if not path.exists():
        return {}
    found, whole = {}, []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            result = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(path.read_text().splitlines()):
                break
            raise UserError(f"{path}, line {number} is not JSON ({error}); remove the line") from error
        found[result["key"]] = result
        whole.append(line)
    if "".join(line + "\n" for line in whole) != path.read_text():
        mended = path.with_suffix(".mended")
        mended.write_text("".join(line + "\n" for line in whole))
        mended.replace(path)
    return found


def form_of(cfg: ml_collections.ConfigDict, method: ModuleType) -> Form:
    """The form for the config's evaluator: that of poses, or the tables that the evaluator declares."""
    evaluator = importlib.import_module(f"placerec_jax.evaluation.{cfg.eval.evaluator}")
    if not hasattr(evaluator, "ABLATION_TABLES"):
        return Form(
            lambda scores: {name: scores[name] for name in ("thresholds", "estimates")},
            lambda table, rows, results: table_text(table, rows, results, method),
            (),
        )
    return Form(
        lambda scores: ablation_figures.kept(evaluator, scores),
        lambda table, rows, results: ablation_figures.table_text(
            table, {row: results[row] for row in rows}, evaluator, tuple(cfg.eval.get("references", ()))
        ),
        # What training-free references computed: a file there is called after all that it depends on.
        ("references",) if hasattr(evaluator, "references") else (),
    )


def share(workdir: Path, names: Iterable[str]) -> None:
    """Makes `workdir` and links its folders `names` to those beside it."""
    workdir.mkdir(parents=True, exist_ok=True)
    for name in names:
        (workdir.parent / name).mkdir(exist_ok=True)
        if not (workdir / name).exists():
            (workdir / name).symlink_to(Path("..") / name, target_is_directory=True)


def train_and_score(
    run: Run, config: str, forwarded: list[str], folder: Path, cores: set[int], form: Form
) -> dict[str, Any]:
    """Runs the entry points as a user would, on `cores`, and reads the report they leave."""
    workdir = folder / f"{run.key}-seed{run.seed}"
    share(workdir, form.shared)
    shared = [f"--config={config}", f"--workdir={workdir}", *forwarded]
    shared += [f"--config.{name}={value}" for name, value in run.settings.items()]
    seconds = {}
    for module in ("train", "evaluate"):
        started = time.monotonic()
        with (folder / f"{run.key}-seed{run.seed}.log").open("a") as log:
            command = [sys.executable, "-m", f"placerec_jax.{module}", *shared]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            # Python takes longer to start than this takes; JAX sizes its thread pools later still.
            os.sched_setaffinity(process.pid, cores)
            status = process.wait()
        if status:
            raise UserError(f"{shlex.join(command)} ended with status {status}; its output is in {log.name}")
        seconds[module] = round(time.monotonic() - started, 1)
    report = json.loads((workdir / "report" / "report.json").read_text())
    return {
        "key": run.key,
        "settings": run.settings,
        "seconds": seconds,
        "step": report["checkpoint"]["step"],
        "device": report["device"],
        "queries": report["scores"]["queries"],
        **form.keep(report["scores"]),
    }


def ordered_pairs(
    ours: Mapping[str, float], published: Mapping[str, float], better: Callable[[float, float], bool]
) -> tuple[int, int, list[str]]:
    """Pairs of rows in the paper's order, pairs in all, and the pairs in the other order."""
    names = [name for name in ours if name in published]
    right, wrong = 0, []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if published[first] == published[second]:
                continue
            high, low = (first, second) if published[first] > published[second] else (second, first)
            if better(ours[high], ours[low]):
                right += 1
            else:
                wrong.append(f"{low} before {high}")
    return right, right + len(wrong), wrong


def published_rows(method: ModuleType) -> dict[tuple, dict[str, Any]]:
    """{(table, model, cameras): the paper's row}."""
    return {(row["table"], row["model"], row.get("cameras")): row for row in getattr(method, "PUBLISHED", ())}


def table_text(
    table: str,
    rows: Mapping[str, tuple[dict[str, Any], tuple | None]],
    results: Mapping[str, list[dict[str, Any]]],
    method: ModuleType,
) -> str:
    """Markdown of poses: medians, recalls, the published recalls, and whether the order is the paper's."""
    published = published_rows(method)
    first = next(iter(results.values()))[0]
    thresholds = first["thresholds"]
    limits = "/".join(f"{t:g}" for t in thresholds)
    lines = [
        f"## Table {table}",
        "",
        f"{first['queries']} queries. Mean ± standard deviation over the seeds.",
        "",
    ]

    def of(row: str, estimate: str, kind: str) -> list[dict[str, Any]]:
        return [result["estimates"][estimate][kind] for result in results[row]]

    medians = [
        [
            row,
            str(len(results[row])),
            *(mean_and_spread(f["median"] for f in of(row, "prediction", kind)) for kind in KINDS),
        ]
        for row in rows
    ]
    nothing = next(iter(rows))
    medians.append(
        ["doing nothing", "", *(f"{of(nothing, 'do_nothing', kind)[0]['median']:.2f}" for kind in KINDS)]
    )
    header = ["median error", "seeds", *(f"{kind}, {unit}" for kind, unit in KINDS.items())]
    lines += markdown_table(header, medians)

    recalls = []
    for row, (_, name) in rows.items():
        cells = []
        for kind in KINDS:
            found = of(row, "prediction", kind)
            cells.append(
                " ".join(
                    f"{statistics.mean(f['recall'][i] for f in found):.1f}" for i in range(len(thresholds))
                )
            )
        recalls.append([row, *cells])
        paper = published.get(name, {})
        cells = [
            " ".join(f"{value:.1f}" for value in paper[kind]) if kind in paper else "–" for kind in KINDS
        ]
        recalls.append(["*published*", *cells])
    lines += markdown_table([f"recall at {limits}, %", *KINDS], recalls)

    if len(rows) > 1:
        lines.append(
            "Order against the paper (pairs of rows; the paper's by recall at the smallest threshold):"
        )
        lines.append("")
        for kind in KINDS:
            paper = {
                row: published[name][kind][0]
                for row, (_, name) in rows.items()
                if name in published and kind in published[name]
            }
            for what, value, better in (
                ("median", "median", lambda a, b: a < b),
                (f"recall at {thresholds[0]:g}", "recall", lambda a, b: a > b),
            ):
                ours = {
                    row: statistics.mean(
                        f[value] if value == "median" else f[value][0] for f in of(row, "prediction", kind)
                    )
                    for row in rows
                }
                right, pairs, wrong = ordered_pairs(ours, paper, better)
                if pairs:
                    other = f"; not: {'; '.join(wrong)}" if wrong else ""
                    lines.append(f"- {kind}, {what}: {right} of {pairs}{other}")
        lines.append("")
    return "\n".join(lines)


def _main(_: Any) -> None:
    values = flags.FLAGS
    try:
        _run(values)
    except UserError as error:
        sys.exit(f"error: {error}")


def _run(values: Any) -> None:
    cfg = values.config
    flag = flags.FLAGS["config"]
    config = config_flags.get_config_filename(flag)
    forwarded = [f"--config.{name}={value}" for name, value in config_flags.get_override_values(flag).items()]
    every = load_tables(config.partition(":")[0])
    names = values.tables.split(",")
    unknown = sorted(set(names) - set(every))
    if unknown:
        raise ConfigError(f"--tables: there is no table {unknown[0]!r}; {config} has {sorted(every)}")
    tables = {name: every[name] for name in names}
    folder = Path(values.workdir or f"runs/ablation/{cfg.name}")
    folder.mkdir(parents=True, exist_ok=True)
    prepared, method = ensure_prepared(cfg), methods.load(cfg.method)
    form = form_of(cfg, method)
    for rows in tables.values():
        for settings, _ in rows.values():
            # A row that this data cannot serve is refused before hours are spent on the others.
            method.source(vary(cfg, settings), prepared, cfg.data.test_split, training=False)
    runs = plan(cfg, tables, values.seeds, prepared.fingerprint)
    results = read_results(folder / "results.jsonl")
    # Seed by seed: a table that was stopped has all its rows.
    waiting = {
        run.key: run
        for seed in range(values.seeds)
        for row in runs.values()
        for run in row[seed : seed + 1]
        if run.key not in results
    }
    shares = queue.SimpleQueue()
    usable = sorted(os.sched_getaffinity(0))
    for job in range(values.jobs):
        shares.put(set(usable[job :: values.jobs]) or set(usable))

    def run_on_a_share(run: Run) -> dict[str, Any]:
        cores = shares.get()
        try:
            return train_and_score(run, config, forwarded, folder, cores, form)
        finally:
            shares.put(cores)

    bar = tqdm(total=len(waiting), desc="ablation", unit="run")
    with bar, ThreadPoolExecutor(values.jobs) as pool:
        pending = [pool.submit(run_on_a_share, run) for run in waiting.values()]
        try:
            for future in as_completed(pending):
                result = future.result()
                results[result["key"]] = result
                with (folder / "results.jsonl").open("a") as file:
                    file.write(json.dumps(result) + "\n")
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # what is running ends; nothing more is begun
            raise
    text = page(cfg, tables, runs, results, method, form)
    print(text)
    if values.out:
        Path(values.out).write_text(text)


def page(
    cfg: ml_collections.ConfigDict,
    tables: Mapping[str, Mapping[str, Any]],
    runs: Mapping[tuple[str, str], list[Run]],
    results: Mapping[str, dict[str, Any]],
    method: ModuleType,
    form: Form,
) -> str:
    """All tables, headed by the command and what it ran on."""
    used = [results[run.key] for row in runs.values() for run in row]
    published = published_rows(method)
    beside = any(name in published for rows in tables.values() for _, name in rows.values())
    paper = (
        f"{getattr(method, 'PUBLISHED_PROTOCOL', '')}: the published figures are from other data and noise; "
        "only the order of rows can be compared."
        if beside
        else "There are no published figures of these rows."
    )
    head = [
        f"# Tables of {cfg.method}, `{cfg.name}`",
        "",
        f"    {shlex.join(['python', '-m', 'benchmarks.ablation', *sys.argv[1:]])}",
        "",
        f"Device: {used[0]['device']}. {len({r['key'] for r in used})} runs. "
        f"Data: {cfg.data.root}, split {cfg.data.test_split}. {paper}",
        "",
    ]
    body = [
        form.text(name, rows, {row: [results[run.key] for run in runs[name, row]] for row in rows})
        for name, rows in tables.items()
    ]
    return "\n".join([*head, *body])


def main() -> None:
    """Defines the flags, which no import does, and runs."""
    config_flags.DEFINE_config_file("config", None, "Config whose file defines ABLATIONS.")
    flags.DEFINE_string("tables", None, "Comma-separated tables of the config's file.")
    flags.DEFINE_integer("seeds", 3, "Runs a row, with config.seed 0, 1, ...", lower_bound=1)
    flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
    flags.DEFINE_string("workdir", None, "Folder of the runs (default: runs/ablation/<config.name>).")
    flags.DEFINE_string("out", "", "Markdown file to write.")
    flags.mark_flags_as_required(["config", "tables"])
    app.run(_main)


if __name__ == "__main__":
    main()
