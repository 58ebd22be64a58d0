"""What MapLocNet's examples show of the map: the chosen channels, or class numbers."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from configs import maplocnet as configs
from placerec_jax.errors import ConfigError
from placerec_jax.methods import maplocnet

ROAD, BUILDING, NODE, DRIVABLE = range(4)


class Table(list):
    """Records in memory, read like a table on disk."""

    def read(self, number: int, images: bool) -> dict:
        assert not images
        return self[number]


def prepared(cfg, with_classes: bool = True):
    """One frame in the middle of a map of 200 m: road ahead, building to the left, a signal to the right."""
    raster = np.zeros((400, 400, 4), np.uint8)
    raster[200:240, 190:210, ROAD] = raster[200:240, 180:220, DRIVABLE] = 1
    raster[190:230, 230:260, BUILDING] = 1
    raster[210:214, 170:174, NODE] = 1
    classes = np.zeros((400, 400, 3), np.uint8)
    classes[190:230, 230:260, 0] = 1
    classes[200:240, 190:210, 1] = 10
    classes[210:214, 170:174, 2] = 33
    record = {"location": "town", "raster": raster, "origin": np.zeros(2), "cell": 0.5}
    if with_classes:
        record["classes"] = classes
    _, jpeg = cv2.imencode(".jpg", np.full((90, 160, 3), 128, np.uint8))
    cameras = list(cfg.data.cameras)
    frame = {
        "location": "town",
        "map_pose_ego": np.array([100.0, 100.0, 0.0]),
        "images": [jpeg.tobytes()] * len(cameras),
        "intrinsics": np.tile(
            np.array([[80.0, 0, 80], [0, 80, 45], [0, 0, 1]], np.float32), (len(cameras), 1, 1)
        ),
        "ego_T_camera": np.tile(np.eye(4, dtype=np.float32), (len(cameras), 1, 1)),
    }
    tables = {"frames": Table([frame]), "maps": Table([record])}
    return SimpleNamespace(
        table=tables.__getitem__, split=lambda scheme, split: np.array([0]), manifest={"cameras": cameras}
    )


def patch_of(**settings) -> np.ndarray:
    """(H, W, 3) at the true pose, without noise."""
    cfg = configs.get_config("tiny")
    cfg.data.noise_xy = cfg.data.noise_yaw = 0.0
    for name, value in settings.items():
        cfg.model[name] = value
    source = maplocnet.source(cfg, prepared(cfg), "val", training=False)
    return source.example(0, np.random.default_rng(0))["map_patch"][0]


def test_channels_left_out_are_zero_and_the_others_unchanged():
    every = patch_of()
    assert [int(every[..., i].max()) for i in range(3)] == [255, 255, 255]
    some = patch_of(map_channels=("building",))
    np.testing.assert_array_equal(some[..., 1], every[..., 1])
    assert not some[..., [0, 2]].any()


def test_class_numbers_are_those_of_the_map():
    """No blending between class numbers: only what the map holds, where coverage says so, too."""
    coverage, classes = patch_of(), patch_of(osm_style="orienternet")
    assert [sorted(set(classes[..., i].ravel())) for i in range(3)] == [[0, 1], [0, 10], [0, 33]]
    for plane, channel in ((0, 1), (1, 0), (2, 2)):
        whole = coverage[..., channel] == 255
        assert whole.any()
        assert classes[..., plane][whole].all()


def test_what_cannot_be_shown_is_refused():
    with pytest.raises(ConfigError, match="names 'lanes'; expected a choice of"):
        patch_of(map_channels=("lanes",))
    with pytest.raises(ConfigError, match="osm_style 'maplocnet' only"):
        patch_of(osm_style="orienternet", map_channels=("road",))
    cfg = configs.get_config("tiny")
    cfg.model.osm_style = "orienternet"
    with pytest.raises(ConfigError, match="have no 'classes': convert the dataset again"):
        maplocnet.source(cfg, prepared(cfg, with_classes=False), "val", training=False)
