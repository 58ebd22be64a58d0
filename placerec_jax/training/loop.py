"""The training loop: batches in, checkpoints and metrics out."""

import collections
import os
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from placerec_jax.errors import UserError
from placerec_jax.training.checkpoint import Checkpointer
from placerec_jax.training.metrics import MetricsLog, Progress
from placerec_jax.training.sharding import put_batch
from placerec_jax.training.state import TrainState
from placerec_jax.training.step import TrainStep

Evaluate = Callable[[TrainState], dict[str, float]]

_LAG = 2  # steps dispatched before the host looks whether an earlier one was finite


class NonFiniteError(UserError, RuntimeError):
    """A step produced a NaN or an infinity."""


class Run(NamedTuple):
    """What the loop drives; none of it knows the others."""

    cfg: ml_collections.ConfigDict
    mesh: Mesh
    step: TrainStep  # jitted, donates its state
    tensor_names: Callable[[TrainState, Any], list[str]]  # for metrics["nonfinite"]
    batches: Iterator[dict[str, np.ndarray]]  # this process's rows, from the state's step on
    evaluate: Evaluate
    checkpointer: Checkpointer
    log: MetricsLog | None  # of process 0


def train(run: Run, state: TrainState) -> tuple[TrainState, bool]:
    """Trains from `state.step` to `config.train.steps`; returns the last state and whether it got there.

    After every step: metrics each `log_every`, scores each `eval_every` and at the end, a checkpoint with
    every evaluation and each `checkpoint_every`. All follow an update, so a checkpoint of step k has seen
    batches 0..k-1 and goes on with batch k. SIGTERM and the first SIGINT save after the current step, without
    an evaluation that may be due (the run that goes on makes up for it), and return False; a second SIGINT
    exits at once. Without any steps, what the run starts from (published weights, say) is scored and saved.

    Raises:
        NonFiniteError: names the first bad tensor of the first bad step, which is never saved.
    """
    cfg, steps = run.cfg.train, run.cfg.train.steps
    start = int(state.step)
    progress = Progress(start, steps, cfg.batch_size, enabled=jax.process_index() == 0)
    watch = _FiniteWatch(run)
    with StopSignal() as stop:
        if start and start % cfg.eval_every == 0 and not run.checkpointer.about(start).scores:
            _save(run, state, start, run.evaluate(state), progress)
        if not steps and not run.checkpointer.steps():
            _save(run, state, start, run.evaluate(state), progress)
        for done in range(start + 1, steps + 1):
            waiting = time.perf_counter()
            local_batch = next(run.batches)
            waited = time.perf_counter() - waiting
            batch = put_batch(local_batch, run.mesh)
            state, metrics = run.step(state, batch)
            watch.add(done, metrics, state, batch)
            progress.step(waited)

            logging = done % cfg.log_every == 0 or done == steps
            stopping = stop.requested(agree=logging)
            evaluating = done == steps or (done % cfg.eval_every == 0 and not stopping)
            saving = evaluating or stopping or done % cfg.checkpoint_every == 0
            if logging or saving:
                watch.flush()
            if logging:
                _log(run, done, metrics, progress)
            if saving:
                scores = run.evaluate(state) if evaluating else {}
                _save(run, state, done, scores, progress)
                progress.resume()
            if stopping:
                progress.close()
                return state, done == steps
    progress.close()
    return state, True


class StopSignal:
    """Turns SIGTERM and SIGINT into a wish to stop while the loop runs; a second SIGINT ends the process."""

    def __init__(self) -> None:
        self._name: str | None = None
        self._before: dict[int, Any] = {}

    def requested(self, agree: bool) -> bool:
        """Whether to stop now.

        Processes get their signals at different steps and must leave the loop at the same one: with several,
        the answer is only ever yes where they `agree`, which costs a round of communication.
        """
        if jax.process_count() == 1:
            return self._name is not None
        return agree and bool(np.any(multihost_utils.process_allgather(np.array(self._name is not None))))

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._name is not None and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._name = signal.Signals(number).name
        # Not through sys.stderr: a handler may have interrupted a write to it.
        os.write(
            2, f"\n{self._name}: finishing this step and saving (Ctrl-C again to exit at once)\n".encode()
        )


class _FiniteWatch:
    """Looks at steps a little after they were dispatched, so that looking does not stall the device."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._pending: collections.deque[tuple[int, jax.Array]] = collections.deque()
        self._shapes: tuple[Any, Any] | None = None

    def add(self, step: int, metrics: dict[str, jax.Array], state: TrainState, batch: Any) -> None:
        if self._shapes is None:
            self._shapes = jax.eval_shape(lambda *trees: trees, state, batch)
        self._pending.append((step, metrics["nonfinite"]))
        while len(self._pending) > _LAG:
            self._look()

    def flush(self) -> None:
        while self._pending:
            self._look()

    def _look(self) -> None:
        step, flags = self._pending.popleft()
        bad = np.flatnonzero(np.asarray(flags))
        if bad.size:
            names = self._run.tensor_names(*self._shapes)
            newest = self._run.checkpointer.steps()[-1:]
            kept = (
                f"the checkpoint of step {newest[0]} is untouched" if newest else "there is no checkpoint yet"
            )
            raise NonFiniteError(
                f"step {step}: {names[bad[0]]} is not finite, the first of {bad.size} such tensors "
                f"({', '.join(names[i] for i in bad[1:6])}{', ...' if bad.size > 6 else ''}). Nothing was "
                f"saved; {kept}. A bad batch/ entry means bad data; otherwise try a lower "
                "config.optimizer.learning_rate or config.optimizer.clip_norm, or config.dtype=float32."
            )


def _log(run: Run, step: int, metrics: dict[str, jax.Array], progress: Progress) -> None:
    values = {name: float(v) for name, v in jax.device_get(metrics).items() if name != "nonfinite"}
    rates = progress.rates(values["loss"])
    if run.log is not None:
        run.log.write(step, values)
        run.log.write_timing(step, rates)


def _save(run: Run, state: TrainState, step: int, scores: dict[str, float], progress: Progress) -> None:
    # Scores first: whatever a checkpoint has seen is in the log when it appears.
    if scores:
        if run.log is not None:
            run.log.write(step, {f"eval/{name}": value for name, value in scores.items()})
        metric = run.cfg.eval.best_metric
        progress.say(f"step {step}: {metric} {scores.get(metric, float('nan')):.4g}")
    run.checkpointer.save(state, scores)
