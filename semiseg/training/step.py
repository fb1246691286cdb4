"""What takes a step: the method around its network, the optimiser and its schedule, and the step itself."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from semiseg.base.parameters import Optimiser, RunConfig
from semiseg.methods import contract
from semiseg.methods.contract import Labelled, Logs, Method, Task, Unlabelled
from semiseg.models.build import build
from semiseg.models.network import SegmentationNetwork
from semiseg.models.synchronised import synchronise
from semiseg.training.checkpoint import Networks
from semiseg.training.device import enough_memory
from semiseg.training.history import GRADIENT_NORM


def new_learner(config: RunConfig, options: Any, task: Task, device: torch.device) -> Method:
    """The run's method around its network, in training mode on ``device``, from torch's default generator.

    ``options``: the method's Config. Raises what ``build`` does.
    """
    student = build(config.protocol.network, len(config.dataset.classes))
    learner = contract.build(config.method, student, options, task)
    synchronise(learner, device)
    learner.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.protocol.compile:
        for network in networks(learner).values():
            network.backbone.compile()
            network.decoder.compile()
    learner.train()
    return learner


def sgd(learner: Method, optimiser: Optimiser) -> torch.optim.SGD:
    """SGD over two groups: the student's backbone, and every other parameter that requires a gradient."""
    backbone = [each for each in learner.student.backbone.parameters() if each.requires_grad]
    known = {id(each) for each in backbone}
    rest = [each for each in learner.parameters() if each.requires_grad and id(each) not in known]
    return torch.optim.SGD(
        [{"params": backbone}, {"params": rest}],
        lr=optimiser.learning_rate,
        momentum=optimiser.momentum,
        weight_decay=optimiser.weight_decay,
    )


def set_learning_rate(optimiser: torch.optim.SGD, config: Optimiser, progress: float) -> float:
    """The poly schedule, lr (1 - progress)^power, ``progress`` in [0, 1); returns the head's rate."""
    rate = config.learning_rate * (1 - progress) ** config.power
    backbone, rest = optimiser.param_groups
    backbone["lr"], rest["lr"] = rate * config.backbone_factor, rate
    return rate


def seed_everything(seed: int, step: int) -> None:
    """Seed torch's generators for one step, so that a step's randomness depends on (seed, step) alone."""
    state = np.random.SeedSequence((seed, step + 1)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``; of images (B, 3, H, W) uint8, float32 in [0, 1]."""
    tensor = tensor.to(device, non_blocking=True)
    if tensor.dtype == torch.uint8 and tensor.ndim == 4:
        tensor = tensor.float().div_(255).contiguous(memory_format=torch.channels_last)
    return tensor


def learn(
    config: RunConfig,
    learner: Method,
    model: nn.Module,
    optimiser: torch.optim.SGD,
    labelled: Labelled,
    unlabelled: Unlabelled | None,
    step: int,
) -> Logs:
    """Train ``learner`` on the batch of one step; ``model`` is it, or around it what averages its gradients.

    Returns what to log: the loss, the method's own logs, and the gradient's norm. Raises UserError for too
    small a GPU.
    """
    protocol = config.protocol
    with enough_memory_for_a_step(config, unlabelled is not None):
        with torch.autocast(
            labelled.images.device.type, torch.bfloat16, enabled=protocol.precision == "bf16"
        ):
            loss, logs = model(labelled, unlabelled, step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(learner.parameters(), protocol.optimiser.clip_norm or math.inf)
        optimiser.step()
        learner.after_step(step)
    return {"loss": loss.detach(), **logs, GRADIENT_NORM: norm}


def enough_memory_for_a_step(config: RunConfig, unlabelled: bool) -> AbstractContextManager[None]:
    """Refuse a step that the GPU cannot hold, naming what makes it smaller."""
    protocol = config.protocol
    batch = f"{protocol.labelled_batch} labelled"
    if unlabelled:
        batch += f" and {protocol.unlabelled_batch} unlabelled"
    what = f"{config.run}: a step of {batch} crops of {protocol.geometry.crop} pixels"
    return enough_memory(
        f"{what} in {protocol.precision}",
        f"in protocols: {config.split.protocol}, lower labelled_batch, unlabelled_batch or crop, "
        "or set precision: bf16",
    )


def networks(learner: Method) -> dict[str, SegmentationNetwork]:
    """What is scored: the student and, where there is one, the teacher."""
    if learner.teacher is None:
        return {"student": learner.student}
    return {"student": learner.student, "teacher": learner.teacher}


def headline(learner: Method) -> str:
    """The name of the method's predictor among its networks."""
    predictor = learner.predictor()
    return next(name for name, network in networks(learner).items() if network is predictor)


def state_dicts(scored: Mapping[str, SegmentationNetwork]) -> Networks:
    """Copies on the CPU."""
    return {
        name: {key: value.detach().cpu().clone() for key, value in network.state_dict().items()}
        for name, network in scored.items()
    }
