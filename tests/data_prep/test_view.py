"""The view from above: what is drawn lies where the raw files say."""

import json
import re

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.patches import Polygon

from data_prep import datasets, view
from data_prep.__main__ import main
from data_prep.city import generate
from data_prep.errors import InputError
from data_prep.raw import nuscenes, osm

VERSION = "v1.0-trainval"


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    out = tmp_path_factory.mktemp("city")
    generate.main(["--out", str(out), "--size", "tiny", "--workers", "1"])
    return out


@pytest.fixture(scope="module")
def page(city):
    """A keyframe with boxes, and its figure's middle axes."""
    dataset = datasets.open_dataset("nuscenes", city / "nuscenes", None)
    frames = view.scene_frames(dataset.frames, None)
    boxes = view.read_annotations(city / "nuscenes" / VERSION, frames[2].token)
    extract = osm.read_osm(city / "osm" / "boston-seaport.osm")
    figure = view.draw_view(dataset, frames, 2, boxes, [extract], 55.0)
    axes = next(axes for axes in figure.axes if "keyframe" in axes.get_title())
    return dataset, frames[2], boxes, figure, axes


def test_command_writes_a_picture(city, tmp_path, capsys):
    out = tmp_path / "new" / "view.png"
    arguments = ["view", "--raw", str(city / "nuscenes"), "--osm", str(city / "osm" / "boston-seaport.osm")]
    assert main([*arguments, "--scene", "scene-0001", "--keyframe", "5", "--out", str(out)]) == 0
    assert "scene-0001, keyframe 5 of 6" in capsys.readouterr().out
    image = cv2.imread(str(out))
    assert min(image.shape[:2]) > 800
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 1000
    assert [path.name for path in out.parent.iterdir()] == ["view.png"]


def test_the_page_has_the_vehicle_at_its_middle_looking_up(page):
    _, frame, _, _, _ = page
    see = view.page_of(frame)
    pose = frame.map_pose_ego
    forward, left = (
        np.array([np.cos(pose[2]), np.sin(pose[2])]),
        np.array([-np.sin(pose[2]), np.cos(pose[2])]),
    )
    np.testing.assert_allclose(see(pose[:2]), 0, atol=1e-9)
    np.testing.assert_allclose(see(pose[:2] + 7 * forward), [0, 7], atol=1e-6)
    np.testing.assert_allclose(see(pose[:2] + 3 * left), [-3, 0], atol=1e-6)


def test_boxes_are_drawn_where_they_are(page):
    _, frame, boxes, _, axes = page
    see = view.page_of(frame)
    drawn = [p.get_xy()[:4].mean(0) for p in axes.patches if isinstance(p, Polygon) and len(p.get_xy()) == 5]
    expected = np.array([see(box.map_T_box[:2, 3]) for box in boxes])
    inside = expected[np.abs(expected).max(1) < 45]
    assert len(inside) > 0
    for centre in inside:
        assert min(np.hypot(*(centre - other)) for other in drawn) < 1e-6


def test_boxes_are_those_of_the_tables(city, page):
    _, frame, boxes, _, _ = page
    tables = {p.stem: json.loads(p.read_text()) for p in (city / "nuscenes" / VERSION).glob("*.json")}
    records = [r for r in tables["sample_annotation"] if r["sample_token"] == frame.token]
    assert len(boxes) == len(records) > 0
    for box, record in zip(boxes, records, strict=True):
        assert box.map_T_box[:3, 3].tolist() == record["translation"]
        assert list(box.size) == record["size"]
        w, x, y, z = record["rotation"]
        assert np.arctan2(*box.map_T_box[[1, 0], 0]) == pytest.approx(
            np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)), abs=1e-9
        )
    assert {box.category for box in boxes} <= {"vehicle.car", "vehicle.truck", "vehicle.bus.rigid"} | {
        "human.pedestrian.adult",
        "human.pedestrian.child",
    }


