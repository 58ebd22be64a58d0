"""SaliencyI2PLoc: sizes and settings, losses by hand and over devices, bad input, augmentation of pairs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import saliency_i2ploc as configs
from data_prep.i2p_records import IMAGES
from placerec_jax.errors import ConfigError
from placerec_jax.methods import saliency_i2ploc as i2p
from placerec_jax.ops import contrastive, relations
from placerec_jax.training.optimizer import make_optimizer, make_schedule, split_parameters
from placerec_jax.training.sharding import leaf_name

ROWS = 4
DATASETS = Path(__file__).resolve().parents[2] / "docs" / "datasets.md"


def tiny(**settings):
    """The tiny preset, a block less and with the paper's temperature; settings as
    `model__saliency__enabled=False`."""
    cfg = configs.get_config("tiny")
    cfg.model.points.depth = 1
    cfg.model.contrast.temperature, cfg.model.contrast.learnable = 0.07, False
    cfg.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    return cfg


def random_batch(cfg, rows: int = ROWS, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    batch = {n: np.zeros((rows, *f.shape), f.dtype) for n, f in i2p.features(cfg).items()}
    batch["image"] = rng.integers(0, 256, batch["image"].shape, dtype=np.uint8)
    batch["points"] = rng.uniform(-20, 20, batch["points"].shape).astype(np.float32)
    batch["point_mask"][:] = True
    batch["position"] = rng.uniform(-500, 500, (rows, 2)).astype(np.float32)
    batch["index"] = np.arange(rows, dtype=np.int32)
    return batch


def shaken(variables, seed: int = 1):
    """Variables as if trained: nothing is zero or one, running variances stay positive."""
    rng = np.random.default_rng(seed)

    def shake(path, x):
        moved = x + 0.2 * rng.normal(size=x.shape).astype(np.float32)
        return np.abs(moved) + 0.1 if "var" in jax.tree_util.keystr(path) else moved

    return jax.tree_util.tree_map_with_path(shake, variables)


def initialised(cfg):
    model = i2p.model(cfg)
    batch = random_batch(cfg, rows=1)
    return shaken(jax.jit(lambda b: model.init(jax.random.key(0), b, train=False))(batch))


def representations(cfg, variables, batch):
    return jax.jit(lambda v, b: i2p.model(cfg).apply(v, b, train=False))(variables, batch)


@pytest.fixture(scope="module")
def network():
    cfg = tiny()
    return cfg, initialised(cfg)


def abstract(cfg):
    model = i2p.model(cfg)
    batch = {n: jax.ShapeDtypeStruct((1, *f.shape), f.dtype) for n, f in i2p.features(cfg).items()}
    return jax.eval_shape(lambda b: model.init(jax.random.key(0), b, train=False), batch)["params"]


# --- Sizes and settings -------------------------------------------------------------------------------------


def test_paper_size():
    """ViT-S/16 at 32 x 64 patches; twelve blocks of width 384, no qkv bias; NetVLAD of 64 clusters."""
    cfg = configs.get_config("released")
    params = abstract(cfg)
    count = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in params.items()}
    block = (
        4 * 384 * 384 + 2 * 384 * 4 * 384 + 4 * 384 + 384 + 4 * 384 + 384
    )  # weights; biases but qkv's; norms
    assert count["image_encoder"] == (
        12 * (block + 3 * 384) + 16 * 16 * 3 * 384 + 384 + 384 + (1 + 2048) * 384 + 2 * 384
    )
    position = 3 * 128 + 128 + 128 * 384 + 384
    assert count["point_transformer"] == 12 * block + position + 2 * 384 + 2 * 384
    vlad = 2 * 384 * 64 + 64 * 384 * 256 + 256 * 256 + 2 * (64 + 256 + 256)
    assert count["image_aggregator"] == count["cloud_aggregator"] == vlad
    pointnet = (
        (3 * 128 + 128) + 2 * 128 + (128 * 256 + 256) + (512 * 512 + 512) + 2 * 512 + (512 * 1024 + 1024)
    )
    assert count["point_tokenizer"] == pointnet + 1024 * 384 + 384
    assert set(count) == {
        "image_encoder",
        "image_aggregator",
        "point_tokenizer",
        "point_transformer",
        "cloud_aggregator",
    }


@pytest.mark.parametrize(("preset", "frozen"), [("released", range(8)), ("kitti", range(12))])
def test_first_blocks_are_frozen_and_nothing_else(preset: str, frozen: range):
    cfg = configs.get_config(preset)
    kept = jax.tree_util.tree_leaves_with_path(split_parameters(cfg.optimizer, abstract(cfg))[1])
    blocks = {leaf_name(path).split("/")[1] for path, _ in kept}
    assert blocks == {f"blocks_{i}" for i in frozen}
    assert {leaf_name(path).split("/")[0] for path, _ in kept} == {"image_encoder"}
    assert len(kept) == 12 * len(frozen)


def test_variants_are_the_losses_and_saliency_of_their_names():
    weights = {
        "released": {"relation_a": 2.0},
        "contrast_only": {},
        "contrast_E": {"relation_e": 2.0},
        "contrast_H": {"relation_h": 2.0},
        "paper_EH": {"relation_e": 2.0, "relation_h": 2.0},
    }
    for variant, expected in weights.items():
        for suffix, saliency in (("", True), ("_nosal", False)):
            cfg = configs.get_config(variant + suffix)
            assert {n: w for n, w in cfg.loss.items() if w} == {"nce": 1.0, **expected}
            assert cfg.model.saliency.enabled == saliency
            row, _ = configs.ABLATIONS["losses"][variant + suffix]
            again = configs.get_config("cpu")
            again.update_from_flattened_dict(row)
            assert again.loss == cfg.loss
            assert again.model.saliency.enabled == saliency


def test_released_decays_aggregators_by_their_rate_and_the_others_do_not():
    decay = {name: dict(configs.get_config(name).optimizer.groups) for name in ("released", "kitti360")}
    assert dict(decay["released"]["aggregator/"])["weight_decay"] == 5e-4
    assert dict(decay["kitti360"]["aggregator/"])["weight_decay"] == 1e-3


@pytest.mark.parametrize("name", ["netvlad_original", "gem", "mean", "cls", "smd"])
def test_every_aggregator_is_built(name: str):
    cfg = tiny(model__image_aggregator=name, model__cloud_aggregator=name)
    assert {"image_aggregator", "cloud_aggregator"} <= set(abstract(cfg))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model__image__size": (64, 120)}, r"image\.size is 64 × 120; expected multiples of the patch"),
        ({"model__image__variant": "vit"}, r"image\.variant is 'vit'; expected one of"),
        ({"model__image__normalisation": "x"}, r"normalisation is 'x'; expected one of"),
        ({"model__saliency__squash": "x"}, r"saliency\.squash is 'x'"),
        ({"model__saliency__source": "x"}, r"saliency\.source is 'x'"),
        ({"model__saliency__reduce": "x"}, r"saliency\.reduce is 'x'"),
        ({"model__saliency__keep": 0.0}, r"saliency\.keep is 0\.0; expected a share"),
        ({"model__points__fps_start": "x"}, r"points\.fps_start is 'x'"),
        ({"model__points__groups": 257}, r"points\.groups is 257; expected 1 to .* \(256\)"),
        ({"model__points__k": 0}, r"points\.k is 0; expected 1 to"),
        ({"model__points__heads": 3}, r"points\.heads is 3; expected a divisor of width \(16\)"),
        ({"model__contrast__form": "x"}, r"contrast\.form is 'x'"),
        ({"model__contrast__temperature": 0.0}, r"contrast\.temperature is 0\.0; expected more than 0"),
        (
            {"model__contrast__temperature": 0.005, "model__contrast__learnable": True},
            r"temperature is 0\.005; one that is learned stays at 0\.01 or above",
        ),
        ({"model__image__position_init": "x"}, r"position_init is 'x'"),
        ({"model__points__position_std": 0.0}, r"position_std is 0\.0; expected more than 0"),
        ({"model__relation__curvature": 0.0}, r"relation\.curvature is 0\.0"),
        ({"model__image_aggregator": "x"}, r"image_aggregator is 'x'"),
        ({"model__cloud_aggregator": "cls", "model__discard_cls": True}, r"cloud_aggregator is 'cls', which"),
        ({"train__batch_size": 2}, r"config\.loss\.relation_a compares .* a loss sees 2 .* at least 3"),
        (
            {"train__batch_size": 8, "train__accumulate": 4, "train__gradients": "accumulated"},
            r"a loss sees 2 .*expected at least 3, or --config\.loss\.relation_a=0",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        i2p.features(tiny(**settings))


def test_small_batches_are_fine_without_relations_and_with_cached_gradients():
    i2p.features(tiny(train__batch_size=2, loss__relation_a=0.0))
    i2p.features(tiny(train__batch_size=8, train__accumulate=4, train__gradients="cached"))


@pytest.mark.parametrize("gradients", ["accumulated", "cached"])
def test_a_pair_alone_cannot_be_normalised(gradients: str):
    """NetVLAD's batch normalisation makes zeros of it, whatever the loss sees."""
    alone = {"train__batch_size": 8, "train__accumulate": 8, "train__gradients": gradients}
    with pytest.raises(ConfigError, match=r"accumulate 8; expected at least 2 pairs .* image_aggregator"):
        i2p.features(tiny(loss__relation_a=0.0, **alone))
    plain = {"model__image_aggregator": "mean", "model__cloud_aggregator": "mean"}
    i2p.features(tiny(loss__relation_a=0.0, **(alone | plain | {"train__gradients": "cached"})))
    with pytest.raises(ConfigError, match=r"one has no negatives"):
        i2p.features(tiny(loss__relation_a=0.0, **(alone | plain | {"train__gradients": "accumulated"})))
    i2p.features(tiny(train__accumulate=0, train__gradients="accumulated"))  # the trainer refuses it


