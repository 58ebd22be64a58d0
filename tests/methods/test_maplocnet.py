"""MapLocNet: shapes, counts, losses and gradients, the sign of the pose, and learning."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import maplocnet as configs
from placerec_jax.data.map_patch import LocationRaster
from placerec_jax.errors import ConfigError
from placerec_jax.methods import maplocnet
from placerec_jax.ops import bev
from placerec_jax.ops.rigid import se2_compose, se2_inverse


def example_batch(cfg, rows: int, training: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Random images seen by a plausible rig, random maps, random offsets."""
    rng = np.random.default_rng(seed)

    def values(feature: jax.ShapeDtypeStruct) -> np.ndarray:
        shape = (rows, *feature.shape)
        if feature.dtype == np.uint8:
            return rng.integers(0, 2, shape).astype(np.uint8)
        if feature.dtype == np.bool_:
            return np.ones(shape, np.bool_)
        return rng.normal(size=shape).astype(feature.dtype)

    batch = {name: values(feature) for name, feature in maplocnet.features(cfg, training).items()}
    batch["images"] = rng.integers(0, 256, batch["images"].shape).astype(np.uint8)
    height, width = cfg.model.image_size
    batch["intrinsics"][:] = [[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]]
    for camera, degrees in enumerate((55, 0, -55, 110, 180, -110)[: cfg.model.num_cameras]):
        cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
        turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        batch["ego_T_camera"][:, camera] = np.eye(4)
        batch["ego_T_camera"][:, camera, :3, :3] = turn @ [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
        batch["ego_T_camera"][:, camera, 2, 3] = 1.5
    return batch


@pytest.fixture(scope="module")
def tiny():
    """Config, jitted evaluation (variables, batch), variables and a batch of 2 frames with 2 draws each."""
    cfg = configs.get_config("tiny")
    batch = example_batch(cfg, rows=2)
    model = maplocnet.model(cfg)
    variables = jax.jit(lambda: model.init(jax.random.key(0), batch, train=False))()
    return cfg, jax.jit(lambda variables, batch: model.apply(variables, batch, train=False)), variables, batch


@pytest.mark.parametrize(("arg", "cameras"), [("nuscenes", 6), ("nuscenes_front", 1)])
def test_paper_size_shapes_and_parameters(arg: str, cameras: int):
    """22.77 M parameters within 0.5 %, and the tensors of the paper's Figure 2; nothing is computed."""
    cfg = configs.get_config(arg)
    model = maplocnet.model(cfg)
    batch = {
        name: jnp.zeros((2, *feature.shape), feature.dtype)
        if name == "index"
        else jax.ShapeDtypeStruct((2, *feature.shape), feature.dtype)
        for name, feature in maplocnet.features(cfg).items()
    }
    assert batch["images"].shape == (2, cameras, 128, 352, 3)
    variables = jax.eval_shape(lambda b: model.init(jax.random.key(0), b, train=False), batch)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert parameters == pytest.approx(22.77e6, rel=0.005)
    trunk = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["image_trunk"]))
    assert trunk == 3_595_388
    out = jax.eval_shape(lambda v, b: model.apply(v, b, train=False), variables, batch)
    assert out["frame"]["coarse"].shape == (2, 128, 64, 64)
    assert out["frame"]["fine"].shape == (2, 256, 128, 32)
    assert out["map"]["coarse"].shape == (2, 128, 128, 64)
    assert out["map"]["fine"].shape == (2, 256, 256, 32)
    assert out["frame"]["logits"].shape == (2, 256, 128, 3)
    assert out["registration"]["pose"].shape == (2, 3)


def test_training_starts_at_the_identity(tiny):
    _, forward, variables, batch = tiny
    out = forward(variables, batch)
    np.testing.assert_array_equal(out["registration"]["pose"], np.zeros((4, 3)))


def test_losses_by_hand(tiny):
    """Smooth-L1 in metres and degrees on composed residuals; cross-entropy of zero logits is ln 2."""
    cfg, *_ = tiny
    coarse = np.array([[1.0, -2.0, np.deg2rad(5.0)]], np.float32)
    true = np.array([[1.4, -5.0, np.deg2rad(3.0)]], np.float32)
    representations = {
        "registration": {"coarse": jnp.asarray(coarse), "residual": jnp.zeros((1, 3))},
        "frame": {"logits": jnp.zeros((1, 4, 2, 3))},
        "map": {"logits": jnp.zeros((1, 4, 4, 3))},
    }
    batch = {
        "true_pose": jnp.asarray(true)[:, None],
        "bev_label": jnp.ones((1, 4, 2, 3), jnp.uint8),
        "map_label": jnp.zeros((1, 1, 4, 4, 3), jnp.uint8),
    }
    terms = {
        name: float(s) / float(w) for name, (s, w) in maplocnet.loss(cfg, representations, batch).items()
    }
    smooth = lambda x: 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5  # noqa: E731
    assert terms["coarse"] == pytest.approx((smooth(0.4) + smooth(3.0) + smooth(2.0)) / 3, rel=1e-4)
    left = se2_compose(true.astype(float), se2_inverse(coarse.astype(float)))[0]
    expected = (smooth(left[0]) + smooth(left[1]) + smooth(np.rad2deg(left[2]))) / 3
    assert terms["fine"] == pytest.approx(expected, rel=1e-4)
    assert terms["bev"] == pytest.approx(np.log(2), rel=1e-5)
    assert terms["map"] == pytest.approx(np.log(2), rel=1e-5)


