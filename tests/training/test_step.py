"""The update, on one device and on eight, and what it says about tensors that are not finite."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from placerec_jax.training.sharding import make_mesh, put_batch
from placerec_jax.training.state import abstract_state, count_parameters, init_state
from placerec_jax.training.step import checked_tensors, make_train_step
from tests.toy.fixtures import Setup


def run(setup, mesh, steps=5, batch=None):
    """State after `steps` and the metrics of each."""
    step = jax.jit(
        make_train_step(setup.method, setup.cfg, setup.model, setup.tx, setup.schedule), donate_argnums=0
    )
    state = init_state(setup.method, setup.cfg, setup.model, setup.tx, mesh)
    history = []
    with jax.set_mesh(mesh):
        for number in range(steps):
            state, metrics = step(state, put_batch(batch or setup.batch(number), mesh))
            history.append({name: np.asarray(value) for name, value in metrics.items()})
    return state, history


def mesh_of(setup, data, fsdp, devices):
    cfg = setup.config.mesh
    cfg.data, cfg.fsdp = data, fsdp
    return make_mesh(cfg, jax.devices()[:devices])


def test_eight_devices_give_the_losses_of_one():
    setup = Setup()
    one, history_one = run(setup, mesh_of(setup, 1, 1, devices=1))
    eight, history_eight = run(setup, mesh_of(setup, 4, 2, devices=8))
    for a, b in zip(history_one, history_eight, strict=True):
        for name in ("loss", "loss/square", "loss/absolute", "grad_norm"):
            np.testing.assert_allclose(a[name], b[name], rtol=2e-5, err_msg=name)
    # BatchNorm saw the statistics of the whole batch, dropout drew the same mask: the weights agree as well.
    for a, b in zip(jax.tree.leaves(one.variables), jax.tree.leaves(eight.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
    assert history_one[-1]["loss"] < history_one[0]["loss"]


def test_initialisation_does_not_depend_on_the_mesh():
    setup = Setup()
    states = [
        init_state(setup.method, setup.cfg, setup.model, setup.tx, mesh_of(setup, data, fsdp, data * fsdp))
        for data, fsdp in ((1, 1), (4, 2))
    ]
    for a, b in zip(*(jax.tree.leaves(s.variables) for s in states), strict=True):
        np.testing.assert_array_equal(a, b)


def test_parameters_and_moments_are_really_split():
    setup = Setup()
    state, _ = run(setup, mesh_of(setup, 4, 2, devices=8), steps=1)
    adam = state.opt_state[1][0]
    for tree in (state.params, adam.mu, adam.nu):
        kernel = tree["hidden"]["kernel"]
        assert kernel.shape == (512, 64)
        per_device = {s.device: s.data.nbytes for s in kernel.addressable_shards}
        assert set(per_device.values()) == {512 * 64 * 4 // 2}
        assert len(per_device) == 8
        bias = tree["output"]["bias"]
        assert {s.data.nbytes for s in bias.addressable_shards} == {bias.nbytes}


def test_the_batch_is_split_over_all_devices_and_stays_so():
    setup = Setup()
    mesh = mesh_of(setup, 4, 2, devices=8)
    batch = put_batch(setup.batch(0), mesh)
    assert {s.data.shape[0] for s in batch["image"].addressable_shards} == {1}
    state = abstract_state(setup.method, setup.cfg, setup.model, setup.tx, mesh)
    step = make_train_step(setup.method, setup.cfg, setup.model, setup.tx, setup.schedule)
    with jax.set_mesh(mesh):
        text = jax.jit(step).lower(state, batch).as_text()
    # Not a silent no-op: the activation's constraint names both axes of the batch.
    assert '{"data", "fsdp"}' in text
    assert "sharding_constraint" in text


def test_total_is_the_weighted_sum_of_the_term_means():
    setup = Setup({"loss.square": 3.0, "loss.absolute": 0.25})
    _, (metrics,) = run(setup, mesh_of(setup, 1, 1, devices=1), steps=1)
    expected = 3.0 * metrics["loss/square"] + 0.25 * metrics["loss/absolute"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
    assert metrics["learning_rate"] == pytest.approx(setup.config.optimizer.learning_rate)


def toy_with(setup, **changes):
    names = ("features", "model", "encoders", "loss", "predict")
    return types.SimpleNamespace(**({name: getattr(setup.method, name) for name in names} | changes))


def test_a_term_without_targets_counts_as_zero():
    setup = Setup()

    def loss(cfg, representations, batch):
        nothing = jnp.sum(representations["pose"] ** 2) * 0
        return {"square": (nothing, jnp.float32(0)), "absolute": (jnp.float32(2), jnp.float32(4))}

    setup.method = toy_with(setup, loss=loss)
    state, (metrics,) = run(setup, mesh_of(setup, 1, 1, devices=1), steps=1)
    assert metrics["loss"] == 0.5 * 0.5
    assert not metrics["nonfinite"].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_a_term_without_a_weight_is_refused():
    setup = Setup()
    setup.method = toy_with(setup, loss=lambda cfg, r, b: {"extra": (jnp.sum(r["pose"]), jnp.float32(1))})
    with pytest.raises(ValueError, match=r"no weight for the term 'extra' .*\['absolute', 'square'\]"):
        run(setup, mesh_of(setup, 1, 1, devices=1), steps=1)


def test_gradients_are_those_of_the_loss():
    """One step of plain SGD against finite differences of the reported loss."""
    setup = Setup({"loss.absolute": 0.0})  # without the kink of the absolute value
    setup.tx = optax.sgd(1.0)
    mesh = mesh_of(setup, 1, 1, devices=1)
    before = init_state(setup.method, setup.cfg, setup.model, setup.tx, mesh)
    bias = np.asarray(before.params["output"]["bias"])
    after, _ = run(setup, mesh, steps=1)
    gradient = bias - np.asarray(after.params["output"]["bias"])
    step = jax.jit(make_train_step(setup.method, setup.cfg, setup.model, setup.tx, setup.schedule))
    batch = put_batch(setup.batch(0), mesh)
    for k in range(2):
        losses = []
        for delta in (1e-2, -1e-2):
            output = {**before.params["output"], "bias": bias + delta * np.eye(2, dtype=np.float32)[k]}
            moved = before.replace(params={**before.params, "output": output})
            losses.append(float(step(moved, batch)[1]["loss"]))
        assert gradient[k] == pytest.approx((losses[0] - losses[1]) / 2e-2, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("spoil", "first_bad"),
    [
        ("batch", "batch/target"),
        ("params", "params/conv/kernel"),
        ("encoder", "representations/pose"),
        ("loss", "loss/absolute"),
    ],
)
def test_the_first_tensor_that_is_not_finite_has_a_name(spoil, first_bad):
    setup = Setup()
    mesh = mesh_of(setup, 1, 1, devices=1)
    batch = setup.batch(0)
    state = init_state(setup.method, setup.cfg, setup.model, setup.tx, mesh)
    if spoil == "batch":
        batch["target"][3, 1] = np.nan
    if spoil == "params":
        spoiled = state.params["conv"]["kernel"].at[0, 0, 0, 0].set(jnp.inf)
        state = state.replace(params={**state.params, "conv": {**state.params["conv"], "kernel": spoiled}})
    if spoil == "encoder":
        # Both finite, their sum is not.
        batch["noise"][:] = 3e38
        bias = jnp.full(2, 3.4e38)
        state = state.replace(params={**state.params, "output": {**state.params["output"], "bias": bias}})
    if spoil == "loss":
        original = setup.method.loss

        def loss(cfg, representations, batch):
            terms = original(cfg, representations, batch)
            return {**terms, "absolute": (terms["absolute"][0] * jnp.inf, terms["absolute"][1])}

        setup.method = toy_with(setup, loss=loss)
    with jax.set_mesh(mesh):
        step = jax.jit(make_train_step(setup.method, setup.cfg, setup.model, setup.tx, setup.schedule))
        placed = put_batch(batch, mesh)
        _, metrics = step(state, placed)
        names = checked_tensors(setup.method, setup.cfg, setup.model, state, placed)
    flags = np.asarray(metrics["nonfinite"])
    assert len(names) == len(flags)
    assert names[np.flatnonzero(flags)[0]] == first_bad


def test_every_parameter_and_gradient_is_watched():
    setup = Setup()
    mesh = mesh_of(setup, 1, 1, devices=1)
    state = init_state(setup.method, setup.cfg, setup.model, setup.tx, mesh)
    names = checked_tensors(setup.method, setup.cfg, setup.model, state, put_batch(setup.batch(0), mesh))
    assert sum(name.startswith("params/") for name in names) == len(jax.tree.leaves(state.params))
    assert sum(name.startswith("gradients/") for name in names) == len(jax.tree.leaves(state.params))
    assert "batch/index" not in names  # integers are always finite


def test_parameter_count():
    setup = Setup()
    state = abstract_state(setup.method, setup.cfg, setup.model, setup.tx, mesh_of(setup, 1, 1, devices=1))
    conv, norm, hidden, output = 3 * 3 * 3 * 8, 2 * 8, 512 * 64 + 64, 64 * 2 + 2
    assert count_parameters(state.params) == conv + norm + hidden + output


def test_what_is_frozen_gets_no_gradient_and_stays():
    changes = {"optimizer.groups": (("conv|norm", "frozen"), ("output", (("learning_rate", 1e-4),)))}
    setup = Setup(changes)
    mesh = mesh_of(setup, 4, 2, devices=8)
    before = init_state(setup.method, setup.cfg, setup.model, setup.tx, mesh)
    after, history = run(setup, mesh, steps=2)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before.params, after.params)
    assert not any(jax.tree.leaves([moved["conv"], moved["norm"]]))
    assert all(jax.tree.leaves([moved["hidden"], moved["output"]]))
    assert history[0]["learning_rate/output"] == pytest.approx(1e-4)
    assert history[0]["learning_rate"] == pytest.approx(1e-3)
    names = checked_tensors(setup.method, setup.cfg, setup.model, before, put_batch(setup.batch(0), mesh))
    assert len(names) == len(history[0]["nonfinite"])
    assert "params/conv/kernel" in names
    assert "gradients/hidden/kernel" in names
    assert "gradients/conv/kernel" not in names
