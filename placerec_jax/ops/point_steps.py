"""How prepared folders store the points of a scan: whole units, each as the step from the point before.

A LiDAR's points follow each other along a ring, so steps are small numbers that compress to about a third of
what the coordinates do. Sums wrap like the 16-bit integers they are, so nothing is lost on the way.
"""

import numpy as np

POINT_UNIT = 0.005  # m: a quarter of the range noise of the LiDARs in question
REACH = 160.0  # m an axis, beyond which coordinates are clipped; 16 bits hold it


def encode_points(xyz: np.ndarray) -> np.ndarray:
    """(N, 3) metres → (N, 3) int16 steps; the first step is from the origin."""
    units = np.rint(np.clip(xyz, -REACH, REACH) / POINT_UNIT).astype(np.int16)
    steps = units.copy()
    steps[1:] -= units[:-1]
    return steps


def decode_points(steps: np.ndarray) -> np.ndarray:
    """(N, 3) int16 steps → (N, 3) float32 metres, to half a unit what was encoded."""
    return np.cumsum(steps, axis=0, dtype=np.int16).astype(np.float32) * np.float32(POINT_UNIT)
