"""`benchmarks.maplocnet`: every part has its work, time and floor, and together they are the model."""

import json
import math
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from benchmarks import machine as machines
from benchmarks import maplocnet as benchmark
from benchmarks.components import submodule_calls
from benchmarks.timing import summary, time_calls
from configs import maplocnet as config_module
from placerec_jax.describe import describe
from placerec_jax.methods import maplocnet
from placerec_jax.ops import splat
from placerec_jax.training.cost import Cost, function_cost

COMPONENTS = [
    "image trunk",
    "neck and heads",
    "lift and splat",
    "BEV encoder",
    "BEV decoder and heads",
    "VGG",
    "map decoder and heads",
    "registration, coarse",
    "warp",
    "registration, fine",
]
MACHINE = machines.Machine("test", "cpu", {"float32": 100e9, "bfloat16": 10e9}, 10e9, None)


def config() -> ml_collections.FrozenConfigDict:
    return ml_collections.FrozenConfigDict(config_module.get_config("tiny"))


@pytest.fixture(scope="module")
def report() -> benchmark.Report:
    return benchmark.measure(config(), [1], ["components", "input"], "no/such/folder", seconds=0.01)


def test_every_part_of_the_paper_is_timed(report):
    table = benchmark.as_markdown(report).splitlines()
    rows = [line.split("|")[1].strip() for line in table if line.startswith("| ")][1:]
    assert rows == [*COMPONENTS, "forward"]
    for row in report.rows:
        assert 0 < row.timing.lower <= row.timing.median <= row.timing.upper < 60
        assert row.floor > 0
        assert row.ratio == row.timing.median / row.floor


def test_the_parts_work_together_is_the_models(report):
    parts = [row for row in report.rows if row.name != "forward"]
    (forward,) = [row for row in report.rows if row.name == "forward"]
    described = describe(config(), batch=1).total().cost.macs
    assert sum(row.cost.macs for row in parts) == forward.cost.macs == described


def test_what_is_not_measured_is_said(report):
    assert "not measured, no/such/folder is no prepared folder" in benchmark.as_markdown(report)


def test_json_holds_the_same(report):
    values = benchmark.as_json(report)
    assert json.loads(json.dumps(values)) == values
    assert [row["name"] for row in values["rows"]] == [row.name for row in report.rows]
    assert values["machine"]["bandwidth"] > 0
    assert values["reading"] is None


def test_slow_parts_are_marked_by_their_own_floor():
    def row(name: str, seconds: float) -> benchmark.Row:
        floor = MACHINE.floor(macs=5e9, moved_bytes=1e8, dtype="float32")
        return benchmark.Row(name, 1, Cost(macs=5e9, moved_bytes=1e8), summary([seconds] * 3), floor)

    about = {"dtype": "float32", "data": ""} | dict.fromkeys(
        ("config", "command", "created", "jax", "cores", "draws"), "?"
    )
    rows = [row("bev_encoder", 0.41), row("map_trunk", 0.39)]
    lines = benchmark.as_markdown(benchmark.Report(about, MACHINE, rows, None)).splitlines()
    assert next(line for line in lines if "BEV encoder" in line).count("**4.1**") == 1
    assert "**" not in next(line for line in lines if "VGG" in line)


def test_floor_is_the_larger_of_arithmetic_and_memory():
    assert MACHINE.floor(50e9, 0, "float32") == pytest.approx(1.0)
    assert MACHINE.floor(50e9, 20e9, "float32") == pytest.approx(2.0)
    # A device that is slow in the network's dtype may compute in float32.
    assert MACHINE.floor(50e9, 0, "bfloat16") == pytest.approx(1.0)


@pytest.fixture(scope="module")
def calls() -> dict:
    cfg = config()
    model, batch = maplocnet.model(cfg), benchmark.example_batch(cfg, 1, training=False)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    draws = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: draws.uniform(0, 0.2, leaf.shape).astype(leaf.dtype), shapes)
    return submodule_calls(model, jax.device_put(variables), batch)


def test_a_part_computes_what_the_model_computes(calls):
    assert set(calls) == set(calls) & set(benchmark.TITLES)
    assert len(calls) == len(COMPONENTS) - 2  # without those that are no submodules
    for name in ("image_neck", "localize_fine"):
        call = calls[name]
        found = jax.tree.leaves(jax.jit(call.function)(call.variables, call.inputs))
        for part, expected in zip(found, jax.tree.leaves(call.output), strict=True):
            assert np.abs(expected).max() > 1e-3
            np.testing.assert_allclose(part, expected, atol=1e-4, rtol=1e-4, err_msg=name)


