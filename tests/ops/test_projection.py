"""Cameras: a known point goes to its pixel, back through the frustum, and into its cell."""

import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.data import augmentation
from placerec_jax.ops import projection, splat
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import rigid_matrix

K = np.array([[1266.0, 0.0, 816.0], [0.0, 1266.0, 491.0], [0.0, 0.0, 1.0]])
LOOKING_FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
EGO_T_CAMERA = rigid_matrix(LOOKING_FORWARD, np.array([1.7, 0.1, 1.5]))
STORED, SIZE = (900, 1600), (128, 352)


def test_pixels_to_ego_inverts_ego_to_pixels():
    ego_xyz = jnp.asarray(np.random.default_rng(0).uniform([5, -10, -1], [50, 10, 4], (40, 3)), jnp.float32)
    pixels = projection.ego_to_pixels(ego_xyz, jnp.asarray(K), jnp.asarray(EGO_T_CAMERA))
    back = projection.pixels_to_ego(pixels[None, None], jnp.asarray(K), jnp.asarray(EGO_T_CAMERA))
    np.testing.assert_allclose(back[0, 0], ego_xyz, atol=2e-3)


@pytest.mark.parametrize("seed", range(5))
def test_augmented_point_returns_to_its_cell(seed: int):
    """Augmentation moves the pixel; the augmented intrinsics bring the point back to its cell."""
    rng = np.random.default_rng(seed)
    ego_xyz = np.array([[20.3, -3.2, 0.6]])
    homography = augmentation.random_homography(STORED, SIZE, augmentation.ImageAugmentation(), rng)
    plain = np.asarray(
        projection.ego_to_pixels(jnp.asarray(ego_xyz), jnp.asarray(K), jnp.asarray(EGO_T_CAMERA))
    )[0]
    moved = homography @ [plain[0], plain[1], 1.0]
    point = jnp.asarray([moved[0], moved[1], plain[2]])[None, None, None]
    back = projection.pixels_to_ego(point, jnp.asarray(homography @ K), jnp.asarray(EGO_T_CAMERA))
    np.testing.assert_allclose(back.reshape(3), ego_xyz[0], atol=1e-3)
    grid = Grid2D((-64.0, 64.0, -32.0, 32.0), 0.5)
    expected = int((20.3 + 64) / 0.5) * 128 + int((-3.2 + 32) / 0.5)
    assert int(splat.cell_ids(back, grid, (-10.0, 10.0)).reshape(())) == expected


def test_homography_moves_the_picture_as_it_moves_the_pixels():
    """A white square drawn at a pixel is found where the homography says, flipped or not."""
    image = np.zeros((*STORED, 3), np.uint8)
    image[600:613, 1000:1013] = 255  # centre (u, v) = (1006, 606)
    always = augmentation.ImageAugmentation(flip=1.0)
    for chosen in (
        augmentation.evaluation_homography(STORED, SIZE, always),
        augmentation.random_homography(STORED, SIZE, always, np.random.default_rng(3)),
    ):
        warped = augmentation.warp_image(image, chosen, SIZE)[..., 0].astype(float)
        v, u = (np.indices(SIZE) * warped).sum((1, 2)) / warped.sum()
        expected = chosen @ [1006.0, 606.0, 1.0]
        np.testing.assert_allclose([u, v], expected[:2], atol=0.6)


def test_evaluation_crop_is_the_published_one():
    """1600x900 to 352x128: factor 0.22, the bottom 11 % of the resized 198 rows cut, width kept."""
    homography = augmentation.evaluation_homography(STORED, SIZE, augmentation.ImageAugmentation())
    np.testing.assert_allclose(homography[0], [0.22, 0.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(homography[1], [0.0, 0.22, -(0.89 * 198 - 128)], atol=1e-9)


def test_frustum_corners_and_depths():
    points = projection.frustum((128, 352), (8, 22), (4.0, 60.0, 1.0))
    assert points.shape == (8, 22, 56, 3)
    np.testing.assert_allclose(points[0, 0, 0], [0.0, 0.0, 4.0])
    np.testing.assert_allclose(points[-1, -1, -1], [351.0, 127.0, 59.0])
