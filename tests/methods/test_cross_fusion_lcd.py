"""Cross-fusion LCD: sizes, losses by hand, the image at test time, alignment, scans with nothing in them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import cross_fusion_lcd as configs
from placerec_jax.errors import ConfigError
from placerec_jax.methods import cross_fusion_lcd as lcd
from placerec_jax.ops.rigid import se2_apply

POINTS = 32  # key points of the tiny network


def tiny(layout_share: float = 0.0, **model):
    """The paper's network, tiny, on 32 x 32 cells, with settings of `config.model` as `bev__cell=1.0`."""
    cfg = configs.get_config("tiny")
    cfg.model.bev.extent = (-16.0, 16.0, -16.0, 16.0)
    cfg.model.bev.cell, cfg.model.backbone, cfg.model.descriptor_loss = 1.0, "t", "triplet"
    cfg.eval.layout.share = layout_share
    cfg.model.rings.share, cfg.data.negative_distance = 0.0, 10.0
    cfg.model.image_crop = (64, 64)
    cfg.update_from_flattened_dict({f"model.{k.replace('__', '.')}": v for k, v in model.items()})
    return cfg


def random_bev(rng, *shape: int) -> np.ndarray:
    """A third of the cells occupied."""
    bev = rng.random(shape).astype(np.float32)
    return bev * (rng.random((*shape[:-1], 1)) < 0.3)


def training_batch(cfg, rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    batch = {}
    for name, feature in lcd.features(cfg, training=True).items():
        batch[name] = np.zeros((rows, *feature.shape), feature.dtype)
    batch["bev"] = random_bev(rng, *batch["bev"].shape)
    batch["image"] = rng.integers(0, 256, batch["image"].shape, dtype=np.uint8)
    batch["link_mask"] = rng.random(batch["link_mask"].shape) < 0.4
    batch["link_cell"] = rng.integers(0, 32 * 32, batch["link_cell"].shape, dtype=np.int32)
    batch["link_pixel"] = rng.integers(0, 32 * 32, batch["link_pixel"].shape, dtype=np.int32)
    occupied = batch["bev"][:, :2].any(axis=-1)
    batch["score_label"] = np.where(occupied, rng.integers(0, 2, occupied.shape), 255).astype(np.uint8)
    return batch


def scan_batch(batch: dict, cfg) -> dict[str, np.ndarray]:
    """The queries of a training batch as evaluation examples of `cfg`."""
    found = {}
    for name, feature in lcd.features(cfg).items():
        found[name] = batch[name][:, :1] if feature.shape else batch[name]
    return found


@pytest.fixture(scope="module")
def network():
    """Tiny config, variables and a training batch. Nothing is zero as in a fresh network: an image of zeros
    would then have features of zero."""
    cfg = tiny()
    batch = training_batch(cfg, rows=2)
    model = lcd.model(cfg)
    variables = jax.jit(lambda b: model.init(jax.random.key(0), b, train=False))(scan_batch(batch, cfg))
    rng = np.random.default_rng(3)
    shaken = {
        "params": jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape), variables["params"]),
        "batch_stats": jax.tree.map(
            lambda x: np.abs(x + 0.3 * rng.normal(size=x.shape)), variables["batch_stats"]
        ),
    }
    return cfg, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), shaken), batch


def representations(cfg, variables, batch):
    return jax.jit(lambda v, b: lcd.model(cfg).apply(v, b, train=False))(variables, batch)


# --- Sizes and settings -------------------------------------------------------------------------------------


def abstract(cfg):
    model = lcd.model(cfg)
    batch = {n: jax.ShapeDtypeStruct((1, *f.shape), f.dtype) for n, f in lcd.features(cfg).items()}
    variables = jax.eval_shape(lambda b: model.init(jax.random.key(0), b, train=False), batch)
    return variables["params"]


