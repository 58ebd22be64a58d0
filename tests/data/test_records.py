"""Random access to TFRecord tables: against TensorFlow's own reader, and on damaged files."""

import pickle
import shutil
import struct
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from placerec_jax.data.records import RecordError, RecordTable, decode_image
from tests.toy.prepared import frames


@pytest.fixture
def folder(toy_root, tmp_path) -> Path:
    """A copy of the frames table that a test may damage: 32 records in 3 shards of 11, 11, 10."""
    return shutil.copytree(toy_root / "frames", tmp_path / "frames")


def shard(folder: Path, number: int) -> Path:
    return sorted(folder.glob("*.tfrecord-*"))[number]


def record_offset(path: Path, number: int) -> int:
    """Byte at which record `number` starts, read without the code under test."""
    data, offset = path.read_bytes(), 0
    for _ in range(number):
        offset += 16 + struct.unpack_from("<Q", data, offset)[0]
    return offset


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def test_records_are_what_tensorflow_reads(toy_root):
    dataset = tfds.builder_from_directory(toy_root / "frames").as_dataset(split="frames", shuffle_files=False)
    table = RecordTable(toy_root / "frames")
    assert len(table) == 32
    for i, expected in enumerate(dataset.as_numpy_iterator()):
        found = table[i]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_columns_are_the_named_features_of_the_named_records(toy_root):
    table = RecordTable(toy_root / "frames")
    found = table.columns(("target", "token"), [30, 2])
    assert found.keys() == {"target", "token"}
    np.testing.assert_array_equal(found["target"], [table[30]["target"], table[2]["target"]])
    assert found["token"].tolist() == [b"frame-30", b"frame-2"]
    with pytest.raises(RecordError, match=r"expected features \['place'\], found \['cameras', 'image'"):
        table.columns(("place", "token"), [0])


def test_records_come_in_any_order_and_from_threads(toy_root):
    table = RecordTable(toy_root / "frames")
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(32), 8))
    with ThreadPoolExecutor(4) as pool:
        tokens = list(pool.map(lambda i: table[int(i)]["token"].decode(), order))
    assert tokens == [f"frame-{i}" for i in order]


def test_images_can_stay_encoded(toy_root):
    table, truth = RecordTable(toy_root / "frames"), frames(32)
    record = table.read(7, images=False)
    assert isinstance(record["image"], bytes)
    np.testing.assert_array_equal(decode_image(record["image"]), truth[7]["image"])  # PNG: exact, RGB order
    assert len(record["cameras"]) == 2
    np.testing.assert_array_equal(decode_image(record["cameras"][1]), truth[7]["cameras"][1])
    np.testing.assert_array_equal(record["raster"], truth[7]["raster"])


def test_a_table_survives_pickling(toy_root):
    table = pickle.loads(pickle.dumps(RecordTable(toy_root / "frames")))
    assert table[20]["token"] == b"frame-20"


def test_reads_where_tensorflow_is_not_installed(toy_root):
    script = textwrap.dedent(
        f"""
        import sys

        class Without:
            def __init__(self, finder):
                self.finder = finder
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in ("tensorflow", "keras"):
                    return None
                return self.finder.find_spec(name, path, target)

        sys.meta_path = [Without(finder) for finder in sys.meta_path]
        from placerec_jax.data.prepared import PreparedFolder
        from placerec_jax import train  # all that training imports
        record = PreparedFolder({str(toy_root)!r}).table("frames")[31]
        assert record["token"] == b"frame-31", record["token"]
        assert record["image"].shape == (8, 8, 3)
        try:
            import tensorflow
        except ModuleNotFoundError:
            print("read without tensorflow")
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "read without tensorflow", done.stderr[-3000:]


def test_index_out_of_range(toy_root):
    table = RecordTable(toy_root / "frames")
    with pytest.raises(IndexError, match="record 32 of 32"):
        table[32]
    with pytest.raises(IndexError):
        table[-1]


def test_flipped_payload_byte_is_found_on_read(folder):
    path = shard(folder, 1)
    offset = record_offset(path, 4)
    flip(path, offset + 12 + 30)
    table = RecordTable(folder)
    assert table[14]["token"] == b"frame-14"
    with pytest.raises(RecordError, match=rf"{path.name}: .*record 15 at byte {offset} .*checksum"):
        table[15]


def test_flipped_length_is_found_on_opening(folder):
    path = shard(folder, 0)
    offset = record_offset(path, 3)
    flip(path, offset)
    with pytest.raises(RecordError, match=rf"{path.name}: the length of record 3 at byte {offset}"):
        RecordTable(folder)


@pytest.mark.parametrize("cut", [1, 5, 40, "header"])
def test_truncated_shard(folder, cut):
    path = shard(folder, 2)
    size = path.stat().st_size
    last = record_offset(path, 9)
    end = last + 6 if cut == "header" else size - cut
    with path.open("r+b") as file:
        file.truncate(end)
    with pytest.raises(
        RecordError, match=rf"{path.name}: truncated: record 9 at byte {last} .* ends at byte {end}"
    ):
        RecordTable(folder)


def test_shard_cut_between_records(folder):
    path = shard(folder, 2)
    with path.open("r+b") as file:
        file.truncate(record_offset(path, 8))
    with pytest.raises(RecordError, match=rf"{path.name}: expected 10 records .* found 8"):
        RecordTable(folder)


def test_table_cut_after_it_was_opened(folder):
    table = RecordTable(folder)
    path = shard(folder, 0)
    with path.open("r+b") as file:
        file.truncate(record_offset(path, 10) + 20)
    with pytest.raises(RecordError, match="truncated since it was opened: record 10"):
        table[10]


def test_missing_shard(folder):
    shard(folder, 1).unlink()
    with pytest.raises(RecordError, match=r"1 of 3 shards are absent: frames-frames.tfrecord-00001-of-00003"):
        RecordTable(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "frames"}', '{"splits": [{}]}'])
def test_damaged_metadata(folder, content):
    (folder / "dataset_info.json").write_text(content)
    with pytest.raises(RecordError, match=r"dataset_info\.json: expected TFDS metadata"):
        RecordTable(folder)


def test_missing_features(folder):
    (folder / "features.json").unlink()
    with pytest.raises(RecordError, match=r"frames: expected a table with features.json"):
        RecordTable(folder)


def test_bytes_that_are_no_image():
    with pytest.raises(RecordError, match="expected an encoded image, found 4 bytes"):
        decode_image(b"abcd")
