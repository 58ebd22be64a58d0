"""Ablation runs: which are shared, which are done, and what the tables say of their order."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import ablation, ablation_figures
from configs import cross_fusion_lcd as loop_configs
from configs import maplocnet as configs
from placerec_jax.errors import ConfigError, UserError
from placerec_jax.evaluation import loop_closure
from placerec_jax.methods import cross_fusion_lcd, maplocnet


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


# --- Loop closure


@pytest.mark.parametrize("table", sorted(loop_configs.ABLATIONS))
def test_every_loop_closure_row_is_another_network_with_a_weight_for_every_loss(table: str):
    cfg = loop_configs.get_config("cpu")
    rows = loop_configs.ABLATIONS[table]
    runs = ablation.plan(cfg, {table: rows}, seeds=1, fingerprint="")
    assert len({run.key for row in runs.values() for run in row}) == len(rows)
    for settings, _ in rows.values():
        varied = ablation.vary(cfg, settings)
        cross_fusion_lcd.check(varied)
        assert set(cross_fusion_lcd.loss_terms(varied)) <= set(varied.loss)


def loop_scores(value: float, reference: float, precision: float | None, protocols: tuple[str, ...]) -> dict:
    """Scores as `loop_closure.score` gives them: every figure of the model is `value`, and so on."""

    def figures(share: float) -> dict:
        kinds = {kind: {"queries": 2, "recall_at_1": share, "ap": share} for kind in loop_closure.KINDS}
        kinds["other_lane"] = {"queries": 0, "recall_at_1": None, "ap": None}
        found = dict.fromkeys(("recall_at_1", "max_f1", "recall_at_full_precision"), share)
        ap = dict.fromkeys(loop_closure.POLICIES, share)
        return {"all": found | {"ap": ap, "kinds": kinds}}

    counts = {"queries": 9, "with_loop": 4, "same_lane": 2, "other_lane": 0, "reverse": 2}
    return {
        "queries": 9,
        "rule": {"ap_policy": "standard"},
        "counts": {"growing": {"all": counts}},
        "estimates": {
            "model": {protocol: figures(value) for protocol in protocols},
            "m2dp": {protocol: figures(reference) for protocol in protocols},
        },
        "verification": {"sequences": {"all": {"verified": 3, "precision": precision}}},
    }


def loop_result(*arguments: object) -> dict:
    kept = ablation_figures.kept(loop_closure, loop_scores(*arguments))
    return json.loads(json.dumps({"key": "k", **kept}))  # as a line of results.jsonl is read


def table_of(text: str, caption: str) -> dict[str, dict[str, str]]:
    """{row: {heading: cell}} of the Markdown table whose first heading is `caption`."""
    lines = text.split(f"| {caption} |")[1].split("\n\n")[0].splitlines()
    heads, _, *body = (line.strip("|").split("|") for line in lines)
    return {
        cells[0].strip(): dict(zip([h.strip() for h in heads], [c.strip() for c in cells[1:]], strict=True))
        for cells in body
    }


def test_loop_closure_rows_stand_above_the_references():
    growing = ("growing",)
    results = {
        "FUSION": [loop_result(0.5, 0.25, 0.5, growing), loop_result(0.7, 0.25, None, growing)],
        "BEVLCD": [loop_result(0.1, 0.25, None, growing)],
    }
    text = ablation_figures.table_text("II", results, loop_closure, ("m2dp", "scan_context"))
    assert text.startswith(
        "## Table II\n\n9 queries, of them 4 with a loop, 2 same lane, 0 other lane, 2 rev"
    )
    retrieval = table_of(text, "growing database")
    assert retrieval["FUSION"] == {
        "seeds": "2",
        "R@1": "0.600 ± 0.141",
        "AP": "0.600 ± 0.141",
        "max F1": "0.600 ± 0.141",
    }
    assert list(retrieval) == ["FUSION", "BEVLCD", "*m2dp*"]  # scan_context was not scored
    assert retrieval["*m2dp*"]["AP"] == "0.250"
    kinds = table_of(text, "by kind of revisit")
    assert list(kinds["BEVLCD"]) == ["seeds", "same lane R@1", "same lane AP", "reverse R@1", "reverse AP"]
    assert kinds["BEVLCD"]["reverse AP"] == "0.100"
    assert kinds["*m2dp*"]["reverse R@1"] == "0.250"
    assert "fixed database" not in text
    loops = table_of(text, "verified loops")
    assert loops["FUSION"] == {"seeds": "2", "verified": "3 ± 0", "precision": "0.500 (1 of 2)"}
    assert loops["BEVLCD"]["precision"] == "–"
    assert "*m2dp*" not in loops  # references have no key points


def test_references_are_found_under_the_fixed_protocol():
    results = {"FUSION": [loop_result(0.5, 0.25, None, ("growing", "fixed"))]}
    fixed = table_of(ablation_figures.table_text("II", results, loop_closure, ("m2dp",)), "fixed database")
    assert fixed["FUSION"]["R@1"] == "0.500"
    assert fixed["*m2dp*"]["R@1"] == "0.250"


def test_the_form_follows_the_evaluator():
    loops, poses = loop_configs.get_config("cpu"), configs.get_config("cpu")
    assert ablation.form_of(loops, cross_fusion_lcd).shared == ("references",)
    assert ablation.form_of(poses, maplocnet).shared == ()
    kept = ablation.form_of(poses, maplocnet).keep({"thresholds": [1], "estimates": {}, "seed": 0})
    assert kept == {"thresholds": [1], "estimates": {}}


def test_what_references_computed_is_seen_by_all_runs(tmp_path: Path):
    first, second = tmp_path / "a-seed0", tmp_path / "b-seed0"
    for workdir in (first, second, second):  # a run that was stopped is begun again
        ablation.share(workdir, ("references",))
    (first / "references" / "m2dp.npy").write_text("distances")
    assert (second / "references" / "m2dp.npy").read_text() == "distances"


def test_a_page_does_not_promise_figures_the_paper_has_not():
    cfg = loop_configs.get_config("tiny")
    tables = {"II": {"FUSION": ({}, None)}}
    runs = ablation.plan(cfg, tables, seeds=1, fingerprint="")
    (run,) = runs["II", "FUSION"]
    line = loop_result(0.5, 0.2, 1.0, ("growing",)) | {"key": run.key, "device": "1 x cpu"}
    form = ablation.form_of(cfg, cross_fusion_lcd)
    text = ablation.page(cfg, tables, runs, {run.key: line}, cross_fusion_lcd, form)
    assert "There are no published figures of these rows." in text
    assert "published figures are from" not in text
    assert "| FUSION | 1 | 0.500 |" in text


# --- Any evaluator


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
