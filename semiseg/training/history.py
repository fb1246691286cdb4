"""The history of a run while it trains: history.csv, TensorBoard events, a progress bar."""

import contextlib
import math
import sys
import time
from pathlib import Path
from types import TracebackType

import pandas as pd
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from semiseg.base import distributed
from semiseg.base.files import written_whole
from semiseg.methods.contract import COUNTED, Logs
from semiseg.training.divergence import Diverged

PLAIN_SECONDS = 15.0  # between two lines of progress without a terminal
WRITE_SECONDS = 15.0  # between two writings of history.csv: each writes all rows


def _is_of_val(column: str) -> bool:
    return column.startswith("val_")


def _is_told(name: str) -> bool:
    """Return whether progress shows a log; the counts of pseudo-labels are too many."""
    return not name.startswith(COUNTED)


class History:
    """Collect the logs of every step on the device, and read them all at once every few steps.

    A checkpoint carries ``rows`` and ``unwritten``, the logs of the steps after the last row, so history.csv
    does not depend on when checkpoints are written. The file is whole at any time, but until a
    validation or the end it may lack the rows of the last WRITE_SECONDS. Several processes average their
    logs, and only the first one writes and prints.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        first_step: int,
        steps: int,
        rows: list[dict[str, float]],
        unwritten: list[dict[str, float]],
    ) -> None:
        self.rows, self.unwritten = list(rows), list(unwritten)
        self._path = folder / "history.csv"
        self._pending: list[tuple[int, Logs]] = []
        self._last_step, self._timed = first_step, 0
        self._writes = distributed.first()
        self._events = SummaryWriter(folder, purge_step=first_step + 1) if self._writes else None
        self._terminal = sys.stderr.isatty() and self._writes
        self._bar = tqdm(
            total=steps,
            initial=first_step,
            desc=title,
            unit="step",
            bar_format="{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            dynamic_ncols=True,
            disable=not self._terminal,
        )
        self._title, self._first, self._steps = title, first_step, steps
        self._began = self._tick = self._spoke = self._written = time.perf_counter()
        if self.rows:
            self._write()

    def __enter__(self) -> "History":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.rows:
            self._write()
        if self._events is not None:
            self._events.close()
        self._bar.close()

    def add(self, step: int, logs: Logs) -> None:
        """Keep the logs of step ``step``, counted from 0, on the device."""
        self._pending.append((step, logs))
        self._last_step, self._timed = step + 1, self._timed + 1
        self._bar.update()

    def read(self) -> None:
        """Copy the added logs from the device. Raises Diverged if one of them is not finite."""
        if not self._pending:
            return
        names = list(self._pending[0][1])
        table = torch.stack(
            [torch.stack([logs[name].float() for name in names]) for _, logs in self._pending]
        )
        values = distributed.averaged(table.double()).cpu()  # the one synchronisation of these steps
        self._refuse_non_finite(values, names)
        self.unwritten += [dict(zip(names, row, strict=True)) for row in values.tolist()]
        self._pending = []

    def flush(self, learning_rate: float, images_per_step: int) -> None:
        """Write one row: the means of the logs since the last row. Raises Diverged."""
        self.read()
        if not self.unwritten:
            return
        # A row has the logs that all its steps have: judge_pseudo_labels may have changed between sittings.
        names = [name for name in self.unwritten[0] if all(name in each for each in self.unwritten)]
        values = torch.tensor(
            [[each[name] for name in names] for each in self.unwritten], dtype=torch.float64
        )
        now = time.perf_counter()
        row = {
            "step": self._last_step,
            "learning_rate": learning_rate,
            **dict(zip(names, values.mean(dim=0).tolist(), strict=True)),
            "images_per_second": images_per_step * self._timed / (now - self._tick),
        }
        self._tick, self._timed, self.unwritten = now, 0, []
        self.rows.append(row)
        if len(self.rows) == 1 or now - self._written >= WRITE_SECONDS:
            self._write()
        self._note(row)
        self._tell(row, names)

    def validated(self, scores: dict[str, float]) -> None:
        """Add figures of the val list, such as "val_miou_student", to the last row."""
        self.rows[-1].update(scores)
        self._write()
        self._note(scores)
        self._tick = time.perf_counter()

    def is_validated(self, step: int) -> bool:
        """Return whether the last row is that of ``step`` and holds figures of the val list."""
        return bool(self.rows) and self.rows[-1]["step"] == step and any(map(_is_of_val, self.rows[-1]))

    def _write(self) -> None:
        """Write all rows to history.csv."""
        if self._writes:
            with written_whole(self._path) as temporary:
                pd.DataFrame(self.rows).to_csv(temporary, index=False)
            self._written = time.perf_counter()

    def _note(self, news: dict[str, float]) -> None:
        """Write the news of the last row to TensorBoard."""
        if self._events is None:
            return
        for name, value in news.items():
            if name != "step":
                self._events.add_scalar(name, value, int(self.rows[-1]["step"]))

    def _refuse_non_finite(self, values: torch.Tensor, names: list[str]) -> None:
        for (step, _), row in zip(self._pending, values.tolist(), strict=True):
            for name, value in zip(names, row, strict=True):
                if not math.isfinite(value):
                    raise Diverged(f"{self._title}: '{name}' is {value} at step {step}", step)

    def _tell(self, row: dict[str, float], names: list[str]) -> None:
        losses = {name: f"{row[name]:.3f}" for name in names if _is_told(name)}
        rate = f"{row['images_per_second']:.1f}"
        self._bar.set_postfix({"images/s": rate, **losses}, refresh=False)
        now, step = time.perf_counter(), int(row["step"])
        if not self._writes or self._terminal or (now - self._spoke < PLAIN_SECONDS and step < self._steps):
            return
        self._spoke = now
        left = (self._steps - step) * (now - self._began) / (step - self._first)
        said = " ".join(f"{name} {value}" for name, value in losses.items())
        with contextlib.suppress(OSError):  # the run outlives the reader of its log
            print(
                f"{self._title}: step {step}/{self._steps}, {said}, {rate} images/s, "
                f"{tqdm.format_interval(left)} left",
                file=sys.stderr,
                flush=True,
            )
