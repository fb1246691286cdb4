"""The course of a training: its steps, logs, validations and checkpoints, whatever is trained."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from semiseg.base import distributed, provenance
from semiseg.base.paths import PretrainingRun, Run
from semiseg.data.prepared import PreparedDataset
from semiseg.data.streams import by_size, evaluation_images
from semiseg.methods.contract import Logs
from semiseg.training import divergence
from semiseg.training.checkpoint import Checkpoint
from semiseg.training.divergence import Diverged
from semiseg.training.history import History
from semiseg.training.sitting import Sitting, noted_signals

Batch = TypeVar("Batch")
Figures = dict[str, dict[str, float]]
"""Figures of each network by name."""


class Pace(Protocol):
    """Intervals of logs, validations and checkpoints; fields of a protocol and of a pretraining."""

    @property
    def steps(self) -> int: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def checkpoint_minutes(self) -> float: ...
    @property
    def log_every(self) -> int: ...
    @property
    def workers(self) -> int: ...


class Validation(Protocol):
    """How networks are scored on the val list; semiseg.evaluation has two ways."""

    def count(
        self, networks: Mapping[str, Any], images: Iterable[tuple[str, Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Return each network's confusion matrix over (id, image, mask)."""

    def figures(self, matrix: Tensor) -> dict[str, float]:
        """Return the figures of a confusion matrix by name, "miou" among them."""


@dataclass(frozen=True)
class Course(Generic[Batch]):
    """Everything needed to train ``learner`` to the last step."""

    run: Run | PretrainingRun
    pace: Pace
    state: Checkpoint
    learner: nn.Module
    schedule: LambdaLR  # of the optimiser, at the state's step
    images_per_step: int
    read: Callable[[int, int], Iterator[Batch]]  # the batches of steps [first, last)
    take: Callable[[Batch, int], Logs]  # takes a step
    validate: Callable[[Sitting], Figures]  # scores the networks on the val list
    inputs: Callable[[Batch], Mapping[str, Any]]  # a batch's tensors by name, to be kept if its step fails

    def complete(self) -> None:
        """Take every step that is left, and keep ``state`` up to date.

        Raises Diverged for a loss or gradient that is not finite, Interrupted after SIGTERM or ctrl-C,
        another UserError for a file that cannot be read, and Abandoned if another process failed.
        """
        state, pace, resumed_at = self.state, self.pace, self.state.step
        history = History(
            self.run.artefacts, str(self.run), resumed_at, pace.steps, state.history, state.unwritten
        )
        # The revision is read now: the working folder may change while the loaded code trains.
        revision = provenance.revision()

        def save() -> None:
            tick = time.perf_counter()
            history.read()  # raises Diverged rather than save the consequences of a loss that is not finite
            state.method = self.learner.state_dict()
            state.optimiser = self.schedule.optimizer.state_dict()
            state.history, state.unwritten = history.rows, history.unwritten
            device = next(self.learner.parameters()).device
            state.revision = revision
            state.peak_memory_mib = _peak_memory(device, state.peak_memory_mib)
            with distributed.first_alone():
                if distributed.first():
                    state.save(self.run.checkpoints)
            state.seconds += time.perf_counter() - tick

        with history, noted_signals() as signals, distributed.ended_by(signals):
            sitting = Sitting(str(self.run), signals, lambda: state.step, save)
            steps = sitting.each(self.read(state.step, pace.steps))
            try:
                while True:
                    if self._ends_with_validation() and not history.is_validated(state.step):
                        history.validated(_by_column(self.validate(sitting)))
                    if state.step > resumed_at and self._is_save_due(sitting):
                        sitting.save()
                    if state.step == pace.steps:
                        break

                    tick = time.perf_counter()
                    history.add(state.step, self.take(next(steps), state.step))
                    rate = float(self.schedule.get_last_lr()[-1])
                    self.schedule.step()
                    state.step += 1
                    if state.step % pace.log_every == 0 or self._ends_with_validation():
                        history.flush(rate, self.images_per_step)
                    state.seconds += time.perf_counter() - tick
            except Diverged as error:
                inputs = self.inputs(next(self.read(error.step, error.step + 1)))
                raise divergence.explained(self.run, state.config_sha256, error, inputs) from None

    def _ends_with_validation(self) -> bool:
        """Return whether the networks are scored after the steps taken so far."""
        step, pace = self.state.step, self.pace
        return step > 0 and (step % pace.validate_every == 0 or step == pace.steps)

    def _is_save_due(self, sitting: Sitting) -> bool:
        """Return whether to save now; saving changes no number."""
        late = sitting.minutes_since_save() >= self.pace.checkpoint_minutes
        return distributed.agreed(late) or self.state.step == self.pace.steps


def score(
    networks: Mapping[str, nn.Module],
    validation: Validation,
    dataset: PreparedDataset,
    workers: int,
    sitting: Sitting,
) -> Figures:
    """Return each network's figures on the val list, which the processes of a run share."""
    with sitting.together():
        ids = by_size(dataset, distributed.dealt(dataset.ids("val")))
        images = evaluation_images(dataset, ids, workers)
        matrices = validation.count(networks, sitting.until_told(images))
    return {name: validation.figures(distributed.summed(matrix)) for name, matrix in matrices.items()}


def _by_column(figures: Figures) -> dict[str, float]:
    """Return figures by their column of history.csv."""
    return {
        f"val_{figure}_{name}": value for name, values in figures.items() for figure, value in values.items()
    }


def _peak_memory(device: torch.device, before: float | None) -> float | None:
    """Return the most MiB that this and earlier sittings allocated on a GPU; None on the CPU."""
    if device.type != "cuda":
        return before
    return max(torch.cuda.max_memory_allocated(device) / 2**20, before or 0.0)
