"""The depthwise convolution and its gradients against XLA's grouped convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.ops.depthwise import depthwise_convolution
from placerec_jax.training.cost import function_cost

SAME_3, SAME_5 = ((0, 1), (0, 1)), ((1, 2), (1, 2))


def reference(x: jax.Array, kernel: jax.Array, stride: int, padding: tuple) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        feature_group_count=x.shape[-1],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )


def draw(side: int, dtype: str = "float32", size: tuple[int, int] = (8, 11)) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, *size, 6)), rng.normal(size=(side, side, 1, 6))
    return jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)


CASES = [
    (3, 1, ((1, 1), (1, 1))),
    (3, 2, ((1, 1), (1, 1))),
    (3, 2, SAME_3),
    (5, 1, ((2, 2), (2, 2))),
    (5, 2, SAME_5),
    (5, 2, ((2, 2), (1, 3))),
]


@pytest.mark.parametrize(("side", "stride", "padding"), CASES)
def test_value_and_gradients(side, stride, padding):
    x, kernel = draw(side)
    expected = reference(x, kernel, stride, padding)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=expected.shape), jnp.float32)

    def both(convolution):
        def loss(x, kernel):
            y = convolution(x, kernel, stride, padding)
            return jnp.sum(weight * y), y

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, kernel)

    (by_x, by_kernel), y = both(depthwise_convolution)
    (expected_by_x, expected_by_kernel), _ = both(reference)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(by_x, expected_by_x, atol=1e-5)
    np.testing.assert_allclose(by_kernel, expected_by_kernel, atol=1e-4)


def test_bfloat16_is_summed_in_float32():
    x, kernel = draw(5, "bfloat16")
    found = depthwise_convolution(x, kernel, 1, ((2, 2), (2, 2)))
    assert found.dtype == jnp.bfloat16
    exact = reference(x.astype(jnp.float32), kernel.astype(jnp.float32), 1, ((2, 2), (2, 2)))
    np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)
    by_x, by_kernel = jax.grad(
        lambda *a: depthwise_convolution(*a, 1, ((2, 2), (2, 2))).astype(jnp.float32).sum(), (0, 1)
    )(x, kernel)
    assert by_x.dtype == by_kernel.dtype == jnp.bfloat16


def test_split_over_devices():
    x, kernel = draw(3, size=(8, 8))
    x = jnp.tile(x, (4, 1, 1, 1))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
    gradients = jax.jit(jax.grad(lambda x, k: jnp.sum(depthwise_convolution(x, k, 2, SAME_3) ** 2), (0, 1)))
    for found, expected in zip(gradients(spread, kernel), gradients(x, kernel), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_counts_as_the_convolution_it_is():
    x, kernel = draw(3)
    cost = function_cost(lambda x, k: depthwise_convolution(x, k, 1, ((1, 1), (1, 1))), x, kernel).total
    assert cost.macs == x.size * 9


def test_other_platforms_get_the_librarys_convolution():
    x, kernel = draw(3)
    function = jax.jit(lambda x, k: depthwise_convolution(x, k, 1, ((1, 1), (1, 1))))
    lowered = {
        platform: function.trace(x, kernel).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert "stablehlo.convolution" not in lowered["cpu"]
    assert "stablehlo.convolution" in lowered["cuda"]
    assert "stablehlo.convolution" in lowered["tpu"]
