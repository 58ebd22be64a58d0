"""Where activations live: the batch axis is split over every device of the mesh."""

import jax
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")


def constrain_batch(x: jax.Array) -> jax.Array:
    """(B, ...) -> the same values, with the first axis sharded over the mesh axes 'data' and 'fsdp'.

    Modules call it at block boundaries: parameters that are sharded over 'fsdp' would otherwise pull the
    activations into their own layout, which costs more memory than replicating the parameters. Outside
    `jax.set_mesh` it is the identity. The batch size must be a multiple of the number of devices.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))
