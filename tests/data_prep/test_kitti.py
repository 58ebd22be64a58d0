"""The KITTI readers on roots written by hand: geometry by other means, and every kind of damage."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial import cKDTree

from data_prep.errors import InputError
from data_prep.raw import kitti, scan_files
from tests.data_prep import scan_trees
from tests.data_prep.scan_trees import KittiTree


@pytest.fixture
def tree(tmp_path) -> KittiTree:
    return scan_trees.write_kitti(tmp_path)


def test_poses_are_of_the_lidar_and_relative_to_its_first_frame(tree):
    (sequence,) = kitti.read_sequences(tree.root)
    expected = np.linalg.inv(tree.map_T_lidar[0]) @ tree.map_T_lidar
    np.testing.assert_allclose([scan.map_T_lidar for scan in sequence.scans], expected, atol=1e-12)
    assert sequence.name == "03"
    assert sequence.pose_source == "poses/03.txt (odometry) · calib.txt Tr"
    assert [scan.frame_id for scan in sequence.scans] == list(range(6))
    np.testing.assert_allclose([scan.time for scan in sequence.scans], 0.1037 * np.arange(6), atol=1e-9)
    assert all(scan.sweep_motion is None for scan in sequence.scans)


def test_a_pixel_is_that_of_the_projection_matrix(tree):
    """s·(u, v, 1) = P2·[Tr; 0 0 0 1]·X, whose last column has all three components."""
    ((image, *_),) = [[s.image for s in sequence.scans] for sequence in kitti.read_sequences(tree.root)]
    points = np.array([[9.0, 2.0, -1.0], [30.0, -4.0, 0.5], [5.0, 0.0, 0.0]])
    homogeneous = np.column_stack([points, np.ones(3)])
    expected = homogeneous @ (scan_trees.P2 @ scan_trees.CAMERA0_T_LIDAR).T
    projected = (homogeneous @ image.camera_T_lidar.T)[:, :3] @ image.intrinsics.T
    np.testing.assert_allclose(projected, expected, rtol=1e-12)
    assert (image.width, image.height) == scan_trees.IMAGE_SIZE


def test_a_camera_straight_ahead_by_hand(tmp_path):
    """f = 100, centre (50, 20), baseline 1 m: a point 10 m ahead, 2 m left and 1 m up is at (40, 10)."""
    tree = scan_trees.write_kitti(tmp_path)
    (tree.sequence() / "calib.txt").write_text(
        "P0: 100 0 50 0 0 100 20 0 0 0 1 0\nP2: 100 0 50 100 0 100 20 0 0 0 1 0\n"
        "Tr: 0 -1 0 0 0 0 -1 0 1 0 0 0\n"
    )
    image = kitti.read_sequences(tree.root)[0].scans[0].image
    u, v, depth = image.intrinsics @ (image.camera_T_lidar @ [10, 2, 1, 1])[:3]
    assert (u / depth, v / depth, depth) == (40, 10, 10)


def test_points_are_read_as_they_were_written(tree):
    scan = kitti.read_sequences(tree.root)[0].scans[4]
    points = kitti.read_points(scan.path)
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points, scan_trees.scan(4))


def test_frames_are_those_whose_scans_are_there(tree):
    velodyne = tree.sequence() / "velodyne"
    for frame in (0, 2, 3):
        (velodyne / f"{frame:06d}.bin").unlink()
    (velodyne / ".000002.bin.part").write_bytes(b"unfinished")
    (velodyne / "._000002.bin").write_bytes(b"what macOS leaves")
    (sequence,) = kitti.read_sequences(tree.root)
    assert [scan.frame_id for scan in sequence.scans] == [1, 4, 5]
    expected = np.linalg.inv(tree.map_T_lidar[0]) @ tree.map_T_lidar[[1, 4, 5]]
    np.testing.assert_allclose([scan.map_T_lidar for scan in sequence.scans], expected, atol=1e-12)
    assert [scan.image.path.name for scan in sequence.scans] == ["000001.png", "000004.png", "000005.png"]
    np.testing.assert_allclose([scan.time for scan in sequence.scans], 0.1037 * np.array([1, 4, 5]))
    assert (sequence.scans_without_pose, sequence.poses_without_scan) == (0, 3)


def test_poses_alone_are_enough_to_count_loops(tree):
    for path in (tree.sequence() / "velodyne").iterdir():
        path.unlink()
    (tree.sequence() / "velodyne").rmdir()
    (sequence,) = kitti.read_sequences(tree.root, require_scans=False)
    assert len(sequence.scans) == 6
    assert all(scan.path is None and scan.image is None for scan in sequence.scans)
    with pytest.raises(InputError, match=r"velodyne: expected scans of at least one sequence .*\(03\)"):
        kitti.read_sequences(tree.root)
    with pytest.raises(InputError, match="velodyne: expected scans"):
        kitti.read_sequences(tree.root, ["03"])


def test_the_folder_dataset_itself_is_a_root_as_well(tree):
    assert len(kitti.read_sequences(tree.dataset)[0].scans) == 6


def test_images_may_be_absent_or_left_out(tree):
    assert all(scan.image is None for scan in kitti.read_sequences(tree.root, camera=None)[0].scans)
    assert all(scan.image is None for scan in kitti.read_sequences(tree.root, camera="image_3")[0].scans)


def test_poses_of_a_lidar_of_ones_own(tmp_path):
    """What docs/datasets.md says is enough: scans, poses of the LiDAR, and one line of calibration."""
    dataset = tmp_path / "dataset"
    (dataset / "poses").mkdir(parents=True)
    (dataset / "sequences/00/velodyne").mkdir(parents=True)
    poses = scan_trees.drive(3)
    (dataset / "poses/00.txt").write_text("".join(f"{scan_trees.numbers(pose[:3])}\n" for pose in poses))
    (dataset / "sequences/00/calib.txt").write_text("Tr: 1 0 0 0 0 1 0 0 0 0 1 0\n")
    for frame in range(3):
        scan_trees.scan(frame).tofile(dataset / f"sequences/00/velodyne/{frame:06d}.bin")
    (sequence,) = kitti.read_sequences(tmp_path)
    np.testing.assert_allclose([scan.map_T_lidar for scan in sequence.scans], poses, atol=1e-12)


def test_times_may_be_absent(tree):
    (tree.sequence() / "times.txt").unlink()
    assert np.isnan([scan.time for scan in kitti.read_sequences(tree.root)[0].scans]).all()


def test_poses_of_semantickitti(tree):
    path = tree.sequence() / "poses.txt"
    rows = np.loadtxt(path).reshape(-1, 3, 4)
    rows[3, :, 3] += 0.5  # in the camera's axes
    np.savetxt(path, rows.reshape(-1, 12))
    (sequence,) = kitti.read_sequences(tree.root, pose_source="semantickitti")
    (official,) = kitti.read_sequences(tree.root)
    assert sequence.pose_source.startswith("sequences/03/poses.txt")
    shift = sequence.scans[3].map_T_lidar[:3, 3] - official.scans[3].map_T_lidar[:3, 3]
    np.testing.assert_allclose(scan_trees.MOUNT @ shift, [0.5, 0.5, 0.5], atol=1e-9)


def test_sequences_without_poses_are_left_out_unless_named(tree):
    """As the test sequences 11 to 21 are."""
    (tree.sequence("11") / "velodyne").mkdir(parents=True)
    scan_trees.scan(0).tofile(tree.sequence("11") / "velodyne" / "000000.bin")
    (tree.sequence("11") / "calib.txt").write_text((tree.sequence() / "calib.txt").read_text())
    assert [sequence.name for sequence in kitti.read_sequences(tree.root)] == ["03"]
    with pytest.raises(InputError, match=r"poses/11\.txt: expected this file, found none"):
        kitti.read_sequences(tree.root, ["03", "11"])


def test_every_sequence_has_its_own_calibration(tree):
    scan_trees.write_kitti(tree.root, frames=3, name="07")
    calib = tree.sequence("07") / "calib.txt"
    text = calib.read_text().splitlines()
    straight = "Tr: 0 -1 0 0 0 0 -1 0 1 0 0 0"
    calib.write_text("\n".join([*text[:-1], straight]))
    first, second = kitti.read_sequences(tree.root)
    assert [first.name, second.name] == ["03", "07"]
    assert np.abs(first.scans[2].map_T_lidar - second.scans[2].map_T_lidar).max() > 1e-3


def test_files_are_checked_without_being_read(tree):
    sequences = kitti.read_sequences(tree.root)
    images = sum(path.stat().st_size for path in (tree.sequence() / "image_2").iterdir())
    assert scan_files.check_files(sequences) == 6 * 20 * 16 + images


def broken(tree: KittiTree, file: str, change: Callable[[str], str]) -> None:
    path = tree.dataset / file
    path.write_text(change(path.read_text()))


CALIB, POSES, TIMES = "sequences/03/calib.txt", "poses/03.txt", "sequences/03/times.txt"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (CALIB, lambda t: t.replace("Tr:", "Tx:"), r"expected the key Tr, found P0, P1, P2, P3, Tx\. .*lack"),
        (CALIB, lambda t: t.rsplit(" ", 1)[0], r"expected 12 finite numbers after Tr:"),
        (CALIB, lambda t: t.rsplit(" ", 1)[0] + " nan", r"expected 12 finite numbers after Tr:"),
        (CALIB, lambda t: t.partition("Tr:")[0] + "Tr:" + " 1" * 12, r"expected a rotation"),
        (CALIB, lambda t: "", r"expected the key Tr, found no key at all"),
        (CALIB, lambda t: t.replace("P2: 40.0", "P2: 0.0"), r"expected P2 with focal lengths above 0"),
        (CALIB, lambda t: t.replace("P2:", "Q2:"), r"expected the key P2"),
        (POSES, lambda t: "\n".join(t.splitlines()[:-1]), r"5 poses .*000005\.bin: poses fewer than scans"),
        (
            POSES,
            lambda t: t.rstrip().rsplit(" ", 1)[0],
            r"expected 12 numbers in each row, found 11 in line 6",
        ),
        (POSES, lambda t: t.replace("\n", "\n\n", 1), r"expected 12 numbers in each row, found 0 in line 2"),
        (POSES, lambda t: "1 2 3\n" + t, r"expected 12 numbers in each row, found 3 in line 1"),
        (POSES, lambda t: t.replace("1.0 ", "one ", 1), r"found 'one .* in line 1"),
        (
            POSES,
            lambda t: "nan " + t.partition(" ")[2],
            r"NaN or infinity in 1 of 6 lines, the first being 1",
        ),
        (POSES, lambda t: "2.0 " + t.partition(" ")[2], r"1 of 6 that are none, the first being number 1"),
        (POSES, lambda t: "", r"found an empty file"),
        (TIMES, lambda t: "\n".join(t.splitlines()[:-1]), r"found 5 times and frame 5"),
        (TIMES, lambda t: t + "0.1\n", r"expected ascending times, found 0\.1 s in line 7"),
    ],
)
def test_damaged_text_names_the_file_and_the_place(tree, file, change, message):
    broken(tree, file, change)
    with pytest.raises(InputError, match=message) as caught:
        kitti.read_sequences(tree.root)
    assert str(caught.value).startswith(str(tree.dataset / file))


def test_a_late_scan_without_a_pose_among_few_scans(tree):
    """Two scans and five poses: it is the number that counts."""
    for frame in range(4):
        (tree.sequence() / "velodyne" / f"{frame:06d}.bin").unlink()
    broken(tree, POSES, lambda t: "\n".join(t.splitlines()[:-1]))
    with pytest.raises(InputError, match=r"03\.txt: .*000005\.bin: poses fewer than scans"):
        kitti.read_sequences(tree.root)


def test_a_mirror_is_no_rotation(tree):
    broken(tree, CALIB, lambda t: t.partition("Tr:")[0] + "Tr: 0 1 0 0 0 0 -1 0 1 0 0 0")
    with pytest.raises(InputError, match="expected a rotation"):
        kitti.read_sequences(tree.root)


def test_missing_folders_say_what_to_unpack(tree, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: expected dataset/sequences .* no such folder"):
        kitti.read_sequences(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"expected sequence 44, found no such folder"):
        kitti.read_sequences(tree.root, ["44"])
    (tree.sequence() / "calib.txt").unlink()
    with pytest.raises(InputError, match=r"calib\.txt: expected this file.*data_odometry_calib\.zip"):
        kitti.read_sequences(tree.root)
    (tree.dataset / POSES).unlink()
    with pytest.raises(InputError, match=r"NN\.txt: expected poses \(odometry\) .*data_odometry_poses\.zip"):
        kitti.read_sequences(tree.root)


def test_unknown_choices_name_those_there_are(tree):
    with pytest.raises(InputError, match=r"expected one of odometry, semantickitti .*found 'imu'"):
        kitti.read_sequences(tree.root, pose_source="imu")
    with pytest.raises(InputError, match=r"expected one of image_0, .*found 'image_02'"):
        kitti.read_sequences(tree.root, camera="image_02")


@pytest.mark.parametrize("name", ["scan5.bin", "５.bin"])
def test_a_scan_whose_name_is_no_number(tree, name):
    (tree.sequence() / "velodyne" / name).write_bytes(b"")
    with pytest.raises(InputError, match="expected a frame's number"):
        kitti.read_sequences(tree.root)


def test_two_scans_of_one_frame(tree):
    scan_trees.scan(5).tofile(tree.sequence() / "velodyne" / "5.bin")
    with pytest.raises(InputError, match=r"5\.bin: expected one file of frame 5, found 000005\.bin as well"):
        kitti.read_sequences(tree.root)


def test_images_of_some_scans_only(tree):
    (tree.sequence() / "image_2" / "000003.png").unlink()
    with pytest.raises(InputError, match=r"image_2: expected .* each of 6 scans, .* 1 of them, .* frame 3"):
        kitti.read_sequences(tree.root)
    assert len(kitti.read_sequences(tree.root, camera=None)[0].scans) == 6


def test_an_image_of_another_size(tree):
    scan_trees.write_image(tree.sequence() / "image_2" / "000003.png", (60, 24))
    with pytest.raises(InputError, match=r"000003\.png: expected 64 x 24 pixels.*found 60 x 24"):
        scan_files.check_files(kitti.read_sequences(tree.root))


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\0\0", b"\xff\xd8\xff\xe0" + 40 * b"\0"])
def test_an_image_that_is_none(tree, content):
    path = tree.sequence() / "image_2" / "000004.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"000004\.png: expected a PNG image, found"):
        scan_files.check_files(kitti.read_sequences(tree.root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-3], r"expected a multiple of 16 bytes .*, found 317"),
        (lambda raw: b"", "found an empty file"),
    ],
)
def test_a_truncated_scan_is_found_by_its_size_and_when_read(tree, change, message):
    path = tree.sequence() / "velodyne" / "000002.bin"
    path.write_bytes(change(path.read_bytes()))
    for check in (
        lambda: kitti.read_points(path),
        lambda: scan_files.check_files(kitti.read_sequences(tree.root)),
    ):
        with pytest.raises(InputError, match=message) as caught:
            check()
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 2, 3])
def test_points_that_are_not_finite(tmp_path, value, column):
    points = scan_trees.scan(0)
    points[[7, 9], column] = value
    points.tofile(tmp_path / "000000.bin")
    with pytest.raises(InputError, match=r"000000\.bin: .*in 2 of 20 points, the first being number 8"):
        kitti.read_points(tmp_path / "000000.bin")


def test_points_of_another_byte_order(tmp_path):
    """Of 60 coordinates with their bytes the other way round, some are absurd."""
    scan_trees.scan(0).astype(">f4").tofile(tmp_path / "000000.bin")
    with pytest.raises(InputError, match=r"000000\.bin: expected .*(another format|NaN or infinity)"):
        kitti.read_points(tmp_path / "000000.bin")


def test_a_scan_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"000000\.bin: expected a scan, found no file"):
        kitti.read_points(tmp_path / "000000.bin")


@pytest.mark.real_data
def test_real_poses_calibration_and_scans(real_data):
    """Figures of the paper's specification: calibration of 00, and a pair of its frames 2.96 m apart."""
    root = real_data / "kitti_odometry"
    sequences = {s.name: s for s in kitti.read_sequences(root, require_scans=False)}
    assert {name: len(s.scans) for name, s in sequences.items()} == {
        "00": 4541,
        "05": 2761,
        "06": 1101,
        "07": 1101,
        "08": 4071,
        "09": 1591,
    }
    scans = sequences["00"].scans
    apart = scans[4501].map_T_lidar[:3, 3] - scans[52].map_T_lidar[:3, 3]
    assert np.linalg.norm(apart) == pytest.approx(2.96, abs=0.005)
    intrinsics, _ = kitti.read_camera(root / "dataset/sequences/00/calib.txt", "P2")
    np.testing.assert_array_equal(intrinsics, [[718.856, 0, 607.1928], [0, 718.856, 185.2157], [0, 0, 1]])
    found = kitti.read_sequences(root)
    assert {s.name: [scan.frame_id for scan in s.scans] for s in found} == {
        "00": [0, 94, 95, 198],
        "08": [720],
    }
    assert scan_files.check_files(found) == sum(path.stat().st_size for path in root.rglob("*.bin"))
    for sequence in found:
        for scan in sequence.scans:
            points = kitti.read_points(scan.path)
            assert 110_000 < len(points) < 130_000
            assert 0 <= points[:, 3].min() <= points[:, 3].max() <= 1
            # The road lies a LiDAR's height below it (1.73 m by the dataset's authors).
            near = np.linalg.norm(points[:, :2], axis=1) < 10
            heights, edges = np.histogram(points[near, 2], bins=np.arange(-3, 1, 0.1))
            assert edges[heights.argmax()] == pytest.approx(-1.73, abs=0.2)


