"""The gradients of one update, by `config.train.gradients`: how a batch of B examples is gone through.

`whole`: all at once. The other two cut it into `config.train.accumulate` micro-batches of b examples and keep
the activations of one of them at a time:

- `accumulated`: encoders AND loss see one micro-batch. What compares examples with each other (negatives,
  relations) compares the b of a micro-batch.
- `cached` (Gao et al., "Scaling deep contrastive learning batch size", 2021): the encoders see one
  micro-batch, the loss all B. First every micro-batch is encoded and only the representations are kept; then
  comes the gradient of the loss with respect to them; then every micro-batch is encoded again and its share
  of that gradient goes on into the parameters. It costs a second forward pass.

In both, batch normalisation sees the b examples of a micro-batch, and running statistics move once for each.
Loss terms are (sum, weight), and the mean is over the whole batch: micro-batches with more weight count more.
Micro-batch m of n has the rows m, m + n, m + 2n, ...: each is spread over all devices without moving a row,
and is the same whatever their number.
"""

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import PartitionSpec

from placerec_jax.errors import ConfigError
from placerec_jax.modules.sharding import BATCH_AXES, constrain_batch
from placerec_jax.training.optimizer import split_parameters
from placerec_jax.training.partition import join_tree, split_tree
from placerec_jax.training.sharding import constrain_parameters, leaf_name
from placerec_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Terms = dict[str, tuple[jax.Array, jax.Array]]  # (sum, weight), as a method's `loss` returns them

_TINY = 1e-12  # a term with no weight in the batch (all its targets masked) counts as zero


class Gradients(NamedTuple):
    """What one way through a batch found."""

    loss: jax.Array
    means: dict[str, jax.Array]  # of the loss terms, before their weights of the config
    gradients: Any  # as the parameters, with None where one is frozen
    batch_stats: Any
    nonfinite: dict[str, Any]  # {encoder: tree of () bool}: its floating-point representations


