"""EINet: sizes, every switch, losses by hand, what a descriptor may not depend on, impossible settings."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import einet as configs
from placerec_jax.errors import ConfigError
from placerec_jax.methods import einet
from placerec_jax.ops.rigid import rigid_inverse, rigid_matrix

ROWS = 2
RUN_FEW_TIMES = {"xla_backend_optimization_level": 0}  # compiling takes far longer than running


def tiny(**settings):
    """The tiny preset on the smallest images, two of a kind in a tuple; settings as `loss__depth=0.0`."""
    cfg = configs.get_config("tiny")
    cfg.model.image_size, cfg.data.positives, cfg.data.negatives = (32, 32), 2, 2
    cfg.model.range_image.size = (32, 36)
    cfg.model.tokens.leg_width = 64  # with few channels one may be dead from the start
    cfg.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    return ml_collections.FrozenConfigDict(cfg)


def ring(cameras: int = 6) -> np.ndarray:
    """(cameras, 4, 4) lidar_T_camera of level cameras at the LiDAR, counterclockwise from the front."""
    found = np.zeros((cameras, 4, 4))
    for camera, yaw in enumerate(2 * np.pi * np.arange(cameras) / cameras):
        forward = np.array([-np.sin(yaw), np.cos(yaw), 0.0])  # x right, y forward
        down = np.array([0.0, 0.0, -1.0])
        found[camera, :3, :3] = np.stack([np.cross(down, forward), down, forward], axis=1)
        found[camera, 3, 3] = 1.0
    return found


def random_batch(cfg, rows: int = ROWS, training: bool = True, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise on cameras in a ring, and sweeps of random points."""
    rng = np.random.default_rng(seed)
    batch = {n: np.zeros((rows, *f.shape), f.dtype) for n, f in einet.features(cfg, training).items()}
    height, width = cfg.model.image_size
    for name, value in batch.items():
        if name == "images":
            brightest = rng.integers(40, 256, (*value.shape[:2], 1, 1, 1, 1))
            batch[name] = rng.integers(0, brightest, value.shape).astype(np.uint8)
        elif name == "intrinsics":
            value[:] = [[0.7 * width, 0, width / 2], [0, 0.7 * width, height / 2], [0, 0, 1]]
        elif name == "lidar_T_camera":
            value[:] = ring()
        elif name == "points":
            direction = rng.normal(size=value.shape) * [1, 1, 0.1]
            scale = rng.uniform(4, 40, (*value.shape[:-1], 1))
            batch[name] = (scale * direction / np.linalg.norm(direction, axis=-1, keepdims=True)).astype("f")
        elif name == "range_image":
            batch[name] = rng.uniform(0, 1, value.shape).astype(np.float32)
            farthest = rng.uniform(10, 79, (*value.shape[:2], 1, 1))
            empty = rng.random(value.shape[:-1]) < 0.2
            batch[name][..., 0] = np.where(empty, -1, farthest * batch[name][..., 0])
        elif name == "ego_T_lidar":
            value[:] = np.eye(4)
        elif value.dtype == np.bool_:
            value[:] = True
    return batch


