"""The training loop: the same steps, data and schedule for every method."""

import sys
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from semiseg.base import distributed, provenance
from semiseg.base.files import remove_leftovers
from semiseg.base.parameters import RunConfig
from semiseg.data import prepared
from semiseg.data.prepared import PreparedDataset
from semiseg.data.splits import Split
from semiseg.data.streams import evaluation_images
from semiseg.methods import contract
from semiseg.methods.contract import Task
from semiseg.models.network import SegmentationNetwork
from semiseg.training import checkpoint, divergence
from semiseg.training.batches import batches
from semiseg.training.checkpoint import Checkpoint, Networks
from semiseg.training.divergence import Diverged
from semiseg.training.history import History
from semiseg.training.sitting import Sitting, noted_signals
from semiseg.training.step import new_learner, new_optimiser, poly, seed_everything, take_step

REVISION = 1  # raise it when a change alters the numbers of every run


class Validation(Protocol):
    """How networks are scored on the val list; semiseg.evaluation.score has it."""

    def count(
        self, networks: Mapping[str, SegmentationNetwork], images: Iterable[tuple[str, Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """Return each network's confusion matrix over (id, image, mask)."""

    def figures(self, matrix: Tensor) -> dict[str, float]:
        """Return the figures of a confusion matrix by name, "miou" among them."""


def train(
    config: RunConfig,
    dataset: PreparedDataset,
    split: Split,
    device: torch.device,
    validation: Validation,
) -> None:
    """Train one run to its last step, from its checkpoint if there is one, and write its model.pt.

    The caller holds the run (semiseg.base.locks.held). Of several processes that train it together, only the
    first writes. Raises UserError for a checkpoint of another identity and for too small a GPU, Diverged for
    a loss or gradient that is not finite, Interrupted after SIGTERM or ctrl-C, and ReaderDiedError.
    """
    run, protocol = config.run, config.protocol
    if distributed.first():
        remove_leftovers(run.checkpoints)
        remove_leftovers(run.artefacts)
    divergence.refuse_again(config)
    options = contract.configured(config.method, config.options, protocol)
    view = contract.views(config.method, options, protocol.geometry)
    judged = protocol.judge_pseudo_labels and options.labels_weak_view
    if judged:
        prepared.check_judged(dataset, split.unlabelled)
    read = partial(batches, config, dataset, split, view, judged, device)
    identity = checkpoint.identify(config, dataset, split)
    with distributed.first_alone():  # it may set a broken checkpoint aside
        saved = checkpoint.load(run.checkpoints, identity)
    state = saved or Checkpoint.new(identity, provenance.now())

    seed_everything(run.seed, -1)
    task = Task(protocol.steps, len(split.labelled), config.dataset.background, len(split.unlabelled))
    learner = new_learner(config, options, task, device)
    optimiser = new_optimiser(learner, protocol.optimiser)
    if saved:
        learner.load_state_dict(saved.method)
        optimiser.load_state_dict(saved.optimiser)
    schedule = poly(optimiser, protocol, state.step)
    model = distributed.replicated(learner)
    history = History(run.artefacts, str(run), state.step, protocol.steps, state.history, state.unwritten)
    images_per_step = protocol.labelled_batch + (protocol.unlabelled_batch if view else 0)
    revision = provenance.revision()  # of the code that is loaded; the working folder may change meanwhile
    resumed_at = state.step

    def save() -> None:
        history.read()  # raises Diverged rather than save the consequences of a loss that is not finite
        state.method, state.optimiser = learner.state_dict(), optimiser.state_dict()
        state.history, state.unwritten = history.rows, history.unwritten
        state.revision, state.peak_memory_mib = revision, _peak_memory(device, state.peak_memory_mib)
        with distributed.first_alone():
            if distributed.first():
                state.save(run.checkpoints)

    with history, noted_signals() as signals, distributed.ended_by(signals):
        sitting = Sitting(str(run), signals, lambda: state.step, save)
        steps = sitting.each(read(state.step, protocol.steps))
        try:
            while True:
                if _ends_with_validation(config, state.step) and not history.is_validated(state.step):
                    val = evaluation_images(dataset, distributed.dealt(dataset.ids("val")), protocol.workers)
                    with sitting.together():
                        matrices = validation.count(learner.networks(), sitting.until_told(val))
                    _note_validation(state, history, learner.networks(), matrices, validation)
                if state.step > resumed_at and _is_save_due(config, state.step, sitting):
                    sitting.save()
                if state.step == protocol.steps:
                    break

                tick = time.perf_counter()
                labelled, unlabelled = next(steps)
                seed_everything(run.seed, state.step)
                logs = take_step(config, learner, model, optimiser, labelled, unlabelled, state.step)
                history.add(state.step, logs)
                rate = float(schedule.get_last_lr()[-1])
                schedule.step()
                state.step += 1
                if state.step % protocol.log_every == 0 or _ends_with_validation(config, state.step):
                    history.flush(rate, images_per_step)
                state.seconds += time.perf_counter() - tick
        except Diverged as error:
            raise divergence.explained(config, error, next(read(error.step, error.step + 1))) from None
    if distributed.first():
        if resumed_at == protocol.steps:
            print(f"{run}: had taken its last step; its network is written again", file=sys.stderr)
        _write_model(config, state, learner.networks(), images_per_step, device)
        checkpoint.finish(run.checkpoints)


def _ends_with_validation(config: RunConfig, step: int) -> bool:
    """Return whether the networks are scored after ``step`` steps."""
    return step > 0 and (step % config.protocol.validate_every == 0 or step == config.protocol.steps)


def _is_save_due(config: RunConfig, step: int, sitting: Sitting) -> bool:
    """Return whether to save after ``step`` steps; saving changes no number."""
    protocol = config.protocol
    late = distributed.agreed(sitting.minutes_since_save() >= protocol.checkpoint_minutes)
    return late or step % protocol.checkpoint_every == 0 or step == protocol.steps


def _note_validation(
    state: Checkpoint,
    history: History,
    networks: Mapping[str, SegmentationNetwork],
    matrices: Mapping[str, Tensor],
    validation: Validation,
) -> None:
    """Write the figures into the history, and keep the networks if the headline's mIoU is the best so far."""
    figures = {name: validation.figures(distributed.summed(matrix)) for name, matrix in matrices.items()}
    history.validated(
        {
            f"val_{figure}_{name}": value
            for name, values in figures.items()
            for figure, value in values.items()
        }
    )
    miou = figures[next(iter(networks))]["miou"]
    if miou > state.best_miou:
        state.best_miou, state.best_step, state.best = miou, state.step, _state_dicts(networks)


def _state_dicts(networks: Mapping[str, SegmentationNetwork]) -> Networks:
    """Copy the networks' states to the CPU."""
    return {
        name: {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
        for name, network in networks.items()
    }


def _peak_memory(device: torch.device, before: float | None) -> float | None:
    """Return the most MiB that this and earlier sittings allocated on a GPU; None on the CPU."""
    if device.type != "cuda":
        return before
    return max(torch.cuda.max_memory_allocated(device) / 2**20, before or 0.0)


def _write_model(
    config: RunConfig,
    state: Checkpoint,
    networks: Mapping[str, SegmentationNetwork],
    images_per_step: int,
    device: torch.device,
) -> None:
    """Write model.pt: the networks at the last and at the best validated step, and how they were trained."""
    model = {
        "config_sha256": state.config_sha256,
        "data_sha256": state.data_sha256,
        "labelled_sha256": state.labelled_sha256,
        "last_step": state.step,
        "last": _state_dicts(networks),
        "best_step": state.best_step,
        "best": state.best,
        "started": state.started,
        "finished": max(provenance.now(), state.started),  # the clock may have been set back since
        "revision": state.revision,
        "packages": provenance.packages(config.protocol.network.package),
        "device": provenance.device_name(device),
        "train_seconds": state.seconds,
        "images_per_second": state.step * images_per_step / max(state.seconds, 1e-9),
        "peak_memory_mib": state.peak_memory_mib,
    }
    checkpoint.write(model, config.run.artefacts / "model.pt")
