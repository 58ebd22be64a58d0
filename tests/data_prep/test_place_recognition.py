"""The schemes of NUSC-PR: toy drives with their exact answers, chance, and what cannot be divided."""

import dataclasses

import numpy as np
import pytest

from data_prep import place_recognition as places
from data_prep.errors import InputError
from data_prep.place_recognition import DAY, Division, Frames, SelfSupervisedRule, SupervisedRule

CITY = "boston-seaport"


def frames_of(*scenes, location=CITY):
    """Scenes (day, x of every sample), samples half a second apart, on a straight road along x."""
    locations = [location] * len(scenes) if isinstance(location, str) else location
    count = [len(x) for _, x in scenes]
    x = np.concatenate([np.asarray(x, float) for _, x in scenes])
    number = np.repeat(np.arange(len(scenes)), count)
    return Frames(
        tokens=np.array([f"t{i}" for i in range(len(x))]),
        locations=np.repeat(locations, count),
        scenes=number,
        scene_names=tuple(f"scene-{n:04d}" for n in range(len(scenes))),
        xyz=np.stack([x, np.zeros_like(x), np.zeros_like(x)], 1),
        time=1_530_000_000_000_000
        + np.concatenate([int(day * DAY) + 500_000 * np.arange(len(x)) for day, x in scenes]),
    )


# specs/einet.md §9.9: run through the published code itself.
TOY = frames_of((0, [0, 1, 2.5, 2.6]), (120, [0.4, 2, 30, 30.5]), (10, [2.5, 31.2, 60]))


def test_supervised_toy():
    division = places.supervised(TOY, SupervisedRule())[CITY]
    assert division.database.tolist() == [0, 2, 6, 9, 10]
    assert division.train_query.tolist() == [1, 3, 8]
    assert division.val_query.tolist() == []
    assert division.test_query.tolist() == [4, 5, 7]
    truth = places.ground_truth(TOY, division, 9.0, 2)
    assert [sorted(entries.tolist()) for entries in truth] == [[0, 2], [0, 2], [6, 9]]
    assert truth[2].tolist() == [6, 9]  # nearest first: 0.5 m, 0.7 m
    assert division.train_positives.shape == (3, 2)
    assert division.train_negatives.shape == (3, 4)
    assert set(division.train_positives.ravel()) <= {0, 2}
    assert set(division.train_negatives.ravel()) <= {6, 9, 10}


def test_supervised_toy_of_the_paper_admits_at_equal_distance():
    division = places.supervised(TOY, SupervisedRule(admits_equal=True))[CITY]
    assert division.database.tolist() == [0, 1, 2, 6, 9, 10]
    assert division.train_query.tolist() == [3, 8]


def test_truth_without_the_own_scene():
    division = places.supervised(TOY, SupervisedRule())[CITY]
    told = places.describe_truth(TOY, division, 9.0, 2, (1.0, 115.0))
    # Query 7 keeps frame 9 alone, of scene 2; its nearest, 6, is of its own scene.
    assert told["test_queries"] == told["with_right_entry"] == 3
    assert told["nearest_right_entry_in_own_scene"] == 1
    assert told["with_right_entry_exclude_same_scene"] == 3
    # 4 and 5 have right places of day 0, 120 days before them; 7 has one of day 10.
    assert told["with_right_entry_min_gap_days"] == {"1": 3, "115": 2}
    alone = dataclasses.replace(division, database=np.array([0, 2, 6, 10]))
    assert places.describe_truth(TOY, alone, 9.0, 2, ())["with_right_entry_exclude_same_scene"] == 2


def test_right_places_are_so_to_the_very_radius():
    frames = frames_of((0, [0, 20]), (200, [9, 9.01]))
    division = Division(*(np.array(n) for n in ([0, 1], [], [], [2, 3])), *(np.zeros((0, 1), int),) * 2)
    assert [len(entries) for entries in places.ground_truth(frames, division, 9.0, 2)] == [1, 0]


def test_ground_truth_of_the_plane_and_of_space():
    frames = dataclasses.replace(TOY, xyz=TOY.xyz + np.arange(11)[:, None] * [0, 0, 20.0])
    division = places.supervised(frames, SupervisedRule())[CITY]
    flat, solid = (places.ground_truth(frames, division, 9.0, n) for n in (2, 3))
    assert [len(entries) for entries in flat] == [2, 2, 2]
    assert [len(entries) for entries in solid] == [0, 0, 0]


