"""One descriptor for the weighted tokens of an encoder: NetVLAD guided by saliency, and simpler ways.

Every aggregator takes (B, T, C) tokens of unit length, (B, T) weights or None (all 1), (B, T) mask or None
(all real), and gives (B, width) float32 of unit length. A token of weight 0 counts for nothing, as if masked;
a masked one stays out of the batch statistics, too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.modules.batch_norm import MaskedBatchNorm
from placerec_jax.modules.vit import token_init
from placerec_jax.ops.unit_norm import unit_norm


class SaliencyNetVLAD(nn.Module):
    """(B, T, C) tokens → (B, width): residuals to cluster centres, summed by assignment times weight.

    Each cluster and the whole at unit length, which cancels any factor common to all weights; then a linear
    projection, batch normalisation and a context gate (Miech et al., arXiv 1706.06905).

    Attributes:
        assignment_norm: batch normalisation of the assignment's logits over batch and tokens.
    """

    width: int = 256
    clusters: int = 64
    assignment_norm: bool = True

    @nn.compact
    def __call__(
        self, tokens: jax.Array, weight: jax.Array | None, mask: jax.Array | None, train: bool
    ) -> jax.Array:
        tokens = _without_padding(tokens.astype(jnp.float32), mask)
        dim = tokens.shape[-1]
        init = nn.initializers.normal(dim**-0.5)
        logits = tokens @ self.param("assignment", init, (dim, self.clusters))
        if self.assignment_norm:
            logits = MaskedBatchNorm(name="assignment_bn")(logits, train, mask)
        share = jax.nn.softmax(logits, axis=-1)
        if weight is not None or mask is not None:
            share = share * _real_weight(tokens, weight, mask)[..., None]
        centres = self.param("centres", init, (dim, self.clusters))
        sums = jnp.einsum("btk,btc->bck", share, tokens) - centres * share.sum(axis=1)[:, None]
        flat = unit_norm(unit_norm(sums, axis=1).reshape(len(tokens), dim * self.clusters))
        x = flat @ self.param("projection", init, (dim * self.clusters, self.width))
        x = MaskedBatchNorm(name="descriptor_bn")(x, train)
        gates = x @ self.param("gate", nn.initializers.normal(self.width**-0.5), (self.width, self.width))
        return unit_norm(x * jax.nn.sigmoid(MaskedBatchNorm(name="gate_bn")(gates, train)))


class GeM(nn.Module):
    """Generalised mean (Radenović et al., arXiv 1711.02512), its power learned from 3 on, then linear."""

    width: int = 256

    @nn.compact
    def __call__(
        self, tokens: jax.Array, weight: jax.Array | None, mask: jax.Array | None, train: bool
    ) -> jax.Array:
        del train
        power = self.param("power", nn.initializers.constant(3.0), ())
        positive = jnp.maximum(_without_padding(tokens.astype(jnp.float32), mask), 1e-6)
        # A token of 1e-6 alone gives 1e-18 under the root, which float32 holds.
        mean = _weighted_mean(positive**power, weight, mask)
        return _project(jnp.maximum(mean, 1e-30) ** (1 / power), self.width)


class MeanToken(nn.Module):
    """The weighted mean of the tokens, then linear."""

    width: int = 256

    @nn.compact
    def __call__(
        self, tokens: jax.Array, weight: jax.Array | None, mask: jax.Array | None, train: bool
    ) -> jax.Array:
        del train
        tokens = _without_padding(tokens.astype(jnp.float32), mask)
        return _project(_weighted_mean(tokens, weight, mask), self.width)


class ClsToken(nn.Module):
    """The first token, then linear; weights have no say."""

    width: int = 256

    @nn.compact
    def __call__(
        self, tokens: jax.Array, weight: jax.Array | None, mask: jax.Array | None, train: bool
    ) -> jax.Array:
        del weight, mask, train
        return _project(tokens[:, 0].astype(jnp.float32), self.width)


class SMD(nn.Module):
    """Mixes the tokens of every channel, T → 4T → T → `slots` (SAIG, arXiv 2302.01572), then linear.

    The number of tokens is part of its parameters. Weights scale the tokens.
    """

    width: int = 256
    slots: int = 8

    @nn.compact
    def __call__(
        self, tokens: jax.Array, weight: jax.Array | None, mask: jax.Array | None, train: bool
    ) -> jax.Array:
        del train
        count = tokens.shape[1]
        tokens = _without_padding(tokens.astype(jnp.float32), mask)
        if weight is not None or mask is not None:
            tokens = tokens * _real_weight(tokens, weight, mask)[..., None]
        x = jnp.swapaxes(tokens, 1, 2)
        x = nn.gelu(nn.Dense(4 * count, name="expand")(x), approximate=False)
        x = nn.Dense(self.slots, name="slots_out")(nn.Dense(count, name="contract")(x))
        return _project(x.reshape(len(x), -1), self.width)


def netvlad_original(width: int = 256) -> SaliencyNetVLAD:
    """NetVLAD without normalisation of the assignment."""
    return SaliencyNetVLAD(width, assignment_norm=False)


def _project(x: jax.Array, width: int) -> jax.Array:
    return unit_norm(nn.Dense(width, kernel_init=token_init, name="projection")(x))


def _real_weight(tokens: jax.Array, weight: jax.Array | None, mask: jax.Array | None) -> jax.Array:
    """(B, T): the weights, 0 where masked; 1 where neither is given."""
    weight = jnp.ones(tokens.shape[:2], jnp.float32) if weight is None else weight.astype(jnp.float32)
    return weight if mask is None else jnp.where(mask, weight, 0.0)


def _without_padding(tokens: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Masked tokens become 0: times a weight of 0, NaN would stay what it is."""
    return tokens if mask is None else jnp.where(mask[..., None], tokens, 0.0)


def _weighted_mean(x: jax.Array, weight: jax.Array | None, mask: jax.Array | None) -> jax.Array:
    share = _real_weight(x, weight, mask)
    total = share.sum(axis=1, keepdims=True)
    return jnp.einsum("bt,btc->bc", share / jnp.maximum(total, 1e-12), x)


AGGREGATORS: dict[str, Callable[..., nn.Module]] = {
    "netvlad": SaliencyNetVLAD,
    "netvlad_original": netvlad_original,
    "gem": GeM,
    "mean": MeanToken,
    "cls": ClsToken,
    "smd": SMD,
}
# Those that normalise over the batch: of one descriptor alone nothing is left in training.
NORMALISED = ("netvlad", "netvlad_original")
