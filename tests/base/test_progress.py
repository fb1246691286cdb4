import io
import sys

import pytest

from semiseg.base import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, pause: float) -> str:
    """Return the output of work on 40 images; it need not last a second."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "PAUSE", pause)
    monkeypatch.setattr(progress, "DELAY", 0.0)
    with progress.bar("read", 40, " images") as bar:
        for _ in range(40):
            bar.update()
    return stream.getvalue()


def test_a_log_file_has_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(io.StringIO(), monkeypatch, 0.0)
    assert "\r" not in text
    lines = text.splitlines()
    assert len(lines) > 2
    assert all(line.startswith("read: ") and "/40" in line for line in lines)
    assert "40/40" in lines[-1]


def test_a_log_file_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(shown(io.StringIO(), monkeypatch, 30.0).splitlines()) == 2  # the first and the last


def test_a_terminal_has_one_line_that_is_drawn_over(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(Terminal(), monkeypatch, 0.0)
    assert text.count("\n") == 1
    assert "\rread: " in text


def test_short_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress.bar("read", 3, " images") as bar:
        bar.update(3)
    assert stream.getvalue() == ""
