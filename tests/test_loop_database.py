"""The database of loops for one's own LiDAR: numbers, candidates, a verified motion, bad points."""

import jax
import numpy as np
import pytest

from configs import cross_fusion_lcd as configs
from placerec_jax.errors import ConfigError
from placerec_jax.loop_database import LoopDatabase, ScanError
from placerec_jax.methods import cross_fusion_lcd as lcd


@pytest.fixture(scope="module")
def network():
    cfg = configs.get_config("tiny")
    cfg.model.bev.extent, cfg.model.bev.cell = (-16.0, 16.0, -16.0, 16.0), 0.5
    batch = {name: np.zeros((1, *f.shape), f.dtype) for name, f in lcd.features(cfg).items()}
    model = lcd.model(cfg)
    return cfg, jax.jit(lambda b: model.init(jax.random.key(0), b, train=False))(batch)


def place(seed: int) -> np.ndarray:
    """(N, 4) of posts of different heights and brightness."""
    rng = np.random.default_rng(seed)
    return rng.uniform([-12, -12, -2, 0], [12, 12, 1, 1], (150, 4)).astype(np.float32)


def test_a_place_seen_again_is_found_and_verified(network):
    cfg, variables = network
    cfg.eval.min_inliers = 10
    database = LoopDatabase(cfg, variables, gap=2)
    for seed in range(5):
        assert database.add(place(seed)) == seed
    number = database.add(place(1))  # the network has learned nothing: only the same scan is surely the same
    assert len(database) == 6
    found = database.query(number, count=3)
    assert found[0][0] == 1
    assert [distance for _, distance in found] == sorted(distance for _, distance in found)
    assert {candidate for candidate, _ in found} <= {0, 1, 2}  # the two before it may not answer
    assert found[0][1] == pytest.approx(0.0, abs=1e-5)
    loop, other = database.verify(number, 1), database.verify(number, 0)
    assert loop.accepted
    assert loop.inliers > other.inliers
    np.testing.assert_allclose(loop.pose, 0.0, atol=1e-4)


def test_the_first_scans_have_no_candidates(network):
    database = LoopDatabase(*network)
    number = database.add(place(0))
    assert database.query(number) == []
    with pytest.raises(IndexError, match="scan 1 of 1"):
        database.query(1)


@pytest.mark.parametrize("count", [1, 5, 400])
def test_retrieval_is_that_of_all_differences(network, count):
    """Also where descriptors are equal, or nearly so: rounding decides nothing."""
    database, rng = LoopDatabase(*network, gap=10), np.random.default_rng(0)
    descriptors = rng.normal(size=(300, 2048)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    descriptors[100:140] = descriptors[290] * (1 + 1e-7 * rng.normal(size=(40, 2048))).astype(np.float32)
    descriptors[200] = descriptors[50]
    for descriptor in descriptors:
        database.insert({"descriptor": descriptor[None]})
    for number in (5, 60, 215, 290, 299):
        allowed = max(0, number - 10)
        distance = np.linalg.norm(descriptors[:allowed] - descriptors[number], axis=1)
        expected = np.argsort(distance, kind="stable")[:count]
        found = database.query(number, count)
        assert [scan for scan, _ in found] == expected.tolist()
        np.testing.assert_array_equal([far for _, far in found], distance[expected])


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((0, 4)), r"expected points \(N, 4\) .* found \(0, 4\)"),
        (np.zeros((5, 3)), r"found \(5, 3\)"),
        (np.array([[0.0, 0, 0, 0], [0, np.nan, 0, 0]]), r"point 1 of 2 is"),
        (np.array([[1.0, 2, 0, 0], [3, 4, 0, 255]]), r"reflectances from 0 to 1, found 0 to 255"),
        (np.array([[5000.0, 2000, 300, 0.5]]), r"points within x, y .* found none of 1; metres"),
    ],
)
def test_bad_points_are_refused(network, points, message):
    database = LoopDatabase(*network)
    with pytest.raises(ScanError, match=message):
        database.add(points)
    assert not len(database)


def test_pictures_are_no_points(network):
    cfg, variables = configs.get_config("kitti_bev"), network[1]
    with pytest.raises(ConfigError, match="input points"):
        LoopDatabase(cfg, variables)
