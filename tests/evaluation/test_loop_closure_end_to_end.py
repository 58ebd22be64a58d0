"""From pictures on disk through training and evaluation to the report, with a method of one weight."""

import json
from pathlib import Path

import cv2
import ml_collections
import numpy as np
import pytest

from configs import common
from data_prep import lcd
from placerec_jax import evaluate, methods, train
from tests.evaluation.loop_frames import poses

PLUGINS = str(Path(__file__).resolve().parent.parent / "toy" / "plugins")
LAP = 30  # places 10 m apart, each passed twice: the second half of the drive closes 30 loops
CELLS = 151


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared folder of one drive of two laps; what a place looks like depends on the place alone."""
    root = tmp_path_factory.mktemp("pictures")
    (root / "raw" / "08" / "imgs").mkdir(parents=True)
    angle = 2 * np.pi * np.arange(2 * LAP) / LAP
    map_T_lidar = poses(50 * np.cos(angle), 50 * np.sin(angle), angle + np.pi / 2)
    np.savetxt(root / "raw" / "08" / "pose.txt", map_T_lidar[:, :3].reshape(-1, 12))
    for frame in range(2 * LAP):
        rng = np.random.default_rng(frame % LAP)
        walls = cv2.resize(rng.random((12, 12)), (CELLS, CELLS), interpolation=cv2.INTER_NEAREST) > 0.7
        picture = (255 * walls * rng.random((CELLS, CELLS))).astype(np.uint8)
        assert cv2.imwrite(str(root / "raw" / "08" / "imgs" / f"{frame:06d}.png"), picture)
    lcd.main(["--raw", str(root / "raw"), "--format", "bev", "--out", str(root / "lcd"), "--loop-gap", "10"])
    return root / "lcd"


def make_config(folder):
    config = common.base("toy_places", "tests")
    config.data.root = str(folder)
    config.data.train_split = config.data.eval_split = config.data.test_split = "08"
    config.data.query_yaw = 0.0
    config.loss = ml_collections.ConfigDict({"square": 1.0})
    config.train.steps = config.train.log_every = config.train.eval_every = config.train.checkpoint_every = 2
    config.train.eval_examples = 40
    config.eval.evaluator = "loop_closure"
    config.eval.batch_size = 8
    config.eval.best_metric, config.eval.best_mode = "recall_at_1", "max"
    config.eval.loop_distance, config.eval.loop_gap, config.eval.first_query = 4.0, 10, 0
    config.eval.ap_policy, config.eval.protocol = "standard", "fixed"
    config.eval.database = ml_collections.ConfigDict({"08": (0, 19)})
    config.eval.query = ml_collections.ConfigDict({"08": (LAP, 2 * LAP - 1)})
    config.eval.hit_distance = 5.0
    config.eval.min_inliers, config.eval.pose_tolerance = 4, 1.0
    config.eval.references = ("pixels",)
    config.eval.rotated_queries = True
    config.eval.target = ml_collections.ConfigDict({"at_least": {"fixed_recall_at_1": 1.0}})
    return config


@pytest.fixture(scope="module")
def evaluated(folder, tmp_path_factory):
    """(scores, working directory) after two steps of training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "__path__", [*methods.__path__, PLUGINS])
        workdir = tmp_path_factory.mktemp("run")
        config = make_config(folder)
        assert train.run(config, workdir)
        return evaluate.run(config, workdir), workdir


def test_training_watches_loops_and_chooses_the_checkpoint_by_them(evaluated):
    _, workdir = evaluated
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (watched,) = [line for line in lines if "eval/recall_at_1" in line]
    assert watched["eval/recall_at_1"] == 1.0
    assert "eval/rotated_recall_at_1" not in watched, "one pass is enough while training"


def test_every_loop_is_found_under_both_protocols(evaluated):
    scores, _ = evaluated
    counts = scores["counts"]
    assert counts["growing"]["08"]["with_loop"] == LAP
    assert counts["fixed"]["08"]["queries"] == 20, "10 places are not in the database"
    model = scores["estimates"]["model"]
    assert model["growing"]["08"]["recall_at_1"] == model["fixed"]["08"]["recall_at_1"] == 1.0
    assert scores["target"]["passed"]


def test_turned_queries_and_references_are_beside_it(evaluated):
    scores, _ = evaluated
    estimates = scores["estimates"]
    assert set(estimates) == {"model", "model_rotated", "pixels", "pixels_rotated"}
    assert estimates["model_rotated"]["growing"]["08"]["recall_at_1"] < 0.5, "it compares pixels"
    assert estimates["pixels"]["growing"]["08"]["recall_at_1"] == 1.0


def test_every_query_is_matched_and_judged(evaluated):
    """The match claims that query and candidate are at one pose: true where they are the same place."""
    scores, workdir = evaluated
    result = scores["verification"]["sequences"]["08"]
    assert result["verified"] == 2 * LAP - 11
    assert result["true"] == LAP
    lines = (workdir / "report" / "queries.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * LAP


def test_the_report_shows_what_was_found(evaluated):
    _, workdir = evaluated
    html = (workdir / "report" / "index.html").read_text()
    for words in ("PASS", "Precision and recall", "Loops it closed", "Loops it closed wrongly", "turned"):
        assert words in html
    record = json.loads((workdir / "report" / "report.json").read_text())
    assert record["scores"]["queries"] == 2 * LAP
    assert len(list((workdir / "references").glob("pixels-*.npy"))) == 4  # turned or not, two protocols


def test_ones_own_descriptors_are_scored_by_one_command(folder, run_command, tmp_path):
    """Where a place is, as a descriptor, finds every loop."""
    angle = 2 * np.pi * np.arange(2 * LAP) / LAP
    np.save(tmp_path / "mine.npy", np.stack([np.cos(angle), np.sin(angle)], axis=-1))
    done = run_command(
        "-m", "placerec_jax.score", "--prepared", folder, "--sequence", "08",
        "--descriptors", tmp_path / "mine.npy", "--loop_gap", 10, "--first_query", 0,
    )  # fmt: skip
    assert "mine  1.000        1.000" in done.stdout
    record = json.loads((tmp_path / "score-08" / "report.json").read_text())
    assert record["scores"]["counts"]["growing"]["08"]["with_loop"] == LAP
    assert record["scores"]["estimates"]["mine"]["growing"]["all"]["ap"]["pairs"] == pytest.approx(1.0)
