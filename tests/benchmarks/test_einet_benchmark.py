"""Stages of EINet: all of them, their work together the model's, cameras that look all around."""

import json

import jax
import ml_collections
import numpy as np
import pytest

from benchmarks import einet as benchmark
from configs import einet as configs
from placerec_jax.describe import describe
from placerec_jax.errors import ConfigError
from placerec_jax.methods import einet

PARTS = [name for name in benchmark.TITLES if name not in (benchmark.WHOLE, *benchmark.PARTS_OF_STAGES)]


def config(**settings) -> ml_collections.FrozenConfigDict:
    cfg = configs.get_config("tiny")
    cfg.loss.reprojection = 0.0  # no PoseNet, which is of training alone
    cfg.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    return ml_collections.FrozenConfigDict(cfg)


@pytest.fixture(scope="module")
def report() -> benchmark.Report:
    return benchmark.measure(config(), 1, seconds=0.01)


def test_every_stage_is_timed_in_its_order(report):
    assert [row.name for row in report.rows] == list(benchmark.TITLES)
    for row in report.rows:
        assert 0 < row.timing.lower <= row.timing.median <= row.timing.upper < 60
        assert row.floor > 0
    lines = [line.split("|") for line in benchmark.as_markdown(report).splitlines() if line.startswith("| ")]
    assert [line[1].strip() for line in lines[1:]] == list(benchmark.TITLES.values())
    values = benchmark.as_json(report)
    assert json.loads(json.dumps(values)) == values


def test_the_stages_work_together_is_the_models(report):
    macs = {row.name: row.cost.macs for row in report.rows}
    assert macs["image_decoder"] == macs["cross_view"] + macs["depth_decoder"]
    assert sum(macs[name] for name in PARTS) == macs[benchmark.WHOLE]
    assert macs[benchmark.WHOLE] == describe(config(), batch=1).total().cost.macs


def test_the_papers_times_stand_beside_the_stages_that_it_names(report):
    published = {row.name: row.published for row in report.rows if row.published is not None}
    assert published["depth_to_range"] == pytest.approx(0.1147)
    assert published[benchmark.WHOLE] == pytest.approx(0.18648)
    parts = [seconds for name, seconds in published.items() if name != benchmark.WHOLE]
    assert len(parts) == 6
    assert sum(parts) == pytest.approx(0.18556)  # not what the paper's total says


def test_depth_to_range_must_read_depth_and_write_an_image(report):
    (row,) = [row for row in report.rows if row.name == "depth_to_range"]
    cfg = config()
    height, width = cfg.model.image_size
    rows, columns = einet.camera_grid(cfg).shape
    assert row.cost.moved_bytes == 4 * (6 * height * width + rows * columns)


def test_cameras_stand_in_a_ring_and_look_outwards():
    transforms = benchmark.ring_of_cameras(6)
    for transform in transforms:
        rotation = transform[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        np.testing.assert_allclose(rotation[:, 1], [0, 0, -1])  # an image's down is the ground's
        np.testing.assert_allclose(transform[:3, 3], 1.5 * rotation[:, 2], atol=1e-12)
    np.testing.assert_allclose(transforms[0, :3, 2], [0, 1, 0], atol=1e-12)  # the front, y
    assert transforms[1, 0, 2] > 0.5  # then clockwise: to the right, x


def test_all_cameras_reach_the_range_image():
    cfg = config()
    batch = benchmark.example_batch(cfg, 2)
    model = einet.model(cfg)
    variables = benchmark.example_variables(model, batch)
    forward = jax.jit(
        lambda v, b: model.apply(v, b, train=False)["camera"],
        compiler_options={"xla_backend_optimization_level": 0},
    )
    camera = forward(variables, batch)
    assert 4 < np.median(camera["depth"]) < 16
    filled = np.asarray(camera["range"] > 0).any(axis=(0, 1, 2))
    assert filled.mean() > 0.9


@pytest.mark.parametrize("settings", [{"model__modality": "lidar"}, {"model__modality": "camera"}])
def test_other_networks_have_other_stages(settings: dict):
    with pytest.raises(ConfigError, match="times the stages of network 'einet' with modality 'fused'"):
        benchmark.stages_of(config(**settings), 1)
