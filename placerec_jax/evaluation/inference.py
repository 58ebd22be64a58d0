"""Passes of a trained model over a split: small outputs for every frame, everything for chosen ones.

Example i of a split always draws from `default_rng([cfg.eval.seed, i])`, so its noise depends neither on the
batch size nor on which other examples are asked for.
"""

import functools
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from placerec_jax.data.pipeline import eval_batches
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.errors import ConfigError
from placerec_jax.training.sharding import put_batch

Rows = dict[str, np.ndarray]

# Outputs with more numbers an example (segmentation maps, features) are kept for a whole split only by name.
MAX_ROW_SIZE = 64


def predict_split(
    method: ModuleType,
    cfg: ml_collections.ConfigDict,
    variables: dict[str, Any],
    prepared: PreparedFolder,
    split: str,
    mesh: Mesh,
    limit: int | None = None,
    progress: bool = True,
    keep: tuple[str, ...] = (),
    examples: np.ndarray | None = None,
) -> Rows:
    """The method's small predictions over a split, in its order: {name: (N, ...)}.

    `variables` are the model's collections (`params`, `batch_stats`). `limit` keeps that many examples,
    evenly spread; `examples` (N,) says which instead. Outputs named in `keep` are kept however large they
    are. `position` (N,) is added: each row's place in the split. Every process of a multi-host run gets all
    rows.

    Raises:
        ConfigError: the split is empty or `cfg.eval.batch_size` does not divide over the mesh.
    """
    source = method.source(cfg, prepared, split, training=False)
    if not len(source):
        raise ConfigError(
            f"{prepared.root}: split {split!r} of scheme {cfg.data.scheme!r} has no examples to predict"
        )
    chosen = spread(len(source), limit) if examples is None else np.asarray(examples, np.int64)
    wanted = _Wanted(features=False, predictions=keep)
    parts = [
        kept for _, kept in _predict(method, cfg, variables, source, chosen, mesh, wanted, split, progress)
    ]
    return {**_joined(parts, len(chosen)), "position": chosen}


def predict_examples(
    method: ModuleType,
    cfg: ml_collections.ConfigDict,
    variables: dict[str, Any],
    prepared: PreparedFolder,
    split: str,
    mesh: Mesh,
    examples: np.ndarray,
) -> tuple[Rows, Rows]:
    """Features (n, ...) and all predictions (n, ...) of the (n,) `examples` of a split."""
    source = method.source(cfg, prepared, split, training=False)
    examples = np.asarray(examples, np.int64)
    wanted = _Wanted(features=True, predictions=None)
    parts = list(_predict(method, cfg, variables, source, examples, mesh, wanted, split, progress=False))
    features, predictions = ([part[side] for part in parts] for side in (0, 1))
    return _joined(features, len(examples)), _joined(predictions, len(examples))


class _Wanted(NamedTuple):
    """What a pass gives back: the features, and beside small predictions those named (None: all)."""

    features: bool
    predictions: tuple[str, ...] | None


def spread(count: int, limit: int | None) -> np.ndarray:
    """(min(count, limit),) int64 distinct numbers below `count`, evenly spread and increasing."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.arange(limit, dtype=np.int64) * count // limit


def _predict(
    method: ModuleType,
    cfg: ml_collections.ConfigDict,
    variables: dict[str, Any],
    source: Any,
    examples: np.ndarray,
    mesh: Mesh,
    wanted: _Wanted,
    label: str,
    progress: bool,
) -> Iterator[tuple[Rows, Rows]]:
    """Batches of (features, predictions) as (processes, rows of one process, ...), padding removed.

    Process p of P reads the examples p, p + P, ... of those asked for: all have equally many, so that no
    process waits for a batch that another does not have.
    """
    processes, process = jax.process_count(), jax.process_index()
    if cfg.eval.batch_size % mesh.size or cfg.eval.batch_size % processes:
        raise ConfigError(
            f"config.eval.batch_size is {cfg.eval.batch_size}; expected a multiple of the {mesh.size} devices"
        )
    padded = np.pad(examples, (0, -len(examples) % processes), mode="edge")
    batches = eval_batches(
        source,
        batch_size=cfg.eval.batch_size // processes,
        seed=cfg.eval.seed,
        indices=padded[process::processes],
    )
    frozen = ml_collections.FrozenConfigDict(cfg)
    names = method.features(cfg).keys()
    bar = tqdm(
        total=len(examples), desc=f"predict {label}", unit="frame", disable=not progress or process > 0
    )
    with bar, jax.set_mesh(mesh):
        for local in batches:
            mask = local["mask"]
            batch = put_batch({name: local[name] for name in names}, mesh)
            outputs = _predict_batch(method, frozen, wanted, mesh, variables, batch)
            yield tuple(
                {
                    name: np.asarray(value).reshape(processes, len(mask), *value.shape[1:])[:, mask]
                    for name, value in side.items()
                }
                for side in outputs
            )
            bar.update(min(processes * int(mask.sum()), bar.total - bar.n))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _predict_batch(
    method: ModuleType,
    cfg: ml_collections.FrozenConfigDict,
    wanted: _Wanted,
    mesh: Mesh,
    variables: dict[str, Any],
    batch: dict[str, jax.Array],
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """(features to keep, predictions to keep), whole on every device.

    At module level and with hashable settings, so that one compilation serves all passes of a run.
    """
    representations = method.model(cfg).apply(variables, batch, train=False)
    predictions = method.predict(cfg, representations, batch)
    if wanted.predictions is not None:
        predictions = {
            name: value
            for name, value in predictions.items()
            if value.size // value.shape[0] <= MAX_ROW_SIZE or name in wanted.predictions
        }
    kept = (batch if wanted.features else {}, predictions)
    return jax.lax.with_sharding_constraint(kept, NamedSharding(mesh, PartitionSpec()))


def lower_prediction(
    method: ModuleType,
    cfg: ml_collections.ConfigDict,
    mesh: Mesh,
    variables: dict[str, Any],
    batch: dict[str, jax.ShapeDtypeStruct],
    keep: tuple[str, ...] = (),
) -> jax.stages.Lowered:
    """The pass of `predict_split` over one batch, to compile ahead of time: shapes stand for all arrays."""
    wanted = _Wanted(features=False, predictions=keep)
    with jax.set_mesh(mesh):
        frozen = ml_collections.FrozenConfigDict(cfg)
        return _predict_batch.lower(method, frozen, wanted, mesh, variables, batch)


def _joined(parts: list[Rows], count: int) -> Rows:
    """Parts (processes, n, ...) → (count, ...) in the order of the examples asked for."""
    joined = {}
    for name in parts[0]:
        whole = np.concatenate([part[name] for part in parts], axis=1)
        joined[name] = np.swapaxes(whole, 0, 1).reshape(-1, *whole.shape[2:])[:count]
    return joined
