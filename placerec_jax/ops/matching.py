"""Verification of a retrieved place: mutual nearest neighbours, and the motion most of them agree on."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from placerec_jax.ops.rigid_fit import fit_se2

_REFITS = 2  # on the inliers, each followed by a new selection of them
_IMPOSSIBLE = -2.0  # below every cosine


class Verification(NamedTuple):
    """The motion of `ransac_se2` and its support; identity, 0 and False where no hypothesis was possible."""

    pose: jax.Array  # (…, 3) target_T_source (x, y, yaw)
    inliers: jax.Array  # (…) int32
    inlier_mask: jax.Array  # (…, K) bool
    score: jax.Array  # (…) Σ over inliers of 1 − (residual/radius)²


def mutual_nearest(
    a: jax.Array, b: jax.Array, a_mask: jax.Array, b_mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(…, M, D), (…, N, D) features and their masks → (…, M) int32 partner, (…, M) cosine.

    j is the partner of i if it is the most similar to i of all b, and i to j of all a; else the partner is −1
    and the cosine −1.
    """
    a, b = (x.astype(jnp.float32) for x in (a, b))
    a, b = (x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (a, b))
    # Full precision: rounded to bfloat16 the nearest of similar features is another one.
    cosine = jnp.einsum("...md,...nd->...mn", a, b, precision="highest")
    cosine = jnp.where(a_mask[..., :, None] & b_mask[..., None, :], cosine, _IMPOSSIBLE)
    nearest_b, nearest_a = _first_largest(cosine, axis=-1), _first_largest(cosine, axis=-2)
    similarity = jnp.max(cosine, axis=-1)
    returned = jnp.take_along_axis(nearest_a, nearest_b, axis=-1)
    mutual = (returned == jnp.arange(a.shape[-2])) & (similarity > _IMPOSSIBLE)
    return jnp.where(mutual, nearest_b, -1).astype(jnp.int32), jnp.where(mutual, similarity, -1.0)


def ransac_se2(
    source_xy: jax.Array,
    target_xy: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    hypotheses: int = 1000,
    radius: float = 0.6,
    min_separation: float = 1.0,
) -> Verification:
    """(…, K, 2) points, (…, K, 2) their matches (m), (…, K) which are matches → the planar motion of most.

    Every hypothesis is the motion of two distinct matches, and all are judged at once: at most `hypotheses` ×
    K float32 for every pair of scans (1000 × 512: 2 MB), less where the compiler fuses the sum. The best is
    fitted again to its inliers, as long as that raises its score.

    Args:
      source_xy, target_xy, mask: coordinates of what is no match may be anything.
      key: one for the whole batch. Every element draws from it anew: what an element gives does not depend on
        the others, nor on padding.
      hypotheses: how many pairs of matches are drawn.
      radius: (m) an inlier's greatest residual.
      min_separation: (m) of the two points drawn; nearer ones score zero, as do pairs whose lengths in source
        and target differ by more than two radii.
    """
    batch = mask.shape[:-1]
    flat = [x.reshape(-1, *x.shape[len(batch) :]) for x in (source_xy, target_xy, mask)]
    verify = functools.partial(
        _verify, key=key, hypotheses=hypotheses, radius=radius, min_separation=min_separation
    )
    found = jax.vmap(verify)(*map(jax.lax.stop_gradient, flat))
    return Verification(*(x.reshape(*batch, *x.shape[1:]) for x in found))


