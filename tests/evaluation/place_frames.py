"""Keyframes of a few locations as the evaluator of places sees them, and a config."""

import ml_collections
import numpy as np

from tests.evaluation.loop_frames import poses

DAY = 86_400_000_000  # µs


def config(**changes):
    settings = {
        "evaluator": "places",
        "seed": 0,
        "radius": 9.0,
        "k": (1, 5),
        "locations": (),
        "min_gap_days": 1.0,
        "pictures": 2,
        **changes,
    }
    return ml_collections.ConfigDict({"eval": settings, "data": {"scheme": "supervised"}})


def frames(descriptor, x, is_query, *, scene=None, day=None, location=None, y=None, yaw=None):
    """Annotated rows of frames at (x, y) metres, heading `yaw`, taken on `day`."""
    count = len(x)
    return {
        "index": np.arange(count, dtype=np.int32),
        "position": np.arange(count),
        "descriptor": np.asarray(descriptor, np.float32).reshape(count, -1),
        "location": np.array(["town"] * count if location is None else location),
        "scene": np.array([f"scene-{i}" for i in (np.zeros(count, int) if scene is None else scene)]),
        "sample_number": np.arange(count),
        "date_captured": np.array(["2026-01-01"] * count),
        "timestamp": (np.asarray([0] * count if day is None else day, float) * DAY).astype(np.int64),
        "global_T_ego": poses(x, y, yaw),
        "is_query": np.asarray(is_query, bool),
    }


def drives(seed=0, dim=16, noise=0.3, length=60, names=("north", "south")):
    """Rows of two streets 500 m long, each driven on three dates: on day 0, on day 30 in another lane and on
    day 60 the other way. A descriptor is that of the place, disturbed; the database is day 0 and every third
    frame of the rest."""
    rng = np.random.default_rng(seed)
    parts = []
    for street, name in enumerate(names):
        x = np.linspace(0, 500, length)
        place = rng.normal(size=(length, dim))
        for drive, (y, yaw) in enumerate(((0.0, 0.0), (3.5, 0.0), (7.0, np.pi))):
            number = 3 * street + drive
            parts.append(
                frames(
                    place + noise * rng.normal(size=place.shape),
                    x,
                    (np.arange(length) % 3 > 0) & (drive > 0),
                    scene=2 * number + (np.arange(length) >= length // 2),
                    day=np.full(length, 30.0 * drive) + np.arange(length) * 0.5 / 86_400,
                    location=[name] * length,
                    y=np.full(length, y),
                    yaw=np.full(length, yaw),
                )
            )
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows["index"] = rows["position"] = np.arange(len(rows["index"]))
    return rows
