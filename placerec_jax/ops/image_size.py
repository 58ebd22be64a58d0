"""Images on the host, made to fit."""

import cv2
import numpy as np


def fitted(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, C) uint8 → (*size, C), each axis by its own factor; averaged where pixels become fewer."""
    if image.shape[:2] == tuple(size):
        return image
    smaller = size[0] * size[1] < image.shape[0] * image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
