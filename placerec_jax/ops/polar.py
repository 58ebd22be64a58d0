"""Maps in polar coordinates about the sensor, and what of them does not depend on where it faces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.resize import sample_bilinear
from placerec_jax.ops.smooth import gaussian_blur

RINGS = 30
AZIMUTHS = 120  # 3°
FREQUENCIES = 31  # 0 to 30 waves a turn
_TINY = 1e-9


def polar_resample(x: jax.Array, grid: Grid2D, rings: int, azimuths: int, reach: float) -> jax.Array:
    """(B, H, W, C) on `grid` → (B, rings, azimuths, C): bilinear samples about the origin of the grid.

    Ring r lies at (r + 1/2) · reach / rings metres; azimuth 0 is forward (x), and azimuths increase to the
    left.
    """
    radius = (np.arange(rings) + 0.5)[:, None] * (reach / rings)
    azimuth = np.arange(azimuths) * (2 * np.pi / azimuths)
    xy = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth)], axis=-1).reshape(-1, 2)
    place = ((xy - np.asarray(grid.lower)) / grid.cell - 0.5).astype(np.float32)
    found = sample_bilinear(x, jnp.broadcast_to(place, (x.shape[0], *place.shape)))
    return found.reshape(x.shape[0], rings, azimuths, x.shape[-1])


def layout_descriptor(weight: jax.Array, grid: Grid2D, smoothing: float, form: str) -> jax.Array:
    """(B, H, W, C) weights >= 0 of cells on `grid` → (B, D) float32 of unit length, by a form of LAYOUTS.

    Nothing is learned: the weights, blurred by `smoothing` metres, on rings about the sensor, and of every
    ring what a turn of the scan does not change. The wider the blur, the less a shift of the sensor matters.
    A ring counts by its area. What is farther than the nearest edge is not looked at. A scan without content
    gives zeros.
    """
    rings, describe = LAYOUTS[form]
    reach = min(abs(edge) for edge in grid.extent)
    smooth = gaussian_blur(weight, smoothing / grid.cell)
    maps = polar_resample(smooth, grid, rings, AZIMUTHS, reach)
    area = np.sqrt(np.arange(rings) + 0.5).astype(np.float32)[:, None, None]
    flat = describe(maps * area).reshape(len(weight), -1)
    return flat * jax.lax.rsqrt(jnp.sum(flat**2, axis=-1, keepdims=True) + _TINY)


def ring_products(maps: jax.Array, frequencies: int) -> jax.Array:
    """(B, R, A, C) maps in polar coordinates → (B, R − 1, F, C, 2) float32 that no turn of the scan changes.

    A turn by φ multiplies the Fourier coefficient of m waves of every ring by exp(−imφ). The product of a
    ring's coefficient with the conjugate of the next ring's does not see it, and unlike magnitudes it still
    knows how what stands on one ring lies to what stands on the next. The root of its magnitude is kept, so
    that it grows with the maps as a coefficient does; the last axis is real and imaginary part.
    """
    wave = jnp.fft.rfft(maps.astype(jnp.float32), axis=2)[:, :, :frequencies]
    product = wave[:, 1:] * jnp.conj(wave[:, :-1])
    squared = jnp.real(product) ** 2 + jnp.imag(product) ** 2
    # Its fourth root is what the parts are divided by, twice guarded: at zero a root has no slope.
    scale = jax.lax.rsqrt(jnp.sqrt(squared + _TINY**2) + _TINY)
    return jnp.stack([jnp.real(product) * scale, jnp.imag(product) * scale], axis=-1)


def _magnitudes(maps: jax.Array) -> jax.Array:
    """(B, R, A, C) → (B, R, 31, C): of every ring alone, the magnitudes of its Fourier series."""
    return jnp.abs(jnp.fft.rfft(maps, axis=2)[:, :, :FREQUENCIES])


# Forms of the layout: how many rings, and what is made of them. Products keep how rings lie to each other.
LAYOUTS = {
    "magnitudes": (RINGS, _magnitudes),
    "products": (20, functools.partial(ring_products, frequencies=20)),
}
