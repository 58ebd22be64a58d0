"""KITTI-360 and KITTI to a prepared folder of images and submaps and back, and what may be wrong."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep import i2p_records, i2p_view, panorama, sequence_maps
from data_prep.__main__ import main
from data_prep.raw import kitti360
from data_prep.raw.scan_files import list_numbered
from data_prep.submaps import MapRecipe
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.ops.point_steps import POINT_UNIT, decode_points
from tests.data_prep import scan_trees
from tests.data_prep.test_kitti_oxts import write as write_oxts
from tests.data_prep.test_lcd import add_sequence
from tests.data_prep.test_sequence_maps import in_order, map_by_hand

FRAMES = [1, 2, 3, 6, 7]  # those of scan_trees.write_kitti360 that have a pose and a scan
SIZE = ["--image-size", "32x64"]


def convert(raw: Path, out: Path, *options: str, raw_format: str = "kitti360") -> int:
    return main(
        ["i2p", "--raw", str(raw), "--format", raw_format, "--out", str(out), "--workers", "1", *options]
    )


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> scan_trees.Kitti360Tree:
    return scan_trees.write_kitti360(tmp_path_factory.mktemp("kitti360"), fisheyes=True)


@pytest.fixture(scope="module")
def prepared(tree, tmp_path_factory) -> PreparedFolder:
    out = tmp_path_factory.mktemp("prepared") / "i2p"
    assert convert(tree.root, out, *SIZE, "--train", "0003") == 0
    return PreparedFolder(out)


@pytest.fixture
def own_tree(tree, tmp_path) -> scan_trees.Kitti360Tree:
    """A copy to damage."""
    shutil.copytree(tree.root, tmp_path / "raw")
    return scan_trees.Kitti360Tree(tmp_path / "raw", tree.frame_ids, tree.map_T_lidar)


def camera3(tree: scan_trees.Kitti360Tree, frame: int) -> np.ndarray:
    """(3,) where the right fisheye is, by the tree's own transforms."""
    world_T_imu = tree.map_T_lidar @ scan_trees.LIDAR_T_CAMERA0 @ np.linalg.inv(scan_trees.IMU_T_CAMERA0)
    pose = world_T_imu[tree.frame_ids.index(frame)] @ scan_trees.IMU_T_FISHEYE["image_03"]
    return pose[:3, 3]