def test_every_camera_has_its_wedge_and_its_image(page):
    """The wedge's colour is that of the image's frame, and it opens along the camera's axis."""
    _, frame, _, figure, axes = page
    titles = {other.get_title(): other for other in figure.axes}
    assert {camera.channel for camera in frame.cameras} <= set(titles)
    see = view.page_of(frame)
    wedges = {p.get_facecolor()[:3]: p.get_xy() for p in axes.patches if p.get_alpha() == 0.13}
    assert len(wedges) == 6
    for camera in frame.cameras:
        colour = to_rgb(titles[camera.channel].spines["left"].get_edgecolor())
        wedge = wedges[colour]
        axis = (camera.map_T_ego @ camera.ego_T_camera)[:2, 2]
        axis = see(axis + frame.map_T_ego[:2, 3])
        opening = wedge[1:3].mean(0) - wedge[0]
        assert opening @ axis / np.hypot(*opening) / np.hypot(*axis) > 0.995
    fields = [np.degrees(np.arccos(_cosine(w[1] - w[0], w[2] - w[0]))) for w in wedges.values()]
    assert sorted(fields)[:5] == pytest.approx([65] * 5, abs=2)  # nuScenes: 65°, and 89° behind
    assert max(fields) == pytest.approx(89, abs=3)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.hypot(*a) / np.hypot(*b))


def test_all_points_are_drawn(page):
    dataset, frame, _, _, axes = page
    points = dataset.read_sweep(frame.lidar.path)
    drawn = next(c for c in axes.collections if len(c.get_offsets()) == len(points))
    distance = np.hypot(*np.asarray(drawn.get_offsets()).T)
    flat = np.hypot(*points[:, :2].T)
    assert np.median(distance) == pytest.approx(np.median(flat), rel=0.15)


def test_a_root_without_annotations_is_drawn_without_boxes(tiny, tmp_path):
    points = np.zeros((30, 5), np.float32)
    points[:, 0] = np.arange(30)
    points.tofile(tiny.root / "samples" / nuscenes.LIDAR / "sweep.pcd.bin")
    out = tmp_path / "view.png"
    assert main(["view", "--raw", str(tiny.root), "--out", str(out)]) == 0
    assert out.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scene", "scene-9999"], r"expected one of the 3 scenes scene-0001.*found 'scene-9999'"),
        (["--keyframe", "2"], r"expected a number from 0 to 1 in scene-0001, found 2"),
        (["--osm", "nowhere.osm"], r"nowhere.osm: expected an OpenStreetMap extract"),
    ],
)
def test_what_is_not_there_is_named(tiny, tmp_path, capsys, arguments, message):
    assert main(["view", "--raw", str(tiny.root), "--out", str(tmp_path / "v.png"), *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "v.png").exists()


@pytest.mark.parametrize(
    "damage",
    [
        {"rotation": [0, 0, 0, 0]},
        {"size": [1, 2]},
        {"translation": [float("nan"), 0, 0]},
        {"instance_token": "nobody"},
    ],
)
def test_damaged_annotations_are_refused(city, tmp_path, damage):
    folder = tmp_path / VERSION
    folder.mkdir()
    for name in ("category", "attribute", "instance", "sample_annotation"):
        records = json.loads((city / "nuscenes" / VERSION / f"{name}.json").read_text())
        if name == "sample_annotation":
            records[0].update(damage)
            sample = records[0]["sample_token"]
        (folder / f"{name}.json").write_text(json.dumps(records))
    with pytest.raises(InputError, match=r"expected annotations with category, size"):
        view.read_annotations(folder, sample)


@pytest.mark.real_data
def test_the_real_keyframe_is_drawn(real_data, tmp_path):
    out = tmp_path / "view.png"
    extract = real_data / "osm" / "singapore-onenorth.osm"
    arguments = ["view", "--raw", str(real_data / "nuscenes"), "--osm", str(extract), "--out", str(out)]
    assert main(arguments) == 0
    assert out.stat().st_size > 100_000