@dataclasses.dataclass(frozen=True)
class Objective:
    """The loss of a method as a function of its parameters."""

    method: ModuleType
    cfg: ml_collections.ConfigDict
    model: nn.Module

    def represent(self, params: Any, batch_stats: Any, batch: Batch, rng: jax.Array) -> tuple[Any, Any]:
        """Representations of all encoders, and the running statistics after them."""
        representations, updated = self.model.apply(
            {"params": params, "batch_stats": batch_stats},
            batch,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        return representations, updated.get("batch_stats", {})

    def terms(self, representations: Any, batch: Batch) -> Terms:
        """The loss terms; ConfigError where one has no weight in the config."""
        terms = self.method.loss(self.cfg, representations, batch)
        for name in terms:
            if name not in self.cfg.loss:
                raise ConfigError(
                    f"config.loss has no weight for the term {name!r} of method {self.cfg.method!r}; it has "
                    f"{sorted(self.cfg.loss)}."
                )
        return terms

    def total(self, means: dict[str, jax.Array]) -> jax.Array:
        """Σ of the terms' means, weighted as the config says."""
        return sum(self.cfg.loss[name] * mean for name, mean in means.items())


def loss_and_gradients(objective: Objective, state: TrainState, batch: Batch) -> Gradients:
    """Loss and gradients of `batch` {name: (B, ...)} by `GRADIENTS[config.train.gradients]`."""
    return GRADIENTS[objective.cfg.train.gradients](objective, state, batch)


def check(cfg: ml_collections.ConfigDict) -> None:
    """Raises ConfigError where `config.train` names no such way, or its micro-batches are not even."""
    t = cfg.train
    if t.gradients not in GRADIENTS:
        raise ConfigError(f"config.train.gradients is {t.gradients!r}; expected one of {sorted(GRADIENTS)}")
    if t.accumulate < 1 or t.batch_size % t.accumulate:
        raise ConfigError(
            f"config.train.accumulate is {t.accumulate}; expected at least 1 and a divisor of "
            f"config.train.batch_size ({t.batch_size}), the examples of one update."
        )
    if t.gradients == "whole" and t.accumulate != 1:
        raise ConfigError(
            f"config.train.accumulate is {t.accumulate} and config.train.gradients 'whole', which is one "
            "micro-batch; expected 'accumulated' (the loss sees a micro-batch) or 'cached' (it sees all)."
        )


# --- The ways through a batch


def _whole(objective: Objective, state: TrainState, batch: Batch) -> Gradients:
    trained, frozen = split_parameters(objective.cfg.optimizer, state.params)

    def loss(trained: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        params = join_tree(trained, frozen)
        representations, stats = objective.represent(params, state.batch_stats, batch, _rng(state))
        means = _means(objective.terms(representations, batch))
        return objective.total(means), (means, stats, _nonfinite(representations))

    (value, (means, stats, bad)), found = jax.value_and_grad(loss, has_aux=True)(trained)
    return Gradients(value, means, found, stats, bad)


def _accumulated(objective: Objective, state: TrainState, batch: Batch) -> Gradients:
    """∇ Σ_m S_m / Σ_m W_m = Σ_m (∇S_m − mean · ∇W_m) / Σ_m W_m, and the weight of all is known beforehand.

    A first loop over the micro-batches finds it. Where weights follow from the batch alone, as counts do,
    their gradient is a symbolic zero, nothing asks for the sums, and the compiler leaves the encoders out of
    that loop.
    """
    trained, frozen = split_parameters(objective.cfg.optimizer, state.params)
    micro = _micro_batches(objective, state, batch)

    def represent(trained: Any, stats: Any, piece: "_Piece") -> tuple[Any, Any]:
        return objective.represent(join_tree(trained, frozen), stats, piece.batch, piece.rng)

    def sums(stats: Any, piece: "_Piece") -> tuple[Any, Terms]:
        representations, stats = represent(trained, stats, piece)
        return stats, objective.terms(representations, piece.batch)

    totals = _sum_of_rows(jax.lax.scan(sums, state.batch_stats, micro)[1])
    scale = {name: 1.0 / jnp.maximum(weight, _TINY) for name, (_, weight) in totals.items()}
    # Below _TINY the weight is replaced by a constant, whose gradient is zero.
    mean = {name: jnp.where(w > _TINY, s * scale[name], 0.0) for name, (s, w) in totals.items()}

    def add(carry: tuple[Any, Any], piece: "_Piece") -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        found, stats = carry

        def share(trained: Any) -> tuple[jax.Array, tuple[Any, ...]]:
            representations, updated = represent(trained, stats, piece)
            terms = objective.terms(representations, piece.batch)
            shares = {name: (s - mean[name] * w) * scale[name] for name, (s, w) in terms.items()}
            return objective.total(shares), (updated, terms, _nonfinite(representations))

        gradient, (updated, terms, bad) = jax.grad(share, has_aux=True)(trained)
        return (_sum(objective, found, gradient), updated), (terms, bad)

    start = (_zeros(objective, trained), state.batch_stats)
    (found, stats), (terms, bad) = jax.lax.scan(add, start, micro)
    means = _means(_sum_of_rows(terms))
    return Gradients(objective.total(means), means, found, stats, jax.tree.map(jnp.any, bad))


def _cached(objective: Objective, state: TrainState, batch: Batch) -> Gradients:
    trained, frozen = split_parameters(objective.cfg.optimizer, state.params)
    micro = _micro_batches(objective, state, batch)
    count, rows = objective.cfg.train.accumulate, jax.tree.leaves(micro.batch)[0].shape[1]

    def represent(trained: Any, stats: Any, piece: "_Piece") -> tuple[Any, Any]:
        return objective.represent(join_tree(trained, frozen), stats, piece.batch, piece.rng)

    def encode(stats: Any, piece: "_Piece") -> tuple[Any, Any]:
        representations, stats = represent(trained, stats, piece)
        return stats, representations

    stats, stacked = jax.lax.scan(encode, state.batch_stats, micro)
    differentiable, others = _split_floats(_merge(stacked, count, rows))

    def loss(differentiable: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        means = _means(objective.terms(join_tree(differentiable, others), batch))
        return objective.total(means), means

    (value, means), wanted = jax.value_and_grad(loss, has_aux=True)(differentiable)

    def add(carry: tuple[Any, Any], piece: tuple["_Piece", Any]) -> tuple[tuple[Any, Any], None]:
        found, stats = carry
        piece, wanted = piece

        def floats(trained: Any) -> tuple[Any, Any]:
            representations, updated = represent(trained, stats, piece)
            return _split_floats(representations)[0], updated

        _, backward, updated = jax.vjp(floats, trained, has_aux=True)
        return (_sum(objective, found, backward(wanted)[0]), updated), None

    start = (_zeros(objective, trained), state.batch_stats)
    (found, _), _ = jax.lax.scan(add, start, (micro, _cut(wanted, count, rows)))
    bad = _nonfinite(join_tree(differentiable, others))
    return Gradients(value, means, found, stats, bad)


GRADIENTS: dict[str, Callable[[Objective, TrainState, Batch], Gradients]] = {
    "whole": _whole,
    "accumulated": _accumulated,
    "cached": _cached,
}


# --- Micro-batches


class _Piece(NamedTuple):
    """One micro-batch, or a stack of them: scanned over."""

    batch: Batch  # {name: (b, ...)}
    rng: jax.Array  # the same in every pass over it


def _rng(state: TrainState) -> jax.Array:
    return jax.random.fold_in(state.rng, state.step)


def _micro_batches(objective: Objective, state: TrainState, batch: Batch) -> _Piece:
    """{name: (B, ...)} → {name: (n, b, ...)} and n keys."""
    count = objective.cfg.train.accumulate
    rows = len(next(iter(batch.values())))
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    if rows % (count * devices):
        raise ConfigError(
            f"a batch of {rows} cannot be cut into {count} micro-batches that {devices} device(s) divide; "
            f"expected config.train.batch_size a multiple of config.train.accumulate x devices "
            f"({count * devices})."
        )
    rngs = jax.vmap(jax.random.fold_in, (None, 0))(_rng(state), jnp.arange(count))
    return _Piece(_cut(batch, count, rows // count), rngs)


def _cut(tree: Any, count: int, rows: int) -> Any:
    """Leaves (n·b·K, ...) → (n, b·K, ...); scalars, which all micro-batches share, → n equal parts."""

    def cut(leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 0:
            return jnp.broadcast_to(leaf / count, (count,))
        own = leaf.shape[0] // (count * rows)
        pieces = leaf.reshape(rows, count, own, *leaf.shape[1:]).swapaxes(0, 1)
        pieces = pieces.reshape(count, rows * own, *leaf.shape[1:])
        if jax.sharding.get_abstract_mesh().empty:
            return pieces
        return jax.lax.with_sharding_constraint(pieces, PartitionSpec(None, BATCH_AXES))

    return jax.tree.map(cut, tree)


def _merge(stacked: Any, count: int, rows: int) -> Any:
    """The inverse of `_cut` for representations (n, b·K, ...); of scalars (n,), all equal, the first."""

    def merge(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        if leaf.ndim == 1:
            return leaf[0]
        if leaf.shape[1] % rows:
            raise ConfigError(
                f"config.train.gradients 'cached' cannot join the representation {leaf_name(path)}: its "
                f"first axis is {leaf.shape[1]} long for a micro-batch of {rows}; expected a multiple. "
                "Use 'whole' or 'accumulated'."
            )
        own = leaf.shape[1] // rows
        whole = leaf.reshape(count, rows, own, *leaf.shape[2:]).swapaxes(0, 1)
        return constrain_batch(whole.reshape(count * rows * own, *leaf.shape[2:]))

    return jax.tree_util.tree_map_with_path(merge, stacked)


def _split_floats(tree: Any) -> tuple[Any, Any]:
    """(the floating-point leaves, all others)."""
    return split_tree(tree, lambda _, leaf: jnp.issubdtype(leaf.dtype, jnp.floating))


# --- Sums


def _means(terms: Terms) -> dict[str, jax.Array]:
    return {name: total / jnp.maximum(weight, _TINY) for name, (total, weight) in terms.items()}


def _sum_of_rows(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sum(axis=0), tree)


def _zeros(objective: Objective, params: Any) -> Any:
    return constrain_parameters(jax.tree.map(jnp.zeros_like, params), objective.cfg.mesh)


def _sum(objective: Objective, total: Any, more: Any) -> Any:
    return constrain_parameters(jax.tree.map(jnp.add, total, more), objective.cfg.mesh)


def _nonfinite(representations: dict[str, Any]) -> dict[str, Any]:
    """{encoder: tree of () bool} of the floating-point leaves: whether one holds a NaN or an infinity."""
    floats, _ = _split_floats(representations)
    return jax.tree.map(nonfinite, floats)


def nonfinite(x: jax.Array) -> jax.Array:
    """() bool: whether there is a NaN or an infinity in `x`."""
    return ~jnp.all(jnp.isfinite(x))
