"""Convolutions that turn with the scene: circular harmonics (Worrall et al., CVPR 2017), and a backbone.

The neighbourhood of a cell, in polar coordinates about it, is a function of ring and azimuth. A turn of the
scene shifts the azimuth, so the Fourier coefficient of order m along the azimuth only turns its phase by m
times the angle: what is learned is a radial profile for every order, and the magnitudes do not change. Such a
coefficient at every cell is a convolution. A map of magnitudes therefore turns with the scene, whatever the
angle, up to the sampling of the grid.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from placerec_jax.modules.conv import batch_norm
from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.ops.resize import sample_bilinear, upsample_bilinear
from placerec_jax.ops.smooth import gaussian_blur

_RING_WIDTH = 0.6  # cells, standard deviation of a ring: neighbours overlap, so that no turn falls between
_SAMPLES = 9  # a side of each cell, over which filters are averaged
_TINY = 1e-6  # under the root of a magnitude


@functools.cache
def circular_harmonics(radius: int, orders: int) -> tuple[np.ndarray, ...]:
    """Filters of order 0 to `orders`, each (2·radius + 1, 2·radius + 1, rings) complex64 of unit energy.

    Ring r is a Gaussian about the distance r from the middle, times exp(i·m·azimuth), averaged over each
    cell: sampled at its centre alone, order m would pass for m − 4. A ring cannot tell orders
    above 2·r apart and leaves them out; the middle has no azimuth and belongs to order 0 alone.
    """
    inside = (np.arange(_SAMPLES) + 0.5) / _SAMPLES - 0.5
    axis = np.arange(-radius, radius + 1)[:, None] + inside  # (cells, samples)
    row, column = axis[:, None, :, None], axis[None, :, None, :]
    distance, azimuth = np.hypot(row, column), np.arctan2(column, row)
    filters = []
    for order in range(orders + 1):
        rings = []
        for ring in range(radius + 1):
            if order > 2 * ring:
                continue
            weight = np.exp(-((distance - ring) ** 2) / (2 * _RING_WIDTH**2)) * (distance <= radius + 0.5)
            # Waves die out towards the middle as those of smooth maps do.
            wave = weight * np.minimum(distance, 1.0) ** order * np.exp(1j * order * azimuth)
            wave = wave.mean(axis=(2, 3))
            rings.append(wave / np.linalg.norm(wave))
        filters.append(np.stack(rings, axis=-1).astype(np.complex64))
    return tuple(filters)


class HarmonicConv(nn.Module):
    """(B, H, W, C) → (B, H, W, (orders + 1) · features): order 0 as it is, magnitudes of the others."""

    features: int
    radius: int = 3
    orders: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernels = []
        for order, filters in enumerate(circular_harmonics(self.radius, self.orders)):
            rings = filters.shape[-1]
            scale = nn.initializers.normal((x.shape[-1] * rings) ** -0.5)
            real = self.param(f"real{order}", scale, (rings, x.shape[-1], self.features))
            kernel = jnp.einsum("hwr,rio->hwio", filters.real, real)
            if order:
                # Complex profiles, so that a filter may be a spiral and tell left from right.
                imaginary = self.param(f"imaginary{order}", scale, real.shape)
                other = jnp.einsum("hwr,rio->hwio", filters.imag, imaginary)
                kernels += [kernel - other]
                kernel = jnp.einsum("hwr,rio->hwio", filters.imag, real) + jnp.einsum(
                    "hwr,rio->hwio", filters.real, imaginary
                )
            kernels.append(kernel)
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            jnp.concatenate(kernels, axis=-1).astype(self.dtype),
            window_strides=(1, 1),
            padding="SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ).astype(jnp.float32)
        y = y.reshape(*y.shape[:-1], -1, self.features)
        magnitude = jnp.sqrt(y[..., 1::2, :] ** 2 + y[..., 2::2, :] ** 2 + _TINY)
        return jnp.concatenate([y[..., :1, :], magnitude], axis=-2).reshape(*x.shape[:-1], -1)


class HarmonicBlock(nn.Module):
    """(B, H, W, C) → (B, H, W, out): harmonic convolution, then what every cell makes of its magnitudes."""

    features: int
    out: int
    radius: int = 3
    orders: int = 3
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = HarmonicConv(self.features, self.radius, self.orders, self.dtype, name="harmonics")(x)
        y = nn.relu(batch_norm(train, self.dtype, name="harmonics_bn")(y))
        y = nn.Dense(self.out, use_bias=False, dtype=self.dtype, name="mix")(y)
        return constrain_batch(nn.relu(batch_norm(train, self.dtype, name="mix_bn")(y)))


@dataclasses.dataclass(frozen=True)
class HarmonicSize:
    """Harmonics and outputs of the levels at strides 2, 4, 8, ..., and the length of a feature."""

    levels: tuple[tuple[int, int], ...] = ((8, 24), (8, 48), (10, 64))
    dim: int = 64
    smoothing: float = 1.5  # cells: what lies between cells must not depend on where the grid lies


class HarmonicBackbone(nn.Module):
    """(B, H, W, C) → levels [(B, H/2, W/2, ·), (B, H/4, W/4, ·), ...] for `features_at`, (B, H, W) score.

    Both turn with the scene; the score is float32 in (0, 1). The input is smoothed first: a scan is so sparse
    that interpolating it changes it. H and W are multiples of the coarsest stride.
    """

    size: HarmonicSize
    dtype: jnp.dtype = jnp.float32

    @property
    def stride(self) -> int:
        """What both sides of the input are multiples of."""
        return 2 ** len(self.size.levels)

    def setup(self) -> None:
        self.blocks = [
            HarmonicBlock(features, out, dtype=self.dtype, name=f"block{level}")
            for level, (features, out) in enumerate(self.size.levels)
        ]
        self.feature_head = nn.Dense(self.size.dim, use_bias=False, dtype=self.dtype)
        # Float32 whatever the rest, so that neighbours do not tie.
        exact = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
        self.score_heads = [
            nn.Dense(1, dtype=self.dtype, dot_general=exact, name=f"score{level}")
            for level in range(len(self.size.levels) + 1)
        ]

    def __call__(self, x: jax.Array, train: bool) -> tuple[list[jax.Array], jax.Array]:
        if x.shape[1] % self.stride or x.shape[2] % self.stride:
            raise ValueError(
                f"HarmonicBackbone: the input is {x.shape[1:3]} cells; expected multiples of {self.stride}"
            )
        y = gaussian_blur(x, self.size.smoothing)
        # One number a cell is enlarged, not the features: those are read where they are wanted.
        first, *heads = self.score_heads
        logit = first(y).astype(jnp.float32)
        levels = []
        for head, block in zip(heads, self.blocks, strict=True):
            y = block(nn.avg_pool(y, (2, 2), (2, 2)), train)
            levels.append(y)
            logit += upsample_bilinear(head(y).astype(jnp.float32), x.shape[1] // y.shape[1])
        return levels, nn.sigmoid(logit[..., 0])

    def features_at(self, levels: list[jax.Array], cell: jax.Array) -> jax.Array:
        """Levels and (B, K) flat cells of the input → (B, K, dim) float32 features, not normalised."""
        columns = 2 * levels[0].shape[2]
        place = jnp.stack([cell // columns, cell % columns], axis=-1).astype(jnp.float32) + 0.5
        read = [sample_bilinear(level, place * (level.shape[2] / columns) - 0.5) for level in levels]
        return self.feature_head(jnp.concatenate(read, axis=-1)).astype(jnp.float32)
