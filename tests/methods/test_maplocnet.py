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
from placerec_jax.ops import bev, splat
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


@pytest.mark.parametrize(
    ("settings", "published", "tolerance"),
    [
        ({"head": "fr_onestage"}, 20.7e6, 0.01),
        ({"head": "detr"}, 20.5e6, 0.05),
        ({"head": "ca"}, 20.8e6, 0.06),
        ({"map_depth": "conv5_3"}, None, None),
        ({"osm_style": "orienternet"}, None, None),
    ],
)
def test_parameters_of_the_variants(settings: dict, published: float | None, tolerance: float | None):
    """Table I's counts where the paper gives one; other variants must at least be built at its size."""
    cfg = configs.get_config("nuscenes")
    cfg.model.update(settings)
    if cfg.model.map_depth == "conv5_3":
        cfg.model.map_widths, cfg.model.map_decoder_widths = (64, 128, 256, 512, 512), (128, 128, 64, 64)
    model = maplocnet.model(cfg)
    batch = {
        name: jax.ShapeDtypeStruct((1, *feature.shape), feature.dtype)
        for name, feature in maplocnet.features(cfg).items()
    }
    variables = jax.eval_shape(lambda b: model.init(jax.random.key(0), b, train=False), batch)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    if published:
        assert parameters == pytest.approx(published, rel=tolerance)
    out = jax.eval_shape(lambda v, b: model.apply(v, b, train=False), variables, batch)
    assert out["registration"]["pose"].shape == (1, 3)
    assert ("fine" in out["map"]) == (len(maplocnet.HEADS[cfg.model.head]) == 2)


def test_voting_compares_every_pose_the_noise_can_draw():
    """61 positions a side and 41 turns at the paper's size, then a closer look of 9 x 9 x 13."""
    cfg = configs.get_config("nuscenes")
    coarse, fine = maplocnet.pose_lattices(cfg)
    assert coarse.shape == (41, 61, 61)
    assert fine.shape == (13, 9, 9)
    assert maplocnet.posterior_grid(cfg).shape == (61, 61)


HEAD_VARIANTS = {
    "two stages": {},
    "one stage": {"head": "fr_onestage"},
    "DETR": {"head": "detr"},
    "DETR, post-norm": {"head": "detr", "registration.norm": "post"},
    "CA": {"head": "ca"},
    "exhaustive": {
        "head": "exhaustive",
        # So far that the fine stage always has something to learn.
        "voting.fine_reach": 12.0,
        "voting.fine_turn": 30.0,
        "voting.fine_turn_step": 10.0,
    },
    "more fine tokens": {"fine_tokens": 16},
    "stage skip": {"stage_skip": True},
    "gradient by both ways": {"coarse_grad": "both"},
    "radians": {"pose_units": "m_rad"},
}
WHOLE_VARIANTS = {
    "exhaustive": {"head": "exhaustive"},
    "DETR": {"head": "detr"},
    "class numbers": {"osm_style": "orienternet", "head": "fr_onestage"},
    "polar_matmul": {"splat": "polar_matmul", "head": "ca"},
    "pull": {"splat": "pull", "map_padding": "replicate", "neck_align_corners": True},
}


def with_settings(settings: dict):
    """The `tiny` config with settings of its model, by dotted name."""
    cfg = configs.get_config("tiny")
    for key, value in settings.items():
        *path, last = key.split(".")
        node = cfg.model
        for name in path:
            node = node[name]
        node[last] = value
    return cfg


def drawn_offsets(cfg, count: int) -> np.ndarray:
    """(count, 3) offsets such as the noise draws."""
    noise = np.array([cfg.data.noise_xy, cfg.data.noise_xy, np.deg2rad(cfg.data.noise_yaw)])
    return (np.random.default_rng(0).uniform(-0.3, 0.3, (count, 3)) * noise).astype(np.float32)


