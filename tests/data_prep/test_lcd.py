"""KITTI and KITTI-360 to a prepared folder and back, against projections and records made by hand."""

import functools
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep import lcd_view, scan_records, tables
from data_prep.__main__ import main
from data_prep.raw import kitti, kitti360
from data_prep.raw.scans import ScanImage
from placerec_jax.data import scans
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.data.records import RecordTable
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.point_steps import POINT_UNIT
from tests.data_prep import scan_trees

GRID, Z = Grid2D((-32.0, 32.0, -32.0, 32.0), 0.2), (-2.5, 1.5)


def convert(raw, out, *options, raw_format="kitti"):
    return main(
        ["lcd", "--raw", str(raw), "--format", raw_format, "--out", str(out), "--workers", "1", *options]
    )


def add_sequence(tree, name, frames):
    """Another sequence with the calibration and the files of `tree`'s first, `frames` of them."""
    source = tree.sequence()
    shutil.copytree(source, tree.sequence(name))
    for folder, suffix in (("velodyne", "bin"), ("image_2", "png")):
        for frame in range(frames, 99):
            (tree.sequence(name) / folder / f"{frame:06d}.{suffix}").unlink(missing_ok=True)
    poses = (tree.dataset / "poses/03.txt").read_text().splitlines()[:frames]
    (tree.dataset / f"poses/{name}.txt").write_text("\n".join(poses) + "\n")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    tree = scan_trees.write_kitti(tmp_path_factory.mktemp("kitti"), frames=6)
    add_sequence(tree, "08", 4)
    return tree


