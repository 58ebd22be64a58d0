"""The evaluator of places: hand cases, scikit-learn's search, conditions, kinds of revisits, bad input."""

import json
import types

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from placerec_jax.errors import ConfigError
from placerec_jax.evaluation import places, reference_descriptors, references
from placerec_jax.evaluation.places import ALL, MODEL, MOVED, OTHER_DATES, OTHER_SCENES, PLAIN, RowsError
from tests.evaluation.place_frames import DAY, config, drives, frames


def scored(found, **changes):
    return places.score(config(**changes), found)


def figures(found, condition=PLAIN, location=ALL, estimate=MODEL, **changes):
    return scored(found, **changes)["estimates"][estimate][condition][location]


def right_of(found, condition, **changes):
    """{query: its right entries} as row numbers, entries that the condition bars left out."""
    rule = places.rule_of(config(**changes))
    answers = {}
    for task in places.tasks_of(rule, found).values():
        barred = places.barred_of(rule, found, task, condition)
        for query in range(len(task.query)):
            entries = task.pair_entry[task.pair_query == query]
            kept = [e for e in entries if barred is None or not barred(np.array(query), np.array(e))]
            answers[int(task.query[query])] = {int(task.database[e]) for e in kept}
    return answers


# --- By hand


def test_recall_by_hand_with_a_tie_an_empty_ground_truth_and_more_asked_for_than_there_is():
    """Query 0 at 0 m: entries 3 (9 m away, on the boundary) and 4 are equally near, the first is right. Query
    1: its entry 5 comes last of three. Query 2 is far from everything."""
    found = frames([0, 5, 7, 1, -1, 50], [0, 100, 500, 9, 20, 100], [1, 1, 1, 0, 0, 0], scene=range(6))
    part = figures(found)
    assert (part["queries"], part["without_right"], part["counted"]) == (3, 1, 2)
    assert part["recall"] == {"1": 0.5, "5": 1.0}
    assert part["recall_of_all"] == {"1": pytest.approx(1 / 3), "5": pytest.approx(2 / 3)}
    assert part["chance"] == {"1": pytest.approx(1 / 3), "5": 1.0}
    assert part["curve"][:3] == [0.5, 0.5, 1.0]
    kept = figures(found, drop_empty=False)
    assert kept["recall"] == part["recall_of_all"]
    assert kept["recall_without_empty"] == part["recall"]
    assert kept["chance"] == {"1": pytest.approx(2 / 9), "5": pytest.approx(2 / 3)}


def toy(descriptor=None):
    """The toy of the benchmark's definition: frames 0-3 on day 0, 4-7 on day 120, 8-10 on day 10, on a line;
    database 0, 2, 6, 9, 10; test queries 4, 5, 7. Frames 1, 3 and 8 train and are not in the split."""
    x = [0, 1, 2.5, 2.6, 0.4, 2, 30, 30.5, 2.5, 31.2, 60]
    scene, day = [0] * 4 + [1] * 4 + [2] * 3, [0] * 4 + [120] * 4 + [10] * 3
    found = frames(x if descriptor is None else descriptor, x, [0] * 11, scene=scene, day=day)
    found["is_query"][[4, 5, 7]] = True
    chosen = [0, 2, 4, 5, 6, 7, 9, 10]
    return {name: values[chosen] for name, values in found.items()}


def by_index(found, answers):
    return {
        int(found["index"][query]): {int(found["index"][entry]) for entry in entries}
        for query, entries in answers.items()
    }


def test_ground_truth_of_the_toy_under_every_condition():
    found = toy()
    assert by_index(found, right_of(found, PLAIN)) == {4: {0, 2}, 5: {0, 2}, 7: {6, 9}}
    assert by_index(found, right_of(found, OTHER_SCENES)) == {4: {0, 2}, 5: {0, 2}, 7: {9}}
    assert by_index(found, right_of(found, OTHER_DATES)) == {4: {0, 2}, 5: {0, 2}, 7: {9}}
    far = right_of(found, OTHER_DATES, min_gap_days=115.0)
    assert by_index(found, far) == {4: {0, 2}, 5: {0, 2}, 7: set()}


