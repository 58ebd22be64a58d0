"""Vectors of unit length, as torch's `normalize` makes them."""

import jax
import jax.numpy as jnp


def unit_norm(x: jax.Array, axis: int = -1, eps: float = 1e-12) -> jax.Array:
    """x / max(‖x‖, eps) along `axis`, in float32.

    A scale of x cancels exactly, however small, down to a length of `eps`; shorter vectors, zero among them,
    keep their direction and a finite gradient.
    """
    x = x.astype(jnp.float32)
    # Under the root, not on the norm: the derivative of a root at zero is infinite.
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), eps * eps))
