"""The schedules' shapes, first steps by hand, and Adam with L2 as torch has it."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
import torch

from placerec_jax.errors import ConfigError
from placerec_jax.training.optimizer import learning_rates, make_optimizer, make_schedule, split_parameters
from placerec_jax.training.partition import join_tree


def config(**changes):
    defaults = {
        "name": "adamw",
        "groups": (),
        "schedule": "cosine",
        "learning_rate": 0.1,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "hold": 0.0,
        "clip_norm": 0.0,
    }
    return ml_collections.ConfigDict(defaults | changes)


def test_cosine_without_warm_up():
    schedule = make_schedule(config(), steps=100)
    steps = np.arange(101)
    expected = 0.05 * (1 + np.cos(np.pi * steps / 100))
    np.testing.assert_allclose([schedule(s) for s in steps], expected, atol=1e-7)


def test_warm_up_is_linear_and_wastes_no_step():
    schedule = make_schedule(config(warmup_steps=4), steps=100)
    np.testing.assert_allclose([schedule(s) for s in range(5)], [0.02, 0.04, 0.06, 0.08, 0.1], rtol=1e-6)
    np.testing.assert_allclose(schedule(100), 0.0, atol=1e-7)


def test_hold_delays_the_cosine():
    schedule = make_schedule(config(warmup_steps=10, hold=5 / 9), steps=100)
    np.testing.assert_allclose([schedule(s) for s in range(10, 61)], 0.1, rtol=1e-6)
    expected = 0.05 * (1 + np.cos(np.pi * np.arange(41) / 40))
    np.testing.assert_allclose([schedule(60 + s) for s in range(41)], expected, atol=1e-7)


@pytest.mark.parametrize("warmup", [-1, 100])
def test_warm_up_that_does_not_fit(warmup):
    with pytest.raises(ConfigError, match=r"warmup_steps is .*expected at least 0 and below"):
        make_schedule(config(warmup_steps=warmup), steps=100)


@pytest.mark.parametrize("hold", [-0.1, 1.0])
def test_hold_that_is_no_share(hold):
    with pytest.raises(ConfigError, match=r"hold is .*expected a share"):
        make_schedule(config(hold=hold), steps=100)


def test_first_update_by_hand():
    # Bias-corrected moments of the first gradient are g and g², so the step is lr·(sign(g) + decay·w).
    cfg = config(weight_decay=0.5)
    tx = make_optimizer(cfg, make_schedule(cfg, 10))
    weights, gradients = {"w": jnp.array([2.0, -4.0])}, {"w": jnp.array([3.0, -0.25])}
    updates, _ = tx.update(gradients, tx.init(weights), weights)
    np.testing.assert_allclose(updates["w"], [-0.1 * (1 + 0.5 * 2.0), -0.1 * (-1 - 0.5 * 4.0)], rtol=1e-5)


def test_clipping_scales_the_whole_gradient():
    cfg = config(clip_norm=1.0)
    tx = make_optimizer(cfg, make_schedule(cfg, 10))
    weights = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    state = tx.init(weights)
    _, state = tx.update({"a": jnp.array([30.0]), "b": jnp.array([40.0])}, state, weights)
    first_moment = state[1][0].mu  # (1 - beta1) times the clipped gradient
    np.testing.assert_allclose([first_moment["a"][0], first_moment["b"][0]], [0.06, 0.08], rtol=1e-5)


def test_a_run_of_a_few_steps_has_a_schedule():
    """Rounding must not leave nothing to decay over."""
    cfg = config(learning_rate=1.0, warmup_steps=1, hold=5 / 7)
    rates = [float(make_schedule(cfg, steps=2)(step)) for step in range(2)]
    assert rates == [0.5, 1.0]


def test_staircase_falls_after_every_epoch():
    schedule = make_schedule(config(schedule="staircase", decay_steps=3, decay_rate=0.5), steps=10)
    np.testing.assert_allclose([schedule(s) for s in range(7)], [0.1] * 3 + [0.05] * 3 + [0.025], rtol=1e-6)


@pytest.mark.parametrize("changes", [{"decay_steps": 0}, {"decay_rate": 0.0}, {"decay_rate": 1.5}])
def test_staircase_that_is_none(changes):
    with pytest.raises(ConfigError, match=r"decay_steps is .*decay_rate"):
        make_schedule(config(schedule="staircase", **({"decay_steps": 3, "decay_rate": 0.5} | changes)), 10)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (lambda cfg: make_schedule(cfg, 10), {"schedule": "triangle"}),
        (lambda cfg: make_optimizer(cfg, lambda step: 0.1), {"name": "lion"}),
    ],
)
def test_unknown_names_list_the_known_ones(make, changes):
    with pytest.raises(ConfigError, match=r"'(triangle|lion)'; expected one of \["):
        make(config(**changes))


def test_adam_l2_is_torchs_adam():
    weights = np.array([2.0, -4.0, 0.5], np.float32)
    cfg = config(name="adam_l2", weight_decay=0.3)
    tx = make_optimizer(cfg, lambda step: 0.1)
    ours = {"w": jnp.asarray(weights)}
    theirs = torch.nn.Parameter(torch.tensor(weights))
    adam = torch.optim.Adam([theirs], lr=0.1, weight_decay=0.3)
    state = tx.init(ours)
    for step in range(4):
        gradient = np.cos(np.arange(3) + step).astype(np.float32)
        updates, state = tx.update({"w": jnp.asarray(gradient)}, state, ours)
        ours = optax.apply_updates(ours, updates)
        theirs.grad = torch.tensor(gradient)
        adam.step()
    np.testing.assert_allclose(ours["w"], theirs.detach().numpy(), rtol=1e-5)


def epochs(**changes):
    defaults = {
        "schedule": "warmup_cosine_epochs",
        "epoch_steps": 10,
        "warmup_epochs": 3,
        "warmup_start": 5e-6,
        "floor": 1e-7,
        "cosine_epochs": 100,
        "learning_rate": 1e-4,
    }
    return config(**(defaults | changes))


@pytest.mark.parametrize("rate", [5e-4, 1e-4, 1e-6])  # the last is below the warm-up's start
def test_the_schedule_of_saliency_i2ploc(rate):
    """Spec §4.1 at its epochs t = 0, 1, 3, 98; every update of an epoch has the same rate."""
    schedule = make_schedule(epochs(learning_rate=rate), steps=990)
    expected = {
        0: 5e-6,
        1: 5e-6 + (rate - 5e-6) / 3,
        2: 5e-6 + 2 * (rate - 5e-6) / 3,
        3: rate,
        53: 1e-7 + 0.5 * (rate - 1e-7),  # half of the cosine's 100 epochs
        98: 1e-7 + 0.5 * (rate - 1e-7) * (1 + np.cos(0.95 * np.pi)),
    }
    for epoch, value in expected.items():
        found = [schedule(10 * epoch + step) for step in (0, 9)]
        np.testing.assert_allclose(found, value, rtol=1e-5, err_msg=str(epoch))


def test_epochs_without_steps_are_none():
    with pytest.raises(ConfigError, match=r"epoch_steps is 0"):
        make_schedule(epochs(epoch_steps=0), 10)


def test_groups_have_rates_of_their_own_by_the_same_schedule():
    cfg = epochs(groups=(("image", (("learning_rate", 1e-5),)), ("norm", "frozen")))
    rates = learning_rates(make_schedule(cfg, 990), jnp.int32(535))  # epoch 53
    assert set(rates) == {"learning_rate", "learning_rate/image"}
    np.testing.assert_allclose(rates["learning_rate"], 1e-7 + 0.5 * (1e-4 - 1e-7), rtol=1e-5)
    np.testing.assert_allclose(rates["learning_rate/image"], 1e-7 + 0.5 * (1e-5 - 1e-7), rtol=1e-5)


WEIGHTS = {
    "image": {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32), "norm": np.array([2.0], np.float32)},
    "cloud": {"kernel": np.array([0.3, -0.7, 1.5], np.float32)},
    "head": {"kernel": np.array([4.0, -1.0], np.float32)},
}
GROUPS = (
    ("norm", "frozen"),
    ("params/image", (("learning_rate", 0.01), ("weight_decay", 0.2))),
    ("cloud/kernel$", (("weight_decay", 0.0),)),
)


def test_sgd_with_groups_is_torchs_sgd():
    """Three steps of momentum 0.999 with coupled decay and a falling rate; what is frozen stays exactly."""
    cfg = config(
        name="sgd", momentum=0.999, learning_rate=0.1, weight_decay=0.05, schedule="staircase", groups=GROUPS,
        decay_steps=1, decay_rate=0.5,
    )  # fmt: skip
    tx = make_optimizer(cfg, make_schedule(cfg, 10))
    ours = jax.tree.map(jnp.asarray, WEIGHTS)
    state = tx.init(ours)
    theirs = {name: torch.nn.Parameter(torch.tensor(WEIGHTS[name]["kernel"])) for name in WEIGHTS}
    settings = {"image": (0.01, 0.2), "cloud": (0.1, 0.0), "head": (0.1, 0.05)}
    sgd = torch.optim.SGD(
        [
            {"params": [theirs[name]], "lr": rate, "weight_decay": decay}
            for name, (rate, decay) in settings.items()
        ],
        momentum=0.999,
    )
    falls = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.5)
    for step in range(3):
        slopes = jax.tree.map(lambda w, step=step: np.cos(7 * w + step), WEIGHTS)
        trained, frozen = split_parameters(cfg, ours)
        updates, state = tx.update(split_parameters(cfg, slopes)[0], state, ours)
        ours = join_tree(optax.apply_updates(trained, updates), frozen)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(slopes[name]["kernel"])
        sgd.step()
        falls.step()
    for name, parameter in theirs.items():
        np.testing.assert_allclose(ours[name]["kernel"], parameter.detach().numpy(), rtol=1e-5, err_msg=name)
    np.testing.assert_array_equal(ours["image"]["norm"], WEIGHTS["image"]["norm"])


def test_what_is_frozen_has_no_optimiser_state():
    cfg = config(groups=GROUPS)
    state = make_optimizer(cfg, make_schedule(cfg, 10)).init(WEIGHTS)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim]
    assert sorted(m.shape for m in moments) == sorted(
        2 * [WEIGHTS[name]["kernel"].shape for name in ("image", "cloud", "head")]
    )


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((("imge", "frozen"),), r"pattern 'imge' decides for no parameter"),
        (
            (("image", "frozen"), ("image/kernel", "frozen")),
            r"pattern 'image/kernel' decides for no parameter",
        ),
    ],
)
def test_groups_without_parameters(groups, message):
    with pytest.raises(ConfigError, match=message):
        split_parameters(config(groups=groups), WEIGHTS)


@pytest.mark.parametrize(
    "groups",
    [
        (("(", "frozen"),),
        (("image", "freeze"),),
        (("image", (("rate", 0.1),)),),
        ("image",),
        (("", "frozen"),),
        (("image", "frozen"), ("image", (("learning_rate", 0.1),))),
    ],
)
def test_groups_that_are_none(groups):
    with pytest.raises(ConfigError, match=r"config.optimizer.groups: .*expected"):
        make_schedule(config(groups=groups), 10)
