"""Schemes of splits: which part of which sequence goes where, and CSV files that say the same."""

import numpy as np
import pytest

from data_prep import place_schemes, place_splits
from data_prep.errors import InputError
from data_prep.place_schemes import Drive


def drive(name: str, first: int, frames: int, dataset: str = "kitti360", **options) -> Drive:
    """Straight east, 1 m a frame, 1 km north of the drive before."""
    xy = np.column_stack([np.arange(frames, dtype=float), np.full(frames, 1000.0 * int(name))])
    xy = options.pop("xy", xy)
    options = {"absolute": False, "csv_root": None} | options
    folder = f"drive_{name}"
    return place_schemes.divide(dataset, name, folder, first, 5 + np.arange(frames), xy, **options)


def kitti360_drives(monkeypatch) -> list[Drive]:
    monkeypatch.setattr(place_schemes, "URBAN_DATABASE", 30)
    first, drives = 0, []
    for name, frames in (("0000", 200), ("0002", 12), ("0003", 20), ("0007", 9), ("0008", 5), ("0018", 7)):
        drives.append(drive(name, first, frames))
        first += frames
    return drives


def test_official_of_kitti360(monkeypatch):
    drives = kitti360_drives(monkeypatch)
    arrays = place_schemes.split_arrays(place_schemes.PUBLISHED["kitti360"]["official"], drives, False)
    # Queries are 4, 8, …, 196: of 0000 the last 40 frames hold 30 of database. The 57 m before do not train.
    np.testing.assert_array_equal(arrays["test"], [*range(160, 200), *range(212, 232)])
    np.testing.assert_array_equal(arrays["train"], [*range(160 - 57 + 1), *range(200, 212)])
    np.testing.assert_array_equal(arrays["val"], range(232, 241))
    np.testing.assert_array_equal(arrays["0018"], range(246, 253))
    assert not set(arrays["train"]) & {*arrays["val"], *arrays["test"]}


def test_queries_and_database(monkeypatch):
    drives = kitti360_drives(monkeypatch)
    scheme = place_schemes.PUBLISHED["kitti360"]["official"]
    disjoint = place_schemes.split_arrays(scheme, drives, False)
    both = place_schemes.split_arrays(scheme, drives, True)
    for split in (*place_schemes.SPLITS, "0002"):
        queries, database = disjoint[f"{split}_query"], disjoint[f"{split}_database"]
        np.testing.assert_array_equal(np.sort(np.concatenate([queries, database])), disjoint[split])
        np.testing.assert_array_equal(both[f"{split}_database"], both[split])
        np.testing.assert_array_equal(both[f"{split}_query"], queries)
    np.testing.assert_array_equal(disjoint["0002_query"], [204, 208])
    assert len(disjoint["test_database"]) == 30 + 16


def test_released_cfg_trains_on_more_and_selects_on_what_tests(monkeypatch):
    drives = kitti360_drives(monkeypatch)
    official, released = (
        place_schemes.split_arrays(place_schemes.PUBLISHED["kitti360"][name], drives, False)
        for name in ("official", "released_cfg")
    )
    added = set(released["train"]) - set(official["train"])
    assert added == {*official["0007"], *official["0008"], *official["0018"]}
    np.testing.assert_array_equal(released["val"], range(160, 200))
    np.testing.assert_array_equal(released["test"], official["test"])


def test_city_by_district():
    drives = [drive(name, 10 * i, 10, "city") for i, name in enumerate(("0000", "0002", "0010"))]
    schemes = place_schemes.city_schemes({"train": ["0002"], "val": ["0010"], "test": ["0000"]})
    official = place_schemes.split_arrays(schemes["official"], drives, False)
    released = place_schemes.split_arrays(schemes["released_cfg"], drives, False)
    np.testing.assert_array_equal(official["test"], range(10))  # whole: no part of the city's 0000 trains
    np.testing.assert_array_equal(official["train"], range(10, 20))
    np.testing.assert_array_equal(released["train"], range(10, 30))
    np.testing.assert_array_equal(released["val"], range(10))


def test_chosen_sequences_are_in_no_other_split():
    scheme = {"train": (("0000", "rest"), ("0002", "all")), "val": (), "test": (("0000", "test"),)}
    assert place_schemes.with_chosen(scheme, {"val": ["0000"]}) == {
        "train": (("0002", "all"),),
        "val": (("0000", "all"),),
        "test": (),
    }