class TestKitti360:
    def test_frames_have_pose_and_scan_and_the_rest_is_counted(self, prepared):
        frames = prepared.table("frames")
        assert [frames[i]["frame_id"] for i in range(len(frames))] == FRAMES
        its = prepared.manifest["sequences"]["0003"]
        assert its["scans_without_pose"] == 2  # 0 and 4
        assert its["poses_without_scan"] == 1  # 12
        assert (its["frames"], its["queries"], its["database"]) == (5, 1, 4)
        assert prepared.manifest["counts"] == {"frames": 5, "sequences": 1, "queries": 1}

    def test_submaps_are_the_map_by_its_definition(self, tree, prepared):
        (sequence,) = kitti360.read_sequences(tree.root)
        expected = map_by_hand(sequence.scans, MapRecipe())
        for record, scan in zip(map(prepared.table("frames").read, range(5)), sequence.scans, strict=True):
            xyz = decode_points(record["point_steps"])
            homogeneous = np.column_stack([expected[:, :3], np.ones(len(expected))])
            lidar = homogeneous @ np.linalg.inv(scan.map_T_lidar).T
            inside = (np.abs(lidar[:, :2]) < 20).all(axis=1)
            assert 10 < inside.sum() < len(expected)
            np.testing.assert_allclose(in_order(xyz), in_order(lidar[inside, :3]), atol=POINT_UNIT / 2 + 1e-4)
            assert len(record["reflectance"]) == len(xyz)
            np.testing.assert_allclose(record["map_T_lidar"], scan.map_T_lidar)

    def test_positions_are_of_camera_3_and_queries_by_travel(self, tree, prepared):
        """Steps of 1.2, 1.2, 3.5 and 1.2 m: after the third more than 3 m have been travelled."""
        for i, frame in enumerate(FRAMES):
            record = prepared.table("frames")[i]
            np.testing.assert_allclose(record["position"], camera3(tree, frame), atol=1e-8)
            assert record["is_query"] == (frame == 6)
        np.testing.assert_array_equal(prepared.split("official", "train_query"), [3])
        np.testing.assert_array_equal(prepared.split("official", "train_database"), [0, 1, 2, 4])
        np.testing.assert_array_equal(prepared.split("official", "0003"), range(5))
        assert not len(prepared.split("official", "test"))
        np.testing.assert_array_equal(prepared.split("released_cfg", "train"), range(5))

    def test_panoramas_are_the_pair_stitched(self, prepared):
        """The left half shows image_02, the right one image_03 (fisheyes of one colour each)."""
        image = prepared.table("frames")[0]["image"].astype(int)
        assert image.shape == (32, 64, 3)
        for half, name in ((image[12:20, 6:26], "image_02"), (image[12:20, 38:58], "image_03")):
            assert np.abs(half - scan_trees.FISHEYE_COLOURS[name]).max() < 12

    @pytest.mark.parametrize("method", panorama.METHODS)
    def test_every_method_converts(self, tree, tmp_path, method):
        assert convert(tree.root, tmp_path / "out", *SIZE, "--pano", method, "--pano-rows", "0.1,0.9") == 0
        found = PreparedFolder(tmp_path / "out")
        assert found.manifest["image"]["pano"] == method
        assert found.manifest["image"]["rows"] == [0.1, 0.9]
        assert found.table("frames")[0]["image"].shape == (32, 64, 3)

    def test_a_perspective_camera_and_own_scans(self, tree, tmp_path):
        assert convert(tree.root, tmp_path / "out", "--image", "image_00", *SIZE, "--submap", "scan") == 0
        record = PreparedFolder(tmp_path / "out").table("frames")[4]
        np.testing.assert_allclose(
            decode_points(record["point_steps"]), scan_trees.scan(7)[:, :3], atol=POINT_UNIT / 2 + 1e-5
        )
        assert np.abs(record["image"].astype(int) - 90).max() < 3

    def test_too_many_points_are_sampled_alike_each_time(self, tree, tmp_path):
        for name in "ab":
            assert convert(tree.root, tmp_path / name, *SIZE, "--max-points", "12") == 0
        a, b = (PreparedFolder(tmp_path / name) for name in "ab")
        assert a.fingerprint == b.fingerprint
        assert {len(a.table("frames")[i]["reflectance"]) for i in range(5)} == {12}

    def test_csv_files_come_back(self, tree, prepared, tmp_path):
        published = prepared.root / "splits_csv"
        assert sorted(p.name for p in published.glob("*/*")) == ["database.csv", "query.csv"]
        assert (
            published.joinpath(tree.folder, "query.csv")
            .read_text()
            .splitlines()[1]
            .startswith("0,6aaaaaaaaa,")
        )
        own = tmp_path / "csv"
        shutil.copytree(published, own)
        lines = (own / tree.folder / "database.csv").read_text().splitlines()
        (own / tree.folder / "database.csv").write_text("\n".join(lines[:-1]) + "\n")  # without frame 7
        assert convert(tree.root, tmp_path / "out", *SIZE, "--train", "0003", "--split-csv", str(own)) == 0
        found = PreparedFolder(tmp_path / "out")
        np.testing.assert_array_equal(found.split("official", "train"), range(4))
        np.testing.assert_array_equal(found.split("official", "train_query"), [3])

    def test_queries_in_the_database(self, tree, tmp_path):
        options = [*SIZE, "--test", "0003", "--queries-in-database"]
        assert convert(tree.root, tmp_path / "out", *options) == 0
        np.testing.assert_array_equal(
            PreparedFolder(tmp_path / "out").split("official", "test_database"), range(5)
        )


