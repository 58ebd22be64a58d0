"""Examples of EINet from a prepared folder: tuples and frames, what they hold, what does not fit."""

import dataclasses
import json
import pickle
from pathlib import Path

import cv2
import ml_collections
import numpy as np
import pytest

from configs import einet as configs
from data_prep import nusc_pr_records
from placerec_jax.data.pipeline import check_example
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.errors import ConfigError
from placerec_jax.methods import einet
from placerec_jax.ops.point_steps import POINT_UNIT, encode_points
from placerec_jax.ops.range_image import SphericalGrid
from tests.toy.prepared import write_table

FRAMES, SIZE, GRID = 12, (36, 80), SphericalGrid(32, 132)  # images are stored larger than the network's
LOCATIONS = ("boston-seaport", "singapore-onenorth")
MISSING = (5, 2)  # record, camera
STORED = tuple(reversed(nusc_pr_records.CAMERAS))  # in another order than the method's


def record_of(number: int) -> dict:
    """All of a record tells its number; camera c of it is as red as 20 c and as blue as 10 · number."""
    rng = np.random.default_rng(number)
    pictures = []
    for camera in (nusc_pr_records.CAMERAS.index(name) for name in STORED):
        colour = np.full((*SIZE, 3), [20 * camera, 128, 10 * number], np.uint8)
        if (number, camera) == MISSING:
            colour[:] = 255  # what should never be seen
        pictures.append(cv2.imencode(".jpg", colour[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes())
    there = np.array([(number, nusc_pr_records.CAMERAS.index(name)) != MISSING for name in STORED])
    turn = np.tile(np.eye(4, dtype=np.float32), (6, 1, 1))
    turn[:, 0, 3] = [
        nusc_pr_records.CAMERAS.index(name) for name in STORED
    ]  # the LiDAR is so far right of it
    intrinsics = np.array([[60, 0, 40], [0, 50, 18], [0, 0, 1]], np.float32)
    steps = rng.integers(0, 30_000, GRID.shape, dtype=np.uint16)
    steps[0] = 0
    return {
        "token": f"{number:032x}",
        "scene": f"scene-{number // 4:04d}",
        "scene_number": number // 4,
        "sample_number": number % 4,
        "location": LOCATIONS[number // 8],
        "timestamp": 1_500_000_000_000_000 + number,
        "date_captured": "2018-01-01",
        "images": pictures,
        "camera_mask": there,
        "intrinsics": np.tile(intrinsics, (6, 1, 1)),
        "camera_T_lidar": turn,
        "ego_T_lidar": np.diag([1, 1, 1, 1]).astype(np.float32),
        "global_T_ego": np.eye(4),
        "point_steps": encode_points(rng.uniform(-50, 50, (300 + number, 3))),
        "range_steps": steps,
        "rendered_rgb": rng.integers(0, 256, (*GRID.shape, 3), dtype=np.uint8),
    }


SPLITS = {
    "boston-seaport_train_query": [1, 3],
    "boston-seaport_train_positives": [[0, 2], [2, 4]],
    "boston-seaport_train_negatives": [[4, 5, 6, 7], [0, 7, 6, 5]],
    "singapore-onenorth_train_query": [9],
    "singapore-onenorth_train_positives": [[8, 10]],
    "singapore-onenorth_train_negatives": [[10, 11, 11, 8]],
    "train": [1, 3, 9],
    "database": [0, 2, 4, 8, 10],
    "val": [5],
    "test": [6, 11],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder as `python -m data_prep nusc_pr` writes them, of invented frames."""
    root = tmp_path_factory.mktemp("nusc_pr")
    features = dict(nusc_pr_records.frame_features(GRID).items())
    write_table(root / "frames", "frames", [record_of(i) for i in range(FRAMES)], shards=2, features=features)
    (root / "splits").mkdir()
    np.savez(root / "splits" / "supervised.npz", **SPLITS)
    nothing = {name: np.zeros((0, *np.shape(rows)[1:]), np.int64) for name, rows in SPLITS.items()}
    np.savez(root / "splits" / "empty.npz", **nothing)
    manifest = {
        "format": 1,
        "converter": "nusc_pr",
        "tables": {"frames": {"records": FRAMES}},
        "fingerprint": "f" * 64,
        "cameras": list(STORED),
        "locations": list(LOCATIONS),
        "range_unit_m": nusc_pr_records.RANGE_UNIT,
        "range_image": dataclasses.asdict(GRID),
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


@pytest.fixture(scope="module")
def prepared(folder) -> PreparedFolder:
    return PreparedFolder(folder)


def config(**settings):
    cfg = configs.get_config("tiny")
    cfg.data.augmentation.probability = 0.0
    cfg.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    return ml_collections.FrozenConfigDict(cfg)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("network", ["fused", "camera", "lidar"])
@pytest.mark.parametrize("training", [True, False])
def test_examples_are_what_the_features_say_and_repeat(prepared, network: str, training: bool):
    cfg = config(model__modality=network, data__augmentation__probability=0.5)
    source = einet.source(cfg, prepared, "train" if training else "database+test", training)
    for index in range(len(source)):
        one, again = (source.example(index, rng(5)) for _ in range(2))
        check_example(one, einet.features(cfg, training))
        for name, value in one.items():
            np.testing.assert_array_equal(value, again[name], err_msg=name)


def test_tuples_are_those_of_the_splits_and_their_order_is_drawn(prepared):
    """Query, then its positives, then its negatives, location by location; both kinds in random order."""
    source = einet.source(config(), prepared, "train", training=True)
    assert len(source) == 3
    wanted = [
        (SPLITS[f"{location}_train_query"][i], *(SPLITS[f"{location}_train_{kind}"][i] for kind in kinds))
        for location in LOCATIONS
        for kinds in [("positives", "negatives")]
        for i in range(len(SPLITS[f"{location}_train_query"]))
    ]
    for index, (query, positives, negatives) in enumerate(wanted):
        orders = set()
        for seed in range(8):
            numbers = source.example(index, rng(seed))["index"]
            assert numbers[0] == query
            assert sorted(numbers[1:3]) == sorted(positives)
            assert sorted(numbers[3:]) == sorted(negatives)
            orders.add(tuple(numbers))
        assert len(orders) > 4


def test_fewer_of_a_tuple_and_of_the_locations(prepared):
    cfg = config(data__positives=1, data__negatives=2, data__locations=("singapore-onenorth",))
    source = einet.source(cfg, prepared, "train", training=True)
    assert len(source) == 1
    numbers = source.example(0, rng())["index"]
    assert (len(numbers), numbers[0]) == (4, 9)
    assert numbers[1] in (8, 10)


def test_frames_of_evaluation_are_those_of_the_split_in_order(prepared):
    source = einet.source(config(), prepared, "database+test", training=False)
    found = [source.example(i, rng())["index"].tolist() for i in range(len(source))]
    assert found == [[0], [2], [4], [6], [8], [10], [11]]


def test_an_example_is_its_record(prepared):
    """Cameras by name, intrinsics of the new size, transforms the other way round, metres, colours."""
    example = einet.source(config(), prepared, "test", training=False).example(0, rng())
    record = record_of(6)
    assert example["images"].shape == (1, 6, 32, 64, 3)
    for camera, image in enumerate(example["images"][0]):
        np.testing.assert_allclose(image.reshape(-1, 3).mean(0), [20 * camera, 128, 60], atol=2)
    intrinsics = np.array([[60 * 64 / 80, 0, 32], [0, 50 * 32 / 36, 16], [0, 0, 1]])
    np.testing.assert_allclose(example["intrinsics"][0], np.tile(intrinsics, (6, 1, 1)), rtol=1e-5)
    np.testing.assert_array_equal(example["lidar_T_camera"][0, :, 0, 3], -np.arange(6))
    assert example["camera_mask"].all()
    metres = example["range_image"][0, ..., 0]
    np.testing.assert_array_equal(metres[0], -1)
    there = record["range_steps"] > 0
    np.testing.assert_allclose(metres[there], 0.002 * record["range_steps"][there], rtol=1e-5)
    np.testing.assert_allclose(example["range_image"][0, ..., 1:], record["rendered_rgb"] / 255, atol=1e-6)
    without = einet.source(config(model__render_rgb=False), prepared, "test", training=False)
    np.testing.assert_array_equal(without.example(0, rng())["range_image"][0, ..., 0], metres)


def test_points_are_drawn_from_the_sweep(prepared):
    cfg = config(model__points=400)
    source = einet.source(cfg, prepared, "train", training=True)
    example = source.example(0, rng())
    for frame, number in enumerate(example["index"]):
        stored = np.cumsum(record_of(int(number))["point_steps"].astype(np.int64), axis=0) * POINT_UNIT
        found = example["points"][frame][example["point_mask"][frame]]
        assert len(found) == 300 + number
        np.testing.assert_allclose(
            found[np.lexsort(found.T)], stored[np.lexsort(np.float32(stored).T)], atol=1e-5
        )
    few = einet.source(config(model__points=64), prepared, "train", training=True).example(0, rng())
    assert few["point_mask"].all()


def test_a_missing_camera_is_black_and_masked(prepared):
    source = einet.source(config(), prepared, "val", training=False)
    example = source.example(0, rng())
    assert example["index"] == [MISSING[0]]
    np.testing.assert_array_equal(np.flatnonzero(~example["camera_mask"][0]), [MISSING[1]])
    assert not example["images"][0, MISSING[1]].any()
    assert example["images"][0].any(axis=(1, 2, 3)).sum() == 5


def test_colours_change_in_training_alone(prepared):
    """Of images and sweep alike; never of ranges, of calibration, or of what is black."""
    cfg = config(data__augmentation__probability=1.0)
    plain = einet.source(config(), prepared, "train", training=True).example(1, rng())
    changed = einet.source(cfg, prepared, "train", training=True).example(1, rng())
    assert MISSING[0] in plain["index"]
    there = plain["camera_mask"]
    assert (np.abs(changed["images"].astype(int) - plain["images"])[there].mean(axis=(1, 2, 3)) > 3).all()
    assert not changed["images"][~there].any()
    colours, before = changed["range_image"][..., 1:], plain["range_image"][..., 1:]
    assert np.abs(colours - before).mean() > 0.01
    np.testing.assert_array_equal(changed["range_image"][..., 0], plain["range_image"][..., 0])
    np.testing.assert_array_equal(changed["intrinsics"], plain["intrinsics"])
    evaluated = (einet.source(c, prepared, "test", training=False) for c in (cfg, config()))
    np.testing.assert_array_equal(*(source.example(0, rng())["images"] for source in evaluated))


def test_pixels_of_a_frame_change_together():
    """Equal colours stay equal, wherever they are."""
    settings = config(data__augmentation__probability=1.0).data.augmentation
    colour = np.array([200, 120, 40], np.uint8)
    pictures = {"images": np.tile(colour, (6, 4, 8, 1)), "colours": np.tile(colour, (4, 33, 1))}
    pictures["colours"][1] = 0
    found = einet.recoloured(pictures, rng(1), settings)
    new = found["images"][0, 0, 0]
    assert (new != colour).any()
    np.testing.assert_array_equal(found["images"], np.broadcast_to(new, (6, 4, 8, 3)))
    assert not found["colours"][1].any()
    np.testing.assert_array_equal(found["colours"][[0, 2, 3]], np.broadcast_to(new, (3, 33, 3)))


def test_survives_pickling(prepared):
    source = einet.source(config(), prepared, "train", training=True)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again.example(1, rng())["images"], source.example(1, rng())["images"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__negatives": 5}, r"data\.negatives is 5, and the tuples of boston-seaport .* have 4"),
        ({"data__positives": 3}, r"data\.positives is 3, .* have 2"),
        ({"data__locations": ("Berlin",)}, r"data\.locations names 'Berlin'; .* has \['boston-seaport'"),
        ({"data__scheme": "empty"}, r"scheme 'empty' has no training queries at \['boston-seaport'"),
        ({"model__range_image__size": (64, 132)}, r"its range images are 32x132, .* is \(64, 132\)"),
        ({"model__range_image__fov_up": 3.0}, r"with a fov_up of 10\.0 degrees, .*fov_up is 3\.0"),
    ],
)
def test_what_the_folder_does_not_have_is_named(prepared, settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        einet.source(config(**settings), prepared, "train", training=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"converter": "lcd"}, r"expected a folder of python -m data_prep nusc_pr, .* says 'lcd'"),
        ({"cameras": list(STORED[1:])}, r"expected the cameras \['CAM_FRONT', .*, found \['CAM_BACK_LEFT'"),
    ],
)
def test_folders_that_do_not_fit_are_refused(folder, tmp_path, change: dict, message: str):
    for name in ("frames", "splits"):
        (tmp_path / name).symlink_to(folder / name)
    manifest = json.loads((folder / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(ConfigError, match=message):
        einet.source(config(), PreparedFolder(tmp_path), "train", training=True)
