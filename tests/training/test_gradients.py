"""Whole, accumulated and cached gradients: equal where the mathematics says so, different where it does."""

import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from configs import common
from placerec_jax.errors import ConfigError
from placerec_jax.methods import Encoder, run_encoders
from placerec_jax.training.gradients import Objective, check, loss_and_gradients
from placerec_jax.training.optimizer import make_optimizer, make_schedule
from placerec_jax.training.sharding import make_mesh, put_batch
from placerec_jax.training.state import abstract_state, init_state
from placerec_jax.training.step import checked_tensors, make_train_step

SIZE, WIDTH, DIM = 16, 64, 8


class TwoSides(nn.Module):
    """Queries and maps of two encoders, without normalisation over the batch; K = 3 candidates a map."""

    norm: bool = False
    dropout: float = 0.0

    def setup(self):
        self.query = nn.Sequential([nn.Dense(WIDTH), nn.relu, nn.Dense(DIM)])
        self.map = nn.Dense(DIM)
        self.batch_norm = nn.BatchNorm(momentum=0.5) if self.norm else None
        self.drop = nn.Dropout(self.dropout)
        self.temperature = self.param("temperature", nn.initializers.ones, ())

    def encode_query(self, query, train):
        x = self.drop(self.query(query), deterministic=not train)
        if self.norm:
            x = self.batch_norm(x, use_running_average=not train)
        return {"descriptor": x, "temperature": self.temperature, "largest": jnp.argmax(x, axis=-1)}

    def encode_map(self, candidates, train):
        del train
        return self.map(candidates.reshape(-1, candidates.shape[-1]))  # (B * K, D)

    def __call__(self, batch, train):
        return run_encoders(self, encoders(None), batch, train)


def encoders(cfg):
    del cfg
    return {
        "query": Encoder(("query",), TwoSides.encode_query),
        "map": Encoder(("candidates",), TwoSides.encode_map),
    }


def features(cfg, training=False):
    del cfg, training
    return {
        "query": jax.ShapeDtypeStruct((5,), np.float32),
        "candidates": jax.ShapeDtypeStruct((3, 5), np.float32),
        "weight": jax.ShapeDtypeStruct((), np.float32),
    }


def per_example(cfg, representations, batch):
    """A mean with weights of the batch, very unequal over the micro-batches, and one with learned weights."""
    del cfg
    query = representations["query"]["descriptor"]
    mine = representations["map"].reshape(len(query), 3, DIM)[:, 1]
    error = jnp.sum((query - mine) ** 2, axis=-1)
    trust = nn.sigmoid(query[:, 0])
    return {
        "one": (jnp.sum(batch["weight"] * error), jnp.sum(batch["weight"])),
        "two": (jnp.sum(trust * error), jnp.sum(trust)),
    }


def contrastive(cfg, representations, batch):
    """Every query against the candidates of all examples."""
    del cfg, batch
    query = representations["query"]["descriptor"]
    scores = query @ representations["map"].T * representations["query"]["temperature"]
    right = 3 * jnp.arange(len(query)) + 1
    losses = optax.softmax_cross_entropy_with_integer_labels(scores, right)
    return {"one": (jnp.sum(losses), jnp.float32(len(losses)))}


def config(**train):
    cfg = common.base("two_sides", "tests")
    cfg.loss = ml_collections.ConfigDict({"one": 1.0, "two": 0.3})
    cfg.train.batch_size = SIZE
    cfg.train.update(train)
    cfg.mesh.fsdp_min_size = 32
    return cfg


def objective(cfg, loss, **module):
    method = types.SimpleNamespace(features=features, encoders=encoders, loss=loss)
    return Objective(method, ml_collections.FrozenConfigDict(cfg), TwoSides(**module))


def batch(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "query": rng.normal(size=(SIZE, 5)).astype(np.float32),
        "candidates": rng.normal(size=(SIZE, 3, 5)).astype(np.float32),
        "weight": (rng.random(SIZE) ** 4).astype(np.float32),
    }


def mesh_of(devices):
    cfg = config().mesh
    cfg.fsdp = 2 if devices > 1 else 1
    return make_mesh(cfg, jax.devices()[:devices])


