"""Eight frames whose retrieval is worked out by hand, and rows as a method would predict them."""

import ml_collections
import numpy as np

GAP, FIRST_QUERY = 1, 2

# Frame i may retrieve the frames before i - 1. Loops: 3 with 0; 4 with 1; 6 with 0 and with 3.
X = [0.0, 10.0, 20.0, 1.0, 11.0, 30.0, 2.0, 40.0]
# So query 2 retrieves 0 at 50 (false alarm), 3: 0 at 1 (true), 4: 2 at 2 (wrong, its loop is missed),
# 5: 1 at 4 (false alarm), 6: 0 at 8 (true), 7: 5 at 16 (false alarm).
DESCRIPTOR = [0.0, 100.0, 50.0, 1.0, 48.0, 104.0, -8.0, 120.0]


def config(**changes):
    settings = {
        "evaluator": "loop_closure",
        "seed": 0,
        "loop_distance": 4.0,
        "loop_gap": GAP,
        "first_query": FIRST_QUERY,
        "ap_policy": "standard",
        "protocol": "growing",
        "min_inliers": 3,
        "pose_tolerance": 1.0,
        "pictures": 1,
        **changes,
    }
    return ml_collections.ConfigDict({"eval": settings, "data": {"scheme": "official", "query_yaw": 0.0}})


def poses(x, y=None, yaw=None):
    """(N,) metres and radians → (N, 4, 4)."""
    x = np.asarray(x, np.float64)
    y = np.zeros_like(x) if y is None else np.asarray(y, np.float64)
    yaw = np.zeros_like(x) if yaw is None else np.asarray(yaw, np.float64)
    found = np.tile(np.eye(4), (len(x), 1, 1))
    found[:, 0, 0], found[:, 0, 1] = np.cos(yaw), -np.sin(yaw)
    found[:, 1, 0], found[:, 1, 1] = np.sin(yaw), np.cos(yaw)
    found[:, 0, 3], found[:, 1, 3] = x, y
    return found


def rows(descriptor=DESCRIPTOR, map_T_lidar=None, sequence=None):
    count = len(descriptor)
    sequence = np.zeros(count, np.int32) if sequence is None else np.asarray(sequence, np.int32)
    position = np.concatenate([np.arange((sequence == s).sum()) for s in np.unique(sequence)])
    return {
        "descriptor": np.asarray(descriptor, np.float32).reshape(count, -1),
        "sequence": sequence,
        "sequence_position": position.astype(np.int32),
        "map_T_lidar": (poses(X) if map_T_lidar is None else map_T_lidar).astype(np.float32),
        "index": np.arange(count, dtype=np.int32),
        "position": np.arange(count),
    }
