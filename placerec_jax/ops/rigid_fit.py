"""Weighted least-squares rigid transforms between matched points, in closed form and safe to differentiate.

Both fits answer argmin_{R,t} Σ w_i |R x_i + t − y_i|². Neither calls a singular value decomposition:
batches of 3 × 3 are slow on accelerators, and its derivative, which contains 1/(σ_i² − σ_j²), is NaN for
equal singular values although the rotation is well defined there.

Where the points determine no rotation (all in one place; in space: on one line), R is the identity with
gradient zero and t the difference of the centroids. Without any weight the transform is the identity with
gradient zero.
"""

import jax
import jax.numpy as jnp

from placerec_jax.ops.rigid import quaternion_to_matrix, rigid_matrix

_LEAST_WEIGHT = 1e-12
# Least correlation of source and target, in m² and as a part of what their spreads allow. The second is above
# what float32 leaves of an exact zero in sums over a few hundred points.
_LEAST_CORRELATION = 1e-6
_LEAST_DETERMINANT = 1e-6  # of G/tr(G): points closer to a line than about 1 : 300 determine no rotation
_SQUARINGS = 24  # of the 4 × 4 matrix: its power 2²⁴ separates eigenvalues that differ by a millionth


def fit_se2(source: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """(…, N, 2) points (m), (…, N, 2) partners, (…, N) weights ≥ 0 → (…, 3) target_T_source (x, y, yaw).

    yaw = atan2(Σw(x₁y₂ − x₂y₁), Σw(x₁y₁ + x₂y₂)) of centred points: the 2-D case of Kabsch, det = +1.
    Points of weight 0 are masked; their coordinates must be finite.
    """
    source_mean, target_mean, x, y, w = _centred(source, target, weight)
    cos_sum = jnp.sum(w * (x[..., 0] * y[..., 0] + x[..., 1] * y[..., 1]), axis=-1)
    sin_sum = jnp.sum(w * (x[..., 0] * y[..., 1] - x[..., 1] * y[..., 0]), axis=-1)
    spread = jnp.sum(w * jnp.sum(x * x, axis=-1), axis=-1) * jnp.sum(w * jnp.sum(y * y, axis=-1), axis=-1)
    least = _LEAST_CORRELATION * (1 + jnp.sqrt(jax.lax.stop_gradient(spread)))
    determined = cos_sum**2 + sin_sum**2 > least**2
    cos_sum, sin_sum = jnp.where(determined, cos_sum, 1.0), jnp.where(determined, sin_sum, 0.0)

    length = jnp.sqrt(cos_sum**2 + sin_sum**2)
    cos, sin = cos_sum / length, sin_sum / length
    translation_x = target_mean[..., 0] - (cos * source_mean[..., 0] - sin * source_mean[..., 1])
    translation_y = target_mean[..., 1] - (sin * source_mean[..., 0] + cos * source_mean[..., 1])
    return jnp.stack([translation_x, translation_y, jnp.arctan2(sin_sum, cos_sum)], axis=-1)


def fit_se3(source: jax.Array, target: jax.Array, weight: jax.Array) -> jax.Array:
    """(…, N, 3) points (m), (…, N, 3) partners, (…, N) weights ≥ 0 → (…, 4, 4) target_T_source.

    The rotation of Kabsch, det = +1 also where the best orthogonal matrix is a reflection. Points of weight 0
    are masked; their coordinates must be finite.
    """
    source_mean, target_mean, x, y, w = _centred(source, target, weight)
    # Sums of products rather than matrix products, which a TPU would round to bfloat16.
    correlation = jnp.sum(w[..., None, None] * x[..., :, None] * y[..., None, :], axis=-3)
    rotation = rotation_of(correlation)
    return rigid_matrix(rotation, target_mean - jnp.sum(rotation * source_mean[..., None, :], axis=-1))


@jax.custom_jvp
def rotation_of(correlation: jax.Array) -> jax.Array:
    """(…, 3, 3) S = Σ w x yᵀ (m²) → (…, 3, 3) the rotation R that maximises tr(R S); where many do, identity.

    Horn (JOSA A 1987): the quaternion of R is the eigenvector of the largest eigenvalue of a symmetric 4 × 4
    matrix of the entries of S. It is read off a high power of that matrix, made by squaring.
    """
    rotation, determined, _ = _solve(correlation)
    return jnp.where(determined[..., None, None], rotation, jnp.eye(3))


@rotation_of.defjvp
def _rotation_tangent(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """At the maximum M = R S is symmetric; that it stays so gives dR = [ω]× R with ω = −G⁻¹ axial(R dS).

    G = tr(M) I − M has the eigenvalues σ_i + σ_j (the last σ signed), so equal singular values do no harm.
    """
    (correlation,), (tangent,) = primals, tangents
    rotation, determined, inertia = _solve(correlation)
    determined = determined[..., None, None]
    safe_inertia = jnp.where(determined, inertia, jnp.eye(3))
    turned = _product(rotation, tangent)
    axial = jnp.stack(
        [
            turned[..., 2, 1] - turned[..., 1, 2],
            turned[..., 0, 2] - turned[..., 2, 0],
            turned[..., 1, 0] - turned[..., 0, 1],
        ],
        axis=-1,
    )
    omega = -jnp.sum(_inverse(safe_inertia) * axial[..., None, :], axis=-1)
    rotation_tangent = jnp.cross(omega[..., :, None], rotation, axisa=-2, axisb=-2, axisc=-2)
    value = jnp.where(determined, rotation, jnp.eye(3))
    return value, jnp.where(determined, rotation_tangent, 0.0)


def _solve(correlation: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(…, 3, 3) S → (…, 3, 3) R, (…) whether S determines it, (…, 3, 3) G = tr(R S) I − R S, symmetric."""
    rotation = quaternion_to_matrix(_leading_eigenvector(_horn_matrix(correlation)))
    product = _product(rotation, correlation)
    product = (product + jnp.swapaxes(product, -1, -2)) / 2
    trace = jnp.trace(product, axis1=-2, axis2=-1)
    inertia = trace[..., None, None] * jnp.eye(3) - product
    determined = trace > _LEAST_CORRELATION
    scaled = inertia / jnp.where(determined, 2 * trace, 1.0)[..., None, None]
    return rotation, determined & (_determinant(scaled) > _LEAST_DETERMINANT), inertia


def _horn_matrix(s: jax.Array) -> jax.Array:
    """(…, 3, 3) S → (…, 4, 4) symmetric, traceless; q ↦ qᵀ N q is tr(R(q) S)."""
    xx, xy, xz, yx, yy, yz, zx, zy, zz = (s[..., i, j] for i in range(3) for j in range(3))
    rows = [
        [xx + yy + zz, yz - zy, zx - xz, xy - yx],
        [yz - zy, xx - yy - zz, xy + yx, zx + xz],
        [zx - xz, xy + yx, yy - xx - zz, yz + zy],
        [xy - yx, zx + xz, yz + zy, zz - xx - yy],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _leading_eigenvector(symmetric: jax.Array) -> jax.Array:
    """(…, 4, 4) → (…, 4) unit eigenvector of the largest (not the largest in size) eigenvalue."""
    norm = jnp.sqrt(jnp.sum(symmetric**2, axis=(-2, -1), keepdims=True))
    shifted = symmetric / jnp.maximum(norm, 1e-30) + jnp.eye(4)  # eigenvalues in [0, 2]

    def square(power: jax.Array, _: None) -> tuple[jax.Array, None]:
        power = power / jnp.trace(power, axis1=-2, axis2=-1)[..., None, None]
        return _product(power, power), None

    power, _ = jax.lax.scan(square, shifted, None, length=_SQUARINGS)
    diagonal = jnp.diagonal(power, axis1=-2, axis2=-1)
    largest = jnp.argmax(diagonal, axis=-1)[..., None, None]
    column = jnp.take_along_axis(power, largest, axis=-1)[..., 0]
    return column / jnp.sqrt(jnp.sum(column**2, axis=-1, keepdims=True))


def _centred(
    source: jax.Array, target: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
    """→ (…, D) means of source and target, (…, N, D) both without them, (…, N) weights of sum 1 or 0."""
    source, target, weight = (a.astype(jnp.float32) for a in (source, target, weight))
    total = weight.sum(axis=-1, keepdims=True)
    weighted = total > _LEAST_WEIGHT
    w = jnp.where(weighted, weight / jnp.where(weighted, total, 1.0), 0.0)
    source_mean = jnp.sum(w[..., None] * source, axis=-2)
    target_mean = jnp.sum(w[..., None] * target, axis=-2)
    return source_mean, target_mean, source - source_mean[..., None, :], target - target_mean[..., None, :], w


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum("...ij,...jk->...ik", a, b, precision="highest")


def _determinant(a: jax.Array) -> jax.Array:
    return jnp.sum(a[..., 0, :] * jnp.cross(a[..., 1, :], a[..., 2, :]), axis=-1)


def _inverse(a: jax.Array) -> jax.Array:
    """(…, 3, 3) symmetric → its inverse by cofactors."""
    cofactors = jnp.stack(
        [
            jnp.cross(a[..., 1, :], a[..., 2, :]),
            jnp.cross(a[..., 2, :], a[..., 0, :]),
            jnp.cross(a[..., 0, :], a[..., 1, :]),
        ],
        axis=-2,
    )
    return cofactors / _determinant(a)[..., None, None]
