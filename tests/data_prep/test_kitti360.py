"""The KITTI-360 reader on a root written by hand: both kinds of poses, sparse frames, motion, and damage."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_prep.errors import InputError
from data_prep.raw import kitti, kitti360, scan_files
from tests.data_prep import scan_trees
from tests.data_prep.scan_trees import Kitti360Tree


@pytest.fixture
def tree(tmp_path) -> Kitti360Tree:
    return scan_trees.write_kitti360(tmp_path)


def truth(tree: Kitti360Tree, frames: tuple[int, ...]) -> np.ndarray:
    return np.stack([tree.map_T_lidar[tree.frame_ids.index(frame)] for frame in frames])


def test_frames_are_those_with_a_pose_and_a_scan(tree):
    """Poses 1 2 3 6 7 12, scans 0 1 2 3 4 6 7: a pose belongs to the scan of its number, not of its place."""
    (sequence,) = kitti360.read_sequences(tree.root)
    assert sequence.name == "0003"
    assert [scan.frame_id for scan in sequence.scans] == [1, 2, 3, 6, 7]
    assert [scan.path.name for scan in sequence.scans] == [f"{i:010d}.bin" for i in (1, 2, 3, 6, 7)]
    assert [scan.image.path.name for scan in sequence.scans] == [f"{i:010d}.png" for i in (1, 2, 3, 6, 7)]
    poses = [scan.map_T_lidar for scan in sequence.scans]
    np.testing.assert_allclose(poses, truth(tree, (1, 2, 3, 6, 7)), atol=1e-9)
    assert (sequence.scans_without_pose, sequence.poses_without_scan) == (2, 1)
    np.testing.assert_array_equal(kitti.read_points(sequence.scans[3].path), scan_trees.scan(6))
    np.testing.assert_allclose([scan.time for scan in sequence.scans], [0.1, 0.2, 0.3, 0.6, 0.7], atol=1e-9)


@pytest.mark.parametrize("width", [12, 16])
def test_poses_of_the_rectified_camera_are_those_of_the_imu(tree, width):
    """With the rectification of 1.3°: leaving it out moves what is 30 m away by 0.7 m."""
    tree.write_cam0_to_world(width)
    (by_camera,) = kitti360.read_sequences(tree.root, pose_source="cam0_to_world")
    (by_imu,) = kitti360.read_sequences(tree.root, pose_source="imu")
    for one, other in zip(by_camera.scans, by_imu.scans, strict=True):
        np.testing.assert_allclose(one.map_T_lidar, other.map_T_lidar, atol=1e-9)
    assert by_camera.pose_source.startswith(f"data_poses/{tree.folder}/cam0_to_world.txt")
    assert by_imu.pose_source.startswith(f"data_poses/{tree.folder}/poses.txt (imu)")


def test_a_pixel_is_that_of_the_rectified_image(tree):
    """P_rect[:, :3]·R_rect·(T_velo←cam0)⁻¹·X."""
    image = kitti360.read_sequences(tree.root)[0].scans[0].image
    points = np.column_stack([np.random.default_rng(0).uniform(-20, 20, (9, 3)), np.ones(9)])
    expected = points @ (scan_trees.K @ scan_trees.RECTIFY @ scan_trees.CAMERA0_T_LIDAR[:3]).T
    found = (points @ image.camera_T_lidar.T)[:, :3] @ image.intrinsics.T
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert (image.width, image.height) == scan_trees.IMAGE_SIZE


def test_the_right_camera_is_rectified_by_its_own(tree):
    """In the tree both rectified cameras look the same way, 0.6 m apart."""
    tree.images.parent.rename(tree.images.parent.with_name("image_01"))
    right = kitti360.read_sequences(tree.root, camera="image_01")[0].scans[0].image
    left = np.eye(4)
    left[:3, :3] = scan_trees.RECTIFY
    left_T_right = left @ scan_trees.CAMERA0_T_LIDAR @ np.linalg.inv(right.camera_T_lidar)
    np.testing.assert_allclose(np.linalg.norm(left_T_right[:3, 3]), 0.6, atol=1e-9)
    assert np.degrees(Rotation.from_matrix(left_T_right[:3, :3]).magnitude()) < 0.02
    assert kitti360.read_sequences(tree.root)[0].scans[0].image is None


def test_poses_alone(tree):
    (sequence,) = kitti360.read_sequences(tree.root, require_scans=False)
    assert [scan.frame_id for scan in sequence.scans] == [1, 2, 3, 6, 7, 12]
    assert [scan.path is None for scan in sequence.scans] == [False] * 5 + [True]
    for path in tree.scans.iterdir():
        path.unlink()
    (sequence,) = kitti360.read_sequences(tree.root, require_scans=False)
    np.testing.assert_allclose([scan.map_T_lidar for scan in sequence.scans], tree.map_T_lidar, atol=1e-9)
    with pytest.raises(InputError, match=r"data: expected scans 0000000000\.bin and on, found none"):
        kitti360.read_sequences(tree.root)


def test_imu_poses_need_no_camera_calibration(tree):
    (tree.calibration / "perspective.txt").unlink()
    kitti360.read_sequences(tree.root, camera=None)
    for options in ({"pose_source": "cam0_to_world", "camera": None}, {}):
        with pytest.raises(InputError, match=r"perspective\.txt: expected this file, found none"):
            kitti360.read_sequences(tree.root, **options)


@pytest.mark.parametrize("lines", [None, 5])
def test_times_are_not_guessed(tree, lines):
    """A file with fewer lines than frames does not say which line is whose."""
    path = tree.scans.parent / "timestamps.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:lines]) if lines else "")
    assert np.isnan([scan.time for scan in kitti360.read_sequences(tree.root)[0].scans]).all()


def test_a_line_without_a_time(tree):
    path = tree.scans.parent / "timestamps.txt"
    text = path.read_text().splitlines()
    path.write_text("\n".join([*text[:2], "", "never", *text[4:]]))
    times = [scan.time for scan in kitti360.read_sequences(tree.root)[0].scans]
    np.testing.assert_allclose(times, [0.1, np.nan, np.nan, 0.6, 0.7], atol=1e-9)


@pytest.mark.parametrize("number", [10**15, 10**25])
def test_absurd_numbers_are_numbers(tree, number):
    """Nothing is made as long as a number in a file or in a file's name says."""
    scan_trees.scan(0).tofile(tree.scans / f"{number}.bin")
    row = tree.poses.read_text().splitlines()[-1].split(" ", 1)[1]
    with tree.poses.open("a") as file:
        file.write(f"{10**15} {row}\n")
    frames = [scan.frame_id for scan in kitti360.read_sequences(tree.root, camera=None)[0].scans]
    assert frames == [1, 2, 3, 6, 7] + [number] * (number == 10**15)


