"""A real nuScenes keyframe through the network of the paper's size."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import einet as configs
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.methods import einet
from placerec_jax.ops import depth_supervision

CFG = ml_collections.FrozenConfigDict(configs.get_config("nuscenes"))


@pytest.fixture(scope="module")
def real_example(
    real_data: Path, tmp_path_factory: pytest.TempPathFactory, run_command: Callable
) -> dict[str, np.ndarray]:
    """The keyframe as evaluation reads it, with the sweep's points, as a batch of one."""
    out = tmp_path_factory.mktemp("real") / "nusc_pr"
    # One keyframe makes no benchmark: it is database under either scheme.
    alone = ("--lacking", "keep", "--by-date", "--workers", "1")
    run_command("-m", "data_prep", "nusc_pr", "--raw", real_data / "nuscenes", "--out", out, *alone)
    prepared = PreparedFolder(out)
    source = einet.source(CFG, prepared, "database", training=False)
    assert len(source) == 1
    sweep = einet.source(
        ml_collections.FrozenConfigDict(configs.get_config("cvtnet")), prepared, "database", training=False
    )
    example = source.example(0, np.random.default_rng(0)) | sweep.example(0, np.random.default_rng(0))
    return {name: value[None] for name, value in example.items()}


@pytest.mark.slow
@pytest.mark.real_data
def test_real_cameras_see_the_points_of_the_sweep(real_example: dict[str, np.ndarray]) -> None:
    """Thousands in each image; all that the range image holds is the range of a point."""
    assert real_example["points"].shape[2] >= real_example["point_mask"].sum() > 34_000
    shape = (1, 6, *CFG.model.image_size)
    for camera in range(6):
        mask = np.zeros((1, 6), bool)
        mask[:, camera] = True
        _, count = depth_supervision.depth_differences(
            jnp.asarray(real_example["points"][:, 0]),
            jnp.asarray(real_example["point_mask"][:, 0]),
            jnp.ones(shape),
            jnp.asarray(real_example["intrinsics"][:, 0]),
            jnp.asarray(real_example["lidar_T_camera"][:, 0]),
            jnp.asarray(mask),
        )
        assert 1_000 < float(count[0]) < 8_000
    ranges = real_example["range_image"][0, 0, ..., 0]
    known = np.linalg.norm(real_example["points"][0, 0], axis=-1)
    filled = ranges[ranges > 0]
    assert len(filled) > 0.5 * ranges.size
    nearest = np.sort(known)[np.searchsorted(np.sort(known), filled).clip(0, len(known) - 1)]
    assert np.median(np.abs(nearest - filled)) < 0.01


@pytest.mark.slow
@pytest.mark.real_data
def test_real_keyframe_runs_through_the_full_size_network(real_example: dict[str, np.ndarray]) -> None:
    """A descriptor of length one; the cameras' depth fills the middle rows of the range image all around."""
    model = einet.model(CFG)
    batch = {name: jnp.asarray(real_example[name]) for name in einet.features(CFG)}
    few = {"xla_backend_optimization_level": 0}
    variables = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False), compiler_options=few)()
    variables["params"]["depth_decoder"]["head0"]["bias"] += -4.5  # depths of some 8 m

    @jax.jit
    def forward(variables, batch):
        return einet.predict(CFG, model.apply(variables, batch, train=False), batch)

    found = forward(variables, batch)
    assert found["descriptor"].shape == (1, 256)
    assert float(jnp.linalg.norm(found["descriptor"])) == pytest.approx(1, abs=1e-2)
    assert found["depth"].shape == (1, 6, 88, 160)
    middle = np.asarray(found["camera_range"])[0, 80:200]
    assert (middle > 0).any(axis=0).mean() > 0.95