def initialised(cfg):
    """Fresh variables, every array moved a little: nothing is zero or one."""
    model, batch = einet.model(cfg), random_batch(cfg, 1, training=False)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    rng = np.random.default_rng(3)

    def draw(path, leaf):
        name = jax.tree_util.keystr(path)
        scale = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        drawn = scale * rng.normal(size=leaf.shape)
        if any(word in name for word in ("scale", "var", "reduce'", "spread'")):
            drawn = 1 + 0.2 * np.abs(drawn)
        if "head0" in name and leaf.ndim == 1:
            drawn = drawn - 5.0  # depths of some ten metres; about 0 they are of centimetres
        return jnp.asarray(drawn, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@pytest.fixture(scope="module")
def network():
    """The fused network in evaluation: (cfg, variables, compiled pass)."""
    cfg = tiny(loss__reprojection=0.0)
    model = einet.model(cfg)

    forward = jax.jit(lambda v, b: model.apply(v, b, train=False), compiler_options=RUN_FEW_TIMES)
    return cfg, initialised(cfg), forward


# --- Sizes and settings -------------------------------------------------------------------------------------


def abstract(cfg, training: bool = False):
    """(parameters, representations) of one row, by shape."""
    model = einet.model(cfg)
    batch = {
        n: jax.ShapeDtypeStruct((1, *f.shape), f.dtype) for n, f in einet.features(cfg, training).items()
    }
    variables = jax.eval_shape(lambda b: model.init(jax.random.key(0), b, train=False), batch)
    return variables["params"], jax.eval_shape(lambda v, b: model.apply(v, b, train=False), variables, batch)


def size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_paper_size():
    """Shapes of the paper's stages; ResNet-34 without its classifier, transformers 17.5 M, NetVLAD 8.5 M."""
    params, found = abstract(configs.get_config("nuscenes"), training=True)
    camera = found["camera"]
    assert camera["deepest"].shape == (1, 7, 6, 11, 20, 512)
    assert camera["depth"].shape == (1, 7, 6, 352, 640)
    assert camera["range"].shape == (1, 7, 352, 1056)
    assert camera["tokens"].shape == found["lidar"].shape == (1, 7, 1056, 256)
    assert found["descriptor"].shape == (1, 7, 256)
    assert found["pose"].shape == (1, 4, 4)
    assert size(params["image_encoder"]) == 21_797_672 - (512 * 1000 + 1000)
    cross_view = [size(params[name]) for name in params if name.startswith("cross_view")]
    assert len(cross_view) == 5
    assert sum(cross_view) == pytest.approx(17.5e6, rel=0.02)
    vlad = 512 * 64 + 64 + 512 * 64 + 512 * 64 * 256 + 256 * 256 + 256
    assert size(params["netvlad"]) == vlad


@pytest.mark.parametrize(
    ("settings", "there", "absent"),
    [
        ({}, {"images", "range_image", "points", "ego_T_lidar"}, set()),
        ({"loss__depth": 0.0}, {"images", "points", "ego_T_lidar"}, set()),
        ({"loss__depth": 0.0, "model__use_posenet": False}, {"images"}, {"points", "ego_T_lidar"}),
        ({"loss__reprojection": 0.0}, {"points"}, {"ego_T_lidar"}),
        ({"model__modality": "camera"}, {"images", "points"}, {"range_image"}),
        ({"model__modality": "lidar"}, {"range_image"}, {"images", "intrinsics", "points", "ego_T_lidar"}),
        ({"model__network": "overlap_transformer"}, {"range_image"}, {"images", "points"}),
        ({"model__network": "cvtnet"}, {"points", "point_mask"}, {"images", "range_image"}),
        ({"model__network": "lcpr"}, {"images", "camera_mask", "range_image"}, {"intrinsics", "points"}),
    ],
)
def test_nothing_is_read_that_nothing_wants(settings: dict, there: set, absent: set):
    names = set(einet.features(tiny(**settings), training=True))
    assert there | {"index"} <= names
    assert not absent & names


def test_frames_of_a_tuple_stand_in_the_first_axis():
    cfg = tiny()
    assert {f.shape[0] for f in einet.features(cfg, training=True).values()} == {1 + 2 + 2}
    assert {f.shape[0] for f in einet.features(cfg).values()} == {1}
    assert einet.features(cfg)["range_image"].shape == (1, 32, 36, 4)
    assert einet.features(tiny(model__render_rgb=False))["range_image"].shape == (1, 32, 36, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model__network": "x"}, r"network is 'x'; expected one of"),
        ({"model__modality": "radar"}, r"modality is 'radar'; expected one of"),
        ({"model__network": "lcpr", "model__modality": "lidar"}, r"the branches of a baseline are its own"),
        ({"model__image_backbone": "vgg"}, r"image_backbone is 'vgg'; expected one of"),
        ({"model__image_size": (32, 40)}, r"image_size is \(32, 40\); expected multiples of 32"),
        ({"model__range_units": "feet"}, r"range_units is 'feet'"),
        ({"model__triplet__form": "soft"}, r"triplet\.form is 'soft'"),
        ({"model__reproj_mode": "x"}, r"reproj_mode is 'x'"),
        ({"model__depth_reduction": "max"}, r"depth_reduction is 'max'"),
        ({"model__cvt__levels": (3, 5)}, r"cvt\.levels is \(3, 5\); expected different numbers from 0"),
        ({"model__decoder_channels": (4, 4)}, r"decoder_channels is \(4, 4\); expected 5"),
        ({"model__range_image__fov_up": -40.0}, r"range_image: SphericalGrid: elevations"),
        ({"model__range_image__lidar_leg": "leg352"}, r"leg352.* is for 352 rows; the range image has 32"),
        ({"model__range_image__size": (1, 36)}, r"1 x 36; expected at least 2 rows"),
        ({"data__negatives": 0}, r"data\.negatives is 0; expected at least 1"),
    ],
)
def test_settings_that_cannot_be_are_named(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        einet.features(tiny(**settings))


def test_loss_terms_that_do_not_exist_are_named():
    cfg = configs.get_config("tiny")
    cfg.loss = ml_collections.ConfigDict({"triplet": 1.0, "color": 1.0})
    with pytest.raises(ConfigError, match=r"config\.loss has the terms \['color', 'triplet'\]"):
        einet.features(cfg)


def test_published_weights_are_for_published_encoders_alone():
    assert einet.pretrained(configs.get_config("nuscenes"))["image_encoder"].layouts
    assert not einet.pretrained(tiny())["image_encoder"].layouts
    assert einet.pretrained(tiny(model__modality="lidar")) == {}
    assert einet.pretrained(configs.get_config("cvtnet")) == {}
    assert einet.pretrained(configs.get_config("lcpr"))["network"].layouts


@pytest.mark.parametrize("row", configs.ABLATIONS["variants"])
def test_every_row_of_the_ablation_can_be_set_and_its_published_row_exists(row: str):
    settings, name = configs.ABLATIONS["variants"][row]
    cfg = configs.get_config("ablation")
    cfg.update_from_flattened_dict(settings)
    assert einet.features(cfg, training=True)
    assert name is None or name in {(published["table"], published["model"]) for published in einet.PUBLISHED}


# --- Every switch, one step ---------------------------------------------------------------------------------

_SWITCHES = {
    "as the code": {},
    "as printed": {
        "model.triplet.form": "paper",
        "model.depth_reduction": "sum",
        "model.reproj_mode": "sample",
        "model.range_units": "metres",
        "model.cvt.levels": (0, 4),
        "model.cvt.blocks": 2,
        "model.remat": True,
    },
    "rL": {"loss.depth": 0.0, "model.use_posenet": False, "model.cvt.levels": ()},
    "rC": {"model.render_rgb": False, "loss.reprojection": 0.0},
    "camera": {"model.modality": "camera"},
    "lidar": {"model.modality": "lidar"},
    **{name: {"model.network": name} for name in einet.NETWORKS if name != "einet"},
}


@pytest.mark.parametrize("switch", _SWITCHES)
def test_every_switch_takes_one_step(switch: str):
    """A finite loss; every parameter has a gradient, and no gradient is anything but finite."""
    cfg = tiny(**{key.replace(".", "__"): value for key, value in _SWITCHES[switch].items()})
    model, batch, variables = einet.model(cfg), random_batch(cfg), initialised(cfg)

    def total(params):
        found, _ = model.apply({**variables, "params": params}, batch, train=True, mutable=["batch_stats"])
        terms = einet.loss(cfg, found, batch)
        assert set(terms) == set(cfg.loss)
        return sum(cfg.loss[name] * s / jnp.maximum(w, 1e-12) for name, (s, w) in terms.items()), terms

    step = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=RUN_FEW_TIMES)
    (value, terms), gradient = step(variables["params"])
    assert np.isfinite(value)
    camera = "camera" in einet.branches_of(cfg)
    assert float(terms["triplet"][1]) == ROWS
    assert bool(terms["depth"][1]) == (camera and cfg.loss.depth > 0)
    assert bool(terms["reprojection"][1]) == ("pose_net" in variables["params"])
    dead = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        if not np.abs(leaf).max():
            dead.append(name)
    assert not dead