# ---- the motion within a sweep ----


def test_the_motion_of_a_sweep_is_that_of_one_frame(tree):
    """Between 3 and 6 lie three turns of the LiDAR; a drive on a bend is nearly the same in each of them."""
    scans = {scan.frame_id: scan for scan in kitti360.read_sequences(tree.root)[0].scans}
    np.testing.assert_allclose(
        scans[2].sweep_motion, np.linalg.inv(truth(tree, (2,))[0]) @ truth(tree, (1,))[0], atol=1e-9
    )
    np.testing.assert_array_equal(scans[1].sweep_motion, scans[2].sweep_motion)
    exact = np.linalg.inv(scan_trees.drive(7)[6]) @ scan_trees.drive(7)[5]
    assert np.abs(scans[6].sweep_motion - exact).max() < 0.15
    turn = Rotation.from_matrix(scans[6].sweep_motion[:3, :3]).magnitude()
    assert turn == pytest.approx(Rotation.from_matrix(exact[:3, :3]).magnitude(), rel=0.02)


def swept(world: np.ndarray, current_T_previous: np.ndarray) -> np.ndarray:
    """What a LiDAR measures of (N, 3) points in its frame at the scan's time, turning and moving evenly.

    It turns clockwise and faces forward at the scan's time; a point at azimuth φ is seen φ/2π turns earlier,
    when the LiDAR was that part of the way back. Solved by iteration.
    """
    axis = Rotation.from_matrix(current_T_previous[:3, :3]).as_rotvec()
    measured = world.copy()
    for _ in range(50):
        back = np.arctan2(measured[:, 1], measured[:, 0]) / (2 * np.pi)
        turn = Rotation.from_rotvec(back[:, None] * axis)
        measured = turn.inv().apply(world - back[:, None] * current_T_previous[:3, 3])
    return measured