@pytest.mark.parametrize(
    ("preset", "kind"), [("kitti360", "pano"), ("kitti360_persp", "image_00"), ("kitti", "image_2")]
)
def test_presets_read_images_as_they_are_converted(preset: str, kind: str):
    """Sizes of the converter's default, in the folder that its documentation names."""
    cfg = configs.get_config(preset)
    assert cfg.data.image_kind == kind
    assert tuple(cfg.model.image.size) == IMAGES[kind].size
    assert f"--out {cfg.data.root}\n" in DATASETS.read_text().replace(" --workers 16", "")


@pytest.mark.parametrize(
    ("preset", "image", "points", "aggregators", "decay"),
    [
        ("kitti360", 1e-4, 1e-5, 5e-4, 1e-3),
        ("released", 1e-4, 1e-5, 5e-4, 5e-4),
        ("kitti360_persp", 5e-5, 5e-6, 1e-5, 1e-3),
        ("kitti", 1e-5, 1e-6, 5e-5, 1e-3),
    ],
)
def test_parts_learn_at_the_rates_of_the_recipe(
    preset: str, image: float, points: float, aggregators: float, decay: float
):
    """The first update of weights 1 under a gradient of 1 is the rate times (1 + decay)."""
    optimizer = configs.get_config(preset).optimizer
    optimizer.warmup_epochs = 0
    rates = {
        "image_encoder": (image, 1e-3),
        "point_tokenizer": (points, 1e-3),
        "point_transformer": (points, 1e-3),
        "image_aggregator": (aggregators, decay),
        "cloud_aggregator": (aggregators, decay),
    }
    params = {part: {"norm": {"scale": np.ones(1, np.float32)}} for part in rates}
    params["image_encoder"]["blocks_0"] = {"scale": np.ones(1, np.float32)}
    trained, _ = split_parameters(optimizer, params)
    tx = make_optimizer(optimizer, make_schedule(optimizer, 100))
    updates, _ = tx.update(trained, tx.init(params), params)
    for part, (rate, its_decay) in rates.items():
        found = updates[part]["norm"]["scale"]
        np.testing.assert_allclose(found, -rate * (1 + its_decay), rtol=1e-5, err_msg=part)
    assert updates["image_encoder"]["blocks_0"]["scale"] is None


