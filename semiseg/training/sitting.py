"""The surroundings of the training loop: signals, other processes of the run, and saving in time."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from semiseg.base import distributed
from semiseg.base.errors import EXIT_INTERRUPTED, EXIT_TRY_AGAIN, UserError

T = TypeVar("T")
FAILED = 1  # the message of a process that cannot go on; below the numbers of the noted signals


class Interrupted(UserError):
    """A signal stopped the run after it was saved; started again, it goes on."""

    exit_status = EXIT_TRY_AGAIN

    def __init__(self, said: str, number: int) -> None:
        super().__init__(said)
        if number == signal.SIGINT:
            self.exit_status = EXIT_INTERRUPTED


class Sitting:
    """One sitting of a run: it ends between two steps, with everything saved.

    ``save`` writes the checkpoint; ``step`` returns how many steps are taken.
    """

    def __init__(
        self, title: str, signals: list[int], step: Callable[[], int], save: Callable[[], None]
    ) -> None:
        self._title, self._signals, self._step, self._save = title, signals, step, save
        self._saved_step, self._saved_at = step(), time.monotonic()

    def save(self) -> None:
        """Save the run now."""
        self._save()
        self._saved_step, self._saved_at = self._step(), time.monotonic()

    def minutes_since_save(self) -> float:
        """Return the minutes since this sitting began or last saved."""
        return (time.monotonic() - self._saved_at) / 60

    def until_told(self, items: Iterator[T]) -> Iterator[T]:
        """Yield ``items``, but wait for none once a signal has come."""
        while not self._signals and (item := next(items, None)) is not None:
            yield item

    def each(self, items: Iterator[T]) -> Iterator[T]:
        """Yield ``items`` for as long as every process has one and none was told to end.

        Raises what ``together`` does.
        """
        items = self.until_told(items)
        while True:
            with self.together():
                item = next(items, None)
            if item is None:
                return
            yield item

    @contextmanager
    def together(self) -> Iterator[None]:
        """Let every process do its own part; if one fails, or a signal has come, save everywhere and end.

        Raises Interrupted, this process's own UserError, or Abandoned if another process failed.
        """
        failure = None
        try:
            yield
        except UserError as error:
            failure = error
        reason = distributed.largest(max([*self._signals, FAILED if failure else 0]))
        if not reason:
            return
        if self._step() > self._saved_step:
            self.save()
        if reason != FAILED:  # a signal may also have killed a reader, which is the failure then
            raise Interrupted(
                f"{self._title}: saved after step {self._step()}; start it again to go on", reason
            )
        if failure is None:
            distributed.abandon()
        raise failure


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Collect the numbers of SIGTERM and ctrl-C in a list instead of ending the process.

    A second ctrl-C raises KeyboardInterrupt: a person who asks twice does not want to wait.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            # After SIGTERM the process is ending; another one must not replace its exit status.
            if number != signal.SIGTERM or number not in received:
                signal.signal(number, handler)