def test_cameras_look_around_and_fill_the_cells():
    cfg = config()
    batch = benchmark.example_batch(cfg, 1, training=False)
    rotations = np.asarray(batch["ego_T_camera"])[0, :, :3, :3]
    for rotation in rotations:
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-6)
        assert np.linalg.det(rotation) == pytest.approx(1)
        assert rotation[2, 1] == -1  # an image's down is the ground's
    np.testing.assert_allclose(rotations[:, :, 2].sum(0), 0, atol=1e-6)  # forward, all around
    view = splat.View(
        tuple(cfg.model.image_size),
        tuple(cfg.model.depths),
        *(batch[name] for name in ("intrinsics", "ego_T_camera", "camera_mask")),
    )
    ids = np.asarray(splat.point_ids(view, (4, 12), maplocnet.bev_grid(cfg), tuple(cfg.model.z_range)))
    inside = ids < math.prod(maplocnet.bev_grid(cfg).shape)
    assert inside.any(axis=(0, 2, 3, 4)).all()  # every camera reaches the grid
    assert 0.2 < inside.mean() < 0.95


def test_all_ways_to_splat_do_their_work_on_the_same_inputs(calls):
    cfg = config()
    batch = benchmark.example_batch(cfg, 1, training=False)
    parts = benchmark.splat_parts(cfg, batch, calls["image_neck"].output)
    assert [part.name for part in parts.values()] == [f"splat {mode}" for mode in splat.MODES]
    found = {mode: jax.jit(parts[mode].function)(*parts[mode].arguments) for mode in ("segment_sum", "table")}
    assert np.abs(found["segment_sum"]).max() > 0.01
    np.testing.assert_allclose(found["table"], found["segment_sum"], atol=1e-3)


def test_one_stage_has_no_warp(calls):
    assert benchmark.warp_part(config(), calls).name == "warp"
    coarse_only = {name: call for name, call in calls.items() if name != "localize_fine"}
    assert benchmark.warp_part(config(), coarse_only) is None


def test_gradients_are_those_of_the_part():
    def function(parameters, count, x):
        return {"y": parameters["w"] * count * x**2}

    part = benchmark.Part("p", function, ({"w": jnp.float32(3)}, jnp.int32(2), jnp.asarray([1.0, 5.0])))
    gradients = benchmark.gradient_part(part)
    by_w, by_x = gradients.function(*gradients.arguments)
    assert by_w == 2 * (1 + 25)
    np.testing.assert_allclose(by_x, 2 * 3 * 2 * np.array([1.0, 5.0]))


@pytest.mark.slow
def test_the_train_step_does_at_least_three_forward_passes_of_work():
    """One forward, two products backward for each forward one, but for those of the first layers."""
    cfg = config()
    row = benchmark.time_train_step(cfg, 1, MACHINE, seconds=0.01)
    batch = benchmark.example_batch(cfg, 1, training=True)
    model = maplocnet.model(cfg)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, train=False))
    forward = function_cost(lambda v, b: model.apply(v, b, train=False), variables, batch).total.macs
    assert 2.5 * forward < row.cost.macs < 3.2 * forward
    assert row.timing.median > 0


def test_timing_is_of_one_call():
    """Twice the work takes about twice as long, however many calls a timing has."""
    a = jnp.ones((256, 256))

    def products(count: int):
        return jax.jit(lambda x: jax.lax.fori_loop(0, count, lambda _, y: y @ a, x))

    few, many = (time_calls(products(count), a, seconds=0.2) for count in (4, 40))
    assert 2 < many.lower / few.lower < 50
    assert few.calls * few.timings > many.calls * many.timings


def test_reading_is_timed_one_by_one_and_in_batches(monkeypatch, tmp_path):
    cfg = config()
    features = maplocnet.features(cfg, training=True)

    class Sleepy:
        """Takes 10 ms an example."""

        def __len__(self) -> int:
            return 100

        def example(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
            time.sleep(0.01)
            return {name: np.zeros(feature.shape, feature.dtype) for name, feature in features.items()}

    monkeypatch.setattr(benchmark.prepared, "PreparedFolder", lambda root: None)
    monkeypatch.setattr(benchmark.maplocnet, "source", lambda *args, **keywords: Sleepy())
    reading = benchmark.time_input(cfg, tmp_path, seconds=0.3)
    assert 20 < reading.source <= 100
    assert 20 < reading.batches < 1000
    assert reading.batch == cfg.train.batch_size