def test_unknown_loss_is_named():
    cfg = tiny()
    cfg.loss.triplet = 1.0
    with pytest.raises(ConfigError, match=r"config\.loss has the terms .*'triplet'.*; expected"):
        i2p.features(cfg)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"model__image_encoder_weights": "vit.bin"}, {"image_encoder"}),
        (
            {"model__checkpoint_weights": "best.pth"},
            {"image_encoder", "point_tokenizer", "point_transformer", "image_aggregator", "cloud_aggregator"},
        ),
    ],
)
def test_published_names_are_those_of_all_arrays(settings: dict, parts: set[str]):
    cfg = tiny(**settings)
    found = i2p.pretrained(cfg)
    assert set(found) == parts
    model = i2p.model(cfg)
    batch = {n: jax.ShapeDtypeStruct((1, *f.shape), f.dtype) for n, f in i2p.features(cfg).items()}
    variables = jax.eval_shape(lambda b: model.init(jax.random.key(0), b, train=False), batch)
    for part, weights in found.items():
        assert weights.path in ("vit.bin", "best.pth")
        assert weights.setting.endswith("_weights")
        ours = {
            f"{kind}/{leaf_name(path)}"
            for kind, tree in variables.items()
            for path, _ in jax.tree_util.tree_leaves_with_path(tree.get(part, {}))
        }
        for layout in weights.layouts:
            assert set(layout.names) == ours, (part, layout.library)


