"""The splits of a NUSC-PR folder under the names that EINet's published code gives its files.

    python -m data_prep nusc_pr_export --prepared DIR --out DIR2

One folder a scheme, `<scheme>_data`, and in it the folders of the published scripts. Supervised:
`split_dataset/LOC_{db,train_query,val_query,test_query}.npy` (number in the location, x, y) with the tokens
beside them, `select_pos_neg_samples_by_dis/LOC_{test_query_gt,train_query_pos_neg}_tokens.pkl`, and
`generate_selected_indicies/LOC_*_index_in_infos.*`, numbers among all keyframes in file order.
Self-supervised: `split_dataset/LOC_*_index_in_infos.*`, and `all_train_query_pos_neg_index_in_infos.pkl`.
LOC is bs, son, sq or shv; of other places, their name. The pickles hold dicts, lists, strings and ints alone.
"""

import argparse
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import nusc_pr_folder
from data_prep import place_recognition as places
from data_prep import prepared as prepared_folders
from data_prep.tables import write_whole


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep nusc_pr_export",
        description="The splits of a NUSC-PR folder under the published code's file names.",
    )
    parser.add_argument("--prepared", type=Path, required=True, help="the folder that nusc_pr wrote")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    options = parser.parse_args(argv)
    manifest = prepared_folders.read_manifest(options.prepared, "nusc_pr")
    files = export(options.prepared, manifest)
    for name, content in files.items():
        path = options.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    print(f"{options.out}: {len(files)} files of {len(manifest['schemes'])} schemes")
    if manifest["settings"]["locations"] is not None:
        print("Numbers *_in_infos count the keyframes of this folder, which holds some locations only.")


def export(prepared: Path, manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """Path in the folder → content, of all schemes."""
    frames = nusc_pr_folder.read_frames(prepared, manifest)
    files = {}
    for scheme, told in manifest["schemes"].items():
        divisions = nusc_pr_folder.read_divisions(prepared, scheme, manifest["locations"])
        kind = "self_supervised" if scheme.startswith("self_supervised") else "supervised"
        truth_of = {
            location: places.ground_truth(frames, division, told["positive_radius_m"], told["dimensions"])
            for location, division in divisions.items()
        }
        for name, content in _FILES[kind](frames, divisions, truth_of).items():
            files[f"{scheme}_data/{name}"] = content
    return files


Divisions = Mapping[str, places.Division]
Truth = Mapping[str, Sequence[np.ndarray]]


def _supervised(frames: places.Frames, divisions: Divisions, truth_of: Truth) -> dict[str, bytes]:
    files = {}
    for location, division in divisions.items():
        short = abbreviation(location)
        own = np.flatnonzero(frames.locations == location)
        number = np.zeros(len(frames.tokens), np.int64)
        number[own] = np.arange(len(own))
        for name, numbers in (
            ("db", division.database),
            ("train_query", division.train_query),
            ("val_query", division.val_query),
            ("test_query", division.test_query),
        ):
            rows = np.column_stack([number[numbers], frames.xyz[numbers, :2]]).astype(np.float32)
            files[f"split_dataset/{short}_{name}.npy"] = _npy(rows)
            files[f"split_dataset/{short}_{name}_sample_token.npy"] = _npy(frames.tokens[numbers])
        files[f"split_dataset/{short}_sample_token.npy"] = _npy(frames.tokens[own])
        truth = list(zip(division.test_query, truth_of[location], strict=True))
        tuples = _tuples(division)
        tokens = frames.tokens
        chosen = "select_pos_neg_samples_by_dis"
        files[f"{chosen}/{short}_test_query_gt_tokens.pkl"] = _pickle(
            {str(tokens[query]): {"gt": tokens[entries].tolist()} for query, entries in truth}
        )
        files[f"{chosen}/{short}_train_query_pos_neg_tokens.pkl"] = _pickle(
            {
                str(tokens[query]): {kind: tokens[numbers].tolist() for kind, numbers in its.items()}
                for query, its in tuples.items()
            }
        )
        selected = "generate_selected_indicies"  # spelled as they have it
        files |= {f"{selected}/{name}": it for name, it in _indices(short, division, truth, tuples).items()}
    return files


def _self_supervised(frames: places.Frames, divisions: Divisions, truth_of: Truth) -> dict[str, bytes]:
    files, everywhere = {}, {}
    for location, division in divisions.items():
        short = abbreviation(location)
        truth = list(zip(division.test_query, truth_of[location], strict=True))
        tuples = {query: {**its, "loc": location} for query, its in _tuples(division).items()}
        everywhere |= tuples
        for name, content in _indices(short, division, truth, tuples).items():
            files[f"split_dataset/{name}"] = content
    files["split_dataset/all_train_query_pos_neg_index_in_infos.pkl"] = _pickle(
        dict(sorted(everywhere.items()))
    )
    return files


_FILES: Mapping[str, Callable[[places.Frames, Divisions, Truth], dict[str, bytes]]] = {
    "supervised": _supervised,
    "self_supervised": _self_supervised,
}


def abbreviation(location: str) -> str:
    """As the published code calls a location; others keep their name."""
    return places.OFFICIAL_LOCATIONS.get(location, (location, 0))[0]


def _tuples(division: places.Division) -> dict[int, dict[str, Any]]:
    return {
        int(query): {"pos": positives.tolist(), "neg": negatives.tolist()}
        for query, positives, negatives in zip(
            division.train_query, division.train_positives, division.train_negatives, strict=True
        )
    }


def _indices(
    short: str,
    division: places.Division,
    truth: Sequence[tuple[np.integer, np.ndarray]],
    tuples: Mapping[int, Mapping[str, Any]],
) -> dict[str, bytes]:
    """What both schemes have as numbers among all keyframes."""
    return {
        f"{short}_db_index_in_infos.npy": _npy(division.database),
        f"{short}_test_query_gt_index_in_infos.pkl": _pickle(
            {int(query): entries.tolist() for query, entries in truth}
        ),
        f"{short}_train_query_pos_neg_index_in_infos.pkl": _pickle(dict(tuples)),
    }


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    return content.getvalue()


def _pickle(value: Any) -> bytes:
    return pickle.dumps(value, protocol=4)
