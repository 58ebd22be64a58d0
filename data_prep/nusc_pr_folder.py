"""What a prepared folder of NUSC-PR says of its keyframes and splits, without its images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep import place_recognition as places
from data_prep import prepared as prepared_folders
from data_prep.errors import InputError


def read_frames(prepared: Path, manifest: Mapping[str, Any]) -> places.Frames:
    """What the schemes ask of a prepared folder's keyframes."""
    scenes = [
        prepared_folders.table_features(prepared, "scenes").deserialize_example_np(payload)
        for payload in prepared_folders.payloads(prepared, manifest, "scenes")
    ]
    tokens = prepared_folders.table_features(prepared, "frames", ("token",))
    counts = [len(scene["timestamp"]) for scene in scenes]
    return places.Frames(
        tokens=np.array(
            [
                tokens.deserialize_example_np(payload)["token"].decode()
                for payload in prepared_folders.payloads(prepared, manifest, "frames")
            ]
        ),
        locations=np.repeat([scene["location"].decode() for scene in scenes], counts),
        scenes=np.repeat(np.arange(len(scenes)), counts),
        scene_names=tuple(scene["scene"].decode() for scene in scenes),
        xyz=np.concatenate([scene["global_T_ego"][:, :3, 3] for scene in scenes]),
        time=np.concatenate([scene["timestamp"] for scene in scenes]),
    )


def read_divisions(prepared: Path, scheme: str, locations: Sequence[str]) -> dict[str, places.Division]:
    """Location → division, of one scheme's file; InputError where it is damaged."""
    path = prepared / "splits" / f"{scheme}.npz"
    names = ("database", "train_query", "val_query", "test_query", "train_positives", "train_negatives")
    try:
        with np.load(path) as arrays:
            return {
                location: places.Division(**{name: arrays[f"{location}_{name}"] for name in names})
                for location in locations
            }
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: expected the splits of {', '.join(locations)}, found {error!r}. Convert again."
        ) from None