def _verify(
    source: jax.Array,
    target: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    hypotheses: int,
    radius: float,
    min_separation: float,
) -> Verification:
    # NaN at a masked place would pass through its weight of zero.
    source, target = (jnp.where(mask[:, None], x.astype(jnp.float32), 0.0) for x in (source, target))
    score_of = functools.partial(_score, source=source, target=target, mask=mask, radius=radius)

    first, second = _distinct_pairs(mask, key, hypotheses)
    poses, possible = _motion_of_two(
        source[first], source[second], target[first], target[second], radius, min_separation
    )
    scores = jnp.where(possible, score_of(poses), 0.0)
    best = jnp.argmax(scores)
    pose, score = jnp.where(scores[best] > 0, poses[best], 0.0), scores[best]
    for _ in range(_REFITS):
        inlier = mask & (_residual_squared(pose, source, target) <= radius**2)
        refit = fit_se2(source, target, inlier.astype(jnp.float32))
        # Without any hypothesis there is nothing to raise: the identity may not win by chance.
        better = (score > 0) & (score_of(refit) > score)
        pose, score = jnp.where(better, refit, pose), jnp.where(better, score_of(refit), score)
    inlier = mask & (_residual_squared(pose, source, target) <= radius**2) & (score > 0)
    return Verification(pose, inlier.sum(dtype=jnp.int32), inlier, score)


def _distinct_pairs(mask: jax.Array, key: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """(K,) mask → (count,), (count,) places of two distinct valid entries; of one twice if there are not two.

    Drawn among the ranks of the valid entries, so that nothing is drawn in vain and drawn again.
    """
    valid = mask.sum()
    places = jnp.argsort(~mask, stable=True)
    first_key, step_key = jax.random.split(key)
    first = jax.random.randint(first_key, (count,), 0, jnp.maximum(valid, 1))
    step = jax.random.randint(step_key, (count,), 1, jnp.maximum(valid, 2))
    second = (first + step) % jnp.maximum(valid, 1)
    return places[first], places[second]


def _motion_of_two(
    source_a: jax.Array,
    source_b: jax.Array,
    target_a: jax.Array,
    target_b: jax.Array,
    radius: float,
    min_separation: float,
) -> tuple[jax.Array, jax.Array]:
    """(H, 2) twice and their partners → (H, 3) target_T_source, (H,) whether the two determine one."""
    source_step, target_step = source_b - source_a, target_b - target_a
    source_length, target_length = (jnp.linalg.norm(x, axis=-1) for x in (source_step, target_step))
    possible = (source_length >= min_separation) & (jnp.abs(source_length - target_length) <= 2 * radius)
    weight = jnp.ones((len(source_a), 2))
    pair = (jnp.stack([a, b], axis=-2) for a, b in ((source_a, source_b), (target_a, target_b)))
    return fit_se2(*pair, weight), possible


def _score(
    pose: jax.Array, source: jax.Array, target: jax.Array, mask: jax.Array, radius: float
) -> jax.Array:
    """(…, 3) poses, (K, 2), (K, 2), (K,) → (…) Σ over inliers of 1 − (residual/radius)².

    Rather than their number: positions are centres of cells, and many hypotheses tie in number.
    """
    share = 1 - _residual_squared(pose, source, target) / radius**2
    return jnp.sum(jnp.where(mask, jnp.maximum(share, 0.0), 0.0), axis=-1)


def _residual_squared(pose: jax.Array, source: jax.Array, target: jax.Array) -> jax.Array:
    """(…, 3) poses, (K, 2), (K, 2) → (…, K) m²."""
    # The compiler would compute sine and cosine again for every point: on a CPU some fifty times slower.
    terms = jax.lax.optimization_barrier((jnp.cos(pose[..., 2]), jnp.sin(pose[..., 2])))
    cos, sin, x, y = (term[..., None] for term in (*terms, pose[..., 0], pose[..., 1]))
    by_x = cos * source[:, 0] - sin * source[:, 1] + x - target[:, 0]
    by_y = sin * source[:, 0] + cos * source[:, 1] + y - target[:, 1]
    return by_x**2 + by_y**2


def _first_largest(x: jax.Array, axis: int) -> jax.Array:
    """argmax along one of the last two axes of (…, M, N).

    By two reductions of float32, which a CPU computes in vectors; that of jnp.argmax it does not.
    """
    size = x.shape[axis]
    index = jnp.arange(size, dtype=jnp.float32)
    index = index[:, None] if axis == -2 else index
    is_largest = x >= jnp.max(x, axis=axis, keepdims=True)
    return jnp.min(jnp.where(is_largest, index, size - 1), axis=axis).astype(jnp.int32)