# --- Losses by hand -----------------------------------------------------------------------------------------


def test_triplet_takes_the_query_first_then_positives_then_negatives():
    """Squared distances (.2, .6) and (.3, .9), margin .5: hinge .8 + .2, as printed 2·1.1 − 1.2."""
    cfg = tiny(loss__depth=0.0, loss__reprojection=0.0)
    distances = np.sqrt([0.0, 0.2, 0.6, 0.3, 0.9])
    descriptors = jnp.asarray(np.stack([distances, 0 * distances], axis=-1)[None].repeat(3, 0), jnp.float32)
    total, weight = einet.loss(cfg, {"descriptor": descriptors}, {})["triplet"]
    assert (float(total), float(weight)) == (pytest.approx(3 * 1.0, rel=1e-5), 3.0)
    printed = tiny(loss__depth=0.0, loss__reprojection=0.0, model__triplet__form="paper")
    total, _ = einet.loss(printed, {"descriptor": descriptors}, {})["triplet"]
    assert float(total) == pytest.approx(3 * (2 * 1.1 - 1.2), rel=1e-5)


def test_single_frames_have_no_loss():
    cfg = tiny()
    terms = einet.loss(cfg, {"descriptor": jnp.ones((2, 1, 4))}, {})
    assert {name: (float(s), float(w)) for name, (s, w) in terms.items()} == dict.fromkeys(
        einet.TERMS, (0, 0)
    )


