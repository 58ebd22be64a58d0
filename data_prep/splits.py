"""Which frames train, which validate, which test: nuScenes' own split, and one whose parts lie apart."""

from collections.abc import Sequence

import numpy as np
import scipy.spatial

from data_prep import geodesy
from data_prep.errors import InputError
from data_prep.raw import nuscenes_splits
from data_prep.raw.frames import Frame

SPLITS = ("train", "val", "test")
VAL_SHARE = TEST_SHARE = 0.15
BUFFER = 133.0  # m: what a map patch of 128 m with 30 m of noise reaches


def official_split(frames: Sequence[Frame], version: str) -> np.ndarray:
    """(N,) str: the split that nuScenes publishes for each frame's scene; InputError for scenes in none."""
    split_of_scene = nuscenes_splits.split_of_scene(version)
    unknown = sorted({frame.scene for frame in frames} - set(split_of_scene))
    if unknown:
        raise InputError(
            f"scene.json of {version}: expected scene names of the official splits (scene-0001 to "
            f"scene-1110), found {len(unknown)} others: {', '.join(unknown[:5])}. Rename the scenes, or "
            "choose the right --version."
        )
    return np.array([split_of_scene[frame.scene] for frame in frames])


def geographic_split(locations: Sequence[str], xy: np.ndarray) -> np.ndarray:
    """(N,) str: a split whose parts lie apart; "" where a frame is left out. xy (N, 2) are map metres.

    Each location is cut by two lines across the longer side of its drives: the first 15 % of the frames are
    val, the last 15 % test, those between train. Then frames of train closer than 133 m to one of val or test
    are left out, and frames of val that close to test, in whichever location they are: nuScenes' maps of
    Singapore overlap. A map patch at the true place of a frame so never holds the place of a frame of another
    part.
    """
    locations = np.asarray(locations)
    labels = np.full(len(locations), "train", dtype="<U5")
    xyz = np.empty((len(locations), 3))
    for location in np.unique(locations):
        at = np.flatnonzero(locations == location)
        xyz[at] = geodesy.sphere_points(geodesy.map_to_wgs84(xy[at], location))
        along = xy[at, np.argmax(np.ptp(xy[at], axis=0))]
        ordered = np.sort(along)
        # Cuts by position, not by rank: a vehicle that stands still is on one side.
        n_val, n_test = int(VAL_SHARE * len(at)), int(TEST_SHARE * len(at))
        if n_val:
            labels[at[along < ordered[n_val]]] = "val"
        if n_test:
            labels[at[along > ordered[-n_test - 1]]] = "test"
    for split, others in (("val", ("test",)), ("train", ("val", "test"))):
        mine, theirs = np.flatnonzero(labels == split), np.flatnonzero(np.isin(labels, others))
        if len(mine) and len(theirs):
            distance, _ = scipy.spatial.KDTree(xyz[theirs]).query(xyz[mine])
            labels[mine[distance < BUFFER]] = ""
    return labels
