"""Stored images and their intrinsics."""

import cv2
import numpy as np
import pytest

from data_prep import images
from data_prep.raw import nuscenes


@pytest.mark.parametrize("width", [64, 1000])
def test_narrow_images_keep_their_bytes(tiny, width):
    frame = nuscenes.read_frames(tiny.root, "v1.0-trainval")[0]
    content, intrinsics = images.stored_image(frame.cameras[0], width)
    assert content == frame.cameras[0].path.read_bytes()
    np.testing.assert_array_equal(intrinsics, frame.cameras[0].intrinsics)


def test_reduced_intrinsics_project_to_the_reduced_pixel(tmp_path):
    """A bright square projects to its centroid in the stored image, pixel coordinates from the outer
    corner."""
    width, height = 160, 90
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[40:48, 96:104] = 255  # centre (100, 44) from the corner
    cv2.imwrite(str(tmp_path / "image.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 100])
    matrix = np.array([[120.0, 0, 80], [0, 120.0, 45], [0, 0, 1]])
    camera = nuscenes.Camera("CAM", tmp_path / "image.jpg", width, height, 0, matrix, np.eye(4), np.eye(4))
    content, stored = images.stored_image(camera, 40)
    point = np.linalg.inv(matrix) @ [100, 44, 1]
    u, v, _ = stored @ point
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE).astype(float)
    image[image < 40] = 0
    assert image.shape == (22, 40)  # 22.5 is no whole number: rows and columns have factors of their own
    rows, columns = np.indices(image.shape) + 0.5
    np.testing.assert_allclose(
        [(image * columns).sum() / image.sum(), (image * rows).sum() / image.sum()], [u, v], atol=0.05
    )