@functools.cache
def fresh(devices=1, **module):
    """A state, the same whatever the number of devices."""
    aim = objective(config(), None, **module)
    return init_state(aim.method, aim.cfg, aim.model, optax.sgd(1.0), mesh_of(devices))


def found(loss, cfg, devices=1, module=(), seed=0):
    """What `loss_and_gradients` finds on a mesh of `devices`."""
    aim, mesh = objective(cfg, loss, **dict(module)), mesh_of(devices)
    check(cfg)
    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda state, rows: loss_and_gradients(aim, state, rows))
        return compiled(fresh(devices, **dict(module)), put_batch(batch(seed), mesh))


def assert_same(a, b, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("count", [1, 4])
def test_accumulated_is_whole_for_a_loss_of_single_examples(count):
    """Also where the weights are learned, so that the mean's denominator has a gradient."""
    whole = found(per_example, config())
    pieces = found(per_example, config(gradients="accumulated", accumulate=count))
    assert_same(whole, pieces)
    assert not np.allclose(whole.gradients["query"]["layers_0"]["kernel"], 0, atol=1e-3)


@pytest.mark.parametrize("loss", [per_example, contrastive])
def test_cached_is_whole_for_every_loss(loss):
    whole = found(loss, config())
    assert_same(whole, found(loss, config(gradients="cached", accumulate=4)))
    assert whole.gradients["temperature"].shape == ()


def test_accumulated_negatives_are_those_of_the_micro_batch():
    pieces = found(contrastive, config(gradients="accumulated", accumulate=4))
    aim, state, losses = objective(config(), contrastive), fresh(), []
    for m in range(4):
        rows = {name: value[m::4] for name, value in batch().items()}
        representations, _ = aim.represent(state.params, {}, rows, state.rng)
        total, weight = aim.terms(representations, rows)["one"]
        losses.append(total / weight)
    np.testing.assert_allclose(pieces.means["one"], np.mean(losses), rtol=1e-5)
    assert pieces.loss < 0.8 * found(contrastive, config()).loss  # fewer to confuse it with


@pytest.mark.parametrize(("gradients", "count"), [("accumulated", 2), ("cached", 2)])
def test_eight_devices_give_what_one_gives(gradients, count):
    """Negatives count across devices; micro-batches hold the same rows; statistics are of all devices."""
    cfg, module = config(gradients=gradients, accumulate=count), {"norm": True, "dropout": 0.2}
    one, eight = (found(contrastive, cfg, devices, module) for devices in (1, 8))
    assert_same(one, eight, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("gradients", ["accumulated", "cached"])
def test_running_statistics_move_once_for_each_micro_batch(gradients):
    aim, state = objective(config(), per_example, norm=True), fresh(norm=True)
    stats = state.batch_stats
    for m in range(4):
        rows = {name: value[m::4] for name, value in batch().items()}
        _, stats = aim.represent(state.params, stats, rows, state.rng)
    pieces = found(per_example, config(gradients=gradients, accumulate=4), module={"norm": True})
    assert_same(pieces.batch_stats, stats)


def test_dropout_draws_the_same_mask_in_both_passes_of_cached():
    """With another mask the second pass would not be the derivative of the first."""
    dropped = {"dropout": 0.5}
    cached = found(per_example, config(gradients="cached", accumulate=4), module=dropped)
    accumulated = found(per_example, config(gradients="accumulated", accumulate=4), module=dropped)
    assert_same(cached, accumulated)
    assert not np.allclose(cached.loss, found(per_example, config()).loss, rtol=1e-3)


def test_micro_batches_have_masks_of_their_own():
    """All rows equal: only dropout tells the micro-batches apart."""

    def spread(cfg, representations, batch):
        x = representations["query"]["descriptor"]
        return {"one": (jnp.sum((x - x.mean(axis=0)) ** 2), jnp.float32(1))}

    aim = objective(config(gradients="cached", accumulate=SIZE), spread, dropout=0.5)
    same = {name: np.repeat(value[:1], SIZE, axis=0) for name, value in batch().items()}
    assert jax.jit(lambda s, b: loss_and_gradients(aim, s, b).loss)(fresh(dropout=0.5), same) > 1e-3


@pytest.mark.parametrize("gradients", ["accumulated", "cached"])
def test_a_bad_value_in_one_micro_batch_has_a_name(gradients):
    cfg = config(gradients=gradients, accumulate=4)
    aim, state, mesh = objective(cfg, per_example), fresh(), mesh_of(1)
    spoiled = batch()
    spoiled["query"][6] = 3e38  # finite itself
    step = make_train_step(aim.method, aim.cfg, aim.model, optax.sgd(1.0), make_schedule(cfg.optimizer, 10))
    with jax.set_mesh(mesh):
        _, metrics = jax.jit(step)(state, put_batch(spoiled, mesh))
        names = checked_tensors(aim.method, aim.cfg, aim.model, state, put_batch(spoiled, mesh))
    flags = np.asarray(metrics["nonfinite"])
    assert len(names) == len(flags)
    assert names[np.flatnonzero(flags)[0]] == "representations/query/descriptor"
    assert "representations/query/largest" not in names  # integers are always finite


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (
            {"gradients": "cache"},
            r"gradients is 'cache'; expected one of \['accumulated', 'cached', 'whole'\]",
        ),
        ({"accumulate": 4}, r"accumulate is 4 and config.train.gradients 'whole'"),
        ({"accumulate": 0, "gradients": "cached"}, r"accumulate is 0; expected at least 1"),
        (
            {"accumulate": 3, "gradients": "cached"},
            r"accumulate is 3; .*divisor of config.train.batch_size \(16\)",
        ),
    ],
)
def test_settings_that_do_not_fit(train, message):
    with pytest.raises(ConfigError, match=message):
        check(config(**train))


