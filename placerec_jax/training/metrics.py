"""What a run leaves to read: `metrics.jsonl`, `timing.jsonl`, TensorBoard events, and a progress bar.

`metrics.jsonl` holds what the run computed and nothing of the clock, so a resumed run's file equals that of
one that never stopped. `timing.jsonl` holds the clock.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm


class MetricsLog:
    """Appends the scalars of a run; first drops the lines beyond `start_step`, the step that was restored."""

    def __init__(self, workdir: str | os.PathLike[str], start_step: int) -> None:
        self._path = Path(workdir) / "metrics.jsonl"
        _drop_after(self._path, start_step)
        self._metrics = self._path.open("a")
        self._timing = (Path(workdir) / "timing.jsonl").open("a")
        self._events = _EventFile(Path(workdir) / "tensorboard", start_step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line {"step": step, **values}, on disk when this returns."""
        _append(self._metrics, {"step": step, **values})
        self._events.scalars(step, values)

    def write_timing(self, step: int, values: Mapping[str, float]) -> None:
        """One line of rates, with the wall-clock time."""
        _append(self._timing, {"step": step, "time": time.time(), **values})
        self._events.scalars(step, {f"timing/{name}": value for name, value in values.items()})

    def close(self) -> None:
        self._metrics.close()
        self._timing.close()
        self._events.close()


class Progress:
    """A bar with rate and time left; beside it the loss, examples a second, and the share of input wait."""

    def __init__(self, start_step: int, steps: int, batch_size: int, enabled: bool) -> None:
        # Where no terminal redraws the line, a new one now and then is enough.
        interval = 0.2 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(
            total=steps,
            initial=start_step,
            unit="step",
            desc="train",
            disable=not enabled,
            mininterval=interval,
        )
        self._batch_size = batch_size
        self._waited, self._since, self._steps = 0.0, time.perf_counter(), 0

    def step(self, waited: float) -> None:
        """One step done, of which `waited` seconds went into waiting for its batch."""
        self._waited += waited
        self._steps += 1
        self._bar.update()

    def rates(self, loss: float) -> dict[str, float]:
        """Rates since the last call (pauses excluded); shows them and the loss."""
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        rates = {
            "examples_per_second": self._steps * self._batch_size / elapsed,
            "input_wait": self._waited / elapsed,
        }
        self._bar.set_postfix_str(
            f"loss {loss:.4g}, {rates['examples_per_second']:.1f} examples/s, "
            f"input {rates['input_wait']:.0%}",
            refresh=False,
        )
        self.resume()
        return rates

    def resume(self) -> None:
        """Starts the clock of `rates` anew, after an evaluation or a checkpoint."""
        self._waited, self._since, self._steps = 0.0, time.perf_counter(), 0

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if not self._bar.disable:
            tqdm.write(line, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


class _EventFile:
    """TensorBoard events through its record writer: its EventFileWriter would load TensorFlow."""

    def __init__(self, folder: Path, start_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._writer = RecordWriter(self._file)
        self._write(Event(file_version="brain.Event:2"))
        # Tells TensorBoard to forget what an earlier process logged beyond the step that was restored.
        self._write(Event(step=start_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._write(Event(step=step, summary=summary))

    def close(self) -> None:
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def _append(file: TextIO, line: dict[str, Any]) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()


def _drop_after(path: Path, step: int) -> None:
    """Keeps the lines up to `step`; a last line cut short by a crash goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(path)