class TestRunning:
    def test_maps_are_removed_or_kept(self, tree, prepared, tmp_path):
        assert not prepared.root.with_name("i2p.maps").exists()
        assert convert(tree.root, tmp_path / "a", *SIZE, "--maps", str(tmp_path / "maps")) == 0
        kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").glob("*/*")}
        assert kept
        options = ["--pano", "mei", *SIZE, "--maps", str(tmp_path / "maps")]
        assert convert(tree.root, tmp_path / "b", *options) == 0
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").glob("*/*")} == kept

    def test_run_again_changes_nothing_and_builds_nothing(self, tree, prepared, monkeypatch):
        monkeypatch.setattr(sequence_maps, "build_maps", lambda *_: pytest.fail("built again"))
        assert convert(tree.root, prepared.root, *SIZE, "--train", "0003") == 0
        assert PreparedFolder(prepared.root).fingerprint == prepared.fingerprint

    def test_other_settings_are_refused_before_long_work(self, tree, prepared, monkeypatch, capsys):
        monkeypatch.setattr(sequence_maps, "build_maps", lambda *_: pytest.fail("built"))
        assert convert(tree.root, prepared.root, *SIZE, "--train", "0003", "--crop", "10") == 1
        assert "crop" in capsys.readouterr().err

    def test_goes_on_after_an_interrupt(self, tree, prepared, tmp_path, monkeypatch):
        out = tmp_path / "i2p"
        with monkeypatch.context() as patch:
            patch.setattr(i2p_records, "encoded", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
            assert convert(tree.root, out, *SIZE, "--train", "0003") == 130
        assert not (out / "manifest.json").exists()
        assert out.with_name("i2p.maps").is_dir()
        assert convert(tree.root, out, *SIZE, "--train", "0003") == 0
        assert PreparedFolder(out).fingerprint == prepared.fingerprint
        assert not out.with_name("i2p.maps").exists()

    def test_it_says_what_it_did(self, tree, prepared, tmp_path, capsys):
        more_than_median = prepared.manifest["sequences"]["0003"]["points"][1] + 1
        assert convert(tree.root, tmp_path / "i2p", *SIZE, "--min-points", str(more_than_median)) == 0
        said = capsys.readouterr().out
        assert "2 scans have no pose and are left out" in said
        assert "positions of camera 3" in said
        few = json.loads((tmp_path / "i2p" / "manifest.json").read_text())["sequences"]["0003"][
            "too_few_points"
        ]
        assert 0 < few < 5
        assert f"{few} frames have too small a submap" in said

    def test_the_view_draws_it(self, prepared, tmp_path, capsys):
        out = tmp_path / "view.png"
        options = ["--prepared", str(prepared.root), "--frame", "6", "--out", str(out)]
        assert main(["i2p_view", *options]) == 0
        picture = cv2.imread(str(out))
        assert picture.shape[0] > 800
        assert picture.std() > 20
        assert main(["i2p_view", "--prepared", str(prepared.root), "--frame", "5", "--out", str(out)]) == 1
        assert "one of the 5 frames" in capsys.readouterr().err


def test_a_submap_as_panorama():
    """Left at a quarter of the width, in front in the middle, up above; the nearest point wins."""
    xyz = np.array([[0, 10, 0.1], [0, 5, 0.05], [8, -0.01, -0.1], [-3, 0.1, 0], [1, -1e-3, 1]])
    picture = i2p_view.as_panorama(xyz, size=(40, 80))
    np.testing.assert_allclose(picture[19, 20], 5.0, atol=1e-3)
    np.testing.assert_allclose(picture[20, 40], 8.0, atol=1e-3)
    np.testing.assert_allclose(picture[10, 40], np.sqrt(2), atol=1e-3)
    assert np.isfinite(picture[:, 0]).any()
    assert np.isfinite(picture).sum() == 4


class TestBadInput:
    def refused(self, capsys, *arguments: str, **options: str) -> str:
        assert convert(*arguments, **options) == 1
        return capsys.readouterr().err

    def test_missing_fisheye_images(self, own_tree, tmp_path, capsys):
        (own_tree.fisheyes("image_03") / "0000000003.png").unlink()
        (own_tree.fisheyes("image_02") / "0000000007.png").unlink()
        error = self.refused(capsys, own_tree.root, tmp_path / "out", *SIZE)
        assert "image_02/data_rgb: expected a PNG image of each of 5 scans, found none of 1" in error
        assert "frame 7" in error
        assert convert(own_tree.root, tmp_path / "out", *SIZE, "--missing-images", "skip") == 0
        found = PreparedFolder(tmp_path / "out")
        assert [found.table("frames")[i]["frame_id"] for i in range(3)] == [1, 2, 6]
        its = found.manifest["sequences"]["0003"]
        assert (its["missing_images"], its["missing_images_frames"]) == (2, [3, 7])
        assert "2 frames have no image" in capsys.readouterr().out

    def test_no_images_at_all(self, own_tree, tmp_path, capsys):
        shutil.rmtree(own_tree.fisheyes("image_02"))
        error = self.refused(capsys, own_tree.root, tmp_path / "out", *SIZE, "--missing-images", "skip")
        assert "expected frames with a pose, an image and a submap, found none" in error

    def test_damaged_image(self, own_tree, tmp_path, capsys):
        path = own_tree.fisheyes("image_03") / "0000000003.png"
        path.write_bytes(path.read_bytes()[:-40])
        assert f"{path}: expected a whole PNG image" in self.refused(
            capsys, own_tree.root, tmp_path / "o", *SIZE
        )
        assert not (tmp_path / "o" / "manifest.json").exists()

    def test_images_of_two_sizes(self, own_tree, tmp_path, capsys):
        scan_trees.write_image(own_tree.fisheyes("image_03") / "0000000006.png", (50, 50))
        assert "found 50 x 50" in self.refused(capsys, own_tree.root, tmp_path / "out", *SIZE)

    @pytest.mark.parametrize("camera", ["image_00", "image_03"])
    def test_calibration_without_a_camera(self, own_tree, tmp_path, capsys, camera):
        path = own_tree.calibration / "calib_cam_to_pose.txt"
        lines = [line for line in path.read_text().splitlines() if not line.startswith(camera)]
        path.write_text("\n".join(lines) + "\n")
        error = self.refused(capsys, own_tree.root, tmp_path / "out", *SIZE)
        assert f"calib_cam_to_pose.txt: expected the key {camera}" in error

    def test_missing_fisheye_calibration_matters_to_mei_alone(self, own_tree, tmp_path, capsys):
        (own_tree.calibration / "image_02.yaml").unlink()
        error = self.refused(capsys, own_tree.root, tmp_path / "out", *SIZE, "--pano", "mei")
        assert "image_02.yaml: expected this file, found none" in error
        assert not (tmp_path / "out.maps").exists()  # said before long work
        assert convert(own_tree.root, tmp_path / "out", *SIZE) == 0

    def test_calibration_of_other_images_shows_before_long_work(self, own_tree, tmp_path, capsys):
        path = own_tree.calibration / "image_03.yaml"
        width, height = scan_trees.FISHEYE_SIZE
        written = path.read_text()
        path.write_text(re.sub("image_width: *[0-9]+", "image_width: 1400", written))
        assert path.read_text() != written
        error = self.refused(capsys, own_tree.root, tmp_path / "out", *SIZE, "--pano", "mei")
        assert "image_03/data_rgb/0000000001.png: expected 1400 x" in error
        assert f"found {width} x {height}" in error
        assert not (tmp_path / "out.maps").exists()

    def test_another_mounting_is_another_folder(self, own_tree, tmp_path, capsys):
        """Of camera 2, which nothing but the panorama depends on."""
        path = own_tree.calibration / "calib_cam_to_pose.txt"
        assert convert(own_tree.root, tmp_path / "out", *SIZE, "--pano", "mei") == 0
        rows = [line.split() for line in path.read_text().splitlines()]
        for row in rows:
            if row[0].startswith("image_02"):
                row[4] = str(float(row[4]) + 1)  # m
        path.write_text("".join(" ".join(row) + "\n" for row in rows))
        error = self.refused(capsys, own_tree.root, tmp_path / "out", *SIZE, "--pano", "mei")
        assert "begun with other settings or inputs (inputs" in error

    def test_empty_submaps_are_left_out_and_counted(self, own_tree, tmp_path, capsys):
        """All scans show the car alone but one, whose points lie about the last frame only."""
        for number, path in list_numbered(own_tree.scans, ".bin").items():
            points = np.zeros((30, 4), np.float32)
            if number == 7:
                points[:] = np.random.default_rng(0).uniform(-0.5, 0.5, (30, 4)) ** 2
                points[:, 0] += 19.0
            points.tofile(path)
        assert convert(own_tree.root, tmp_path / "out", *SIZE) == 0
        found = PreparedFolder(tmp_path / "out")
        its = found.manifest["sequences"]["0003"]
        assert its["frames"] + its["too_few_points"] == 5
        assert its["too_few_points_frames"][:3] == [1, 2, 3]
        assert found.table("frames")[its["frames"] - 1]["frame_id"] == 7
        assert its["points"][0] > 0
        for path in list_numbered(own_tree.scans, ".bin").values():
            np.zeros((30, 4), np.float32).tofile(path)
        assert "found none in any sequence" in self.refused(capsys, own_tree.root, tmp_path / "none", *SIZE)

    def test_damaged_scan(self, own_tree, tmp_path, capsys):
        path = own_tree.scans / "0000000003.bin"
        np.full((9, 4), np.nan, np.float32).tofile(path)
        assert "0000000003.bin: expected finite numbers" in self.refused(
            capsys, own_tree.root, tmp_path / "out"
        )

    def test_sequences_whose_poses_are_withheld_are_named(self, own_tree, tmp_path, capsys):
        scans = own_tree.root / "data_3d_raw" / "2013_05_28_drive_0008_sync" / "velodyne_points" / "data"
        scans.mkdir(parents=True)
        assert convert(own_tree.root, tmp_path / "out", *SIZE) == 0
        assert "0008: scans without poses, left out" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["--image", "image_2"], "--image: expected pano or image_00 or image_01"),
            (["--train", "0009"], "--train: expected names of sequences (0003), found 0009"),
            (["--train", "0003", "--test", "0003"], "--test: expected sequences that do not train, found 00"),
            (["--split-csv", "nowhere"], "--split-csv: expected a folder"),
            (["--split-csv", "."], "expected a folder of CSV files for one sequence at least (2013_05_28_dr"),
            (["--raw-oxts", "."], "--raw-oxts: expected --format kitti, found kitti360"),
            (["--image", "image_00", "--pano-rows", "0.1,0.9"], "--image image_00: expected no --pano nor"),
            (["--image", "image_00", "--pano", "mei"], "--image image_00: expected no --pano nor"),
            (["--submap", "scan", "--remove-ground"], "--submap scan: expected no"),
            (["--sequences", "0005"], "0005"),
        ],
    )
    def test_options_that_do_not_fit(self, tree, tmp_path, capsys, options, expected):
        assert expected in self.refused(capsys, tree.root, tmp_path / "out", *options)


