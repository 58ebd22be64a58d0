"""Triplets and evaluation scans of cross-fusion LCD, from a drive of two rounds through a world of points."""

import pickle

import cv2
import jax
import numpy as np
import pytest

from configs import cross_fusion_lcd as configs
from data_prep.__main__ import main
from placerec_jax.data.pipeline import check_example
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.errors import ConfigError
from placerec_jax.methods import cross_fusion_lcd as lcd
from placerec_jax.ops.rigid import se2_apply
from tests.data_prep import scan_trees

ROUND, ROUNDS = 30, 2  # frames; on a circle of 15 m
FRAMES = ROUND * ROUNDS


def drive() -> np.ndarray:
    """(FRAMES, 4, 4) map_T_lidar; frame i + ROUND stands 0.5 m outside of frame i."""
    angle = 2 * np.pi * np.arange(FRAMES) / ROUND
    radius = 15.0 + 0.5 * (np.arange(FRAMES) // ROUND)
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, 0, 0] = poses[:, 1, 1] = -np.sin(angle)
    poses[:, 0, 1], poses[:, 1, 0] = -np.cos(angle), np.cos(angle)
    poses[:, 0, 3], poses[:, 1, 3] = radius * np.cos(angle), radius * np.sin(angle)
    return poses


def write_tree(root, name="00"):
    """A KITTI tree of `drive` past 600 posts, each a point."""
    tree = scan_trees.write_kitti(root, frames=FRAMES, name=name)
    cameras = drive() @ scan_trees.LIDAR_T_CAMERA0
    rows = "\n".join(scan_trees.numbers(pose[:3]) for pose in np.linalg.inv(cameras[0]) @ cameras)
    (tree.dataset / "poses" / f"{name}.txt").write_text(rows + "\n")
    posts = np.random.default_rng(0).uniform([-45, -45, -1], [45, 45, 1], (600, 3))
    for frame, pose in enumerate(drive()):
        points = (posts - pose[:3, 3]) @ pose[:3, :3]
        points = points[np.linalg.norm(points[:, :2], axis=1) < 50 - 10 * (frame % 3)]  # of different sizes
        values = np.column_stack([points, np.full(len(points), 0.5)]).astype(np.float32)
        values.tofile(tree.sequence(name) / "velodyne" / f"{frame:06d}.bin")
    return tree


def prepare(root, out, *options) -> PreparedFolder:
    arguments = ["--raw", str(root), "--format", "kitti", "--out", str(out), "--workers", "1"]
    assert main(["lcd", *arguments, "--loop-gap", "20", *options]) == 0
    return PreparedFolder(out)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> PreparedFolder:
    folder = tmp_path_factory.mktemp("lcd")
    return prepare(write_tree(folder / "raw").root, folder / "out", "--train", "00", "--val", "00")


def config(**settings):
    """Tiny with the drive's small images; keys as `model__bev__cell`."""
    cfg = configs.get_config("tiny")
    cfg.model.bev.cell = 0.5
    cfg.model.image_crop, cfg.model.image_factor = (32, 64), 1
    cfg.data.augmentation.tilt = cfg.data.augmentation.shift_z = 0.0
    cfg.data.augmentation.shift_xy, cfg.data.negative_distance = 3.0, 10.0
    cfg.data.near_negatives = cfg.data.image_dropout = 0.0
    cfg.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    return cfg


def examples(cfg, prepared, training: bool, count: int = 12):
    source = lcd.source(cfg, prepared, "train", training)
    return [source.example(i, np.random.default_rng([1, i])) for i in range(min(count, len(source)))]


@pytest.mark.parametrize(
    "settings",
    [{}, {"model__fusion__enabled": False}, {"model__pose_dim": 3}, {"model__eval_image": "real"}],
    ids=["fusion", "lidar", "3-D", "real image"],
)
def test_examples_are_what_the_features_say_and_repeat(prepared, settings):
    cfg = config(**settings)
    for training in (True, False):
        source = lcd.source(cfg, prepared, "train", training)
        assert len(source) == FRAMES
        for index in (0, 17, FRAMES - 1):
            one, again = (source.example(index, np.random.default_rng(5)) for _ in range(2))
            check_example(one, lcd.features(cfg, training))
            for name, value in one.items():
                np.testing.assert_array_equal(value, again[name], err_msg=name)


