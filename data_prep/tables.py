"""The one writer of prepared folders.

    OUT/<table>/        a TFDS folder: features.json, dataset_info.json and the shards,
                        <table>-<table>.tfrecord-00000-of-000NN
    OUT/splits/*.npz    record numbers by split, one file a scheme
    OUT/...             further files of a converter
    OUT/manifest.json   what it all is, with hashes; written last: a folder without it is unfinished

Shards are written in parallel, each under another name until it is whole, and noted in OUT/journal.json, so
that a run that was stopped continues where it was. The bytes do not depend on the number of workers nor on
interruptions.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from data_prep.errors import InputError
from data_prep.worker_pool import end_with_parent

FORMAT = 1
MANIFEST = "manifest.json"
JOURNAL = "journal.json"
INCOMPLETE = ".incomplete"

_CRC_MASK = 0xA282EAD8  # of the TFRecord framing


@dataclasses.dataclass(frozen=True)
class Table:
    """One table to write: record i of the table is example i of all shards in order.

    `features` makes the declared features and `examples` turns one shard's inputs into exactly one example
    each, in order. Both are called in worker processes, so they must be picklable: functions of a module, or
    partials of them.
    """

    name: str
    features: Callable[[], tfds.features.FeaturesDict]
    examples: Callable[[Sequence[Any]], Iterator[dict[str, Any]]]
    shards: Sequence[Sequence[Any]]

    @property
    def records(self) -> int:
        return sum(len(shard) for shard in self.shards)

    def shard_file(self, shard: int) -> str:
        """The shard's path inside the prepared folder, as TFDS expects it."""
        return f"{self.name}/{self.name}-{self.name}.tfrecord-{shard:05d}-of-{len(self.shards):05d}"


def split_into_shards(inputs: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """Runs of `size` inputs; the last may be shorter."""
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]


