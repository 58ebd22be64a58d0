"""A real nuScenes keyframe on its real OpenStreetMap roads, through the network of the paper's size."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import maplocnet as configs
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.methods import maplocnet
from placerec_jax.ops import bev, projection, splat


@pytest.fixture(scope="module")
def real_example(
    real_data: Path, tmp_path_factory: pytest.TempPathFactory, run_command: Callable
) -> dict[str, np.ndarray]:
    """The keyframe converted and cut as in evaluation, at the paper's size."""
    out = tmp_path_factory.mktemp("real") / "maploc"
    roads = real_data / "osm" / "singapore-onenorth.osm"
    run_command("-m", "data_prep", "maploc", "--raw", real_data / "nuscenes", "--osm", roads, "--out", out)
    cfg = configs.get_config("nuscenes")
    prepared = PreparedFolder(out)
    split = next(name for name in ("train", "val", "test") if len(prepared.split("official", name)))
    source = maplocnet.source(cfg, prepared, split, training=False)
    assert len(source) == 1
    return source.example(0, np.random.default_rng([cfg.eval.seed, 0]))


@pytest.mark.slow
@pytest.mark.real_data
def test_real_frustum_covers_the_grid_as_a_surround_rig_does(real_example: dict[str, np.ndarray]) -> None:
    """About two thirds of the 59,136 points land inside, in 15 to 27 % of the cells."""
    cfg = configs.get_config("nuscenes")
    grid = maplocnet.bev_grid(cfg)
    points = projection.frustum((128, 352), (8, 22), cfg.model.depths)
    ego_xyz = projection.pixels_to_ego(
        points, jnp.asarray(real_example["intrinsics"]), jnp.asarray(real_example["ego_T_camera"])
    )
    ids = np.asarray(splat.cell_ids(ego_xyz, grid, cfg.model.z_range))
    assert ids.size == 59_136
    outside = grid.shape[0] * grid.shape[1]
    assert 0.6 < (ids < outside).mean() < 0.72
    assert 0.15 < len(np.unique(ids[ids < outside])) / outside < 0.27


@pytest.mark.slow
@pytest.mark.real_data
def test_real_label_moved_by_the_true_pose_lies_on_the_real_patch(
    real_example: dict[str, np.ndarray],
) -> None:
    """Drivable ground of the true frame, warped by T, is the drivable ground of the noisy patch."""
    cfg = configs.get_config("nuscenes")
    source, target = maplocnet.bev_grid(cfg), maplocnet.map_grid(cfg)
    pose = jnp.asarray(real_example["true_pose"])
    label = jnp.asarray(real_example["bev_label"], jnp.float32)[None]
    moved = np.asarray(bev.warp_se2(label, pose, source, target)[0, ..., 0]) > 0.5
    seen = np.asarray(bev.warp_se2(jnp.ones_like(label), pose, source, target)[0, ..., 0]) > 0.99
    drivable = (real_example["map_label"][0, ..., 0] > 0) & seen
    moved &= seen
    assert drivable.sum() > 1000
    assert (moved & drivable).sum() / (moved | drivable).sum() > 0.95


@pytest.mark.slow
@pytest.mark.real_data
def test_real_keyframe_runs_through_the_full_size_network(real_example: dict[str, np.ndarray]) -> None:
    """Finite features, segmentations and losses; an untrained network leaves the pose where it was."""
    cfg = configs.get_config("nuscenes")
    model = maplocnet.model(cfg)
    batch = {name: jnp.asarray(value)[None] for name, value in real_example.items()}
    variables = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False))()

    @jax.jit
    def forward(variables, batch):
        out = model.apply(variables, batch, train=False)
        return out, maplocnet.loss(cfg, out, batch), maplocnet.predict(cfg, out, batch)

    out, terms, predictions = forward(variables, batch)
    assert out["frame"]["coarse"].shape == (1, 128, 64, 64)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves((out, terms)))
    np.testing.assert_array_equal(predictions["pose"], np.zeros((1, 3)))
    coarse, count = terms["coarse"]
    by_hand = np.abs(np.asarray(real_example["true_pose"][0]) * [1, 1, 180 / np.pi])
    assert float(coarse / count) == pytest.approx(
        np.where(by_hand < 1, by_hand**2 / 2, by_hand - 0.5).mean(), rel=1e-4
    )
