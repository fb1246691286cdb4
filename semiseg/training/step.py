"""One training step, and all that takes it: the method, the optimiser and its schedule."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from semiseg.base import distributed
from semiseg.base.gpu_memory import enough_memory
from semiseg.base.parameters import Optimiser, Protocol, RunConfig
from semiseg.methods import contract
from semiseg.methods.contract import Config, Labelled, Logs, Method, Rates, Task, Unlabelled
from semiseg.models.build import build
from semiseg.models.network import SegmentationNetwork
from semiseg.models.recompute import recompute
from semiseg.models.synchronised import synchronise


def new_learner(config: RunConfig, options: Config, task: Task, device: torch.device) -> Method:
    """Return the run's method in training mode on ``device``, with weights from torch's default generator."""
    network = config.protocol.network

    def new_network() -> SegmentationNetwork:
        return build(network, len(config.dataset.classes))

    learner = contract.build(config.method, new_network, options, task)
    synchronise(learner, device)
    learner.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in learner.modules():
        if isinstance(module, SegmentationNetwork):
            if config.protocol.compile:
                module.backbone.compile()
                module.decoder.compile()
            if config.protocol.checkpoint_activations:
                recompute(module.backbone)
    return learner.train()


def new_optimiser(learner: Method, optimiser: Optimiser) -> Optimizer:
    """Return SGD or AdamW over the method's own parameter groups."""
    rates = Rates(
        backbone=optimiser.learning_rate * optimiser.backbone_factor,
        head=optimiser.learning_rate * optimiser.head_factor,
        layer_decay=optimiser.layer_decay,
    )
    groups: list[dict[str, Any]] = [
        {**group, "initial_lr": group["lr"]} for group in learner.parameter_groups(rates)
    ]
    decay = optimiser.weight_decay
    fused = next(learner.parameters()).is_cuda or None  # one kernel for many parameters; None: torch decides
    if optimiser.name == "sgd":
        return SGD(groups, momentum=optimiser.momentum, weight_decay=decay, fused=fused)
    return AdamW(groups, betas=(optimiser.momentum, 0.999), weight_decay=decay, fused=fused)


def poly(optimiser: Optimizer, protocol: Protocol, step: int) -> LambdaLR:
    """Return the schedule lr (1 - step / steps)^power of every group, at ``step`` steps taken."""
    steps, power = protocol.steps, protocol.optimiser.power
    return LambdaLR(optimiser, lambda taken: (1 - taken / steps) ** power, last_epoch=step - 1)


def seed_everything(seed: int, step: int) -> None:
    """Seed torch's generators, so that the random numbers of a step depend on (seed, step) alone."""
    state = np.random.SeedSequence((seed, step + 1)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def take_step(
    config: RunConfig,
    learner: Method,
    model: nn.Module,
    optimiser: Optimizer,
    labelled: Labelled,
    unlabelled: Unlabelled | None,
    step: int,
) -> Logs:
    """Train on one batch and return the logs: loss, the method's own logs, and the gradient's norm.

    ``model`` is ``learner`` or its DistributedDataParallel wrapper. A batch in several parts gives the mean
    of their gradients and logs. The norm covers all parameters, before clipping. Raises UserError if the
    GPU's memory is too small.
    """
    protocol = config.protocol
    logged: list[Logs] = []
    with enough_memory_for_a_step(config, unlabelled is not None):
        optimiser.zero_grad(set_to_none=True)
        for part in range(protocol.accumulate):
            last = part == protocol.accumulate - 1
            with (
                distributed.averaging(model, last),
                torch.autocast(
                    labelled.images.device.type, torch.bfloat16, enabled=protocol.precision == "bf16"
                ),
            ):
                loss, logs = model(*_part(labelled, unlabelled, part, protocol.accumulate), step)
            (loss / protocol.accumulate).backward()
            logged.append({"loss": loss.detach(), **logs})
        norm = gradient_norm(learner)
        if protocol.optimiser.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(learner.parameters(), protocol.optimiser.clip_norm, norm)
        optimiser.step()
        learner.after_step(step)
    return {**_means(logged), "gradient_norm": norm}


def gradient_norm(learner: nn.Module) -> Tensor:
    """Return the norm of the gradient of all parameters, a scalar."""
    return nn.utils.get_total_norm(
        [parameter.grad for parameter in learner.parameters() if parameter.grad is not None]
    )


def _means(logged: Sequence[Logs]) -> Logs:
    """Return the mean of each log over the parts of a batch."""
    if len(logged) == 1:
        return logged[0]
    return {name: torch.stack([logs[name] for logs in logged]).mean() for name in logged[0]}


def _part(
    labelled: Labelled, unlabelled: Unlabelled | None, part: int, parts: int
) -> tuple[Labelled, Unlabelled | None]:
    """Return one of ``parts`` equal blocks of neighbouring images of a batch."""
    if parts == 1:
        return labelled, unlabelled
    own = Labelled(*(tensor.chunk(parts)[part] for tensor in labelled))
    if unlabelled is None:
        return own, None
    return own, {name: tensor.chunk(parts)[part] for name, tensor in unlabelled.items()}


def enough_memory_for_a_step(config: RunConfig, unlabelled: bool) -> AbstractContextManager[None]:
    """Refuse a step that does not fit into the GPU's memory, naming the keys that make it smaller."""
    protocol = config.protocol
    batch = f"{protocol.labelled_batch} labelled"
    if unlabelled:
        batch += f" and {protocol.unlabelled_batch} unlabelled"
    return enough_memory(
        f"{config.run}: a step of {batch} crops of {protocol.geometry.crop} pixels in {protocol.precision}",
        f"in protocols: {config.protocol_name}, lower labelled_batch, unlabelled_batch or crop, raise "
        "accumulate, or set checkpoint_activations: true or precision: bf16",
    )
