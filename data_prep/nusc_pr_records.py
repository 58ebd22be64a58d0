"""The records of the NUSC-PR converter: what is stored of a keyframe, and of a scene."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_prep import appearance, images
from data_prep.errors import InputError
from data_prep.raw import nuscenes
from data_prep.raw.frames import Camera, Frame
from placerec_jax.ops import rigid
from placerec_jax.ops.point_steps import POINT_UNIT, encode_points
from placerec_jax.ops.range_image import SphericalGrid

# Clockwise as seen from above, as EINet's code has it.
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
RANGE_UNIT = 0.002  # m: 16 bits reach 131 m


@dataclasses.dataclass(frozen=True)
class FrameInput:
    """A keyframe and where it stands: number of its scene in the file, and its own in the scene."""

    frame: Frame
    scene_number: int
    sample_number: int
    date_captured: str


@dataclasses.dataclass(frozen=True)
class SceneInput:
    """A scene and the record number of its first frame."""

    scene: nuscenes.Scene
    first: int


def _tensor(shape: tuple[int | None, ...], dtype: type, doc: str, encoding: str = "none") -> Any:
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=encoding, doc=doc)


def _float64(shape: tuple[int | None, ...], doc: str) -> Any:
    # As bytes: a tf.train.Example has no float64, TFDS would round it to float32.
    return _tensor(shape, np.float64, doc, "bytes")


def scene_features() -> tfds.features.FeaturesDict:
    """The table `scenes`: scenes in file order, whose frames are consecutive records of `frames`."""
    return tfds.features.FeaturesDict(
        {
            "scene": tfds.features.Text(),
            "location": tfds.features.Text(),
            "date_captured": tfds.features.Text(),
            "first": tfds.features.Scalar(np.int64, doc="record number of its first frame"),
            "timestamp": _tensor((None,), np.int64, "µs", "bytes"),
            "global_T_ego": _float64((None, 4, 4), "in the location's map, at the LiDAR's time"),
        }
    )


def scene_examples(inputs: Sequence[SceneInput]) -> Iterator[dict[str, Any]]:
    """One example of `scene_features` a scene."""
    for scene, first in ((i.scene, i.first) for i in inputs):
        yield {
            "scene": scene.name,
            "location": scene.location,
            "date_captured": scene.date_captured,
            "first": first,
            "timestamp": np.array([frame.timestamp for frame in scene.frames], np.int64),
            "global_T_ego": np.array([frame.map_T_ego for frame in scene.frames], np.float64),
        }


def frame_features(grid: SphericalGrid) -> tfds.features.FeaturesDict:
    """The table `frames`: every keyframe once, scenes in file order. Cameras are in the order of CAMERAS."""
    cameras = len(CAMERAS)
    return tfds.features.FeaturesDict(
        {
            "token": tfds.features.Text(),
            "scene": tfds.features.Text(),
            "scene_number": tfds.features.Scalar(np.int64, doc="in file order, from 0"),
            "sample_number": tfds.features.Scalar(np.int64, doc="in its scene, from 0"),
            "location": tfds.features.Text(),
            "timestamp": tfds.features.Scalar(np.int64, doc="of the keyframe, µs"),
            "date_captured": tfds.features.Text(),
            "images": tfds.features.Sequence(
                tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"), length=cameras
            ),
            "camera_mask": _tensor(
                (cameras,), np.bool_, "which cameras are there; images of others are black"
            ),
            "intrinsics": _tensor(
                (cameras, 3, 3), np.float32, "K of the stored images; identity where there is no camera"
            ),
            "camera_T_lidar": _tensor(
                (cameras, 4, 4),
                np.float32,
                "from the LiDAR at its time to the camera at its own, through both poses of the ego; "
                "identity where there is no camera",
            ),
            "ego_T_lidar": _tensor((4, 4), np.float32, "LiDAR: x right, y forward; ego: x forward, y left"),
            "global_T_ego": _float64((4, 4), "in the location's map, at the LiDAR's time"),
            "point_steps": _tensor(
                (None, 3),
                np.int16,
                f"x, y, z in LiDAR axes in units of {POINT_UNIT} m, each less that of the point before: sum "
                "them up (placerec_jax.ops.point_steps)",
                "zlib",
            ),
            "range_steps": _tensor(
                grid.shape, np.uint16, f"range image in units of {RANGE_UNIT} m, 0 without a point", "zlib"
            ),
            "rendered_rgb": _tensor(
                (*grid.shape, 3), np.uint8, "colour of the range image's points, 0 where unseen", "zlib"
            ),
        }
    )


def frame_examples(
    inputs: Sequence[FrameInput], *, image_size: tuple[int, int], grid: SphericalGrid
) -> Iterator[dict[str, Any]]:
    """One example of `frame_features` a keyframe."""
    for one in inputs:
        frame = one.frame
        views = views_of(frame, image_size)
        points = read_sweep(frame)
        ranges, rgb = appearance.render(points, [view.picture for view in views if view.there], grid)
        yield {
            "token": frame.token,
            "scene": frame.scene,
            "scene_number": one.scene_number,
            "sample_number": one.sample_number,
            "location": frame.location,
            "timestamp": frame.timestamp,
            "date_captured": one.date_captured,
            "images": [view.jpeg for view in views],
            "camera_mask": np.array([view.there for view in views]),
            "intrinsics": np.stack([view.picture.intrinsics for view in views]).astype(np.float32),
            "camera_T_lidar": np.stack([view.picture.camera_T_lidar for view in views]).astype(np.float32),
            "ego_T_lidar": frame.lidar.ego_T_lidar.astype(np.float32),
            "global_T_ego": np.asarray(frame.map_T_ego, np.float64),
            "point_steps": encode_points(points),
            "range_steps": encode_ranges(ranges),
            "rendered_rgb": rgb,
        }


def encode_ranges(ranges: np.ndarray) -> np.ndarray:
    """(H, W) metres, negative where empty → (H, W) uint16 units of RANGE_UNIT, 0 where empty."""
    return np.where(ranges > 0, np.maximum(np.rint(ranges / RANGE_UNIT), 1), 0).astype(np.uint16)


@dataclasses.dataclass(frozen=True)
class View:
    """What is stored of one camera."""

    there: bool
    jpeg: bytes
    picture: appearance.Picture


def views_of(frame: Frame, image_size: tuple[int, int]) -> list[View]:
    """The six cameras in the order of CAMERAS, their images of `image_size` (height, width)."""
    of_channel = {camera.channel: camera for camera in frame.cameras}
    return [
        _view(frame, of_channel[channel], image_size) if channel in of_channel else _absent(image_size)
        for channel in CAMERAS
    ]


def _view(frame: Frame, camera: Camera, image_size: tuple[int, int]) -> View:
    jpeg, rgb, intrinsics = images.fitted_image(camera, image_size)
    return View(True, jpeg, appearance.Picture(rgb, intrinsics, camera_T_lidar(frame, camera)))


def _absent(image_size: tuple[int, int]) -> View:
    black = np.zeros((*image_size, 3), np.uint8)
    return View(False, images.encoded(black), appearance.Picture(black, np.eye(3), np.eye(4)))


def camera_T_lidar(frame: Frame, camera: Camera) -> np.ndarray:  # noqa: N802 (named as a transform)
    """(4, 4) float64: LiDAR → ego at its time → map → ego at the image's time → camera."""
    map_T_lidar = frame.lidar.map_T_ego @ frame.lidar.ego_T_lidar
    map_T_camera = camera.map_T_ego @ camera.ego_T_camera
    return rigid.rigid_inverse(map_T_camera) @ map_T_lidar


def read_sweep(frame: Frame) -> np.ndarray:
    """(N, 3) float32 points of a keyframe; InputError for such as are no numbers."""
    points = nuscenes.read_sweep(frame.lidar.path)
    bad = int((~np.isfinite(points)).any(axis=1).sum())
    if bad:
        raise InputError(
            f"{frame.lidar.path}: expected finite coordinates, found {bad} of {len(points)} points without: "
            "the file is damaged. Unpack it again."
        )
    return points
