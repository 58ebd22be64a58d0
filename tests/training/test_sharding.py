"""Meshes and inferred shardings."""

import jax
import ml_collections
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from placerec_jax.errors import ConfigError
from placerec_jax.training.sharding import infer_shardings, make_mesh, put_batch


def mesh(data, fsdp, devices=8):
    return make_mesh(ml_collections.ConfigDict({"data": data, "fsdp": fsdp}), jax.devices()[:devices])


def shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, "float32")


@pytest.mark.parametrize(
    ("data", "fsdp", "expected"),
    [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (2, -1, (2, 4)), (8, 1, (8, 1)), (1, 8, (1, 8))],
)
def test_a_size_of_minus_one_takes_the_rest(data, fsdp, expected):
    found = mesh(data, fsdp)
    assert (found.shape["data"], found.shape["fsdp"]) == expected
    assert set(found.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(("data", "fsdp"), [(3, 1), (-1, 3), (-1, -1), (0, -1), (16, 1), (-1, 16)])
def test_sizes_that_do_not_fit_the_devices(data, fsdp):
    with pytest.raises(ValueError, match=rf"config.mesh.data={data}, config.mesh.fsdp={fsdp}: .* devices, 8"):
        mesh(data, fsdp)


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    assert put_batch({"x": np.zeros((16, 2))}, mesh(4, 2))["x"].shape == (16, 2)
    with pytest.raises(ConfigError, match=r"a batch of 6 cannot be divided among 8 devices"):
        put_batch({"x": np.zeros((6, 2))}, mesh(4, 2))


@pytest.mark.parametrize(
    ("leaf", "spec"),
    [
        (shape(512, 64), PartitionSpec("fsdp", None)),  # the largest axis
        (shape(3, 3, 64, 64), PartitionSpec(None, None, None, "fsdp")),  # the last of equals
        (shape(255, 64), PartitionSpec(None, "fsdp")),  # the largest that is divisible
        (shape(255, 65), PartitionSpec()),  # none is
        (shape(512), PartitionSpec()),  # small
        (shape(), PartitionSpec()),
    ],
)
def test_large_leaves_are_split_along_their_largest_divisible_axis(leaf, spec):
    found = infer_shardings({"w": leaf}, mesh(4, 2), min_size=1024)["w"]
    assert found.spec == spec


def test_rules_come_first_in_their_order():
    tree = {"params": {"head": {"kernel": shape(512, 64)}, "stem": {"kernel": shape(512, 64)}}}
    rules = (("head/kernel$", (None, "fsdp")), ("kernel", ()))
    found = infer_shardings(tree, mesh(4, 2), rules=rules, min_size=1)
    assert found["params"]["head"]["kernel"].spec == PartitionSpec(None, "fsdp")
    assert found["params"]["stem"]["kernel"].spec == PartitionSpec()
