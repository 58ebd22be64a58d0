"""The reader of folders of BEV pictures, on folders written by hand and on the real ones."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data_prep.errors import InputError
from data_prep.raw import bev_folder, kitti, scan_files
from tests.data_prep import scan_trees


def write_sequence(folder: Path, frames: int = 4) -> np.ndarray:
    """(frames, 4, 4) poses of what is written."""
    (folder / "imgs").mkdir(parents=True)
    poses = scan_trees.drive(frames)
    (folder / "pose.txt").write_text("".join(f"{scan_trees.numbers(pose[:3])}\n" for pose in poses))
    for frame in range(frames):
        cv2.imwrite(str(folder / "imgs" / f"{frame:06d}.png"), np.full((7, 7), frame, np.uint8))
    return poses


@pytest.fixture
def root(tmp_path) -> Path:
    write_sequence(tmp_path / "05")
    return tmp_path


def test_a_row_is_the_pose_of_its_picture(root):
    write_sequence(root / "06", frames=2)
    first, second = bev_folder.read_sequences(root)
    assert (first.name, second.name, first.pose_source) == ("05", "06", "05/pose.txt")
    assert [scan.frame_id for scan in first.scans] == [0, 1, 2, 3]
    assert [scan.path.name for scan in first.scans] == [f"{i:06d}.png" for i in range(4)]
    np.testing.assert_allclose([scan.map_T_lidar for scan in first.scans], scan_trees.drive(4), atol=1e-12)
    assert all(np.isnan(scan.time) and scan.image is None for scan in first.scans)
    assert [sequence.name for sequence in bev_folder.read_sequences(root, ["06"])] == ["06"]
    assert scan_files.check_files([first]) == sum(p.stat().st_size for p in (root / "05/imgs").iterdir())


def test_a_sequence_alone_is_a_root(root, monkeypatch):
    assert bev_folder.read_sequences(root / "05")[0].name == "05"
    monkeypatch.chdir(root / "05")
    assert bev_folder.read_sequences(Path())[0].name == "05"


def test_pictures_and_poses_that_differ_in_number(root):
    (root / "05/imgs/000003.png").unlink()
    with pytest.raises(InputError, match=r"05: expected one row of pose\.txt a picture, found 4 rows and 3"):
        bev_folder.read_sequences(root)


def test_pictures_with_a_gap(root):
    """As many as rows, and yet it is not said which is whose."""
    (root / "05/imgs/000002.png").rename(root / "05/imgs/000007.png")
    with pytest.raises(InputError, match=r"imgs: expected pictures 0 to 3, .* found no picture 2"):
        bev_folder.read_sequences(root)


def test_a_picture_whose_name_is_no_number(root):
    (root / "05/imgs/000002.png").rename(root / "05/imgs/two.png")
    with pytest.raises(InputError, match=r"two\.png: expected a frame's number before \.png, found 'two'"):
        bev_folder.read_sequences(root)


def test_damaged_poses(root):
    path = root / "05/pose.txt"
    path.write_text(path.read_text().replace("\n", " 1.0\n", 1))
    with pytest.raises(InputError, match=r"pose\.txt: expected 12 numbers in each row, found 13 in line 1"):
        bev_folder.read_sequences(root)
    path.unlink()
    with pytest.raises(InputError, match=r"pose\.txt: expected this file, found none"):
        bev_folder.read_sequences(root)


def test_what_is_not_there(root, tmp_path):
    with pytest.raises(InputError, match=r"expected the sequences 07, found 05 only"):
        bev_folder.read_sequences(root, ["05", "07"])
    with pytest.raises(InputError, match=r"nowhere: expected a folder of BEV sequences"):
        bev_folder.read_sequences(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: expected NAME/pose\.txt .* found no folder imgs"):
        bev_folder.read_sequences(tmp_path / "empty")


def test_a_truncated_picture_is_found_by_its_head(root):
    path = root / "05/imgs/000001.png"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=r"000001\.png: expected a PNG image, found 20 bytes"):
        scan_files.check_files(bev_folder.read_sequences(root))


@pytest.mark.real_data
def test_real_poses_are_those_of_the_odometry_benchmark(real_data):
    """The folders say LiDAR frame; KITTI says camera 0 and Tr: two ways to one trajectory."""
    pictures = bev_folder.read_sequences(real_data / "kitti_bev")
    assert {s.name: len(s.scans) for s in pictures} == {"05": 2761, "06": 1101}
    assert scan_files.check_files(pictures) > 5_000_000
    odometry = kitti.read_sequences(real_data / "kitti_odometry", ["05", "06"], require_scans=False)
    for one, other in zip(pictures, odometry, strict=True):
        a, b = (np.array([scan.map_T_lidar for scan in s.scans]) for s in (one, other))
        np.testing.assert_allclose(a, b, atol=2e-4)  # over 2.2 and 1.2 km
