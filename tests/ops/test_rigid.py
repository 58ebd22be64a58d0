"""SE(2) and SE(3): group laws, host and device alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from placerec_jax.ops import rigid


def poses(seed: int, count: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).uniform([-40, -40, -np.pi], [40, 40, np.pi], (count, 3))


def matrix(pose: np.ndarray) -> np.ndarray:
    x, y, yaw = pose
    return np.array([[np.cos(yaw), -np.sin(yaw), x], [np.sin(yaw), np.cos(yaw), y], [0, 0, 1]])


def test_se2_compose_is_matrix_product():
    a, b = poses(0), poses(1)
    composed = rigid.se2_compose(a, b)
    for i in range(len(a)):
        np.testing.assert_allclose(matrix(composed[i]), matrix(a[i]) @ matrix(b[i]), atol=1e-9)


def test_se2_inverse_identity_and_associativity():
    a, b, c = poses(0), poses(1), poses(2)
    np.testing.assert_allclose(rigid.se2_compose(a, rigid.se2_inverse(a)), np.zeros_like(a), atol=1e-9)
    np.testing.assert_allclose(rigid.se2_compose(a, np.zeros_like(a)), a, atol=1e-9)
    left = rigid.se2_compose(rigid.se2_compose(a, b), c)
    right = rigid.se2_compose(a, rigid.se2_compose(b, c))
    np.testing.assert_allclose(matrix(left[0]), matrix(right[0]), atol=1e-9)
    # What the two stages rely on: T2 = T·T1⁻¹ composed with T1 is T again.
    residual = rigid.se2_compose(a, rigid.se2_inverse(b))
    np.testing.assert_allclose(rigid.se2_compose(residual, b)[:, :2], a[:, :2], atol=1e-9)


def test_wrap_angle_at_the_seam():
    degrees = np.array([180.0, -180.0, 181.0, -181.0, 540.0, 359.0, 0.0])
    wrapped = np.rad2deg(rigid.wrap_angle(np.deg2rad(degrees)))
    np.testing.assert_allclose(wrapped, [180, 180, -179, 179, 180, -1, 0], atol=1e-9)


def test_numpy_stays_float64_and_jax_stays_on_device():
    a, b = poses(0), poses(1)
    assert rigid.se2_compose(a, b).dtype == np.float64
    on_device = rigid.se2_compose(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    assert isinstance(on_device, jnp.ndarray)
    np.testing.assert_allclose(on_device[:, :2], rigid.se2_compose(a, b)[:, :2], atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_rigid_matrices(seed: int):
    rng = np.random.default_rng(seed)
    quaternion = rng.normal(size=(5, 4))
    quaternion /= np.linalg.norm(quaternion, axis=-1, keepdims=True)
    rotation = rigid.quaternion_to_matrix(quaternion)
    np.testing.assert_allclose(
        rotation @ np.swapaxes(rotation, -1, -2), np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-9
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1.0)
    transform = rigid.rigid_matrix(rotation, rng.normal(size=(5, 3)))
    np.testing.assert_allclose(rigid.rigid_inverse(transform), np.linalg.inv(transform), atol=1e-9)
    points = rng.normal(size=(5, 7, 3))
    back = rigid.rigid_apply(rigid.rigid_inverse(transform), rigid.rigid_apply(transform, points))
    np.testing.assert_allclose(back, points, atol=1e-9)


def test_yaw_of_a_turn_about_z():
    half = np.deg2rad(70) / 2
    rotation = rigid.quaternion_to_matrix(np.array([np.cos(half), 0, 0, np.sin(half)]))
    assert np.rad2deg(rigid.yaw_of(rotation)) == pytest.approx(70)


def test_no_product_on_a_device_is_rounded():
    """Accelerators round the factors of a matrix product unless told not to; a CPU does not show it."""

    def products(function, *arguments) -> list:
        return [e for e in jax.make_jaxpr(function)(*arguments).eqns if e.primitive.name == "dot_general"]

    pose, points = jnp.tile(jnp.eye(4), (2, 1, 1)), jnp.ones((2, 7, 3))
    found = [*products(rigid.rigid_apply, pose, points), *products(rigid.rigid_inverse, pose)]
    assert len(found) == 2
    for product in found:
        assert set(product.params["precision"]) == {jax.lax.Precision.HIGHEST}


def test_axis_angle_is_the_matrix_exponential_also_near_zero_and_differentiable_at_it():
    from scipy.linalg import expm

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, 3)) * np.repeat([1.0, 1e-3, 1e-5, 0.0], 5)[:, None]

    def cross(v):
        return np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])

    found = rigid.axis_angle_to_matrix(vectors)
    np.testing.assert_allclose(found, [expm(cross(v)) for v in vectors], atol=1e-12)
    on_device = jax.jit(rigid.axis_angle_to_matrix)
    np.testing.assert_allclose(on_device(vectors.astype(np.float32)), found, atol=1e-6)
    slope = jax.jit(jax.jacobian(on_device))(jnp.zeros(3))  # of exp at 0: the generators themselves
    np.testing.assert_allclose(slope, np.stack([cross(v) for v in np.eye(3)], axis=-1), atol=1e-7)
