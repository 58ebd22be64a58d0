"""Converters, generator and fusion: what is masked has no say, pooling by hand, order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.modules.cross_modal import (
    Converter,
    Fusion,
    Generator,
    PixelPool,
    adaptive_average,
    sort_tokens,
)
from placerec_jax.modules.loop_position import PositionEncoder

DIM = 8


def made(module, *inputs, static: tuple = ()):
    """(variables of a fresh module, its compiled function of (variables, *inputs))."""
    variables = jax.jit(lambda *inputs: module.init(jax.random.key(0), *inputs, *static))(*inputs)
    return variables, jax.jit(lambda variables, *inputs: module.apply(variables, *inputs, *static))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def first(count: int, lengths: list[int]) -> np.ndarray:
    return np.arange(count) < np.array(lengths)[:, None]


def test_adaptive_average_is_the_mean_of_every_window():
    rng = np.random.default_rng(0)
    for count in (1, 3, 8, 16):
        lengths = np.array([0, 1, 2, *rng.integers(1, 33, 5), 32])
        x = random(len(lengths), 32, 3, seed=count)
        found = np.asarray(adaptive_average(jnp.asarray(x), jnp.asarray(lengths), count))
        for row, length in enumerate(lengths):
            for i in range(count):
                start, end = i * length // count, -(-(i + 1) * length // count)
                expected = x[row, start:end].mean(axis=0) if length else np.zeros(3)
                np.testing.assert_allclose(found[row, i], expected, atol=2e-6)


def test_adaptive_average_is_torchs():
    import torch

    x = random(2, 20, 3)
    theirs = torch.nn.functional.adaptive_avg_pool1d(torch.tensor(x[:, :13]).movedim(1, 2), 5)
    found = adaptive_average(jnp.asarray(x), jnp.array([13, 13]), 5)
    np.testing.assert_allclose(found, theirs.movedim(1, 2).numpy(), atol=2e-6)


def test_sorting_puts_real_tokens_first_by_score():
    tokens = jnp.arange(8.0).reshape(2, 4, 1)
    mask = jnp.array([[True, False, True, True], [False, True, False, False]])
    score = jnp.array([[0.1, 9.0, 0.3, 0.2], [5.0, 0.0, 6.0, 7.0]])
    found, found_mask = sort_tokens(tokens, mask, score)
    np.testing.assert_array_equal(found[0, :3, 0], [2.0, 3.0, 0.0])
    np.testing.assert_array_equal(found[1, 0], [5.0])
    np.testing.assert_array_equal(found_mask, first(4, [3, 1]))


@pytest.fixture(scope="module")
def converter():
    return made(Converter(), random(1, 5, DIM), np.ones((1, 5), bool))


def test_converter_keeps_the_order_of_tokens_and_ignores_masked_ones(converter):
    variables, convert = converter
    tokens, mask = random(2, 6, DIM), first(6, [6, 4])
    found = np.asarray(convert(variables, tokens, mask))
    order = np.array([3, 0, 5, 1, 4, 2])
    turned = convert(variables, tokens[:, order], mask[:, order])
    np.testing.assert_allclose(turned, found[:, order], atol=1e-5)
    changed = np.where(mask[..., None], tokens, 50.0)
    np.testing.assert_allclose(convert(variables, changed, mask), found, atol=1e-5)
    assert not found[1, 4:].any()


def generator(count: int):
    """Variables and function of the generator of `count` features; variables do not depend on it."""
    return made(Generator(), random(1, 6, DIM), np.ones((1, 6), bool), static=(count,))


def test_generator_ignores_what_is_masked_and_makes_nothing_of_nothing():
    variables, generate = generator(3)
    tokens, mask = random(2, 6, DIM), first(6, [4, 0])
    found = np.asarray(generate(variables, tokens, mask))
    assert found.shape == (2, 3, DIM)
    assert np.abs(found[0]).max() > 0
    assert not found[1].any()
    changed = np.where(mask[..., None], tokens, 50.0)
    np.testing.assert_allclose(generate(variables, changed, mask), found, atol=1e-5)


def test_equal_tokens_generate_one_feature():
    """As many or more tokens than key points, a multiple of them: every window holds whole tokens."""
    variables, generate = generator(3)
    one = random(1, 1, DIM)
    single = generator(1)[1](variables, one, np.ones((1, 1), bool))
    for count in (3, 6):
        tokens = np.repeat(one, count, axis=1)
        found = generate(variables, tokens, np.ones((1, count), bool))
        np.testing.assert_allclose(found, np.repeat(single, 3, axis=1), atol=1e-5)


def test_pixels_of_a_cell_are_pooled_as_segments_are():
    """Against a segment maximum over the list of pairs; a cell without pixels is zero without gradient."""
    pixels, lengths = random(1, 3, 4, DIM), [3, 0, 1]
    mask = first(4, lengths)[None]
    variables, pool = made(PixelPool(), pixels, mask, static=(DIM,))
    found = pool(variables, pixels, mask)
    linear = variables["params"]["linear"]
    values = pixels[mask] @ linear["kernel"] + linear["bias"]
    segments = jax.ops.segment_max(values, np.repeat(np.arange(3), lengths), num_segments=3)
    expected = jnp.where(jnp.array(lengths)[:, None] > 0, segments, 0.0)
    np.testing.assert_allclose(found[0], expected, atol=1e-6)

    gradient = jax.jit(jax.grad(lambda pixels: jnp.sum(pool(variables, pixels, mask) ** 2)))(pixels)
    assert np.isfinite(gradient).all()
    assert not gradient[~mask].any()
    assert np.abs(gradient[mask]).max() > 0


@pytest.mark.parametrize("with_memory", [True, False])
def test_fusion_ignores_masked_key_points_and_unknown_sources(with_memory: bool):
    features, sources, mask = random(2, 5, DIM), random(2, 5, 3, DIM, seed=1), first(5, [5, 3])
    known = np.array([[True, True, True], [True, False, True]])
    memory = random(2, 5, DIM, seed=2) if with_memory else None
    variables, fuse = made(Fusion(), features, sources, known, memory, mask)
    found = np.asarray(fuse(variables, features, sources, known, memory, mask))
    other = sources.copy()
    other[1, :, 1] = 100.0
    changed = None if memory is None else np.where(mask[..., None], memory, 70.0)
    again = np.asarray(fuse(variables, features, other, known, changed, mask))
    np.testing.assert_allclose(again[mask], found[mask], atol=1e-5)
    other[1, :, 2] += 1.0
    again = np.asarray(fuse(variables, features, other, known, changed, mask))
    assert np.abs(again[1, :3] - found[1, :3]).max() > 1e-3


def test_position_is_the_same_after_a_rigid_motion_and_counts_real_points_only():
    rng = np.random.default_rng(0)
    xy, mask = rng.uniform(-20, 20, (1, 9, 2)).astype(np.float32), first(9, [7])
    features = random(1, 9, DIM)
    variables, encode = made(PositionEncoder(reach=60.0, bins=6), features, xy, mask)
    found = encode(variables, features, xy, mask)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]], np.float32)
    moved = np.where(mask[..., None], xy @ turn.T + np.float32(3.0), 1e3)
    np.testing.assert_allclose(encode(variables, features, moved, mask), found, atol=1e-5)
    assert np.abs(found - features).max() > 1e-3
    # What it adds is linear in the histogram: a row of shares that sum to one, and a bias.
    linear = variables["params"]["linear"]
    distance = np.linalg.norm(xy[0, :7, None] - xy[0, None, :7], axis=-1)
    shares = np.stack(
        [np.histogram(np.delete(row, i), bins=6, range=(0, 60))[0] / 6 for i, row in enumerate(distance)]
    )
    expected = features[0, :7] + shares @ linear["kernel"] + linear["bias"]
    np.testing.assert_allclose(found[0, :7], expected, atol=1e-5)
