"""The cross-modal evaluator: directions, pooling, chance, targets, and what cannot be scored."""

import json

import numpy as np
import pytest

from placerec_jax.errors import ConfigError
from placerec_jax.evaluation import cross_modal
from placerec_jax.evaluation.cross_modal import RowsError
from tests.evaluation.cross_modal_frames import config, rows


def neighbours(found):
    """The same rows with the descriptors of queries copied from the frame before them, which is right."""
    query = np.flatnonzero(found["is_query"])
    for name in ("image_descriptor", "cloud_descriptor"):
        found[name][query] = found[name][query - 1]
    return found


def test_perfect_descriptors_score_one_in_every_direction():
    found = rows()
    found["image_descriptor"] = found["cloud_descriptor"].copy()
    scores = cross_modal.score(config(), neighbours(found))
    assert list(scores["directions"]) == list(cross_modal.DIRECTIONS)
    for parts in scores["directions"].values():
        assert list(parts) == ["00", "01", "all"]
        for part in parts.values():
            assert set(part["recall"].values()) == {1.0}
            assert part["without_positive"] == 0
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_each_direction_asks_and_answers_with_its_own_descriptors():
    """Images that match submaps of their neighbours; submaps alone are useless, and so are images alone."""
    found = rows(counts=(90,), dim=64, noise=1e6)
    query = np.flatnonzero(found["is_query"])
    found["image_descriptor"][query] = found["cloud_descriptor"][query - 1]
    flat = cross_modal.summarize(cross_modal.score(config(), found))
    assert flat["image_to_point_recall_at_1"] == 1.0
    for name in ("point_to_image", "image_to_image", "point_to_point"):
        assert flat[f"{name}_recall_at_1"] < 0.3


def test_scores_by_hand():
    """Sequence 00: queries at 20 and 500 m, database at 0, 10, 40 and 100 m; 01: a query at 0, database at 20
    (right: on the boundary) and 21 m."""
    found = {
        "image_descriptor": np.array([[3.1], [0], [0], [0], [0], [0], [5], [9], [9]], np.float32),
        "cloud_descriptor": np.array([[9], [9], [1], [2], [3], [4], [9], [8], [5]], np.float32),
        "sequence_name": np.array(["00"] * 6 + ["01"] * 3),
        "frame_id": np.arange(9),
        "index": np.arange(9),
        "xy": np.stack([[20, 500, 0, 10, 40, 100, 0, 20, 21], np.zeros(9)], axis=-1).astype(float),
        "is_query": np.array([1, 1, 0, 0, 0, 0, 1, 0, 0], bool),
    }
    scores = cross_modal.score(config(k=(1, 2), directions=("image_to_point",)), found)
    parts = scores["directions"]["image_to_point"]
    # Query 0 finds 40 m away by 20 m: right. Query 1 has nothing right. In 01 the wrong one comes first.
    assert {name: part["recall"] for name, part in parts.items()} == {
        "00": {"1": 0.5, "2": 0.5, "1_percent": 0.5},
        "01": {"1": 0.0, "2": 1.0, "1_percent": 0.0},
        "all": {"1": pytest.approx(1 / 3), "2": pytest.approx(2 / 3), "1_percent": pytest.approx(1 / 3)},
    }
    assert [parts[name]["without_positive"] for name in parts] == [1, 0, 1]
    assert [parts[name]["database"] for name in parts] == [4, 2, 6]
    assert parts["00"]["chance"]["1"] == pytest.approx(0.5 * 3 / 4)
    assert parts["00"]["chance"]["2"] == pytest.approx(0.5)  # one of four is wrong: two never both
    assert parts["01"]["chance"] == pytest.approx({"1": 0.5, "2": 1.0, "1_percent": 0.5})
    assert parts["all"]["chance"]["1"] == pytest.approx((3 / 4 + 0 + 1 / 2) / 3)
    assert scores["queries"] == 3
    assert scores["k_of_1_percent"] == {"00": 1, "01": 1}
    known = cross_modal.second_stage(None, config(k=(1, 2), directions=("image_to_point",)), found)
    assert known["retrieved/candidate"][[0, 1, 6]].tolist() == [[4, 5, 3], [2, 3, 4], [8, 7, -1]]
    np.testing.assert_allclose(known["retrieved/apart"][6], [21.0, 20.0, np.inf])
    assert known["retrieved/right"][[0, 1, 6]].tolist() == [3, 0, 1]
    assert known["retrieved/asked"].tolist() == found["is_query"].tolist()


def test_one_percent_is_of_each_sequence():
    found = rows(counts=(600, 30), noise=10.0)
    scores = cross_modal.score(config(directions=("image_to_point",), k=(1, 4)), found)
    parts = scores["directions"]["image_to_point"]
    assert scores["k_of_1_percent"] == {"00": 4, "01": 1}
    assert parts["00"]["recall"]["1_percent"] == parts["00"]["recall"]["4"]
    assert parts["01"]["recall"]["1_percent"] == parts["01"]["recall"]["1"]
    queries = [parts[name]["queries"] for name in ("00", "01")]
    mean = np.average([parts[name]["recall"]["1_percent"] for name in ("00", "01")], weights=queries)
    assert parts["all"]["recall"]["1_percent"] == pytest.approx(mean)


