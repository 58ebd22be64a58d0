"""Camera images, read whole or refused, and as they are stored: JPEG, at most so wide.

Intrinsics are those of the stored image: rows 0 and 1 of K times the resize factor. That is exact where pixel
coordinates are measured from the image's outer corner (pixel centres at halves); for a calibration with
centres at whole numbers it is off by (1 - factor)/2 of a stored pixel.
"""

from pathlib import Path

import cv2
import numpy as np

from data_prep.errors import InputError
from data_prep.raw.frames import Camera
from placerec_jax.ops.image_size import fitted

JPEG_QUALITY = 95

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PNG_END = b"IEND"  # the last chunk: OpenCV fills what a truncated file lacks and says nothing


def stored_image(camera: Camera, image_width: int) -> tuple[bytes, np.ndarray]:
    """The JPEG to store, at most `image_width` wide, and its (3, 3) intrinsics.

    Raises InputError for a damaged image, and for one that is not of the size that its calibration is for.
    """
    content, before, after = reduced_image(camera.path, image_width)
    _check_size(camera, before)
    factors = np.array([[after[0] / before[0]], [after[1] / before[1]], [1.0]])
    return content, factors * camera.intrinsics


def fitted_image(camera: Camera, size: tuple[int, int]) -> tuple[bytes, np.ndarray, np.ndarray]:
    """The image shrunk or stretched to `size` (height, width), each axis by its own factor.

    Returns the JPEG to store, its pixels (H, W, 3) uint8 RGB, and its (3, 3) intrinsics; raises InputError as
    `stored_image` does. A file of that size keeps its bytes.
    """
    content, pixels = _read_jpeg(camera.path)
    _check_size(camera, pixels.shape[1::-1])
    height, width = size
    intrinsics = np.array([[width / camera.width], [height / camera.height], [1.0]]) * camera.intrinsics
    if pixels.shape[:2] != (height, width):
        pixels = fitted(pixels, size)
        content = encoded(pixels[..., ::-1])
    return content, pixels[..., ::-1], intrinsics


def reduced_image(path: Path, image_width: int) -> tuple[bytes, tuple[int, int], tuple[int, int]]:
    """A file as JPEG of at most `image_width`, and its (width, height) before and after.

    A file that is no wider keeps its bytes.
    """
    content, pixels = _read_jpeg(path)
    height, width = pixels.shape[:2]
    if width <= image_width:
        return content, (width, height), (width, height)
    size = (image_width, max(1, round(height * image_width / width)))
    reduced = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return encoded(reduced[..., ::-1]), (width, height), size


def _check_size(camera: Camera, found: tuple[int, ...]) -> None:
    """InputError for an image whose (width, height) is not what its calibration is for."""
    if tuple(found) != (camera.width, camera.height):
        raise InputError(
            f"{camera.path}: expected {camera.width} x {camera.height} pixels, which its calibration is for; "
            f"found {found[0]} x {found[1]}. Unpack the image and the calibration from one release."
        )


def _read_jpeg(path: Path) -> tuple[bytes, np.ndarray]:
    """A whole JPEG's bytes and its (H, W, 3) pixels, BGR; InputError for anything else."""
    content = path.read_bytes()
    pixels = None
    if content.startswith(_JPEG_START) and _ends_whole(content):
        pixels = cv2.imdecode(
            np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
    if pixels is None:
        raise InputError(
            f"{path}: expected a whole JPEG image, found {len(content)} bytes that are none: the file is "
            "truncated or damaged. Unpack it again."
        )
    return content, pixels


def encoded(rgb: np.ndarray) -> bytes:
    """(H, W, 3) uint8 RGB → JPEG."""
    _, content = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return content.tobytes()


def read_png(path: Path, flags: int) -> np.ndarray:
    """A whole PNG as OpenCV reads it under these flags; InputError for anything else."""
    if not path.is_file():
        raise InputError(f"{path}: expected a PNG image, found no file. Unpack the images of this sequence.")
    content = path.read_bytes()
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if _PNG_END in content[-16:] else None
    if pixels is None:
        raise InputError(
            f"{path}: expected a whole PNG image, found {len(content)} bytes that are none: the file is "
            "truncated or damaged. Copy or unpack it again."
        )
    return pixels


def _ends_whole(content: bytes) -> bool:
    """Whether the last scan ends: OpenCV fills what a truncated file lacks with grey and says nothing.

    Neither marker can occur inside the coded data of a scan.
    """
    return content.rfind(_JPEG_END) > content.rfind(_JPEG_SCAN)
