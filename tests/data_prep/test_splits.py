"""The split whose parts lie apart."""

import numpy as np
import pytest

from data_prep import geodesy, splits

BOSTON, ONE_NORTH, QUEENSTOWN = "boston-seaport", "singapore-onenorth", "singapore-queenstown"


def test_parts_lie_apart():
    rng = np.random.default_rng(0)
    wide, high = rng.uniform((0, 0), (2900, 600), (3000, 2)), rng.uniform((0, 0), (500, 2000), (2000, 2))
    locations = np.array([BOSTON] * 3000 + [ONE_NORTH] * 2000)
    xy = np.concatenate([wide, high])
    labels = splits.geographic_split(locations, xy)
    for location in (BOSTON, ONE_NORTH):
        at = locations == location
        for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
            mine, theirs = xy[at & (labels == one)], xy[at & (labels == other)]
            # The map frames are true to scale within a thousandth.
            assert np.linalg.norm(mine[:, None] - theirs[None], axis=-1).min() > 0.999 * splits.BUFFER
        share = {split: np.mean(labels[at] == split) for split in splits.SPLITS}
        assert share["val"] == pytest.approx(0.15, abs=0.01)
        assert share["test"] == pytest.approx(0.15, abs=0.01)
        assert share["train"] > 0.4


def test_maps_that_overlap_are_kept_apart_too():
    """The same streets driven once in the map of one-north and once in that of Queenstown."""
    rng = np.random.default_rng(1)
    xy = rng.uniform((50, 50), (1000, 1800), (2000, 2))
    other = geodesy.wgs84_to_map(geodesy.map_to_wgs84(xy[:1000], ONE_NORTH), QUEENSTOWN)
    # Queenstown's drives also go elsewhere, so its cuts fall in other places.
    elsewhere = rng.uniform((0, 0), (3000, 600), (1000, 2))
    locations = np.array([ONE_NORTH] * 2000 + [QUEENSTOWN] * 2000)
    labels = splits.geographic_split(locations, np.concatenate([xy, other, elsewhere]))
    ours, theirs = labels[:1000], labels[2000:3000]
    assert not np.any((ours != theirs) & (ours != "") & (theirs != ""))
    assert {*ours} > {"train"}


def test_a_vehicle_that_stands_still_is_in_one_part():
    xy = np.concatenate([np.zeros((50, 2)), np.linspace((10, 0), (2000, 0), 50)])
    labels = splits.geographic_split([BOSTON] * 100, xy)
    assert len(set(labels[:50])) == 1


def test_one_frame_is_for_training():
    assert splits.geographic_split([BOSTON], np.zeros((1, 2))).tolist() == ["train"]