def test_paper_size():
    params = abstract(configs.get_config("kitti"))
    assert sum(leaf.size for leaf in jax.tree.leaves(params["image_backbone"])) == 329_168 - 128  # no score
    out = configs.get_config("kitti").model
    assert (out.clusters * 128, lcd.bev_grid(configs.get_config("kitti")).shape) == (2048, (320, 320))


def test_without_fusion_no_image_branch_is_built():
    for settings in (
        {"fusion__enabled": False},
        {f"fusion__use_{n}": False for n in ("cvtkb", "genkb", "cvtki")},
    ):
        cfg = tiny(**settings)
        assert set(abstract(cfg)) == {"bev_backbone", "bev_vlad", "match_bev", "position_encoder"}
        assert "image" not in lcd.features(cfg, training=True)
        assert lcd.loss_terms(cfg) == ("score", "triplet", "pose", "match")
    assert set(abstract(tiny(fusion__enabled=False, position_encoder=False))) == {
        "bev_backbone",
        "bev_vlad",
        "match_bev",
    }


@pytest.mark.parametrize("name", ["cvtkb", "genkb", "cvtki"])
def test_rows_of_table_iv_are_built(name: str):
    cfg = tiny(**{f"fusion__use_{name}": False})
    assert ("generator" in abstract(cfg)) == (name != "genkb")
    assert ("gen" in lcd.loss_terms(cfg)) == (name != "genkb")


