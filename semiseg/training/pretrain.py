"""Pretrain a backbone: the steps of a self-supervised method on a dataset's training images."""

import json
import math
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from semiseg.base import distributed, provenance
from semiseg.base.errors import UserError
from semiseg.base.files import file_sha256, remove_leftovers, write_text
from semiseg.base.gpu_memory import enough_memory
from semiseg.base.parameters import PretrainingConfig, RunConfig, canonical
from semiseg.base.paths import PretrainingRun
from semiseg.base.pretraining import Pretraining
from semiseg.data.prepared import PreparedDataset
from semiseg.data.splits import ids_sha256
from semiseg.data.streams import Images, unlabelled_batches
from semiseg.data.views import resized_crops
from semiseg.methods.contract import Logs, trained
from semiseg.models.build import build_encoder
from semiseg.models.synchronised import synchronise
from semiseg.pretraining import contract
from semiseg.pretraining.contract import Config, Method, Task, Views
from semiseg.training import checkpoint, divergence
from semiseg.training.batches import moved
from semiseg.training.checkpoint import Checkpoint, Identity
from semiseg.training.course import Course, Figures, Validation, score
from semiseg.training.lars import LARS
from semiseg.training.sitting import Sitting
from semiseg.training.step import gradient_norm, seed_everything

REVISION = 1  # raise it when a change here or in course.py alters what every pretraining gives


def pretrain(
    config: PretrainingConfig, dataset: PreparedDataset, device: torch.device, validation: Validation
) -> None:
    """Train to the last step, from a checkpoint if there is one; write backbone.pt and its record.

    The caller holds the pretraining (semiseg.base.locks.held). Of several processes that train it together,
    only the first writes. Raises UserError for too few images, weights of another backbone, a checkpoint of
    another identity and too small a GPU, and what Course.complete raises.
    """
    run, recipe = config.run, config.recipe
    key, ids = f"params.yaml: pretraining: {run.name}", dataset.ids("train")
    options = contract.configured(recipe, key)
    contract.check_images(recipe, options, len(ids), key)
    if distributed.first():
        remove_leftovers(run.checkpoints)
        remove_leftovers(run.artefacts)
    divergence.refuse_again(run, config.digest())
    identity = Identity(config.digest(), dataset.digest, ids_sha256(ids))
    with distributed.first_alone():  # it may set a broken checkpoint aside
        saved = checkpoint.load(run.checkpoints, identity)
    state = saved or Checkpoint.new(identity, provenance.now())

    seed_everything(recipe.seed, -1)
    learner = new_learner(recipe, options, device)
    optimiser = new_optimiser(learner, recipe)
    if saved:
        learner.load_state_dict(saved.method)
        optimiser.load_state_dict(saved.optimiser)
    model = distributed.replicated(learner)

    def read(first: int, last: int) -> Iterator[Views]:
        view = partial(resized_crops, crop=recipe.crop, area=recipe.area)
        images = Images(dataset, recipe.image_cache_mib)
        batches = unlabelled_batches(
            images, ids, view, recipe.batch, recipe.seed, first, last, recipe.workers
        )
        return (moved(batch, device) for batch in batches)

    def take(views: Views, step: int) -> Logs:
        seed_everything(recipe.seed, step)
        return take_step(config, learner, model, optimiser, views, step)

    def validate(sitting: Sitting) -> Figures:
        networks = {"backbone": learner.encoder()}
        figures = score(networks, validation, dataset, recipe.workers, sitting)
        state.best_miou = figures["backbone"]["miou"]
        return figures

    Course[Views](
        run=run,
        pace=recipe,
        state=state,
        learner=learner,
        schedule=cosine(optimiser, recipe, state.step),
        images_per_step=recipe.batch,
        read=read,
        take=take,
        validate=validate,
        inputs=lambda views: views,
    ).complete()
    if distributed.first():
        _write(config, state, learner.encoder(), device)
        checkpoint.finish(run.checkpoints)
        checkpoint.forget(run.checkpoints)


def new_learner(recipe: Pretraining, options: Config, device: torch.device) -> Method:
    """Return the recipe's method in training mode on ``device``, its heads from torch's default generator."""
    learner = contract.build(recipe.method, lambda: build_encoder(recipe), options, Task(recipe.steps))
    synchronise(learner, device)
    learner.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return learner.train()


