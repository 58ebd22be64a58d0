"""`constrain_batch` splits the batch under a mesh, and is nothing without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from placerec_jax.modules.resnet import ResNetTrunk
from placerec_jax.modules.sharding import constrain_batch

needs_devices = pytest.mark.skipif(jax.device_count() < 8, reason="needs 8 devices, simulated or real")


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:8])


def test_identity_without_a_mesh():
    x = jnp.arange(6.0).reshape(3, 2)
    assert constrain_batch(x) is x


@needs_devices
def test_one_row_a_device_under_a_mesh():
    with jax.set_mesh(mesh()):
        y = jax.jit(lambda: constrain_batch(jnp.arange(16.0).reshape(8, 2)))()
    assert {shard.data.shape for shard in y.addressable_shards} == {(1, 2)}
    np.testing.assert_array_equal(y, np.arange(16.0).reshape(8, 2))


@needs_devices
def test_every_block_of_a_trunk_is_constrained():
    trunk = ResNetTrunk(widths=(4, 4), blocks=(2, 1), stem=4)
    images = np.zeros((8, 16, 16, 3), np.float32)
    variables = jax.eval_shape(lambda: trunk.init(jax.random.key(0), images, train=False))
    with jax.set_mesh(mesh()):
        text = jax.jit(lambda v, x: trunk.apply(v, x, train=False)).lower(variables, images).as_text()
    assert text.count("sdy.sharding_constraint") == 4  # the stem and three blocks
