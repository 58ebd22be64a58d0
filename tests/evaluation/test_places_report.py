"""The report on places: from a prepared folder through training and evaluation to the page, with a method of
one weight; its tables and pictures."""

import csv
import io
import json
import types
from pathlib import Path

import cv2
import ml_collections
import numpy as np
import pytest

from configs import common
from placerec_jax import evaluate, methods, train
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.evaluation import places, places_pictures, places_report
from placerec_jax.evaluation.places_pictures import Place
from placerec_jax.evaluation.report import Picture, Table, text_table
from tests.evaluation import place_folder
from tests.evaluation.place_frames import config, drives, frames

PLUGINS = str(Path(__file__).resolve().parent.parent / "toy" / "plugins")
REFERENCES = ("range_fft", "range_rows", "scan_context")
LENGTH = 24  # frames of a drive


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return place_folder.write(tmp_path_factory.mktemp("keyframes"), drives(length=LENGTH))


def make_config(folder):
    cfg = common.base("toy_keyframes", "tests")
    cfg.data.root = str(folder)
    cfg.data.scheme = "supervised"
    cfg.data.train_split, cfg.data.eval_split, cfg.data.test_split = "train", "database+val", "database+test"
    cfg.loss = ml_collections.ConfigDict({"square": 1.0})
    cfg.train.steps = cfg.train.log_every = cfg.train.eval_every = cfg.train.checkpoint_every = 2
    cfg.train.eval_examples = 60
    cfg.eval.evaluator = "places"
    cfg.eval.batch_size = 8
    cfg.eval.best_metric, cfg.eval.best_mode = "recall_at_1", "max"
    cfg.eval.radius, cfg.eval.k = 22.0, (1, 5, 10)
    cfg.eval.locations = ()
    cfg.eval.references = REFERENCES
    cfg.eval.pictures = 1
    cfg.eval.target = ml_collections.ConfigDict({"times_chance": {"recall_at_1": 2.0}})
    return cfg


