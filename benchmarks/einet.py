"""Times the stages of EINet beside the paper's Table IV and the least the machine needs.

    python -m benchmarks.einet --config=configs/einet.py:nuscenes [--batch=1] [--seconds=2]
        [--out=FILE.md,FILE.json]

One evaluation pass, frames by the batch, nothing but the device's work: images, calibration and the sweep's
range image lie on it. The whole pass is compiled as one program, stages as programs of their own, so that
stages may sum to more. The rows of NetVLAD and of all cross-view transformers by themselves are not in the
paper's table.

Floor of a stage: the larger of its FLOPs at the machine's peak and its bytes at the machine's bandwidth, both
measured in the same run. FLOPs and bytes are those of `placerec_jax.training.cost`; of depth to range image,
which is one pass over pixels, the bytes are its input and its output. What takes more than 4 times its floor
is marked. Weights and images are random, cameras stand in a ring: nothing needs data.
"""

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from benchmarks import machine as machines
from benchmarks.outputs import check_outputs, write_outputs
from benchmarks.timing import Timing, time_calls
from placerec_jax.errors import ConfigError, UserError
from placerec_jax.methods import einet
from placerec_jax.ops import range_image
from placerec_jax.training.cost import Cost, function_cost

SLOW = 4.0  # times the floor
_LOGIT = -4.5  # of the disparity
WHOLE = "total"
PUBLISHED = next(row for row in einet.PUBLISHED if row["table"] == "IV")
# Names of the stages in the order of the computation; parts of the stage before them begin with a dash.
TITLES = {
    "image_encoder": "image encoder",
    "image_decoder": "image decoder, with cross-view transformers",
    "cross_view": "– cross-view transformers",
    "depth_decoder": "– depth decoder",
    "depth_to_range": "depth to range image",
    "camera_tokens": "OT-C, tokens of the cameras",
    "lidar_tokens": "OT-L, tokens of the LiDAR",
    "fusion": "cross-modal transformer",
    "netvlad": "NetVLAD",
    WHOLE: "whole forward pass",
}
PARTS_OF_STAGES = ("cross_view", "depth_decoder")


@dataclasses.dataclass(frozen=True)
class Stage:
    """What to time: a pure function of (variables, arrays)."""

    name: str
    function: Callable[..., Any]
    arrays: tuple[Any, ...]
    moved_bytes: int | None = None  # where the count by equations would be more than the least


@dataclasses.dataclass(frozen=True)
class Row:
    """How long a stage takes, and how long at least (seconds)."""

    name: str
    timing: Timing
    cost: Cost
    floor: float
    bound: str  # what the floor is of: FLOPs or bytes

    @property
    def published(self) -> float | None:
        """The paper's seconds, of one frame."""
        milliseconds = PUBLISHED.get(f"{self.name}_ms")
        return None if milliseconds is None else milliseconds / 1e3

    @property
    def ratio(self) -> float:
        """Time in floors."""
        return self.timing.median / self.floor


@dataclasses.dataclass(frozen=True)
class Report:
    """All that one run measured."""

    about: dict[str, Any]
    machine: machines.Machine
    rows: list[Row]