def test_micro_batches_that_the_devices_do_not_divide():
    with pytest.raises(ConfigError, match=r"batch of 16 cannot be cut into 4 micro-batches that 8 device"):
        found(contrastive, config(gradients="cached", accumulate=4), devices=8)


def test_representations_that_cached_cannot_join():
    class Shortened(TwoSides):
        def __call__(self, batch, train):
            found = super().__call__(batch, train)
            return {**found, "map": found["map"][:7]}

    method = types.SimpleNamespace(features=features, encoders=encoders, loss=contrastive)
    cfg = ml_collections.FrozenConfigDict(config(gradients="cached", accumulate=4))
    aim = Objective(method, cfg, Shortened())
    with pytest.raises(ConfigError, match=r"cannot join the representation map: its first axis is 7 long"):
        jax.eval_shape(lambda s, b: loss_and_gradients(aim, s, b), fresh(), batch())


def compiled(gradients, count, loss=per_example, data=4):
    """A step on 8 devices, of a batch wide enough for activations to be what counts."""
    cfg = config(gradients=gradients, accumulate=count, batch_size=8192)
    cfg.mesh.data, cfg.mesh.fsdp = data, 8 // data
    aim = objective(cfg, loss)
    schedule = make_schedule(cfg.optimizer, 10)
    tx = make_optimizer(cfg.optimizer, schedule)
    mesh = make_mesh(cfg.mesh)
    state = abstract_state(aim.method, aim.cfg, aim.model, tx, mesh)
    inputs = {
        name: jax.ShapeDtypeStruct(
            (8192, *feature.shape),
            feature.dtype,
            sharding=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"))),
        )
        for name, feature in features(None).items()
    }
    step = make_train_step(aim.method, aim.cfg, aim.model, tx, schedule)
    with jax.set_mesh(mesh):
        return jax.jit(step).lower(state, inputs).compile()


def test_memory_falls_with_the_size_of_a_micro_batch():
    whole, *pieces = (
        compiled(gradients, count).memory_analysis().temp_size_in_bytes
        for gradients, count in (("whole", 1), ("accumulated", 32), ("cached", 32))
    )
    assert max(pieces) < 0.5 * whole


def test_cutting_a_batch_moves_no_row_between_devices():
    """The only communication in accumulation is that of gradients and sums: nothing as large as a batch."""
    text = compiled("accumulated", 4).as_text()
    assert "all-to-all" not in text
    assert "collective-permute" not in text
    assert "while" in text


def test_weights_of_the_batch_alone_cost_no_second_forward_pass():
    """The first loop of `accumulated` is left out by the compiler: no more products than cutting needs."""

    def counted(cfg, representations, batch):
        return {"one": per_example(cfg, representations, batch)["one"]}

    products = [compiled("accumulated", 4, loss).as_text().count(" dot(") for loss in (counted, per_example)]
    assert products[0] < products[1]
