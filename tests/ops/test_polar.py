"""Polar maps of images given by a formula, and a descriptor that does not know where the scan faces."""

import jax
import numpy as np
import pytest

from placerec_jax.evaluation.references import polar_fft
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.polar import (
    AZIMUTHS,
    FREQUENCIES,
    LAYOUTS,
    RINGS,
    layout_descriptor,
    polar_resample,
    ring_products,
)

GRID = Grid2D((-31.8, 32.2, -31.8, 32.2), 0.4)  # of the pre-rendered pictures: not the same on both sides
REFERENCE = Grid2D((-30.2, 30.2, -30.2, 30.2), 0.4)


def centres(grid: Grid2D) -> tuple[np.ndarray, np.ndarray]:
    """x of every row and y of every column, (H, 1) and (1, W)."""
    x, y = (lower + (np.arange(n) + 0.5) * grid.cell for lower, n in zip(grid.lower, grid.shape, strict=True))
    return x[:, None], y[None, :]


def hills(grid: Grid2D, yaw: float = 0.0, width: float = 2.0, seed: int = 0) -> np.ndarray:
    """(1, H, W, 1) float32: Gaussian hills within 20 m of the origin, turned about it by `yaw` (rad)."""
    rng = np.random.default_rng(seed)
    x, y = centres(grid)
    image = np.zeros(grid.shape)
    for _ in range(25):
        radius, azimuth, height = rng.uniform(2, 20), rng.uniform(0, 2 * np.pi) + yaw, rng.uniform(0.2, 1)
        px, py = radius * np.cos(azimuth), radius * np.sin(azimuth)
        image += height * np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * width**2))
    return image[None, ..., None].astype(np.float32)


RESAMPLE = jax.jit(polar_resample, static_argnums=(1, 2, 3, 4))
LAYOUT = jax.jit(layout_descriptor, static_argnums=(1, 2, 3))
BLUR = 0.8  # m, that of the reference


def test_resample_reads_x_and_y_in_metres():
    """Of planes samples are exact: ring r lies at (r + 1/2) reach / rings, azimuth 0 ahead, then left."""
    x, y = np.broadcast_arrays(*centres(GRID))
    image = np.stack([x, y], axis=-1)[None].astype(np.float32)
    found = np.asarray(RESAMPLE(image, GRID, 4, 8, 20.0))[0]
    for ring, radius in enumerate((2.5, 7.5, 12.5, 17.5)):
        for step in range(8):
            azimuth = np.deg2rad(45 * step)
            expected = [radius * np.cos(azimuth), radius * np.sin(azimuth)]
            np.testing.assert_allclose(found[ring, step], expected, atol=1e-4)


def test_resample_equals_the_reference():
    """Of the reference's grid and rings; OpenCV rounds places to 1/32 of a cell."""
    image = hills(REFERENCE, width=1.5)
    found = RESAMPLE(image, REFERENCE, RINGS, AZIMUTHS, 30.0)[0, ..., 0]
    np.testing.assert_allclose(found, polar_fft.polar_image(image[0, ..., 0]), atol=0.02 * image.max())


@pytest.mark.parametrize("steps", [1, 17, 40])
def test_a_turn_by_whole_steps_shifts_the_azimuth(steps):
    yaw = steps * 2 * np.pi / AZIMUTHS
    still, turned = (
        np.asarray(RESAMPLE(hills(GRID, angle), GRID, RINGS, AZIMUTHS, 30.0)) for angle in (0.0, yaw)
    )
    np.testing.assert_allclose(turned, np.roll(still, steps, axis=2), atol=0.02 * still.max())
    assert np.abs(turned - still).max() > 0.1 * still.max()


@pytest.mark.parametrize("form", sorted(LAYOUTS))
def test_layout_does_not_change_with_the_heading_and_does_with_the_place(form):
    headings = [0.0, np.pi / 2, *(steps * 2 * np.pi / AZIMUTHS for steps in (1, 17, 40)), 0.123]
    places = [hills(GRID, yaw) for yaw in headings] + [hills(GRID, seed=1)]
    found = np.concatenate([LAYOUT(place, GRID, 1.5 * BLUR, form) for place in places])
    assert found.shape == (len(places), {"magnitudes": RINGS * FREQUENCIES, "products": 19 * 20 * 2}[form])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-5)
    apart = np.linalg.norm(found[1:] - found[0], axis=1)
    assert apart[:-1].max() < 0.01
    assert apart[-1] > 0.2


