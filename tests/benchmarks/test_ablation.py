"""Ablation runs: which are shared, which are done, and what the tables say of their order."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import ablation
from configs import maplocnet as configs
from placerec_jax.errors import ConfigError, UserError
from placerec_jax.methods import maplocnet


def test_equal_rows_of_two_tables_are_one_run():
    cfg = configs.get_config("ablation")
    tables = {name: configs.ABLATIONS[name] for name in ("II", "III")}
    runs = ablation.plan(cfg, tables, seeds=3, fingerprint="data")
    keys = {run.key for row in runs.values() for run in row}
    assert len(runs) == 6
    assert len(keys) == 5 * 3  # "everything" stands in both tables
    assert runs["II", "roads, buildings and nodes"] == runs["III", "pose, BEV and map losses"]
    elsewhere = ablation.plan(cfg, tables, seeds=3, fingerprint="other data")
    assert keys.isdisjoint({run.key for row in elsewhere.values() for run in row})


@pytest.mark.parametrize("table", sorted(configs.ABLATIONS))
def test_every_row_can_be_set_and_its_published_row_exists(table: str):
    published = {(row["table"], row["model"], row["cameras"]) for row in maplocnet.PUBLISHED}
    cfg = configs.get_config("argoverse" if table == "IV" else "nuscenes")
    rows = configs.ABLATIONS[table]
    runs = ablation.plan(cfg, {table: rows}, seeds=1, fingerprint="")
    assert len({run.key for row in runs.values() for run in row}) == len(rows)
    for settings, name in rows.values():
        assert name is None or name in published
        varied = configs.get_config("argoverse" if table == "IV" else "nuscenes")
        varied.update_from_flattened_dict(settings)
        assert len(varied.data.cameras) == varied.model.num_cameras


def result(key: str, scale: float) -> dict:
    figures = {"median": scale, "recall": [100 / (1 + scale)] * 4}
    scores = dict.fromkeys(ablation.KINDS, figures)
    nothing = {kind: {"median": 9.0, "recall": [1.0] * 4} for kind in ablation.KINDS}
    return {
        "key": key,
        "queries": 7,
        "thresholds": [1.0, 2.0, 5.0, 10.0],
        "estimates": {"prediction": scores, "do_nothing": nothing},
    }


def test_the_table_says_which_pairs_are_ordered_as_published():
    rows = configs.ABLATIONS["II"]
    names = list(rows)
    results = {
        names[0]: [result("a", 1.0), result("b", 2.0)],
        names[1]: [result("c", 4.0)],
        names[2]: [result("d", 3.0)],
    }
    text = ablation.table_text("II", rows, results, maplocnet)
    assert "| roads, buildings and nodes | 2 | 1.50 ± 0.71 |" in text
    assert "| doing nothing |  | 9.00 |" in text
    assert f"- lateral, median: 2 of 3; not: {names[2]} before {names[1]}" in text
    assert "41.5 64.7 88.0 96.5" in text  # published, lateral


def test_a_stopped_run_is_continued(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(result("a", 1.0)) + "\n" + '{"key": "b", "sett')
    assert list(ablation.read_results(path)) == ["a"]
    assert list(ablation.read_results(path)) == ["a"]  # and the cut line is gone for good
    assert len(path.read_text().splitlines()) == 1
    path.write_text('{"key": \n' + json.dumps(result("a", 1.0)) + "\n")
    with pytest.raises(UserError, match=r"line 1 is not JSON"):
        ablation.read_results(path)


def test_a_config_without_tables_is_refused(tmp_path: Path):
    path = tmp_path / "config.py"
    path.write_text("def get_config(arg=''):\n    return None\n")
    with pytest.raises(ConfigError, match="defines no ABLATIONS"):
        ablation.load_tables(str(path))
    with pytest.raises(ConfigError, match="there is no file"):
        ablation.load_tables(str(tmp_path / "none.py"))


@pytest.mark.slow
def test_a_table_is_trained_printed_and_not_run_again(tmp_path: Path, run_command: Callable):
    """From the command to the Markdown, by the entry points that users call."""
    (tmp_path / "two_rows.py").write_text(
        "from configs.maplocnet import get_config as presets\n"
        "ABLATIONS = {'T': {'all': ({}, ('I', 'MapLocNet', 6)),\n"
        "                   'roads': ({'model.map_channels': ('road',)}, ('II', 'lanes', 6))}}\n"
        "def get_config(arg='tiny'):\n"
        "    config = presets(arg)\n"
        "    config.train.steps = config.train.eval_every = config.train.checkpoint_every = 2\n"
        "    config.optimizer.warmup_steps, config.optimizer.hold = 1, 0.0\n"
        "    config.eval.pictures = 1\n"
        "    return config\n"
    )
    command = (
        "-m",
        "benchmarks.ablation",
        "--config",
        "two_rows.py:tiny",
        "--tables=T",
        "--seeds=1",
        "--jobs=2",
        "--out=table.md",
    )
    first = run_command(*command, cwd=tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert text.strip() in first.stdout
    assert "| roads | 1 |" in text
    assert "- position, median:" not in text  # the paper's Table II has no positions
    assert "- orientation, median:" in text
    lines = next((tmp_path / "runs").rglob("results.jsonl")).read_text()
    assert len(lines.splitlines()) == 2
    run_command(*command, cwd=tmp_path)
    assert next((tmp_path / "runs").rglob("results.jsonl")).read_text() == lines