@pytest.fixture(scope="module")
def prepared(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "lcd"
    assert convert(tree.root, out, "--train", "03", "--loop-gap", "2") == 0
    return PreparedFolder(out)


@pytest.fixture
def own_tree(tree, tmp_path):
    """A copy to damage."""
    shutil.copytree(tree.root, tmp_path / "raw")
    return scan_trees.KittiTree(tmp_path / "raw", tree.map_T_lidar)


class TestKitti:
    def test_points_come_back_in_order_to_half_a_unit(self, prepared):
        for frame in range(6):
            xyz, reflectance = scans.points_of(prepared.table("frames")[frame])
            expected = scan_trees.scan(frame)
            np.testing.assert_allclose(xyz, expected[:, :3], atol=POINT_UNIT / 2 + 1e-5)
            np.testing.assert_allclose(reflectance, expected[:, 3], atol=0.5 / 255 + 1e-6)

    def test_sequences_follow_each_other(self, prepared):
        frames, sequences = prepared.table("frames"), prepared.table("sequences")
        assert [(frames[i]["sequence"], frames[i]["frame_id"]) for i in range(10)] == [
            *((b"03", i) for i in range(6)),
            *((b"08", i) for i in range(4)),
        ]
        assert [s["first"] for s in (sequences[0], sequences[1])] == [0, 6]
        np.testing.assert_allclose(sequences[0]["time"], 0.1037 * np.arange(6), atol=1e-6)
        np.testing.assert_allclose(frames[7]["time"], 0.1037, atol=1e-6)
        assert sequences[0]["pose_source"].decode() == prepared.manifest["sequences"]["03"]["pose_source"]

    def test_poses_are_of_the_lidar(self, tree, prepared):
        """Motion from frame to frame is that of the truth the files were made from."""
        found, true = prepared.table("sequences")[0]["map_T_lidar"], tree.map_T_lidar
        for a in range(6):
            for b in range(6):
                np.testing.assert_allclose(
                    np.linalg.inv(found[a]) @ found[b], np.linalg.inv(true[a]) @ true[b], atol=1e-9
                )

    def test_links_are_the_projection_of_the_calibration(self, prepared):
        """u, v of P2·[Tr; 0 0 0 1]·X, from the numbers in calib.txt, for every point that is in view."""
        rows = scan_trees.P2 @ scan_trees.CAMERA0_T_LIDAR
        width, height = scan_trees.IMAGE_SIZE
        seen = 0
        for frame in range(6):
            record = prepared.table("frames")[frame]
            links = dict(zip(record["link_point"].tolist(), record["link_pixel"].tolist(), strict=True))
            for number, point in enumerate(scan_trees.scan(frame)[:, :3]):
                u, v, w = rows @ [*point.astype(float), 1.0]
                in_view = w - scan_trees.P2[2, 3] > 0.49 and 0 <= u / w < width and 0 <= v / w < height
                assert (number in links) == in_view
                if in_view:
                    assert links[number] == [int(v / w), int(u / w)]
                    seen += 1
        assert seen > 5

    def test_the_image_and_its_camera(self, prepared):
        record = prepared.table("frames")[2]
        assert record["image"].shape == (24, 64, 3)
        assert np.abs(record["image"].astype(int) - 90).max() <= 2
        point = np.array([10.0, 1.0, 0.3, 1.0])
        u, v, w = scan_trees.P2 @ scan_trees.CAMERA0_T_LIDAR @ point
        x, y, z = record["intrinsics"] @ (record["camera_T_lidar"] @ point)[:3]
        np.testing.assert_allclose([x / z, y / z], [u / w, v / w], atol=1e-9)

    def test_splits_of_the_paper_unless_told(self, prepared):
        np.testing.assert_array_equal(prepared.split("official", "train"), np.arange(6))  # --train 03
        np.testing.assert_array_equal(prepared.split("official", "val"), np.arange(6, 10))
        assert not len(prepared.split("official", "test"))
        np.testing.assert_array_equal(prepared.split("official", "03"), np.arange(6))

    def test_positives_stay_within_their_sequence(self, tree, prepared):
        offset, positive = prepared.split("loops", "offset"), prepared.split("loops", "positive")
        xyz = tree.map_T_lidar[:, :3, 3]
        for start, frames in ((0, 6), (6, 4)):
            for i in range(frames):
                expected = [
                    start + j
                    for j in range(frames)
                    if abs(i - j) > 2 and np.linalg.norm(xyz[i] - xyz[j]) < 4.0
                ]
                assert positive[offset[start + i] : offset[start + i + 1]].tolist() == expected
        assert len(positive) == 2 * 3 + 2 * 1  # three apart is 3.5 m, four apart 4.7 m

    def test_the_manifest(self, prepared):
        manifest = prepared.manifest
        assert manifest["raw_format"] == "kitti"
        assert manifest["camera"] == "image_2"
        assert manifest["recipe"]["point_unit_m"] == POINT_UNIT
        assert manifest["sequences"]["03"]["queries_with_past_loop"] == 3
        assert manifest["source"]["built_in_city"] is False
        assert manifest["left_out"] == []

    def test_the_same_again_is_left_alone_and_other_settings_are_refused(self, tree, prepared, capsys):
        before = prepared.fingerprint
        assert convert(tree.root, prepared.root, "--train", "03", "--loop-gap", "2") == 0
        assert PreparedFolder(prepared.root).fingerprint == before
        assert convert(tree.root, prepared.root, "--train", "03", "--loop-gap", "3") == 1
        assert "loop_gap" in capsys.readouterr().err

    def test_points_alone(self, tree, tmp_path, capsys):
        assert convert(tree.root, tmp_path / "out", "--camera", "none", "--limit", "2") == 0
        assert "no images" in capsys.readouterr().out
        folder = PreparedFolder(tmp_path / "out")
        assert len(folder.table("frames")) == 4
        assert "image" not in folder.table("frames")[0]
        assert folder.manifest["camera"] is None

    def test_images_of_some_sequences(self, own_tree, tmp_path, capsys):
        shutil.rmtree(own_tree.sequence("08") / "image_2")
        assert convert(own_tree.root, tmp_path / "out") == 1
        assert "08" in capsys.readouterr().err
        assert convert(own_tree.root, tmp_path / "out", "--sequences", "03") == 0

    def test_compensating_what_is_compensated(self, tree, tmp_path, capsys):
        assert convert(tree.root, tmp_path / "out", "--compensate-motion") == 1
        assert "--compensate-motion" in capsys.readouterr().err

    def test_a_split_by_district_of_the_city(self, own_tree, tmp_path):
        (own_tree.root / "BUILT-IN-CITY.json").write_text('{"sequences": {"08": "train", "03": "test"}}')
        assert convert(own_tree.root, tmp_path / "out") == 0
        folder = PreparedFolder(tmp_path / "out")
        assert folder.manifest["source"]["built_in_city"] is True
        np.testing.assert_array_equal(folder.split("official", "train"), np.arange(6, 10))
        np.testing.assert_array_equal(folder.split("official", "test"), np.arange(6))


def damage_scan(path: Path, kind: str) -> None:
    points = np.fromfile(path, "<f4").reshape(-1, 4)
    if kind == "no multiple of 16":
        path.write_bytes(path.read_bytes()[:-3])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "missing column":
        points[:, 3] = 120.0
        points.tofile(path)
    else:
        points[3, 1] = {"nan": np.nan, "infinite": np.inf}[kind]
        points.tofile(path)


class TestBadInput:
    @pytest.mark.parametrize("kind", ["no multiple of 16", "empty", "nan", "infinite", "missing column"])
    def test_a_bad_scan_is_refused_or_listed(self, own_tree, tmp_path, capsys, kind):
        path = own_tree.sequence() / "velodyne/000002.bin"
        damage_scan(path, kind)
        assert convert(own_tree.root, tmp_path / "out") == 1
        assert "000002.bin" in capsys.readouterr().err
        assert not (tmp_path / "out/manifest.json").exists()
        assert convert(own_tree.root, tmp_path / "skipped", "--bad-scans", "skip") == 0
        assert "1 damaged scans left out" in capsys.readouterr().out
        folder = PreparedFolder(tmp_path / "skipped")
        (left_out,) = folder.manifest["left_out"]
        assert (left_out["sequence"], left_out["frame_id"]) == ("03", 2)
        assert "000002.bin" in left_out["why"]
        assert folder.table("sequences")[0]["frame_id"].tolist() == [0, 1, 3, 4, 5]
        assert folder.table("frames")[2]["frame_id"] == 3

    def test_skipping_where_nothing_is_bad_changes_nothing(self, tree, prepared, tmp_path):
        options = ("--train", "03", "--loop-gap", "2", "--bad-scans", "skip")
        assert convert(tree.root, tmp_path / "out", *options) == 0
        assert PreparedFolder(tmp_path / "out").fingerprint == prepared.fingerprint

    def test_every_scan_bad(self, own_tree, tmp_path, capsys):
        for path in own_tree.dataset.glob("sequences/*/velodyne/*.bin"):
            path.write_bytes(b"")
        assert convert(own_tree.root, tmp_path / "out", "--bad-scans", "skip") == 1
        assert "expected scans" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_poses_fewer_than_scans(self, own_tree, tmp_path, capsys):
        poses = own_tree.dataset / "poses/03.txt"
        poses.write_text("".join(poses.open().readlines()[:-1]))
        assert convert(own_tree.root, tmp_path / "out") == 1
        assert "03.txt" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("kind", ["truncated", "of another size"])
    def test_a_bad_image(self, own_tree, tmp_path, capsys, kind):
        path = own_tree.sequence() / "image_2/000003.png"
        if kind == "truncated":
            path.write_bytes(path.read_bytes()[:-20])
        else:
            scan_trees.write_image(path, (65, 24))
        assert convert(own_tree.root, tmp_path / "out") == 1
        assert "000003.png" in capsys.readouterr().err
        assert not (tmp_path / "out/manifest.json").exists()

    def test_mended_input_goes_on_where_it_stopped(self, own_tree, tmp_path, capsys):
        path = own_tree.sequence("08") / "velodyne/000003.bin"
        whole = path.read_bytes()
        damage_scan(path, "nan")
        assert convert(own_tree.root, tmp_path / "out") == 1
        path.write_bytes(whole)
        assert convert(own_tree.root, tmp_path / "out") == 0
        assert len(PreparedFolder(tmp_path / "out").table("frames")) == 10


@pytest.fixture(scope="module")
def tree360(tmp_path_factory):
    return scan_trees.write_kitti360(tmp_path_factory.mktemp("kitti360"))


class TestKitti360:
    def test_frames_go_by_their_numbers(self, tree360, tmp_path, capsys):
        assert convert(tree360.root, tmp_path / "out", raw_format="kitti360") == 0
        printed = capsys.readouterr().out
        folder = PreparedFolder(tmp_path / "out")
        ids = [1, 2, 3, 6, 7]  # with a pose and a scan
        assert folder.table("sequences")[0]["frame_id"].tolist() == ids
        for record, frame in enumerate(ids):
            xyz, _ = scans.points_of(folder.table("frames")[record])
            np.testing.assert_allclose(xyz, scan_trees.scan(frame)[:, :3], atol=POINT_UNIT / 2 + 1e-5)
        np.testing.assert_allclose(
            folder.table("sequences")[0]["map_T_lidar"], tree360.map_T_lidar[:5], atol=1e-9
        )
        assert folder.manifest["sequences"]["0003"]["scans_without_pose"] == 2
        assert "2 scans have no pose" in printed

    def test_gap_by_frame_id(self, tree360, tmp_path):
        """Frames 3 and 6 are neighbours in the pose list and three apart by their ids."""
        of_three = {}
        for gap_by in ("frame_id", "position"):
            options = ("--loop-gap", "2", "--loop-distance", "6", "--gap-by", gap_by)
            assert convert(tree360.root, tmp_path / gap_by, *options, raw_format="kitti360") == 0
            folder = PreparedFolder(tmp_path / gap_by)
            offset, positive = folder.split("loops", "offset"), folder.split("loops", "positive")
            of_three[gap_by] = positive[offset[2] : offset[3]].tolist()
        assert of_three == {"frame_id": [3, 4], "position": []}

    def test_motion_is_compensated_where_asked(self, tree360, tmp_path):
        options = ("--compensate-motion", "--camera", "none")
        assert convert(tree360.root, tmp_path / "out", *options, raw_format="kitti360") == 0
        folder = PreparedFolder(tmp_path / "out")
        (sequence,) = kitti360.read_sequences(tree360.root)
        for record, scan in enumerate(sequence.scans):
            moved = kitti360.compensate_motion(kitti.read_points(scan.path), scan.sweep_motion)
            xyz, _ = scans.points_of(folder.table("frames")[record])
            np.testing.assert_allclose(xyz, moved[:, :3], atol=POINT_UNIT / 2 + 1e-4)
            assert np.abs(xyz - scan_trees.scan(scan.frame_id)[:, :3]).max() > 0.1
        assert folder.manifest["recipe"]["motion_compensated_here"] is True


class TestLinks:
    """A pinhole of f = 100 at (50, 20), looking along the LiDAR's x, 0.3 m in front of it."""

    image = ScanImage(
        Path("none.png"),
        100,
        40,
        np.array([[100.0, 0, 50], [0, 100, 20], [0, 0, 1]]),
        np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, -0.3], [0, 0, 0, 1.0]]),
    )

    def test_by_hand(self):
        xyz = np.array(
            [
                [10.3, 0.0, 0.0],  # the middle: u = 50, v = 20
                [10.3, 1.0, -0.55],  # a metre to the left, half below: u = 40, v = 25.5
                [-9.7, 0.0, 0.0],  # behind
                [0.75, 0.0, 0.0],  # 0.45 m in front of the camera
                [10.3, 5.001, 0.0],  # u = -0.01
                [10.3, -4.999, 1.999],  # u = 99.99, v = 0.01
                [10.3, 0.0, -2.0],  # v = 40: below the last row
            ]
        )
        point, pixel = scan_records.links(xyz, self.image)
        assert point.tolist() == [0, 1, 5]
        assert pixel.tolist() == [[20, 50], [25, 40], [0, 99]]
        # A window of 36 x 80 in the middle: 10 columns and 2 rows less, then half.
        window = scans.ImageWindow((36, 80), 2)
        flat = window.pixels(pixel, (40, 100))
        assert flat.tolist() == [9 * 40 + 20, 11 * 40 + 15, -1]

    def test_no_point_in_view(self):
        point, pixel = scan_records.links(np.array([[-5.0, 0, 0]]), self.image)
        assert point.shape == (0,)
        assert pixel.shape == (0, 2)


