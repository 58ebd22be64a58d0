"""Times the stages of loop closure as deployed beside the paper's times and the least the machine needs.

    python -m benchmarks.loop_closure --config=configs/cross_fusion_lcd.py:kitti [--database=4071]
        [--seconds=2] [--out=FILE.md,FILE.json]

The stages are those of `placerec_jax.loop_database.LoopDatabase`, one scan at a time, with all that happens
between host and device: extraction (points → BEV → descriptor and key points, no image), retrieval among
`--database` descriptors (default: as many as KITTI 08 has scans) and verification of one candidate. Rows
with a dash are parts of extraction.

Floor: the larger of a stage's FLOPs at the machine's peak and its bytes at the machine's bandwidth, both
measured in the same run; of retrieval, reading every descriptor once. What takes more than 4 times its floor
is marked. Weights are random and the scan is simulated: neither changes the work. Nothing needs data.
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
import ml_collections
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from benchmarks import machine as machines
from benchmarks.outputs import check_outputs, write_outputs
from benchmarks.timing import Timing, time_calls
from placerec_jax.data import scans
from placerec_jax.errors import UserError
from placerec_jax.loop_database import LoopDatabase
from placerec_jax.methods import cross_fusion_lcd as lcd
from placerec_jax.training.cost import Cost, function_cost

KITTI_08 = 4071  # scans
SLOW = 4.0  # times the floor
STAGES = ("extraction", "retrieval", "verification")
PUBLISHED = next(row for row in lcd.PUBLISHED if row["table"] == "runtime")


@dataclasses.dataclass(frozen=True)
class Stage:
    """How long a stage, or a part of one, takes; `cost` is None where nothing is counted."""

    name: str
    timing: Timing
    cost: Cost | None
    floor: float | None  # seconds

    @property
    def published(self) -> float | None:
        """The paper's seconds."""
        milliseconds = PUBLISHED.get(f"{self.name}_ms")
        return None if milliseconds is None else milliseconds / 1e3

    @property
    def ratio(self) -> float | None:
        """Time in floors."""
        return self.timing.median / self.floor if self.floor else None


@dataclasses.dataclass(frozen=True)
class Report:
    """All that one run measured."""

    about: dict[str, Any]
    machine: machines.Machine
    stages: list[Stage]


