"""NetVLAD (Arandjelović et al., CVPR 2016): one descriptor for a set of features of any size."""

import jax
import jax.numpy as jnp
from flax import linen as nn

_TINY = 1e-12  # under the root: the norm of nothing, and its gradient, are finite


def l2_normalize(x: jax.Array, axis: int = -1) -> jax.Array:
    """x / ‖x‖ along `axis`; zeros stay zeros, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=True) + _TINY)


class NetVLAD(nn.Module):
    """(B, K, D) features of unit length, (B, K) mask → (B, clusters · D) descriptor of unit length.

    Residuals to `clusters` centres, summed under a soft assignment that starts as that of the nearest centre
    with sharpness `alpha`; each cluster and then the whole are normalised. Masked features count for nothing;
    of none the descriptor is zero.
    """

    clusters: int = 16
    alpha: float = 10.0

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        dim = x.shape[-1]
        x = x.astype(jnp.float32)
        centres = self.param("centres", nn.initializers.normal(dim**-0.5), (self.clusters, dim))
        kernel = self.param("kernel", lambda _: 2 * self.alpha * centres.T)
        bias = self.param("bias", lambda _: -self.alpha * jnp.sum(centres**2, axis=-1))
        share = jax.nn.softmax(x @ kernel + bias, axis=-1) * mask[..., None]
        sums = jnp.einsum("bkc,bkd->bcd", share, x) - share.sum(axis=1)[..., None] * centres
        return l2_normalize(l2_normalize(sums).reshape(len(x), self.clusters * dim))
