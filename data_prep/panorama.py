"""Panoramas of KITTI-360: the left and the right fisheye of one moment become one picture of all around.

All methods have the layout of the published panoramas. The left half shows image_02, which looks left, the
right half image_03, and no blending hides the seam between them. Of a picture H x W, pixel (row r, column c)
looks at

    azimuth    π·(1 - 2(c + ½)/W), left positive: from back (left border) over left, front (middle) and right
               to back
    elevation  π/2·(1 - 2(r + ½)/H): from the zenith to the ground below

equidistant185  each lens as if it mapped angles from its axis to radii in proportion, 185° to the image's
                width, whatever its calibration says: the converter published with SaliencyI2PLoc. Nearest
                pixels at the resolution of the fisheyes (2800x1400 of 1400x1400), shrunk by means over areas.
                Azimuth and elevation are those of each camera's own axes, not exactly the car's.
v360            the same with 187.8° across and 185° from top to bottom, interpolated: what ffmpeg's filter of
                that name made for AE-Spherical. The published example is one of these: normalised correlation
                with ours 0.998, and 0.98 with equidistant185.
mei             by calibration, interpolated: azimuth and elevation are those of the LiDAR's axes, for what is
                far away compared with the cameras' distance from the LiDAR. Each ray is taken from the camera
                whose optical axis is nearer.

Pixels that no lens shows are black: in `mei` where no camera sees the ray; in the others all rays fall into
the images, which are black themselves beyond the rim of a lens.
"""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from data_prep.errors import InputError
from data_prep.images import read_png
from data_prep.raw.kitti360_cameras import FisheyeCamera, project

SIZE = (512, 1024)  # (height, width) of the published panoramas
_LARGEST = 8192  # pixels: two images side by side must have less than 32768, says OpenCV
NEAREST, LINEAR = cv2.INTER_NEAREST, cv2.INTER_LINEAR

