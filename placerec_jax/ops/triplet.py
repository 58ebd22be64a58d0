"""Triplet losses over one anchor, its positives and its negatives."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def lazy_triplet(
    anchor: jax.Array, positives: jax.Array, negatives: jax.Array, margin: float, form: str = "hinge"
) -> jax.Array:
    """(B, D), (B, P, D), (B, N, D) descriptors → (B,) losses between the anchor's squared distances.

    Lazy: of the positives the farthest counts alone, of the negatives all. Both forms are 0 or less when
    every negative is farther by the margin than every positive.

    Args:
      margin: α, in squared distance.
      form: of FORMS.
    """
    anchor, positives, negatives = (x.astype(jnp.float32) for x in (anchor, positives, negatives))
    to_positives = jnp.square(anchor[:, None] - positives).sum(axis=-1)
    to_negatives = jnp.square(anchor[:, None] - negatives).sum(axis=-1)
    return FORMS[form](to_positives, to_negatives, margin)


def _hinge(to_positives: jax.Array, to_negatives: jax.Array, margin: float) -> jax.Array:
    """Σ_n max(0, α + max_p d_p − d_n), as the code of OverlapTransformer and CVTNet has it."""
    hardest = to_positives.max(axis=1, keepdims=True)
    return jnp.maximum(margin + hardest - to_negatives, 0.0).sum(axis=1)


def _paper(to_positives: jax.Array, to_negatives: jax.Array, margin: float) -> jax.Array:
    """n_pos (α + max_p d_p) − Σ_n d_n, as EINet's equation 2 is printed: no hinge, hence no end."""
    return to_positives.shape[1] * (margin + to_positives.max(axis=1)) - to_negatives.sum(axis=1)


FORMS: dict[str, Callable[[jax.Array, jax.Array, float], jax.Array]] = {"hinge": _hinge, "paper": _paper}