@pytest.mark.real_data
def test_real_consecutive_scans_lie_on_each_other(real_data):
    """Frames 94 and 95, half a metre apart: through the poses, points of one are where the other's are."""
    (sequence,) = kitti.read_sequences(real_data / "kitti_odometry", ["00"])
    first, second = (scan for scan in sequence.scans if scan.frame_id in (94, 95))
    a, b = (kitti.read_points(scan.path)[:, :3] for scan in (first, second))
    # What stands upright: the road looks the same wherever one is.
    a, b = a[(a[:, 2] > -1) & (np.abs(a[:, :2]).max(1) < 30)], b[b[:, 2] > -1.3]
    tree = cKDTree(b)

    def distance(b_T_a: np.ndarray) -> float:
        return float(np.median(tree.query(a @ b_T_a[:3, :3].T + b_T_a[:3, 3])[0]))

    second_T_first = np.linalg.inv(second.map_T_lidar) @ first.map_T_lidar
    assert 0.4 < np.linalg.norm(second_T_first[:3, 3]) < 0.6
    right = distance(second_T_first)
    assert right < 0.5 * distance(np.eye(4))
    assert right < 0.5 * distance(np.linalg.inv(second_T_first))


@pytest.mark.real_data
def test_a_real_frame_of_the_object_benchmark(real_data):
    """Points projected by the benchmark's own formula, y = P2·R0·Tr·x, and an image that fits its scan."""
    root = real_data / "kitti_object"
    scan = kitti.read_object_scan(root, 1)
    points = kitti.read_points(scan.path)
    calib = dict(line.split(":") for line in (root / "calib/000001.txt").read_text().splitlines() if line)
    p2, r0, tr = (np.array(calib[k].split(), float) for k in ("P2", "R0_rect", "Tr_velo_to_cam"))
    rectify = np.eye(4)
    rectify[:3, :3] = r0.reshape(3, 3)
    to_camera = np.vstack([tr.reshape(3, 4), [0, 0, 0, 1]])
    homogeneous = np.column_stack([points[:, :3].astype(float), np.ones(len(points))])
    expected = homogeneous @ (p2.reshape(3, 4) @ rectify @ to_camera).T
    projected = (homogeneous @ scan.image.camera_T_lidar.T)[:, :3] @ scan.image.intrinsics.T
    # What they print of R0·Tr is orthonormal to 1e-6 only.
    np.testing.assert_allclose(projected, expected, rtol=1e-9, atol=1e-6)
    ahead = expected[:, 2] > 0.5
    pixels = expected[ahead, :2] / expected[ahead, 2:]
    inside = (pixels >= 0).all(1) & (pixels < [scan.image.width, scan.image.height]).all(1)
    assert 15_000 < inside.sum() < 25_000