def test_random_descriptors_score_like_chance_and_inside_the_interval():
    found = rows(counts=(1500, 900), dim=32, noise=1e6)
    scores = cross_modal.score(config(), found)
    for parts in scores["directions"].values():
        for key in ("1", "10", "1_percent"):
            assert parts["all"]["recall"][key] == pytest.approx(parts["all"]["chance"][key], abs=0.02)
        low, high = parts["all"]["interval_95"]["10"]
        assert low <= parts["all"]["recall"]["10"] <= high
        np.testing.assert_allclose(parts["all"]["curve"], parts["all"]["chance_curve"], atol=0.03)
    assert scores["interval"]["units"] == 25 + 15


def test_own_frames_count_across_and_not_within_a_modality():
    """With queries in the database an image may find its own submap; itself it may not."""
    found = rows(dim=64)
    found["image_descriptor"] = found["cloud_descriptor"].copy()
    flat = cross_modal.summarize(cross_modal.score(config(queries_in_database=True), found))
    assert flat["database"] == 105
    assert flat["image_to_point_recall_at_1"] == flat["point_to_image_recall_at_1"] == 1.0
    assert flat["image_to_image_recall_at_1"] < 0.5
    assert flat["chance_image_to_point_recall_at_1"] > flat["chance_image_to_image_recall_at_1"]


def test_figures_do_not_depend_on_the_order_of_rows():
    found = rows(noise=1.0)
    order = np.random.default_rng(3).permutation(105)
    shuffled = {name: values[order] for name, values in found.items()}
    first, second = (cross_modal.score(config(), r)["directions"] for r in (found, shuffled))
    for direction, parts in first.items():
        for name, part in parts.items():
            assert part["recall"] == second[direction][name]["recall"]


def test_summary_names_what_training_chooses_by():
    flat = cross_modal.summarize(cross_modal.score(config(k=(1, 5, 10, 15, 20)), rows(noise=0.5)))
    for direction in cross_modal.DIRECTIONS:
        for key in ("1", "5", "10", "15", "20", "1_percent"):
            ours = flat[f"{direction}_recall_at_{key}"]
            assert 0 <= flat[f"chance_{direction}_recall_at_{key}"] <= 1
            assert 0 <= ours <= 1
    assert (flat["queries"], flat["database"], flat["without_positive"]) == (35, 70, 0)
    columns = [column for table in cross_modal.ABLATION_TABLES.values() for _, column, _ in table]
    assert set(columns) <= set(flat)
    assert cross_modal.reference_figure("image_to_point_recall_at_1", "chance") in flat


def test_targets_are_held_against_chance_and_bounds():
    target = {
        "times_chance": {"image_to_point_recall_at_1": 3.0},
        "at_least": {"point_to_image_recall_at_5": 0.9},
    }
    found = rows()
    found["image_descriptor"] = found["cloud_descriptor"].copy()
    scores = cross_modal.score(config(target=target), neighbours(found))
    assert scores["target"]["passed"]
    first, *rest = cross_modal.verdict(scores)
    assert first.startswith("PASS")
    chance = scores["directions"]["image_to_point"]["all"]["chance"]["1"]
    assert f"at least 3 x {chance:.4f} of chance = {3 * chance:.4f}: met" in rest[0]

    scores = cross_modal.score(config(target=target), rows(noise=1e6, dim=64))
    assert not scores["target"]["passed"]
    assert any(line.endswith("missed") for line in cross_modal.verdict(scores))

    for setting, value in (("min_queries", 36), ("min_database", 31)):
        scores = cross_modal.score(config(target=target, **{setting: value}), neighbours(found))
        assert not scores["target"]["passed"]
        assert f"fewer than the {value} asked for" in "\n".join(cross_modal.verdict(scores))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"directions": ("text_to_point",)}, "config.eval.directions"),
        ({"directions": ()}, "config.eval.directions"),
        ({"k": (5, 1)}, "config.eval.k"),
        ({"k": (0, 1)}, "config.eval.k"),
        ({"radius": -1.0}, "config.eval.radius"),
        ({"target": {"at_least": {"recall_at_1": 0.5}}}, "there is no figure 'recall_at_1'"),
        ({"target": {"above": {}}}, "found \\['above'\\]"),
    ],
)
def test_rules_that_are_not_possible_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        cross_modal.score(config(**settings), rows())


def test_rows_that_cannot_be_scored_are_named():
    def refused(message, **changes):
        found = {**rows(), **changes}
        with pytest.raises(RowsError, match=message):
            cross_modal.score(config(), {name: v for name, v in found.items() if v is not None})

    broken = rows()["image_descriptor"]
    broken[7, 3] = np.nan
    refused("image_descriptor: 1 of 105 frames are not finite, the first is row 7", image_descriptor=broken)
    refused("needs 'cloud_descriptor'", cloud_descriptor=None)
    refused("needs 'xy'", xy=None)
    refused("expected shape \\(105, ...\\)", cloud_descriptor=rows()["cloud_descriptor"][:-1])
    refused("different lengths", cloud_descriptor=rows(dim=4)["cloud_descriptor"])
    refused("none of the 105 frames is a query", is_query=np.zeros(105, bool))
    refused("all 105 frames are queries", is_query=np.ones(105, bool))
    with pytest.raises(RowsError, match="0 frames"):
        cross_modal.score(config(), {name: values[:0] for name, values in rows().items()})
