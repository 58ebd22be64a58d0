"""Weighted rigid fits: against the decomposition of NumPy, and their gradients where others have none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from placerec_jax.ops import rigid, rigid_fit

# Compiled whole: the tests spend their time on compiling small operations otherwise.
FITS = {2: jax.jit(rigid_fit.fit_se2), 3: jax.jit(rigid_fit.fit_se3)}


def kabsch(source: np.ndarray, target: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, D), (N, D), (N,) → (D, D) R, (D,) t by the singular value decomposition in float64, det = +1."""
    w = weight / weight.sum()
    source_mean, target_mean = w @ source, w @ target
    u, _, vt = np.linalg.svd(((source - source_mean) * w[:, None]).T @ (target - target_mean))
    signs = np.ones(source.shape[1])
    signs[-1] = np.linalg.det(vt.T @ u.T)
    rotation = vt.T @ np.diag(signs) @ u.T
    return rotation, target_mean - rotation @ source_mean


def parts(transform: jax.Array, dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """A fit's answer as (D, D) R and (D,) t."""
    transform = np.asarray(transform, np.float64)
    if dimensions == 3:
        return transform[:3, :3], transform[:3, 3]
    cos, sin = np.cos(transform[2]), np.sin(transform[2])
    return np.array([[cos, -sin], [sin, cos]]), transform[:2]


def matched_points(dimensions: int, seed: int, noise: float, count=200):
    """Points of a scan (flat in space), where a random motion brings them, and weights."""
    rng = np.random.default_rng(seed)
    source = rng.uniform(-30, 30, (count, dimensions))
    if dimensions == 3:
        source[:, 2] = rng.uniform(-2, 1, count)
        rotation = Rotation.random(random_state=seed).as_matrix()
    else:
        rotation = Rotation.from_euler("z", rng.uniform(-np.pi, np.pi)).as_matrix()[:2, :2]
    translation = rng.uniform(-10, 10, dimensions)
    target = source @ rotation.T + translation + rng.normal(0, noise, source.shape)
    return source, target, rng.random(count), rotation, translation


def on_device(*arrays: np.ndarray) -> tuple[jax.Array, ...]:
    return tuple(jnp.asarray(a, jnp.float32) for a in arrays)


@pytest.mark.parametrize("dimensions", FITS)
@pytest.mark.parametrize("seed", range(4))
def test_an_exact_motion_is_recovered(dimensions, seed):
    source, target, weight, rotation, translation = matched_points(dimensions, seed, noise=0)
    found_R, found_t = parts(FITS[dimensions](*on_device(source, target, weight)), dimensions)
    np.testing.assert_allclose(found_R, rotation, atol=1e-5)
    # 1e-5 of what the coordinates are: 30 m have a rounding of 2e-6 m in float32.
    np.testing.assert_allclose(found_t, translation, atol=3e-5)


@pytest.mark.parametrize("dimensions", FITS)
@pytest.mark.parametrize("noise", [0.1, 3.0, 60.0])
def test_the_fit_of_noisy_points_is_that_of_numpys_decomposition(dimensions, noise):
    for seed in range(5):
        source, target, weight, _, _ = matched_points(dimensions, seed, noise)
        expected_R, expected_t = kabsch(source, target, weight)
        found_R, found_t = parts(FITS[dimensions](*on_device(source, target, weight)), dimensions)
        np.testing.assert_allclose(found_R, expected_R, atol=2e-5)
        np.testing.assert_allclose(found_t, expected_t, atol=1e-3)


@pytest.mark.parametrize("dimensions", FITS)
def test_mirrored_points_are_fitted_by_a_rotation(dimensions):
    source, target, weight, _, _ = matched_points(dimensions, 0, noise=0.5)
    target[:, -1] *= -1
    if dimensions == 3:
        source[:, 2] *= 8  # not flat, so that the mirror image is the better orthogonal fit
        target[:, 2] = -source[:, 2]
    expected_R, _ = kabsch(source, target, weight)
    found_R, _ = parts(FITS[dimensions](*on_device(source, target, weight)), dimensions)
    np.testing.assert_allclose(np.linalg.det(found_R), 1, atol=1e-5)
    np.testing.assert_allclose(found_R, expected_R, atol=1e-4)


@pytest.mark.parametrize("dimensions", FITS)
def test_points_without_weight_have_no_influence_and_the_scale_of_the_weights_none(dimensions):
    source, target, weight, _, _ = matched_points(dimensions, 1, noise=1.0)
    expected = FITS[dimensions](*on_device(source, target, weight))
    more_source, more_target = (np.concatenate([a, np.full((7, dimensions), 1e4)]) for a in (source, target))
    more_weight = np.concatenate([weight, np.zeros(7)])
    padded = FITS[dimensions](*on_device(more_source, more_target, more_weight))
    np.testing.assert_allclose(padded, expected, atol=2e-5)
    scaled = FITS[dimensions](*on_device(source, target, weight * 1e-4))
    np.testing.assert_allclose(scaled, expected, atol=2e-5)


@pytest.mark.parametrize("dimensions", FITS)
def test_batched_jitted_and_mapped_are_one_by_one(dimensions):
    stacks = zip(*(matched_points(dimensions, seed, 1.0)[:3] for seed in range(6)), strict=True)
    batch = on_device(*(np.stack(a) for a in stacks))
    fit = FITS[dimensions]
    expected = [fit(*(a[i] for a in batch)) for i in range(6)]
    np.testing.assert_allclose(jax.jit(fit)(*batch), expected, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(fit)(*batch), expected, atol=1e-5)
    paired = fit(*(a.reshape(2, 3, *a.shape[1:]) for a in batch))
    np.testing.assert_allclose(paired.reshape(6, *paired.shape[2:]), expected, atol=1e-5)


@pytest.mark.parametrize("dimensions", FITS)
def test_gradients_are_those_of_finite_differences(dimensions):
    with jax.enable_x64(True):
        source, target, weight, _, _ = matched_points(dimensions, 2, noise=2.0, count=6)
        source, target = source / 10, target / 10
        expected = jax.grad(lambda s: FITS[dimensions](s, target, weight).sum())(source)
        step = 1e-2  # the fits compute in float32
        for place in [(0, 0), (3, 1), (5, dimensions - 1)]:
            ends = []
            for sign in (1, -1):
                moved = source.copy()
                moved[place] += sign * step
                rotation, translation = kabsch(moved, target, weight)
                angle = np.arctan2(rotation[1, 0], rotation[0, 0]) if dimensions == 2 else rotation.sum()
                ends.append(angle + translation.sum())
            np.testing.assert_allclose(expected[place], (ends[0] - ends[1]) / (2 * step), atol=2e-4)


@pytest.mark.parametrize(
    "correlation",
    [
        np.random.default_rng(0).normal(size=(3, 3)),
        2 * np.eye(3),  # three equal singular values: where the derivative of the decomposition is NaN
        np.diag([3.0, 1.0, 1.0]),
        np.diag([2.0, 1.0, 0.0]),  # points on a plane
        np.diag([3.0, 2.0, -1.0]),  # better fitted by a mirror image
    ],
    ids=["random", "isotropic", "two equal", "flat", "mirrored"],
)
def test_the_rotations_derivatives_are_right_where_singular_values_coincide(correlation):
    with jax.enable_x64(True):
        check_grads(rigid_fit.rotation_of, (jnp.asarray(correlation),), order=1, modes=["fwd", "rev"])


LINE = np.linspace(-3, 5, 8)[:, None]
CORNERS = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1], indexing="ij"), axis=-1).reshape(8, 3)
SCATTERED = np.random.default_rng(5).normal(size=(8, 3)) * 10
# name: (source, target, weight, does this determine a rotation in the plane and in space)
DEGENERATE = {
    "one place each": (SCATTERED * 0 + 3, SCATTERED * 0 + 1, np.ones(8), (False, False)),
    "one target": (SCATTERED, SCATTERED * 0 + 1, np.ones(8), (False, False)),
    "one line": (LINE * [1, 2, 3], LINE * [3, 1, 2] + 1, np.ones(8), (True, False)),
    "no weight": (SCATTERED, SCATTERED[::-1], np.zeros(8), (False, False)),
    "one point": (SCATTERED, SCATTERED[::-1], np.eye(8)[0], (False, False)),
    "isotropic": (CORNERS, CORNERS + 1, np.ones(8), (True, True)),
    "isotropic mirror": (CORNERS, CORNERS * [1, 1, -1], np.ones(8), (True, False)),
    "uncorrelated in the plane": (CORNERS, CORNERS * [1, -1, 0], np.ones(8), (False, True)),
}


