"""Colours and small movements against torchvision's formulas, written in torch, and how they are drawn."""

import cv2
import numpy as np
import pytest
import torch

from placerec_jax.data import image_augmentation
from placerec_jax.data.image_augmentation import affine, augment, jitter
from placerec_jax.errors import UserError


@pytest.fixture
def image() -> np.ndarray:
    """Smooth, with all hues and both ends of the range."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    return cv2.resize(coarse, (61, 40), interpolation=cv2.INTER_CUBIC)


def to_torch(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).double()


def grey(image: torch.Tensor) -> torch.Tensor:
    return (torch.tensor([0.2989, 0.587, 0.114]).double()[:, None, None] * image).sum(0, keepdim=True)


def blend(image: torch.Tensor, other: torch.Tensor, factor: float) -> np.ndarray:
    return (factor * image + (1 - factor) * other).clamp(0, 255).permute(1, 2, 0).numpy()


def turned_hue(image: torch.Tensor, turn: float) -> np.ndarray:
    """Through HSV by its definition, in floating point."""
    high, low = image.max(0).values, image.min(0).values
    red, green, blue = image
    span = (high - low).clamp(min=1e-12)
    sextant = torch.where(
        high == red,
        (green - blue) / span,
        torch.where(high == green, 2 + (blue - red) / span, 4 + (red - green) / span),
    )
    sextant = (sextant + 6 * turn) % 6
    # Each channel falls from `high` to `low` with the distance from its own hue.
    channels = []
    for own in (0.0, 2.0, 4.0):
        distance = ((sextant - own + 3) % 6 - 3).abs()
        channels.append(low + (high - low) * (2 - distance).clamp(0, 1))
    return torch.stack(channels, -1).numpy()


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.93, 1.0, 1.5])
def test_colours_against_torch(image, factor):
    pixels = to_torch(image)
    cases = {
        "change_brightness": torch.zeros_like(pixels),
        "change_contrast": grey(pixels).mean().expand_as(pixels),
        "change_saturation": grey(pixels).expand_as(pixels),
    }
    for name, other in cases.items():
        found = getattr(image_augmentation, name)(image, factor)
        assert found.dtype == np.uint8
        # Torchvision cuts off to whole numbers, also the grey image: one level.
        np.testing.assert_allclose(found, blend(pixels, other, factor), atol=1.0 + 1e-6, err_msg=name)


@pytest.mark.parametrize("turn", [-0.3, -0.1, 0.0, 0.123, 0.3, 0.5])
def test_hue_against_torch(image, turn):
    """HSV of 8 bits: a hue off by half of 1/256 of the circle, twice, makes 6 levels; saturation adds."""
    found = image_augmentation.change_hue(image, turn).astype(float)
    off = np.abs(found - turned_hue(to_torch(image), turn))
    assert off.max() <= 10
    assert off.mean() < 1.5


def test_hue_of_pure_colours():
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    found = image_augmentation.change_hue(red, 1 / 3)[0, 0].astype(int)
    np.testing.assert_allclose(found, (0, 255, 0), atol=3)
    grey_image = np.full((2, 2, 3), 90, np.uint8)
    np.testing.assert_array_equal(image_augmentation.change_hue(grey_image, 0.3), grey_image)


@pytest.mark.parametrize(
    ("degrees", "shift"), [(0, (0, 0)), (5, (0, 0)), (-3.7, (4, -3)), (0, (6, 2)), (40, (0, 5))]
)
def test_movements_against_torch(image, degrees, shift):
    """The inverse of turning clockwise about the middle and moving, in normalised coordinates of a grid."""
    height, width = image.shape[:2]
    angle = np.radians(degrees)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    half = np.array([width / 2, height / 2])
    back = turn.T
    theta = np.column_stack([back / half[:, None] * half, -(back @ shift) / half])
    grid = torch.nn.functional.affine_grid(
        torch.from_numpy(theta)[None], [1, 3, height, width], align_corners=False
    )
    expected = torch.nn.functional.grid_sample(
        to_torch(image)[None], grid, mode="nearest", padding_mode="zeros", align_corners=False
    )[0]
    found = image_augmentation.turn_and_shift(image, degrees, shift)
    same = (found == expected.permute(1, 2, 0).numpy()).all(axis=-1)
    assert same.mean() > 0.99  # nearest pixels: halves may fall either way


def test_a_positive_angle_turns_clockwise():
    """What is above the middle moves to the right."""
    image = np.zeros((41, 41, 3), np.uint8)
    image[2:6, 18:23] = 255
    rows, columns = np.nonzero(image_augmentation.turn_and_shift(image, 20, (0, 0))[..., 0])
    assert columns.mean() > 24
    assert rows.mean() < 8


def test_ranges_of_movements():
    """A bright dot in the middle, drawn often: shifts within 10 % of each side, and both signs of all."""
    image = np.zeros((50, 100, 3), np.uint8)
    image[25, 50] = 255
    rng = np.random.default_rng(0)
    found = np.array([np.argwhere(affine(image, rng, degrees=0.0)[..., 0])[0] for _ in range(400)]) - (25, 50)
    np.testing.assert_array_equal(np.abs(found).max(axis=0), (5, 10))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1)


def test_ranges_of_colours():
    """A grey image tells brightness alone: uniform in ± 50 %."""
    image = np.full((4, 4, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    found = np.array([jitter(image, rng, 0.5, 0.0, 0.0, 0.3)[0, 0, 0] for _ in range(800)])
    assert 50 <= found.min() < 53
    assert 147 < found.max() <= 150
    np.testing.assert_allclose(np.percentile(found, [25, 50, 75]), (75, 100, 125), atol=5)


def test_the_order_of_colours_is_random():
    """Brightness and contrast do not commute where colours are cut off."""
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2] = 255
    results = {
        tuple(jitter(image, np.random.default_rng(seed), 0.0, 0.0, 0.0, 0.0).ravel()) for seed in range(5)
    }
    assert len(results) == 1  # no change, in whatever order
    bright = image_augmentation.change_contrast(image_augmentation.change_brightness(image, 1.5), 0.5)
    other = image_augmentation.change_brightness(image_augmentation.change_contrast(image, 0.5), 1.5)
    assert not np.array_equal(bright, other)

    class Fixed:
        """Draws 1.5 for brightness, 0.5 for contrast, nothing for the rest, in a given order."""

        def __init__(self, order):
            self.order, self.amounts = order, iter([1.5, 0.5, 1.0, 0.0])

        def uniform(self, low, high):
            return next(self.amounts)

        def permutation(self, count):
            return self.order

    np.testing.assert_array_equal(jitter(image, Fixed([0, 1, 2, 3])), bright)
    np.testing.assert_array_equal(jitter(image, Fixed([1, 0, 2, 3])), other)


def test_half_of_the_images_stay(image):
    before = image.copy()
    kept = 0
    for seed in range(400):
        changed = augment(image, np.random.default_rng(seed))
        assert changed.shape == image.shape
        assert changed.dtype == np.uint8
        kept += np.array_equal(changed, image)
    assert 160 < kept < 240
    np.testing.assert_array_equal(image, before)  # never in place
    again = [augment(image, np.random.default_rng(7), probability=1.0) for _ in range(2)]
    np.testing.assert_array_equal(*again)
    np.testing.assert_array_equal(augment(image, np.random.default_rng(7), probability=0.0), image)


@pytest.mark.parametrize(
    "settings",
    [
        {"hue": 0.6},
        {"hue": -0.1},
        {"brightness": -1.0},
        {"contrast": float("nan")},
        {"saturation": float("inf")},
    ],
)
def test_ranges_that_mean_nothing(image, settings):
    with pytest.raises(UserError, match="expected brightness, contrast and saturation of at least 0 and hue"):
        jitter(image, np.random.default_rng(0), **settings)
