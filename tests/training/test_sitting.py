"""A sitting ends between two steps: told by a signal, or because its own part failed, with all saved."""

import signal
from collections.abc import Iterator

import pytest

from semiseg.base.errors import UserError
from semiseg.training.sitting import Interrupted, Sitting, noted_signals


class Steps:
    """Counts the steps taken, and keeps those after which the run was saved."""

    def __init__(self) -> None:
        self.taken, self.saved = 0, []
        self.signals: list[int] = []
        self.sitting = Sitting(
            "a/b/0", self.signals, lambda: self.taken, lambda: self.saved.append(self.taken)
        )

    def take(
        self, batches: Iterator[int], signal_at: int | None = None, number: int = signal.SIGTERM
    ) -> None:
        for _ in self.sitting.each(batches):
            self.taken += 1
            if self.taken == signal_at:
                self.signals.append(number)


def test_a_sitting_takes_every_batch() -> None:
    steps = Steps()
    steps.take(iter(range(5)))
    assert (steps.taken, steps.saved) == (5, [])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_ends_it_after_the_step_with_everything_saved(number: int, status: int) -> None:
    steps = Steps()
    with pytest.raises(Interrupted, match="a/b/0") as raised:
        steps.take(iter(range(5)), signal_at=3, number=number)
    assert raised.value.exit_status == status
    assert (steps.taken, steps.saved) == (3, [3])


def test_a_signal_before_the_first_step_saves_nothing() -> None:
    steps = Steps()
    steps.signals.append(signal.SIGTERM)
    with pytest.raises(Interrupted):
        steps.take(iter(range(5)))
    assert (steps.taken, steps.saved) == (0, [])


def test_what_is_saved_already_is_not_saved_again() -> None:
    steps = Steps()
    batches = steps.sitting.each(iter(range(5)))
    next(batches)
    steps.taken = 1
    steps.sitting.save()
    steps.signals.append(signal.SIGTERM)
    with pytest.raises(Interrupted):
        next(batches)
    assert steps.saved == [1]


def test_a_batch_that_cannot_be_read_saves_what_was_done_and_says_why() -> None:
    def batches() -> Iterator[int]:
        yield from range(2)
        raise UserError("image.jpg: unreadable")

    steps = Steps()
    with pytest.raises(UserError, match=r"^image\.jpg: unreadable$"):
        steps.take(batches())
    assert (steps.taken, steps.saved) == (2, [2])


def test_a_signal_that_also_broke_a_reader_is_the_reason() -> None:
    steps = Steps()

    def batches() -> Iterator[int]:
        yield 0
        steps.signals.append(signal.SIGTERM)
        raise UserError("a reader was killed")

    with pytest.raises(Interrupted):
        steps.take(batches())
    assert steps.saved == [1]


def test_once_told_no_further_item_is_waited_for() -> None:
    steps = Steps()
    items = steps.sitting.until_told(iter(range(5)))
    assert next(items) == 0
    steps.signals.append(signal.SIGTERM)
    assert list(items) == []


def test_signals_are_noted_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with noted_signals() as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):  # a person who asks twice
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_after_sigterm_another_does_not_end_the_process_with_another_status() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with noted_signals() as signals:
        assert signal.getsignal(signal.SIGTERM) != before
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert signals == [signal.SIGTERM, signal.SIGTERM]