@pytest.mark.parametrize("dimensions", FITS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_degenerate_points_give_finite_fits_and_gradients(name, dimensions):
    source, target, weight, determined = DEGENERATE[name]
    points = on_device(source[:, :dimensions], target[:, :dimensions], weight)

    def rotation(*points):
        transform = FITS[dimensions](*points)
        return transform[2] if dimensions == 2 else transform[:3, :3]

    by_all = (0, 1, 2)
    value = FITS[dimensions](*points)
    assert np.isfinite(value).all()
    gradients = jax.jit(jax.jacrev(FITS[dimensions], by_all))(*points)
    assert all(np.isfinite(g).all() for g in gradients)
    found_R, found_t = parts(value, dimensions)
    np.testing.assert_allclose(np.linalg.det(found_R), 1, atol=1e-5)
    if determined[dimensions - 2]:
        return
    np.testing.assert_array_equal(found_R, np.eye(dimensions))
    for gradient in jax.jit(jax.jacrev(rotation, by_all))(*points):
        np.testing.assert_array_equal(gradient, 0)
    w = weight / max(weight.sum(), 1e-9)
    shift = w @ target[:, :dimensions] - w @ source[:, :dimensions]
    np.testing.assert_allclose(found_t, shift, atol=1e-5)
    if not weight.any():
        np.testing.assert_array_equal(found_t, 0)
        assert not any(np.any(g) for g in gradients)


def test_an_isotropic_fit_in_space_is_exact_and_so_are_its_gradients():
    rotation = Rotation.from_euler("xyz", [0.3, -0.2, 1.0]).as_matrix()
    points = on_device(CORNERS, CORNERS @ rotation.T, np.ones(8))
    np.testing.assert_allclose(rigid_fit.fit_se3(*points)[:3, :3], rotation, atol=1e-6)
    # Turning every target by a small angle turns the fit by as much.
    turn = jnp.asarray(np.cross(np.eye(3)[2], np.asarray(points[1])), jnp.float32)
    _, tangent = jax.jvp(lambda t: rigid_fit.fit_se3(points[0], t, points[2]), (points[1],), (turn,))
    np.testing.assert_allclose(tangent[:3, :3], np.cross(np.eye(3)[2], rotation, axisb=0).T, atol=1e-5)


def test_the_plane_fit_is_the_space_fit_of_flat_points():
    source, target, weight, _, _ = matched_points(2, 3, noise=2.0)
    flat = [np.concatenate([a, np.zeros((len(a), 1))], axis=1) for a in (source, target)]
    in_space = np.asarray(rigid_fit.fit_se3(*on_device(*flat, weight)))
    in_plane = np.asarray(rigid_fit.fit_se2(*on_device(source, target, weight)))
    np.testing.assert_allclose(in_plane[:2], in_space[:2, 3], atol=1e-5)
    np.testing.assert_allclose(in_plane[2], rigid.yaw_of(in_space[:3, :3]), atol=1e-6)
    np.testing.assert_allclose(in_space[2], [0, 0, 1, 0], atol=1e-6)
