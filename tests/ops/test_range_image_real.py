"""Depth to range image on a real rig: what the cameras saw of a sweep lies where the sweep has it."""

import jax
import numpy as np
import pytest

from data_prep import appearance, nusc_pr_records
from data_prep.raw import nuscenes
from placerec_jax.ops import range_image
from placerec_jax.ops.range_image import SphericalGrid, from_depth

SIZE = (352, 640)
GRID = SphericalGrid(352, 1056)
FAR_AWAY = 500.0  # metres: the depth of pixels without a point


@pytest.mark.real_data
def test_points_go_into_the_images_and_back(real_data):
    """Depths of the sweep's points, pixel by pixel, become the range image of the sweep, to half a pixel."""
    root = real_data / "nuscenes"
    (scene,) = nuscenes.read_scenes(root, nuscenes.find_version(root, None))
    frame = scene.frames[0]
    sweep = nusc_pr_records.read_sweep(frame)
    pictures = [view.picture for view in nusc_pr_records.views_of(frame, SIZE)]
    depth = np.full((len(pictures), *SIZE), FAR_AWAY, np.float32)
    for image, picture in zip(depth, pictures, strict=True):
        where = appearance.project(sweep, picture.camera_T_lidar, picture.intrinsics, SIZE)
        pixel = np.floor(where.v[where.seen]).astype(int), np.floor(where.u[where.seen]).astype(int)
        np.minimum.at(image, pixel, where.depth[where.seen].astype(np.float32))
    intrinsics = np.stack([picture.intrinsics for picture in pictures]).astype(np.float32)
    lidar_T_camera = np.linalg.inv([picture.camera_T_lidar for picture in pictures]).astype(np.float32)
    there = np.ones((1, len(pictures)), bool)
    project = jax.jit(lambda depth: from_depth(depth, intrinsics[None], lidar_T_camera[None], there, GRID))
    seen = np.asarray(project(depth[None])[0])
    seen = np.where(seen > range_image.FAR, range_image.EMPTY, seen)

    measured, _ = appearance.render(sweep, pictures, GRID)
    both = (seen > 0) & (measured > 0)
    assert both.sum() > 0.5 * (seen > 0).sum() > 3000
    difference = np.abs(seen - measured)[both]
    assert np.median(difference) < 0.02
    assert np.quantile(difference, 0.9) < 0.5
    # Nothing of it is luck: turned by a few columns, the two disagree.
    turned = np.roll(measured, 12, axis=1)
    astray = np.abs(seen - turned)[(seen > 0) & (turned > 0)]
    assert np.median(astray) > 10 * np.median(difference)
