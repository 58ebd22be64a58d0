"""Times every part of MapLocNet beside what the machine would need at least, and the reading of its examples.

    python -m benchmarks.maplocnet --config=configs/maplocnet.py:nuscenes [--batch=1,8] [--seconds=1]
        [--parts=components,gradients,splat,train,input] [--data=PREPARED] [--out=FILE.md,FILE.json]

Floor of a part: the larger of its FLOPs at the machine's peak and its bytes at the machine's bandwidth, both
measured in the same run by a matrix product and a pass over memory. FLOPs are two a multiply-accumulate of
products and convolutions; bytes are what `placerec_jax.training.cost` calls moved, which a cache may beat.
What takes more than 4 times its floor is marked. Inputs are random, cameras stand in a ring; nothing but the
reading of examples needs data.
"""

import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from benchmarks import machine as machines
from benchmarks.components import submodule_calls
from benchmarks.outputs import check_outputs, write_outputs
from benchmarks.timing import Timing, summary, time_calls
from placerec_jax.data import pipeline, prepared
from placerec_jax.errors import ConfigError, UserError
from placerec_jax.methods import maplocnet
from placerec_jax.ops import bev, splat
from placerec_jax.training.cost import Cost, function_cost
from placerec_jax.training.optimizer import make_optimizer, make_schedule
from placerec_jax.training.sharding import make_mesh
from placerec_jax.training.state import init_state
from placerec_jax.training.step import make_train_step

PARTS = ("components", "splat", "train", "input")  # measured unless others are asked for
GRADIENTS = "gradients"  # of every submodule: where the time of a training step goes
SLOW = 4.0  # times the floor

