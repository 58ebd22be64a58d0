"""How much a CLS token attends to every other: which tokens matter, without labels.

(SaliencyI2PLoc, arXiv 2412.15577; the arithmetic is that of its released code.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

SOURCES = ("recomputed_cls", "forward_block")


def cls_saliency(
    tokens: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    heads: int,
    mask: jax.Array | None = None,
    normalise: bool = True,
    stop_gradient: bool = True,
) -> jax.Array:
    """(B, T, C) tokens with CLS first → (B, T) float32: attention of CLS to each, summed over heads.

    s_n = Σ_h softmax_n(q_h · k_hn / √d), where q is CLS's query and k are the keys. Only that row of the
    (T × T) attention is computed. Rows sum to `heads`; masked tokens get 0.

    Args:
        kernel, bias: (C, 3C) and (3C,) or None: a block's projection to queries, keys and values.
        normalise: centre and scale every query and key over its head, without parameters (eps 1e-5).
        stop_gradient: let no gradient through, as released.
    """
    tokens = tokens.astype(jnp.float32)
    dim = tokens.shape[-1]
    bias = jnp.zeros(3 * dim) if bias is None else bias
    if stop_gradient:
        tokens, kernel, bias = jax.lax.stop_gradient((tokens, kernel, bias))

    def project(x: jax.Array, part: slice) -> jax.Array:
        y = (x @ kernel[:, part] + bias[part]).reshape(*x.shape[:-1], heads, dim // heads)
        return _layer_norm(y) if normalise else y

    query = project(tokens[:, 0], slice(0, dim))
    key = project(tokens, slice(dim, 2 * dim))
    logits = jnp.einsum("bhd,bthd->bht", query, key) * (dim // heads) ** -0.5
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1).sum(axis=1)


def _layer_norm(x: jax.Array) -> jax.Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + 1e-5)


def token_weight(
    saliency: jax.Array,
    mask: jax.Array | None,
    heads: int,
    squash: str = "sigmoid",
    reduce: str = "sum",
    keep: float = 1.0,
) -> jax.Array:
    """(B, T) saliency that sums to `heads` → (B, T) weight of each token in the aggregation.

    Args:
        squash: one of `SQUASHES`.
        reduce: "sum" over the heads, as it is, or their "mean".
        keep: the share of real tokens that keep a weight, the most salient first; the rest get 0.
    """
    if squash not in SQUASHES or reduce not in REDUCTIONS:
        raise ValueError(
            f"token_weight: squash {squash!r}, reduce {reduce!r}; expected one of {tuple(SQUASHES)} and of "
            f"{REDUCTIONS}"
        )
    if not 0 < keep <= 1:
        raise ValueError(f"token_weight: keep is {keep}; expected a share above 0 and at most 1")
    real = jnp.ones(saliency.shape, bool) if mask is None else mask
    if reduce == "mean":
        saliency = saliency / heads
    weight = SQUASHES[squash](saliency, real)
    return jnp.where(real & _most_salient(saliency, real, keep), weight, 0.0)


def _most_salient(saliency: jax.Array, real: jax.Array, keep: float) -> jax.Array:
    if keep == 1.0:
        return real
    place = jnp.argsort(jnp.argsort(jnp.where(real, -saliency, jnp.inf), axis=-1), axis=-1)
    return place < jnp.ceil(keep * real.sum(axis=-1, keepdims=True))


def _mean_one(saliency: jax.Array, real: jax.Array) -> jax.Array:
    total = jnp.where(real, saliency, 0.0).sum(axis=-1, keepdims=True)
    return saliency * real.sum(axis=-1, keepdims=True) / jnp.maximum(total, 1e-12)


def _minmax(saliency: jax.Array, real: jax.Array) -> jax.Array:
    low = jnp.where(real, saliency, jnp.inf).min(axis=-1, keepdims=True)
    high = jnp.where(real, saliency, -jnp.inf).max(axis=-1, keepdims=True)
    return jnp.where(high > low, (saliency - low) / jnp.maximum(high - low, 1e-12), 1.0)


REDUCTIONS = ("sum", "mean")
# "sigmoid" is the released code's, and nearly flat: saliency of a thousand tokens is about 0.003 each.
SQUASHES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "sigmoid": lambda saliency, real: jax.nn.sigmoid(saliency),
    "none": lambda saliency, real: saliency,
    "mean1": _mean_one,
    "minmax": _minmax,
}