@pytest.mark.parametrize("variant", sorted(HEAD_VARIANTS))
def test_every_head_learns_from_the_features(variant: str):
    """Finite losses; gradients reach every stage, the camera features and the map features."""
    cfg = with_settings(HEAD_VARIANTS[variant])
    model, rng = maplocnet.model(cfg), np.random.default_rng(0)

    def grid_features(grid) -> dict[str, jax.Array]:
        rows, columns = grid.shape
        shapes = {
            "coarse": (rows // 2, columns // 2, cfg.model.coarse_dim),
            "fine": (rows, columns, cfg.model.fine_dim),
        }
        return {
            name: jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32) for name, shape in shapes.items()
        }

    frame, patch = grid_features(maplocnet.bev_grid(cfg)), grid_features(maplocnet.map_grid(cfg))
    logits = {"logits": jnp.zeros((2, 1, 1, 3))}
    batch = {
        "true_pose": jnp.asarray(drawn_offsets(cfg, 2))[:, None],
        "bev_label": jnp.zeros((2, 1, 1, 3)),
        "map_label": jnp.zeros((2, 1, 1, 1, 3)),
    }

    def terms(params, frame, patch):
        stages = model.apply(
            {"params": params},
            frame,
            patch,
            train=True,
            method="register",
            rngs={"dropout": jax.random.key(1)},
        )
        found = maplocnet.loss(cfg, {"registration": stages, "frame": logits, "map": logits}, batch)
        return sum(found[name][0] for name in ("coarse", "fine") if name in found), found

    @jax.jit
    def step(frame, patch):
        params = model.init(jax.random.key(0), frame, patch, train=False, method="register")["params"]
        params = jax.tree.map(lambda p: p + 0.01, params)
        return jax.value_and_grad(terms, argnums=(0, 1, 2), has_aux=True)(params, frame, patch)

    (_, found), (gradients, to_frame, to_patch) = step(frame, patch)
    stages = ["coarse", "fine"][: len(maplocnet.HEADS[cfg.model.head])]
    assert sorted(found) == sorted([*stages, "bev", "map"])
    assert all(np.isfinite(float(total)) for total, _ in found.values())
    heard = {
        **{stage: gradients[f"localize_{stage}"] for stage in stages},
        **{f"camera {stage}": to_frame[stage] for stage in stages},
        **{f"map {stage}": to_patch[stage] for stage in stages},
    }
    for name, gradient in heard.items():
        assert np.isfinite(gradient_norm(gradient)), name
        assert gradient_norm(gradient) > 0, name


@pytest.mark.parametrize("mode", sorted(splat.MODES))
def test_every_splat_gives_the_same_shapes(mode: str):
    cfg = with_settings({"splat": mode})
    model, batch = maplocnet.model(cfg), example_batch(cfg, rows=1)
    out = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), batch, train=False)[0])
    assert out["frame"]["logits"].shape == (1, *maplocnet.bev_grid(cfg).shape, 3)


