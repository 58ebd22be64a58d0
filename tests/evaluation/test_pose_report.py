"""The pose report: sections, the queries' table, and the geometry behind the drawn frames."""

import csv
import io
import types

import numpy as np
import pytest

from configs.maplocnet import get_config
from placerec_jax.data.map_patch import LocationRaster
from placerec_jax.evaluation import pose, pose_report
from placerec_jax.evaluation.report import Picture, Table, Verdict, page
from placerec_jax.methods import maplocnet
from placerec_jax.ops.rigid import se2_apply

COUNT = 8
ORIGIN, CELL = np.array([300.0, -100.0]), 0.5
BUILDING = maplocnet.RASTER_CHANNELS.index("building")


class Frames:
    """Two drives along y; poses far from the origin."""

    def read(self, index, images=True):
        assert not images, "scoring must not decode images"
        map_pose_ego = np.array([340.0 + 10 * (index % 2), -60.0 + 5 * index, np.pi / 2 + 0.1 * index])
        return {
            "token": f"token-{index}".encode(),
            "scene": f"scene-{index % 2}",
            "location": "somewhere",
            "map_pose_ego": map_pose_ego,
        }


@pytest.fixture
def raster():
    return np.random.default_rng(0).integers(0, 2, (160, 180, 4)).astype(np.uint8)


@pytest.fixture
def prepared(raster):
    maps = [{"location": "somewhere", "raster": raster, "origin": ORIGIN, "cell": np.float32(CELL)}]
    tables = {"frames": Frames(), "maps": maps}
    source = {"built_in_city": False, "osm_attribution": "© those who drew it"}
    alignment = {name: {"statement": f"roads of {name} fit"} for name in ("somewhere", "elsewhere")}
    manifest = {"source": source, "alignment": alignment}
    return types.SimpleNamespace(table=tables.__getitem__, manifest=manifest)


@pytest.fixture
def rows(prepared):
    rng = np.random.default_rng(1)
    true = (rng.uniform(-1, 1, (COUNT, 3)) * [10, 10, 0.25]).astype(np.float32)
    found = {
        "index": np.arange(COUNT),
        "position": np.arange(COUNT),
        "true_pose": true,
        "pose": true + rng.normal(size=(COUNT, 3)).astype(np.float32) * np.float32([1, 1, 0.02]),
        "coarse_pose": true + np.float32(0.3),
    }
    return pose.annotate(prepared, found)


def make_examples(cfg, numbers):
    rng = np.random.default_rng(2)
    count, classes = len(numbers), len(maplocnet.SEGMENTATION_CLASSES)
    bev, patch = maplocnet.bev_grid(cfg).shape, maplocnet.map_grid(cfg).shape
    features = {
        "index": np.asarray(numbers),
        "images": rng.integers(0, 255, (count, 6, *cfg.model.image_size, 3)).astype(np.uint8),
        "bev_label": rng.integers(0, 2, (count, *bev, classes)).astype(np.uint8),
        "map_label": rng.integers(0, 2, (count, 1, *patch, classes)).astype(np.uint8),
    }
    predictions = {
        "bev_probability": rng.random((count, *bev, classes)),
        "map_probability": rng.random((count, *patch, classes)),
    }
    return features, predictions


def test_rows_learn_what_the_frames_table_says(rows):
    assert list(rows["token"][:2]) == ["token-0", "token-1"]
    assert list(rows["scene"][:3]) == ["scene-0", "scene-1", "scene-0"]
    assert rows["map_pose_ego"].dtype == np.float64
    assert rows["map_pose_ego"].shape == (COUNT, 3)


def test_page_has_every_part(prepared, rows):
    cfg = get_config("tiny")
    scores = pose.score(cfg, rows)
    examples = {"best": make_examples(cfg, [3])}
    sections = pose.report(cfg, scores, rows, examples, maplocnet, prepared)
    assert [section.title for section in sections] == [
        "Result",
        "Errors",
        "Where the errors are",
        "Best frames",
    ]
    blocks = [block for section in sections for block in section.blocks]
    assert sum(isinstance(block, Verdict) for block in blocks) == 1
    assert sum(isinstance(block, Table) for block in blocks) == 3
    assert sum(isinstance(block, Picture) for block in blocks) == 3 + 1 + 1
    text = page("title", "", {}, sections, [])
    assert "8 queries from 2 scenes" in text
    assert "© those who drew it" in text
    assert "somewhere: roads of somewhere fit" in text
    assert "roads of elsewhere fit" not in text  # no query was there
    assert "Frame 3 (token-3) of scene-1 in somewhere" in text


