"""Loop closure from nothing to a report by the commands a user types, on the tiny city."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs import cross_fusion_lcd as config_module
from placerec_jax.data.prepared import PreparedFolder

CHECKOUT = Path(__file__).resolve().parent.parent
CONFIG = f"--config={CHECKOUT / 'configs' / 'cross_fusion_lcd.py'}:tiny"
WORKDIR = "--workdir=runs/lcd"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: the configs' relative paths (data/, runs/) begin here."""
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def trained(folder: Path, run_command: Callable) -> Path:
    """The working directory of one training, which had to prepare the city first."""
    done = run_command("-m", "placerec_jax.train", CONFIG, WORKDIR, cwd=folder)
    assert "--formats kitti" in done.stderr
    return folder / "runs" / "lcd"


@pytest.fixture(scope="module")
def report(trained: Path, folder: Path, run_command: Callable) -> dict:
    """The report of that training beside Scan Context, every query turned in a further pass."""
    options = ("--config.eval.references=('scan_context',)", "--config.eval.rotated_queries=True")
    run_command("-m", "placerec_jax.evaluate", CONFIG, WORKDIR, *options, cwd=folder)
    return json.loads((trained / "report" / "report.json").read_text())


def test_training_logs_every_term_of_the_loss(trained: Path) -> None:
    cfg = config_module.get_config("tiny")
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == cfg.train.steps
    assert all(math.isfinite(value) for line in lines for key, value in line.items() if "eval/" not in key)
    assert {f"loss/{term}" for term in cfg.loss} <= set(lines[0])
    assert any("eval/ap" in line for line in lines)


def test_report_counts_the_loops_that_the_converter_counted(report: dict, folder: Path) -> None:
    cfg = config_module.get_config("tiny")
    prepared = PreparedFolder(folder / cfg.data.root)
    counted = prepared.manifest["sequences"]
    seen = {name: c for name, c in report["scores"]["counts"]["growing"].items() if name != "all"}
    assert seen
    for name, counts in seen.items():
        assert counts["with_loop"] == counted[name]["queries_with_past_loop"] > 0
        assert counts["reverse_nearest"] == counted[name]["reverse"]
    frames = prepared.split(cfg.data.scheme, cfg.data.test_split)
    assert report["scores"]["frames"] == len(frames) == sum(counted[name]["frames"] for name in seen)


def test_page_shows_model_and_reference(report: dict, trained: Path) -> None:
    page = (trained / "report" / "index.html").read_text()
    for words in ("built-in city", "data:image/", "scan context", "queries turned"):
        assert words in page
    assert report["dataset"]["fingerprint"] in page


def test_descriptors_of_ones_own_are_scored(report: dict, folder: Path, run_command: Callable) -> None:
    """Positions as descriptors find every loop."""
    cfg = config_module.get_config("tiny")
    prepared = PreparedFolder(folder / cfg.data.root)
    table = prepared.table("sequences")
    record = max((table.read(i) for i in range(len(table))), key=lambda r: len(r["frame_id"]))
    np.save(folder / "mine.npy", np.asarray(record["map_T_lidar"])[:, :3, 3])
    name = record["sequence"]
    done = run_command(
        "-m",
        "placerec_jax.score",
        f"--prepared={cfg.data.root}",
        f"--sequence={name.decode() if isinstance(name, bytes) else name}",
        "--descriptors=mine.npy",
        "--out=scored",
        cwd=folder,
    )
    assert "1.000" in done.stdout
    assert (folder / "scored" / "index.html").is_file()
