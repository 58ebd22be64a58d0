"""A folder as `python -m data_prep nusc_pr` prepares it, of rows of `place_frames`, with TFDS alone."""

import json

import cv2
import numpy as np
import tensorflow_datasets as tfds

from placerec_jax.ops.point_steps import encode_points
from tests.toy.prepared import write_table

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
HEIGHT, WIDTH = 24, 40  # of an image
ROWS, COLUMNS = 16, 66  # of a range image
UNIT = 0.002  # m
MISSING = 5  # the frame whose CAM_BACK is missing


def record(rows, number):
    """Images in the frame's own colour; a sweep of a round room as wide as the place is far along."""
    rng = np.random.default_rng(number)
    along = rows["global_T_ego"][number, 0, 3] / 500
    colour = 40 + 170 * np.array([along, 1 - along, 0.5])
    images = np.clip(colour + rng.normal(0, 8, (6, HEIGHT, WIDTH, 3)), 0, 255).astype(np.uint8)
    images[:, HEIGHT // 2 :, ::4] //= 2
    azimuth = np.linspace(np.pi, -np.pi, COLUMNS, endpoint=False)
    room = 10 + 30 * along + 4 * np.cos(3 * azimuth) + rng.normal(0, 0.2, (ROWS, COLUMNS))
    seen = rng.random((ROWS, COLUMNS)) > 0.2
    mask = ~((np.arange(6) == CAMERAS.index("CAM_BACK")) & (number == MISSING))
    return {
        "images": [cv2.imencode(".jpg", image[..., ::-1])[1].tobytes() for image in images],
        "camera_mask": mask,
        "point_steps": encode_points(
            np.stack([room[0] * np.cos(azimuth), room[0] * np.sin(azimuth), room[0] * 0], 1)
        ),
        "range_steps": np.where(seen, np.rint(room / UNIT), 0).astype(np.uint16),
        "rendered_rgb": np.where(seen[..., None], colour, 0).astype(np.uint8),
    }


def scene_record(rows, name):
    """What is known of a scene, whose frames follow each other."""
    numbers = np.flatnonzero(rows["scene"] == name)
    first = int(numbers[0])
    assert (np.diff(numbers) == 1).all()
    return {
        **{text: str(rows[text][first]) for text in ("scene", "location", "date_captured")},
        "first": first,
        "timestamp": rows["timestamp"][numbers],
        "global_T_ego": rows["global_T_ego"][numbers],
    }


def write(root, rows):
    """The folder of all rows with one scheme, `supervised`."""
    features = {
        "images": tfds.features.Sequence(
            tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"), length=6
        ),
        "camera_mask": tfds.features.Tensor(shape=(6,), dtype=np.bool_),
        "point_steps": tfds.features.Tensor(shape=(None, 3), dtype=np.int16, encoding="zlib"),
        "range_steps": tfds.features.Tensor(shape=(ROWS, COLUMNS), dtype=np.uint16, encoding="zlib"),
        "rendered_rgb": tfds.features.Tensor(shape=(ROWS, COLUMNS, 3), dtype=np.uint8, encoding="zlib"),
    }
    count = len(rows["index"])
    write_table(root / "frames", "frames", [record(rows, number) for number in range(count)], 2, features)
    features = {
        **{name: tfds.features.Text() for name in ("scene", "location", "date_captured")},
        "first": tfds.features.Scalar(np.int64),
        "timestamp": tfds.features.Tensor(shape=(None,), dtype=np.int64, encoding="bytes"),
        "global_T_ego": tfds.features.Tensor(shape=(None, 4, 4), dtype=np.float64, encoding="bytes"),
    }
    scenes = [scene_record(rows, name) for name in dict.fromkeys(rows["scene"].tolist())]
    write_table(root / "scenes", "scenes", scenes, 1, features)
    (root / "splits").mkdir()
    query, database = np.flatnonzero(rows["is_query"]), np.flatnonzero(~rows["is_query"])
    splits = {"database": database, "train": query[::3], "val": query[1::3], "test": query[2::3]}
    np.savez(root / "splits" / "supervised.npz", **splits)
    manifest = {
        "format": 1,
        "converter": "nusc_pr",
        "tables": {"frames": {"records": count}, "scenes": {"records": len(scenes)}},
        "fingerprint": "0" * 64,
        "cameras": list(CAMERAS),
        "locations": list(dict.fromkeys(rows["location"].tolist())),
        "range_unit_m": UNIT,
        "range_image": [ROWS, COLUMNS],
    }
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root