def test_the_object_benchmark_by_hand(tmp_path):
    (tmp_path / "calib").mkdir()
    path = tmp_path / "calib" / "000007.txt"
    path.write_text(
        "P2: 100 0 50 0 0 100 20 0 0 0 1 0\nR0_rect: 0 1 0 -1 0 0 0 0 1\n"
        "Tr_velo_to_cam: 0 -1 0 0 0 0 -1 0 1 0 0 0\n\n"
    )
    scan_trees.write_image(tmp_path / "image_2" / "000007.png")
    image = kitti.read_object_scan(tmp_path, 7).image
    # Unrectified (-2, -1, 10); rectified (-1, 2, 10).
    u, v, depth = image.intrinsics @ (image.camera_T_lidar @ [10, 2, 1, 1])[:3]
    assert (u / depth, v / depth) == (40, 40)
    path.write_text(path.read_text().replace("R0_rect", "R_rect"))
    with pytest.raises(InputError, match=r"000007\.txt: expected the key R0_rect, found P2, R_rect"):
        kitti.read_object_scan(tmp_path, 7)


def test_paths_are_taken_as_they_are_given(tree, monkeypatch):
    monkeypatch.chdir(tree.root.parent)
    scan = kitti.read_sequences(Path(tree.root.name))[0].scans[0]
    assert kitti.read_points(scan.path).shape == (20, 4)
