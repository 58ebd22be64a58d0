"""Contrastive losses between the descriptors of two modalities that show the same places, pair by pair.

All are float32, whatever the descriptors are, and answer with one loss a pair, so that sums and means stay
exact.
"""

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST
_ABSENT = -1e30  # a logit; of infinite ones alone the gradient would be NaN


def similarities(a: jax.Array, b: jax.Array) -> jax.Array:
    """(M, D), (N, D) → (M, N) float32 inner products in full precision."""
    return jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32).T, precision=_HIGHEST)


def joint_infonce(
    a: jax.Array, b: jax.Array, temperature: jax.Array | float, negative: jax.Array
) -> jax.Array:
    """(B, D), (B, D) descriptors of B pairs → (B,) losses: one softmax over both directions.

    With S_ij = a_i·b_j: −S_ii/τ + log(Σ_j exp(S_ij/τ) + Σ_{j≠i} exp(S_ji/τ)), 2B − 1 logits a pair, of which
    one is the positive. Exchanging a and b changes nothing.

    Args:
      temperature: τ.
      negative: (B, B) bool, symmetric: whether pairs i and j are different places. The diagonal is not read.
    """
    logits = similarities(a, b) / temperature
    both = jnp.concatenate([_others(logits, negative), _others(logits.T, negative)], axis=1)
    return _against(jnp.diagonal(logits), both)


def clip_infonce(
    a: jax.Array, b: jax.Array, temperature: jax.Array | float, negative: jax.Array
) -> jax.Array:
    """Like `joint_infonce`, but the mean of two softmaxes over B logits, one a direction (CLIP)."""
    logits = similarities(a, b) / temperature
    forward, backward = (
        _against(jnp.diagonal(logits), _others(direction, negative)) for direction in (logits, logits.T)
    )
    return 0.5 * (forward + backward)


def _others(logits: jax.Array, negative: jax.Array) -> jax.Array:
    """(B, B) → the same, out of the sum where they are no negatives."""
    return jnp.where(negative & ~jnp.eye(len(logits), dtype=bool), logits, _ABSENT)


def _against(positive: jax.Array, others: jax.Array) -> jax.Array:
    """(B,), (B, N) → (B,) −log of the share of the positive; exact also where hardly anything is left."""
    return jax.nn.softplus(jax.nn.logsumexp(others, axis=1) - positive)


def different_places(position: jax.Array, sequence: jax.Array, radius: float) -> jax.Array:
    """(B, 2) metres, (B,) → (B, B) bool: whether two pairs may serve each other as negatives.

    They are of different sequences, or farther apart than `radius`. With a radius of 0 all pairs may, as the
    published training has it, even two of one place.
    """
    if radius <= 0:
        return jnp.ones((len(position), len(position)), bool)
    apart = position[:, None] - position[None]
    far = jnp.sum(apart * apart, axis=-1) > radius * radius
    return far | (sequence[:, None] != sequence[None])


# By `config.model.contrast.form`: (a, b, temperature, negative) → a loss for every pair.
FORMS = {"joint": joint_infonce, "clip": clip_infonce}
