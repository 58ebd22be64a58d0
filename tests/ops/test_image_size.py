"""Images made to fit."""

import numpy as np

from placerec_jax.ops.image_size import fitted


def test_fitted_images_are_averaged_or_interpolated_and_else_left_alone():
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    assert fitted(image, (8, 12)) is image
    means = image.reshape(4, 2, 6, 2, 3).mean((1, 3))
    np.testing.assert_allclose(fitted(image, (4, 6)), means, atol=0.5)
    larger = fitted(image, (16, 24))
    assert larger.shape == (16, 24, 3)
    np.testing.assert_array_equal(larger[0, 0], image[0, 0])  # a corner has no other neighbour
