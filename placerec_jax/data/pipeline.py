"""Batches by number: the examples of a step and their random draws are functions of (seed, step) alone.

So the step IS the position in the data: a run that resumes at step k reads what it would have read had it
never stopped, whatever the number of threads, worker processes or hosts.
"""

import functools
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain.python as grain
import jax
import numpy as np

from placerec_jax.errors import ConfigError, UserError
from placerec_jax.methods import ExampleSource

Batch = dict[str, np.ndarray]

_ENDLESS = 2**48  # steps; Grain wants a length
_THREADS = 4  # readers within one process; decoding and resampling release the interpreter lock
_AHEAD = 4  # batches ready before they are asked for
_ORDER, _DRAWS = 0, 1  # streams of random numbers under one seed


class FeatureError(UserError, ValueError):
    """An example is not what the method's `features(cfg)` says."""


def train_batches(
    source: ExampleSource,
    *,
    features: Mapping[str, jax.ShapeDtypeStruct],
    batch_size: int,
    seed: int,
    start_step: int = 0,
    workers: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """Endless batches {name: (batch_size / process_count, ...)} from `start_step` on, for one process.

    Row r of global step s holds draw s * batch_size + r; every `len(source)` successive draws visit each
    example once. Process p of P gets the p-th block of rows. `workers=0` reads in threads of this process;
    `workers=n` in n processes of their own, for machines with cores to spare (the source must be picklable
    and absl's flags parsed).

    Raises:
        ConfigError: no examples, or processes do not divide the batch.
        FeatureError: the first example is not what the method's `features(cfg)` say.
    """
    if batch_size % process_count:
        raise ConfigError(
            f"config.train.batch_size is {batch_size}; expected a multiple of the {process_count} processes."
        )
    local_size = batch_size // process_count
    draws = _Draws(source, seed, batch_size, local_size, process_index)
    check_example(draws[start_step * local_size], features)
    dataset = grain.MapDataset.source(draws).batch(local_size)[start_step:]
    return iter(_prefetched(dataset, workers))


def eval_batches(
    source: ExampleSource,
    *,
    batch_size: int,
    seed: int,
    indices: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Batches {name: (batch_size, ...), "mask": (batch_size,) bool} over `indices` (default: all), in order.

    Example i always draws from `default_rng([seed, i])`. The last batch is filled up with copies of its first
    row, of which `mask` is False.
    """
    chosen = np.arange(len(source)) if indices is None else np.asarray(indices, np.int64)
    dataset = grain.MapDataset.source(_Fixed(source, seed, chosen)).batch(batch_size)
    for batch in _prefetched(dataset, workers=0):
        count = len(next(iter(batch.values())))
        rows = np.where(np.arange(batch_size) < count, np.arange(batch_size), 0)
        yield {name: value[rows] for name, value in batch.items()} | {"mask": np.arange(batch_size) < count}


def draw(seed: int, position: int, size: int) -> tuple[int, np.random.Generator]:
    """The example at `position` of the endless order over `size` examples, and the generator for it."""
    epoch, offset = divmod(position, size)
    return int(_epoch_order(seed, epoch, size)[offset]), np.random.default_rng([seed, _DRAWS, position])


def check_example(example: Mapping[str, Any], features: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    """Raises FeatureError, naming every feature whose presence, shape or dtype is not as expected."""
    problems = [f"{name}: expected, not there" for name in features if name not in example]
    problems += [f"{name}: there, not expected" for name in example if name not in features]
    for name in features.keys() & example.keys():
        expected, found = features[name], np.asarray(example[name])
        if found.shape != expected.shape or found.dtype != expected.dtype:
            problems.append(
                f"{name}: expected {expected.dtype}{list(expected.shape)}, "
                f"found {found.dtype}{list(found.shape)}"
            )
    if problems:
        raise FeatureError(
            "an example differs from the method's features(cfg):\n  " + "\n  ".join(sorted(problems))
        )


class _Draws:
    """The endless order seen by one process, as a random-access source for Grain."""

    def __init__(
        self, source: ExampleSource, seed: int, batch_size: int, local_size: int, process_index: int
    ) -> None:
        if not len(source):
            raise ConfigError(
                "the training split is empty: set config.data.scheme or config.data.train_split."
            )
        self._source, self._seed = source, seed
        self._batch_size, self._local_size, self._process_index = batch_size, local_size, process_index

    def __len__(self) -> int:
        return _ENDLESS * self._local_size

    def __getitem__(self, position: int) -> Batch:
        step, row = divmod(position, self._local_size)
        global_position = step * self._batch_size + self._process_index * self._local_size + row
        index, rng = draw(self._seed, global_position, len(self._source))
        return self._source.example(index, rng)


class _Fixed:
    """Chosen examples, each with its own fixed generator, as a random-access source for Grain."""

    def __init__(self, source: ExampleSource, seed: int, indices: np.ndarray) -> None:
        self._source, self._seed, self._indices = source, seed, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> Batch:
        index = int(self._indices[position])
        return self._source.example(index, np.random.default_rng([self._seed, index]))


@functools.lru_cache(maxsize=4)
def _epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    return np.random.default_rng([seed, _ORDER, epoch]).permutation(size)


def _prefetched(dataset: grain.MapDataset, workers: int) -> grain.IterDataset:
    """The dataset's batches in order, made ahead of time."""
    if not workers:
        return dataset.to_iter_dataset(grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_AHEAD))
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return dataset.to_iter_dataset(reading).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2), _ignore_interrupts
    )


def _ignore_interrupts(worker: int, workers: int) -> None:
    """Ctrl-C reaches every process of the terminal; when readers stop is for the trainer to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