def test_the_toy_is_scored_by_hand():
    """Descriptors are positions but for 9, which seems to be at 59.5: so 7 finds its own scene, and nothing
    right without it until third."""
    at = [0, 1, 2.5, 2.6, 0.4, 2, 30, 30.5, 2.5, 80, 60]
    scores = scored(toy(at), k=(1, 2, 3))
    conditions = {name: part[ALL] for name, part in scores["estimates"][MODEL].items()}
    assert conditions[PLAIN]["recall"] == {"1": 1.0, "2": 1.0, "3": 1.0}
    # Query 7 at 30.5 chooses from 2.5, 0, 60 and 80: 28, 29.5, 30.5 and 49.5 away, the last is right.
    third = pytest.approx(2 / 3)
    assert conditions[OTHER_SCENES]["recall"] == {"1": third, "2": third, "3": third}
    assert conditions[PLAIN]["chance"]["1"] == pytest.approx(2 / 5)
    assert conditions[OTHER_SCENES]["chance"]["1"] == pytest.approx((2 / 4 + 2 / 4 + 1 / 4) / 3)
    assert scores["own_scene"][ALL] == {
        "nearest": pytest.approx(1 / 3),
        "any": pytest.approx(1 / 3),
        "only": 0.0,
    }
    far = scored(toy(at), min_gap_days=115.0)["estimates"][MODEL][OTHER_DATES][ALL]
    assert (far["without_right"], far["recall"]["1"], far["recall_of_all"]["1"]) == (1, 1.0, third)


def test_a_gap_is_an_age_and_not_a_date():
    """Exactly the gap is old enough; a microsecond less is not, whichever is younger."""
    for day in (2.0, -2.0):
        found = frames([0, 0, 0], [0, 1, 2], [1, 0, 0], scene=range(3), day=[0, day, 0])
        assert right_of(found, OTHER_DATES, min_gap_days=2.0) == {0: {1}}
        found["timestamp"][1] -= np.sign(found["timestamp"][1])
        assert right_of(found, OTHER_DATES, min_gap_days=2.0) == {0: set()}
    assert OTHER_DATES not in scored(found, min_gap_days=0.0)["estimates"][MODEL]


def test_kinds_are_those_of_the_best_right_entry():
    """Queries at 0, 100, ... m: with an entry in their lane and one in another; in another lane alone; beyond
    the 9 m in their lane; the other way alone, in their lane; and one whose own lane is its own scene."""
    x = [0, 100, 200, 300, 400, 1, 2, 100, 210, 200, 303, 401, 402]
    y = [0, 0, 0, 0, 0, 0.5, 3.5, -3.5, 0, 3.5, 0, 0, 3.5]
    yaw = np.zeros(13)
    yaw[10] = np.pi
    found = frames(x, x, np.arange(13) < 5, scene=[*range(11), 4, 12], y=y, yaw=yaw)
    for condition, expected in ((PLAIN, [2, 2, 1, 3]), (OTHER_SCENES, [1, 3, 1, 4])):
        kinds = figures(found, condition)["kinds"]
        assert [kinds[name]["counted"] for name in (*places.KINDS, MOVED)] == expected


def test_kinds_are_scored_apart():
    """Who asks in another lane is right, who asks in its own is not."""
    x = [0, 100, 0, 100, 500]
    found = frames([0, 100, 50, 100, 0.1], x, [1, 1, 0, 0, 0], scene=range(5), y=[0, 0, 0, 3.5, 0])
    kinds = figures(found)["kinds"]
    assert {name: kinds[name]["recall"]["1"] for name in (*places.KINDS, MOVED)} == {
        "same_lane": 0.0,
        "other_lane": 1.0,
        "reverse": None,
        MOVED: 1.0,
    }


# --- Independent searches