def test_database_of_many_frames_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    for interval, equal in ((1.0, False), (0.5, True), (4.0, False)):
        # Whole quarters: many distances equal the interval to the bit.
        xy = np.round(rng.uniform(-10, 10, (400, 2)) * 4) / 4
        chosen = [0]
        for number in range(1, len(xy)):
            nearest = np.hypot(*(xy[chosen] - xy[number]).T).min()
            if nearest > interval or (equal and nearest == interval):
                chosen.append(number)
        assert np.flatnonzero(places._spread(xy, interval, equal)).tolist() == chosen


def drive(rng, frames):
    """A winding road seen again and again, so that there are queries of all kinds."""
    return np.sort(rng.uniform(0, 400, frames))


@pytest.fixture
def town():
    rng = np.random.default_rng(3)
    days = (0, 10, 100, 200, 300, 320)
    first = frames_of(*((day, drive(rng, 150)) for day in days))
    second = frames_of(*((day, drive(rng, 150)) for day in days), location="elsewhere")
    return Frames(
        np.concatenate([first.tokens, [f"u{i}" for i in range(len(second.tokens))]]),
        np.concatenate([second.locations, first.locations]),
        np.concatenate([second.scenes, first.scenes + 6]),
        tuple(f"scene-{n:04d}" for n in range(12)),
        np.concatenate([second.xyz, first.xyz]),
        np.concatenate([second.time, first.time]),
    )


def test_every_frame_is_in_one_split_and_tuples_keep_their_distances(town):
    rule = SupervisedRule()
    for location, division in places.supervised(town, rule).items():
        parts = [division.database, division.train_query, division.val_query, division.test_query]
        assert all(len(part) for part in parts)
        together = np.concatenate(parts)
        assert sorted(together) == np.flatnonzero(town.locations == location).tolist()
        age = (town.time - town.time[town.locations == location].min()) / DAY
        assert (age[division.train_query] < 105).all()
        pool = np.concatenate([division.val_query, division.test_query])
        assert (age[pool] >= 105).all()
        assert len(division.val_query) == int(0.25 * len(pool))
        x = town.xyz[:, 0]
        near = np.abs(x[division.train_positives] - x[division.train_query][:, None])
        far = np.abs(x[division.train_negatives] - x[division.train_query][:, None])
        assert near.max() <= 9
        assert far.min() > 18
        assert np.isin(division.train_positives, division.database).all()
        assert np.isin(division.train_negatives, division.database).all()


def test_chance_follows_the_seed_alone(town):
    first, again = (places.supervised(town, SupervisedRule(seed=1)) for _ in range(2))
    other = places.supervised(town, SupervisedRule(seed=2))
    for location in first:
        for name, numbers in first[location].arrays().items():
            np.testing.assert_array_equal(numbers, again[location].arrays()[name])
        assert (first[location].val_query != other[location].val_query).any()
        assert (first[location].train_negatives != other[location].train_negatives).any()
        np.testing.assert_array_equal(first[location].database, other[location].database)


def test_official_locations_come_first_whatever_the_file_order(town):
    assert town.location_names() == ["boston-seaport", "elsewhere"]


def test_dates_are_exact_in_microseconds():
    # Float32 of a time since 1970 is 134 s coarse; this frame is one microsecond too young.
    frames = frames_of((0, [0, 0.5]), (105, [0.5]), (1, [100.0]))
    exact = dataclasses.replace(frames, time=frames.time - (np.arange(4) == 2))
    assert places.supervised(frames, SupervisedRule(negatives=1))[CITY].train_query.tolist() == [1]
    assert places.supervised(exact, SupervisedRule(negatives=1))[CITY].train_query.tolist() == [1, 2]


def test_too_few_frames_for_the_negatives():
    frames = frames_of((0, [0, 0.5, 3.0]), (200, [0.2]))
    with pytest.raises(InputError, match=r"boston-seaport: expected 4 negatives .* found 0 of 2"):
        places.supervised(frames, SupervisedRule())