def one_point_batch(cfg, rows: int = 1) -> dict[str, np.ndarray]:
    """Every frame's sweep is one point, 10 m ahead in the middle of the first camera's picture."""
    batch = random_batch(cfg, rows)
    batch["points"][:] = 0
    batch["points"][..., 0, :] = [0.0, 10.0, 0.0]
    batch["point_mask"][:] = False
    batch["point_mask"][..., 0] = True
    return batch


@pytest.mark.parametrize(("reduction", "value"), [("mean", 3.0), ("sum", 3.0)])
def test_depth_is_compared_where_the_point_is_seen(reduction: str, value: float):
    """Depth of 7 m everywhere against a point at 10 m: one camera sees it, in each of 2 x 5 frames."""
    cfg = tiny(model__depth_reduction=reduction, loss__reprojection=0.0)
    batch = one_point_batch(cfg, rows=2)
    depth = jnp.full((2, 5, 6, *cfg.model.image_size), 7.0)
    found = {"descriptor": jnp.ones((2, 5, 4)), "camera": {"depth": depth}}
    total, weight = einet.loss(cfg, found, batch)["depth"]
    assert (float(total), float(weight)) == (pytest.approx(10 * value), 10.0)
    batch["point_mask"][:, 1:] = False  # nothing is seen in four of five frames
    total, weight = einet.loss(cfg, found, batch)["depth"]
    assert (float(total), float(weight)) == (pytest.approx(2 * value), {"mean": 2.0, "sum": 10.0}[reduction])


@pytest.mark.parametrize("mode", ["scatter", "sample"])
def test_reprojection_is_of_the_pose_between_the_cars(mode: str):
    """The positive's sweep is the query's, seen from elsewhere: the true pose of the cars explains it, with
    a LiDAR that is mounted turned and ahead; standing still does not."""
    cfg = tiny(
        model__reproj_mode=mode, loss__depth=0.0, model__range_image__size=(32, 264), model__points=4096
    )
    batch = random_batch(cfg, 1)
    rng = np.random.default_rng(1)
    yaw, height = rng.uniform(-np.pi, np.pi, 4096), rng.uniform(-3, 1, 4096)
    room = np.stack([20 * np.cos(yaw), 20 * np.sin(yaw), height], axis=-1)  # a round wall about the query
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    ego_T_lidar = rigid_matrix(turn, np.array([1.0, 0, 1.8]))
    query_T_positive = rigid_matrix(np.eye(3), np.array([2.0, -1.0, 0.0]))
    to_positive = rigid_inverse(ego_T_lidar) @ rigid_inverse(query_T_positive) @ ego_T_lidar
    batch["ego_T_lidar"][:] = ego_T_lidar
    batch["points"][:, 0], batch["point_mask"][:] = room, True
    batch["points"][:, 1] = room @ to_positive[:3, :3].T + to_positive[:3, 3]

    def mean(pose):
        found = {"descriptor": jnp.ones((1, 5, 4)), "pose": jnp.asarray(pose, jnp.float32)[None]}
        total, weight = einet.loss(cfg, found, batch)["reprojection"]
        assert weight > 100
        return float(total / weight)

    assert mean(query_T_positive) < 0.02
    assert mean(np.eye(4)) > 0.5


# --- What a descriptor does not depend on, and what it does -------------------------------------------------


