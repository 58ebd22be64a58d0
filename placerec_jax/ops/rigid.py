"""Rigid transforms: SE(2) triples (x, y, yaw) and SE(3) matrices.

Every function takes NumPy or JAX arrays and answers in kind: host geometry stays float64, device geometry
float32. `a_T_b` maps points of frame b into frame a.
"""

from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # numpy.ndarray or jax.Array


def _namespace(*arrays: Array) -> ModuleType:
    if all(isinstance(a, (np.ndarray, np.generic, float, int, list, tuple)) for a in arrays):
        return np
    import jax.numpy as jnp

    return jnp


def wrap_angle(angle: Array) -> Array:
    """(...) radians → the same angle in (-pi, pi]."""
    xp = _namespace(angle)
    return xp.pi - (xp.pi - angle) % (2 * xp.pi)


def se2_apply(pose: Array, xy: Array) -> Array:
    """(..., 3) pose a_T_b and (..., 2) points b_xy → (..., 2) points a_xy = R(yaw)·b_xy + t."""
    xp = _namespace(pose, xy)
    cos, sin = xp.cos(pose[..., 2]), xp.sin(pose[..., 2])
    x = cos * xy[..., 0] - sin * xy[..., 1] + pose[..., 0]
    y = sin * xy[..., 0] + cos * xy[..., 1] + pose[..., 1]
    return xp.stack([x, y], axis=-1)


def se2_compose(a_T_b: Array, b_T_c: Array) -> Array:
    """(..., 3), (..., 3) → (..., 3) a_T_c, yaw wrapped."""
    xp = _namespace(a_T_b, b_T_c)
    xy = se2_apply(a_T_b, b_T_c[..., :2])
    yaw = wrap_angle(a_T_b[..., 2] + b_T_c[..., 2])
    return xp.concatenate([xy, yaw[..., None]], axis=-1)


def se2_inverse(a_T_b: Array) -> Array:
    """(..., 3) a_T_b → (..., 3) b_T_a, yaw wrapped."""
    xp = _namespace(a_T_b)
    cos, sin = xp.cos(a_T_b[..., 2]), xp.sin(a_T_b[..., 2])
    x = -(cos * a_T_b[..., 0] + sin * a_T_b[..., 1])
    y = -(-sin * a_T_b[..., 0] + cos * a_T_b[..., 1])
    return xp.stack([x, y, wrap_angle(-a_T_b[..., 2])], axis=-1)


def quaternion_to_matrix(wxyz: Array) -> Array:
    """(..., 4) unit quaternions (w, x, y, z) → (..., 3, 3) rotations."""
    xp = _namespace(wxyz)
    w, x, y, z = (wxyz[..., i] for i in range(4))
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def axis_angle_to_matrix(vector: Array) -> Array:
    """(..., 3) rotation vectors (axis times angle, rad) → (..., 3, 3), differentiable at 0, too."""
    xp = _namespace(vector)
    squared = (vector * vector).sum(axis=-1)[..., None, None]
    small = squared < 1e-6
    angle = xp.sqrt(xp.where(small, 1.0, squared))
    sine = xp.where(small, 1 - squared / 6, xp.sin(angle) / angle)  # sin θ / θ
    versed = xp.where(small, 0.5 - squared / 24, (1 - xp.cos(angle)) / angle**2)
    x, y, z = (vector[..., i] for i in range(3))
    zero = xp.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    cross = xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)
    return xp.eye(3, dtype=vector.dtype) + sine * cross + versed * _product(xp, cross, cross)


def rigid_matrix(rotation: Array, translation: Array) -> Array:
    """(..., 3, 3) rotation and (..., 3) translation → (..., 4, 4) homogeneous transform."""
    xp = _namespace(rotation, translation)
    top = xp.concatenate([rotation, translation[..., None]], axis=-1)
    bottom = xp.broadcast_to(xp.asarray([0.0, 0.0, 0.0, 1.0], dtype=top.dtype), (*top.shape[:-2], 1, 4))
    return xp.concatenate([top, bottom], axis=-2)


def rigid_inverse(a_T_b: Array) -> Array:
    """(..., 4, 4) rigid transform → its inverse, without a linear solve."""
    xp = _namespace(a_T_b)
    rotation = xp.swapaxes(a_T_b[..., :3, :3], -1, -2)
    return rigid_matrix(rotation, -_product(xp, rotation, a_T_b[..., :3, 3:])[..., 0])


def rigid_apply(a_T_b: Array, b_xyz: Array) -> Array:
    """(..., 4, 4) transform and (..., N, 3) points b_xyz → (..., N, 3) points a_xyz."""
    xp = _namespace(a_T_b, b_xyz)
    return _product(xp, b_xyz, xp.swapaxes(a_T_b[..., :3, :3], -1, -2)) + a_T_b[..., None, :3, 3]


def yaw_of(rotation: Array) -> Array:
    """(..., 3, 3) rotation → (...) heading of its x axis on the ground plane, radians."""
    xp = _namespace(rotation)
    return xp.arctan2(rotation[..., 1, 0], rotation[..., 0, 0])


def _product(xp: ModuleType, a: Array, b: Array) -> Array:
    """Matrix product; accelerators would round its factors to bfloat16, which is centimetres at 30 m."""
    return xp.matmul(a, b) if xp is np else xp.matmul(a, b, precision="highest")