@pytest.mark.slow
@pytest.mark.parametrize("variant", sorted(WHOLE_VARIANTS))
def test_whole_variants_take_a_step(variant: str):
    """Finite losses; cameras, map and every stage are trained."""
    cfg = with_settings(WHOLE_VARIANTS[variant])
    batch = example_batch(cfg, rows=1)
    batch["true_pose"][:] = drawn_offsets(cfg, cfg.data.draws)
    model = maplocnet.model(cfg)

    def terms(params, rest):
        out, _ = model.apply(
            {"params": params, **rest},
            batch,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        found = maplocnet.loss(cfg, out, batch)
        return sum(total / jnp.maximum(weight, 1) for total, weight in found.values())

    @jax.jit
    def step():
        variables = model.init(jax.random.key(0), batch, train=False)
        params = jax.tree.map(lambda p: p + 0.01, variables.pop("params"))
        return jax.value_and_grad(terms)(params, variables)

    loss, gradients = step()
    assert np.isfinite(float(loss))
    for part in ("image_trunk", "bev_encoder", "map_trunk", "localize_coarse"):
        assert 0 < gradient_norm(gradients[part]) < np.inf, part


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


@pytest.mark.parametrize(
    ("mode", "warp", "target"), [("warp", True, False), ("target", False, True), ("both", True, True)]
)
def test_the_fine_loss_reaches_the_coarse_stage_by_the_ways_asked_for(mode: str, warp: bool, target: bool):
    """By the warp only when the fine stage reads moved features; by the target even when it reads none."""
    cfg = with_settings({"coarse_grad": mode})
    model, rng = maplocnet.model(cfg), np.random.default_rng(0)
    (rows, columns), (map_rows, map_columns) = maplocnet.bev_grid(cfg).shape, maplocnet.map_grid(cfg).shape
    m = cfg.model
    frame = {"coarse": (rows // 2, columns // 2, m.coarse_dim), "fine": (rows, columns, m.fine_dim)}
    patch = {
        "coarse": (map_rows // 2, map_columns // 2, m.coarse_dim),
        "fine": (map_rows, map_columns, m.fine_dim),
    }
    frame, patch = (
        {name: jnp.asarray(rng.normal(size=(1, *shape)), jnp.float32) for name, shape in shapes.items()}
        for shapes in (frame, patch)
    )

    @jax.jit
    def both_ways(frame, patch):
        variables = model.init(jax.random.key(0), frame, patch, train=False, method="register")
        params = jax.tree.map(lambda p: p + 0.01, variables["params"])

        def residual(params):
            stages = model.apply({"params": params}, frame, patch, train=False, method="register")
            return jnp.sum(jnp.square(stages["residual"]))

        def fine(coarse):
            stages = {"coarse": coarse, "residual": jnp.zeros_like(coarse)}
            logits = {"logits": jnp.zeros((1, 1, 1, 3))}
            batch = {
                "true_pose": jnp.ones((1, 1, 3)),
                "bev_label": jnp.zeros((1, 1, 1, 3)),
                "map_label": jnp.zeros((1, 1, 1, 1, 3)),
            }
            return maplocnet.loss(cfg, {"registration": stages, "frame": logits, "map": logits}, batch)[
                "fine"
            ][0]

        through_warp = jax.grad(residual)(params)["localize_coarse"]
        through_target = jax.grad(fine)(jnp.full((1, 3), 0.1))
        return optax.tree.norm(through_warp), optax.tree.norm(through_target)

    by_warp, by_target = both_ways(frame, patch)
    assert (float(by_warp) > 0) == warp
    assert (float(by_target) > 0) == target


@pytest.mark.parametrize(("units", "metres", "degrees"), [("m_deg", 1.0, 1.0), ("normalised", 10.0, 15.0)])
def test_pose_units_place_the_kink(tiny, units: str, metres: float, degrees: float):
    """Half a unit off costs 1/8; two units cost 1.5."""
    cfg = configs.get_config("tiny")
    cfg.model.pose_units = units
    for share, cost in ((0.5, 0.125), (2.0, 1.5)):
        off = jnp.asarray([[share * metres, share * metres, np.deg2rad(share * degrees)]], jnp.float32)
        stages = {"coarse": off}
        logits = jnp.zeros((1, 1, 1, 3))
        representations = {"registration": stages, "frame": {"logits": logits}, "map": {"logits": logits}}
        batch = {
            "true_pose": jnp.zeros((1, 1, 3)),
            "bev_label": jnp.zeros((1, 1, 1, 3)),
            "map_label": jnp.zeros((1, 1, 1, 1, 3)),
        }
        terms = maplocnet.loss(cfg, representations, batch)
        assert "fine" not in terms  # there was one stage
        total, count = terms["coarse"]
        assert float(total / count) == pytest.approx(cost, rel=1e-4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("head", "resnext", "config.model.head is 'resnext'; expected one of"),
        ("splat", "scatter", "config.model.splat is 'scatter'; expected one of"),
        ("fine_tokens", 12, "config.model.fine_tokens is 12; expected 8"),
        ("pose_units", "feet", "config.model.pose_units is 'feet'"),
        ("coarse_grad", "some", "config.model.coarse_grad is 'some'"),
        ("stage_skip", True, "belong to head 'fr'; the head is 'detr'"),
        ("osm_style", "pretty", "config.model.osm_style is 'pretty'"),
    ],
)
def test_unknown_settings_are_refused(key: str, value: object, message: str):
    cfg = configs.get_config("tiny")
    cfg.model[key] = value
    if key == "stage_skip":
        cfg.model.head = "detr"
    batch = example_batch(configs.get_config("tiny"), rows=1)

    def run():
        model = maplocnet.model(cfg)
        out = model.apply(model.init(jax.random.key(0), batch, train=False), batch, train=False)
        return maplocnet.loss(cfg, out, batch)

    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(run)


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