@pytest.fixture(scope="module")
def kitti(tmp_path_factory) -> scan_trees.KittiTree:
    """Sequence 03 of eight frames, and its first frames as 00, 02 and 05."""
    tree = scan_trees.write_kitti(tmp_path_factory.mktemp("kitti"), frames=8)
    for name, frames in (("00", 8), ("02", 4), ("05", 5)):
        add_sequence(tree, name, frames)
    return tree


class TestKitti:
    def test_own_scans_images_and_whole_sequences(self, kitti, tmp_path, capsys):
        assert convert(kitti.root, tmp_path / "out", raw_format="kitti") == 0
        found = PreparedFolder(tmp_path / "out")
        record = found.table("frames")[3]  # sequences 00, 02, 03, 05
        np.testing.assert_allclose(
            decode_points(record["point_steps"]), scan_trees.scan(3)[:, :3], atol=POINT_UNIT / 2 + 1e-5
        )
        assert record["image"].shape == (368, 1232, 3)
        np.testing.assert_array_equal(found.split("official", "test"), range(8))
        np.testing.assert_array_equal(found.split("official", "val"), range(8, 12))
        np.testing.assert_array_equal(found.split("official", "train"), range(20, 25))
        # 1.17 m a frame: 3 m or more from the last query after three frames.
        np.testing.assert_array_equal(found.split("official", "test_query"), [0, 3, 6])
        assert "00 is divided by whole, for want of absolute positions" in capsys.readouterr().out

    def test_recordings_in_another_folder(self, kitti, tmp_path, capsys):
        (tmp_path / "2011_10_03_drive_0027_sync" / "oxts" / "data").mkdir(parents=True)
        options = ["--raw-oxts", str(tmp_path)]
        assert convert(kitti.root, tmp_path / "out", *options, raw_format="kitti") == 1
        assert "expected the raw recording of one sequence at least" in capsys.readouterr().err

    def test_squares_from_raw_recordings(self, kitti, tmp_path):
        """Sequence 00 leaves a square of VXP's after three frames, by its GPS."""
        east, north = 613180, 4116330
        scale = np.cos(np.deg2rad(49.0)) * 6378137.0
        first = {0: (49.0, 8.4, 0.0)}  # sets the scale, and is frame 0: far outside
        latitude = np.rad2deg(2 * np.arctan(np.exp(north / scale)) - np.pi / 2)
        inside = {i: (latitude, float(np.rad2deg((east + 30 + 9 * i) / scale)), 0.0) for i in range(1, 8)}
        write_oxts(tmp_path / "oxts", "2011_10_03_drive_0027", first | inside)
        options = ["--raw-oxts", str(tmp_path / "oxts"), "--image-size", "16x48"]
        assert convert(kitti.root, tmp_path / "out", *options, raw_format="kitti") == 0
        found = PreparedFolder(tmp_path / "out")
        np.testing.assert_array_equal(found.split("official", "test"), [1, 2])  # 39 and 48 m of 50
        np.testing.assert_array_equal(found.split("official", "train"), [0, *range(3, 8), *range(20, 25)])
        assert found.manifest["sequences"]["00"]["divided_by"] == "VXP's squares"
        assert "of 00 the GPS" in found.manifest["position_of"]
        position = found.table("frames")[1]["position"]
        np.testing.assert_allclose(position[:2], [east + 39, north], atol=1e-3)
