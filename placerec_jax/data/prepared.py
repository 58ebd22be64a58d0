"""A prepared folder: tables, splits, and the manifest that says they are whole."""

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from placerec_jax.data.records import RecordTable
from placerec_jax.errors import UserError

FORMAT = 1  # of the folder's layout; written by data_prep, checked here


class PreparedError(UserError, ValueError):
    """A prepared folder is absent, unfinished, of another format, or lacks a part."""


class PreparedFolder:
    """What `data_prep` wrote: the manifest, one folder a table, `splits/<scheme>.npz` with record numbers.

    Raises:
        PreparedError: the folder is absent or unfinished (no manifest), has another format, or lacks the
            table, the scheme or the split asked for. The message says what there is.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self.manifest = _read_manifest(self.root)
        self._tables: dict[str, RecordTable] = {}

    @property
    def fingerprint(self) -> str:
        """Hash over tables and splits: two folders with one fingerprint hold the same data."""
        return self.manifest["fingerprint"]

    def table(self, name: str) -> RecordTable:
        """The table `name`; opened once."""
        if name not in self._tables:
            self._tables[name] = self._open(name)
        return self._tables[name]

    def split(self, scheme: str, name: str) -> np.ndarray:
        """(N,) int64 record numbers of the frames of a split, e.g. `split("official", "train")`.

        Of several, joined as "database+test": the records that are in any of them, once each and ascending.
        Arrays of a split keep their shape: a row a query, where others belong to it.
        """
        path = self.root / "splits" / f"{scheme}.npz"
        if not path.is_file():
            schemes = sorted(p.stem for p in path.parent.glob("*.npz"))
            raise PreparedError(
                f"{path}: no such scheme of splits; there are {schemes}. Set config.data.scheme."
            )
        try:
            with np.load(path) as splits:
                arrays = dict(splits)
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise PreparedError(
                f"{path}: expected arrays of record numbers, found {type(error).__name__}: {error}. "
                "Copy it again or prepare the folder again."
            ) from error
        parts = name.split("+")
        missing = [part for part in parts if part not in arrays]
        if missing:
            raise PreparedError(f"{path}: no split {missing[0]!r}; there are {sorted(arrays)}.")
        chosen = [arrays[part].astype(np.int64) for part in parts]
        return chosen[0] if len(chosen) == 1 else np.unique(np.concatenate(chosen))

    def _open(self, name: str) -> RecordTable:
        tables = self.manifest["tables"]
        if name not in tables:
            raise PreparedError(f"{self.root}: no table {name!r}; manifest.json lists {sorted(tables)}.")
        table = RecordTable(self.root / name)
        if len(table) != tables[name]["records"]:
            raise PreparedError(
                f"{self.root / name}: expected {tables[name]['records']} records (manifest.json), found "
                f"{len(table)}. Prepare the folder again."
            )
        return table


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / "manifest.json"
    if not root.is_dir():
        raise PreparedError(f"{root}: expected a prepared folder, found nothing there.")
    if not path.is_file():
        raise PreparedError(
            f"{root}: no manifest.json, which is written last: the preparation did not finish. "
            "Run the same `python -m data_prep` command again; it goes on where it stopped."
        )
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise PreparedError(f"{path}: expected JSON, found: {error}. Prepare the folder again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise PreparedError(f"{path}: expected format {FORMAT}, found {found!r}. Prepare the folder again.")
    missing = sorted({"tables", "fingerprint"} - manifest.keys())
    if missing:
        raise PreparedError(
            f"{path}: expected the keys {missing}, found {sorted(manifest)}. Prepare the folder again."
        )
    return manifest