def test_plain_recall_is_that_of_scikit_learn():
    found = drives(noise=0.9)
    scores = scored(found, k=(1, 5, 10, 20))
    hits, asked = np.zeros(4), 0
    for name in ("north", "south"):
        here = found["location"] == name
        query, database = np.flatnonzero(here & found["is_query"]), np.flatnonzero(here & ~found["is_query"])
        search = NearestNeighbors(n_neighbors=20, algorithm="brute").fit(found["descriptor"][database])
        nearest = search.kneighbors(found["descriptor"][query], return_distance=False)
        xy = found["global_T_ego"][:, :2, 3]
        near = (
            NearestNeighbors(radius=9.0).fit(xy[database]).radius_neighbors(xy[query], return_distance=False)
        )
        kept = [i for i in range(len(query)) if len(near[i])]
        for number, k in enumerate((1, 5, 10, 20)):
            hits[number] += sum(bool(set(near[i]) & set(nearest[i, :k])) for i in kept)
        asked += len(kept)
        assert scores["databases"][name] == len(database)
    part = scores["estimates"][MODEL][PLAIN][ALL]
    assert part["counted"] == asked
    assert list(part["recall"].values()) == pytest.approx(hits / asked)
    assert 0.3 < part["recall"]["1"] < 0.95  # neither all nor nothing, else the test says little


@pytest.mark.parametrize("condition", [OTHER_SCENES, OTHER_DATES])
def test_conditions_are_those_of_a_loop(condition):
    found = drives(noise=1.5)
    scores = scored(found, k=(1, 5), min_gap_days=45.0)
    hits, chance, asked = np.zeros(2), 0.0, 0
    for query in np.flatnonzero(found["is_query"]):
        entries = []
        for entry in np.flatnonzero(~found["is_query"]):
            if found["location"][entry] != found["location"][query]:
                continue
            if condition == OTHER_SCENES and found["scene"][entry] == found["scene"][query]:
                continue
            apart = abs(int(found["timestamp"][entry]) - int(found["timestamp"][query]))
            if condition == OTHER_DATES and apart < 45 * DAY:
                continue
            away = np.linalg.norm(found["descriptor"][entry] - found["descriptor"][query])
            step = found["global_T_ego"][entry, :2, 3] - found["global_T_ego"][query, :2, 3]
            entries.append((away, np.hypot(*step) <= 9.0))
        right = [is_right for _, is_right in sorted(entries, key=lambda one: one[0])]
        if not any(right):
            continue
        asked += 1
        chance += np.mean(right)
        hits += [any(right[:1]), any(right[:5])]
    part = scores["estimates"][MODEL][condition][ALL]
    assert part["counted"] == asked > 0
    assert list(part["recall"].values()) == pytest.approx(hits / asked)
    assert part["chance"]["1"] == pytest.approx(chance / asked)


def test_random_descriptors_score_like_chance_and_inside_the_interval():
    found = drives(length=300)
    found["descriptor"] = np.random.default_rng(5).normal(size=(len(found["index"]), 32)).astype(np.float32)
    for part in (figures(found, condition, k=(1, 5, 20)) for condition in (PLAIN, OTHER_SCENES)):
        for key in ("1", "5", "20"):
            assert part["recall"][key] == pytest.approx(part["chance"][key], abs=0.03)
        low, high = part["interval_95"]["20"]
        assert low <= part["recall"]["20"] <= high
        np.testing.assert_allclose(part["curve"], part["chance_curve"], atol=0.05)


def test_locations_are_apart_pooled_and_chosen():
    found = drives()
    scores = scored(found)
    parts = scores["estimates"][MODEL][PLAIN]
    assert list(parts) == ["north", "south", ALL]
    counts = [parts[name]["counted"] for name in ("north", "south")]
    mean = np.average([parts[name]["recall"]["1"] for name in ("north", "south")], weights=counts)
    assert parts[ALL]["recall"]["1"] == pytest.approx(mean)
    assert sum(counts) == parts[ALL]["counted"]
    for chosen in ("south", ("south",)):
        alone = scored(found, locations=chosen)["estimates"][MODEL][PLAIN]
        assert list(alone) == ["south", ALL]
        assert alone["south"] == parts["south"]


def test_figures_do_not_depend_on_the_order_of_rows():
    found = drives(noise=1.5)
    order = np.random.default_rng(3).permutation(len(found["index"]))
    shuffled = {name: values[order] for name, values in found.items()}
    first, second = (scored(rows)["estimates"][MODEL] for rows in (found, shuffled))
    for condition, parts in first.items():
        for location, part in parts.items():
            for figure in ("recall", "chance", "kinds"):
                assert part[figure] == second[condition][location][figure]


def test_scores_are_json():
    scores = scored(drives(), target={"times_chance": {"recall_at_1": 2.0}})
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