def test_frozen_blocks_need_weights():
    for preset in ("released", "kitti", "paper_EH_nosal"):
        cfg = configs.get_config(preset)
        with pytest.raises(ConfigError, match=r"image_encoder_weights is empty .* would stay random"):
            i2p.pretrained(cfg)
        cfg.model.image_encoder_weights = "vit.bin"
        assert i2p.pretrained(cfg)["image_encoder"].path == "vit.bin"
    assert not i2p.pretrained(configs.get_config("city"))["image_encoder"].path  # nothing frozen


def test_one_source_of_published_weights():
    with pytest.raises(ConfigError, match=r"checkpoint_weights and image_encoder_weights are both set"):
        i2p.pretrained(tiny(model__checkpoint_weights="a", model__image_encoder_weights="b"))
    gem = tiny(model__checkpoint_weights="a", model__cloud_aggregator="gem")
    assert i2p.pretrained(gem)["cloud_aggregator"].layouts == ()  # which the trainer refuses by name


# --- The network --------------------------------------------------------------------------------------------


def test_shapes_and_unit_length(network):
    cfg, variables = network
    batch = random_batch(cfg)
    found = i2p.predict(cfg, representations(cfg, variables, batch), batch)
    for name in ("image_descriptor", "cloud_descriptor"):
        assert found[name].shape == (ROWS, 32)
        np.testing.assert_allclose(np.linalg.norm(found[name], axis=1), 1, rtol=1e-5)
    assert found["image_saliency"].shape == (ROWS, 4 * 8)
    assert found["cloud_saliency"].shape == found["cloud_token_mask"].shape == (ROWS, 16)
    assert found["cloud_centres"].shape == (ROWS, 16, 3)
    # With CLS left out, less than the number of heads (2 in both).
    assert (np.asarray(found["image_saliency"].sum(axis=1)) < 2).all()
    assert (np.asarray(found["cloud_saliency"]) >= 0).all()


def test_order_of_points_does_not_count_but_where_they_are_does(network):
    """The first point starts the sampling, so it stays first; from the farthest one none is special."""
    cfg, variables = network
    batch = random_batch(cfg)
    before = representations(cfg, variables, batch)["cloud"]["descriptor"]
    order = np.concatenate([[0], 1 + np.random.default_rng(0).permutation(255)])
    kept = representations(cfg, variables, batch | {"points": batch["points"][:, order]})["cloud"][
        "descriptor"
    ]
    np.testing.assert_allclose(kept, before, atol=2e-5)

    geometric = tiny(model__points__fps_start="farthest")
    before = representations(geometric, variables, batch)["cloud"]["descriptor"]
    order = np.random.default_rng(1).permutation(256)
    kept = representations(geometric, variables, batch | {"points": batch["points"][:, order]})["cloud"]
    np.testing.assert_allclose(kept["descriptor"], before, atol=2e-5)

    moved = representations(geometric, variables, batch | {"points": batch["points"] + np.float32(5)})[
        "cloud"
    ]
    assert np.abs(moved["descriptor"] - before).max() > 1e-3


def describe_images(cfg, variables, image):
    """Descriptors of the image branch alone."""
    encode = jax.jit(lambda v, i: i2p.model(cfg).apply(v, i, train=False, method="encode_image"))
    return encode(variables, image)["descriptor"]


def test_saliency_weighs_tokens_and_switches_change_it(network):
    cfg, variables = network
    image = random_batch(cfg)["image"]
    exact = describe_images(cfg, variables, image)
    for change in (
        {"model__saliency__enabled": False},
        {"model__saliency__source": "forward_block", "model__saliency__squash": "mean1"},
        {"model__discard_cls": True},
    ):
        assert np.abs(describe_images(tiny(**change), variables, image) - exact).max() > 1e-6, change


