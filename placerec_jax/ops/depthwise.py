"""Depthwise convolution: every channel with its own filter.

A CPU computes the grouped convolution of XLA some 20 to 300 times slower than the sum of shifted products
that it is, so there it is written as that sum; elsewhere the library's convolution is the faster one.
"""

import functools

import jax
import jax.numpy as jnp

Padding = tuple[tuple[int, int], tuple[int, int]]  # zeros (before, after) rows and columns


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """(B, H, W, C), (k, k, 1, C) of one dtype → (B, H', W', C) of that dtype."""
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(_shifted_sum, stride=stride, padding=padding),
        default=functools.partial(_convolution, stride=stride, padding=padding),
    )


def _forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return depthwise_convolution(x, kernel, stride, padding), (x, kernel)


def _backward(
    stride: int, padding: Padding, inputs: tuple[jax.Array, jax.Array], upstream: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Not left to differentiation: what it makes of the sum reads the image once for every tap and channel.
    def of_convolution(x: jax.Array, kernel: jax.Array, upstream: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, pull_back = jax.vjp(lambda x, k: _convolution(x, k, stride, padding), x, kernel)
        return pull_back(upstream)

    return jax.lax.platform_dependent(
        *inputs,
        upstream,
        cpu=functools.partial(_shifted_gradients, stride=stride, padding=padding),
        default=of_convolution,
    )


depthwise_convolution.defvjp(_forward, _backward)


def _convolution(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        feature_group_count=x.shape[-1],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _shifted_sum(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Σ_ij kernel[i, j] · (x moved by (i, j)), summed in float32."""
    side = kernel.shape[0]
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32)
    rows, columns = ((n - side) // stride + 1 for n in padded.shape[1:3])
    products = (
        padded[:, i : i + (rows - 1) * stride + 1 : stride, j : j + (columns - 1) * stride + 1 : stride]
        * kernel[i, j, 0].astype(jnp.float32)
        for i in range(side)
        for j in range(side)
    )
    return functools.reduce(jnp.add, products).astype(x.dtype)


def _shifted_gradients(
    x: jax.Array, kernel: jax.Array, upstream: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, jax.Array]:
    """Gradients by x: the flipped kernel over the dilated upstream; by the kernel: one product a tap."""
    side, (height, width) = kernel.shape[0], x.shape[1:3]
    rows, columns = upstream.shape[1:3]
    spread = [
        (side - 1 - before, size + before - (count - 1) * stride - 1, stride - 1)
        for (before, _), size, count in zip(padding, (height, width), (rows, columns), strict=True)
    ]
    dilated = jax.lax.pad(upstream, jnp.zeros((), upstream.dtype), ((0, 0, 0), *spread, (0, 0, 0)))
    by_x = _shifted_sum(dilated, kernel[::-1, ::-1], 1, ((0, 0), (0, 0)))

    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    extent = (x.shape[0], (rows - 1) * stride + 1, (columns - 1) * stride + 1, x.shape[-1])

    def tap(_: None, place: jax.Array) -> tuple[None, jax.Array]:
        window = jax.lax.dynamic_slice(padded, (0, place[0], place[1], 0), extent)[:, ::stride, ::stride]
        return None, jnp.einsum("bhwc,bhwc->c", window, upstream, preferred_element_type=jnp.float32)

    places = jnp.stack(jnp.meshgrid(*[jnp.arange(side)] * 2, indexing="ij"), -1).reshape(-1, 2)
    _, by_tap = jax.lax.scan(tap, None, places)
    return by_x, by_tap.reshape(kernel.shape).astype(kernel.dtype)