class TestView:
    def view(self, out, *options):
        return main(["lcd_view", "--out", str(out), *options])

    def test_draws_scans_and_pictures(self, tree, tmp_path):
        bev = tmp_path / "bev/05"
        (bev / "imgs").mkdir(parents=True)
        cv2.imwrite(str(bev / "imgs/000000.png"), np.full((31, 31), 7, np.uint8))
        (bev / "pose.txt").write_text("1 0 0 0 0 1 0 0 0 0 1 0\n")
        for name, options in {
            "kitti": ("--raw", str(tree.root), "--sequence", "08", "--frame", "3"),
            "bev": ("--raw", str(tmp_path / "bev")),
        }.items():
            out = tmp_path / f"{name}.png"
            assert self.view(out, "--format", name, *options) == 0
            assert cv2.imread(str(out)).std() > 5

    def test_a_frame_that_is_not_there(self, tree, tmp_path, capsys):
        options = ("--raw", str(tree.root), "--format", "kitti", "--frame", "77")
        assert self.view(tmp_path / "x.png", *options) == 1
        assert "77" in capsys.readouterr().err

    def test_cells_are_those_of_the_method(self):
        xyz = np.random.default_rng(0).uniform(-33, 33, (2000, 3)).astype(np.float32)
        np.testing.assert_array_equal(lcd_view._cells(xyz), scans.cells_of(xyz, GRID, Z))