def test_triplets_are_a_loop_and_another_place(prepared):
    for example in examples(config(), prepared, training=True):
        query, positive, negative = drive()[example["sequence_position"]][:, :3, 3]
        assert np.linalg.norm(query - positive) < 4
        assert abs(int(example["sequence_position"][0]) - int(example["sequence_position"][1])) > 20
        assert np.linalg.norm(query - negative) > 10
        assert example["index"] == example["sequence_position"][0]


def test_negatives_may_be_near_ones(prepared):
    """On a circle of 15 m the frames between 5 and 8 m away are two or three on either side."""

    def distances(**settings):
        cfg = config(data__negative_distance=5.0, **settings)
        for example in examples(cfg, prepared, training=True, count=FRAMES):
            places = drive()[example["sequence_position"]][:, :3, 3]
            yield np.linalg.norm(places[0] - places[2])

    near = list(distances(data__near_negatives=1.0, data__near_reach=3.0))
    assert 5 < min(near) < max(near) < 8
    anywhere = list(distances())
    assert max(anywhere) > 25
    some = list(distances(data__near_negatives=0.5, data__near_reach=3.0))
    assert 0.4 < np.mean(np.array(some) < 8) < 0.9
    # There is none so near: any other will do.
    assert min(distances(data__near_negatives=1.0, data__near_reach=1e-3)) > 5


def test_true_pose_maps_cells_onto_cells(prepared):
    """The world stands still: what both scans see lies in the same place after H, and nowhere after H⁻¹."""
    cfg = config()
    grid = lcd.bev_grid(cfg)
    shares = []
    for example in examples(cfg, prepared, training=True):
        occupied = example["bev"].any(axis=-1)
        centres = [grid.centers()[occupied[scan]] for scan in (0, 1)]
        for pose in (example["true_pose"], -example["true_pose"]):
            moved = se2_apply(pose[None].astype(float), centres[0])
            inside = (np.abs(moved) < 31).all(axis=1)
            nearest = np.linalg.norm(moved[inside, None] - centres[1], axis=-1).min(axis=1)
            shares.append(np.mean(nearest < 0.75))
    right, wrong = np.mean(shares[::2]), np.mean(shares[1::2])
    assert right > 0.6  # the smaller scan does not see all that the larger one does
    assert wrong < 0.4
    # The frames that rows carry say the same.
    for example in examples(cfg, prepared, training=True, count=3):
        query, positive = example["map_T_lidar"][:2].astype(float)
        relative = np.linalg.inv(positive) @ query
        found = [relative[0, 3], relative[1, 3], np.arctan2(relative[1, 0], relative[0, 0])]
        np.testing.assert_allclose(found, example["true_pose"], atol=1e-4)


def test_labels_are_known_where_cells_are_occupied(prepared):
    for example in examples(config(), prepared, training=True, count=4):
        occupied, label = example["bev"][:2].any(axis=-1), example["score_label"]
        assert (label[~occupied] == 255).all()
        assert set(np.unique(label)) <= {0, 1, 255}
        assert np.mean(label[occupied & (label != 255)] == 1) > 0.3


def test_evaluation_is_every_frame_unmoved_or_turned(prepared):
    still = examples(config(), prepared, training=False)
    assert [int(e["sequence_position"][0]) for e in still] == list(range(12))
    start = drive()[0]
    for example in still:
        expected = np.linalg.inv(start) @ drive()[example["sequence_position"][0]]
        np.testing.assert_allclose(example["map_T_lidar"][0], expected, atol=1e-4)
    for one, other in zip(still, examples(config(data__query_yaw=180.0), prepared, False), strict=True):
        turn = np.linalg.inv(other["map_T_lidar"][0]) @ one["map_T_lidar"][0]
        np.testing.assert_allclose(turn[:3, 3], 0.0, atol=1e-4)
        assert not np.allclose(turn, np.eye(4), atol=0.02)
        assert (one["bev"] != other["bev"]).any()


