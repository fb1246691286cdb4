"""Progress bars on a terminal, and a line now and then in a log file."""

import sys
from typing import Never, TextIO

from tqdm import tqdm

PAUSE = 30.0  # seconds between two lines of a log file
DELAY = 1.0  # seconds; shorter work shows nothing


class _Lines:
    """Write each state of a bar, which tqdm would draw over, on a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line:
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


def bar(
    description: str, total: float | None, unit: str, done: int = 0, scale: bool = False
) -> "tqdm[Never]":
    """Return a bar on stderr of ``total`` units, ``done`` already; work shorter than DELAY shows none.

    ``scale``: write the numbers with k, M and G.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        desc=description,
        total=total,
        initial=done,
        unit=unit,
        unit_scale=scale,
        file=sys.stderr if terminal else _Lines(sys.stderr),
        ncols=None if terminal else 100,
        mininterval=0.1 if terminal else PAUSE,
        delay=DELAY,
    )
