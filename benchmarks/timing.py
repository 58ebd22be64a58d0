"""How long a compiled function takes on its device."""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

_SHORTEST = 0.02  # seconds a timing should last, so that the clock and the dispatch do not matter
_FEWEST, _MOST = 3, 200  # timings
_PATIENCE = 5  # times the seconds asked for, to reach the fewest


class Timing(NamedTuple):
    """Seconds of one call: the median of `timings` of `calls` calls each, the quartiles and the best."""

    median: float
    best: float
    lower: float
    upper: float
    timings: int
    calls: int


def time_calls(function: Callable[..., Any], *arguments: Any, seconds: float = 1.0) -> Timing:
    """Times `function(*arguments)`, a compiled function, for about `seconds` after warming up.

    Calls are queued and waited for together, as in a training loop; on a CPU, where queued calls would share
    the cores, each is waited for. Take differences of less than the quartiles' distance for noise.
    """
    _elapsed(function, arguments, 1)  # compiles
    start = time.perf_counter()
    once = _elapsed(function, arguments, 1)
    calls = max(1, round(_SHORTEST / once))
    values = [once] if calls == 1 else []
    while len(values) < _MOST:
        spent = time.perf_counter() - start
        if spent > seconds and values and (len(values) >= _FEWEST or spent > _PATIENCE * seconds):
            break
        values.append(_elapsed(function, arguments, calls) / calls)
    return summary(values, calls)


def summary(values: list[float], calls: int = 1) -> Timing:
    """Median and quartiles of seconds."""
    count = len(values)
    values = values if len(values) > 1 else values * 2  # quantiles want two
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, min(values), lower, upper, count, calls)


def _elapsed(function: Callable[..., Any], arguments: tuple[Any, ...], calls: int) -> float:
    wait_for_each = jax.default_backend() == "cpu"
    start = time.perf_counter()
    for _ in range(calls):
        result = function(*arguments)
        if wait_for_each:
            jax.block_until_ready(result)
    jax.block_until_ready(result)
    return time.perf_counter() - start
