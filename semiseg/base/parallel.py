"""Map one function over many items on all cores, in newly spawned processes."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from semiseg.base.errors import UserError
from semiseg.base.processes import end_with_parent
from semiseg.base.progress import bar

Item = TypeVar("Item")
Result = TypeVar("Result")

FEW = 256  # items that are done before other processes would have started
CHUNK = 16  # items sent to a process at a time
MOST = 16  # processes; more would wait for the disk


def mapped(
    function: Callable[[Item], Result], items: Sequence[Item], description: str, unit: str = " images"
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in their order, behind a progress bar.

    ``function`` is one of a module, items and results can be pickled: processes are spawned, for a fork would
    copy locks that threads hold. The first exception stops the work. Raises UserError if a process is killed.
    """
    with bar(description, len(items), unit) as progress:
        for result in _results(function, items):
            progress.update()
            yield result


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _results(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    processes = min(cores(), MOST)
    if len(items) < FEW or processes == 1:
        yield from map(function, items)
        return
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(processes, context, initializer=_serve)
    try:
        yield from executor.map(function, items, chunksize=CHUNK)
    except BrokenProcessPool:
        raise UserError(
            "a process that reads images was killed (is memory short?); give the same command again"
        ) from None
    finally:
        executor.shutdown(cancel_futures=True)


def _serve() -> None:
    """Leave ctrl-C to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
