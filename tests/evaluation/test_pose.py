"""The pose evaluator against errors worked out by hand, and doing nothing against the noise it is made of."""

import json

import ml_collections
import numpy as np
import pytest

from placerec_jax.evaluation import pose
from placerec_jax.ops.rigid import se2_compose

QUARTER = np.pi / 2


def make_config(**overrides):
    settings = {"seed": 3, "thresholds": (1.0, 2.0, 5.0, 10.0)}
    return ml_collections.ConfigDict({"eval": settings | overrides})


# The true vehicle looks along +x, +y, -x and +y: what is along and what is across follows the true heading.
TRUE = np.array([[0, 0, 0], [4, -2, QUARTER], [1, 1, np.pi], [0, 0, QUARTER]], np.float32)
PREDICTED = np.array(
    [
        [3, 0, 0],  # 3 m along
        [7, -2, QUARTER],  # +3 m in x is across a vehicle that looks along y
        [1, 5, np.pi - np.deg2rad(1.5)],  # +4 m in y is across a vehicle that looks along -x
        [0, 0.5, -QUARTER],  # 0.5 m along, turned by half a circle
    ],
    np.float32,
)
BY_HAND = {
    "position": [3, 3, 4, 0.5],
    "longitudinal": [3, 0, 0, 0.5],
    "lateral": [0, 3, 4, 0],
    "orientation": [0, 0, 1.5, 180],
}


@pytest.fixture
def rows():
    return {"pose": PREDICTED, "true_pose": TRUE}


@pytest.mark.parametrize("kind", BY_HAND)
def test_errors_by_hand(kind):
    np.testing.assert_allclose(pose.pose_errors(PREDICTED, TRUE)[kind], BY_HAND[kind], atol=2e-5)


def test_errors_do_not_depend_on_where_the_frame_of_the_offsets_lies():
    """E = T⁻¹·T̂ is the same when both are moved by one rigid motion from the left."""
    rng = np.random.default_rng(0)
    true, predicted, moved_by = rng.uniform(-3, 3, (3, 50, 3))
    before = pose.pose_errors(predicted, true)
    after = pose.pose_errors(se2_compose(moved_by, predicted), se2_compose(moved_by, true))
    for kind in pose.ERRORS:
        np.testing.assert_allclose(after[kind], before[kind], atol=1e-9)


def test_orientation_wraps_at_the_half_circle():
    almost = np.deg2rad(179)
    errors = pose.pose_errors(np.array([[0, 0, almost]]), np.array([[0, 0, -almost]]))
    np.testing.assert_allclose(errors["orientation"], 2.0, atol=1e-9)


def test_score_by_hand(rows):
    scores = pose.score(make_config(), rows)
    position = scores["estimates"]["prediction"]["position"]
    assert scores["queries"] == 4
    assert scores["thresholds"] == [1.0, 2.0, 5.0, 10.0]
    assert position["recall"] == [25.0, 25.0, 100.0, 100.0]
    assert position["median"] == pytest.approx(3.0)
    assert position["mean"] == pytest.approx(10.5 / 4)
    np.testing.assert_allclose(scores["estimates"]["prediction"]["orientation"]["recall"], [50, 75, 75, 75])


def test_threshold_itself_counts_as_recalled():
    assert pose.recall(np.array([1.0, np.nextafter(1.0, 2.0)]), [1.0]) == [50.0]


def test_doing_nothing_errs_by_the_offset(rows):
    scores = pose.score(make_config(), rows)
    nothing = scores["estimates"]["do_nothing"]
    np.testing.assert_allclose(nothing["position"]["mean"], np.mean(np.hypot(TRUE[:, 0], TRUE[:, 1])))
    np.testing.assert_allclose(nothing["orientation"]["mean"], (0 + 90 + 180 + 90) / 4, rtol=1e-6)


def test_doing_nothing_under_the_noise_of_the_paper():
    """Offsets uniform in ±30 m and ±30°: recalls of 0.09, 0.35, 2.2, 8.7 and 3.3, 6.7, 16.7, 33.3 %.

    A disc of radius r covers πr²/60² of the square, an interval of angles r/30. Longitudinal and lateral are
    seen from the true heading θ: a strip of half-width r through the centre covers r/30 / cos θ, and the mean
    of 1/cos θ over ±30° is 6/π·ln √3 = 1.049.
    """
    offsets = np.random.default_rng(1).uniform(-1, 1, (400_000, 3)) * [30, 30, np.deg2rad(30)]
    errors = pose.pose_errors(np.zeros_like(offsets), offsets)
    thresholds = [1, 2, 5, 10]
    np.testing.assert_allclose(
        pose.recall(errors["position"], thresholds), [0.0873, 0.349, 2.18, 8.73], atol=0.1
    )
    np.testing.assert_allclose(
        pose.recall(errors["orientation"], thresholds), [3.33, 6.67, 16.67, 33.33], atol=0.25
    )
    for kind in ("longitudinal", "lateral"):
        strip = np.array(thresholds) / 30 * 100 * 6 / np.pi * np.log(np.sqrt(3))
        np.testing.assert_allclose(pose.recall(errors[kind], thresholds), strip, atol=0.25)