def test_descriptors_have_length_one_and_are_those_of_their_frames(network):
    cfg, variables, forward = network
    batch = random_batch(cfg, 3, training=False)
    found = forward(variables, batch)["descriptor"]
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
    swapped = forward(variables, {name: value[::-1] for name, value in batch.items()})["descriptor"]
    np.testing.assert_allclose(swapped[::-1], found, atol=2e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-4


def test_order_of_the_sweeps_columns_does_not_matter_their_content_does(network):
    """A turn of the sensor shifts columns: no change, nor under any permutation; other ranges change it."""
    cfg, variables, forward = network
    batch = random_batch(cfg, 3, training=False)
    found = np.asarray(forward(variables, batch)["descriptor"])
    image = batch["range_image"]
    order = np.random.default_rng(0).permutation(image.shape[3])
    for changed in (np.roll(image, 7, axis=3), image[:, :, :, order]):
        same = forward(variables, {**batch, "range_image": changed})["descriptor"]
        np.testing.assert_allclose(same, found, atol=2e-6)
    other = image.copy()
    other[:, :, :, 3:9] = 0.0
    assert np.abs(forward(variables, {**batch, "range_image": other})["descriptor"] - found).max() > 2e-5


def test_a_missing_camera_is_not_looked_at(network):
    """Neither its pixels nor its calibration change anything; that it is missing does."""
    cfg, variables, forward = network
    batch = random_batch(cfg, 3, training=False)
    whole = forward(variables, batch)["descriptor"]
    batch = {**batch, "camera_mask": batch["camera_mask"].copy()}  # a pass may still be reading the other
    batch["camera_mask"][:, :, 2] = False
    found = forward(variables, batch)["descriptor"]
    other = {name: value.copy() for name, value in batch.items()}
    other["images"][:, :, 2] = 255
    other["intrinsics"][:, :, 2] = np.eye(3)
    other["lidar_T_camera"][:, :, 2] = np.eye(4)
    np.testing.assert_allclose(forward(variables, other)["descriptor"], found, atol=2e-6)
    assert np.abs(found - whole).max() > 2e-5
    none = {**batch, "camera_mask": np.zeros_like(batch["camera_mask"])}
    assert np.isfinite(forward(variables, none)["descriptor"]).all()


def test_depth_learns_from_its_points_and_from_retrieval(network):
    """λ_d = 0 leaves the decoder what retrieval teaches it, through the range image."""
    cfg, variables, _ = network
    model, batch = einet.model(cfg), random_batch(cfg)

    def loss_of(term):
        def value(params):
            found = model.apply({**variables, "params": params}, batch, train=False)
            total, weight = einet.loss(cfg, found, batch)[term]
            return total / weight

        return jax.jit(jax.grad(value), compiler_options=RUN_FEW_TIMES)

    def largest(tree) -> float:
        return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(tree))

    by_points, by_places = (loss_of(term)(variables["params"]) for term in ("depth", "triplet"))
    assert largest(by_points["depth_decoder"]) > 0
    assert largest(by_places["depth_decoder"]) > 0
    for name in ("camera_tokens", "lidar_tokens", "fusion", "netvlad"):
        assert largest(by_points[name]) == 0
        assert largest(by_places[name]) > 0


def test_a_fresh_network_predicts_the_depth_it_is_told_to_start_with():
    cfg = tiny(model__depth_start=12.0, model__cvt__levels=())
    model, batch = einet.model(cfg), random_batch(cfg, 1, training=False)
    batch["intrinsics"][..., 0, 0] = 500 * 32 / 640  # the focal length that metres are defined for
    run = jax.jit(
        lambda: model.init_with_output(jax.random.key(0), batch, train=False)[0]["camera"]["depth"],
        compiler_options=RUN_FEW_TIMES,
    )
    assert 6 < np.median(run()) < 24
    with pytest.raises(ConfigError, match=r"start is 90\.0 m; expected a depth between 0\.1 and 80"):
        abstract(tiny(model__depth_start=90.0))


def test_predictions_are_of_the_frame_with_pictures_of_the_cameras(network):
    cfg, variables, forward = network
    batch = random_batch(cfg, 3, training=False)
    batch["index"][:, 0] = [4, 5, 6]
    found = forward(variables, batch)
    predicted = einet.predict(cfg, found, batch)
    np.testing.assert_array_equal(predicted["descriptor"], found["descriptor"][:, 0])
    np.testing.assert_array_equal(predicted["index"], [4, 5, 6])
    assert predicted["camera_range"].shape == (3, *einet.camera_grid(cfg).shape)
    assert predicted["depth"].shape == (3, 6, 8, 8)
    assert set(np.unique(predicted["camera_range"] > 0)) == {False, True}
    assert predicted["depth"].min() > 0.05
