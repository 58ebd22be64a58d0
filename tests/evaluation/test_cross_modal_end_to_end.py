"""From a prepared folder of pairs through training and evaluation to the report, with a method of one
weight."""

import json
from pathlib import Path

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs import common
from placerec_jax import evaluate, methods, train
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.evaluation import cross_modal
from placerec_jax.ops.point_steps import encode_points
from tests.evaluation.loop_frames import poses
from tests.toy.plugins.toy_pairs import HEIGHT, POINTS, WIDTH
from tests.toy.prepared import write_table

PLUGINS = str(Path(__file__).resolve().parent.parent / "toy" / "plugins")
LENGTHS = {"00": 60, "04": 36}  # frames of a sequence, 10 m apart, every third a query
STRAY = 10  # frame of 00 whose image shows another place


def frame(sequence, number, rng):
    """One record: the colour of the image and the first point both say how far along the drive it is."""
    along = number / LENGTHS[sequence]
    colour = 250 * np.array([along, 1 - along, 0.2 if sequence == "00" else 0.8])
    shown = colour if (sequence, number) != ("00", STRAY + 1) else colour[[1, 0, 2]]
    points = rng.uniform(-20, 20, (POINTS, 3))
    points[0] = colour / 10
    return {
        "sequence": sequence,
        "frame_id": 3 * number,
        "position": np.array([10.0 * number, 0, 0]),
        "map_T_lidar": poses([10.0 * number])[0],
        "is_query": number % 3 == 2,
        "image": np.full((HEIGHT, WIDTH, 3), shown).astype(np.uint8),
        "point_steps": encode_points(points),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    records = [frame(sequence, i, rng) for sequence, count in LENGTHS.items() for i in range(count)]
    features = {
        "sequence": tfds.features.Text(),
        "frame_id": tfds.features.Scalar(np.int64),
        "position": tfds.features.Tensor(shape=(3,), dtype=np.float64, encoding="bytes"),
        "map_T_lidar": tfds.features.Tensor(shape=(4, 4), dtype=np.float64, encoding="bytes"),
        "is_query": tfds.features.Scalar(np.bool_),
        "image": tfds.features.Image(shape=(HEIGHT, WIDTH, 3), encoding_format="png"),
        "point_steps": tfds.features.Tensor(shape=(None, 3), dtype=np.int16, encoding="zlib"),
    }
    write_table(root / "frames", "frames", records, 3, features)
    (root / "splits").mkdir()
    everything = np.arange(len(records))
    np.savez(root / "splits" / "official.npz", train=everything, val=everything, test=everything)
    manifest = {"format": 1, "tables": {"frames": {"records": len(records)}}, "fingerprint": "0" * 64}
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def make_config(folder):
    config = common.base("toy_pairs", "tests")
    config.data.root = str(folder)
    config.loss = ml_collections.ConfigDict({"square": 1.0})
    config.train.steps = config.train.log_every = config.train.eval_every = config.train.checkpoint_every = 2
    config.train.eval_examples = 48
    config.eval.evaluator = "cross_modal"
    config.eval.batch_size = 8
    config.eval.best_metric, config.eval.best_mode = "image_to_point_recall_at_1", "max"
    config.eval.radius, config.eval.k = 20.0, (1, 5)
    config.eval.directions = tuple(cross_modal.DIRECTIONS)
    config.eval.queries_in_database = False
    config.eval.pictures = 1
    config.eval.target = ml_collections.ConfigDict({"times_chance": {"image_to_point_recall_at_1": 3.0}})
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


def test_training_watches_recall_and_chooses_the_checkpoint_by_it(evaluated):
    _, workdir = evaluated
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (watched,) = [line for line in lines if "eval/image_to_point_recall_at_1" in line]
    assert watched["eval/image_to_point_recall_at_1"] > 3 * watched["eval/chance_image_to_point_recall_at_1"]
    assert (watched["eval/queries"], watched["eval/database"]) == (12, 36)


def test_only_the_stray_image_is_not_found(evaluated):
    scores, _ = evaluated
    assert scores["databases"] == {"00": 40, "04": 24}
    parts = scores["directions"]["image_to_point"]
    assert parts["00"]["recall"]["1"] == pytest.approx(19 / 20)
    assert parts["04"]["recall"]["1"] == 1.0
    assert scores["directions"]["point_to_point"]["all"]["recall"]["1"] == 1.0
    assert scores["target"]["passed"]


def test_the_report_shows_what_was_retrieved(evaluated):
    _, workdir = evaluated
    html = (workdir / "report" / "index.html").read_text()
    for words in (
        "PASS",
        "Recall curves",
        "first entry is right",
        "first entry is wrong",
        "12.34",
        "of a toy",
    ):
        assert words in html
    record = json.loads((workdir / "report" / "report.json").read_text())
    assert record["dataset"]["queries"] == record["scores"]["queries"] == 32
    wrong = [
        line
        for line in (workdir / "report" / "queries.csv").read_text().splitlines()[1:]
        if line.split(",")[7] != "1"
    ]
    assert len(wrong) == 1
    assert wrong[0].startswith(f"00,{3 * (STRAY + 1)},")


def test_watched_frames_are_queries_and_database_of_the_whole_split(folder):
    prepared = PreparedFolder(folder)
    config = make_config(folder)
    examples, known = cross_modal.watched(config, prepared, "val", 24)
    assert len(examples) == 24
    assert (np.diff(examples) > 0).all()
    assert known["is_query"].sum() == 6
    assert set(known["sequence_name"]) == {"00", "04"}
    np.testing.assert_array_equal(known["xy"][:, 0], 10.0 * known["frame_id"] / 3)
    for limit in (None, 96, 500):
        examples, _ = cross_modal.watched(config, prepared, "val", limit)
        np.testing.assert_array_equal(examples, np.arange(96))