@pytest.mark.parametrize("speed", [0.0, 1.5, 3.0])
@pytest.mark.parametrize("turn", [0.0, 3.0])
def test_compensation_puts_points_where_they_were_at_the_time_of_the_scan(speed, turn):
    motion = np.eye(4)
    motion[:3, :3] = Rotation.from_euler("zyx", [-turn, 0.1, -0.2], degrees=True).as_matrix()
    motion[:3, 3] = [-speed, 0.02, 0.01]
    world = np.random.default_rng(0).uniform([-40, -40, -2], [40, 40, 4], (500, 3))
    # Where a turn ends and the next begins, straight behind, a point is seen twice or never.
    world = world[np.abs(np.arctan2(world[:, 1], world[:, 0])) < np.radians(165)]
    points = np.column_stack([swept(world, motion), np.linspace(0, 1, len(world))])
    compensated = kitti360.compensate_motion(points, motion)
    np.testing.assert_allclose(compensated[:, :3], world, atol=1e-6)
    np.testing.assert_array_equal(compensated[:, 3], points[:, 3])
    if speed:
        assert np.abs(points[:, :3] - world).max() > 0.4 * speed


def test_compensation_on_the_left_and_on_the_right_by_hand():
    """At 4 m a turn forward, what is on the left was seen a quarter of a turn ago: it is 1 m farther back."""
    motion = np.eye(4)
    motion[0, 3] = -4  # the previous frame's origin lies 4 m behind
    points = np.array([[10, 0, 0, 0.5], [0, 10, 0, 0.5], [0, -10, 0, 0.5], [-10, 1e-6, 0, 0.5]], np.float32)
    expected = [[10, 0, 0, 0.5], [-1, 10, 0, 0.5], [1, -10, 0, 0.5], [-12, 0, 0, 0.5]]
    compensated = kitti360.compensate_motion(points, motion)
    assert compensated.dtype == np.float32
    np.testing.assert_allclose(compensated, expected, atol=1e-5)


def test_a_car_that_stands_changes_nothing():
    points = scan_trees.scan(3)
    np.testing.assert_array_equal(kitti360.compensate_motion(points, np.eye(4)), points)


def test_one_pose_has_no_motion():
    np.testing.assert_array_equal(kitti360.sweep_motions(np.array([5]), np.eye(4)[None]), [np.eye(4)])


# ---- damage ----


def change_line(line: int, change: Callable[[str], str]) -> Callable[[str], str]:
    def changed(text: str) -> str:
        lines = text.splitlines()
        lines[line] = change(lines[line])
        return "\n".join(lines)

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_line(3, lambda t: "2" + t[1:]), r"ascending order, found frame 2 in line 4 after frame 3"),
        (change_line(3, lambda t: "3" + t[1:]), r"ascending order, found frame 3 in line 4 after frame 3"),
        (change_line(0, lambda t: "-1" + t[1:]), r"expected a frame's number .*found -1 in line 1"),
        (change_line(0, lambda t: "1.5" + t[1:]), r"expected a frame's number .*found 1\.5 in line 1"),
        (
            change_line(2, lambda t: t.rsplit(" ", 1)[0]),
            r"expected 13 numbers in each row, found 12 in line 3",
        ),
        (change_line(0, lambda t: t.split(" ", 1)[1]), r"expected 13 or 17 numbers .*found 12 in line 1"),
        (change_line(4, lambda t: t.rsplit(" ", 1)[0] + " inf"), r"in 1 of 6 lines, the first being 5"),
        (
            change_line(1, lambda t: t.replace(" ", " 9", 1)),
            r"1 of 6 that are none, the first being number 2",
        ),
        (lambda t: "", r"found an empty file"),
        (lambda t: "\n".join(t.splitlines()[:3]), r"found those of 3 of 7 .*poses fewer than scans"),
        (lambda t: "".join(f"{i + 100}{line[1:]}\n" for i, line in enumerate(t.splitlines()[:5])), r"0 of 7"),
    ],
)
def test_damaged_poses_name_the_file_and_the_line(tree, change, message):
    tree.poses.write_text(change(tree.poses.read_text()))
    with pytest.raises(InputError, match=message) as caught:
        kitti360.read_sequences(tree.root)
    assert str(caught.value).startswith(str(tree.poses))