@pytest.fixture(scope="module")
def record(real_data, tmp_path_factory):
    """The synchronous scan and image of the object benchmark, written as the converter does and read back."""
    scan = kitti.read_object_scan(real_data / "kitti_object", 1)
    features = functools.partial(scan_records.point_features, True)
    examples = functools.partial(scan_records.point_examples, images=True, compensate_motion=False)
    out = tmp_path_factory.mktemp("object") / "lcd"
    tables.write_prepared_folder(
        out,
        converter="lcd",
        settings={},
        source={},
        tables=[tables.Table("frames", features, examples, [[scan]])],
        splits={},
        counts={},
        extra={},
        workers=1,
    )
    return RecordTable(out / "frames")[0]


@pytest.mark.real_data
class TestRealScan:
    def test_links_and_cells_are_as_many_as_on_other_scans(self, record):
        """Spec §1, of seven other scans: 16 to 18 k points in the crop, 20 to 31 % of the cells linked."""
        xyz, reflectance = scans.points_of(record)
        cells = scans.cells_of(xyz, GRID, Z)
        bev = scans.encode_bev(xyz, reflectance, GRID, Z, "statistics", cells)
        window = scans.ImageWindow()
        pixels = window.pixels(record["link_pixel"], record["image"].shape[:2])
        assert 16_000 < (pixels >= 0).sum() < 19_000
        cell, _ = scans.link_pairs(cells, record["link_point"], pixels)
        share = len(np.unique(cell)) / scans.occupied_cells(bev).sum()
        assert 0.2 < share < 0.31
        table = scans.link_table(cells, record, window, 1024, 16, np.random.default_rng(0))
        assert table["link_mask"].any(axis=1).all()
        assert scans.occupied_cells(bev).ravel()[table["link_cell"]].all()

    def test_points_lie_on_what_the_image_shows(self, record):
        """Paint on the road is bright in the image and to the laser: their agreement is best in place."""
        xyz, reflectance = scans.points_of(record)
        point, pixel = record["link_point"], record["link_pixel"].astype(int)
        x, y, z = xyz[point].T
        road = (z < -1.4) & (x < 25) & (y > -2.5) & (y < 3)
        grey = record["image"].mean(axis=-1)

        def agreement(*shift):
            row, column = np.clip(pixel[road] + shift, 0, np.array(grey.shape) - 1).T
            return np.corrcoef(grey[row, column], reflectance[point[road]])[0, 1]

        in_place = agreement(0, 0)
        assert in_place > 0.4
        for pixels in (4, 8, 12):
            for shift in ((pixels, 0), (-pixels, 0), (0, pixels), (0, -pixels)):
                assert agreement(*shift) < in_place - 0.03