def new_optimiser(learner: Method, recipe: Pretraining) -> Optimizer:
    """Return SGD or LARS over all that is trained."""
    chosen = recipe.optimiser
    groups: list[dict[str, Any]] = [{"params": trained(learner), "initial_lr": chosen.learning_rate}]
    kind = SGD if chosen.name == "sgd" else LARS
    return kind(groups, lr=chosen.learning_rate, momentum=chosen.momentum, weight_decay=chosen.weight_decay)


def cosine(optimiser: Optimizer, recipe: Pretraining, step: int) -> LambdaLR:
    """Return the schedule at ``step`` steps taken: a linear warm-up, then half a cosine to zero."""
    steps, warmup = recipe.steps, recipe.optimiser.warmup_steps

    def factor(taken: int) -> float:
        if taken < warmup:
            return (taken + 1) / warmup
        return (1 + math.cos(math.pi * (taken - warmup) / (steps - warmup))) / 2

    return LambdaLR(optimiser, factor, last_epoch=step - 1)


def take_step(
    config: PretrainingConfig,
    learner: Method,
    model: nn.Module,
    optimiser: Optimizer,
    views: Views,
    step: int,
) -> Logs:
    """Train on one batch and return the logs: loss, the method's own logs, and the gradient's norm.

    ``model`` is ``learner`` or its DistributedDataParallel wrapper. Raises UserError if the GPU's memory is
    too small.
    """
    recipe = config.recipe
    with enough_memory(
        f"{config.run}: a step of {recipe.batch} images in two views of {recipe.crop} pixels in "
        f"{recipe.precision}",
        f"in pretraining: {config.run.name}, lower batch or crop, raise gpus, or set precision: bf16",
    ):
        optimiser.zero_grad(set_to_none=True)
        device = views["image1"].device.type
        with torch.autocast(device, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss, logs = model(views, step)
        loss.backward()
        norm = gradient_norm(learner)
        optimiser.step()
        learner.after_step(step)
    return {"loss": loss.detach(), **logs, "gradient_norm": norm}


def _write(config: PretrainingConfig, state: Checkpoint, encoder: nn.Module, device: torch.device) -> None:
    """Write backbone.pt and the history, then record.json, which says what they are."""
    run, recipe = config.run, config.recipe
    tensors = {name: each.detach().cpu().clone() for name, each in encoder.state_dict().items()}
    checkpoint.write(tensors, run.weights)
    write_text(run.history, (run.artefacts / "history.csv").read_text(encoding="utf-8"))
    record = {
        "config_sha256": state.config_sha256,
        "data_sha256": state.data_sha256,
        "weights_sha256": file_sha256(run.weights),
        "config": json.loads(canonical(config)),
        "step": state.step,
        "probe_miou": state.best_miou,
        "started": state.started,
        "finished": max(provenance.now(), state.started),  # the clock may have been set back since
        "revision": state.revision,
        "packages": provenance.packages(recipe.package),
        "device": provenance.device_name(device),
        "train_seconds": state.seconds,
        "images_per_second": state.step * recipe.batch / max(state.seconds, 1e-9),
        "peak_memory_mib": state.peak_memory_mib,
    }
    write_text(run.record, json.dumps(record, indent=2) + "\n")
    print(f"{run}: the probe's mIoU is {state.best_miou:.1%}; {run.weights} is written", file=sys.stderr)


def weights_sha256(config: RunConfig) -> str | None:
    """Return the sha256 of the pretrained weights that a run starts from; None if it starts from others.

    Raises UserError for weights that are missing, changed, or of another recipe than params.yaml has.
    """
    run = PretrainingRun.named(config.protocol.network.weights)
    if run is None:
        return None
    remedy = f"run python pipeline/pretrain.py {run.name} first"
    try:
        record = json.loads(run.record.read_text(encoding="utf-8"))
        found, expected = file_sha256(run.weights), str(record["weights_sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{run.weights}: not there, or without its record {run.record}; {remedy}") from None
    if found != expected:
        raise UserError(f"{run.weights}: changed since it was written; remove {run.artefacts}, then {remedy}")
    if record.get("config_sha256") != config.weights_sha256:
        raise UserError(f"{run.weights}: made by another recipe than params.yaml has; {remedy}")
    return found