def simulated_scan(beams: int = 64, columns: int = 1875, height: float = 1.73) -> np.ndarray:
    """(beams · columns, 4) x, y, z (m), reflectance of a spinning sensor on a street between facades.

    As many points as a scan of KITTI, on flat ground and on vertical walls 5 to 40 m away.
    """
    rng = np.random.default_rng(0)
    elevation = np.deg2rad(np.linspace(-24.8, 2.0, beams))[:, None]
    azimuth = np.linspace(-np.pi, np.pi, columns, endpoint=False)
    wall = np.repeat(rng.uniform(5.0, 40.0, -(-columns // 25)), 25)[:columns]
    ground = np.where(elevation < 0, height / np.tan(np.maximum(-elevation, 1e-3)), np.inf)
    planar = np.minimum(ground, wall) + rng.normal(0, 0.02, (beams, columns))
    points = [planar * np.cos(azimuth), planar * np.sin(azimuth), planar * np.tan(elevation)]
    return np.stack([*points, rng.uniform(0, 1, planar.shape)], axis=-1).reshape(-1, 4).astype(np.float32)


def filled_database(
    cfg: ml_collections.ConfigDict, variables: dict[str, Any], scan: np.ndarray, size: int
) -> LoopDatabase:
    """`size` random descriptors of unit length, and the scan last; all key points are the scan's."""
    database = LoopDatabase(cfg, variables, gap=0)
    found = database.describe(scan)
    rng = np.random.default_rng(0)
    for _ in range(size):
        descriptor = rng.normal(size=found["descriptor"].shape).astype(np.float32)
        database.insert(found | {"descriptor": descriptor / np.linalg.norm(descriptor)})
    database.insert(found)
    return database


def measure_stages(
    cfg: ml_collections.ConfigDict, size: int, machine: machines.Machine, seconds: float
) -> list[Stage]:
    """Extraction and its parts, retrieval, verification."""
    batch = {name: np.zeros((1, *f.shape), f.dtype) for name, f in lcd.features(cfg).items()}
    model, scan = lcd.model(cfg), simulated_scan()
    variables = jax.jit(
        lambda batch: model.init(jax.random.key(0), batch, train=False),
        compiler_options={"xla_backend_optimization_level": 0},
    )(batch)
    grid, bev = lcd.bev_grid(cfg), cfg.model.bev

    def view() -> np.ndarray:
        return scans.encode_bev(scan[:, :3], scan[:, 3], grid, tuple(bev.z_range), bev.encoding)

    def network(variables: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return lcd.predict(cfg, model.apply(variables, batch, train=False), batch)

    batch = jax.device_put(batch | {"bev": view()[None, None]})
    database = filled_database(cfg, variables, scan, size)
    found = database.describe(scan)
    keypoints = {name: value for name, value in found.items() if name.startswith("keypoint_")}
    counted = function_cost(network, variables, batch).total
    matched = function_cost(lambda a, b: lcd.match(cfg, a, b), keypoints, keypoints).total
    dimensions = found["descriptor"].shape[-1]
    searched = Cost(macs=size * dimensions, moved_bytes=4 * size * dimensions)
    compiled = jax.jit(network)
    measured: list[tuple[str, Cost | None, str, Callable[[], Any]]] = [
        ("extraction", counted, cfg.dtype, lambda: database.describe(scan)),
        ("BEV", None, "", view),
        ("network", counted, cfg.dtype, lambda: compiled(variables, batch)),
        ("retrieval", searched, "float32", lambda: database.query(size)),
        ("verification", matched, "float32", lambda: database.verify(size, 0)),
    ]
    stages = []
    for name, cost, dtype, function in tqdm(measured, "stages", unit="stage", disable=None):
        floor = machine.floor(cost.macs, cost.moved_bytes, dtype) if cost else None
        stages.append(Stage(name, time_calls(function, seconds=seconds), cost, floor))
    return stages


def measure(cfg: ml_collections.ConfigDict, size: int, seconds: float) -> Report:
    """Every stage, with `size` scans in the database."""
    LoopDatabase(cfg, {})  # refuses another method, or pictures, before anything is timed
    machine = machines.measure({cfg.dtype}, seconds)
    about = {
        "config": cfg.name,
        "command": shlex.join(["python", "-m", "benchmarks.loop_closure", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "jax": jax.__version__,
        "dtype": cfg.dtype,
        "cores": len(os.sched_getaffinity(0)),
        "points": len(simulated_scan()),
        "database": size,
        "keypoints": cfg.model.num_keypoints,
        "hypotheses": cfg.eval.ransac.hypotheses,
    }
    return Report(about, machine, measure_stages(cfg, size, machine, seconds))


# --- What is written


def as_json(report: Report) -> dict[str, Any]:
    """Plain nested values."""
    return {
        **report.about,
        "machine": dataclasses.asdict(report.machine),
        "stages": [
            {
                "name": stage.name,
                "macs": stage.cost.macs if stage.cost else None,
                "moved_bytes": stage.cost.moved_bytes if stage.cost else None,
                "seconds": stage.timing._asdict(),
                "floor_seconds": stage.floor,
                "times_floor": stage.ratio,
                "published_seconds": stage.published,
            }
            for stage in report.stages
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
        f"{about['cores']} CPU cores, network in {about['dtype']}.",
        "",
        f"A scan of {about['points']:,} points, {about['keypoints']} key points, a database of "
        f"{about['database']:,} scans, {about['hypotheses']} hypotheses. The paper's times are of "
        "KITTI 08 on a TITAN RTX.",
        "",
        f"Peaks measured in this run: {peaks}, {machine.bandwidth / 1e9:,.1f} GB/s.",
        "",
        "| stage | GMAC | ms | quartiles | floor ms | times floor | paper, ms |",
        "|---|---|---|---|---|---|---|",
        *(_line(stage) for stage in report.stages),
    ]
    total = sum(stage.timing.median for stage in report.stages if stage.name in STAGES)
    lines.append(f"| together | | {1e3 * total:.3g} | | | | {PUBLISHED['total_ms']:.2f} |")
    lines += ["", f"Marked: more than {SLOW:.0f} times the floor."]
    return "\n".join(lines) + "\n"


def _line(stage: Stage) -> str:
    low, high = (f"{1e3 * value:.3g}" for value in (stage.timing.lower, stage.timing.upper))
    counted, ratio = ("", ""), ""
    if stage.cost and stage.floor and stage.ratio:
        counted = (f"{stage.cost.macs / 1e9:.3f}", f"{1e3 * stage.floor:.3g}")
        ratio = f"**{stage.ratio:.1f}**" if stage.ratio > SLOW else f"{stage.ratio:.1f}"
    paper = "" if stage.published is None else f"{1e3 * stage.published:.2f}"
    name = stage.name if stage.name in STAGES else f"– {stage.name}"
    return (
        f"| {name} | {counted[0]} | {1e3 * stage.timing.median:.3g} | {low} – {high} | {counted[1]} "
        f"| {ratio} | {paper} |"
    )


def _main(_: Any) -> None:
    values = flags.FLAGS
    try:
        outputs = check_outputs(values.out)
        report = measure(ml_collections.FrozenConfigDict(values.config), values.database, values.seconds)
        text = {".md": as_markdown(report), ".json": json.dumps(as_json(report), indent=2) + "\n"}
        write_outputs(outputs, text)
        print(text[".md"])
    except UserError as error:
        sys.exit(f"error: {error}")


def main() -> None:
    """Defines the flags, which no import does, and runs."""
    config_flags.DEFINE_config_file("config", "configs/cross_fusion_lcd.py:kitti", "Config file and preset.")
    flags.DEFINE_integer("database", KITTI_08, "Scans to retrieve from.", lower_bound=1)
    flags.DEFINE_float("seconds", 2.0, "About how long every stage is timed.")
    flags.DEFINE_list("out", [], "Files to write: .md and .json.")
    app.run(_main)


if __name__ == "__main__":
    main()
