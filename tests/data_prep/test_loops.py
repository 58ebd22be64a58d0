"""Loops against a plain double loop, and on the real poses of KITTI against published counts."""

import json

import numpy as np
import pytest

from data_prep import loops, scan_sources
from data_prep.__main__ import main
from data_prep.raw.scans import Scan, ScanSequence
from tests.data_prep import scan_trees


def sequence(xyz, yaw, frame_ids=None):
    """A sequence of poses without scans."""
    frame_ids = range(len(xyz)) if frame_ids is None else frame_ids
    scans = []
    for position, heading, frame_id in zip(xyz, yaw, frame_ids, strict=True):
        pose = np.eye(4)
        pose[:2, :2] = [[np.cos(heading), -np.sin(heading)], [np.sin(heading), np.cos(heading)]]
        pose[:3, 3] = position
        scans.append(Scan("s", int(frame_id), float("nan"), None, pose))
    return ScanSequence("s", tuple(scans), "made up")


def by_hand(drive, rule):
    """(pairs, counts) by looking at every pair."""
    xyz = [scan.map_T_lidar[:3, 3] for scan in drive.scans]
    forward = [scan.map_T_lidar[:3, 0] for scan in drive.scans]
    number = [scan.frame_id if rule.gap_by == "frame_id" else i for i, scan in enumerate(drive.scans)]
    pairs, queries, reverse = set(), 0, 0
    for i in range(len(xyz)):
        past = [
            (np.linalg.norm(xyz[i] - xyz[j]), j)
            for j in range(i)
            if number[i] - number[j] > rule.gap and np.linalg.norm(xyz[i] - xyz[j]) < rule.distance
        ]
        pairs |= {(i, j) for _, j in past}
        if past:
            queries += 1
            angle = np.degrees(np.arccos(np.clip(forward[i] @ forward[min(past)[1]], -1, 1)))
            reverse += angle > 90
    any_loop = len({frame for pair in pairs for frame in pair})
    counts = {
        "frames": len(xyz),
        "queries_with_past_loop": queries,
        "reverse": reverse,
        "frames_with_any_loop": any_loop,
    }
    return pairs, counts


@pytest.mark.parametrize("gap_by", sorted(loops.GAP_BY))
def test_against_every_pair(gap_by):
    rng = np.random.default_rng(0)
    for gap, distance in ((0, 1.0), (7, 3.0), (30, 6.0)):
        xyz = rng.uniform([0, 0, -2], [25, 25, 2], (120, 3))
        ids = np.cumsum(rng.integers(1, 5, 120))
        drive = sequence(xyz, rng.uniform(-np.pi, np.pi, 120), ids)
        rule = loops.LoopRule(distance, gap, gap_by)
        found = loops.find_loops(drive, rule)
        pairs, counts = by_hand(drive, rule)
        assert {tuple(pair) for pair in found.pairs.tolist()} == pairs
        assert len(found.pairs) == len(pairs)
        assert found.counts() == counts
        offset, positive = found.positives()
        for frame in range(120):
            both = sorted([j for i, j in pairs if i == frame] + [i for i, j in pairs if j == frame])
            assert positive[offset[frame] : offset[frame + 1]].tolist() == both


def test_both_limits_are_exclusive():
    xyz = np.zeros((4, 3))
    xyz[:, 0] = [0.0, 4.0, 100.0, 0.0]
    assert loops.find_loops(sequence(xyz, np.zeros(4)), loops.LoopRule(4.0, 2)).pairs.tolist() == [[3, 0]]
    assert not len(loops.find_loops(sequence(xyz, np.zeros(4)), loops.LoopRule(4.0, 3)).pairs)


def test_height_counts():
    xyz = np.array([[0, 0, 0], [0, 0, 5.0]])
    assert not len(loops.find_loops(sequence(xyz, np.zeros(2)), loops.LoopRule(4.0, 0)).pairs)


def test_no_frames():
    found = loops.find_loops(ScanSequence("s", (), ""), loops.LoopRule())
    assert found.counts()["frames"] == 0
    assert found.positives()[0].tolist() == [0]


