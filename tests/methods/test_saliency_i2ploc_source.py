"""Examples of SaliencyI2PLoc from a prepared folder: what they hold, that they repeat, what does not fit."""

import json

import numpy as np
import pytest

from configs import saliency_i2ploc as configs
from data_prep.__main__ import main
from placerec_jax.data.pipeline import check_example
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.errors import ConfigError
from placerec_jax.methods import saliency_i2ploc as i2p
from placerec_jax.ops.point_steps import decode_points
from tests.data_prep import scan_trees

FRAMES, SEQUENCE = tuple(range(12)), "0003"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> PreparedFolder:
    folder = tmp_path_factory.mktemp("i2p")
    tree = scan_trees.write_kitti360(folder / "raw", FRAMES, FRAMES, images=False, fisheyes=True)
    options = ["--format", "kitti360", "--image", "pano", "--image-size", "48x96", "--workers", "1"]
    splits = ["--train", SEQUENCE]
    main(["i2p", "--raw", str(tree.root), "--out", str(folder / "out"), *options, *splits])
    return PreparedFolder(folder / "out")


def config(**settings):
    cfg = configs.get_config("tiny")
    cfg.update_from_flattened_dict({key.replace("__", "."): value for key, value in settings.items()})
    return cfg


@pytest.mark.parametrize("split", ["train", "train_query"])
@pytest.mark.parametrize("training", [True, False])
def test_examples_are_what_the_features_say_and_repeat(prepared, split: str, training: bool):
    cfg = config(data__augmentation__sectors=3)
    source = i2p.source(cfg, prepared, split, training)
    assert len(source) == len(prepared.split("official", split)) > 0
    for index in range(len(source)):
        one, again = (source.example(index, np.random.default_rng(5)) for _ in range(2))
        check_example(one, i2p.features(cfg, training))
        for name, value in one.items():
            np.testing.assert_array_equal(value, again[name], err_msg=name)


def test_example_is_its_record(prepared):
    """All points are there while the network takes more; position counts from the first of the sequence."""
    cfg = config(model__points__num=5000)
    source = i2p.source(cfg, prepared, "train", training=False)
    table = prepared.table("frames")
    first = table[0]["position"]
    for index, number in enumerate(prepared.split("official", "train")):
        example, record = source.example(index, np.random.default_rng(0)), table[int(number)]
        xyz = decode_points(record["point_steps"])
        assert 0 < len(xyz) < 5000
        found = example["points"][example["point_mask"]]
        np.testing.assert_array_equal(found[np.lexsort(found.T)], xyz[np.lexsort(xyz.T)])
        np.testing.assert_allclose(example["position"], (record["position"] - first)[:2], atol=1e-4)
        assert (example["index"], example["is_query"]) == (number, record["is_query"])
        assert example["image"].shape == (64, 128, 3)  # of the network; 48 x 96 are stored


def test_points_at_evaluation_depend_on_the_frame_alone(prepared):
    cfg = config(model__points__num=32)
    few = i2p.source(cfg, prepared, "train_query", training=False)
    every = i2p.source(cfg, prepared, "train", training=False)
    numbers = list(prepared.split("official", "train"))
    for index, number in enumerate(prepared.split("official", "train_query")):
        one = few.example(index, np.random.default_rng(1))
        other = every.example(numbers.index(number), np.random.default_rng(2))
        np.testing.assert_array_equal(one["points"], other["points"])
    training = i2p.source(cfg, prepared, "train", training=True)
    one, other = (training.example(0, np.random.default_rng(seed))["points"] for seed in (1, 2))
    assert not np.array_equal(one, other)


def test_folders_that_do_not_fit_are_refused(prepared, tmp_path):
    (tmp_path / "splits").symlink_to(prepared.root / "splits")
    (tmp_path / "frames").symlink_to(prepared.root / "frames")
    manifest = json.loads((prepared.root / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "converter": "lcd"}))
    with pytest.raises(ConfigError, match=r"expected a folder of python -m data_prep i2p, .* says 'lcd'"):
        i2p.source(config(), PreparedFolder(tmp_path), "train", training=False)

    image = {**manifest["image"], "kind": "image_00"}
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "image": image}))
    with pytest.raises(ConfigError, match=r"its images are 'image_00', config\.data\.image_kind is 'pano'"):
        i2p.source(config(), PreparedFolder(tmp_path), "train", training=True)
    flat = {"data__augmentation__turn": 0.0, "data__augmentation__sectors": 1, "data__image_kind": "image_00"}
    i2p.source(config(**flat), PreparedFolder(tmp_path), "train", training=True)
    for name, value in (("turn", 9.0), ("sectors", 2)):
        wanted = config(**(flat | {f"data__augmentation__{name}": value}))
        with pytest.raises(ConfigError, match=rf"augmentation\.{name} needs panoramas, .* are 'image_00'"):
            i2p.source(wanted, PreparedFolder(tmp_path), "train", training=True)
