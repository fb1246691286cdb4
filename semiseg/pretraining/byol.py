"""BYOL: a view's prediction meets the other view's projection by a moving average; there are no negatives.

Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from semiseg.base import checks
from semiseg.losses import negative_cosine_loss
from semiseg.methods.common import Colours
from semiseg.models import teacher
from semiseg.models.network import Encoder
from semiseg.pretraining import contract
from semiseg.pretraining.common import BLURRED, SOLARISED, Branch, coloured, head, spread
from semiseg.pretraining.contract import Build, Logs, Task, Views

REVISION = 1  # raise it when a change alters the pretrained weights


@dataclass(frozen=True)
class Config(contract.Config):
    """BYOL's hyper-parameters."""

    first: Colours = BLURRED
    second: Colours = SOLARISED
    momentum: float = 0.996  # of the target at the first step; one at the last
    hidden: int = 4096  # channels of both heads
    dim: int = 256  # of the compared features

    def __post_init__(self) -> None:
        checks.within(self, 0, 1, "momentum")
        checks.within(self, 1, checks.MOST, "hidden", "dim")


class Method(contract.Method):
    """The online encoder with its predictor, and the target that follows the encoder."""

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.config, self.total_steps, encoder = config, task.total_steps, build()
        self.online = Branch(encoder, head(encoder.backbone.channels[-1], config.hidden, config.dim))
        self.predictor = head(config.dim, config.hidden, config.dim)
        self.target = teacher.frozen_copy(self.online)

    def training_step(self, views: Views, step: int) -> tuple[Tensor, Logs]:
        """Return the squared distances of predictions and the other views' targets, both of norm one."""
        images = coloured(views, self.config)
        first, second = (self.predictor(self.online(view)).flatten(1) for view in images)
        with torch.no_grad():
            target_first, target_second = (self.target(view).flatten(1) for view in images)
        cosines = negative_cosine_loss(first, target_second) + negative_cosine_loss(second, target_first)
        return 4 + 2 * cosines, {"spread": spread(target_first)}

    def after_step(self, step: int) -> None:
        momentum = teacher.cosine_decay(step, self.total_steps, self.config.momentum)
        teacher.follow(self.target, self.online, momentum, buffers=False)

    def encoder(self) -> Encoder:
        return self.online.encoder
