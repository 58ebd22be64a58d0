"""Whether two sets of descriptors relate their members alike: by distance, by angle, by hyperbolic distance.

Relational distillation (Park et al., CVPR 2019) between the two modalities of B places; gradients flow to
both. Every loss is a float32 scalar, the mean of smooth-L1 (β = 1) over all entries, the zeros of diagonals
included. Of two places the normalised distance is always 1 and of one there is none: below three, no loss
here says anything.
"""

import functools

import jax
import jax.numpy as jnp

from placerec_jax.ops import hyperbolic
from placerec_jax.ops.contrastive import similarities

LEAST_BATCH = 3

_LEAST_SQUARE = 1e-12  # of distances: float32 has nothing to say about less
_HIGHEST = jax.lax.Precision.HIGHEST


def smooth_l1(x: jax.Array) -> jax.Array:
    """x²/2 up to |x| = 1, then |x| − 1/2."""
    size = jnp.abs(x)
    return jnp.where(size < 1.0, 0.5 * x * x, size - 0.5)


def euclidean_relation(a: jax.Array, b: jax.Array) -> jax.Array:
    """(B, D), (B, D) → (): how differently a and b are spread, up to scale."""
    return jnp.mean(smooth_l1(_of_unit_mean(_distances(a)) - _of_unit_mean(_distances(b))))


def hyperbolic_relation(
    a: jax.Array, b: jax.Array, curvature: float = 0.1, clip_radius: float = 0.0
) -> jax.Array:
    """`euclidean_relation` with distances in the Poincaré ball, after `exp0`.

    Args:
      clip_radius: longer descriptors are shortened to it first; 0: none is.
    """

    def of(x: jax.Array) -> jax.Array:
        points = hyperbolic.exp0(hyperbolic.clip_length(x.astype(jnp.float32), clip_radius), curvature)
        return _of_unit_mean(hyperbolic.pairwise_distances(points, curvature))

    return jnp.mean(smooth_l1(of(a) - of(b)))


def angle_relation(a: jax.Array, b: jax.Array) -> jax.Array:
    """(B, D), (B, D) → (): how differently the angles between any two members are, seen from any third.

    Θ_ijk = e_ij·e_ik with unit directions e_ij from i to j. One i after the other, forwards and backwards:
    memory is O(B² + BD), time O(B³D).
    """
    a, b = (jnp.asarray(x, jnp.float32) for x in (a, b))

    # Recomputed backwards, or the (B, B) angles of every i would be kept after all.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def seen_from(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        return total + jnp.mean(smooth_l1(_angles(a, i) - _angles(b, i))), None

    total, _ = jax.lax.scan(seen_from, jnp.float32(0), jnp.arange(len(a)))
    return total / len(a)


def _angles(f: jax.Array, i: jax.Array) -> jax.Array:
    """(B, D), () → (B, B) cosines between the directions from member i; 0 where two members are one."""
    away = f - f[i]
    square = jnp.sum(away * away, axis=-1, keepdims=True)
    apart = square > _LEAST_SQUARE
    direction = jnp.where(apart, away * jax.lax.rsqrt(jnp.where(apart, square, 1.0)), 0.0)
    return jnp.matmul(direction, direction.T, precision=_HIGHEST)


def _distances(f: jax.Array) -> jax.Array:
    """(B, D) → (B, B) Euclidean distances, the diagonal exactly 0 with no gradient."""
    f = f.astype(jnp.float32)
    squares = jnp.sum(f * f, axis=-1)
    apart = squares[:, None] + squares[None] - 2 * similarities(f, f)
    itself = jnp.eye(len(f), dtype=bool)
    return jnp.where(itself, 0.0, jnp.sqrt(jnp.maximum(jnp.where(itself, 1.0, apart), _LEAST_SQUARE)))


def _of_unit_mean(distances: jax.Array) -> jax.Array:
    """(B, B) with a diagonal of zeros → divided by the mean off the diagonal.

    Not by the mean of what is above 0, as published: rounding would decide what that is.
    """
    count = max(len(distances) * (len(distances) - 1), 1)  # a single member is at no distance from any other
    return distances / jnp.maximum(jnp.sum(distances) / count, _LEAST_SQUARE)
