"""Circular harmonics: exact at right angles, close at any angle, and not blind to what is mirrored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import ndimage

from placerec_jax.modules.harmonic import HarmonicBackbone, HarmonicConv, HarmonicSize, circular_harmonics

SIDE = 64
SIZE = HarmonicSize(levels=((4, 8), (4, 16)), dim=16)


def hills(yaw: float = 0.0, mirrored: bool = False, width: float = 3.0) -> np.ndarray:
    """(1, SIDE, SIDE, 2) float32: Gaussian hills, turned about the middle by `yaw` (rad), rows to columns."""
    rng = np.random.default_rng(0)
    row, column = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    image = np.zeros((SIDE, SIDE, 2))
    for number in range(16):
        radius, azimuth = rng.uniform(2, 20), rng.uniform(0, 2 * np.pi)
        azimuth = -azimuth if mirrored else azimuth + yaw
        distance = np.hypot(row - radius * np.cos(azimuth), column - radius * np.sin(azimuth))
        image[..., number % 2] += np.exp(-(distance**2) / (2 * width**2))
    return image[None].astype(np.float32)


def turned_back(x: np.ndarray, yaw: float) -> np.ndarray:
    """(1, H, W, C) map of a turned image, read where its content came from: within 0.6 of the half width."""
    side = x.shape[1]
    middle, reach = (side - 1) / 2, int(0.6 * side / 2)
    row, column = np.mgrid[-reach : reach + 1, -reach : reach + 1] + 0.5 * (side % 2 == 0)
    keep = np.hypot(row, column) <= reach
    row, column = row[keep], column[keep]
    where = np.array([row * np.cos(yaw) - column * np.sin(yaw), row * np.sin(yaw) + column * np.cos(yaw)])
    return np.stack([ndimage.map_coordinates(c, where + middle, order=3) for c in np.moveaxis(x[0], -1, 0)])


def change(function, yaw: float, width: float = 3.0) -> float:
    """How much of a map changes as an image of hills turns: 0 where the map turns with it."""
    still = turned_back(np.asarray(function(hills(width=width))), 0.0)
    turned = turned_back(np.asarray(function(hills(yaw, width=width))), yaw)
    return float(np.linalg.norm(turned - still) / np.linalg.norm(still - still.mean(axis=1, keepdims=True)))


def quarter_turn(x):
    """(B, H, W, ...) turned by 90 degrees: what was at (row, column) goes to (column, last − row)."""
    return np.rot90(np.asarray(x), k=-1, axes=(1, 2))


@pytest.fixture(scope="module")
def network():
    """Module and variables whose running statistics are not those of a fresh network."""
    module = HarmonicBackbone(SIZE)

    def everything(module, x):
        levels, score = module(x, False)
        return module.features_at(levels, jnp.zeros((1, 1), jnp.int32)), score

    variables = jax.jit(lambda x: module.init(jax.random.key(0), x, method=everything))(hills())
    keys = iter(jax.random.split(jax.random.key(2), 200))
    shaken = jax.tree.map(
        lambda leaf: jnp.abs(leaf + 0.3 * jax.random.normal(next(keys), leaf.shape)), variables["batch_stats"]
    )
    return module, {**variables, "batch_stats": shaken}


@pytest.fixture(scope="module")
def run(network):
    """(B, H, W, 2) → levels and score."""
    module, variables = network
    return jax.jit(lambda x: module.apply(variables, x, False))


# --- Filters and one convolution ----------------------------------------------------------------------------


def test_filters_of_different_orders_are_orthogonal():
    """Orders 0 to 3: of each ring with each; further ones a square grid cannot tell apart exactly."""
    filters = circular_harmonics(3, 3)
    assert [f.shape for f in filters] == [(7, 7, 4), (7, 7, 3), (7, 7, 3), (7, 7, 2)]
    for order, some in enumerate(filters):
        np.testing.assert_allclose(np.linalg.norm(some.reshape(49, -1), axis=0), 1.0, rtol=1e-6)
        for others in filters[order + 1 :]:
            product = np.einsum("hwr,hws->rs", some.conj(), others)
            np.testing.assert_allclose(product, 0, atol=1e-6)


def test_a_quarter_turn_of_a_filter_is_a_change_of_phase():
    for order, filters in enumerate(circular_harmonics(3, 3)):
        turned = np.rot90(filters, k=-1, axes=(0, 1))  # the azimuth falls by 90 degrees
        np.testing.assert_allclose(turned, filters * np.exp(0.5j * np.pi * order), atol=1e-6)


def test_magnitudes_by_hand():
    """Against complex correlations in NumPy, summed over rings and inputs."""
    module = HarmonicConv(features=2, radius=2, orders=2)
    x = np.random.default_rng(0).normal(size=(1, 9, 9, 3)).astype(np.float32)
    variables = module.init(jax.random.key(0), x)
    found = np.asarray(module.apply(variables, x))[0]
    weights = variables["params"]
    for order, filters in enumerate(circular_harmonics(2, 2)):
        profile = np.asarray(weights[f"real{order}"], complex)
        if order:
            profile = profile + 1j * np.asarray(weights[f"imaginary{order}"])
        for feature in range(2):
            total = sum(
                ndimage.correlate(x[0, ..., i], part, mode="constant") * factor
                for i in range(3)
                for kernel in [filters @ profile[:, i, feature]]
                for part, factor in ((kernel.real, 1), (kernel.imag, 1j))
            )
            expected = np.abs(total) if order else total.real
            np.testing.assert_allclose(found[..., 2 * order + feature], expected, atol=2e-3)


def test_a_convolution_turns_with_its_image_and_an_ordinary_one_does_not():
    """By 37 degrees, both with random weights of 7 x 7 cells and 16 outputs."""
    harmonic, ordinary = HarmonicConv(4), nn.Conv(16, (7, 7))
    changes = {}
    for name, module in (("harmonic", harmonic), ("ordinary", ordinary)):
        run = jax.jit(lambda x, m=module: m.init_with_output(jax.random.key(0), x)[0])
        changes[name] = change(run, np.deg2rad(37))
    assert changes["harmonic"] < 0.15
    assert changes["ordinary"] > 0.4


def test_a_mirror_image_is_another():
    """Magnitudes of complex profiles tell left from right; of real ones they would not."""
    module = HarmonicConv(4)
    variables = module.init(jax.random.key(0), hills())
    real = {
        name: jnp.zeros_like(x) if name.startswith("imaginary") else x
        for name, x in variables["params"].items()
    }
    for params, least, most in ((variables["params"], 0.1, np.inf), (real, 0, 1e-4)):
        found, mirrored = (
            np.asarray(module.apply({"params": params}, hills(mirrored=flag))) for flag in (False, True)
        )
        mirrored = mirrored[:, :, ::-1]  # columns run the other way
        difference = np.linalg.norm(found - mirrored) / np.linalg.norm(found)
        assert least <= difference <= most


# --- The backbone -------------------------------------------------------------------------------------------


def rough() -> np.ndarray:
    """(1, SIDE, SIDE, 2): hills with noise, which no interpolation would keep."""
    return hills() + np.random.default_rng(0).random((1, SIDE, SIDE, 2)).astype(np.float32)


def test_levels_and_score_turn_with_the_scene_at_right_angles(run):
    levels, score = run(rough())
    turned_levels, turned_score = run(quarter_turn(rough()))
    assert [level.shape for level in levels] == [(1, 32, 32, 8), (1, 16, 16, 16)]
    for level, turned in zip(levels, turned_levels, strict=True):
        largest = np.abs(level).max()
        np.testing.assert_allclose(turned, quarter_turn(level), atol=1e-4 * largest)
        assert np.abs(turned - level).max() > 0.1 * largest
    np.testing.assert_allclose(turned_score, quarter_turn(score), atol=1e-5)
    assert ((score > 0) & (score < 1)).all()
    assert score.dtype == jnp.float32


def test_features_are_those_of_the_same_place_after_a_quarter_turn(run, network):
    module, variables = network
    row, column = np.random.default_rng(1).integers(0, SIDE, (2, 50))
    row[:4], column[:4] = [0, 0, SIDE - 1, SIDE - 1], [0, SIDE - 1, 0, SIDE - 1]  # corners
    read = jax.jit(lambda levels, cell: module.apply(variables, levels, cell, method=module.features_at))
    found = np.asarray(read(run(rough())[0], (row * SIDE + column)[None]))
    turned = np.asarray(read(run(quarter_turn(rough()))[0], (column * SIDE + SIDE - 1 - row)[None]))
    assert found.shape == (1, 50, 16)
    np.testing.assert_allclose(turned, found, atol=1e-4 * np.abs(found).max())
    assert np.abs(found - found[:, :1]).max() > 0.1 * np.abs(found).max()


def test_features_are_the_levels_at_that_place(network):
    """A level that is a plane is read at the middle of the cell, in the cells of that level."""
    module, variables = network
    row, column = np.array([5, 30, 41]), np.array([12, 31, 8])
    levels = []
    for (_, channels), side in zip(SIZE.levels, (32, 16), strict=True):
        centre = (np.arange(side) + 0.5) * (SIDE / side) - 0.5  # in cells of the input
        level = np.zeros((1, side, side, channels), np.float32)
        level[0, ..., 0], level[0, ..., 1] = centre[:, None], centre[None, :]
        levels.append(jnp.asarray(level))
    cell = (row * SIDE + column)[None]
    found = jax.jit(lambda x: module.apply(variables, x, cell, method=module.features_at))(levels)
    kernel = np.asarray(variables["params"]["feature_head"]["kernel"])
    first = np.cumsum([0, *(channels for _, channels in SIZE.levels[:-1])])
    expected = row[:, None] * kernel[first].sum(0) + column[:, None] * kernel[first + 1].sum(0)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-3)


def test_levels_and_score_turn_with_the_scene_at_any_angle(run):
    yaw = np.deg2rad(37)
    assert change(lambda x: run(x)[1][..., None], yaw, width=6.0) < 0.2
    assert change(lambda x: run(x)[0][0], yaw, width=6.0) < 0.2
    # Hills of 6 cells are 1.5 of this level's: less smooth, and sampled at few places.
    assert change(lambda x: run(x)[0][1], yaw, width=6.0) < 0.45


@pytest.fixture(scope="module")
def gradient(network):
    """(1, SIDE, SIDE, 2) → gradients with respect to parameters and input of a sum of all that comes out."""
    module, variables = network

    def total(params, x):
        def everything(module):
            levels, score = module(x, True)
            return module.features_at(levels, jnp.arange(0, SIDE * SIDE, 77)[None]), score

        everywhere = {**variables, "params": params}
        (found, score), _ = module.apply(everywhere, mutable=["batch_stats"], method=everything)
        return (found**2).sum() + (score**2).sum()

    return jax.jit(lambda x: jax.grad(total, argnums=(0, 1))(variables["params"], x))


def test_nothing_gives_finite_gradients(gradient):
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(np.zeros_like(hills()))):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)


def test_every_parameter_learns(gradient):
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(hills())):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)


def test_input_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"\(64, 62\) cells; expected multiples of 4"):
        jax.eval_shape(
            lambda x: HarmonicBackbone(SIZE).init(jax.random.key(0), x, True), jnp.zeros((1, 64, 62, 1))
        )