# Names of the paper's parts, in the order of the computation.
TITLES = {
    "image_trunk": "image trunk",
    "image_neck": "neck and heads",
    "splat": "lift and splat",
    "bev_encoder": "BEV encoder",
    "bev_decoder": "BEV decoder and heads",
    "map_embedding": "map embedding",
    "map_trunk": "VGG",
    "map_decoder": "map decoder and heads",
    "localize_coarse": "registration, coarse",
    "warp": "warp",
    "localize_fine": "registration, fine",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One part: its work, how long it takes and how long at least (seconds)."""

    name: str
    batch: int
    cost: Cost
    timing: Timing
    floor: float

    @property
    def ratio(self) -> float:
        """Time in floors; infinite where nothing is counted."""
        return self.timing.median / self.floor if self.floor else float("inf")


@dataclasses.dataclass(frozen=True)
class Part:
    """What to time: a pure function and its arguments."""

    name: str
    function: Any
    arguments: tuple[Any, ...]


def example_batch(cfg: ml_collections.ConfigDict, size: int, training: bool) -> dict[str, jax.Array]:
    """Random images, maps, labels and offsets; level cameras, 1.5 m high, that look in all directions."""
    rng = np.random.default_rng(0)
    batch = {}
    for name, feature in maplocnet.features(cfg, training).items():
        shape = (size, *feature.shape)
        high = {"bev_label": 2, "map_label": 2, "map_patch": 256 if cfg.model.osm_style == "maplocnet" else 7}
        if feature.dtype == np.uint8:
            batch[name] = rng.integers(0, high.get(name, 256), shape, np.uint8)
        else:
            batch[name] = rng.uniform(-1, 1, shape).astype(feature.dtype)
    cameras, (height, width) = cfg.model.num_cameras, cfg.model.image_size
    yaw = 2 * np.pi * np.arange(cameras) / cameras
    focal = 0.7 * width  # 71 degrees: six of them overlap a little
    batch["intrinsics"][:] = [[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]
    for camera, (sine, cosine) in enumerate(zip(np.sin(yaw), np.cos(yaw), strict=True)):
        # Columns: where the camera's right, down and forward point in the ego frame, and where it stands.
        batch["ego_T_camera"][:, camera] = [
            [sine, 0, cosine, cosine],
            [-cosine, 0, sine, sine],
            [0, -1, 0, 1.5],
            [0, 0, 0, 1],
        ]
    batch["camera_mask"][:] = True
    return jax.tree.map(jnp.asarray, batch)


def forward_parts(cfg: ml_collections.ConfigDict, size: int, parts: list[str]) -> Iterator[Part]:
    """What `parts` names of: every part of one evaluation pass and the whole pass, their gradients, the ways
    to splat."""
    model, batch = maplocnet.model(cfg), example_batch(cfg, size, training=False)
    variables = jax.jit(
        lambda: model.init(jax.random.key(0), batch, train=False),
        compiler_options={"xla_backend_optimization_level": 0},
    )()
    calls = submodule_calls(model, variables, batch)
    splats, warp = splat_parts(cfg, batch, calls["image_neck"].output), warp_part(cfg, calls)
    found = {name: Part(name, call.function, (call.variables, call.inputs)) for name, call in calls.items()}
    found["splat"] = dataclasses.replace(splats[cfg.model.splat], name="splat")
    found |= {"warp": warp} if warp else {}
    in_order = [found[name] for name in TITLES if name in found]
    if "components" in parts:
        yield from in_order
    if GRADIENTS in parts:
        yield from (gradient_part(part) for part in in_order)
    if "splat" in parts:
        yield from splats.values()
    if "components" in parts:
        yield Part("forward", lambda v, b: model.apply(v, b, train=False), (variables, batch))


def gradient_part(part: Part) -> Part:
    """The part and its gradients by all floating-point arguments, for ones from above."""
    leaves, structure = jax.tree.flatten(part.arguments)
    differentiable = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]

    def run(*leaves: jax.Array) -> Any:
        chosen = [leaf for leaf, yes in zip(leaves, differentiable, strict=True) if yes]

        def forward(*chosen: jax.Array) -> Any:
            left = iter(chosen)
            filled = [next(left) if yes else leaf for leaf, yes in zip(leaves, differentiable, strict=True)]
            return part.function(*jax.tree.unflatten(structure, filled))

        output, pull_back = jax.vjp(forward, *chosen)
        return pull_back(jax.tree.map(jnp.ones_like, output))

    return Part(f"{part.name}, with gradients", run, tuple(leaves))


def splat_parts(
    cfg: ml_collections.ConfigDict, batch: dict[str, jax.Array], features: tuple[jax.Array, jax.Array]
) -> dict[str, Part]:
    """{mode: the splat of the neck's (depth, context) by that mode}."""
    m = cfg.model
    depth, context = (x.reshape(-1, m.num_cameras, *x.shape[1:]) for x in features)

    def part(mode: str) -> Part:
        def run(context: jax.Array, depth: jax.Array, *geometry: jax.Array) -> jax.Array:
            view = splat.View(tuple(m.image_size), tuple(m.depths), *geometry)
            return splat.MODES[mode](context, depth, view, maplocnet.bev_grid(cfg), tuple(m.z_range))

        geometry = (batch["intrinsics"], batch["ego_T_camera"], batch["camera_mask"])
        return Part(f"splat {mode}", run, (context, depth, *geometry))

    return {mode: part(mode) for mode in splat.MODES}


def warp_part(cfg: ml_collections.ConfigDict, calls: dict[str, Any]) -> Part | None:
    """The move of the fine camera features by the coarse pose; None where there is one stage alone."""
    if "localize_fine" not in calls:
        return None
    fine = calls["bev_decoder"].output["fine"]
    poses = jnp.tile(jnp.asarray([3.0, -2.0, 0.1]), (fine.shape[0], 1))

    def run(fine: jax.Array, poses: jax.Array) -> jax.Array:
        moved = bev.warp_se2(
            fine.astype(jnp.float32), poses, maplocnet.bev_grid(cfg), maplocnet.map_grid(cfg)
        )
        return moved.astype(fine.dtype)

    return Part("warp", run, (fine, poses))


def time_part(part: Part, size: int, machine: machines.Machine, dtype: str, seconds: float) -> Row:
    """Compiles the part, times it and finds its floor."""
    cost = function_cost(part.function, *part.arguments).total
    timing = time_calls(jax.jit(part.function), *part.arguments, seconds=seconds)
    return Row(part.name, size, cost, timing, machine.floor(cost.macs, cost.moved_bytes, dtype))


def time_train_step(
    cfg: ml_collections.ConfigDict, size: int, machine: machines.Machine, seconds: float
) -> Row:
    """The whole update of the state, on one device."""
    model = maplocnet.model(cfg)
    schedule = make_schedule(cfg.optimizer, cfg.train.steps)
    tx = make_optimizer(cfg.optimizer, schedule)
    mesh = make_mesh(ml_collections.ConfigDict({"data": 1, "fsdp": 1}), jax.devices()[:1])
    state = [init_state(maplocnet, cfg, model, tx, mesh)]
    step = make_train_step(maplocnet, cfg, model, tx, schedule)
    batch = example_batch(cfg, size, training=True)
    cost = function_cost(step, state[0], batch).total
    compiled = jax.jit(step, donate_argnums=0)

    def update() -> Any:
        state[0], metrics = compiled(state[0], batch)
        return state[0], metrics

    timing = time_calls(update, seconds=seconds)
    return Row("train step", size, cost, timing, machine.floor(cost.macs, cost.moved_bytes, cfg.dtype))


@dataclasses.dataclass(frozen=True)
class Reading:
    """Examples a second; `step` is what training takes, where it was timed."""

    source: float  # one after the other
    batches: float  # the pipeline with its threads or processes
    workers: int
    batch: int


def time_input(cfg: ml_collections.ConfigDict, root: Path, seconds: float) -> Reading:
    """Reading from a prepared folder: single examples, and batches as training gets them."""
    folder = prepared.PreparedFolder(root)
    source = maplocnet.source(cfg, folder, cfg.data.train_split, training=True)
    single = []
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(single) < 4:
        start = time.perf_counter()
        source.example(*pipeline.draw(cfg.seed, len(single), len(source)))
        single.append(time.perf_counter() - start)
    batches = pipeline.train_batches(
        source,
        features=maplocnet.features(cfg, training=True),
        batch_size=cfg.train.batch_size,
        seed=cfg.seed,
        workers=cfg.data.workers,
    )
    for _ in range(8):  # what was made ahead while nobody asked
        next(batches)
    count, start = 0, time.perf_counter()
    while time.perf_counter() < start + 2 * seconds or count < 2:
        next(batches)
        count += 1
    rate = count * cfg.train.batch_size / (time.perf_counter() - start)
    return Reading(1 / summary(single).median, rate, cfg.data.workers, cfg.train.batch_size)


# --- What is written


@dataclasses.dataclass(frozen=True)
class Report:
    """All that one run measured."""

    about: dict[str, Any]
    machine: machines.Machine
    rows: list[Row]
    reading: Reading | None


def as_json(report: Report) -> dict[str, Any]:
    """Plain nested values."""
    return {
        **report.about,
        "machine": dataclasses.asdict(report.machine),
        "rows": [
            {
                "name": row.name,
                "batch": row.batch,
                "macs": row.cost.macs,
                "moved_bytes": row.cost.moved_bytes,
                "seconds": row.timing._asdict(),
                "floor_seconds": row.floor,
                "times_floor": row.ratio,
            }
            for row in report.rows
        ],
        "reading": dataclasses.asdict(report.reading) if report.reading else None,
    }


def as_markdown(report: Report) -> str:
    """Tables to read."""
    machine, about = report.machine, report.about
    peaks = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s {dtype}" for dtype, rate in machine.flops.items())
    lines = [
        f"# Speed of {about['config']} on {machine.device}",
        "",
        f"`{about['command']}`, {about['created']}, jax {about['jax']}, {machine.platform}, "
        f"{about['cores']} CPU cores, network in {about['dtype']}.",
        "",
        f"Peaks measured in this run: {peaks}, {machine.bandwidth / 1e9:,.1f} GB/s.",
    ]
    if machine.datasheet:
        flops, bandwidth = machine.datasheet
        lines.append(f"Data sheet: {flops / 1e12:,.0f} TFLOP/s bfloat16, {bandwidth / 1e12:,.2f} TB/s.")
    for batch in dict.fromkeys(row.batch for row in report.rows):
        rows = [row for row in report.rows if row.batch == batch]
        lines += ["", f"## Batch {batch}", "", *_table(rows, report)]
    if report.reading:
        reading = report.reading
        how = f"{reading.workers} processes" if reading.workers else "threads"
        lines += [
            "",
            "## Reading examples",
            "",
            f"From `{about['data']}`, with augmentation and {about['draws']} noisy patches an example: "
            f"{reading.source:,.0f} examples/s one after the other, {reading.batches:,.0f} examples/s in "
            f"batches of {reading.batch} by {how}, with nothing else to do.",
        ]
    elif about["data"]:
        lines += ["", f"Reading of examples: not measured, {about['data']} is no prepared folder."]
    return "\n".join(lines) + "\n"


def _title(name: str) -> str:
    first, comma, rest = name.partition(",")
    return TITLES.get(first, first) + comma + rest


def _table(rows: list[Row], report: Report) -> list[str]:
    whole = next((row.timing.median for row in rows if row.name == "forward"), None)
    lines = [
        "| part | GMAC | MB moved | ms | quartiles | floor ms | floor of | times floor | of forward |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        low, high = (f"{1e3 * value:.3g}" for value in (row.timing.lower, row.timing.upper))
        arithmetic = 2 * row.cost.macs / report.machine.peak(report.about["dtype"])
        bound = "FLOPs" if arithmetic >= row.floor else "bytes"
        ratio = f"**{row.ratio:.1f}**" if row.ratio > SLOW else f"{row.ratio:.1f}"
        share = (
            f"{100 * row.timing.median / whole:.0f} %" if whole and row.name in (*TITLES, "forward") else ""
        )
        lines.append(
            f"| {_title(row.name)} | {row.cost.macs / 1e9:.3f} "
            f"| {row.cost.moved_bytes / 1e6:.1f} | {1e3 * row.timing.median:.3g} | {low} – {high} "
            f"| {1e3 * row.floor:.3g} | {bound} | {ratio} | {share} |"
        )
    parts = [row for row in rows if row.name in TITLES]
    if whole and parts:
        together = sum(row.timing.median for row in parts)
        floor = sum(row.floor for row in parts)
        lines += [
            "",
            f"The parts together: {1e3 * together:.3g} ms, {1e3 * floor:.3g} ms of floor; the whole forward "
            f"pass takes {whole / together:.2f} of their sum. Marked: more than {SLOW:.0f} times the floor.",
        ]
    train = next((row.timing.median for row in rows if row.name == "train step"), None)
    if train:
        lines += ["", f"Training: {rows[0].batch / train:,.1f} frames/s."]
    return lines


def measure(
    cfg: ml_collections.ConfigDict, batches: list[int], parts: list[str], data: str, seconds: float
) -> Report:
    """Runs the measurements `parts` (of PARTS and GRADIENTS) for every batch size."""
    machine = machines.measure({cfg.dtype}, seconds)
    rows = []
    for size in batches:
        wanted = forward_parts(cfg, size, parts)
        for part in tqdm(wanted, f"batch {size}", unit="part", disable=None):
            rows.append(time_part(part, size, machine, cfg.dtype, seconds))
        if "train" in parts:
            rows.append(time_train_step(cfg, size, machine, seconds))
    found = "input" in parts and (Path(data) / "manifest.json").is_file()
    about = {
        "config": cfg.name,
        "command": shlex.join(["python", "-m", "benchmarks.maplocnet", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "jax": jax.__version__,
        "dtype": cfg.dtype,
        "cores": len(os.sched_getaffinity(0)),
        "data": data if "input" in parts else "",
        "draws": cfg.data.draws,
    }
    return Report(about, machine, rows, time_input(cfg, Path(data), seconds) if found else None)


def _main(_: Any) -> None:
    values = flags.FLAGS
    try:
        outputs = check_outputs(values.out)
        unknown = sorted(set(values.parts) - {*PARTS, GRADIENTS})
        if unknown:
            raise ConfigError(f"--parts={unknown[0]}: expected a choice of {','.join((*PARTS, GRADIENTS))}")
        if not all(size.isdigit() and int(size) > 0 for size in values.batch):
            raise ConfigError(f"--batch={','.join(values.batch)}: expected whole numbers from 1 on")
        cfg = ml_collections.FrozenConfigDict(values.config)
        batches = [int(size) for size in values.batch]
        report = measure(cfg, batches, values.parts, values.data or cfg.data.root, values.seconds)
        text = {".md": as_markdown(report), ".json": json.dumps(as_json(report), indent=2) + "\n"}
        write_outputs(outputs, text)
        print(text[".md"])
    except UserError as error:
        sys.exit(f"error: {error}")


def main() -> None:
    """Defines the flags, which no import does, and runs."""
    config_flags.DEFINE_config_file(
        "config", "configs/maplocnet.py", "Config file, as configs/maplocnet.py:nuscenes."
    )
    flags.DEFINE_list("batch", ["1", "8"], "Examples in a pass; each size is measured.")
    flags.DEFINE_list("parts", list(PARTS), f"What to measure; there is also {GRADIENTS}.")
    flags.DEFINE_list("out", [], "Files to write: .md and .json.")
    flags.DEFINE_string("data", None, "Prepared folder to read examples from (default: config.data.root).")
    flags.DEFINE_float("seconds", 1.0, "About how long every part is timed.")
    app.run(_main)


if __name__ == "__main__":
    main()