@pytest.fixture(scope="module")
def evaluated(folder, tmp_path_factory):
    """(scores, working directory) after two steps of training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "__path__", [*methods.__path__, PLUGINS])
        workdir = tmp_path_factory.mktemp("run")
        cfg = make_config(folder)
        assert train.run(cfg, workdir)
        return evaluate.run(cfg, workdir), workdir


def test_training_watches_recall_and_chooses_the_checkpoint_by_it(evaluated):
    _, workdir = evaluated
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    (watched,) = [line for line in lines if "eval/recall_at_1" in line]
    assert watched["eval/recall_at_1"] > watched["eval/chance_recall_at_1"]
    assert watched["eval/queries"] == 15
    assert watched["eval/database"] == 45


def test_watched_queries_keep_a_right_entry_of_another_scene(folder):
    """Of 24 frames a quarter ask; evenly thinned, a database every 22 m would keep nothing for most."""
    cfg, prepared = make_config(folder), PreparedFolder(folder)
    index = prepared.split("supervised", "database+val")
    examples, known = places.watched(cfg, prepared, "database+val", 24)
    assert (np.diff(examples) > 0).all()
    assert len(examples) == 24
    assert known["is_query"].sum() == 6
    np.testing.assert_array_equal(
        known["is_query"], ~np.isin(index[examples], prepared.split("supervised", "database"))
    )
    part = places.score(cfg, {**known, "descriptor": known["global_T_ego"][:, :2, 3]})
    part = part["estimates"]["model"][places.OTHER_SCENES]["all"]
    assert (part["queries"], part["without_right"]) == (6, 0)
    for limit in (None, len(index), 500):
        np.testing.assert_array_equal(
            places.watched(cfg, prepared, "database+val", limit)[0], np.arange(len(index))
        )


def test_training_without_revisits_is_refused_before_it_begins(folder):
    cfg = make_config(folder)
    cfg.eval.radius = 1e-3
    with pytest.raises(places.RowsError, match="these places are not visited again"):
        places.watched(cfg, PreparedFolder(folder), "database+val", 24)


def test_queries_and_database_are_those_of_the_scheme(evaluated, folder):
    scores, _ = evaluated
    prepared = PreparedFolder(folder)
    assert scores["queries"] == len(prepared.split("supervised", "test"))
    assert sum(scores["databases"].values()) == len(prepared.split("supervised", "database"))
    assert list(scores["estimates"]) == ["model", *REFERENCES]
    assert scores["target"]["passed"]


def test_the_page_shows_tables_curves_maps_and_pictures(evaluated):
    scores, workdir = evaluated
    page = (workdir / "report" / "index.html").read_text()
    for words in ("PASS", "Recall curves", "Where the queries are", "first entry is right", "12.34", "43.21"):
        assert words in page
    assert "9.87" not in page
    record = json.loads((workdir / "report" / "report.json").read_text())
    assert record["dataset"]["queries"] == scores["queries"]
    lines = list(csv.DictReader(io.StringIO((workdir / "report" / "queries.csv").read_text())))
    assert len(lines) == scores["queries"]
    plain = scores["estimates"]["model"][places.OTHER_SCENES]["all"]
    found = [line for line in lines if line["rank_of_right"] == "1"]
    assert len(found) == round(plain["recall"]["1"] * plain["counted"])
    assert all(line["scene"] != line["first_scene"] for line in lines)
    assert all(float(line["first_distance_m"]) <= 22.0 for line in found)


def test_reports_of_other_runs_are_drawn_beside_it_where_they_are_comparable(evaluated, folder, tmp_path):
    scores, workdir = evaluated
    cfg, prepared = make_config(folder), PreparedFolder(folder)
    record = json.loads((workdir / "report" / "report.json").read_text())
    for name, change in (("alike", {}), ("data", {"fingerprint": "f"}), ("scheme", {"scheme": "other"})):
        changed = {**record, "dataset": {**record["dataset"], **change}}
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(changed))
    (tmp_path / "alike" / "report.json").rename(tmp_path / "report.json")
    cfg.eval.compare = [str(workdir), *(str(tmp_path / name) for name in ("alike", "data", "scheme"))]
    found, refused = places_report.compared(cfg, scores, prepared)
    assert found == {workdir.name: scores["estimates"]["model"]}
    cfg.eval.compare = [str(workdir / "report")]
    assert places_report.compared(cfg, scores, prepared) == (found, [])
    assert [reason.split(", ", 1)[1][:32] for reason in refused] == [
        "which is no report on places (Fi",
        "which has another fingerprint",
        "which has another scheme",
    ]
    cfg.eval.compare = [str(workdir), str(tmp_path)]
    picture, *paragraphs = places_report._curves(cfg, scores, prepared)
    assert decoded(picture.data).std() > 5
    assert paragraphs == []


# --- Tables


METHOD = types.SimpleNamespace(
    PUBLISHED_PROTOCOL="Boston",
    PUBLISHED=(
        {"table": "I", "model": "EINet", "sensors": "C+L", "recall_at_1": 91.4, "recall_at_5": 97.3},
        {"table": "III", "model": "LCPR", "recall_at_1_by_location": {"north": 85.63, "south": 93.76}},
        {"table": "IV", "model": "EINet", "total_ms": 186.48},
    ),
)


def cells_of(table, first):
    """The first row that begins with these words."""
    return next(list(row.cells) for row in table.rows if row.cells[0].startswith(first))


def test_tables_show_counts_chance_references_and_published_figures():
    found = drives(noise=1.5)
    found["reference/range_fft/descriptor"] = found["descriptor"]
    scores = places.score(config(), found)
    tables = places.tables(scores, METHOD)
    assert all(isinstance(table, Table) for table in tables)
    assert len(tables) == 3 + 1 + 3 + 1
    plain, other, *_ = tables
    part = scores["estimates"]["model"]["plain"]["all"]
    low, high = part["interval_95"]["1"]
    all_places = next(i for i, row in enumerate(plain.rows) if row.cells[0].startswith("all locations"))
    divider, ours, reference, chance = plain.rows[all_places : all_places + 4]
    assert divider.cells[0] == (
        "all locations: 160 queries, 0 of them with nothing right to find; 200 database entries"
    )
    assert ours.cells[1] == f"{100 * part['recall']['1']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
    assert (ours.kind, reference.kind, chance.kind) == ("ours", "baseline", "baseline")
    assert reference.cells[0] == "range fft"
    assert chance.cells[1] == f"{100 * part['chance']['1']:.1f}"
    assert cells_of(plain, "I: EINet (C+L)") == ["I: EINet (C+L)", "91.40", "97.30", ""]
    assert not any(row.kind == "published" for row in other.rows)
    transfer = tables[3]
    assert list(transfer.header) == ["", "north", "south"]
    assert cells_of(transfer, "III: LCPR") == ["III: LCPR", "85.63", "93.76"]
    north = scores["estimates"]["model"]["plain"]["north"]["recall"]["1"]
    assert cells_of(transfer, "this model")[1] == f"{100 * north:.1f}"
    for table in tables:
        assert all(len(row.cells) in (1, len(table.header)) for row in table.rows)
        assert text_table(table)


def test_one_location_is_not_repeated_as_all():
    scores = places.score(config(locations="north"), drives())
    text = "\n".join(text_table(table) for table in places.tables(scores, types.SimpleNamespace()))
    assert "all locations" not in text
    assert "north: 80 queries" in text


# --- Pictures


def test_examples_are_queries_followed_by_what_came_first():
    found = places.second_stage(None, config(), drives(noise=2.0))
    chosen = places.choose_examples(config(), found)
    assert set(chosen) == {"right", "wrong"}
    for group, numbers in chosen.items():
        for query, candidate in numbers.reshape(-1, 2):
            assert found["is_query"][query]
            assert found["scene"][query] != found["scene"][candidate]
            assert found["location"][query] == found["location"][candidate]
            step = found["global_T_ego"][candidate, :2, 3] - found["global_T_ego"][query, :2, 3]
            assert (np.hypot(*step) <= 9.0) == (group == "right")
    assert places.choose_examples(config(pictures=0), found) == {}


def test_where_only_own_scenes_are_right_these_are_shown():
    found = frames([0, 0.1, 5], [0, 1, 99], [1, 0, 0], scene=[0, 0, 1])
    shown = places.second_stage(None, config(), found)
    assert not shown["retrieved/own_scene_left_out"].any()
    assert shown["retrieved/candidate"][0, 0] == 1
    found["scene"][1] = "scene-7"
    assert places.second_stage(None, config(), found)["retrieved/own_scene_left_out"].all()


def test_missing_cameras_are_said_to_be_missing(folder):
    """The picture of frame 5, whose rear camera is missing, leaves that one out."""
    prepared = PreparedFolder(folder)
    features = {"index": np.array([[4], [place_folder.MISSING]])}
    whole, without = (
        places_report._place_of("", place, features, {}, METHOD, prepared, None) for place in (0, 1)
    )
    assert set(whole.images) - set(without.images) == {"CAM_BACK"}
    assert without.strips["range image of the sweep"].max() == pytest.approx(
        prepared.table("frames")[place_folder.MISSING]["range_steps"].max() * 0.002
    )
    data = places_pictures.pair_picture("without", whole, without)
    assert decoded(data).std() > 5


@pytest.mark.parametrize("predicted", [True, False])
def test_pictures_of_pairs_are_drawn_with_and_without_depth(predicted):
    rng = np.random.default_rng(0)

    def place(right):
        return Place(
            "title",
            {name: rng.integers(0, 255, (18, 32, 3), dtype=np.uint8) for name in place_folder.CAMERAS},
            {name: rng.uniform(1, 60, (9, 16)) for name in place_folder.CAMERAS} if predicted else {},
            {"sweep": rng.uniform(-1, 60, (8, 66))}
            | ({"cameras": np.full((16, 66), -1.0)} if predicted else {}),
            rng.integers(0, 255, (8, 66, 3), dtype=np.uint8),
            right,
        )

    drawn = decoded(places_pictures.pair_picture("right", place(None), place(True)))
    assert (drawn.shape[0] > 700) == predicted
    assert drawn.std() > 5


def test_pages_of_one_query_are_whole():
    """A single query, a single entry: no interval, no other lanes, a map of two points."""
    found = frames([0, 1], [0, 3], [1, 0], scene=[0, 1])
    cfg = config()
    known = places.second_stage(None, cfg, found)
    scores = places.score(cfg, known)
    sections = places.report(cfg, scores, known, {}, types.SimpleNamespace(), None)
    pictures = [b for section in sections for b in section.blocks if isinstance(b, Picture)]
    assert len(pictures) == 2
    for picture in pictures:
        assert decoded(picture.data).std() > 3


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
