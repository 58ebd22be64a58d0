"""Frames of two sequences as the cross-modal evaluator sees them, and a config."""

import ml_collections
import numpy as np

from tests.evaluation.loop_frames import poses

SPACING = 10.0  # metres between frames on a straight drive; every third frame asks


def config(**changes):
    settings = {
        "evaluator": "cross_modal",
        "seed": 0,
        "radius": 20.0,
        "k": (1, 5, 10),
        "directions": ("image_to_point", "point_to_image", "image_to_image", "point_to_point"),
        "queries_in_database": False,
        "pictures": 2,
        **changes,
    }
    return ml_collections.ConfigDict({"eval": settings, "data": {"scheme": "official"}})


def rows(counts=(60, 45), dim=8, noise=0.0, seed=0):
    """Frames of sequences `00`, `01`, ... of so many frames; an image's descriptor is its submap's, disturbed
    by `noise`, and neighbours have descriptors of their own."""
    rng = np.random.default_rng(seed)
    total = sum(counts)
    cloud = rng.normal(size=(total, dim))
    image = cloud + noise * rng.normal(size=cloud.shape)
    x = np.concatenate([SPACING * np.arange(count) for count in counts])
    return {
        "index": np.arange(total, dtype=np.int32),
        "position": np.arange(total),
        "image_descriptor": _unit(image),
        "cloud_descriptor": _unit(cloud),
        "sequence_name": np.repeat([f"{i:02d}" for i in range(len(counts))], counts),
        "frame_id": np.concatenate([5 * np.arange(count) for count in counts]),
        "xy": np.stack([x, np.zeros(total)], axis=-1),
        "is_query": np.concatenate([np.arange(count) % 3 == 2 for count in counts]),
        "map_T_lidar": poses(x),
    }


def _unit(values):
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
