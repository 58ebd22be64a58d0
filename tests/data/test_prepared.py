"""Prepared folders that are whole, unfinished, or of another kind."""

import json
import pickle
import shutil

import numpy as np
import pytest

from placerec_jax.data.prepared import PreparedError, PreparedFolder


@pytest.fixture
def root(toy_root, tmp_path):
    return shutil.copytree(toy_root, tmp_path / "prepared")


def change_manifest(root, **changes):
    path = root / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_tables_and_splits(toy_root):
    folder = PreparedFolder(toy_root)
    assert len(folder.table("frames")) == 32
    np.testing.assert_array_equal(folder.split("official", "train"), np.arange(24))
    np.testing.assert_array_equal(folder.split("official", "val"), np.arange(24, 32))
    assert folder.split("official", "test").shape == (0,)
    assert len(folder.fingerprint) == 64


def test_several_splits_together_hold_every_record_once(root):
    path = root / "splits" / "official.npz"
    np.savez(path, database=[7, 2, 4], query=[4, 1], pairs=[[4, 2], [1, 7]], nothing=np.zeros(0, np.int64))
    folder = PreparedFolder(root)
    np.testing.assert_array_equal(folder.split("official", "database+query"), [1, 2, 4, 7])
    np.testing.assert_array_equal(folder.split("official", "nothing+query"), [1, 4])
    np.testing.assert_array_equal(folder.split("official", "pairs"), [[4, 2], [1, 7]])
    with pytest.raises(PreparedError, match=r"no split 'val'; there are \['database'"):
        folder.split("official", "database+val")


def test_survives_pickling(toy_root):
    folder = PreparedFolder(toy_root)
    folder.table("frames")
    assert pickle.loads(pickle.dumps(folder)).table("frames")[3]["token"] == b"frame-3"


def test_absent(tmp_path):
    with pytest.raises(PreparedError, match=r"nowhere: expected a prepared folder, found nothing"):
        PreparedFolder(tmp_path / "nowhere")


def test_unfinished(root):
    (root / "manifest.json").unlink()
    with pytest.raises(PreparedError, match=r"no manifest.json, .*did not finish"):
        PreparedFolder(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[]", "expected format 1, found 'list'"),
        ('{"format": 2}', "expected format 1, found 2"),
        ('{"format": 1, "fingerprint": ""}', r"expected the keys \['tables'\]"),
    ],
)
def test_manifest_of_another_kind(root, text, message):
    (root / "manifest.json").write_text(text)
    with pytest.raises(PreparedError, match=message):
        PreparedFolder(root)


def test_missing_table(root):
    with pytest.raises(PreparedError, match=r"no table 'maps'; manifest.json lists \['frames'\]"):
        PreparedFolder(root).table("maps")


def test_table_of_another_length(root):
    change_manifest(root, tables={"frames": {"records": 33}})
    with pytest.raises(PreparedError, match=r"expected 33 records .* found 32"):
        PreparedFolder(root).table("frames")


def test_missing_scheme_and_split(root):
    with pytest.raises(PreparedError, match=r"there are \['official'\]"):
        PreparedFolder(root).split("geographic", "train")
    with pytest.raises(PreparedError, match=r"no split 'dev'; there are \['test', 'train', 'val'\]"):
        PreparedFolder(root).split("official", "dev")


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped"])
def test_damaged_splits(root, damage):
    path = root / "splits" / "official.npz"
    data = path.read_bytes()
    flipped = data[:150] + bytes([data[150] ^ 1]) + data[151:]
    path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "flipped": flipped}[damage])
    with pytest.raises(PreparedError, match=r"official\.npz: expected arrays of record numbers"):
        PreparedFolder(root).split("official", "train")
