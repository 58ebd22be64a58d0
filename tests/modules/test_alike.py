"""ALIKE-style backbone: its published size, corner-aligned enlargement, and a constant for a constant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.modules.alike import SIZES, Alike


def parameters(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def everything(module: Alike, x: jax.Array, train: bool):
    features, score = module(x, train)
    return module.read(features), score


def test_size_n_has_the_parameters_of_the_published_network():
    """329,168 of ALIKE-n with three input channels; nothing is computed."""
    module = Alike(SIZES["n"])
    x = jax.ShapeDtypeStruct((1, 64, 96, 3), np.float32)
    (features, score), variables = jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x, False, method=everything), x
    )
    assert parameters(variables["params"]) == 329_168
    assert features.shape == (1, 64, 96, 128)
    assert score.shape == (1, 64, 96)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_is_built(size: str):
    x = jax.ShapeDtypeStruct((2, 32, 32, 5), np.float32)
    (features, _), _ = jax.eval_shape(
        lambda x: Alike(SIZES[size]).init_with_output(jax.random.key(0), x, True, method=everything), x
    )
    assert features.shape == (2, 32, 32, SIZES[size].dim)


def test_input_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"\(32, 48\) cells; expected multiples of 32"):
        jax.eval_shape(
            lambda x: Alike(SIZES["t"]).init(jax.random.key(0), x, True), jnp.zeros((1, 32, 48, 1))
        )


@pytest.fixture(scope="module")
def random_network():
    """Module, input, variables with running statistics that are not those of a fresh network."""
    module = Alike(SIZES["t"])
    x = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    variables = jax.jit(lambda x: module.init(jax.random.key(0), x, False, method=everything))(x)
    keys = iter(jax.random.split(jax.random.key(2), 200))
    shaken = jax.tree.map(
        lambda leaf: jnp.abs(leaf + 0.3 * jax.random.normal(next(keys), leaf.shape)), variables["batch_stats"]
    )
    return module, x, {**variables, "batch_stats": shaken}


def test_reading_after_gathering_is_gathering_after_reading(random_network):
    """The map is a cheaper stand-in for the features: read(map)[i] = read(map[i])."""
    module, x, variables = random_network
    features, score = jax.jit(lambda v, x: module.apply(v, x, False))(variables, x)
    whole = module.apply(variables, features, method=module.read)
    some = module.apply(variables, features[:, 5:9, 7], method=module.read)
    np.testing.assert_allclose(some, whole[:, 5:9, 7], rtol=1e-5, atol=1e-6)
    cells = np.array([[5 * 64 + 7, 0, 64 * 64 - 1], [63, 3 * 64 + 2, 8 * 64]])
    at = module.apply(variables, features, cells, method=module.features_at)
    expected = np.take_along_axis(np.asarray(whole).reshape(2, 64 * 64, -1), cells[..., None], axis=1)
    np.testing.assert_allclose(at, expected, rtol=1e-5, atol=1e-6)
    assert (score > 0).all()
    assert (score < 1).all()


def test_half_precision_leaves_scores_distinct(random_network):
    """Scores that tie with their neighbours' would all be key points: bfloat16 has 128 numbers an octave."""
    module, x, variables = random_network
    half = Alike(SIZES["t"], dtype=jnp.bfloat16)
    features, score = jax.jit(lambda v, x: half.apply(v, x, False))(variables, x)
    exact = jax.jit(lambda v, x: module.apply(v, x, False)[1])(variables, x)
    assert features.dtype == jnp.bfloat16
    assert score.dtype == jnp.float32
    np.testing.assert_allclose(score, exact, atol=0.05)
    assert len(np.unique(score)) > 0.9 * len(np.unique(exact))


def test_borders_show_only_where_they_are_zeros(random_network):
    """A constant image gives a constant map with borders replicated, of any size; with zeros it does not."""
    _, _, variables = random_network
    image = jnp.full((1, 64, 96, 3), 0.4)
    replicated = Alike(SIZES["t"], padding="replicate")
    encode = jax.jit(lambda v, x: replicated.apply(v, x, False, method=replicated.encode))
    found = np.asarray(encode(variables, image))
    np.testing.assert_allclose(found, np.broadcast_to(found[:, :1, :1], found.shape), rtol=1e-4, atol=1e-5)
    small = encode(variables, image[:, :32, :32])
    np.testing.assert_allclose(small[:, 0, 0], found[:, 0, 0], rtol=1e-4, atol=1e-5)
    zeros = Alike(SIZES["t"])
    found = jax.jit(lambda v, x: zeros.apply(v, x, False, method=zeros.encode))(variables, image)
    assert np.abs(found - found[:, :1, :1]).max() > 0.01