def test_turns_are_compared_across_the_seam(tiny):
    cfg, *_ = tiny
    pose = lambda degrees: jnp.asarray([[0.0, 0.0, np.deg2rad(degrees)]])  # noqa: E731
    representations = {
        "registration": {"coarse": pose(-179.5), "residual": jnp.zeros((1, 3))},
        "frame": {"logits": jnp.zeros((1, 1, 1, 3))},
        "map": {"logits": jnp.zeros((1, 1, 1, 3))},
    }
    batch = {
        "true_pose": pose(179.5)[:, None],
        "bev_label": jnp.zeros((1, 1, 1, 3)),
        "map_label": jnp.zeros((1, 1, 1, 1, 3)),
    }
    total, _ = maplocnet.loss(cfg, representations, batch)["coarse"]
    assert float(total) == pytest.approx(0.5, abs=1e-3)


def gradient_norm(tree) -> float:
    return float(optax.tree.norm(tree))


@pytest.mark.parametrize(("term", "silent"), [("fine", "localize_coarse"), ("coarse", "localize_fine")])
def test_each_pose_loss_trains_its_own_stage(tiny, term: str, silent: str):
    """The fine loss sends nothing into the coarse stage, neither through its target nor through the warp."""
    cfg, forward, variables, batch = tiny
    # The last layers start at zero; anything else shows what flows.
    params = jax.tree.map(lambda p: p + 0.01, variables["params"])

    def objective(params):
        out = forward({**variables, "params": params}, batch)
        return maplocnet.loss(cfg, out, batch)[term][0]

    gradients = jax.jit(jax.grad(objective))(params)
    heard = {"localize_coarse": "localize_fine", "localize_fine": "localize_coarse"}[silent]
    assert gradient_norm(gradients[silent]) == 0.0
    assert gradient_norm(gradients[heard]) > 0.0
    assert gradient_norm(gradients["image_trunk"]) > 0.0


def test_unknown_image_trunk_is_refused():
    cfg = configs.get_config("tiny")
    cfg.model.image_trunk.name = "resnext"
    model, batch = maplocnet.model(cfg), example_batch(cfg, rows=1)
    with pytest.raises(ConfigError, match="'resnext'; expected 'efficientnet_b0' or 'resnet'"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))


def test_masked_camera_is_not_seen(tiny):
    _, forward, variables, batch = tiny
    masked = {**batch, "camera_mask": batch["camera_mask"].copy()}
    masked["camera_mask"][:, 2] = False
    other = {**masked, "images": masked["images"].copy()}
    other["images"][:, 2] = 255 - other["images"][:, 2]
    seen = lambda batch: forward(variables, batch)["frame"]["logits"]  # noqa: E731
    np.testing.assert_array_equal(seen(masked), seen(other))
    assert np.abs(seen(masked) - seen(batch)).max() > 0


def test_one_compilation_serves_every_draw(tiny):
    """Camera drop and noise change values, never shapes."""
    cfg, forward, variables, batch = tiny
    forward(variables, batch)
    compiled = forward._cache_size()
    for seed in range(3):
        other = example_batch(cfg, rows=2, seed=seed)
        other["camera_mask"][:, seed] = False
        forward(variables, other)
    assert forward._cache_size() == compiled


@pytest.mark.parametrize("seed", range(4))
def test_bev_label_moved_by_the_true_pose_is_the_map_label(seed: int):
    """The sign of everything: warp(BEV label, T) equals the noisy patch's label where both see the ground."""
    cfg = configs.get_config("nuscenes")
    rng = np.random.default_rng(seed)
    raster = np.zeros((1200, 1200, 4), np.uint8)
    for _ in range(250):
        row, column = rng.integers(0, 1150, 2)
        height, width = rng.integers(10, 50, 2)
        raster[row : row + height, column : column + width, rng.integers(4)] = 1
    location = LocationRaster(raster, np.array([0.0, 0.0]), 0.5)
    map_pose_ego = np.array([300.0, 300.0, rng.uniform(-np.pi, np.pi)])
    offset = rng.uniform(-1, 1, 3) * [30.0, 30.0, np.deg2rad(30.0)]
    map_pose_noisy = se2_compose(map_pose_ego, se2_inverse(offset))
    classes = (3, 1, 2)
    source, target = maplocnet.bev_grid(cfg), maplocnet.map_grid(cfg)
    bev_label = location.sample_nearest(source, map_pose_ego, classes)
    map_label = location.sample_nearest(target, map_pose_noisy, classes)
    pose = jnp.asarray(offset, jnp.float32)[None]
    moved = bev.warp_se2(jnp.asarray(bev_label, jnp.float32)[None], pose, source, target)[0] > 0.5
    seen = bev.warp_se2(jnp.ones((1, *source.shape, 1)), pose, source, target)[0] > 0.99
    label = (map_label > 0) & np.asarray(seen)
    moved = np.asarray(moved & seen)
    assert label.sum() > 1000
    assert (label & moved).sum() / (label | moved).sum() > 0.95