# --- References


def test_references_are_searched_like_the_model():
    """A reference with the model's own descriptors has the model's figures."""
    found = drives(noise=1.5)
    unit = found["descriptor"] / np.linalg.norm(found["descriptor"], axis=1, keepdims=True)
    found["descriptor"] = found["reference/range_fft/descriptor"] = unit
    estimates = scored(found)["estimates"]
    assert list(estimates) == [MODEL, "range_fft"]
    for condition in (PLAIN, OTHER_SCENES, OTHER_DATES):
        ours, theirs = (estimates[name][condition][ALL] for name in (MODEL, "range_fft"))
        assert ours["recall"] == theirs["recall"]
        assert ours["curve"] == theirs["curve"]


def test_a_reference_in_two_steps_is_preselected_among_what_is_allowed():
    """Scan Context compares those with the nearest ring keys: as many as are looked at, none of them barred.
    Of 30 database entries and a depth of 25, a loop over queries chooses the same."""
    rng = np.random.default_rng(2)
    found = frames(
        rng.normal(size=(40, 4)), 3.0 * np.arange(40), np.arange(40) % 4 == 0, scene=np.arange(40) // 8
    )
    context = rng.random((40, 20, 60)).astype(np.float32)
    stack = {"context": context, "ring_key": context.mean(axis=2)}
    found |= {f"reference/scan_context/{key}": values for key, values in stack.items()}
    rule = places.rule_of(config())
    (task,) = places.tasks_of(rule, found).values()
    barred = places.barred_of(rule, found, task, OTHER_SCENES)
    answers = places.answers_of(rule, found, task, "scan_context", barred)
    module = references.load("scan_context")
    for place, query in enumerate(task.query):
        allowed = task.database[found["scene"][task.database] != found["scene"][query]]
        asks, entries = ({k: v[side] for k, v in stack.items()} for side in ([query], allowed))
        apart = module.distances(asks, entries, candidates=places.CURVE_DEPTH)[0]
        first = allowed[np.argsort(apart, kind="stable")[: places.SHOWN]]
        assert task.database[answers.candidate[place]].tolist() == first.tolist()


def test_references_are_described_once(tmp_path, monkeypatch):
    calls = []

    def describe_split(prepared, name, records, *, progress):
        calls.append((name, list(records)))
        return {"descriptor": np.full((len(records), 3), len(calls), np.float32)}

    monkeypatch.setattr(references, "describe_split", describe_split)
    prepared = types.SimpleNamespace(
        fingerprint="f", split=lambda scheme, name: np.array([4]) if name == "database" else None
    )
    cfg = config(references=("range_fft", "range_rows"))
    for _ in range(2):
        rows = places.references(cfg, prepared, {"index": np.array([3, 4])}, tmp_path)
        assert rows["is_query"].tolist() == [True, False]
        assert rows["reference/range_rows/descriptor"].tolist() == [[2.0] * 3] * 2
    assert calls == [("range_fft", [3, 4]), ("range_rows", [3, 4])]
    next(tmp_path.glob("range_fft-*.npz")).write_bytes(b"PK damaged")
    again = reference_descriptors.described(prepared, "range_fft", np.array([3, 4]), tmp_path, False)
    assert again["descriptor"][0, 0] == 3
    assert reference_descriptors.described(prepared, "range_fft", np.array([3]), tmp_path, False)[
        "descriptor"
    ].shape == (1, 3)


# --- Summaries and targets


def test_summary_names_what_training_chooses_by():
    found = drives(noise=1.5)
    found["reference/range_fft/descriptor"] = found["descriptor"]
    flat = places.summarize(scored(found, k=(1, 5, 10, 20)))
    for condition in ("", "exclude_same_scene_", "min_gap_days_"):
        for k in (1, 5, 10, 20):
            for name in ("", "chance_", "range_fft_", "north_", "chance_south_", "range_fft_south_"):
                assert 0 <= flat[f"{name}{condition}recall_at_{k}"] <= 1
        assert f"range_fft_{condition}{MOVED}_recall_at_1" in flat
    columns = [column for table in places.ABLATION_TABLES.values() for _, column, _ in table]
    assert set(columns) <= set(flat)
    assert flat["queries"] == 2 * 2 * 40
    assert flat["database"] == 2 * (60 + 2 * 20)
    assert places.reference_figure("recall_at_1", "chance") in flat
    sizes = places.ablation_sizes(scored(found))
    assert sizes["queries"] == 160