def test_published_rows_stand_apart_with_their_protocol(prepared, rows):
    cfg = get_config("tiny")
    table = pose_report.recall_tables(pose.score(cfg, rows), maplocnet)[0]
    kinds = [row.kind for row in table.rows]
    assert kinds[:3] == ["ours", "", "baseline"]
    assert kinds[3:] == ["divider"] + ["published"] * len(maplocnet.PUBLISHED)
    assert "nuScenes" in table.rows[3].cells[0]
    assert "not comparable" in table.rows[3].cells[0]
    assert all(len(row.cells) == len(table.header) for row in table.rows if row.kind != "divider")


def test_published_rows_are_left_out_at_other_thresholds(rows):
    cfg = get_config("tiny")
    cfg.eval.thresholds = (0.5, 1.0, 3.0)
    table = pose_report.recall_tables(pose.score(cfg, rows), maplocnet)[0]
    assert "published" not in [row.kind for row in table.rows]


def read_csv(data):
    return list(csv.DictReader(io.StringIO(data.decode())))


def test_queries_table_holds_poses_in_the_map_frame(rows):
    rows["pose"] = rows["true_pose"]
    for line, expected in zip(read_csv(pose.files(rows)["queries.csv"]), rows["map_pose_ego"], strict=True):
        corrected = [float(line[f"corrected_map_pose_{axis}"]) for axis in ("x_m", "y_m", "yaw_deg")]
        np.testing.assert_allclose(corrected, [*expected[:2], np.rad2deg(expected[2])], atol=1e-4)
        assert float(line["position_error_m"]) == pytest.approx(0.0, abs=1e-5)


def test_predicted_offset_moves_the_pose_in_the_noisy_frame(rows):
    """Without noise and predicted 2 m ahead, the corrected pose lies 2 m ahead along the true heading."""
    rows["true_pose"] = np.zeros((COUNT, 3), np.float32)
    rows["pose"] = np.tile(np.float32([2, 0, 0]), (COUNT, 1))
    for line, (x, y, yaw) in zip(
        read_csv(pose.files(rows)["queries.csv"]), rows["map_pose_ego"], strict=True
    ):
        assert float(line["corrected_map_pose_x_m"]) == pytest.approx(x + 2 * np.cos(yaw), abs=1e-4)
        assert float(line["corrected_map_pose_y_m"]) == pytest.approx(y + 2 * np.sin(yaw), abs=1e-4)


def test_drawn_map_and_drawn_pose_agree_on_a_landmark(rows):
    """A building 6 m ahead and 3 m left of the true pose is drawn there, seen from the true arrow."""
    cfg, row, ego_xy = get_config("tiny"), 5, np.array([6.0, 3.0])
    map_xy = se2_apply(rows["map_pose_ego"][row], ego_xy)
    raster = np.zeros((160, 180, 4), np.uint8)
    center = np.floor((map_xy - ORIGIN) / CELL).astype(int)
    raster[center[0] - 1 : center[0] + 2, center[1] - 1 : center[1] + 2, BUILDING] = 1
    rasters = {"somewhere": LocationRaster(raster, ORIGIN, CELL)}

    features, predictions = make_examples(cfg, [row])
    frame = pose_report.example_frame(cfg, 0, row, "", features, predictions, rows, rasters, maplocnet)

    layer = frame.map_layers["building"]
    drawn = np.argwhere(layer > 0.5).mean(axis=0)
    cell = (frame.map_grid.extent[1] - frame.map_grid.extent[0]) / layer.shape[0]
    drawn_xy = np.array(frame.map_grid.lower) + (drawn + 0.5) * cell
    np.testing.assert_allclose(drawn_xy, se2_apply(frame.poses["true"], ego_xy), atol=0.5)