def test_a_last_row_that_is_none(tree):
    text = tree.cam0_to_world.read_text()
    tree.cam0_to_world.write_text(text.replace("0.0 0.0 0.0 1.0\n", "0.0 0.0 0.1 1.0\n", 1))
    with pytest.raises(InputError, match=r"cam0_to_world\.txt: .*1 of 6 that are none, .* number 1:"):
        kitti360.read_sequences(tree.root, pose_source="cam0_to_world")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("calib_cam_to_velo.txt", " ", " 7 ", r"expected 12 numbers in each row, found 13 in line 1"),
        ("calib_cam_to_velo.txt", "0.", "5.", r"expected a rotation and a translation"),
        (
            "calib_cam_to_pose.txt",
            "image_00:",
            "image_0:",
            r"expected the key image_00, found image_0, image_01",
        ),
        (
            "perspective.txt",
            "P_rect_00:",
            "P_00:",
            r"expected the key P_rect_00, found calib_time, corner_dist",
        ),
        ("perspective.txt", "R_rect_00:", "R_rect_00: 1", r"expected 9 finite numbers after R_rect_00:"),
        ("perspective.txt", "S_rect_00: 6", "S_rect_00: x", r"expected 2 finite numbers after S_rect_00:"),
    ],
)
def test_damaged_calibration_names_the_file_and_the_key(tree, file, old, new, message):
    path = tree.calibration / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        kitti360.read_sequences(tree.root)
    assert str(caught.value).startswith(str(path))


def test_missing_folders_say_what_to_get(tree, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: expected data_poses, .* no such folder"):
        kitti360.read_sequences(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"0044_sync/poses\.txt: expected the poses .* four digits"):
        kitti360.read_sequences(tree.root, ["0044"])
    with pytest.raises(InputError, match=r"expected one of imu, cam0_to_world .*found 'odometry'"):
        kitti360.read_sequences(tree.root, pose_source="odometry")
    with pytest.raises(InputError, match=r"expected one of image_00, image_01 .*found 'image_02'"):
        kitti360.read_sequences(tree.root, camera="image_02")
    tree.scans.rename(tree.scans.parent / "elsewhere")
    with pytest.raises(
        InputError, match=r"data: expected scans of at least one sequence with poses \(0003\)"
    ):
        kitti360.read_sequences(tree.root)
    tree.poses.unlink()
    with pytest.raises(InputError, match=r"poses\.txt: expected the poses of at least one sequence"):
        kitti360.read_sequences(tree.root)


def test_an_image_of_another_size_than_the_calibration_says(tree):
    """The first one counts no more than the others."""
    scan_trees.write_image(tree.images / "0000000001.png", (32, 24))
    with pytest.raises(InputError, match=r"0000000001\.png: expected 64 x 24 pixels.*found 32 x 24"):
        scan_files.check_files(kitti360.read_sequences(tree.root))


@pytest.mark.real_data
def test_published_calibration(real_data, tmp_path):
    """Through the published values the LiDAR stands 0.77 m ahead of the IMU, upright, which looks down."""
    tree = scan_trees.write_kitti360(tmp_path)
    values = dict(
        line.split(":", 1) for line in (real_data / "kitti360/calib_values.txt").read_text().splitlines()[1:]
    )
    (tree.calibration / "calib_cam_to_velo.txt").write_text(values["calib_cam_to_velo"])
    (tree.calibration / "calib_cam_to_pose.txt").write_text(
        f"image_00:{values['calib_cam_to_pose image_00']}"
    )
    tree.poses.write_text("1 1 0 0 0 0 1 0 0 0 0 1 0\n")
    (tree.scans / "0000000000.bin").unlink()
    for frame in (2, 3, 4, 6, 7):
        (tree.scans / f"{frame:010d}.bin").unlink()
    (scan,) = kitti360.read_sequences(tree.root, camera=None)[0].scans
    imu_T_lidar = scan.map_T_lidar
    np.testing.assert_allclose(imu_T_lidar[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=0.02)
    np.testing.assert_allclose(imu_T_lidar[:3, 3], [0.77, 0.3, -0.83], atol=0.05)
