"""Real KITTI scans, and a scan with its image, through conversion, association and the untrained network."""

import shutil
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest

from configs import cross_fusion_lcd as configs
from data_prep.__main__ import main
from data_prep.raw import kitti
from data_prep.raw.number_files import read_keys
from placerec_jax.data import scans
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.methods import cross_fusion_lcd as lcd

pytestmark = pytest.mark.real_data

KEYPOINTS = 128
FRAMES = (0, 94, 95, 198)  # of 00: 94 and 95 are half a metre apart, the others elsewhere


def config(layout_share: float = 0.0, **model) -> ml_collections.ConfigDict:
    """The paper's losses on cells of 0.4 m and the smallest networks; settings of `config.model`."""
    cfg = configs.get_config("kitti")
    cfg.dtype = "float32"
    m = cfg.model
    m.bev.cell = 0.4
    m.backbone = m.image_backbone = "t"
    m.num_keypoints, m.links, m.link_pixels = KEYPOINTS, 256, 8
    m.image_factor = 4
    cfg.eval.layout.update({"share": layout_share, "channel": 1, "power": 2.0, "smoothing": 2.4})
    cfg.update_from_flattened_dict({f"model.{k.replace('__', '.')}": v for k, v in model.items()})
    return cfg


def convert(raw: Path, out: Path, *options: str) -> PreparedFolder:
    arguments = ["--raw", str(raw), "--format", "kitti", "--out", str(out), "--workers", "1", *options]
    assert main(["lcd", *arguments]) == 0
    return PreparedFolder(out)