def example_batch(cfg: ml_collections.ConfigDict, size: int) -> dict[str, jax.Array]:
    """`size` frames: random images and sweeps; level cameras, 1.5 m from the LiDAR, look all around."""
    rng = np.random.default_rng(0)
    batch = {n: np.zeros((size, *f.shape), f.dtype) for n, f in einet.features(cfg).items()}
    if "images" in batch:
        batch["images"] = rng.integers(0, 256, batch["images"].shape, np.uint8)
        batch["camera_mask"][:] = True
        height, width = cfg.model.image_size
        focal = 0.79 * width  # nuScenes' 1266 of 1600 pixels: 65 degrees
        batch["intrinsics"][:] = [[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]
        batch["lidar_T_camera"][:] = ring_of_cameras(len(einet.CAMERAS))
    if "range_image" in batch:
        batch["range_image"] = rng.uniform(0, 1, batch["range_image"].shape).astype(np.float32)
        batch["range_image"][..., 0] *= range_image.FAR
    return jax.tree.map(jnp.asarray, batch)


def example_variables(model: Any, batch: dict[str, jax.Array]) -> Any:
    """Fresh weights, but with depths of about 8 m: those of a fresh network are 0.2 m, and a camera's pixels
    would all crowd into few cells of the range image."""
    variables = jax.jit(
        lambda: model.init(jax.random.key(0), batch, train=False),
        compiler_options={"xla_backend_optimization_level": 0},
    )()
    head = variables["params"]["depth_decoder"]["head0"]
    head["bias"] = jnp.full_like(head["bias"], _LOGIT)
    return variables


def ring_of_cameras(count: int) -> np.ndarray:
    """(count, 4, 4) lidar_T_camera, clockwise from the front; LiDAR axes x right, y forward."""
    turn = 2 * np.pi * np.arange(count) / count
    sine, cosine, zero, one = np.sin(turn), np.cos(turn), np.zeros(count), np.ones(count)
    # Columns: where the camera's right, down and forward point, and where it stands.
    rows = [
        [cosine, zero, sine, 1.5 * sine],
        [-sine, zero, cosine, 1.5 * cosine],
        [zero, -one, zero, zero],
        [zero, zero, zero, one],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def stages_of(cfg: ml_collections.ConfigDict, size: int) -> tuple[Any, list[Stage]]:
    """(variables, stages) of a pass over `size` frames of the fused network; ConfigError for another one."""
    if einet.branches_of(cfg) != einet.BRANCHES["fused"]:
        raise ConfigError(
            f"benchmarks.einet times the stages of network 'einet' with modality 'fused'; the config has "
            f"{cfg.model.network!r} with {cfg.model.modality!r}"
        )
    model, batch = einet.model(cfg), example_batch(cfg, size)
    variables = example_variables(model, batch)

    def method(function: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
        return lambda v, *arrays: model.apply(v, *arrays, *settings, method=function)

    def submodule(name: str) -> Callable[..., Any]:
        return method(lambda module, *arrays: getattr(module, name)(*arrays))

    def described(v: Any, batch: dict[str, jax.Array]) -> jax.Array:
        return einet.predict(cfg, model.apply(v, batch, train=False), batch)["descriptor"]

    def decoded(module: Any, levels: Any, mask: jax.Array, intrinsics: jax.Array) -> jax.Array:
        return module.decode_depth(module.exchange_views(levels, mask), intrinsics)

    def projected(_: Any, *arrays: jax.Array) -> jax.Array:
        return range_image.from_depth(*arrays, einet.camera_grid(cfg))

    images, mask, intrinsics, lidar_T_camera, sweep = (
        batch[name][:, 0] for name in ("images", "camera_mask", "intrinsics", "lidar_T_camera", "range_image")
    )
    stages: list[Stage] = []

    def add(name: str, function: Callable[..., Any], *arrays: Any, **more: Any) -> Any:
        stages.append(Stage(name, function, arrays, **more))
        return jax.jit(function)(variables, *arrays)

    levels = add("image_encoder", method(einet.EINet.image_levels, False), images)
    depth = add("image_decoder", method(decoded), levels, mask, intrinsics)
    exchanged = add("cross_view", method(einet.EINet.exchange_views), levels, mask)
    add("depth_decoder", method(einet.EINet.decode_depth), exchanged, intrinsics)
    grid = einet.camera_grid(cfg)
    least = depth.nbytes + 4 * size * grid.height * grid.width
    arrays = (depth, intrinsics, lidar_T_camera, mask)
    ranges = add("depth_to_range", projected, *arrays, moved_bytes=least)
    own = add("camera_tokens", submodule("camera_tokens"), einet.range_input(cfg, ranges[..., None]))
    other = add("lidar_tokens", submodule("lidar_tokens"), einet.range_input(cfg, sweep))
    together, _ = add("fusion", submodule("fusion"), own, other)
    add("netvlad", submodule("netvlad"), together)
    stages.append(Stage(WHOLE, described, (batch,)))
    return variables, stages


def time_stage(stage: Stage, variables: Any, machine: machines.Machine, dtype: str, seconds: float) -> Row:
    """Compiles the stage, times it and finds its floor."""
    cost = function_cost(stage.function, variables, *stage.arrays).total
    if stage.moved_bytes is not None:
        cost = dataclasses.replace(cost, moved_bytes=stage.moved_bytes)
    arithmetic, memory = machine.floor(cost.flops / 2, 0, dtype), machine.floor(0, cost.moved_bytes, dtype)
    timing = time_calls(jax.jit(stage.function), variables, *stage.arrays, seconds=seconds)
    bound = "FLOPs" if arithmetic >= memory else "bytes"
    return Row(stage.name, timing, cost, max(arithmetic, memory), bound)


def measure(cfg: ml_collections.ConfigDict, size: int, seconds: float) -> Report:
    """Every stage, and the whole pass."""
    variables, stages = stages_of(cfg, size)
    machine = machines.measure({cfg.dtype}, seconds)
    rows = [
        time_stage(stage, variables, machine, cfg.dtype, seconds)
        for stage in tqdm(stages, "stages", unit="stage", disable=None)
    ]
    about = {
        "config": cfg.name,
        "command": shlex.join(["python", "-m", "benchmarks.einet", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "jax": jax.__version__,
        "dtype": cfg.dtype,
        "cores": len(os.sched_getaffinity(0)),
        "batch": size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
    }
    return Report(about, machine, rows)


# --- What is written


def as_json(report: Report) -> dict[str, Any]:
    """Plain nested values."""
    return {
        **report.about,
        "machine": dataclasses.asdict(report.machine),
        "stages": [
            {
                "name": row.name,
                "macs": row.cost.macs,
                "flops": row.cost.flops,
                "moved_bytes": row.cost.moved_bytes,
                "seconds": row.timing._asdict(),
                "floor_seconds": row.floor,
                "times_floor": row.ratio,
                "published_seconds": row.published,
            }
            for row in report.rows
        ],
    }


def as_markdown(report: Report) -> str:
    """A table to read."""
    machine, about = report.machine, report.about
    peaks = ", ".join(f"{rate / 1e9:,.0f} GFLOP/s {dtype}" for dtype, rate in machine.flops.items())
    lines = [
        f"# Stages of {about['config']} on {machine.device}",
        "",
        f"`{about['command']}`, {about['created']}, jax {about['jax']}, {machine.platform}, "
        f"{about['cores']} CPU cores, network in {about['dtype']}, batch {about['batch']}, "
        f"{about['parameters'] / 1e6:.1f} M parameters. The paper's times are its Table IV, of a frame.",
        "",
        f"Peaks measured in this run: {peaks}, {machine.bandwidth / 1e9:,.1f} GB/s.",
        "",
        "| stage | GFLOP | MB | ms | quartiles | floor ms | floor of | times floor | paper, ms | faster |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(_line(row, about["batch"]) for row in report.rows),
    ]
    parts = [row for row in report.rows if row.name not in (WHOLE, *PARTS_OF_STAGES)]
    whole = next(row for row in report.rows if row.name == WHOLE)
    together = sum(row.timing.median for row in parts)
    lines += [
        "",
        f"The stages together: {1e3 * together:.3g} ms; the whole pass takes "
        f"{whole.timing.median / together:.2f} of it. Marked: more than {SLOW:.0f} times the floor. Faster: "
        "the paper's time over ours, a frame.",
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row, batch: int) -> str:
    low, high = (f"{1e3 * value:.3g}" for value in (row.timing.lower, row.timing.upper))
    ratio = f"**{row.ratio:.1f}**" if row.ratio > SLOW else f"{row.ratio:.1f}"
    paper = faster = ""
    if row.published is not None:
        paper = f"{1e3 * row.published:.2f}"
        faster = f"{batch * row.published / row.timing.median:.3g}"
    return (
        f"| {TITLES[row.name]} | {row.cost.flops / 1e9:.3f} | {row.cost.moved_bytes / 1e6:.1f} "
        f"| {1e3 * row.timing.median:.3g} | {low} – {high} | {1e3 * row.floor:.3g} | {row.bound} | {ratio} "
        f"| {paper} | {faster} |"
    )


def _main(_: Any) -> None:
    values = flags.FLAGS
    try:
        outputs = check_outputs(values.out)
        cfg = ml_collections.FrozenConfigDict(values.config)
        report = measure(cfg, values.batch, values.seconds)
        text = {".md": as_markdown(report), ".json": json.dumps(as_json(report), indent=2) + "\n"}
        write_outputs(outputs, text)
        print(text[".md"])
    except UserError as error:
        sys.exit(f"error: {error}")


def main() -> None:
    """Defines the flags, which no import does, and runs."""
    config_flags.DEFINE_config_file("config", "configs/einet.py:nuscenes", "Config file and preset.")
    flags.DEFINE_integer("batch", 1, "Frames in a pass.", lower_bound=1)
    flags.DEFINE_float("seconds", 2.0, "About how long every stage is timed.")
    flags.DEFINE_list("out", [], "Files to write: .md and .json.")
    app.run(_main)


if __name__ == "__main__":
    main()