@pytest.mark.parametrize("backbone", lcd.BACKBONES)
def test_every_backbone_and_encoding_is_built(backbone: str):
    params = abstract(tiny(backbone=backbone, bev__encoding="height_slices"))
    assert {"bev_backbone", "to_image"} <= set(params)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "x"}, r"backbone is 'x'; expected one of"),
        ({"pose_dim": 4}, r"pose_dim is 4; expected one of \[2, 3\]"),
        ({"bev__input": "density"}, r"'density' has neither points nor images"),
        ({"links": 48}, r"links is 48; expected a multiple of"),
        ({"sinkhorn__eps_init": 0.02}, r"eps_init is 0\.02"),
        ({"bev__cell": 0.3}, r"bev\.extent and cell.* cells of 0\.3 m"),
        ({"bev__cell": 0.8, "backbone": "t"}, r"extent / cell is \(40, 40\); expected multiples of 32"),
        ({"bev__extent": (-21.0, 21.0) * 2, "backbone": "polar"}, r"\(42, 42\); expected multiples of 8"),
        ({"image_crop": (60, 64)}, r"image_crop / image_factor is \(30, 32\)"),
        ({"image_crop": (63, 64)}, r"no multiple of the factor 2"),
        ({"heads": 5}, r"heads is 5; expected a divisor of the 64 channels"),
        ({"num_keypoints": 2048}, r"num_keypoints is 2048; the BEV has \(32, 32\) cells"),
        ({"bev__z_range": (1.5, -2.5)}, r"z_range is \(1\.5, -2\.5\); expected \(lowest, highest\)"),
        ({"layout_share": 1.5}, r"layout\.share is 1\.5; expected a share"),
        ({"rings__share": -0.1}, r"rings\.share is -0\.1; expected a share"),
        ({"rings__channel": 3}, r"model\.rings\.channel is 3; expected one of the 3 channels"),
        ({"rings__frequencies": 62}, r"frequencies is 62; expected at most 61, of 120 azimuths"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        abstract(tiny(**settings))


# --- Losses -------------------------------------------------------------------------------------------------


def mean(pair) -> float:
    return float(pair[0]) / float(pair[1])


def test_forms_of_the_pose_loss():
    """Errors of two branches that cancel: nothing in the literal form, both in the split one."""
    truth = jnp.zeros((1, 3, 2))
    error = jnp.array([[[1.0, 2.0], [0.0, -1.0], [50.0, 50.0]]])
    mask = jnp.array([[True, True, False]])
    assert mean(lcd.literal_form([truth + error, truth - error], truth, mask)) == 0.0
    assert mean(lcd.split_form([truth + error, truth - error], truth, mask)) == pytest.approx(2 * (3 + 1) / 2)
    for form in lcd.LOSS_FORMS.values():
        assert mean(form([truth, truth], truth, mask)) == 0.0
        assert mean(form([truth + error], truth, mask)) == pytest.approx((3 + 1) / 2)


def made_representations(cfg, rng, perfect: bool):
    """Representations and batch as a network would give them: without any error, or random."""
    batch = training_batch(cfg, rows=2)
    batch["true_pose"] = np.array([[1.0, -2.0, 0.7], [0.0, 3.0, -2.0]], np.float32)
    dim, links = 8, cfg.model.links
    random = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    query = random(2, POINTS, 2) * 10
    truth = se2_apply(jnp.asarray(batch["true_pose"])[:, None], query)
    features, link_features, pixels = (
        random(2, 3, POINTS, dim),
        random(2, 3, links, dim),
        random(2, 3, links, dim),
    )
    descriptor = random(2, 3, 16)
    label = jnp.asarray(batch["score_label"])
    mask = jnp.ones((2, 3, POINTS), bool)
    known = jnp.asarray(batch["link_mask"].any(axis=-1))
    made = {
        "scan": {
            "score": jnp.pad(jnp.where(label == 1, 1.0, 0.0), ((0, 0), (0, 1), (0, 0), (0, 0))),
            "mask": mask,
            "features": features,
            "link_features": link_features,
        },
        "image": {
            "features": pixels,
            "mask": known,
            "converted": 3 * link_features,  # the length is free
            "converted_scan": 0.5 * pixels,
            "generated": features,
            "seen": known.any(axis=-1),
        },
        "descriptor": {"learned": descriptor.at[:, 1].set(descriptor[:, 0]).at[:, 2].add(9.0)},
        "alignment": {
            "query": query,
            "mask": jnp.ones((2, POINTS), bool),
            **{f"{branch}_target": truth for branch in ("bev", "fused")},
            **{f"{branch}_pose": jnp.asarray(batch["true_pose"]) for branch in ("bev", "fused")},
        },
    }
    if not perfect:
        made = jax.tree.map(lambda x: x + random(*x.shape) if x.dtype == jnp.float32 else x, made)
    return made, batch


@pytest.mark.parametrize("form", lcd.LOSS_FORMS)
def test_a_perfect_network_has_no_loss(form: str):
    cfg = tiny(loss_form=form)
    made, batch = made_representations(cfg, np.random.default_rng(0), perfect=True)
    terms = lcd.loss(cfg, made, batch)
    assert set(terms) == set(cfg.loss)
    for name, (total, weight) in terms.items():
        assert float(weight) > 0, name
        assert mean((total, weight)) == pytest.approx(0.0, abs=2e-5), name


def test_losses_by_hand():
    cfg = tiny()
    made, batch = made_representations(cfg, np.random.default_rng(0), perfect=False)
    terms = {name: mean(pair) for name, pair in lcd.loss(cfg, made, batch).items()}
    label, score = batch["score_label"], np.asarray(made["scan"]["score"])[:, :2]
    assert terms["score"] == pytest.approx(np.mean((score - label)[label != 255] ** 2), rel=1e-4)
    q, p, n = np.moveaxis(np.asarray(made["descriptor"]["learned"]), 1, 0)
    distance = lambda a, b: np.linalg.norm(a - b, axis=-1)  # noqa: E731
    expected = np.maximum(distance(q, p) - distance(q, n) + 0.5, 0).mean()
    assert terms["triplet"] == pytest.approx(expected, rel=1e-4)
    a, points = made["alignment"], np.asarray(made["alignment"]["query"])
    truth = se2_apply(batch["true_pose"][:, None], points)
    errors = [
        np.abs(se2_apply(np.asarray(a[f"{b}_pose"])[:, None], points) - truth).sum(-1)
        for b in ("bev", "fused")
    ]
    assert terms["pose"] == pytest.approx(sum(errors).mean(), rel=1e-4)
    errors = [np.abs(np.asarray(a[f"{b}_target"]) - truth).sum(-1) for b in ("bev", "fused")]
    assert terms["match"] == pytest.approx(sum(errors).mean(), rel=1e-4)
    image, known = made["image"], np.asarray(made["image"]["mask"])

    def one_minus_cosine(found, target, mask):
        found, target = np.asarray(found), np.asarray(target)
        product = (found * target).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(target, axis=-1)
        return np.mean(1 - product[mask])

    expected = one_minus_cosine(image["converted"], made["scan"]["link_features"], known)
    assert terms["cvtb"] == pytest.approx(expected, rel=1e-4)
    expected = one_minus_cosine(image["converted_scan"], image["features"], known)
    assert terms["cvti"] == pytest.approx(expected, rel=1e-4)
    expected = one_minus_cosine(image["generated"], made["scan"]["features"], np.ones((2, 3, POINTS), bool))
    assert terms["gen"] == pytest.approx(expected, rel=1e-4)


def contrastive_batch(rng) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(3, 3, 6) descriptors and where they were made: rows 0 and 2 on one drive, row 1 on another.

    Row 1 has the coordinates of row 0. The query of row 2 is 9 m from that of row 0, its positive 12 m.
    """
    place = np.zeros((3, 3, 4, 4), np.float32)
    place[0, :, 0, 3] = place[1, :, 0, 3] = 0, 3, 50
    place[2, :, 0, 3] = 9, 12, -40
    sequence = np.array([[0] * 3, [1] * 3, [0] * 3], np.int32)
    descriptor = rng.normal(size=(3, 3, 6)).astype(np.float32)
    descriptor /= np.linalg.norm(descriptor, axis=-1, keepdims=True)
    return descriptor, {"map_T_lidar": place, "sequence": sequence}


@pytest.fixture(scope="module")
def contrastive():
    """Descriptors and batch → mean loss and its gradient."""
    cfg = tiny(descriptor_loss="contrastive", temperature=0.2)

    def value(descriptor, batch):
        total, weight = lcd.DESCRIPTOR_LOSSES["contrastive"](cfg, descriptor, batch)
        return total / weight

    return jax.jit(jax.value_and_grad(value))


def test_contrastive_loss_by_hand(contrastive):
    """Near scans are no negatives; those of another drive are, whatever their coordinates say.

    Descriptors, which differ in length, are alike as retrieval has it: by their distance.
    """
    rng = np.random.default_rng(0)
    descriptor, batch = contrastive_batch(rng)
    descriptor *= rng.uniform(0.5, 1.0, (3, 3, 1)).astype(np.float32)
    squared = np.sum((descriptor[:, :, None, None] - descriptor) ** 2, axis=-1)
    likeness = np.exp(-squared / 2 / 0.2)
    others = {  # of row and scan, those beyond 10 m or of another drive
        (0, 0): [(0, 2), (1, 0), (1, 1), (1, 2), (2, 1), (2, 2)],
        (0, 1): [(0, 2), (1, 0), (1, 1), (1, 2), (2, 2)],
        (1, 0): [(1, 2), *((row, scan) for row in (0, 2) for scan in range(3))],
        (1, 1): [(1, 2), *((row, scan) for row in (0, 2) for scan in range(3))],
        (2, 0): [(2, 2), (0, 2), (1, 0), (1, 1), (1, 2)],
        (2, 1): [(2, 2), (0, 0), (0, 2), (1, 0), (1, 1), (1, 2)],
    }
    expected = 0.0
    for (row, scan), negatives in others.items():
        right = likeness[row, scan, row, 1 - scan]
        expected -= np.log(right / (right + sum(likeness[row, scan][at] for at in negatives)))
    found, _ = contrastive(descriptor, batch)
    assert float(found) == pytest.approx(expected / len(others), rel=1e-4)
    swapped = {"map_T_lidar": batch["map_T_lidar"][:, [1, 0, 2]], "sequence": batch["sequence"]}
    again, _ = contrastive(descriptor[:, [1, 0, 2]], swapped)
    assert float(again) == pytest.approx(float(found), rel=1e-5)


def test_contrastive_loss_of_the_best_and_of_no_negatives(contrastive):
    _, batch = contrastive_batch(np.random.default_rng(0))
    perfect = np.zeros((3, 3, 6), np.float32)
    for row in range(3):
        perfect[row, :2, row] = perfect[row, 2, row + 3] = 1.0
    assert 0 < float(contrastive(perfect, batch)[0]) < 0.06  # of seven others: log(1 + 7 exp(-5))
    wrong, _ = contrastive(perfect[:, [0, 2, 1]], batch)  # the query is as its negative
    assert float(wrong) > 3
    # Everything within 10 m of everything: nothing to tell apart, nothing to learn.
    together = {"map_T_lidar": np.zeros((3, 3, 4, 4), np.float32), "sequence": np.zeros((3, 3), np.int32)}
    value, gradient = contrastive(contrastive_batch(np.random.default_rng(1))[0], together)
    assert float(value) == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("detach", [True, False])
def test_targets_of_the_image_losses_are_detached(detach: bool):
    cfg = tiny(detach_targets=detach)
    made, batch = made_representations(cfg, np.random.default_rng(0), perfect=False)

    def image_losses(floats):
        whole = {**made, "scan": made["scan"] | floats["scan"], "image": made["image"] | floats["image"]}
        return sum(lcd.loss(cfg, whole, batch)[name][0] for name in ("cvtb", "cvti", "gen"))

    floats = {
        part: {name: x for name, x in made[part].items() if x.dtype == jnp.float32}
        for part in ("scan", "image")
    }
    gradients = jax.grad(image_losses)(floats)
    targets = (
        gradients["scan"]["link_features"],
        gradients["scan"]["features"],
        gradients["image"]["features"],
    )
    for gradient in targets:
        assert bool(jnp.any(gradient != 0)) == (not detach)
    for name in ("converted", "converted_scan", "generated"):
        assert bool(jnp.any(gradients["image"][name] != 0))


def test_examples_of_one_scan_have_no_loss():
    cfg = tiny()
    batch = scan_batch(training_batch(cfg, rows=1), cfg)
    assert {float(x) for pair in lcd.loss(cfg, {}, batch).values() for x in pair} == {0.0}


# --- The network --------------------------------------------------------------------------------------------


def test_a_scan_alone_is_described_as_with_an_image_of_zeros(network):
    """`eval_image` zero equals the whole path on zeros when all links are real, and F_GENKB is one vector."""
    cfg, variables, batch = network
    batch = scan_batch(batch, tiny(eval_image="real"))
    batch["image"] = np.zeros_like(batch["image"])
    batch["link_mask"] = np.ones_like(batch["link_mask"])
    whole = representations(tiny(eval_image="real"), variables, batch)
    alone = representations(cfg, variables, {name: batch[name] for name in lcd.features(cfg)})
    generated = np.asarray(alone["image"]["generated"])
    np.testing.assert_array_equal(generated, np.broadcast_to(generated[:1, :1, :1], generated.shape))
    np.testing.assert_allclose(whole["image"]["generated"], generated, rtol=1e-3, atol=1e-4)
    assert np.abs(generated).max() > 0.01
    for name, key in (("fusion", "features"), ("descriptor", "descriptor")):
        np.testing.assert_allclose(whole[name][key], alone[name][key], rtol=1e-3, atol=2e-5)
    # The whole path does look at its image.
    batch["image"] = np.random.default_rng(1).integers(0, 256, batch["image"].shape, dtype=np.uint8)
    seen = representations(tiny(eval_image="real"), variables, batch)
    assert np.abs(seen["image"]["generated"] - generated).max() > 0.05
    assert np.abs(seen["descriptor"]["descriptor"] - alone["descriptor"]["descriptor"]).max() > 0.001


def test_descriptor_is_the_learned_mix(network):
    cfg, variables, batch = network
    batch = scan_batch(batch, cfg)

    def with_mix(value):
        params = {**variables["params"], "mix": jnp.float32(value)}
        return np.asarray(
            representations(cfg, {**variables, "params": params}, batch)["descriptor"]["descriptor"]
        )

    bev, fused, half = with_mix(-50.0), with_mix(50.0), with_mix(0.0)
    np.testing.assert_allclose(half, 0.5 * (bev + fused), atol=1e-6)
    for one in (bev, fused):
        np.testing.assert_allclose(np.linalg.norm(one, axis=-1), 1.0, rtol=1e-4)
    assert np.abs(bev - fused).max() > 1e-3


def test_the_layout_has_its_share_of_squared_distances():
    cfg = tiny(fusion__enabled=False, layout_share=0.3)
    rng = np.random.default_rng(0)
    scan = {
        "features": rng.normal(size=(1, 3, POINTS, 8)).astype(np.float32),
        "mask": np.ones((1, 3, POINTS), bool),
        "layout": rng.normal(size=(1, 3, 5)).astype(np.float32),
    }
    model = lcd.model(cfg)
    describe = lambda scan: model.init_with_output(  # noqa: E731
        jax.random.key(0), scan, None, train=False, method=model.describe
    )
    out, _ = jax.jit(describe)(scan)
    apart = {
        name: np.sum((np.asarray(x)[0, 0] - np.asarray(x)[0, 1:]) ** 2, axis=-1)
        for name, x in {**out, "layout": scan["layout"]}.items()
    }
    expected = 0.7 * apart["learned"] + 0.3 * apart["layout"]
    np.testing.assert_allclose(apart["descriptor"], expected, rtol=1e-4)
    assert apart["learned"].min() > 0.01


def test_rings_have_their_share_of_squared_distances():
    cfg = tiny(fusion__enabled=False, rings__share=0.4)
    rng = np.random.default_rng(0)
    scan = {
        "features": rng.normal(size=(1, 3, POINTS, 8)).astype(np.float32),
        "mask": np.ones((1, 3, POINTS), bool),
        "rings": rng.normal(size=(1, 3, 5)).astype(np.float32),
    }

    def learned(cfg):
        model = lcd.model(cfg)
        describe = lambda scan: model.init_with_output(  # noqa: E731
            jax.random.key(0), scan, None, train=False, method=model.describe
        )
        return np.asarray(jax.jit(describe)(scan)[0]["learned"])

    def apart(x):
        return np.sum((x[0, 0] - x[0, 1:]) ** 2, axis=-1)

    alone = learned(tiny(fusion__enabled=False))
    expected = 0.6 * apart(alone) + 0.4 * apart(scan["rings"])
    np.testing.assert_allclose(apart(learned(cfg)), expected, rtol=1e-4)


def test_features_that_match_give_the_pose(network):
    cfg, variables, _ = network
    rng = np.random.default_rng(0)
    pose = np.array([[4.0, -1.0, 2.5]], np.float32)
    order = rng.permutation(POINTS)
    features = np.eye(POINTS, dtype=np.float32)[None]
    xy = rng.uniform(-10, 10, (1, POINTS, 2)).astype(np.float32)
    scan = {
        "mask": np.ones((1, 3, POINTS), bool),
        "xy": np.stack([xy, se2_apply(pose[:, None], xy)[:, order], xy], axis=1),
        "features": np.stack([features, features[:, order], features], axis=1),
    }
    model = lcd.model(cfg)
    found = model.apply(variables, scan, {"features": scan["features"]}, train=True, method=model.align)
    for branch in ("bev", "fused"):
        np.testing.assert_allclose(found[f"{branch}_pose"], pose, atol=0.15)
    assert found["mask"].all()


@pytest.fixture(scope="module")
def gradients(network):
    """Terms, gradients and representations of a batch whose first triplet holds nothing at all."""
    cfg, variables, batch = network
    batch = {name: value.copy() for name, value in batch.items()}
    for name in ("bev", "link_mask"):
        batch[name][0] = 0
    batch["score_label"][0] = 255
    model = lcd.model(cfg)

    def total(params):
        out, _ = model.apply({**variables, "params": params}, batch, train=True, mutable=["batch_stats"])
        terms = lcd.loss(cfg, out, batch)
        return sum(a / jnp.maximum(w, 1e-12) for a, w in terms.values()), (terms, out)

    found, (terms, out) = jax.jit(jax.grad(total, has_aux=True))(variables["params"])
    return terms, found, out


def test_scans_with_nothing_in_them_leave_everything_finite(gradients):
    terms, found, out = gradients
    for tree in (terms, found, out):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    assert not out["scan"]["mask"][0].any()
    assert not out["descriptor"]["descriptor"][0].any()


def test_every_parameter_learns(gradients):
    _, found, _ = gradients
    for path, leaf in jax.tree_util.tree_leaves_with_path(found):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_verification_finds_the_motion_between_two_scans():
    cfg = tiny(bev__cell=0.2, bev__extent=(-6.4, 6.4, -6.4, 6.4))
    rng = np.random.default_rng(0)
    pose = np.array([[1.5, -2.0, 3.0]], np.float32)
    features = rng.normal(size=(1, POINTS, 16)).astype(np.float16)
    order = rng.permutation(POINTS)
    xy = rng.uniform(-5, 5, (1, POINTS, 2)).astype(np.float32)
    mask = np.ones((1, POINTS), bool)
    query = {"keypoint_xy": xy, "keypoint_mask": mask, "keypoint_feature": features}
    moved = se2_apply(pose[:, None], xy).astype(np.float32)
    moved[:, :8] = rng.uniform(-5, 5, (1, 8, 2))  # wrong matches
    candidate = {
        "keypoint_xy": moved[:, order],
        "keypoint_mask": mask,
        "keypoint_feature": features[:, order],
    }
    found = jax.jit(lambda q, c: lcd.match(cfg, q, c))(query, candidate)
    np.testing.assert_allclose(found["pose"], pose, atol=1e-3)
    np.testing.assert_array_equal(order[found["partner"][0]], np.arange(POINTS))
    assert int(found["inliers"][0]) >= POINTS - 8
    assert found["inlier_mask"][0, 8:].all()


@pytest.mark.parametrize(
    "settings",
    [
        {"pose_dim": 3},
        {"pose_dim": 3, "fusion__enabled": False},
        {"sinkhorn__shared": False},
        {"fusion__use_cvtki": False, "fusion__use_genkb": False},
        {"renormalize_descriptor": True, "position_encoder": False, "backbone": "s"},
        {
            "backbone": "polar",
            "layout_share": 0.5,
            "rings__share": 0.5,
            "descriptor_loss": "contrastive",
            "image_backbone": "n",  # 128 channels beside 64
        },
        {"backbone": "polar", "polar__dim": 32, "fusion__enabled": False},
    ],
    ids=str,
)
def test_variants_train_by_shape(settings: dict):
    cfg = tiny(**settings)
    model = lcd.model(cfg)
    abstract_batch = lambda training: {  # noqa: E731
        name: jax.ShapeDtypeStruct((2, *f.shape), f.dtype) for name, f in lcd.features(cfg, training).items()
    }

    def step(scans, triplets):
        variables = model.init(jax.random.key(0), scans, train=False)
        out, _ = model.apply(variables, triplets, train=True, mutable=["batch_stats"])
        return lcd.loss(cfg, out, triplets)

    terms = jax.eval_shape(step, abstract_batch(False), abstract_batch(True))
    assert set(terms) == set(lcd.loss_terms(cfg))