def batch_of(examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


def read(cfg, prepared: PreparedFolder, split: str, training: bool = False) -> dict[str, np.ndarray]:
    """All examples of a split."""
    source = lcd.source(cfg, prepared, split, training)
    return batch_of([source.example(i, np.random.default_rng([1, i])) for i in range(len(source))])


def check_predictions(found: dict[str, np.ndarray], scans_read: int) -> None:
    """What must hold of any weights: finite, as many key points as wanted, features of unit length."""
    for name, value in found.items():
        assert len(value) == scans_read, name
        assert np.isfinite(value).all(), name
    assert found["keypoint_mask"].all()
    np.testing.assert_allclose(np.linalg.norm(found["keypoint_feature"].astype(float), axis=-1), 1, atol=5e-3)


# --- Scans alone --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drives(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedFolder:
    return convert(real_data / "kitti_odometry", tmp_path_factory.mktemp("drives") / "lcd")


@pytest.fixture(scope="module", params=["t", "polar"])
def alone(request, drives) -> tuple:
    """Config, batch and predictions of an untrained network without images: five scans, and a turned one.

    The last is scan 94, moved by `MOVE`.
    """
    cfg = config(backbone=request.param, fusion__enabled=False, layout_share=0.5)
    batch = batch_of(
        [
            {name: value[i] for name, value in read(cfg, drives, split).items()}
            for split, count in (("00", 4), ("08", 1))
            for i in range(count)
        ]
    )
    points, reflectance = scans.points_of(drives.table("frames")[1])
    grid, z_range = lcd.bev_grid(cfg), tuple(cfg.model.bev.z_range)
    moved = scans.encode_bev(
        scans.move_points(MOVE, points), reflectance, grid, z_range, cfg.model.bev.encoding
    )
    batch = {name: np.concatenate([value, value[1:2]]) for name, value in batch.items()}
    batch["bev"][5, 0] = moved
    model = lcd.model(cfg)

    @jax.jit
    def run(batch):
        variables = model.init(jax.random.key(0), batch, train=False)
        return lcd.predict(cfg, model.apply(variables, batch, train=False), batch)

    return cfg, batch, jax.device_get(run(batch))


_YAW = np.deg2rad(37.0)
MOVE = np.eye(4)
MOVE[:2, :2] = [[np.cos(_YAW), -np.sin(_YAW)], [np.sin(_YAW), np.cos(_YAW)]]
MOVE[:2, 3] = 2.3, -1.1


def test_real_scans_are_described(alone):
    cfg, batch, found = alone
    check_predictions(found, 6)
    np.testing.assert_allclose(np.linalg.norm(found["descriptor"], axis=-1), 1, atol=1e-4)
    grid, occupied = lcd.bev_grid(cfg), scans.occupied_cells(batch["bev"][:, 0])
    assert (occupied.mean(axis=(1, 2)) > 0.1).all()
    index = np.floor((found["keypoint_xy"] - np.array(grid.lower)) / grid.cell).astype(int)
    for scan in range(6):
        assert occupied[scan][index[scan, :, 0], index[scan, :, 1]].all()
        assert len(np.unique(index[scan], axis=0)) == KEYPOINTS


def test_real_layout_knows_the_place_and_not_the_heading(alone):
    """The share of the descriptor that is not learned."""
    cfg, _, found = alone
    layout = found["descriptor"][:, cfg.model.clusters * found["keypoint_feature"].shape[-1] :]
    np.testing.assert_allclose(np.linalg.norm(layout, axis=1), 0.5**0.5, atol=1e-4)
    first, same, second, far, other_drive, turned = layout
    elsewhere = min(np.linalg.norm(same - x) for x in (first, far, other_drive))
    assert np.linalg.norm(same - second) < 0.5 * elsewhere
    assert np.linalg.norm(same - turned) < 0.8 * elsewhere  # turned, and 2.5 m away


def verified(cfg, found: dict[str, np.ndarray], query: int, candidate: int) -> dict[str, np.ndarray]:
    of = lambda i: {name: value[i : i + 1] for name, value in found.items() if "keypoint" in name}  # noqa: E731
    result = jax.jit(lambda q, c: lcd.match(cfg, q, c))(of(query), of(candidate))
    return {name: np.asarray(value[0]) for name, value in result.items()}


def test_real_scan_finds_itself(alone):
    cfg, _, found = alone
    result = verified(cfg, found, 1, 1)
    np.testing.assert_allclose(result["pose"], 0, atol=1e-3)
    assert result["inliers"] == KEYPOINTS


@pytest.mark.parametrize("alone", ["polar"], indirect=True)
def test_real_scan_that_was_turned_is_verified_by_features_that_turn(alone):
    """37 degrees and 2.5 m, planted; ordinary convolutions know such a turn only once they are trained."""
    cfg, _, found = alone
    result = verified(cfg, found, 1, 5)
    np.testing.assert_allclose(result["pose"][:2], MOVE[:2, 3], atol=cfg.model.bev.cell)
    assert result["pose"][2] == pytest.approx(_YAW, abs=np.deg2rad(1.5))


def test_real_drives_without_a_loop_train_nothing(drives):
    with pytest.raises(lcd.ConfigError, match="no loop among them"):
        lcd.source(config(fusion__enabled=False), drives, "train", training=True)


# --- A scan and its image -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def seen(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> PreparedFolder:
    """The frame of the object benchmark as a drive of three: seen twice a metre apart, then 50 m on."""
    source, root = real_data / "kitti_object", tmp_path_factory.mktemp("seen")
    sequence = root / "raw/dataset/sequences/00"
    for folder, suffix in (("velodyne", "bin"), ("image_2", "png")):
        (sequence / folder).mkdir(parents=True)
        for frame in range(3):
            shutil.copy(source / folder / f"000001.{suffix}", sequence / folder / f"{frame:06d}.{suffix}")
    calibration = read_keys(source / "calib/000001.txt", "")
    values = {name: np.array(text.split(), float) for name, text in calibration.items()}
    tr = values["R0_rect"].reshape(3, 3) @ values["Tr_velo_to_cam"].reshape(3, 4)
    numbers = " ".join(f"{number:.17g}" for number in tr.ravel())
    (sequence / "calib.txt").write_text(f"P2:{calibration['P2']}\nTr: {numbers}\n")
    (root / "raw/dataset/poses").mkdir()
    poses = [f"1 0 0 0 0 1 0 0 0 0 1 {ahead}\n" for ahead in (0, 1, 51)]
    (root / "raw/dataset/poses/00.txt").write_text("".join(poses))
    return convert(root / "raw", root / "lcd", "--loop-gap", "0")


def test_real_image_and_scan_run_through_the_whole_network(real_data, seen):
    """Association as the object benchmark has it, then descriptors with its image and with none."""
    record = seen.table("frames")[0]
    expected = kitti.read_object_scan(real_data / "kitti_object", 1).image
    np.testing.assert_allclose(record["camera_T_lidar"], expected.camera_T_lidar, atol=1e-9)
    np.testing.assert_array_equal(record["intrinsics"], expected.intrinsics)
    cfg = config(renormalize_descriptor=True, eval_image="real")
    zero = config(renormalize_descriptor=True)
    batch = {name: value[:1] for name, value in read(cfg, seen, "00").items()}
    assert batch["link_mask"].any(axis=-1).all()  # 256 cells that the camera sees
    occupied = scans.occupied_cells(batch["bev"][:, 0]).reshape(1, -1)
    assert np.take_along_axis(occupied, batch["link_cell"][:, 0], axis=1).all()

    @jax.jit
    def run(batch):
        variables = lcd.model(cfg).init(jax.random.key(0), batch, train=False)
        # Weights like none that are fresh: an image of zeros would otherwise have features of zero.
        variables = jax.tree.map(
            lambda x: x + 0.02 * jax.random.normal(jax.random.key(1), x.shape), variables
        )
        return [lcd.predict(c, lcd.model(c).apply(variables, batch, train=False), batch) for c in (cfg, zero)]

    with_image, without = jax.device_get(run(batch))
    for found in (with_image, without):
        check_predictions(found, 1)
        np.testing.assert_allclose(np.linalg.norm(found["descriptor"], axis=-1), 1, atol=1e-4)
    np.testing.assert_array_equal(with_image["keypoint_xy"], without["keypoint_xy"])
    assert np.abs(with_image["descriptor"] - without["descriptor"]).max() > 1e-5


def test_real_image_and_scan_have_losses(seen):
    """A triplet of the same scan, each turned for itself: all terms finite and above zero."""
    cfg = config()
    batch = {name: value[:1] for name, value in read(cfg, seen, "train", training=True).items()}
    assert {0, 1, 255} == set(np.unique(batch["score_label"]))
    model = lcd.model(cfg)

    @jax.jit
    def losses(batch):
        alone = {
            name: batch[name][:, :1] if shape.shape else batch[name]
            for name, shape in lcd.features(cfg).items()
        }
        variables = model.init(jax.random.key(0), alone, train=False)
        found, _ = model.apply(variables, batch, train=True, mutable=["batch_stats"])
        return lcd.loss(cfg, found, batch)

    terms = jax.device_get(losses(batch))
    assert set(terms) == set(cfg.loss)
    for name, (total, weight) in terms.items():
        assert np.isfinite(total), name
        assert total > 0, name
        assert weight > 0, name
