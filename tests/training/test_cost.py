"""The cost walker against hand formulas, torch's own counter, and the identities a count must satisfy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from placerec_jax.training.cost import Cost, function_cost


def shape(*sizes: int, dtype: type = np.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def convolution(x: jax.Array, kernel: jax.Array, stride: int, groups: int = 1) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def test_matrix_product_by_hand():
    total = function_cost(jnp.matmul, shape(3, 4), shape(4, 5)).total
    assert total == Cost(
        macs=3 * 4 * 5,
        flops=2 * 3 * 4 * 5,
        activation_bytes=4 * 3 * 5,
        moved_bytes=4 * (3 * 4 + 4 * 5 + 3 * 5),
    )
    attention = function_cost(
        lambda q, k: jnp.einsum("bthd,bshd->bhts", q, k), shape(2, 7, 3, 4), shape(2, 9, 3, 4)
    ).total
    assert attention.macs == 2 * 7 * 9 * 3 * 4


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 4, 8])
def test_convolution_by_hand(stride, groups):
    found = function_cost(
        lambda x, k: convolution(x, k, stride, groups), shape(2, 8, 12, 8), shape(3, 5, 8 // groups, 16)
    ).total
    assert found.macs == 2 * (8 // stride) * (12 // stride) * 16 * 3 * 5 * (8 // groups)


@pytest.mark.parametrize("stride", [1, 2])
def test_each_gradient_of_a_convolution_costs_what_the_convolution_does(stride):
    x, kernel = shape(2, 8, 12, 8), shape(3, 3, 8, 16)
    forward = function_cost(lambda x, k: convolution(x, k, stride), x, kernel).total.macs
    both = function_cost(
        jax.grad(lambda x, k: (convolution(x, k, stride) ** 2).sum(), argnums=(0, 1)), x, kernel
    ).total.macs
    assert both == 3 * forward


def test_network_equals_the_counter_of_torch():
    class Network(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.Conv(16, (3, 3), (2, 2), padding=((1, 1), (1, 1)))(x)
            x = nn.Conv(32, (5, 5), feature_group_count=16)(nn.relu(x))
            return nn.Dense(10)(x.reshape(len(x), -1))

    x = np.zeros((2, 16, 24, 3), np.float32)
    variables = jax.eval_shape(lambda: Network().init(jax.random.key(0), x))
    found = function_cost(Network().apply, variables, x).total.macs
    reference = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, 2, 1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 5, padding=2, groups=16),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 8 * 12, 10),
    )
    with FlopCounterMode(display=False) as counter:
        reference(torch.zeros(2, 3, 16, 24))
    assert found == counter.get_total_flops() // 2


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return nn.tanh(nn.Dense(8, name="dense")(x)), None


class Stack(nn.Module):
    scanned: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.scanned:
            layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=5)
            return layers(name="layers")(x, None)[0]
        for i in range(5):
            x, _ = Layer(name=f"layer{i}")(x, None)
        return x


def test_scan_costs_what_the_unrolled_loop_does():
    def total(scanned: bool) -> Cost:
        model, x = Stack(scanned), shape(4, 8)
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((4, 8))))
        return function_cost(model.apply, variables, x).total

    assert total(True) == total(False)
    assert total(True).macs == 5 * 4 * 8 * 8


def test_jit_and_rematerialisation_do_not_hide_work():
    def layer(x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ x)

    def gradient(function) -> int:
        return function_cost(jax.value_and_grad(lambda x: function(x).sum()), shape(4, 4)).total.macs

    plain = function_cost(layer, shape(4, 4)).total
    assert plain.macs == 64
    assert function_cost(jax.jit(layer), shape(4, 4)).total == plain
    assert function_cost(jax.checkpoint(layer), shape(4, 4)).total == plain
    assert gradient(jax.jit(layer)) == gradient(layer) == 3 * 64
    # The backward pass runs the forward pass again.
    assert gradient(jax.checkpoint(lambda x: layer(layer(x)))) == gradient(lambda x: layer(layer(x))) + 2 * 64


def test_custom_derivative_counts_its_function():
    @jax.custom_vjp
    def product(x: jax.Array) -> jax.Array:
        return x @ x

    product.defvjp(lambda x: (x @ x, x), lambda x, g: (g @ x,))
    assert function_cost(product, shape(4, 4)).total.macs == 64


def test_cond_counts_its_dearest_branch():
    def choose(flag: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: x + 1, x)

    found = function_cost(choose, shape(dtype=np.bool_), shape(4, 4))
    assert found.total.macs == 2 * 64
    assert found.unknown == ()


def test_while_counts_one_turn_and_says_so():
    def halve(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ x, x)

    found = function_cost(halve, shape(4, 4))
    assert found.total.macs == 64
    assert found.unknown == ("while",)


def test_what_has_no_formula_is_named():
    assert function_cost(lambda x: jnp.linalg.svd(x)[1], shape(4, 4)).unknown == ("svd",)


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda x: x + x, 64),
        (lambda x: x.sum(), 64),
        (lambda x: x.T.reshape(4, 16)[1:], 0),
        (lambda x: jax.lax.fft(x.astype(jnp.complex64), "FFT", (8,)), 5 * 64 * 3),
        (lambda x: jax.ops.segment_sum(x, np.zeros(8, np.int32), 3), 64),
        (lambda x: nn.max_pool(x[None, ..., None], (2, 2), (2, 2)), 64),
    ],
    ids=["add", "sum", "views", "fft", "segment_sum", "max_pool"],
)
def test_elementwise_reductions_and_others(function, flops):
    assert function_cost(function, shape(8, 8)).total.flops == flops


def test_components_are_submodules_scopes_and_methods():
    class Branch(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(8, name="inner")(x)

    class Model(nn.Module):
        def setup(self) -> None:
            self.left = Branch()
            self.right = nn.remat(Branch)()

        def encode(self, x: jax.Array) -> jax.Array:
            y = self.left(x) + self.right(x)
            with jax.named_scope("voting"):
                y = y @ jnp.ones((8, 3))
            return jnp.einsum("ij,kj->ik", y, y)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.encode(x)

    model, x = Model(), shape(4, 8)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((4, 8))))
    expected = {"left": 256, "right": 256, "voting": 96, "encode": 48}

    def macs(function, factor: int = 1) -> dict[str, int]:
        costs = function_cost(function, variables, x).by_component(root="Model")
        return {name: cost.macs // factor for name, cost in costs.items() if cost.macs}

    assert macs(model.apply) == expected
    # A gradient is filed under the component it belongs to.
    backward = macs(jax.grad(lambda v, x: model.apply(v, x).sum(), argnums=(0, 1)))
    assert set(backward) == set(expected)
    assert backward["left"] == 3 * 256
    assert function_cost(model.apply, variables, x).by_component("Model", depth=2)["left/inner"].macs == 256