def test_few_points_and_none_give_numbers(network):
    """Fewer points than groups, one point, none; padding may be anything. Gradients are finite, too."""
    cfg, variables = network
    batch = random_batch(cfg)
    for row, count in enumerate((256, 9, 1, 0)):
        batch["point_mask"][row, count:] = False
        batch["points"][row, count:] = np.nan
    found = representations(cfg, variables, batch)["cloud"]
    assert np.isfinite(np.asarray(found["descriptor"])).all()
    np.testing.assert_array_equal(np.asarray(found["token_mask"]).sum(axis=1), [16, 9, 1, 0])
    assert (np.asarray(found["saliency"])[~np.asarray(found["token_mask"])] == 0).all()

    padded = batch | {"points": np.where(batch["point_mask"][..., None], batch["points"], 7.0)}
    again = representations(cfg, variables, padded)["cloud"]["descriptor"]
    np.testing.assert_array_equal(again, found["descriptor"])

    value, gradients = gradient(cfg, variables, batch)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def gradient(cfg, variables, batch):
    """Loss and its gradients in training."""

    def of(params):
        seen, _ = i2p.model(cfg).apply(
            {**variables, "params": params}, batch, train=True, mutable=["batch_stats"]
        )
        terms = i2p.loss(cfg, seen, batch)
        return sum(
            cfg.loss[name] * total / jnp.maximum(weight, 1e-12) for name, (total, weight) in terms.items()
        )

    return jax.jit(jax.value_and_grad(of))(variables["params"])


# --- Losses -------------------------------------------------------------------------------------------------


def unit(rng, *shape) -> np.ndarray:
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def described(rows: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return {name: {"descriptor": unit(rng, rows, 8)} for name in ("image", "cloud")}


def test_loss_is_that_of_the_ops():
    weights = {f"loss__relation_{letter}": 2.0 for letter in "eah"}
    cfg = tiny(model__contrast__exclude_radius=0.0, model__relation__curvature=0.5, **weights)
    batch, seen = random_batch(cfg, 6), described(6)
    image, cloud = (seen[name]["descriptor"] for name in ("image", "cloud"))
    found = {name: float(total / weight) for name, (total, weight) in i2p.loss(cfg, seen, batch).items()}
    expected = {
        "nce": contrastive.joint_infonce(cloud, image, 0.07, np.ones((6, 6), bool)).mean(),
        "relation_e": relations.euclidean_relation(image, cloud),
        "relation_a": relations.angle_relation(image, cloud),
        "relation_h": relations.hyperbolic_relation(image, cloud, 0.5),
    }
    assert found == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)


def test_relation_without_weight_is_not_computed():
    cfg = tiny(loss__relation_a=0.0)
    found = i2p.loss(cfg, described(2), random_batch(cfg, 2))
    assert all(found[name] == (0, 0) for name in ("relation_e", "relation_a", "relation_h"))
    assert found["nce"][1] == 2


def test_relation_of_two_pairs_is_refused():
    with pytest.raises(ConfigError, match=r"a loss sees 2 "):
        i2p.loss(tiny(), described(2), random_batch(tiny(), 2))


def test_near_pairs_of_one_sequence_are_no_negatives():
    cfg = tiny(model__contrast__exclude_radius=20.0, loss__relation_a=0.0)
    batch, seen = random_batch(cfg, 3), described(3)
    batch["position"] = np.float32([[0, 0], [10, 0], [0, 0]])
    batch["sequence"] = np.int32([0, 0, 1])
    image, cloud = (seen[name]["descriptor"] for name in ("image", "cloud"))
    negative = np.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]], bool)
    total, weight = i2p.loss(cfg, seen, batch)["nce"]
    expected = contrastive.joint_infonce(cloud, image, 0.07, negative).mean()
    assert float(total / weight) == pytest.approx(float(expected), rel=1e-6)