def test_coarse_stage_is_scored_beside_the_prediction(rows):
    rows["coarse_pose"] = TRUE + np.float32([0, 0, np.deg2rad(7)])
    scores = pose.score(make_config(), rows)
    assert scores["estimates"]["coarse"]["position"]["median"] == pytest.approx(0.0, abs=1e-5)
    assert scores["estimates"]["coarse"]["orientation"]["median"] == pytest.approx(7.0, abs=1e-4)


def test_scores_are_json_without_nan(rows):
    json.dumps(pose.score(make_config(), rows), allow_nan=False)


def test_summary_is_flat_and_named_as_configs_expect(rows):
    rows["coarse_pose"] = rows["pose"]
    scores = pose.score(make_config(), rows)
    summary = pose.summarize(scores)
    assert summary["position_median"] == scores["estimates"]["prediction"]["position"]["median"]
    assert summary["position_recall_5m"] == 100.0
    assert {"orientation_median", "orientation_recall_1deg", "coarse_position_median"} <= set(summary)
    assert all(isinstance(value, float) for value in summary.values())


# --- Intervals


def test_interval_of_independent_frames_matches_order_statistics():
    """For n independent errors the median's 95 % interval lies near the order statistics n/2 ± 0.98·√n."""
    errors = np.random.default_rng(0).exponential(size=400)
    counts = pose.bootstrap_counts(np.arange(400), seed=1, resamples=4000)
    found = pose.median_interval(errors, counts)
    ranked = np.sort(errors)
    expected = [ranked[int(200 - 0.98 * 20)], ranked[int(200 + 0.98 * 20)]]
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_frames_of_one_drive_do_not_count_as_independent():
    """Ten drives of forty equal frames know as little about the median as ten frames."""
    of_drive = np.random.default_rng(0).exponential(size=10)
    errors, scene = np.repeat(of_drive, 40), np.repeat(np.arange(10), 40)
    low, high = pose.median_interval(errors, pose.bootstrap_counts(scene, seed=1))
    as_frames = pose.median_interval(errors, pose.bootstrap_counts(np.arange(400), seed=1))
    assert high - low > 3 * (as_frames[1] - as_frames[0])


def test_score_says_what_was_resampled(rows):
    assert pose.score(make_config(), rows)["interval"]["unit"] == "frame"
    rows["scene"] = np.array(["a", "a", "b", "b"])
    interval = pose.score(make_config(), rows)["interval"]
    assert (interval["unit"], interval["units"]) == ("scene", 2)


# --- The target


def with_target(errors_ratio, min_queries=4, **target):
    rng = np.random.default_rng(0)
    true = rng.uniform(-1, 1, (400, 3)) * [10, 10, np.deg2rad(15)]
    rows = {"true_pose": true, "pose": (1 - errors_ratio) * true}
    target = target or {"position_median": 0.5, "orientation_median": 0.5}
    return pose.score(make_config(target=target, min_queries=min_queries), rows)


@pytest.mark.parametrize(("errors_ratio", "passed"), [(0.45, True), (0.55, False)])
def test_target_compares_with_half_of_doing_nothing(errors_ratio, passed):
    scores = with_target(errors_ratio)
    assert scores["target"]["passed"] is passed
    assert pose.verdict(scores)[0].startswith("PASS" if passed else "FAIL")


def test_too_few_queries_fail_and_say_so():
    scores = with_target(0.1, min_queries=401)
    assert scores["target"]["passed"] is False
    assert "400 queries, fewer than the 401 asked for" in pose.verdict(scores)


def test_unknown_target_is_named():
    with pytest.raises(ValueError, match=r"config\.eval\.target\.speed_median: expected one of"):
        with_target(0.1, speed_median=0.5)


def test_no_target_no_verdict(rows):
    assert pose.verdict(pose.score(make_config(), rows)) == []


# --- Bad rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pose": None}, r"needs 'pose'"),
        ({"pose": PREDICTED[:2]}, r"pose: expected shape \(4, 3\), found \(2, 3\)"),
        (
            {"pose": np.where(np.arange(4)[:, None] == 2, np.nan, PREDICTED)},
            r"1 of 4 rows .* the first is row 2",
        ),
        ({"pose": PREDICTED[:0], "true_pose": TRUE[:0]}, r"0 queries"),
    ],
)
def test_rows_that_cannot_be_scored_are_named(rows, change, message):
    rows = {name: value for name, value in (rows | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        pose.score(make_config(), rows)


# --- What is looked at


def test_examples_are_the_best_the_median_and_the_worst():
    true = np.zeros((7, 3))
    found = np.zeros((7, 3))
    found[:, 0] = [5, 1, 7, 3, 2, 6, 4]
    chosen = pose.choose_examples(make_config(pictures=2), {"pose": found, "true_pose": true})
    errors = {group: list(found[numbers, 0]) for group, numbers in chosen.items()}
    assert errors == {"best": [1, 2], "median": [3, 4], "worst": [7, 6]}


def test_fewer_queries_than_pictures():
    rows = {"pose": np.zeros((1, 3)), "true_pose": np.zeros((1, 3))}
    chosen = pose.choose_examples(make_config(pictures=3), rows)
    assert {group: list(numbers) for group, numbers in chosen.items()} == {
        "best": [0],
        "median": [0],
        "worst": [0],
    }