@pytest.mark.real_data
def test_real_sequences_from_files_to_records(real_data, tmp_path, capsys):
    """All scans that are there: the points of their files, poses of the LiDAR, no loop to train on."""
    raw = real_data / "kitti_odometry"
    assert convert(raw, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "no loop in 00, 08" in printed
    assert "no images" in printed
    folder = PreparedFolder(tmp_path / "out")
    frames, manifest = folder.table("frames"), folder.manifest
    assert [(frames[i]["sequence"], int(frames[i]["frame_id"])) for i in range(len(frames))] == [
        *((b"00", frame) for frame in (0, 94, 95, 198)),
        (b"08", 720),
    ]
    np.testing.assert_array_equal(folder.split("official", "train"), np.arange(4))
    np.testing.assert_array_equal(folder.split("official", "val"), [4])
    assert manifest["camera"] is None
    assert manifest["source"]["built_in_city"] is False
    assert manifest["sequences"]["00"]["poses_without_scan"] == 4541 - 4
    assert not len(folder.split("loops", "positive"))
    pose = frames[0]["map_T_lidar"]
    for number in range(len(frames)):
        record = frames[number]
        sequence, frame = record["sequence"].decode(), int(record["frame_id"])
        points = np.fromfile(raw / f"dataset/sequences/{sequence}/velodyne/{frame:06d}.bin", "<f4")
        xyz, reflectance = scans.points_of(record)
        np.testing.assert_allclose(xyz, points.reshape(-1, 4)[:, :3], atol=POINT_UNIT / 2 + 1e-5)
        np.testing.assert_allclose(reflectance, points.reshape(-1, 4)[:, 3], atol=0.5 / 255 + 1e-6)
        # Camera poses between the same frames, moved to the LiDAR by the calibration.
        if sequence == "00":
            rows = np.loadtxt(raw / "dataset/poses/00.txt").reshape(-1, 3, 4)
            calibration = dict(
                line.split(":") for line in (raw / "dataset/sequences/00/calib.txt").read_text().splitlines()
            )
            camera = [np.vstack([rows[i], [0, 0, 0, 1]]) for i in (0, frame)]
            tr = np.vstack([np.array(calibration["Tr"].split(), float).reshape(3, 4), [0, 0, 0, 1]])
            expected = np.linalg.inv(tr) @ np.linalg.inv(camera[0]) @ camera[1] @ tr
            np.testing.assert_allclose(np.linalg.inv(pose) @ record["map_T_lidar"], expected, atol=1e-3)
