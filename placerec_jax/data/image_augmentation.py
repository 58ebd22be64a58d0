"""Random changes of images that nothing is projected into: colours, a small turn, a small shift.

They mean what torchvision's `ColorJitter` and `RandomAffine` mean, on uint8 and on the host. What differs is
rounding: saturation rounds where torchvision cuts off, and hue goes through HSV of 8 bits a channel, as
torchvision does for PIL images (for tensors it takes floating point).
"""

import cv2
import numpy as np

from placerec_jax.errors import UserError

_GREY = np.array([0.2989, 0.587, 0.114])  # of red, green and blue


def augment(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    probability: float = 0.5,
    brightness: float = 0.5,
    contrast: float = 0.5,
    saturation: float = 0.4,
    hue: float = 0.3,
    degrees: float = 5.0,
    shift: float = 0.1,
) -> np.ndarray:
    """(H, W, 3) uint8 RGB → the same: with `probability` both, `jitter` and then `affine`, else unchanged.

    The defaults are those of SaliencyI2PLoc.
    """
    if rng.random() >= probability:
        return image
    return affine(jitter(image, rng, brightness, contrast, saturation, hue), rng, degrees, shift)


def jitter(
    image: np.ndarray,
    rng: np.random.Generator,
    brightness: float = 0.5,
    contrast: float = 0.5,
    saturation: float = 0.4,
    hue: float = 0.3,
) -> np.ndarray:
    """(H, W, 3) uint8 RGB → the same, its colours changed in four ways, in random order.

    Factors of brightness, contrast and saturation are uniform in [max(0, 1 - x), 1 + x], the shift of the hue
    in [-hue, hue] of the whole circle. Raises UserError for ranges that mean nothing.
    """
    ranges = (brightness, contrast, saturation)
    if not all(0 <= width < np.inf for width in ranges) or not 0 <= hue <= 0.5:
        raise UserError(
            "image augmentation: expected brightness, contrast and saturation of at least 0 and hue from 0 "
            f"to 0.5, found {brightness}, {contrast}, {saturation} and {hue}. Correct the settings."
        )
    amounts = [rng.uniform(max(0.0, 1 - width), 1 + width) for width in ranges]
    amounts.append(rng.uniform(-hue, hue))
    changes = (change_brightness, change_contrast, change_saturation, change_hue)
    for which in rng.permutation(len(changes)):
        image = changes[which](image, amounts[which])
    return image


def affine(
    image: np.ndarray, rng: np.random.Generator, degrees: float = 5.0, shift: float = 0.1
) -> np.ndarray:
    """(H, W, 3) uint8 → the same, turned by up to ± `degrees` and moved by up to ± `shift` of each side.

    Whole pixels of movement, nearest pixels, black outside.
    """
    height, width = image.shape[:2]
    angle = rng.uniform(-degrees, degrees)
    across, down = (round(rng.uniform(-shift * side, shift * side)) for side in (width, height))
    return turn_and_shift(image, angle, (across, down))


def change_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Colours times the factor."""
    return cv2.LUT(image, _table(factor, 0.0))


def change_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Colours' distances from the image's mean grey times the factor."""
    mean = float(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean())
    return cv2.LUT(image, _table(factor, (1 - factor) * mean))


def change_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Colours' distances from their own grey times the factor."""
    matrix = factor * np.eye(3) + (1 - factor) * np.ones((3, 1)) * _GREY
    return cv2.transform(image, matrix)


def change_hue(image: np.ndarray, turn: float) -> np.ndarray:
    """Hues turned by a part of the circle: by 1/3 red becomes green."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    table = np.empty((256, 1, 3), np.uint8)
    table[:] = np.arange(256)[:, None, None]
    table[:, 0, 0] = (np.arange(256) + round(turn * 256)) % 256
    return cv2.cvtColor(cv2.LUT(hsv, table), cv2.COLOR_HSV2RGB_FULL)


def turn_and_shift(image: np.ndarray, degrees: float, shift: tuple[float, float]) -> np.ndarray:
    """Turned clockwise about the image's middle, then moved right and down by so many pixels."""
    height, width = image.shape[:2]
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn = np.array([[cosine, -sine], [sine, cosine]])  # clockwise, as rows count downwards
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    matrix = np.column_stack([turn, middle + shift - turn @ middle])
    return cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_NEAREST)


def _table(factor: float, offset: float) -> np.ndarray:
    """(256,) uint8: factor·value + offset, cut off to whole numbers of 0 to 255."""
    return np.clip(factor * np.arange(256) + offset, 0, 255).astype(np.uint8)