def write_prepared_folder(
    out: Path,
    *,
    converter: str,
    settings: Mapping[str, Any],
    source: Mapping[str, Any],
    tables: Sequence[Table],
    splits: Mapping[str, Mapping[str, np.ndarray]],
    counts: Mapping[str, Any],
    extra: Mapping[str, Any],
    workers: int,
    files: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """Write a prepared folder, or finish one that an earlier run left unfinished; returns its manifest.

    `settings` (JSON) is everything that the records depend on: a folder begun under other settings is
    refused. `splits` is scheme → split → record numbers. `extra` are further entries of the manifest, `files`
    further files by their path in the folder.
    Raises InputError for other settings, a folder that is something else, and a full disk; what was raised
    while making an example passes through. After either, the folder holds whole shards and no manifest, and
    the same call continues.
    """
    settings = _full(converter, settings)
    finished = _finished_manifest(out, settings)
    if finished is not None:
        return finished
    journal = _Journal.open(out, settings)
    with _disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        for stale in out.glob(f"*/*{INCOMPLETE}"):
            stale.unlink()
        _write_shards(out, tables, journal, workers)
        for table in tables:
            _write_metadata(out, table, journal)
        split_hashes = _write_splits(out, splits)
        for name, content in (files or {}).items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_whole(out / name, content)
        manifest = _manifest(
            converter, settings, source, tables, journal, splits, split_hashes, counts, extra
        )
        write_whole(out / MANIFEST, (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode())
        (out / JOURNAL).unlink()
    return manifest


def finished_manifest(out: Path, converter: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of `out` if it is there whole; None if it is yet to be written, or finished.

    For converters with long work before they write: raises InputError for what `write_prepared_folder` would
    refuse.
    """
    settings = _full(converter, settings)
    finished = _finished_manifest(out, settings)
    if finished is None:
        _Journal.open(out, settings)
    return finished


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever happens in between."""
    incomplete = path.with_name(path.name + INCOMPLETE)
    try:
        with incomplete.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        incomplete.replace(path)
    except BaseException:
        incomplete.unlink(missing_ok=True)
        raise


def frame_record(payload: bytes) -> bytes:
    """TFRecord framing: u64 length, masked CRC-32C of the length, payload, masked CRC-32C of the payload."""
    length = struct.pack("<Q", len(payload))
    return b"".join((length, _masked_crc(length), payload, _masked_crc(payload)))


def _masked_crc(content: bytes) -> bytes:
    crc = google_crc32c.value(content)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _CRC_MASK) & 0xFFFFFFFF)


def _full(converter: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they come back from JSON."""
    return json.loads(json.dumps({"converter": converter, "format": FORMAT, **settings}))


def _finished_manifest(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a finished folder with the same settings; None where there is none."""
    path = out / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text())
        begun = manifest["settings"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected the manifest of a prepared folder, found damage: {error!r}. Remove the folder."
        ) from None
    _same_settings(path, begun, settings)
    return manifest


def _same_settings(path: Path, begun: dict[str, Any], asked: dict[str, Any]) -> None:
    keys = [key for key in sorted({*begun, *asked}) if begun.get(key) != asked.get(key)]
    if keys:
        differences = "; ".join(f"{key}: there {begun.get(key)!r}, now {asked.get(key)!r}" for key in keys)
        raise InputError(
            f"{path}: the folder was begun with other settings or inputs ({differences}). Remove the "
            "folder, or choose another --out."
        )


@dataclasses.dataclass
class _Journal:
    """Which shards are whole: file → {records, bytes, sha256}. Rewritten after each shard."""

    path: Path
    settings: dict[str, Any]
    shards: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, out: Path, settings: dict[str, Any]) -> "_Journal":
        """The journal of an unfinished folder, less the shards that are not as it says; else a new one."""
        path = out / JOURNAL
        if not path.exists():
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise InputError(
                    f"{out}: expected an empty or absent folder, or one that this converter left "
                    "unfinished; found something else. Remove it, or choose another --out."
                )
            return cls(path, settings, {})
        try:
            content = json.loads(path.read_text())
            begun, shards = content["settings"], content["shards"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise InputError(
                f"{path}: expected the journal of a conversion, found damage: {error!r}. Remove the folder."
            ) from None
        _same_settings(path, begun, settings)
        whole = {file: note for file, note in shards.items() if _is_as_noted(out / file, note)}
        return cls(path, settings, whole)

    def add(self, file: str, note: dict[str, Any]) -> None:
        self.shards[file] = note
        self.write()

    def write(self) -> None:
        write_whole(
            self.path, json.dumps({"settings": self.settings, "shards": self.shards}, indent=1).encode()
        )


def _is_as_noted(path: Path, note: dict[str, Any]) -> bool:
    if not path.is_file() or path.stat().st_size != note["bytes"]:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == note["sha256"]


def _write_shards(out: Path, tables: Sequence[Table], journal: _Journal, workers: int) -> None:
    journal.write()
    for table in tables:
        (out / table.name).mkdir(exist_ok=True)
    tasks = [(table, shard) for table in tables for shard in range(len(table.shards))]
    missing = [(table, shard) for table, shard in tasks if table.shard_file(shard) not in journal.shards]
    total = sum(table.records for table in tables)
    done = total - sum(len(table.shards[shard]) for table, shard in missing)
    with tqdm(total=total, initial=done, unit="record", desc=f"writing {out}", smoothing=0.05) as bar:
        if workers == 1 or len(missing) <= 1:
            for table, shard in missing:
                journal.add(table.shard_file(shard), _write_shard(out, table, shard, bar.update))
        else:
            _write_in_parallel(out, missing, journal, min(workers, len(missing)), bar)


def _write_in_parallel(
    out: Path, missing: Sequence[tuple[Table, int]], journal: _Journal, workers: int, bar: tqdm
) -> None:
    # Spawned, not forked: forking a process with running threads (JAX, OpenCV) may deadlock.
    context = multiprocessing.get_context("spawn")
    written = context.Value("q", 0)
    pool = concurrent.futures.ProcessPoolExecutor(workers, context, _start_worker, (written,))
    try:
        pending = {pool.submit(_work, out, table, shard): table.shard_file(shard) for table, shard in missing}
        before = 0
        while pending:
            ready, _ = concurrent.futures.wait(pending, 0.2, concurrent.futures.FIRST_COMPLETED)
            now = written.value
            bar.update(now - before)
            before = now
            for future in ready:
                journal.add(pending.pop(future), future.result())
        bar.update(written.value - before)
    except concurrent.futures.process.BrokenProcessPool:
        raise InputError(
            f"{out}: a worker process was ended from outside, most likely for want of memory. Run the same "
            "command again with fewer --workers: it continues with the shards that are missing."
        ) from None
    finally:
        # After an error or an interrupt: shards not begun are given up, those begun are finished and not
        # lost.
        pool.shutdown(cancel_futures=True)
        for future, file in pending.items():
            if not future.cancelled() and future.exception() is None:
                journal.shards[file] = future.result()
        with contextlib.suppress(OSError):  # the error under way says more, and the journal only saves time
            journal.write()


_written_records: Any = None  # in a worker: the count of records written by all of them


def _start_worker(written: Any) -> None:
    global _written_records
    _written_records = written
    end_with_parent()


def _work(out: Path, table: Table, shard: int) -> dict[str, Any]:
    def count(records: int) -> None:
        with _written_records.get_lock():
            _written_records.value += records

    return _write_shard(out, table, shard, count)


def _write_shard(out: Path, table: Table, shard: int, progress: Callable[[int], Any]) -> dict[str, Any]:
    """Write one shard and rename it into place when it is whole; returns its note for the journal."""
    path = out / table.shard_file(shard)
    incomplete = path.with_name(path.name + INCOMPLETE)
    features = table.features()
    serializer = tfds.core.example_serializer.ExampleSerializer(features.get_serialized_info())
    digest = hashlib.sha256()
    records = size = 0
    try:
        with incomplete.open("wb") as file:
            for example in table.examples(table.shards[shard]):
                message = serializer.get_tf_example(features.encode_example(example))
                # Not `features.serialize_example`: its order of the fields differs from process to process.
                record = frame_record(message.SerializeToString(deterministic=True))
                file.write(record)
                digest.update(record)
                records, size = records + 1, size + len(record)
                progress(1)
            file.flush()
            os.fsync(file.fileno())
        if records != len(table.shards[shard]):
            raise RuntimeError(
                f"{path}: expected {len(table.shards[shard])} examples, the converter made {records}."
            )
        incomplete.replace(path)
    except BaseException:
        incomplete.unlink(missing_ok=True)
        raise
    return {"records": records, "bytes": size, "sha256": digest.hexdigest()}


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Say what to do about a full or read-only disk."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(out if out.exists() else out.parent).free
            raise InputError(
                f"{error.filename or out}: the disk is full ({free / 2**20:.0f} MiB free). Free some space "
                "and run the same command again: it continues with the shards that are missing."
            ) from error
        raise


def _write_metadata(out: Path, table: Table, journal: _Journal) -> None:
    """Make the table's folder one that `tfds.builder_from_directory` opens."""
    notes = [journal.shards[table.shard_file(shard)] for shard in range(len(table.shards))]
    template = tfds.core.ShardedFileTemplate(
        data_dir=str(out / table.name), dataset_name=table.name, split=table.name, filetype_suffix="tfrecord"
    )
    split = tfds.core.SplitInfo(
        name=table.name,
        shard_lengths=[note["records"] for note in notes],
        num_bytes=sum(note["bytes"] for note in notes),
        filename_template=template,
    )
    with contextlib.redirect_stdout(None):
        tfds.folder_dataset.write_metadata(
            data_dir=str(out / table.name),
            features=table.features(),
            split_infos=[split],
            check_data=False,
        )


def _write_splits(out: Path, splits: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, str]:
    """Write one file a scheme; scheme → hash over the names and numbers."""
    (out / "splits").mkdir(exist_ok=True)
    hashes = {}
    for scheme, arrays in splits.items():
        digest = hashlib.sha256()
        for name, numbers in sorted(arrays.items()):
            digest.update(f"{name}:{len(numbers)}:".encode() + np.ascontiguousarray(numbers, "<i8").tobytes())
        hashes[scheme] = digest.hexdigest()
        content = io.BytesIO()
        np.savez(content, **{name: np.asarray(numbers, np.int64) for name, numbers in arrays.items()})
        write_whole(out / "splits" / f"{scheme}.npz", content.getvalue())
    return hashes


def _manifest(
    converter: str,
    settings: dict[str, Any],
    source: Mapping[str, Any],
    tables: Sequence[Table],
    journal: _Journal,
    splits: Mapping[str, Mapping[str, np.ndarray]],
    split_hashes: dict[str, str],
    counts: Mapping[str, Any],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    described = {}
    for table in tables:
        notes = [journal.shards[table.shard_file(shard)] for shard in range(len(table.shards))]
        described[table.name] = {
            "records": table.records,
            "shards": len(table.shards),
            "bytes": sum(note["bytes"] for note in notes),
            "sha256": [note["sha256"] for note in notes],
        }
    identity = {"tables": {name: t["sha256"] for name, t in described.items()}, "splits": split_hashes}
    return {
        "format": FORMAT,
        "converter": converter,
        "source": dict(source),
        "settings": settings,
        "counts": dict(counts),
        "tables": described,
        "splits": {
            scheme: {name: len(numbers) for name, numbers in arrays.items()}
            for scheme, arrays in splits.items()
        },
        "fingerprint": hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest(),
        **extra,
    }
