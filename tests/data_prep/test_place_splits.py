"""Queries by travel, CSV files with their keys, and the parts of drives."""

import csv

import numpy as np
import pytest

from data_prep import place_splits
from data_prep.errors import InputError


def line(*east: float) -> np.ndarray:
    return np.array([[x, 0.0] for x in east])


class TestQueries:
    def test_every_fourth_frame_of_a_straight_line(self):
        """1 m a frame and strictly more than 3 m: after 1, 2, 3 the fourth step is the first beyond."""
        queries = place_splits.travelled_queries(line(*range(13)))
        np.testing.assert_array_equal(np.flatnonzero(queries), [4, 8, 12])

    def test_the_way_counts_and_not_the_distance(self):
        """To and fro: 1.6 m each way is 3.2 m of travel after two steps, back at the start."""
        queries = place_splits.travelled_queries(line(0, 1.6, 0, 1.6, 0))
        np.testing.assert_array_equal(queries, [False, False, True, False, True])

    def test_height_does_not_count_and_standing_does_not(self):
        queries = place_splits.travelled_queries(line(0, 0, 0, 0, 4, 4))
        np.testing.assert_array_equal(np.flatnonzero(queries), [4])

    @pytest.mark.parametrize("start", [0, 1, 4391])
    def test_the_first_frame_is_database_whatever_its_number(self, start):
        """Upstream takes frame 0 for the one before the first, which breaks drives that begin elsewhere."""
        queries = place_splits.travelled_queries(line(*(np.arange(6) + 500.0 + start)))
        np.testing.assert_array_equal(np.flatnonzero(queries), [4])

    def test_spaced_queries_are_straight_from_the_last_one(self):
        """3 m or more, and the first frame is one: 0, then 3; 2 m back and forth is never 3 m away."""
        np.testing.assert_array_equal(np.flatnonzero(place_splits.spaced_queries(line(*range(8)))), [0, 3, 6])
        np.testing.assert_array_equal(
            np.flatnonzero(place_splits.spaced_queries(line(0, 2, 0, 2, 0, 2, 3.5))), [0, 6]
        )

    @pytest.mark.parametrize("rule", place_splits.RULES)
    def test_of_nothing(self, rule):
        assert place_splits.RULES[rule](np.zeros((0, 2))).shape == (0,)
        assert len(place_splits.RULES[rule](np.zeros((1, 2)))) == 1


class TestParts:
    def test_squares_are_open_and_in_both_axes(self):
        xy = np.array([[0, 0], [49.9, -49.9], [50, 0], [0, 60], [160, 0], [1000, 1000]])
        found = place_splits.in_squares(xy, [(0, 0), (200, 0)], 50.0)
        np.testing.assert_array_equal(found, [True, True, False, False, True, False])

    def test_block_at_the_end_holds_so_many_of_the_database(self):
        queries = np.tile([False, False, False, True], 10)
        block = place_splits.block_at_end(queries, 7)
        assert (block & ~queries).sum() == 7
        assert block[np.argmax(block) :].all()
        assert block.sum() == 7 + 3
        assert place_splits.block_at_end(queries, 99).all()

    def test_apart_from_against_all_pairs(self):
        rng = np.random.default_rng(0)
        xy, others = rng.uniform(0, 100, (1500, 2)), rng.uniform(0, 100, (7, 2))
        expected = [min(np.hypot(*(a - b)) for b in others) >= 20 for a in xy]
        np.testing.assert_array_equal(place_splits.apart_from(xy, others, 20.0), expected)
        assert place_splits.apart_from(xy, others[:0], 20.0).all()


class TestCsv:
    def test_comes_back(self, tmp_path):
        frames = np.array([1, 12350, 9_999_999_999])
        xy = np.array([[1 / 3, -2e3], [1e-17, 4.25], [0.1, 0.2]])
        (tmp_path / "query.csv").write_bytes(place_splits.csv_bytes(frames, xy))
        found_frames, found_xy = place_splits.read_csv(tmp_path / "query.csv")
        np.testing.assert_array_equal(found_frames, frames)
        np.testing.assert_array_equal(found_xy, xy)

    def test_looks_as_published(self):
        content = place_splits.csv_bytes(np.array([252, 12350]), np.array([[1.5, 2.25], [3.0, 4.0]]))
        assert list(csv.reader(content.decode().splitlines())) == [
            ["", "key", "east", "north"],
            ["0", "252aaaaaaa", "1.5", "2.25"],
            ["1", "12350aaaaa", "3.0", "4.0"],
        ]

    @pytest.mark.parametrize("key", ["12350aaaaa", "12350", "12350bXyzq", " 12350aaaaa "])
    def test_keys(self, key):
        assert place_splits.parse_key(key) == 12350

    def test_of_no_frames(self, tmp_path):
        (tmp_path / "query.csv").write_bytes(place_splits.csv_bytes(np.zeros(0, np.int64), np.zeros((0, 2))))
        frames, xy = place_splits.read_csv(tmp_path / "query.csv")
        assert frames.shape == (0,)
        assert xy.shape == (0, 2)

    @pytest.mark.parametrize(
        "content",
        [
            "",
            "\n",
            ",key,east,north\n0,abc,1,2\n",
            ",key,east,north\n0,12a4,1,2\n",
            ",key,east,north\n0,12aaaaaaaa,1\n",
            ",key,east,north\n0,12aaaaaaaa,1,x\n",
            ",key,east,north\n0,12aaaaaaaa,1,nan\n",
            ",key,east,north\n0,12aaaaaaaa,1,2\n1,12bbbbbbbb,1,2\n",
            ",east,north\n0,1,2\n",
        ],
    )
    def test_damage_is_named(self, tmp_path, content):
        path = tmp_path / "query.csv"
        path.write_text(content)
        with pytest.raises(InputError, match=r"query\.csv: expected"):
            place_splits.read_csv(path)