@pytest.mark.parametrize(
    ("scenes", "said"),
    [
        (((0, [0, 50, 100]), (200, [150, 200])), "found not one query: all 5 frames are in the database"),
        (((0, [0, 0.5, 100]), (20, [150, 200, 200.5, 300, 400])), "expected test queries, found none"),
        (((0, [0, 50]), (200, [0.5, 50, 100, 200, 300])), "expected training queries, found none"),
    ],
)
def test_what_a_location_lacks_is_said(scenes, said):
    division = places.supervised(frames_of(*scenes), SupervisedRule())[CITY]
    (reason,) = places.lacking(CITY, division)
    assert said in reason
    assert CITY in reason


# --- Algorithm 2


def self_supervised(frames, **settings):
    return places.self_supervised(frames, SelfSupervisedRule(by_date=True, **settings))


def test_self_supervised_toy():
    frames = frames_of((0, np.arange(16)), (1, 100 + np.arange(12)), (200, np.arange(5)))
    division = self_supervised(frames)[CITY]
    assert division.train_query.tolist() == [12, 13, 14, 15]  # none of the scene of 12 samples
    assert division.train_positives.tolist() == [[11, 10], [12, 11], [13, 12], [14, 13]]
    assert division.train_negatives[0].tolist() == [0, 1, 2, 3]  # all that there are
    for query, negatives in zip(division.train_query, division.train_negatives, strict=True):
        assert len(set(negatives)) == 4
        assert negatives.tolist() == sorted(negatives)
        assert negatives.max() <= query - 9
    assert division.database.tolist() == list(range(28))
    assert division.test_query.tolist() == list(range(28, 33))
    assert division.val_query.tolist() == []


def test_last_query_may_draw_all_early_frames():
    frames = frames_of((0, np.arange(16)), (200, np.arange(2)))
    drawn = [self_supervised(frames, seed=seed)[CITY].train_negatives[3] for seed in range(60)]
    assert set(np.concatenate(drawn)) == set(range(7))


def test_negatives_of_the_paper_hold_the_first_positives_and_repeats():
    frames = frames_of((0, np.arange(40)), (200, np.arange(2)))
    drawn = [
        self_supervised(frames, seed=seed, queue_negatives=True)[CITY].train_negatives for seed in range(80)
    ]
    first = np.concatenate([negatives[0] for negatives in drawn])
    assert set(first) == set(range(12))  # 10 and 11 are the positives of query 12
    last = np.concatenate([negatives[-1] for negatives in drawn])
    assert set(last) == set(range(33))  # query 39: 0 … 11 and what was appended up to 38 - 6
    # Frames 6 … 11 are in the list twice, so that a draw without replacement can repeat them.
    repeated = [negatives[-1] for negatives in drawn if len(set(negatives[-1])) < 4]
    assert all(6 <= value <= 11 for n in repeated for value in n if (n == value).sum() > 1)
    early = [negatives[6] for negatives in drawn]  # query 18: twelve frames and 6 … 11 again
    assert any(len(set(negatives)) < 4 for negatives in early)


def test_new_scenes_by_chance_are_a_share_of_all():
    frames = frames_of(*((day, np.arange(14.0)) for day in range(34)))
    new = {
        seed: places.self_supervised(frames, SelfSupervisedRule(seed=seed))[CITY].test_query // 14
        for seed in (1, 2)
    }
    assert [len(set(scenes)) for scenes in new.values()] == [6, 6]  # 150 of 850 of 34
    assert set(new[1]) != set(new[2])


def test_number_of_test_scenes_must_leave_some():
    with pytest.raises(InputError, match=r"from 1 to 1 test scenes of 2, found 2.*--test-scenes"):
        places.self_supervised(frames_of((0, [0.0]), (1, [0.0])), SelfSupervisedRule(test_scenes=2))


def test_age_of_a_scene_is_counted_from_the_whole_dataset():
    frames = frames_of(
        (0, np.arange(14)), (110, np.arange(14)), (120, np.arange(3)), location=["a", "b", "b"]
    )
    divisions = self_supervised(frames)
    assert not len(divisions["b"].database)
    assert len(divisions["b"].test_query) == 17
    assert any("expected a database" in reason for reason in places.lacking("b", divisions["b"]))
