"""Range views and height views of a scan against loops over points and bands."""

import jax
import numpy as np

from placerec_jax.ops.range_image import SphericalGrid
from placerec_jax.ops.scan_views import HEIGHT_BANDS, RANGE_BANDS, height_views, range_views

GRID = SphericalGrid(8, 24)


def scan(seed=0, count=3000):
    rng = np.random.default_rng(seed)
    xyz = rng.uniform(-70, 70, (count, 3)) * (1, 1, 0.2)
    return xyz[None].astype(np.float32), rng.random((1, count)) < 0.9


def column_of(x, y):
    return int(np.floor(GRID.width * (-np.arctan2(-x, y) / np.pi + 1) / 2))


def test_range_views_by_loops():
    points, mask = scan()
    expected = np.full((*GRID.shape, 5), -1.0)
    for x, y, z in points[0][mask[0]].astype(np.float64):
        r = np.sqrt(x * x + y * y + z * z)
        if (abs(x) < 2 and abs(y) < 2) or r >= RANGE_BANDS[-1]:
            continue
        row = int(
            np.clip(np.floor(GRID.height * (10 - np.rad2deg(np.arcsin(z / r))) / 40), 0, GRID.height - 1)
        )
        for view in (0, 1 + int(r // 15)):
            cell = (row, column_of(x, y), view)
            expected[cell] = r if expected[cell] < 0 else min(expected[cell], r)
    found = jax.jit(lambda *a: range_views(*a, GRID))(points, mask)[0]
    assert (expected > 0).sum() > 300
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_height_views_by_loops():
    """Bands of the height above the sensor; the highest point wins; rows go outwards."""
    points, mask = scan(1)
    expected = np.zeros((*GRID.shape, 5))
    seen = np.zeros(expected.shape, bool)
    for x, y, z in points[0][mask[0]].astype(np.float64):
        planar = np.hypot(x, y)
        if (abs(x) < 2 and abs(y) < 2) or planar >= 60 or not HEIGHT_BANDS[0] <= z < HEIGHT_BANDS[-1]:
            continue
        for view in (0, 1 + int((z + 4) // 4)):
            cell = (int(planar / 60 * GRID.height), column_of(x, y), view)
            expected[cell] = max(expected[cell], z + 2) if seen[cell] else z + 2
            seen[cell] = True
    found = jax.jit(lambda *a: height_views(*a, GRID))(points, mask)[0]
    assert seen.sum() > 300
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_empty_scan_is_empty():
    points, mask = scan()
    nothing = np.zeros_like(mask)
    assert (jax.jit(lambda *a: range_views(*a, GRID))(points, nothing) == -1).all()
    assert (jax.jit(lambda *a: height_views(*a, GRID))(points, nothing) == 0).all()
