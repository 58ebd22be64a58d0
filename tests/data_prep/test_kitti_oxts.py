"""Absolute positions of KITTI's sequences against distances on the ellipsoid."""

import numpy as np
import pyproj
import pytest

from data_prep.errors import InputError
from data_prep.raw import kitti_oxts


def write(root, drive: str, places: dict[int, tuple[float, float, float]], kind: str = "sync"):
    date = drive[:10]
    folder = root / date / f"{drive}_{kind}" / "oxts" / "data"
    folder.mkdir(parents=True)
    for frame, place in places.items():
        numbers = [*place, *np.zeros(22), 4, 11, 6, 6, 6]
        (folder / f"{frame:010d}.txt").write_text(" ".join(repr(float(n)) for n in numbers) + "\n")
    return folder


KARLSRUHE = (48.98, 8.39, 115.0)


def test_metres_are_metres_and_absolute(tmp_path):
    """300 m east and 400 m north by WGS84: the sphere that KITTI takes is off by 0.4 % at most."""
    geod = pyproj.Geod(ellps="WGS84")
    lon, lat, _ = geod.fwd(KARLSRUHE[1], KARLSRUHE[0], 90.0, 300.0)
    lon, lat, _ = geod.fwd(lon, lat, 0.0, 400.0)
    folder = write(tmp_path, "2011_10_03_drive_0027", {0: KARLSRUHE, 1: (lat, lon, 117.0)})
    assert kitti_oxts.oxts_folder(tmp_path, "00") == folder
    found = kitti_oxts.read_positions(folder, "00", [0, 1])
    np.testing.assert_allclose(found[1] - found[0], [300, 400, 2], rtol=0.004)
    # Where VXP's squares of sequence 00 and 02 are, to 5 km.
    np.testing.assert_allclose(found[0, :2], [613_000, 4_116_000], atol=5000)


def test_frames_of_08_begin_later(tmp_path):
    folder = write(
        tmp_path,
        "2011_09_30_drive_0028",
        {1100 + i: (49.0, 8.4 + 1e-5 * i, 1.0) for i in range(3)},
        "extract",
    )
    found = kitti_oxts.read_positions(folder, "08", [2, 0])
    assert found[0, 0] > found[1, 0]
    assert found[0, 1] == found[1, 1]


def test_what_is_missing_is_named(tmp_path):
    assert kitti_oxts.oxts_folder(tmp_path, "00") is None
    assert kitti_oxts.oxts_folder(tmp_path, "11") is None
    folder = write(tmp_path, "2011_10_03_drive_0027", {0: KARLSRUHE, 1: (1000.0, 8.0, 0.0)})
    with pytest.raises(InputError, match=r"none of 1, the first being 0000000005\.txt"):
        kitti_oxts.read_positions(folder, "00", [0, 5])
    with pytest.raises(InputError, match=r"0000000001\.txt: expected latitude"):
        kitti_oxts.read_positions(folder, "00", [0, 1])
