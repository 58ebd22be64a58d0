"""The writer of prepared folders: whole or not at all, the same bytes however it was interrupted."""

import errno
import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_prep import tables
from data_prep.errors import InputError

COUNT = 10


def features() -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict(
        {
            "number": np.int64,
            "grid": tfds.features.Tensor(shape=(None, None), dtype=np.uint8, encoding="zlib"),
        }
    )


def examples(
    numbers: Sequence[int], stop_at: int | None = None, error: BaseException | None = None
) -> Iterator[dict]:
    for number in numbers:
        if number == stop_at:
            raise error
        yield {"number": number, "grid": np.full((number + 1, 3), number, np.uint8)}


def write(out: Path, make: Any = examples, workers: int = 1, **settings: Any) -> dict[str, Any]:
    shards = tables.split_into_shards(range(COUNT), 3)
    return tables.write_prepared_folder(
        out,
        converter="test",
        settings={"size": 3, **settings},
        source={"dataset": "numbers"},
        tables=[tables.Table("numbers", features, make, shards)],
        splits={"official": {"train": np.arange(7), "val": np.arange(7, 10), "test": np.arange(0)}},
        counts={"numbers": COUNT},
        extra={"cameras": []},
        workers=workers,
    )


def content(out: Path) -> dict[str, str]:
    """Path → hash of every file."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def assert_unfinished(out: Path) -> None:
    assert not (out / tables.MANIFEST).exists()
    assert not list(out.rglob(f"*{tables.INCOMPLETE}"))


def test_tensorflow_datasets_opens_it(tmp_path):
    manifest = write(tmp_path / "out")
    builder = tfds.builder_from_directory(str(tmp_path / "out" / "numbers"))
    assert builder.info.splits["numbers"].num_examples == COUNT
    assert list(builder.info.splits["numbers"].shard_lengths) == [3, 3, 3, 1]
    read = list(tfds.as_numpy(builder.as_dataset(split="numbers", shuffle_files=False)))
    assert [r["number"] for r in read] == list(range(COUNT))
    np.testing.assert_array_equal(read[4]["grid"], np.full((5, 3), 4))
    assert manifest == json.loads((tmp_path / "out" / tables.MANIFEST).read_text())
    assert manifest["tables"]["numbers"]["records"] == COUNT
    assert manifest["splits"]["official"] == {"train": 7, "val": 3, "test": 0}
    with np.load(tmp_path / "out/splits/official.npz") as split:
        assert split["val"].tolist() == [7, 8, 9]
        assert split["test"].dtype == np.int64
    assert not (tmp_path / "out" / tables.JOURNAL).exists()


def test_the_hashes_are_of_the_files(tmp_path):
    manifest = write(tmp_path / "out")
    files = content(tmp_path / "out")
    names = [f"numbers/numbers-numbers.tfrecord-{i:05d}-of-00004" for i in range(4)]
    assert manifest["tables"]["numbers"]["sha256"] == [files[name] for name in names]


def test_same_bytes_again(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_the_fingerprint_tells_records_and_splits_apart(tmp_path):
    one = write(tmp_path / "a")["fingerprint"]
    other = write(tmp_path / "b", lambda numbers: examples([n + 1 for n in numbers]))["fingerprint"]
    assert one != other


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "disk"), ValueError("bad")])
def test_resumes_after_an_interruption_to_the_same_bytes(tmp_path, error):
    write(tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(type(error)):
        write(out, functools.partial(examples, stop_at=7, error=error))
    assert_unfinished(out)
    assert len(list((out / "numbers").iterdir())) == 2  # the shards before number 7

    made = []

    def count(numbers: Sequence[int]) -> Iterator[dict]:
        made.extend(numbers)
        return examples(numbers)

    write(out, count)
    assert made == [6, 7, 8, 9]
    assert content(out) == content(tmp_path / "whole")


def test_leftovers_of_a_killed_process_are_redone(tmp_path):
    write(tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write(out, functools.partial(examples, stop_at=7, error=KeyboardInterrupt()))
    shard = out / "numbers/numbers-numbers.tfrecord-00000-of-00004"
    shard.write_bytes(shard.read_bytes()[:-1])  # noted as whole, but not so on the disk
    (out / "numbers" / f"x{tables.INCOMPLETE}").write_bytes(b"half")
    write(out)
    assert content(out) == content(tmp_path / "whole")


def test_a_finished_folder_is_left_alone(tmp_path):
    manifest = write(tmp_path / "out")
    assert write(tmp_path / "out", functools.partial(examples, stop_at=0, error=AssertionError())) == manifest


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused(tmp_path, finished):
    out = tmp_path / "out"
    if finished:
        write(out)
    else:
        with pytest.raises(KeyboardInterrupt):
            write(out, functools.partial(examples, stop_at=7, error=KeyboardInterrupt()))
    before = content(out)
    with pytest.raises(InputError, match=r"other settings or inputs \(limit: there None, now 5\).*--out"):
        write(out, limit=5)
    assert content(out) == before


def test_a_foreign_folder_is_refused(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(InputError, match="expected an empty or absent folder"):
        write(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "precious.txt"]


@pytest.mark.parametrize("name", [tables.MANIFEST, tables.JOURNAL])
@pytest.mark.parametrize("damage", ["", "{", "[]", "{}"])
def test_a_damaged_manifest_or_journal(tmp_path, name, damage):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text(damage)
    with pytest.raises(InputError, match=f"{name}: expected the .*found damage.*Remove the folder"):
        write(out)


def test_full_disk(tmp_path, monkeypatch):
    """The second shard does not fit; with space again, the same call finishes."""
    write(tmp_path / "whole")
    out = tmp_path / "out"
    real_open, full = Path.open, True

    def open_on_a_full_disk(path: Path, mode: str = "r", **options: Any) -> Any:
        file = real_open(path, mode, **options)
        if full and "00001-of-00004" in path.name and "w" in mode:

            def write_nothing(data: bytes) -> int:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))

            file = _Wrapped(file, write_nothing)
        return file

    monkeypatch.setattr(Path, "open", open_on_a_full_disk)
    with pytest.raises(InputError, match=r"00001-of-00004.*the disk is full .*run the same command again"):
        write(out)
    assert_unfinished(out)
    full = False
    write(out)
    assert content(out) == content(tmp_path / "whole")


class _Wrapped:
    """A file whose `write` is another."""

    def __init__(self, file: Any, write: Any) -> None:
        self._file, self.write = file, write

    def __enter__(self) -> "_Wrapped":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def test_too_few_examples_is_a_fault_of_the_converter(tmp_path):
    with pytest.raises(RuntimeError, match="expected 3 examples, the converter made 2"):
        write(tmp_path / "out", lambda numbers: examples(numbers[:2]))
    assert_unfinished(tmp_path / "out")


def test_framing_is_tensorflows(tmp_path):
    tensorflow = pytest.importorskip("tensorflow")
    payloads = [b"", b"a", bytes(range(256)) * 100]
    with tensorflow.io.TFRecordWriter(str(tmp_path / "theirs")) as writer:
        for payload in payloads:
            writer.write(payload)
    assert b"".join(map(tables.frame_record, payloads)) == (tmp_path / "theirs").read_bytes()
