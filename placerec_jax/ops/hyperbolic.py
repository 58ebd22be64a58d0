"""The Poincaré ball of curvature −c: the open ball of radius 1/√c. Float32 always.

At the border float32 runs out of digits, so points are kept a little inside and arguments of artanh below 1.
"""

import jax
import jax.numpy as jnp

from placerec_jax.ops.contrastive import similarities

_LEAST_NORM = 1e-5
_LARGEST_TANH = 15.0  # arguments are clamped to it; tanh of more is 1 in float32
_BORDER = 1e-3  # share of the radius that points keep away from the border
_LARGEST_ARTANH = 1.0 - 1e-5
_TINY = 1e-5  # in the denominator of the Möbius sum
_TOUCHING = 1e-15  # squared distance below which two points are one, with no gradient


def _norm(x: jax.Array) -> jax.Array:
    """(..., D) → (..., 1) length; 0 with zero gradient for zeros."""
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def project(x: jax.Array, c: float) -> jax.Array:
    """(..., D) → the same points, those beyond (1 − 10⁻³)/√c drawn back to it."""
    x = x.astype(jnp.float32)
    largest = (1.0 - _BORDER) / c**0.5
    return x * jnp.minimum(1.0, largest / jnp.maximum(_norm(x), _LEAST_NORM))


def exp0(u: jax.Array, c: float) -> jax.Array:
    """(..., D) tangents at the origin → points of the ball: tanh(√c‖u‖) u/(√c‖u‖), then `project`."""
    u = u.astype(jnp.float32)
    scaled = c**0.5 * jnp.maximum(_norm(u), _LEAST_NORM)
    return project(jnp.tanh(jnp.minimum(scaled, _LARGEST_TANH)) * u / scaled, c)


def clip_length(u: jax.Array, radius: float) -> jax.Array:
    """(..., D) → the same vectors, none longer than `radius`; a radius of 0 changes nothing."""
    if radius <= 0:
        return u
    return u * jnp.minimum(1.0, radius / jnp.maximum(_norm(u), _LEAST_NORM))


def mobius_add(u: jax.Array, v: jax.Array, c: float) -> jax.Array:
    """(..., D), (..., D) → (..., D) u ⊕ v."""
    uv = jnp.sum(u * v, axis=-1, keepdims=True)
    uu, vv = (jnp.sum(x * x, axis=-1, keepdims=True) for x in (u, v))
    numerator = (1 + 2 * c * uv + c * vv) * u + (1 - c * uu) * v
    return numerator / (1 + 2 * c * uv + c * c * uu * vv + _TINY)


def distance(x: jax.Array, y: jax.Array, c: float) -> jax.Array:
    """(..., D), (..., D) → (...) (2/√c) artanh(√c ‖(−x) ⊕ y‖)."""
    return _from_sum(_norm(mobius_add(-x, y, c))[..., 0], c)


def distance_arccosh(x: jax.Array, y: jax.Array, c: float) -> jax.Array:
    """`distance` in closed form: arccosh(1 + 2c‖x−y‖²/((1−c‖x‖²)(1−c‖y‖²)))/√c.

    Near zero, arccosh(1 + z) is taken as log1p(z + √(z(z + 2))), which does not cancel.
    """
    apart, xx, yy = (jnp.sum(v * v, axis=-1) for v in (x - y, x, y))
    z = 2 * c * apart / ((1 - c * xx) * (1 - c * yy))
    positive = z > 0
    z = jnp.where(positive, z, 1.0)
    return jnp.where(positive, jnp.log1p(z + jnp.sqrt(z * (z + 2))), 0.0) / c**0.5


def pairwise_distances(x: jax.Array, c: float) -> jax.Array:
    """(B, D) points of the ball → (B, B) `distance` of every two, the diagonal 0 with no gradient.

    ‖(−x) ⊕ y‖² is ‖x−y‖² over the denominator of the sum, so B² inner products suffice: nothing of B²·D is
    held.
    """
    x = x.astype(jnp.float32)
    products = similarities(x, x)
    squares = jnp.sum(x * x, axis=-1)
    apart = squares[:, None] + squares[None] - 2 * products
    denominator = 1 - 2 * c * products + c * c * squares[:, None] * squares[None]
    different = ~jnp.eye(len(x), dtype=bool) & (apart > _TOUCHING)
    root = jnp.sqrt(jnp.where(different, apart * denominator, 1.0)) / (denominator + _TINY)
    return jnp.where(different, _from_sum(jnp.where(different, root, 0.0), c), 0.0)


def _from_sum(norm: jax.Array, c: float) -> jax.Array:
    """(...) ‖(−x) ⊕ y‖ → distance."""
    return 2.0 / c**0.5 * jnp.arctanh(jnp.minimum(c**0.5 * norm, _LARGEST_ARTANH))