class TestKitti:
    def drives(self, absolute: bool) -> list[Drive]:
        """00 runs along a row of VXP's squares; 02 and 05 are elsewhere."""
        (east, north), *_ = place_schemes.VXP_SQUARES["00"]
        xy = np.column_stack([east - 150 + np.arange(300.0), np.full(300, north)])
        place = {"absolute": absolute, "xy": xy}
        return [
            drive("00", 0, 300, "kitti", **(place if absolute else {})),
            drive("02", 300, 10, "kitti"),
            drive("03", 310, 10, "kitti"),
            drive("05", 320, 10, "kitti"),
        ]

    def test_squares_where_positions_are_known(self):
        drives = self.drives(True)
        arrays = place_schemes.split_arrays(place_schemes.PUBLISHED["kitti"]["official"], drives, False)
        # Only the first of the four squares is on the way (the others begin 100 m or more south and north).
        np.testing.assert_array_equal(arrays["test"], np.arange(101, 200))
        rest = [*range(101), *range(200, 300), *range(320, 330)]
        np.testing.assert_array_equal(arrays["train"], rest)
        assert drives[0].divided_by == "VXP's squares"

    def test_whole_sequences_where_not(self):
        drives = self.drives(False)
        arrays = place_schemes.split_arrays(place_schemes.PUBLISHED["kitti"]["official"], drives, False)
        np.testing.assert_array_equal(arrays["test"], range(300))
        np.testing.assert_array_equal(arrays["val"], range(300, 310))
        np.testing.assert_array_equal(arrays["train"], range(320, 330))  # neither 03, nor 00 and 02
        assert "for want of absolute positions" in drives[0].divided_by

    def test_queries_are_spaced(self):
        np.testing.assert_array_equal(np.flatnonzero(drive("05", 0, 10, "kitti").queries), [0, 3, 6, 9])


class TestCsvFiles:
    def test_they_say_what_the_scheme_says(self, tmp_path, monkeypatch):
        drives = kitti360_drives(monkeypatch)
        scheme = place_schemes.PUBLISHED["kitti360"]["official"]
        for name, content in place_schemes.csv_files(scheme, drives).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(place_schemes, "URBAN_DATABASE", 3)  # must not matter any more
        again = [
            drive(old.name, old.first, len(old.frame_ids), csv_root=tmp_path)
            for old in drives
            if old.name not in ("0008", "0018")  # in no split, so in no file
        ]
        before = place_schemes.split_arrays(scheme, drives, False)
        after = place_schemes.split_arrays(scheme, again, False)
        for split in place_schemes.SPLITS:
            for kind in ("", "_query", "_database"):
                np.testing.assert_array_equal(after[split + kind], before[split + kind])
        assert again[0].divided_by == "CSV files"

    def write(self, folder, **files: list[int]) -> None:
        folder.mkdir(exist_ok=True)
        for name, frames in files.items():
            frames = np.array(frames)
            xy = np.column_stack([frames - 5.0, np.zeros(len(frames))])
            (folder / f"{name}.csv").write_bytes(place_splits.csv_bytes(frames, xy))

    def test_the_lists_win_over_the_rule(self, tmp_path):
        """Frames in no file are in no split; what is held out does not train, though listed twice."""
        self.write(
            tmp_path / "drive_0000",
            query=[6, 7],
            database=[8, 9, 10],
            query_val=[10, 11],
            database_val=[12, 99],
        )
        found = drive("0000", 0, 15, csv_root=tmp_path)
        np.testing.assert_array_equal(np.flatnonzero(found.queries), [1, 2, 5, 6])
        np.testing.assert_array_equal(np.flatnonzero(found.parts["test"]), [5, 6, 7])
        np.testing.assert_array_equal(np.flatnonzero(found.parts["rest"]), [1, 2, 3, 4])
        assert found.listed_absent == 1

    def test_sequences_without_files_are_divided_by_the_rule(self, tmp_path):
        self.write(tmp_path / "drive_0000", query=[6])
        assert drive("0002", 0, 15, csv_root=tmp_path).queries.sum() == 3

    def test_lists_of_another_dataset_are_refused(self, tmp_path):
        self.write(tmp_path / "drive_0002", query=[6, 7], database=[8])
        with pytest.raises(InputError, match="2000 m away"):
            drive("0002", 0, 15, csv_root=tmp_path)

    def test_an_empty_folder_is_refused(self, tmp_path):
        (tmp_path / "drive_0000").mkdir()
        with pytest.raises(InputError, match=r"query\.csv, database\.csv"):
            drive("0000", 0, 15, csv_root=tmp_path)