def test_layout_is_the_reference_up_to_its_rings():
    """Of square roots, as the reference takes them; it reaches 0.2 m less, to the middle of the last cell."""
    image = hills(REFERENCE, width=1.0)
    found = np.asarray(LAYOUT(np.sqrt(image), REFERENCE, BLUR, "magnitudes"))[0]
    expected = polar_fft.describe(image[0])["descriptor"]
    assert found @ expected > 0.999
    assert found @ polar_fft.describe(hills(REFERENCE, width=1.0, seed=1)[0])["descriptor"] < 0.95


def test_layout_has_every_channel_and_ignores_the_scale():
    a, b = hills(GRID), hills(GRID, seed=1)
    both = np.asarray(LAYOUT(np.concatenate([a, b], axis=-1), GRID, BLUR, "magnitudes"))
    assert both.shape == (1, RINGS * FREQUENCIES * 2)
    alone = np.asarray(LAYOUT(a, GRID, BLUR, "magnitudes"))
    first = both.reshape(1, -1, 2)[..., 0]
    np.testing.assert_allclose(first / np.linalg.norm(first), alone, atol=1e-5)
    np.testing.assert_allclose(LAYOUT(9 * a, GRID, BLUR, "magnitudes"), alone, atol=1e-5)


def test_layout_of_nothing_is_zero():
    for form in LAYOUTS:
        assert not np.any(LAYOUT(np.zeros_like(hills(GRID)), GRID, BLUR, form)), form


def products_by_hand(maps: np.ndarray, frequencies: int) -> np.ndarray:
    """(R, A) → (R - 1, F) complex: sums over azimuths, one ring and frequency at a time."""
    azimuths = maps.shape[1]
    angle = 2 * np.pi * np.arange(azimuths) / azimuths
    wave = [
        [np.sum(row * np.exp(-1j * m * angle)) for m in range(frequencies)] for row in maps.astype(np.float64)
    ]
    wave = np.array(wave)
    product = wave[1:] * wave[:-1].conj()
    return product / np.sqrt(np.abs(product))


def test_layout_of_products_tells_a_twisted_place_apart():
    """The same rings, the outer turned against the inner: magnitudes are those of the place itself."""
    x, y = centres(GRID)
    post = lambda radius, azimuth: np.exp(  # noqa: E731
        -((x - radius * np.cos(azimuth)) ** 2 + (y - radius * np.sin(azimuth)) ** 2) / 8
    )
    place = post(8, 0) + post(8, 2) + post(13, 0.4) + post(13, 1.1)
    twisted = post(8, 0) + post(8, 2) + post(13, 2.4) + post(13, 3.1)
    likeness = {}
    for form in LAYOUTS:
        both = np.stack([place, twisted])[..., None].astype(np.float32)
        found = np.asarray(LAYOUT(both, GRID, BLUR, form))
        likeness[form] = found[0] @ found[1]
    assert 1 - likeness["products"] > 3 * (1 - likeness["magnitudes"])


PRODUCTS = jax.jit(ring_products, static_argnums=1)


def test_products_of_rings_by_hand():
    maps = np.random.default_rng(0).uniform(0, 1, (2, 4, 24, 3)).astype(np.float32)
    found = np.asarray(PRODUCTS(maps, 7))
    assert found.shape == (2, 3, 7, 3, 2)
    for scan in range(2):
        for channel in range(3):
            expected = products_by_hand(maps[scan, :, :, channel], 7)
            np.testing.assert_allclose(
                found[scan, :, :, channel, 0] + 1j * found[scan, :, :, channel, 1], expected, atol=1e-4
            )


def test_products_do_not_see_a_turn_but_how_rings_lie_to_each_other():
    maps = np.random.default_rng(1).uniform(0, 1, (1, 4, 24, 1)).astype(np.float32)
    found = PRODUCTS(maps, 7)
    np.testing.assert_allclose(PRODUCTS(np.roll(maps, 5, axis=2), 7), found, atol=1e-4)
    twisted = maps.copy()
    twisted[:, 2:] = np.roll(maps[:, 2:], 5, axis=2)  # the outer two rings against the inner two
    other = PRODUCTS(twisted, 7)
    np.testing.assert_allclose(other[:, [0, 2]], found[:, [0, 2]], atol=1e-4)
    assert np.abs(other[:, 1, 1:] - found[:, 1, 1:]).max() > 0.1
    magnitudes = [np.abs(np.fft.rfft(x, axis=2)) for x in (maps, twisted)]
    np.testing.assert_allclose(*magnitudes, atol=1e-4)  # which do not tell the two apart


def test_products_of_nothing_have_a_slope():
    value, slope = jax.value_and_grad(lambda maps: ring_products(maps, 5).sum())(np.zeros((1, 3, 16, 1)))
    assert value == 0
    assert np.isfinite(slope).all()
