"""The training loop: the same steps, data and schedule for every method."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

import torch
from torch import Tensor

from semiseg.base import distributed, provenance
from semiseg.base.errors import EXIT_INTERRUPTED, EXIT_TRY_AGAIN, UserError
from semiseg.base.files import remove_leftovers
from semiseg.base.parameters import RunConfig
from semiseg.base.tree import from_tree
from semiseg.data.prepared import PreparedDataset
from semiseg.data.splits import Split
from semiseg.data.streams import Images, evaluation_images, labelled_batches, unlabelled_batches
from semiseg.evaluation.metrics import mean_iou, true_negatives
from semiseg.evaluation.score import confusion
from semiseg.methods import contract
from semiseg.methods.contract import Labelled, Task, Unlabelled
from semiseg.training import checkpoint
from semiseg.training.checkpoint import Checkpoint
from semiseg.training.history import Diverged, History
from semiseg.training.step import (
    headline,
    learn,
    networks,
    new_learner,
    seed_everything,
    set_learning_rate,
    sgd,
    state_dicts,
    to_device,
)

T = TypeVar("T")
FAILED = 1  # what a process says that cannot go on, below the numbers of the signals that are noted


class Interrupted(UserError):
    """A signal came, and the run was saved; it goes on when it is started again."""

    exit_status = EXIT_TRY_AGAIN

    def __init__(self, said: str, number: int) -> None:
        super().__init__(said)
        if number == signal.SIGINT:
            self.exit_status = EXIT_INTERRUPTED


def train(config: RunConfig, dataset: PreparedDataset, split: Split, device: torch.device) -> None:
    """Train one run to its last step, from its checkpoint where there is one, and write its model.pt.

    The caller holds the run (checkpoint.held). Of several processes that train it together, the first alone
    writes. Raises UserError for a checkpoint of another configuration or too small a GPU, Diverged for a loss
    or gradient that is not finite, Interrupted after SIGTERM or ctrl-C, ReaderDiedError.
    """
    run = config.run
    if distributed.first():
        remove_leftovers(run.checkpoints)
        remove_leftovers(run.artefacts)
    _refuse_to_diverge_again(config)
    session = Session(config, dataset, split, device)
    with session.history, _noted_signals() as session.signals, distributed.ended_by(session.signals):
        try:
            _steps(session)
        except Diverged as error:
            kept = session.keep_inputs(error.step)
            raise Diverged(f"{error}; {_after_divergence(kept)}", error.step) from None
    if distributed.first():
        if session.resumed_at == config.protocol.steps:
            print(f"{run}: had taken its last step; its network is written again", file=sys.stderr)
        session.write_model()
        checkpoint.finish(run.checkpoints)


def _refuse_to_diverge_again(config: RunConfig) -> None:
    """An engine that retries whatever fails would otherwise train to the same step again and again."""
    for kept in config.run.checkpoints.glob("nan-step-*.pt"):
        try:
            found = checkpoint.read(kept)
        except ValueError:  # it was not written whole: the loss is met again
            continue
        if found["config_sha256"] == config.digest():
            step = found["step"]
            raise Diverged(f"{config.run}: diverged at step {step} before; {_after_divergence(kept)}", step)


def _after_divergence(kept: Path) -> str:
    return (
        f"the step's inputs are in {kept}; lower learning_rate or set clip_norm in the protocol, "
        f"then remove {kept.parent} to train from the start (or {kept.name} alone to try once more)"
    )


def _steps(session: "Session") -> None:
    protocol, state = session.config.protocol, session.state
    learner, optimiser, history = session.learner, session.optimiser, session.history
    if session.is_validation_due():  # the last sitting ended in the midst of it
        session.validate()
    tick = time.perf_counter()
    for labelled, unlabelled in session.batches():
        step = state.step
        rate = set_learning_rate(optimiser, protocol.optimiser, step / protocol.steps)
        seed_everything(session.config.run.seed, step)
        logs = learn(session.config, learner, session.model, optimiser, labelled, unlabelled, step)
        history.add(step, logs)

        state.step += 1
        validate = session.is_validation_due()
        if validate or state.step % protocol.log_every == 0:
            history.flush(rate, session.images_per_step)
        state.seconds += time.perf_counter() - tick
        if validate:
            session.validate()
        if session.is_save_due():
            session.save()
        tick = time.perf_counter()


class Session:
    """One sitting of a run: the method, its optimiser and streams, and the state that outlives it."""

    def __init__(
        self, config: RunConfig, dataset: PreparedDataset, split: Split, device: torch.device
    ) -> None:
        protocol = config.protocol
        self.config, self.dataset, self.split, self.device = config, dataset, split, device
        self._options = from_tree(
            contract.module(config.method).Config, config.options, "params.yaml: options"
        )
        self._view = contract.views(config.method, self._options, protocol.geometry)
        self.images_per_step = protocol.labelled_batch + (protocol.unlabelled_batch if self._view else 0)
        self.signals: list[int] = []  # that have come, and ask for an end between two steps
        with distributed.first_alone():  # it may set a broken one aside
            saved = checkpoint.load(config.run.checkpoints, config.digest())

        seed_everything(config.run.seed, -1)
        task = Task(protocol.steps, len(split.labelled), config.dataset.background, len(split.unlabelled))
        self.learner = new_learner(config, self._options, task, device)
        self.optimiser = sgd(self.learner, protocol.optimiser)
        self.state = saved or Checkpoint(config.digest(), 0, {}, {}, [], -1.0, 0, {}, provenance.now(), 0.0)
        if saved:
            self.learner.load_state_dict(saved.method)
            self.optimiser.load_state_dict(saved.optimiser)
        self.model = distributed.replicated(self.learner)  # takes the steps
        self.history = History(
            config.run.artefacts, str(config.run), self.state.step, protocol.steps, self.state.history,
            self.state.unwritten,
        )  # fmt: skip
        self.resumed_at = self._saved_step = self.state.step
        self._saved_at = time.monotonic()
        self._revision = provenance.revision()  # of the code that was loaded; the folder may go on

    def batches(self) -> Iterator[tuple[Labelled, Unlabelled | None]]:
        """The batches of the steps that are left, on the device. Raises what ``_together`` does."""
        batches = self._until_asked(self._batches(self.state.step, self.config.protocol.steps))
        while True:
            with self._together():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _until_asked(self, items: Iterator[T]) -> Iterator[T]:
        """``items``, of which none is waited for once a signal has come."""
        while not self.signals and (item := next(items, None)) is not None:
            yield item

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What each process does by itself; where one cannot, or a signal has come, all save here and end.

        Raises Interrupted, this process's own UserError, or Abandoned for another's.
        """
        failure = None
        try:
            yield
        except UserError as error:
            failure = error
        reason = distributed.largest(max([*self.signals, FAILED if failure else 0]))
        if not reason:
            return
        if self.state.step > self._saved_step:
            self.save()
        if reason != FAILED:  # of which a reader may have died, too
            said = f"{self.config.run}: saved after step {self.state.step}; start it again to go on"
            raise Interrupted(said, reason)
        if failure is None:
            distributed.abandon()
        raise failure

    def _batches(self, first: int, last: int) -> Iterator[tuple[Labelled, Unlabelled | None]]:
        """The batches of steps [first, last)."""
        protocol, seed = self.config.protocol, self.config.run.seed
        read = Images(self.dataset, protocol.image_cache_mib)
        if protocol.image_cache_mib:
            mib = protocol.image_cache_mib
            print(f"{self.config.run}: decoded images are kept in at most {mib} MiB", file=sys.stderr)
        labelled = labelled_batches(
            read, self.split.labelled, protocol.geometry,
            protocol.labelled_batch, seed, first, last, protocol.workers,
        )  # fmt: skip
        if self._view is None:
            for images, masks in labelled:
                yield self._labelled(images, masks), None
            return
        unlabelled = unlabelled_batches(
            read, self.split.unlabelled, self._view,
            protocol.unlabelled_batch, seed, first, last, protocol.workers,
        )  # fmt: skip
        for (images, masks), views in zip(labelled, unlabelled, strict=True):
            yield (
                self._labelled(images, masks),
                {name: to_device(view, self.device) for name, view in views.items()},
            )

    def _labelled(self, images: Tensor, masks: Tensor) -> Labelled:
        images = to_device(images, self.device)
        return Labelled(images, masks.to(self.device, torch.int64, non_blocking=True))

    def is_validation_due(self) -> bool:
        """Whether the networks of this step are to be scored and have not been."""
        step, protocol = self.state.step, self.config.protocol
        if step == 0 or (step % protocol.validate_every and step != protocol.steps):
            return False
        rows = self.history.rows
        return not rows or rows[-1]["step"] != step or "val_miou_student" not in rows[-1]

    def validate(self) -> None:
        """Score the networks on the val list, and keep them if the predictor was never better.

        Raises what ``_together`` does.
        """
        protocol, classes = self.config.protocol, len(self.config.dataset.classes)
        ids = distributed.dealt(self.dataset.ids("val"))
        images = self._until_asked(evaluation_images(self.dataset, ids, protocol.workers))
        scored = networks(self.learner)
        with self._together():
            matrices = confusion(scored, images, classes, self.device, protocol.precision)
        matrices = {name: distributed.summed(matrix) for name, matrix in matrices.items()}
        self.history.validated(
            {
                f"val_{name}_{network}": float(figure(matrix))
                for name, figure in (("miou", mean_iou), ("true_negatives", true_negatives))
                for network, matrix in matrices.items()
            }
        )
        miou = float(mean_iou(matrices[headline(self.learner)]))
        if miou > self.state.best_miou:
            self.state.best_miou, self.state.best_step = miou, self.state.step
            self.state.best = state_dicts(scored)

    def is_save_due(self) -> bool:
        """Whether it is the last step, or so many steps or minutes have passed, which changes no number."""
        protocol = self.config.protocol
        minutes = (time.monotonic() - self._saved_at) / 60
        late = distributed.agreed(minutes >= protocol.checkpoint_minutes)
        return late or self.state.step % protocol.checkpoint_every == 0 or self.state.step == protocol.steps

    def save(self) -> None:
        """Write the checkpoint, for which every process waits.

        Raises Diverged rather than save what a loss or gradient that is not finite has led to.
        """
        self.history.read()
        self.state.method = self.learner.state_dict()
        self.state.optimiser = self.optimiser.state_dict()
        self.state.history, self.state.unwritten = self.history.rows, self.history.unwritten
        self.state.revision = self._revision
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device) / 2**20
            self.state.peak_memory_mib = max(peak, self.state.peak_memory_mib or 0.0)
        with distributed.first_alone():
            if distributed.first():
                self.state.save(self.config.run.checkpoints)
        self._saved_step, self._saved_at = self.state.step, time.monotonic()

    def keep_inputs(self, step: int) -> Path:
        """Write what step ``step`` was given, drawn anew from the seed, beside the checkpoint."""
        labelled, unlabelled = next(self._batches(step, step + 1))
        inputs = {
            "config_sha256": self.state.config_sha256,
            "step": step,
            "images": distributed.gathered(labelled.images).cpu(),
            "masks": distributed.gathered(labelled.masks).cpu(),
            "views": {name: distributed.gathered(view).cpu() for name, view in (unlabelled or {}).items()},
        }
        path = self.config.run.checkpoints / f"nan-step-{step}.pt"
        if distributed.first():
            checkpoint.write(inputs, path)
        return path

    def write_model(self) -> None:
        """Write model.pt: the networks at the last and at the best validated step, and how they were made."""
        state = self.state
        model = {
            "config_sha256": state.config_sha256,
            "headline": headline(self.learner),
            "last_step": state.step,
            "last": state_dicts(networks(self.learner)),
            "best_step": state.best_step,
            "best": state.best,
            "started": state.started,
            "finished": max(provenance.now(), state.started),  # a clock may have been set back since
            "revision": state.revision,
            "packages": provenance.packages(),
            "device": provenance.device_name(self.device),
            "train_seconds": state.seconds,
            "images_per_second": state.step * self.images_per_step / max(state.seconds, 1e-9),
            "peak_memory_mib": state.peak_memory_mib,
        }
        checkpoint.write(model, self.config.run.artefacts / "model.pt")


@contextmanager
def _noted_signals() -> Iterator[list[int]]:
    """A list that SIGTERM and ctrl-C put their number into, instead of ending the process.

    A second ctrl-C is a KeyboardInterrupt: whoever asks twice does not want to wait.
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
            # Who has had SIGTERM is ending; told again, it must end with its own status all the same.
            if number != signal.SIGTERM or number not in received:
                signal.signal(number, handler)
