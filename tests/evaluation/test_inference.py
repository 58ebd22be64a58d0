"""Prediction over a split: order, padding, determinism, subsets and sharding, with a method of one weight."""

import socket
import subprocess
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.sharding import Mesh

from placerec_jax.evaluation import inference

SIZE = 17


class ToySource:
    """Example i has the record number 100 + i, a random vector of its own generator and a large map."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def example(self, index, rng):
        noise = rng.normal(size=3).astype(np.float32)
        large = np.full((16, 16), index, np.float32)
        return {"index": np.int32(100 + index), "noise": noise, "large": large}


class ToyModel(nn.Module):
    @nn.compact
    def __call__(self, batch, train):
        scale = self.param("scale", nn.initializers.ones, ())
        return {"twice": 2 * scale * batch["noise"], "map": batch["large"] + 1}


def make_method(size=SIZE):
    shape = jax.ShapeDtypeStruct
    method = types.ModuleType("toy")
    method.features = lambda cfg: {
        "index": shape((), np.int32),
        "noise": shape((3,), np.float32),
        "large": shape((16, 16), np.float32),
    }
    method.model = lambda cfg: ToyModel()
    method.predict = lambda cfg, representations, batch: {
        "index": batch["index"],
        "pose": representations["twice"],
        "map": representations["map"],
    }
    method.source = lambda cfg, prepared, split, training: ToySource(size)
    return method


def make_config(batch_size=4, seed=5):
    return ml_collections.ConfigDict(
        {"eval": {"batch_size": batch_size, "seed": seed}, "data": {"scheme": "official"}}
    )


def make_mesh(devices=1):
    return Mesh(np.array(jax.devices()[:devices]).reshape(-1, 1), ("data", "fsdp"))


VARIABLES = {"params": {"scale": jnp.float32(1.5)}}
PREPARED = types.SimpleNamespace(root="prepared")


def predict(cfg, devices=1, method=None, **options):
    method = method or make_method()
    return inference.predict_split(
        method, cfg, VARIABLES, PREPARED, "test", make_mesh(devices), progress=False, **options
    )


def test_rows_are_in_split_order_without_padding_and_without_large_outputs():
    rows = predict(make_config(batch_size=4))
    np.testing.assert_array_equal(rows["index"], 100 + np.arange(SIZE))
    np.testing.assert_array_equal(rows["position"], np.arange(SIZE))
    assert set(rows) == {"index", "position", "pose"}


def test_example_i_always_draws_from_its_own_generator():
    rows = predict(make_config(seed=5))
    expected = [3.0 * np.random.default_rng([5, i]).normal(size=3) for i in range(SIZE)]
    np.testing.assert_allclose(rows["pose"], expected, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [3, 7, 32])
def test_batch_size_does_not_change_rows(batch_size):
    expected = predict(make_config(batch_size=1))
    found = predict(make_config(batch_size=batch_size))
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_eight_devices_give_the_rows_of_one():
    expected = predict(make_config(batch_size=8))
    found = predict(make_config(batch_size=8), devices=8)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name])


def test_batch_that_does_not_divide_over_the_devices_is_named():
    with pytest.raises(ValueError, match=r"config.eval.batch_size is 6.*8 devices"):
        predict(make_config(batch_size=6), devices=8)


def test_limit_keeps_evenly_spread_rows_with_their_noise():
    everything = predict(make_config())
    rows = predict(make_config(), limit=5)
    np.testing.assert_array_equal(rows["position"], [0, 3, 6, 10, 13])
    np.testing.assert_array_equal(rows["pose"], everything["pose"][rows["position"]])


def test_large_outputs_are_kept_when_asked_for_by_name():
    rows = predict(make_config(), keep=("map", "absent"))
    assert set(rows) == {"index", "position", "pose", "map"}
    np.testing.assert_array_equal(rows["map"][:, 0, 0], 1 + np.arange(SIZE))


def test_examples_may_be_named_instead_of_a_limit():
    rows = predict(make_config(), limit=2, examples=np.array([1, 5, 16]))
    np.testing.assert_array_equal(rows["position"], [1, 5, 16])
    np.testing.assert_array_equal(rows["index"], [101, 105, 116])


@pytest.mark.parametrize("limit", [None, SIZE, SIZE + 1])
def test_spread_without_a_real_limit_is_everything(limit):
    np.testing.assert_array_equal(inference.spread(SIZE, limit), np.arange(SIZE))


def test_chosen_examples_come_whole_and_in_the_order_asked_for():
    rows = predict(make_config())
    features, predictions = inference.predict_examples(
        make_method(), make_config(), VARIABLES, PREPARED, "test", make_mesh(), np.array([9, 2, 16, 2, 0])
    )
    np.testing.assert_array_equal(features["index"], [109, 102, 116, 102, 100])
    np.testing.assert_array_equal(predictions["pose"], rows["pose"][[9, 2, 16, 2, 0]])
    np.testing.assert_array_equal(predictions["map"][:, 0, 0], [10, 3, 17, 3, 1])


def test_repeated_passes_compile_once():
    method, cfg = make_method(), make_config()
    predict(cfg, method=method)
    before = inference._predict_batch._cache_size()
    predict(cfg.copy_and_resolve_references(), method=method)
    assert inference._predict_batch._cache_size() == before


def test_empty_split_is_an_error():
    with pytest.raises(ValueError, match=r"split 'test' of scheme 'official' has no examples"):
        predict(make_config(), method=make_method(size=0))


def test_rows_of_several_processes_are_put_in_order():
    """Two processes share five examples: 0, 2, 4 and 1, 3 with 4 once more as padding, in batches of two."""
    parts = [{"index": np.array([[0, 2], [1, 3]])}, {"index": np.array([[4], [4]])}]
    np.testing.assert_array_equal(inference._joined(parts, 5)["index"], np.arange(5))


TWO_PROCESSES = """
import sys
import jax, numpy as np
process, port, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize(f"localhost:{port}", 2, process)
from tests.evaluation import test_inference as case
rows = case.predict(case.make_config(batch_size=8), devices=4)
np.savez(f"{out}/{process}.npz", **rows)
"""


@pytest.mark.slow
def test_two_processes_give_the_rows_of_one(tmp_path, command_environment):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(process), str(port), str(tmp_path)],
            env=command_environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for process in (0, 1)
    ]
    outputs = [process.communicate(timeout=180)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], "\n".join(outputs)
    expected = predict(make_config(batch_size=8))
    for process in (0, 1):
        found = np.load(tmp_path / f"{process}.npz")
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
