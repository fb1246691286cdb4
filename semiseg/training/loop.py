"""The training loop: the same steps, data and schedule for every method."""

import sys
from collections.abc import Mapping
from functools import partial

import torch

from semiseg.base import distributed, provenance
from semiseg.base.files import remove_leftovers
from semiseg.base.parameters import RunConfig
from semiseg.data import prepared
from semiseg.data.prepared import PreparedDataset
from semiseg.data.splits import Split
from semiseg.methods import contract
from semiseg.methods.contract import Logs, Task
from semiseg.models.network import SegmentationNetwork
from semiseg.training import checkpoint, divergence
from semiseg.training.batches import Batch, batches
from semiseg.training.checkpoint import Checkpoint, Networks
from semiseg.training.course import Course, Figures, Validation, score
from semiseg.training.pretrain import weights_sha256
from semiseg.training.sitting import Sitting
from semiseg.training.step import new_learner, new_optimiser, poly, seed_everything, take_step

REVISION = 1  # raise it when a change here or in course.py alters the numbers of every run


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
    divergence.refuse_again(run, config.digest())
    options = contract.configured(config.method, config.options, protocol)
    view = contract.views(config.method, options, protocol.geometry)
    judged = protocol.judge_pseudo_labels and options.labels_weak_view
    if judged:
        prepared.check_judged(dataset, split.unlabelled)
    identity = checkpoint.identify(config, dataset, split)
    with distributed.first_alone():  # it may set a broken checkpoint aside
        saved = checkpoint.load(run.checkpoints, identity)
    state = saved or Checkpoint.new(identity, provenance.now())
    if not saved:
        state.pretrained_sha256 = weights_sha256(config)

    seed_everything(run.seed, -1)
    task = Task(protocol.steps, len(split.labelled), config.dataset.background, len(split.unlabelled))
    learner = new_learner(config, options, task, device)
    optimiser = new_optimiser(learner, protocol.optimiser)
    if saved:
        learner.load_state_dict(saved.method)
        optimiser.load_state_dict(saved.optimiser)
    model = distributed.replicated(learner)
    resumed_at = state.step

    images_per_step = protocol.labelled_batch + (protocol.unlabelled_batch if view else 0)

    def take(batch: Batch, step: int) -> Logs:
        seed_everything(run.seed, step)
        return take_step(config, learner, model, optimiser, *batch, step)

    def validate(sitting: Sitting) -> Figures:
        networks = learner.networks()
        figures = score(networks, validation, dataset, protocol.workers, sitting)
        miou = figures[next(iter(networks))]["miou"]
        if miou > state.best_miou:
            state.best_miou, state.best_step, state.best = miou, state.step, _state_dicts(networks)
        return figures

    Course[Batch](
        run=run,
        pace=protocol,
        state=state,
        learner=learner,
        schedule=poly(optimiser, protocol, state.step),
        images_per_step=images_per_step,
        read=partial(batches, config, dataset, split, view, judged, device),
        take=take,
        validate=validate,
        inputs=lambda batch: {**batch[0]._asdict(), "views": batch[1] or {}},
    ).complete()
    if distributed.first():
        if resumed_at == protocol.steps:
            print(f"{run}: had taken its last step; its network is written again", file=sys.stderr)
        _write_model(config, state, learner.networks(), images_per_step, device)
        checkpoint.finish(run.checkpoints)


def _state_dicts(networks: Mapping[str, SegmentationNetwork]) -> Networks:
    """Copy the networks' states to the CPU."""
    return {
        name: {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
        for name, network in networks.items()
    }


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
        "pretrained_sha256": state.pretrained_sha256,
    }
    checkpoint.write(model, config.run.artefacts / "model.pt")
