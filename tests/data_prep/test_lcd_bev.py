"""BEV folders to a prepared folder and back."""

import shutil

import cv2
import numpy as np
import pytest

from data_prep.__main__ import main
from placerec_jax.data.prepared import PreparedFolder

SIZE = 31


def make_bev(root, name, frames, seed=0, step=1.0):
    """A drive there and back on one straight line: the way back passes every place in reverse."""
    rng = np.random.default_rng(seed)
    folder = root / name
    (folder / "imgs").mkdir(parents=True)
    rows = []
    for frame in range(frames):
        back = frame >= frames // 2
        x = step * (frames - 1 - frame if back else frame)
        sign = -1.0 if back else 1.0
        rows.append([sign, 0, 0, x, 0, sign, 0, 0.5, 0, 0, 1, 0])
        picture = rng.integers(0, 256, (SIZE, SIZE), np.uint8)
        cv2.imwrite(str(folder / "imgs" / f"{frame:06d}.png"), picture)
    np.savetxt(folder / "pose.txt", rows)
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    root = tmp_path_factory.mktemp("bev")
    make_bev(root, "05", 120)
    make_bev(root, "06", 40, seed=1)
    return root


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "lcd"
    options = ["--train", "05", "--val", "05", "--test", "06", "--workers", "1"]
    assert main(["lcd", "--raw", str(raw), "--format", "bev", "--out", str(out), *options]) == 0
    return PreparedFolder(out)


def convert(raw, out, *options):
    return main(["lcd", "--raw", str(raw), "--format", "bev", "--out", str(out), "--workers", "1", *options])


def test_rows_run_with_x_and_columns_with_y(raw, prepared):
    record = prepared.table("frames")[120 + 7]
    picture = cv2.imread(str(raw / "06/imgs/000007.png"), cv2.IMREAD_UNCHANGED)
    assert record["sequence"] == b"06"
    assert record["frame_id"] == 7
    # In the picture forward is up and left is left.
    for forward, left in ((0, 0), (9, 3), (-12, 5), (15, -15)):
        middle = SIZE // 2
        assert record["bev"][middle + forward, middle + left, 0] == picture[middle - forward, middle - left]


def test_poses_are_kept_to_the_last_bit_in_both_tables(raw, prepared):
    rows = np.loadtxt(raw / "05/pose.txt").reshape(-1, 3, 4)
    sequence = prepared.table("sequences")[0]
    np.testing.assert_array_equal(sequence["map_T_lidar"][:, :3], rows)
    np.testing.assert_array_equal(sequence["frame_id"], np.arange(120))
    assert np.isnan(sequence["time"]).all()
    assert (sequence["sequence"], sequence["first"]) == (b"05", 0)
    assert prepared.table("sequences")[1]["first"] == 120
    record = prepared.table("frames")[33]
    np.testing.assert_array_equal(record["map_T_lidar"], sequence["map_T_lidar"][33])


def test_positives_are_the_pairs_that_the_rule_names(prepared):
    offset, positive = prepared.split("loops", "offset"), prepared.split("loops", "positive")
    xyz = prepared.table("sequences")[0]["map_T_lidar"][:, :3, 3]
    distance = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1)
    apart = np.abs(np.subtract.outer(np.arange(120), np.arange(120)))
    for frame in range(120):
        expected = np.flatnonzero((distance[frame] < 4.0) & (apart[frame] > 50))
        np.testing.assert_array_equal(positive[offset[frame] : offset[frame + 1]], expected)
    assert len(offset) == 161
    assert offset[120] == offset[160] == len(positive)  # 40 frames hold no loop


def test_splits_by_the_options_and_by_sequence(prepared):
    np.testing.assert_array_equal(prepared.split("official", "train"), np.arange(120))
    np.testing.assert_array_equal(prepared.split("official", "val"), np.arange(120))
    np.testing.assert_array_equal(prepared.split("official", "test"), np.arange(120, 160))
    np.testing.assert_array_equal(prepared.split("official", "06"), np.arange(120, 160))


def test_the_manifest_counts_loops_by_sequence(prepared):
    sequences = prepared.manifest["sequences"]
    # Frame 60 + k lies where 59 - k was: |2k + 1| frames apart, so from k = 25 on each has a loop behind it,
    # and those within 3 m besides: 59 - k' for k' = k - 3 ... k + 3, of which k' + k + 1 > 50.
    queries = sum(
        any(abs(d) < 4 and 2 * k + d + 1 > 50 and k + d < 60 for d in range(-3, 4)) for k in range(60)
    )
    assert sequences["05"]["queries_with_past_loop"] == queries
    assert sequences["05"]["reverse"] == queries
    assert sequences["06"]["frames_with_any_loop"] == 0
    assert sequences["05"]["pose_source"] == "05/pose.txt"
    assert prepared.manifest["recipe"]["bev_cell_m"] == 0.4


def test_a_sequence_without_loops_is_said(raw, tmp_path, capsys):
    assert convert(raw, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "no loop in 06" in printed
    assert "the splits train, val and test are empty" in printed


def test_pictures_and_poses_that_differ_in_number(raw, tmp_path, capsys):
    shutil.copytree(raw, tmp_path / "raw")
    (tmp_path / "raw/06/imgs/000039.png").unlink()
    assert convert(tmp_path / "raw", tmp_path / "out") == 1
    message = capsys.readouterr().err
    assert "06" in message
    assert "40" in message
    assert "39" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["truncated", "colour", "size", "empty"])
def test_a_bad_picture_is_named(raw, tmp_path, capsys, damage):
    shutil.copytree(raw, tmp_path / "raw")
    path = tmp_path / "raw/06/imgs/000004.png"
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-300])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        shape = (SIZE, SIZE, 3) if damage == "colour" else (SIZE + 1, SIZE)
        cv2.imwrite(str(path), np.zeros(shape, np.uint8))
    assert convert(tmp_path / "raw", tmp_path / "out") == 1
    assert "000004.png" in capsys.readouterr().err
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_split_of_a_sequence_that_is_not_there(raw, tmp_path, capsys):
    assert convert(raw, tmp_path / "out", "--test", "06,99") == 1
    assert "--test" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