def test_targets_ask_for_multiples_of_chance_and_for_more_than_references():
    found = drives(noise=0.2)
    weak = np.random.default_rng(1).normal(size=found["descriptor"].shape).astype(np.float32)
    found["reference/range_fft/descriptor"] = weak
    figure = f"exclude_same_scene_{MOVED}_recall_at_1"
    target = {"times_chance": {"recall_at_1": 3.0}, "figures": (figure,), "references": ("range_fft",)}
    target = {"target": target, "references": ("range_fft",)}
    assert "target" not in scored(drives(), **target)  # training's evaluation, which has no references
    scores = scored(found, **target, min_database=100, min_queries=160)
    assert scores["target"]["passed"]
    lines = places.verdict(scores)
    assert lines[0].startswith("PASS")
    assert any(line.startswith(figure) and "of range_fft: met" in line for line in lines)
    scores = scored(found, **target, min_database=101)
    assert not scores["target"]["passed"]
    found["reference/range_fft/descriptor"], found["descriptor"] = found["descriptor"], weak
    scores = scored(found, **target)
    assert [check["passed"] for check in scores["target"]["checks"]] == [False, False]


# --- What cannot be scored


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": (5, 1)}, "config.eval.k"),
        ({"k": ()}, "config.eval.k"),
        ({"radius": 0.0}, "config.eval.radius"),
        ({"min_gap_days": -1.0}, "config.eval.min_gap_days"),
        ({"min_gap_days": float("nan")}, "config.eval.min_gap_days"),
        ({"lane_offset": 0.0}, "config.eval.lane_offset"),
        ({"locations": ("atlantis",)}, r"'atlantis'; there are \['north', 'south'\]"),
        ({"target": {"at_least": {"recall_at_3": 0.5}}}, "there is no figure 'recall_at_3'"),
        (
            {"target": {"figures": ("recall_at_1",), "references": ("m2dp",)}},
            r"target\.references names 'm2dp'; expected some of config\.eval\.references",
        ),
        ({"target": {"figures": ("recall_at_1",)}}, "with nothing to check"),
    ],
)
def test_rules_that_are_not_possible_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        scored(drives(), **settings)


def test_rows_that_cannot_be_scored_are_named():
    def refused(message, **changes):
        found = {**drives(), **changes}
        with pytest.raises(RowsError, match=message):
            scored({name: v for name, v in found.items() if v is not None})

    broken = drives()["descriptor"]
    broken[7, 3] = np.inf
    refused("descriptor: 1 of 360 frames are not finite, the first is row 7", descriptor=broken)
    refused("needs 'descriptor'", descriptor=None)
    refused("needs 'is_query'", is_query=None)
    refused(r"descriptor: expected shape \(360, ...\)", descriptor=broken[:-1])
    refused("none of the 360 frames .* is a query", is_query=np.zeros(360, bool))
    refused("all frames in north, south are queries", is_query=np.ones(360, bool))
    with pytest.raises(RowsError, match="0 frames"):
        scored({name: values[:0] for name, values in drives().items()})


def test_a_location_without_revisits_is_reported_beside_others_and_refused_alone():
    found = drives()
    south = found["location"] == "south"
    found["global_T_ego"][south & found["is_query"], 0, 3] += 5000
    scores = scored(found)
    part = scores["estimates"][MODEL][PLAIN]["south"]
    assert (part["counted"], part["without_right"], part["recall"]["1"]) == (0, 80, None)
    assert scores["own_scene"]["south"]["nearest"] is None
    assert "south_recall_at_1" not in places.summarize(scores)
    with pytest.raises(
        RowsError, match="none of the 80 queries in south has one of the 100 database entries"
    ):
        scored(found, locations=("south",))


def test_locations_without_queries_are_left_out():
    found = drives()
    found["is_query"][found["location"] == "south"] = False
    assert list(scored(found)["databases"]) == ["north"]
    with pytest.raises(RowsError, match="none of the 180 frames in south is a query"):
        scored(found, locations=("south",))
