"""Batches are functions of (seed, step), whoever reads them."""

import itertools

import jax
import numpy as np
import pytest
from absl import flags

from placerec_jax.data.pipeline import FeatureError, check_example, eval_batches, train_batches
from tests.toy.sources import Numbers

FEATURES = {
    "index": jax.ShapeDtypeStruct((), np.int32),
    "draw": jax.ShapeDtypeStruct((), np.float32),
}


def read(size=10, steps=12, **options):
    """(steps, batch) example numbers and draws."""
    defaults = {"features": FEATURES, "batch_size": 4, "seed": 3}
    batches = train_batches(Numbers(size), **(defaults | options))
    taken = list(itertools.islice(batches, steps))
    return np.stack([b["index"] for b in taken]), np.stack([b["draw"] for b in taken])


def test_every_epoch_visits_each_example_once():
    index, _ = read(size=10, steps=15)  # 60 draws = 6 epochs, most of which begin within a batch
    epochs = index.reshape(6, 10)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(10), (6, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 6  # and in another order each time


def test_draws_are_new_every_time():
    _, draw = read(size=10, steps=15)
    assert len(np.unique(draw)) == draw.size


def test_a_seed_gives_one_order_and_another_seed_another():
    first, again, other = read(), read(), read(seed=4)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).any()
    assert (first[1] != other[1]).all()


@pytest.mark.parametrize("start", [1, 5, 7])
def test_starting_late_gives_the_same_batches(start):
    index, draw = read(steps=12)
    late_index, late_draw = read(steps=12 - start, start_step=start)
    np.testing.assert_array_equal(late_index, index[start:])
    np.testing.assert_array_equal(late_draw, draw[start:])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_global_batch(count):
    index, draw = read(steps=10)
    parts = [read(steps=10, process_index=p, process_count=count) for p in range(count)]
    np.testing.assert_array_equal(np.concatenate([part[0] for part in parts], axis=1), index)
    np.testing.assert_array_equal(np.concatenate([part[1] for part in parts], axis=1), draw)
    # So over an epoch their parts are disjoint and together everything: 10 steps of 4 are 4 epochs of 10.
    counts = [np.bincount(part[0].ravel(), minlength=10) for part in parts]
    np.testing.assert_array_equal(sum(counts), np.full(10, 4))


def test_worker_processes_give_the_same_batches():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
    np.testing.assert_array_equal(
        read(steps=7, start_step=3, workers=2), read(steps=7, start_step=3, workers=0)
    )


def test_an_error_in_a_reader_reaches_the_trainer():
    batches = train_batches(Numbers(10, broken=9), features=FEATURES, batch_size=10, seed=0)
    with pytest.raises(ValueError, match="example 9 is broken"):
        next(batches)


def test_processes_that_do_not_divide_the_batch():
    with pytest.raises(ValueError, match=r"batch_size is 4; expected a multiple of the 3 processes"):
        read(process_count=3)


def test_empty_split():
    with pytest.raises(ValueError, match="the training split is empty"):
        read(size=0)


def test_features_are_checked_before_the_first_batch():
    with pytest.raises(FeatureError, match=r"index: expected int64\[2\], found int32\[\]"):
        read(features={**FEATURES, "index": jax.ShapeDtypeStruct((2,), np.int64)})


def test_every_difference_is_listed():
    example = {"a": np.zeros((2, 3), np.float64), "c": np.zeros(1, np.uint8)}
    features = {"a": jax.ShapeDtypeStruct((3, 2), np.float32), "b": jax.ShapeDtypeStruct((), np.bool_)}
    with pytest.raises(FeatureError) as caught:
        check_example(example, features)
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        "a: expected float32[3, 2], found float64[2, 3]",
        "b: expected, not there",
        "c: there, not expected",
    ]


def test_eval_batches_visit_once_in_order_and_pad():
    batches = list(eval_batches(Numbers(10), batch_size=4, seed=5))
    assert [len(b["mask"]) for b in batches] == [4, 4, 4]
    mask = np.concatenate([b["mask"] for b in batches])
    np.testing.assert_array_equal(mask, np.arange(12) < 10)
    np.testing.assert_array_equal(np.concatenate([b["index"] for b in batches])[mask], np.arange(10))
    assert batches[-1]["index"][-1] in (8, 9)  # padding is made of real rows


def test_eval_draws_belong_to_the_example():
    whole = np.concatenate([b["draw"] for b in eval_batches(Numbers(12), batch_size=4, seed=5)])
    some = next(eval_batches(Numbers(12), batch_size=3, seed=5, indices=[7, 2, 11]))
    np.testing.assert_array_equal(some["index"], [7, 2, 11])
    np.testing.assert_array_equal(some["draw"], whole[[7, 2, 11]])
    np.testing.assert_array_equal(some["draw"][0], np.float32(np.random.default_rng([5, 7]).random()))


def test_eval_of_nothing():
    assert list(eval_batches(Numbers(10), batch_size=4, seed=5, indices=[])) == []