def test_poses_alone_are_enough(tmp_path, capsys):
    tree = scan_trees.write_kitti(tmp_path, frames=5)
    for path in (tree.sequence() / "velodyne").iterdir():
        path.unlink()
    assert main(["loops", "--raw", str(tmp_path), "--format", "kitti", "--gap", "2", "--distance", "6"]) == 0
    printed = capsys.readouterr().out
    row = next(line.split() for line in printed.splitlines() if line.startswith("03"))
    expected = by_hand(sequence(scan_trees.drive(5)[:, :3, 3], np.zeros(5)), loops.LoopRule(6.0, 2))[1][
        "queries_with_past_loop"
    ]
    assert row[1:5] == ["5", str(expected), "0", str(2 * expected)]
    assert "poses/03.txt" in printed


def test_a_sequence_that_is_not_there(tmp_path, capsys):
    scan_trees.write_kitti(tmp_path, frames=2)
    assert main(["loops", "--raw", str(tmp_path), "--format", "kitti", "--sequences", "08"]) == 1
    assert "08" in capsys.readouterr().err


def test_a_pose_source_of_another_format(tmp_path, capsys):
    scan_trees.write_kitti(tmp_path, frames=2)
    assert main(["loops", "--raw", str(tmp_path), "--format", "kitti", "--pose-source", "imu"]) == 1
    assert "odometry or semantickitti" in capsys.readouterr().err


def test_calib_without_tr(tmp_path, capsys):
    tree = scan_trees.write_kitti(tmp_path, frames=2)
    calib = tree.sequence() / "calib.txt"
    calib.write_text("".join(line for line in calib.open() if not line.startswith("Tr")))
    assert main(["loops", "--raw", str(tmp_path), "--format", "kitti"]) == 1
    message = capsys.readouterr().err
    assert "calib.txt" in message
    assert "Tr" in message


def test_the_city_says_its_splits(tmp_path):
    marker = tmp_path / scan_sources.CITY_MARKER
    marker.write_text(
        json.dumps(
            {"what": "…", "sequences": {"00": "train", "01": "test", "2013_05_28_drive_0002_sync": "test"}}
        )
    )
    splits = scan_sources.city_splits(marker)
    assert splits == {"train": ("00",), "val": (), "test": ("01", "0002")}
    assert scan_sources.find_marker(tmp_path) == marker
    (tmp_path / "dataset").mkdir()
    assert scan_sources.find_marker(tmp_path / "dataset") == marker
    marker.write_text("{")
    with pytest.raises(ValueError, match=scan_sources.CITY_MARKER):
        scan_sources.city_splits(marker)


@pytest.mark.real_data
def test_the_counts_of_kitti(real_data, capsys):
    """790 of sequence 00 is what the Scan Context paper counts; of 08's 262, 254 are passed in reverse."""
    assert main(["loops", "--raw", str(real_data / "kitti_odometry"), "--format", "kitti"]) == 0
    rows = {line.split()[0]: line.split()[1:5] for line in capsys.readouterr().out.splitlines()}
    assert {name: (int(row[1]), int(row[2])) for name, row in rows.items() if name.isdigit()} == {
        "00": (790, 7),
        "05": (490, 0),
        "06": (269, 0),
        "07": (96, 0),
        "08": (262, 254),
        "09": (16, 0),
    }
    assert [int(rows[name][3]) for name in ("00", "05", "06", "07", "08", "09")] == [
        *(1684, 1046, 563),
        *(183, 515, 41),
    ]


@pytest.mark.real_data
def test_bev_folders_count_the_same_loops(real_data, capsys):
    """Their poses are of the LiDAR too: 05 and 06 count as where they were rendered from."""
    assert main(["loops", "--raw", str(real_data / "kitti_bev"), "--format", "bev"]) == 0
    rows = {line.split()[0]: line.split()[1:5] for line in capsys.readouterr().out.splitlines()}
    assert rows["05"] == ["2761", "490", "0", "1046"]
    assert rows["06"] == ["1101", "269", "0", "563"]
