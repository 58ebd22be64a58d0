"""NetVLAD (Arandjelović et al., CVPR 2016): one descriptor for a set of features of any size.

`NetVLAD` is the paper's own form; `LoupeNetVLAD` is that of Miech et al. (arXiv 1706.06905), which methods on
range images use: centres apart from the assignment, a projection, a gate.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.modules.batch_norm import MaskedBatchNorm
from placerec_jax.ops.unit_norm import unit_norm

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


class LoupeNetVLAD(nn.Module):
    """(B, T, D) tokens, in any number and order → (B, width) float32 descriptor.

    VLAD_k = Σ_t a_tk x_t − (Σ_t a_tk) c_k with a = softmax(xW + b); every cluster and then the whole at unit
    length, one linear layer without bias to `width`, the gate x·σ(xG + g), unit length. See
    `aggregation.SaliencyNetVLAD` for weighted tokens and batch normalisation of the descriptor.

    Attributes:
        batch_norm: normalise xW and xG over the batch instead of adding the biases b and g.
        unit: bring the descriptor to unit length.
    """

    clusters: int = 64
    width: int = 256
    dtype: jnp.dtype = jnp.float32
    batch_norm: bool = False
    unit: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        dim = tokens.shape[-1]
        init = nn.initializers.normal(dim**-0.5)
        tokens = tokens.astype(self.dtype)
        kernel = self.param("assignment", init, (dim, self.clusters))
        centres = self.param("centres", init, (dim, self.clusters))
        logits = (tokens @ kernel.astype(self.dtype)).astype(jnp.float32)
        share = jax.nn.softmax(self._shifted("assignment", logits, dim**-0.5, train), axis=-1)
        share = share.astype(self.dtype)  # before either sum, so that they are of the same shares
        # Sums over a thousand tokens and differences of them: float32 whatever the network computes in.
        sums = jnp.einsum("btk,btd->bdk", share, tokens, preferred_element_type=jnp.float32)
        sums = sums - share.astype(jnp.float32).sum(axis=1)[:, None] * centres
        flat = unit_norm(unit_norm(sums, axis=1).reshape(len(tokens), dim * self.clusters))
        x = flat @ self.param("projection", init, (dim * self.clusters, self.width))
        deviation = self.width**-0.5
        gate = x @ self.param("gate", nn.initializers.normal(deviation), (self.width, self.width))
        x = x * jax.nn.sigmoid(self._shifted("gate", gate, deviation, train))
        return unit_norm(x) if self.unit else x

    def _shifted(self, name: str, x: jax.Array, deviation: float, train: bool) -> jax.Array:
        if self.batch_norm:
            return MaskedBatchNorm(name=f"{name}_bn")(x, train)
        return x + self.param(f"{name}_bias", nn.initializers.normal(deviation), x.shape[-1:])
