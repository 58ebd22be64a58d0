"""Image augmentation that keeps the calibration true.

One pixel homography an image, applied to the picture and to its intrinsics alike.
"""

import dataclasses

import cv2
import numpy as np


@dataclasses.dataclass(frozen=True)
class ImageAugmentation:
    """Ranges of the training augmentation of Lift, Splat, Shoot, relative to the evaluation resize.

    `resize`: factor on the evaluation resize; `bottom`: share of the resized height cut from below before
    cropping; `flip`: probability of a mirrored image. The evaluation crop is the middle of each range,
    without a flip.
    """

    resize: tuple[float, float] = (0.193 / 0.22, 0.225 / 0.22)
    bottom: tuple[float, float] = (0.0, 0.22)
    flip: float = 0.5


def evaluation_homography(
    stored_size: tuple[int, int], size: tuple[int, int], augmentation: ImageAugmentation
) -> np.ndarray:
    """(3, 3) float64 homography of (height, width) `stored_size` → `size`.

    The picture fills the frame undistorted and is cropped at the mean bottom cut.
    """
    scale = _fill_scale(stored_size, size)
    bottom = sum(augmentation.bottom) / 2
    left = max(0.0, stored_size[1] * scale - size[1]) / 2
    return _resize_and_crop(stored_size, size, scale, bottom, left)


def random_homography(
    stored_size: tuple[int, int],
    size: tuple[int, int],
    augmentation: ImageAugmentation,
    rng: np.random.Generator,
) -> np.ndarray:
    """(3, 3) float64 pixel homography of one random resize, crop and flip."""
    scale = _fill_scale(stored_size, size) * rng.uniform(*augmentation.resize)
    bottom = rng.uniform(*augmentation.bottom)
    left = rng.uniform(0.0, max(0.0, stored_size[1] * scale - size[1]))
    homography = _resize_and_crop(stored_size, size, scale, bottom, left)
    if rng.random() < augmentation.flip:
        mirror = np.array([[-1.0, 0.0, size[1] - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
        homography = mirror @ homography
    return homography


def warp_image(image: np.ndarray, homography: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8 → (*size, 3) uint8: bilinear, black outside the picture."""
    return cv2.warpAffine(image, homography[:2], (size[1], size[0]), flags=cv2.INTER_LINEAR)


def _fill_scale(stored_size: tuple[int, int], size: tuple[int, int]) -> float:
    return max(size[0] / stored_size[0], size[1] / stored_size[1])


def _resize_and_crop(
    stored_size: tuple[int, int], size: tuple[int, int], scale: float, bottom: float, left: float
) -> np.ndarray:
    # The sky is cut first: what is kept ends `bottom` of the resized height above the lower border.
    top = (1 - bottom) * stored_size[0] * scale - size[0]
    return np.array([[scale, 0.0, -left], [0.0, scale, -top], [0.0, 0.0, 1.0]])
