"""All that a training run carries from step to step."""

from types import ModuleType
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from placerec_jax.training.sharding import infer_shardings


@flax.struct.dataclass
class TrainState:
    """`step` updates have been made; the next batch is number `step`."""

    step: jax.Array  # () int32
    params: Any
    batch_stats: Any  # running statistics of normalisation; {} for models without
    opt_state: Any
    rng: jax.Array  # () typed key; step k draws from fold_in(rng, k)

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def init_variables(
    method: ModuleType, cfg: ml_collections.ConfigDict, model: nn.Module, rng: jax.Array
) -> Any:
    """{"params": ..., "batch_stats": ...} of a fresh model; needs no data, only `method.features(cfg)`."""
    mesh = jax.sharding.get_abstract_mesh()
    rows = 1 if mesh.empty else mesh.size  # the smallest batch that the mesh divides
    batch = {
        name: jnp.zeros((rows, *feature.shape), feature.dtype)
        for name, feature in method.features(cfg).items()
    }
    variables = model.init(rng, batch, train=False)
    return {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}


def abstract_variables(
    method: ModuleType, cfg: ml_collections.ConfigDict, model: nn.Module, mesh: Mesh
) -> dict[str, Any]:
    """Shapes, dtypes and shardings of the model's variables; nothing is computed."""
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: init_variables(method, cfg, model, jax.random.key(0)))
    return _with_shardings(shapes, cfg, mesh)


def abstract_state(
    method: ModuleType,
    cfg: ml_collections.ConfigDict,
    model: nn.Module,
    tx: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """Shapes, dtypes and shardings of the state: what a checkpoint restores into."""
    with jax.set_mesh(mesh):
        shapes = jax.eval_shape(lambda: _fresh_state(method, cfg, model, tx))
    return _with_shardings(shapes, cfg, mesh)


def init_state(
    method: ModuleType,
    cfg: ml_collections.ConfigDict,
    model: nn.Module,
    tx: optax.GradientTransformation,
    mesh: Mesh,
) -> TrainState:
    """A fresh state from `cfg.seed`, made in place on the mesh: no device holds all of a sharded model."""
    abstract = abstract_state(method, cfg, model, tx, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    # It runs once: compiling it takes far longer than running it, and a third of that without optimisation.
    initialise = jax.jit(
        lambda: _fresh_state(method, cfg, model, tx),
        out_shardings=shardings,
        compiler_options={"xla_backend_optimization_level": 0},
    )
    with jax.set_mesh(mesh):
        return initialise()


def count_parameters(params: Any) -> int:
    """Number of trained scalars."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _fresh_state(
    method: ModuleType, cfg: ml_collections.ConfigDict, model: nn.Module, tx: optax.GradientTransformation
) -> TrainState:
    init_rng, rng = jax.random.split(jax.random.key(cfg.seed))
    variables = init_variables(method, cfg, model, init_rng)
    return TrainState(
        step=jnp.int32(0),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
        rng=rng,
    )


def _with_shardings(tree: Any, cfg: ml_collections.ConfigDict, mesh: Mesh) -> Any:
    shardings = infer_shardings(tree, mesh, rules=cfg.mesh.rules, min_size=cfg.mesh.fsdp_min_size)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings,
    )