def test_learned_temperature_starts_as_set_and_is_the_loss_s():
    fixed, learned = tiny(loss__relation_a=0.0), tiny(model__contrast__learnable=True, loss__relation_a=0.0)
    assert abstract(learned)["log_scale"].shape == ()
    start = np.float32(-np.log(0.07))
    batch, seen = random_batch(fixed), described(ROWS)

    def of(log_scale):
        scale = i2p.model(learned).bind({"params": {"log_scale": log_scale}}).scale()
        image = {**seen["image"], "scale": scale}
        return i2p.loss(learned, {**seen, "image": image}, batch)["nce"][0]

    value, gradient = jax.value_and_grad(of)(start)
    assert float(value) == pytest.approx(float(i2p.loss(fixed, seen, batch)["nce"][0]), rel=1e-5)
    step = 1e-2
    assert float(gradient) == pytest.approx((of(start + step) - of(start - step)) / (2 * step), rel=1e-2)
    assert of(np.float32(9)) == of(np.float32(10))  # never sharper than 1/100


def test_pairs_on_other_devices_are_negatives():
    """The loss over eight devices, a pair each, is that over all pairs."""
    cfg = ml_collections.FrozenConfigDict(
        tiny(loss__relation_e=1.0, loss__relation_h=1.0, model__contrast__exclude_radius=50.0)
    )
    batch, seen = random_batch(cfg, 8), described(8)

    def of(seen, batch):
        return {name: total / weight for name, (total, weight) in i2p.loss(cfg, seen, batch).items()}

    expected = jax.jit(of)(seen, batch)
    mesh = jax.make_mesh((8, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    shards = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        found = jax.jit(of)(jax.device_put(seen, shards), jax.device_put(batch, shards))
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


# --- Augmentation of pairs ----------------------------------------------------------------------------------

COLUMNS = 64


def seen_by_the_camera(points: np.ndarray) -> np.ndarray:
    """(N, 3) → (1, COLUMNS, 3) panorama: a column is as red as the number of the point in it (from 1 on)."""
    image = np.zeros((1, COLUMNS, 3), np.uint8)
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    column = np.floor((1 - azimuth / np.pi) / 2 * COLUMNS).astype(int) % COLUMNS
    image[0, column, 0] = np.arange(1, len(points) + 1)
    return image


@pytest.mark.parametrize("change", [{"mirror": 1.0}, {"turn": 180.0}, {"mirror": 1.0, "turn": 90.0}])
def test_image_and_submap_move_together(change: dict):
    """What the moved submap would look like is the moved image."""
    settings = tiny().data.augmentation
    settings.update({"mirror": 0.0, "turn": 0.0, **change})
    settings.image.probability = 0.0
    azimuth = np.pi * (1 - 2 * (np.arange(0, COLUMNS, 3) + 0.5) / COLUMNS)  # in the middle of columns
    points = np.stack([9 * np.cos(azimuth), 9 * np.sin(azimuth), azimuth], axis=1).astype(np.float32)
    image = seen_by_the_camera(points)
    moved = 0
    for seed in range(8):
        new_image, new_points = i2p.augmented(settings, image, points, np.random.default_rng(seed))
        np.testing.assert_array_equal(new_image, seen_by_the_camera(new_points))
        np.testing.assert_array_equal(new_points[:, 2], points[:, 2])
        moved += not np.array_equal(new_image, image)
    assert moved >= 7


def test_sectors_of_several_scenes_match_in_image_and_submap():
    """Points of scene s have height s and their pixels the value s + 1."""
    azimuth = np.pi * (1 - 2 * (np.arange(COLUMNS) + 0.5) / COLUMNS)
    scenes = []
    for number in range(3):
        kept = np.arange(number, COLUMNS, 3)  # every third column, another one in every scene
        height = np.full(len(kept), number)
        points = np.stack([9 * np.cos(azimuth[kept]), 9 * np.sin(azimuth[kept]), height], axis=1)
        image = np.zeros((2, COLUMNS, 3), np.uint8)
        image[:, kept] = number + 1
        scenes.append((image, points.astype(np.float32)))
    for seed in range(8):
        image, points = i2p.sectors_of(scenes, np.random.default_rng(seed))
        column = np.floor((1 - np.arctan2(points[:, 1], points[:, 0]) / np.pi) / 2 * COLUMNS).astype(int)
        seen = np.zeros(COLUMNS, int)
        seen[column] = points[:, 2] + 1
        np.testing.assert_array_equal(image[0, :, 0], seen)
        in_order = seen[seen > 0]
        assert np.count_nonzero(in_order != np.roll(in_order, 1)) <= 3  # one stretch each
    image, points = i2p.sectors_of(scenes[:1], np.random.default_rng(0))
    np.testing.assert_array_equal(image, scenes[0][0])
    np.testing.assert_array_equal(points, scenes[0][1])