Lens = tuple[int, int] | FisheyeCamera  # (width, height) is enough where the calibration is not used
# (left, right, (rows,) row numbers, (height, width) of the whole canvas) → (2, rows, width) float64 x and y
# in the two images beside one another, left first; NaN for black.
Geometry = Callable[[Lens, Lens, np.ndarray, tuple[int, int]], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Method:
    """Where a panorama's pixels lie in the two images, and whether to take the nearest or interpolate."""

    positions: Geometry
    interpolation: int
    calibrated: bool


class Stitcher:
    """Makes panoramas of pairs of one size: where each pixel comes from is computed once."""

    def __init__(
        self,
        method: str,
        left: Lens,
        right: Lens,
        size: tuple[int, int] = SIZE,
        rows: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        """`left` and `right`: image_02 and image_03, calibrated for "mei". `size`: (height, width) of what
        comes out. `rows`: the part of the height to keep, e.g. (0.1, 0.9); it then fills `size`.

        Raises InputError for what does not fit together.
        """
        _check_options(method, left, right, size, rows)
        self.method, self.size, self.rows = method, size, rows
        self._image_size = _size_of(left)
        width, height = self._image_size
        # As fine as the images, and never coarser than what comes out; two halves of whole columns.
        canvas = (
            max(height, math.ceil(size[0] / (rows[1] - rows[0]))),
            2 * max(width, math.ceil(size[1] / 2)),
        )
        first = min(round(rows[0] * canvas[0]), canvas[0] - 1)
        kept = np.arange(first, max(round(rows[1] * canvas[0]), first + 1))
        chosen = METHODS[method]
        self._interpolation = chosen.interpolation
        self._maps = _fixed_point(chosen.positions(left, right, kept, canvas), chosen.interpolation)

    def __call__(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """(h, w, 3) uint8 images of image_02 and image_03 → (*size, 3) uint8 panorama, channels as they come.

        Raises InputError for images of another size than the lenses were given with.
        """
        for name, image in (("image_02", left), ("image_03", right)):
            width, height = self._image_size
            if image.shape != (height, width, 3) or image.dtype != np.uint8:
                raise InputError(
                    f"{name}: expected {width} x {height} pixels in 8-bit colour, as its calibration or the "
                    f"first image has them; found an array of shape {image.shape} and type {image.dtype}."
                )
        pair = np.concatenate([left, right], axis=1)
        panorama = cv2.remap(
            pair, *self._maps, self._interpolation, borderMode=cv2.BORDER_CONSTANT, borderValue=0
        )
        return cv2.resize(panorama, self.size[::-1], interpolation=cv2.INTER_AREA)

    def stitch_files(self, left: Path, right: Path) -> np.ndarray:
        """(*size, 3) uint8 RGB of two PNG files; InputError that names a missing, damaged or odd one."""
        for path, other in ((left, right), (right, left)):
            if not path.is_file():
                partner = f" (its partner {other} is there)" if other.is_file() else ""
                raise InputError(
                    f"{path}: expected the image of a pair of fisheyes, found no file{partner}. Unpack "
                    "data_rgb of image_02 and image_03, or leave this frame out."
                )
        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        images = [read_png(path, flags) for path in (left, right)]
        for path, image in zip((left, right), images, strict=True):
            width, height = self._image_size
            if image.shape[:2] != (height, width):
                raise InputError(
                    f"{path}: expected {width} x {height} pixels, as its calibration or the first image has "
                    f"them; found {image.shape[1]} x {image.shape[0]}. Unpack images and calibration of one "
                    "release."
                )
        return self(*images)


def azimuths(width: int) -> np.ndarray:
    """(width,) float64 radians that the columns look at, left positive and 0 in front, descending."""
    return np.pi * (1 - 2 * (np.arange(width) + 0.5) / width)


def elevations(height: int, rows: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """(height,) float64 radians that the rows look at, up positive, of the part `rows` of the height."""
    share = rows[0] + (rows[1] - rows[0]) * (np.arange(height) + 0.5) / height
    return np.pi / 2 * (1 - 2 * share)


def _published(left: Lens, right: Lens, rows: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Rays through the corners of pixels and the pixels they fall into, as in the authors' converter."""
    width, height = _size_of(left)
    x, y = _equidistant(2 * rows / canvas[0] - 1, 2 * np.arange(canvas[1]) / canvas[1] - 1, (185.0, 185.0))
    column = np.minimum(width - 1, np.floor((x + 1) * width / 2))
    row = np.minimum(height - 1, np.floor((y + 1) * height / 2))
    return _mirrored_halves(column, row, width)


def _v360(left: Lens, right: Lens, rows: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Rays through the middles of pixels."""
    width, height = _size_of(left)
    columns = np.arange(canvas[1])
    x, y = _equidistant(2 * (rows + 0.5) / canvas[0] - 1, 2 * (columns + 0.5) / canvas[1] - 1, (187.8, 185.0))
    return _mirrored_halves((x + 1) * width / 2 - 0.5, (y + 1) * height / 2 - 0.5, width)


def _equidistant(
    y: np.ndarray, x: np.ndarray, apertures: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """(H,), (W,) in [-1, 1) of a whole sphere → (H, W/2) x and y of the right half, which faces the lens.

    Results are -1 to 1 over the fisheye's image. `apertures`: degrees across it and from top to bottom.
    """
    longitude = np.pi * x[len(x) // 2 :]
    latitude = np.pi / 2 * y[:, None]
    ray = np.stack(
        [
            np.cos(latitude) * np.cos(longitude),
            np.cos(latitude) * np.sin(longitude),
            np.broadcast_to(np.sin(latitude), (len(y), len(longitude))),
        ]
    )
    angle = np.arctan2(np.hypot(ray[0], ray[2]), ray[1])
    around = np.arctan2(ray[2], ray[0])
    across, down = np.radians(apertures)
    return 2 * angle / across * np.cos(around), 2 * angle / down * np.sin(around)


def _mirrored_halves(x: np.ndarray, y: np.ndarray, width: int) -> np.ndarray:
    """(H, W/2) in one fisheye's image → (2, H, W): 03's half, then 02's, the whole mirrored.

    The half turns each image over and mirroring turns it back: lettering reads as it should.
    """
    merged = np.concatenate([np.stack([x + width, y]), np.stack([x, y])], axis=2)
    return merged[:, :, ::-1]


def _calibrated(left: Lens, right: Lens, rows: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """Each ray from the camera whose axis is nearer, of those that see it."""
    elevation, azimuth = elevations(canvas[0])[rows, None], azimuths(canvas[1])
    lidar_rays = np.stack(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.broadcast_to(np.sin(elevation), (len(rows), canvas[1])),
        ],
        axis=-1,
    )
    positions = np.full((2, len(rows), canvas[1]), np.nan)
    nearest = np.full((len(rows), canvas[1]), -np.inf)  # cosine of the angle to the axis
    for number, camera in enumerate((left, right)):
        width, height = camera.size
        rays = lidar_rays @ camera.lidar_T_camera[:3, :3]
        pixels, valid = project(camera, rays)
        better = valid & (rays[..., 2] > nearest)
        # Not into the other image, when interpolating at the border between the two.
        column = np.clip(pixels[..., 0], 0, width - 1) + number * width
        row = np.clip(pixels[..., 1], 0, height - 1)
        positions[:, better] = np.stack([column, row])[:, better]
        nearest[better] = rays[better, 2]
    return positions


METHODS = {
    "equidistant185": Method(_published, NEAREST, calibrated=False),
    "v360": Method(_v360, LINEAR, calibrated=False),
    "mei": Method(_calibrated, LINEAR, calibrated=True),
}


def _fixed_point(positions: np.ndarray, interpolation: int) -> tuple[np.ndarray, np.ndarray]:
    """OpenCV's faster form of maps; NaN becomes a place outside of the images."""
    x, y = np.where(np.isnan(positions), -2.0, positions).astype(np.float32)
    return cv2.convertMaps(x, y, cv2.CV_16SC2, nninterpolation=interpolation == NEAREST)


def _size_of(lens: Lens) -> tuple[int, int]:
    return lens.size if isinstance(lens, FisheyeCamera) else lens


def _check_options(
    method: str, left: Lens, right: Lens, size: tuple[int, int], rows: tuple[float, float]
) -> None:
    if method not in METHODS:
        raise InputError(f"--pano: expected one of {', '.join(METHODS)}, found {method!r}.")
    if METHODS[method].calibrated and not all(isinstance(lens, FisheyeCamera) for lens in (left, right)):
        raise InputError(
            f"--pano {method}: expected the calibration of image_02 and image_03, found sizes of images "
            "alone. Unpack calibration.zip of KITTI-360, or choose equidistant185, which needs none."
        )
    if _size_of(left) != _size_of(right) or min(_size_of(left)) < 1:
        found = " and ".join("{} x {}".format(*_size_of(lens)) for lens in (left, right))
        raise InputError(
            f"expected images of one size of image_02 and image_03, found {found}. Unpack both of one "
            "release."
        )
    if max(_size_of(left)) > _LARGEST:
        width, height = _size_of(left)
        raise InputError(
            f"expected fisheye images of at most {_LARGEST} pixels a side, found {width} x {height}. Shrink "
            "them, and their calibration with them."
        )
    if min(size) < 1 or max(size) > _LARGEST:
        raise InputError(
            f"--image-size: expected a height and a width of 1 to {_LARGEST} pixels, found "
            f"{size[0]}x{size[1]}."
        )
    if not 0 <= rows[0] < rows[1] <= 1 or rows[1] - rows[0] < 0.01:
        raise InputError(f"rows: expected a part of the height such as (0.1, 0.9), found {rows}.")