def test_images_are_dropped_in_training_as_often_as_asked(prepared):
    for example in examples(config(data__image_dropout=1.0), prepared, training=True, count=2):
        assert not example["image"].any()
    for example in examples(config(), prepared, training=True, count=2):
        assert example["image"].any()
        assert example["link_mask"].any()


def test_a_split_without_loops_says_so(prepared):
    cfg = config()
    cfg.data.scheme = "official"
    with pytest.raises(ConfigError, match=r"split 'test' .* 0 frames .* no loop among them"):
        lcd.source(cfg, prepared, "test", True)
    with pytest.raises(ConfigError, match=r"negative_distance \(500\.0 m\)"):
        lcd.source(config(data__negative_distance=500.0), prepared, "train", True)


def test_a_sequence_without_a_loop_says_so(tmp_path):
    tree = scan_trees.write_kitti(tmp_path / "raw", name="00")
    prepared = prepare(tree.root, tmp_path / "out", "--train", "00")
    with pytest.raises(ConfigError, match=r"has 6 frames \(sequences \['00'\]\) and no loop among them"):
        lcd.source(config(), prepared, "train", True)


def test_fusion_without_images_says_what_to_do(tmp_path):
    tree = scan_trees.write_kitti(tmp_path / "raw", name="00", images=False)
    prepared = prepare(tree.root, tmp_path / "out", "--val", "00")
    source = lcd.source(config(model__eval_image="real"), prepared, "val", False)
    with pytest.raises(ConfigError, match=r"fusion\.enabled needs images"):
        source.example(0, np.random.default_rng(0))
    lcd.source(config(), prepared, "val", False).example(0, np.random.default_rng(0))


def test_records_of_another_kind_are_refused(prepared):
    cfg = configs.get_config("kitti_bev")
    with pytest.raises(ConfigError, match=r"'density', which needs records of 'bev' .* says 'points'"):
        lcd.source(cfg, prepared, "train", True)


def test_pictures_of_other_cells_are_refused(tmp_path):
    (tmp_path / "raw" / "06" / "imgs").mkdir(parents=True)
    np.savetxt(tmp_path / "raw" / "06" / "pose.txt", np.eye(4)[:3].reshape(1, 12))
    cv2.imwrite(str(tmp_path / "raw" / "06" / "imgs" / "000000.png"), np.full((151, 151), 9, np.uint8))
    cfg = configs.get_config("kitti_bev")
    for cell, refused in ((0.4, False), (0.2, True)):
        out = tmp_path / f"out{cell}"
        arguments = ["--raw", str(tmp_path / "raw"), "--format", "bev", "--out", str(out), "--workers", "1"]
        assert main(["lcd", *arguments, "--bev-cell", str(cell)]) == 0
        if refused:
            with pytest.raises(ConfigError, match=r"cells of 0\.2 m .*bev\.cell is 0\.4"):
                lcd.source(cfg, PreparedFolder(out), "06", False)
        else:
            assert len(lcd.source(cfg, PreparedFolder(out), "06", False)) == 1


def test_sources_reach_other_processes(prepared):
    """Reader processes get the source as bytes."""
    source = lcd.source(config(), prepared, "train", True)
    copy = pickle.loads(pickle.dumps(source))
    one, other = (s.example(3, np.random.default_rng(1)) for s in (source, copy))
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_scans_of_any_size_compile_once(prepared):
    cfg = config(model__fusion__enabled=False)
    found = examples(cfg, prepared, training=False, count=4)
    assert len({int((e["bev"] != 0).sum()) for e in found}) > 1
    model, traces = lcd.model(cfg), []

    @jax.jit
    def describe(variables, batch):
        traces.append(1)
        return model.apply(variables, batch, train=False)["descriptor"]["descriptor"]

    batches = [{name: value[None] for name, value in example.items()} for example in found]
    variables = jax.jit(lambda b: model.init(jax.random.key(0), b, train=False))(batches[0])
    descriptors = [np.asarray(describe(variables, batch)) for batch in batches]
    assert len(traces) == 1
    assert all(np.isfinite(d).all() for d in descriptors)
