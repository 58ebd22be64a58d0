"""Density images, how they turn, and the two references that compare them."""

import numpy as np
import pytest

from placerec_jax.evaluation.reference_inputs import DENSITY_GRID, DescriptorError, density_image, turn
from placerec_jax.evaluation.references import pixels, polar_fft
from placerec_jax.ops.grid import Grid2D


def an_image(seed: int, size: int = 151) -> np.ndarray:
    """(size, size) uint8, a twentieth of the cells filled."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random((size, size)) < 0.05, rng.integers(1, 255, (size, size)), 0).astype(np.uint8)


def disc(size: int) -> np.ndarray:
    away = np.arange(size) - (size - 1) / 2
    return np.hypot(away[:, None], away) <= (size - 1) / 2


def stack(module, images: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {"descriptor": np.stack([module.describe(image)["descriptor"] for image in images])}


def test_density_counts_occupied_cubes_above_the_lowest() -> None:
    grid = Grid2D((-2.0, 2.0, -2.0, 2.0), 1.0)
    wall = [[1.5, 0.5, z + 0.5] for z in range(-2, 3)]  # five cubes
    pole = [[-0.5, -1.5, 0.5], [-0.4, -1.4, 1.5], [-0.4, -1.4, 1.6], [-0.4, -1.4, 2.5]]  # three cubes
    ground = [[-1.5, 1.5, 0.1]] * 40
    outside = [[2.0, 0.5, 0.5], [2.0, 0.5, 1.5], [0.5, -2.1, 0.5], [0.5, -2.1, 1.5]]
    expected = np.zeros((4, 4))
    expected[3, 2], expected[1, 0] = 1.0, 0.5
    np.testing.assert_array_equal(density_image(np.array(wall + pole + ground + outside), grid), expected)
    assert DENSITY_GRID.shape == (151, 151)
    assert np.abs(DENSITY_GRID.centers()[75, 75]).max() < 1e-6


def test_images_are_scaled_to_their_maximum() -> None:
    image = an_image(0)
    np.testing.assert_allclose(density_image(image), image / image.max(), rtol=1e-6)
    np.testing.assert_array_equal(density_image(image[..., None]), density_image(image))
    assert not density_image(np.zeros((9, 9), np.uint8)).any()


@pytest.mark.parametrize("shape", [(4, 5), (4, 4, 2), (1, 1), (2, 4, 4)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DescriptorError, match="square density image"):
        density_image(np.zeros(shape))


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_bad_values_are_refused(value: float) -> None:
    with pytest.raises(DescriptorError, match="density image: expected finite values"):
        density_image(np.full((4, 4), value))


def test_images_turn_like_points() -> None:
    """A quarter turn to the left moves what is ahead (high row) to the left (high column)."""
    image = an_image(1)
    ahead = np.zeros((5, 5), np.uint8)
    ahead[4, 2] = 9
    assert turn(ahead, np.pi / 2)[2, 4] == 9
    np.testing.assert_array_equal(turn(image, np.pi / 2), image.T[::-1])


def test_points_turn_counter_clockwise() -> None:
    found = turn(np.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]), np.pi / 2)
    np.testing.assert_allclose(found, [[0, 1, 2], [-3, 0, 0]], atol=1e-6)
    rng = np.random.default_rng(2)
    angle, reach, yaw = rng.uniform(-np.pi, np.pi, 30), rng.uniform(5, 25, 30), 0.6
    poles = [np.column_stack([reach * np.cos(a), reach * np.sin(a)]) for a in (angle, angle + yaw)]
    scans = [np.concatenate([np.column_stack([p, np.full(30, z)]) for z in (0.2, 0.6, 1.0)]) for p in poles]
    turned_image, turned_points = turn(density_image(scans[0]), yaw), density_image(scans[1])
    cosine = pixels.unit(pixels.smoothed(turned_image, DENSITY_GRID, 2.0)) @ pixels.unit(
        pixels.smoothed(turned_points, DENSITY_GRID, 2.0)
    )
    assert cosine > 0.95


def test_rolling_the_azimuths_leaves_the_spectrum() -> None:
    polar = np.random.default_rng(3).random((30, 120)).astype(np.float32)
    for bins in (1, 37, 119):
        np.testing.assert_allclose(
            polar_fft.spectrum(np.roll(polar, bins, axis=1)), polar_fft.spectrum(polar), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_roll_the_polar_image_and_leave_the_descriptor(quarters: int) -> None:
    image = an_image(4)
    turned = turn(image, quarters * np.pi / 2)
    rolled = np.roll(polar_fft.polar_image(np.float32(image)), 30 * quarters, axis=1)
    # OpenCV interpolates at 1/32 of a pixel, and rounds mirrored places to either side.
    assert np.abs(polar_fft.polar_image(np.float32(turned)) - rolled).mean() < 0.02 * rolled.mean()
    still, moved = (polar_fft.describe(picture)["descriptor"] for picture in (image, turned))
    assert 1 - still @ moved < 1e-4


def test_any_turn_is_nearer_than_another_place_for_polar_fft_and_not_for_pixels() -> None:
    images = [an_image(seed) for seed in range(5, 9)]
    turned = [turn(image, 1.0) for image in images]
    found = polar_fft.distances(stack(polar_fft, turned), stack(polar_fft, images))
    np.testing.assert_array_equal(found.argmin(axis=1), np.arange(4))
    assert np.diag(found).max() < 0.5 * (found + np.eye(4)).min()
    assert np.diag(pixels.distances(stack(pixels, turned), stack(pixels, images))).min() > 0.1


@pytest.mark.parametrize("module", [pixels, polar_fft])
def test_what_lies_beyond_the_disc_is_not_looked_at(module) -> None:
    image = an_image(9)
    filled = np.where(disc(151), image, image.max())
    np.testing.assert_array_equal(module.describe(image)["descriptor"], module.describe(filled)["descriptor"])


@pytest.mark.parametrize("module", [pixels, polar_fft])
def test_distances_agree_with_a_double_loop(module) -> None:
    queries, database = ([an_image(seed, 60) for seed in seeds] for seeds in (range(4), range(3, 8)))
    found = module.distances(stack(module, queries), stack(module, database))
    vectors = [[module.describe(image)["descriptor"] for image in images] for images in (queries, database)]
    expected = [[1 - q @ d / (np.linalg.norm(q) * np.linalg.norm(d)) for d in vectors[1]] for q in vectors[0]]
    np.testing.assert_allclose(found, expected, atol=1e-5)
