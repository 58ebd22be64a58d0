"""Unbalanced optimal transport with entropy: soft matches between two sets of key points.

The plan T minimises ⟨C, T⟩ + ε KL(T | 1) + γ KL(T·1 | p) + γ KL(Tᵀ·1 | q) with uniform p and q, so that a
point without a partner may stay unmatched at the price γ; FLOT (Puy et al., ECCV 2020) and LCDNet (Cattaneo
et al., T-RO 2022) match points this way.
"""

import functools

import jax
import jax.numpy as jnp

_CLOSED = -1e9  # log kernel of a pair that cannot be matched: finite, and exp of it is exactly zero


def unbalanced_sinkhorn(
    cost: jax.Array,
    epsilon: jax.Array,
    gamma: jax.Array,
    iterations: int,
    row_mask: jax.Array | None = None,
    column_mask: jax.Array | None = None,
) -> jax.Array:
    """(…, M, N) cost → (…, M, N) float32 plan after a fixed number of iterations, in log form.

    With u = f/ε, v = g/ε and ρ = γ/(γ+ε) an iteration is v ← ρ(log q − LSE_i(u − C/ε)), then
    u ← ρ(log p − LSE_j(v − C/ε)), begun at u = log p; T = exp(u + v − C/ε). Nothing is divided, hence no
    small constant stands in a denominator.

    Args:
      cost: finite where rows and columns are valid; anything elsewhere.
      epsilon, gamma: positive scalars, or (…) as the batch. γ = ∞ asks for exact marginals.
      iterations: 5 in LCDNet.
      row_mask, column_mask: (…, M) and (…, N) bool, None for all. Marginals are uniform over what is valid,
        so that padding changes nothing; masked rows and columns carry exactly no mass and no gradient.

    Returns:
      the plan, whose mass is near 1 for small ε only. The backward pass computes the kernels again instead of
      keeping two (…, M, N) arrays for every iteration.
    """
    cost = cost.astype(jnp.float32)
    rows, columns = cost.shape[-2:]
    batch = cost.shape[:-2]
    row_mask = jnp.ones((*batch, rows), bool) if row_mask is None else row_mask
    column_mask = jnp.ones((*batch, columns), bool) if column_mask is None else column_mask
    pair_mask = row_mask[..., :, None] & column_mask[..., None, :]

    epsilon = jnp.asarray(epsilon, jnp.float32)[..., None]
    rho = 1 / (1 + epsilon / jnp.asarray(gamma, jnp.float32)[..., None])  # γ = ∞ is 1, not ∞/∞
    log_kernel = jnp.where(pair_mask, -jnp.where(pair_mask, cost, 0.0) / epsilon[..., None], _CLOSED)
    log_p, log_q = _log_uniform(row_mask), _log_uniform(column_mask)

    # A row without any open pair would get a potential of +1e9 from its empty sum: masked ones are kept at 0.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def iterate(potentials: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        u, _ = potentials
        v = rho * (log_q - jax.nn.logsumexp(u[..., :, None] + log_kernel, axis=-2))
        v = jnp.where(column_mask, v, 0.0)
        u = rho * (log_p - jax.nn.logsumexp(v[..., None, :] + log_kernel, axis=-1))
        return (jnp.where(row_mask, u, 0.0), v), None

    start = (jnp.broadcast_to(log_p, (*batch, rows)), jnp.zeros((*batch, columns), jnp.float32))
    (u, v), _ = jax.lax.scan(iterate, start, None, length=iterations)
    log_plan = u[..., :, None] + v[..., None, :] + log_kernel
    return jnp.where(pair_mask, jnp.exp(jnp.where(pair_mask, log_plan, 0.0)), 0.0)


def soft_targets(plan: jax.Array, target_xy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(…, M, N) plan, (…, N, 2|3) finite targets (m) → (…, M, 2|3) mean target of every row, (…, M) its mass.

    A row that carries no mass gets the target 0 and the weight 0.
    """
    weight = plan.sum(axis=-1)
    total = jnp.einsum("...mn,...nd->...md", plan, target_xy, precision="highest")
    return total / (weight[..., None] + 1e-8), weight


def _log_uniform(mask: jax.Array) -> jax.Array:
    """(…, N) mask → (…, N) log of the uniform marginal over the valid; 0 where masked."""
    count = mask.sum(axis=-1, keepdims=True).astype(jnp.float32)
    return jnp.where(mask, -jnp.log(jnp.maximum(count, 1.0)), 0.0)
