"""Farthest points, nearest neighbours and groups against plain loops."""

import functools

import jax
import numpy as np
import pytest

from placerec_jax.ops.pointset import (
    NEAR_ORIGIN,
    farthest_points,
    group_points,
    nearest_neighbours,
    selectable,
)

farthest = jax.jit(farthest_points, static_argnums=(2, 3, 4))
nearest = jax.jit(nearest_neighbours, static_argnums=(3, 4))


def cloud(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-20, 20, (count, 3)).astype(np.float32)


def loop(xyz: np.ndarray, mask: np.ndarray, count: int, near_origin: bool = False) -> list[int]:
    """Farthest-point sampling as the CUDA kernels do it: skip what may not be chosen, first maximum wins."""
    real = np.flatnonzero(mask)
    chosen = [int(real[0])]
    distance = np.full(len(xyz), np.inf, np.float32)
    for _ in range(1, count):
        best, best_distance = chosen[0], -1.0
        for n in real:
            if near_origin and np.sum(np.square(xyz[n])) <= 1e-3:
                continue
            distance[n] = min(distance[n], np.sum(np.square(xyz[n] - xyz[chosen[-1]])))
            if distance[n] > best_distance:
                best, best_distance = int(n), distance[n]
        chosen.append(best)
    return chosen


def test_farthest_points_are_those_of_a_loop():
    xyz = cloud(300)
    mask = np.random.default_rng(1).random(300) < 0.7
    mask[:3] = False  # the start is the first real point
    xyz[~mask] = np.nan  # what stands in the padding has no say
    chosen = np.asarray(farthest(xyz, mask, 64))
    assert chosen.tolist() == loop(xyz, mask, 64)
    assert mask[chosen].all()
    assert len(set(chosen.tolist())) == 64


def test_points_near_the_origin_are_only_ever_the_start():
    xyz = cloud(60)
    xyz[::3] *= np.float32(0.02 / 20 / np.sqrt(3))  # within 2 cm
    chosen = np.asarray(farthest(xyz, np.ones(60, bool), 30, NEAR_ORIGIN))
    assert chosen.tolist() == loop(xyz, np.ones(60, bool), 30, near_origin=True)
    assert chosen[0] == 0
    assert (chosen[1:] % 3 != 0).all()
    allowed = np.asarray(selectable(xyz, np.ones(60, bool), NEAR_ORIGIN))
    assert allowed.sum() == 41  # 40 far ones and the start
    boundary = np.float32([[0, 0, 0], [0.0316, 0, 0], [0.0317, 0, 0]])  # squared: 0.000999, 0.001005
    np.testing.assert_array_equal(selectable(boundary, np.ones(3, bool), NEAR_ORIGIN), [True, False, True])


def test_every_point_is_chosen_before_any_repeats():
    xyz = cloud(20)
    xyz[7] = xyz[3]  # a double is a point as well
    mask = np.arange(20) < 12
    chosen = np.asarray(farthest(xyz, mask, 16))
    assert sorted(chosen[:12].tolist()) == list(range(12))
    assert mask[chosen].all()


def test_no_points_at_all():
    assert np.asarray(farthest(cloud(8), np.zeros(8, bool), 4)).tolist() == [0, 0, 0, 0]


def test_the_farthest_start_does_not_depend_on_the_order():
    xyz, order = cloud(100), np.random.default_rng(3).permutation(100)
    mask = np.ones(100, bool)
    one, other = farthest(xyz, mask, 20, 0.0, "farthest"), farthest(xyz[order], mask, 20, 0.0, "farthest")
    np.testing.assert_array_equal(xyz[one], xyz[order][other])
    assert np.asarray(one)[0] == np.argmax(np.linalg.norm(xyz - xyz.mean(0), axis=1))
    first = farthest(xyz[order], mask, 20)
    assert (np.asarray(xyz[order][first]) != xyz[one]).any()
    with pytest.raises(ValueError, match="start is 'last'; expected one of"):
        farthest(xyz, mask, 20, 0.0, "last")


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_neighbours_are_those_of_brute_force_near_and_far_from_the_origin(offset):
    xyz = (cloud(500) + np.float32(offset)).astype(np.float32)
    mask = np.random.default_rng(1).random(500) < 0.8
    xyz[~mask] = np.nan
    centres = xyz[mask][:70]  # not a multiple of the chunk
    found = np.asarray(nearest(centres, xyz, mask, 12, 32))
    exact = np.square(centres[:, None].astype(float) - np.where(mask[:, None], xyz, np.inf)).sum(-1)
    np.testing.assert_array_equal(found, np.argsort(exact, axis=1, kind="stable")[:, :12])


def test_fewer_points_than_neighbours_repeat_the_nearest():
    xyz, mask = cloud(10), np.arange(10) < 3
    found = np.asarray(nearest(xyz[:1], xyz, mask, 6, 4))
    order = np.argsort(np.linalg.norm(xyz[:3] - xyz[0], axis=1))
    assert found[0].tolist() == [*order, 0, 0, 0]
    assert np.asarray(nearest(xyz[:1], xyz, mask, 13, 4)).tolist() == [[*order, *[0] * 10]]


def test_groups_are_centre_relative_and_padding_changes_nothing():
    group = jax.jit(functools.partial(group_points, groups=16, k=4))
    xyz = np.stack([cloud(40), cloud(40, 1), cloud(40, 2)])
    mask = np.arange(40) < np.array([[40], [9], [0]])
    groups = jax.tree.map(np.asarray, group(xyz, mask))
    assert groups.offsets.shape == (3, 16, 4, 3)
    np.testing.assert_array_equal(groups.mask.sum(1), [16, 9, 0])
    np.testing.assert_array_equal(groups.offsets[:, :, 0], 0)  # the centre itself
    points = groups.centres[0, :, None] + groups.offsets[0]
    assert np.abs(points[:, :, None] - xyz[0]).sum(-1).min(-1).max() < 1e-5
    padded = np.concatenate([xyz, np.full((3, 5, 3), np.nan, np.float32)], axis=1)
    padded[~np.pad(mask, ((0, 0), (0, 5)))] = np.nan
    again = group(padded, np.pad(mask, ((0, 0), (0, 5))))
    for kept, other in zip(groups[:2], again[:2], strict=True):
        np.testing.assert_array_equal(kept[:2], other[:2])
    assert all(np.isfinite(leaf).all() for leaf in again)


def test_groups_do_not_depend_on_the_order_of_the_points_but_for_the_start():
    group = jax.jit(group_points, static_argnums=(2, 3, 4, 5))
    xyz, mask = cloud(60)[None], np.ones((1, 60), bool)
    order = np.random.default_rng(4).permutation(60)
    order = np.concatenate([[0], order[order != 0]])  # point 0 keeps its place
    groups = group(xyz, mask, 16, 5)
    jax.tree.map(np.testing.assert_array_equal, group(xyz[:, order], mask, 16, 5), groups)
    order = order[::-1]
    assert (np.asarray(group(xyz[:, order], mask, 16, 5).centres) != np.asarray(groups.centres)).any()
    one, other = (group(x, mask, 16, 5, 0.0, "farthest") for x in (xyz, xyz[:, order]))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_no_gradient_reaches_the_points():
    xyz, mask = cloud(20)[None], np.ones((1, 20), bool)
    gradient = jax.grad(lambda x: sum(leaf.sum() for leaf in group_points(x, mask, 4, 4)[:2]))(xyz)
    np.testing.assert_array_equal(gradient, 0)
