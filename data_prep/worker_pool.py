"""Tasks one after another or in processes, with a bar."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

from tqdm import tqdm

from data_prep.errors import InputError


def end_with_parent() -> None:
    """In a worker: end when the parent was killed; it would wait for work for ever."""
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


class WorkerPool:
    """Processes that are started when they are first needed and kept for further tasks.

    A context manager: at its end tasks that have not begun are given up.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._executor: concurrent.futures.ProcessPoolExecutor | None = None

    def run(
        self, work: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], label: str, unit: str
    ) -> list[Any]:
        """`work(*task)` for all tasks, in processes where there are several; what each returned, in order.

        `work` must be a function of a module. Raises what a task raises, and InputError where a process dies.
        """
        with tqdm(total=len(tasks), desc=label, unit=unit, delay=1) as bar:
            if self._workers == 1 or len(tasks) <= 1:
                results = []
                for task in tasks:
                    results.append(work(*task))
                    bar.update()
                return results
            if self._executor is None:
                # Spawned, not forked: forking a process with running threads may deadlock.
                context = multiprocessing.get_context("spawn")
                self._executor = concurrent.futures.ProcessPoolExecutor(
                    self._workers, context, end_with_parent
                )
            try:
                pending = [self._executor.submit(work, *task) for task in tasks]
                for future in concurrent.futures.as_completed(pending):
                    future.result()
                    bar.update()
                return [future.result() for future in pending]
            except concurrent.futures.process.BrokenProcessPool:
                raise InputError(
                    f"{label}: a worker process was ended from outside, most likely for want of memory. Run "
                    "the same command again with fewer --workers: it goes on where it stopped."
                ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
