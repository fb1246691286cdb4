"""PixPro: a pixel, smoothed by pixels like it, meets the pixels of the other view that lie near it.

Xie et al., "Propagate Yourself: Exploring Pixel-Level Consistency for Unsupervised Visual Representation
Learning", CVPR 2021: the pixel-to-propagation consistency.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from semiseg.base import checks
from semiseg.base.pretraining import Pretraining
from semiseg.data.views import cell_distances
from semiseg.losses import pixel_consistency_loss
from semiseg.methods.common import Colours
from semiseg.models import teacher
from semiseg.models.network import Encoder
from semiseg.pretraining import contract
from semiseg.pretraining.common import (
    BLURRED,
    SOLARISED,
    Branch,
    check_grid,
    coloured,
    head,
    spread,
)
from semiseg.pretraining.contract import Build, Logs, Task, Views

REVISION = 2  # raise it when a change alters the pretrained weights


@dataclass(frozen=True)
class Config(contract.Config):
    """PixPro's hyper-parameters."""

    first: Colours = BLURRED
    second: Colours = SOLARISED
    momentum: float = 0.99  # of the target at the first step; one at the last
    distance: float = 0.7  # positive pairs are nearer than so many diagonals of the larger cell
    sharpness: float = 2.0  # γ, the power of the cosines that weight the propagation
    grid: int = 7  # cells a side
    hidden: int = 4096  # channels of the head
    dim: int = 256  # of the compared features

    def __post_init__(self) -> None:
        checks.within(self, 0, 1, "momentum")
        checks.positive(self, "distance")
        checks.at_least(self, 1, "grid", "sharpness")
        checks.within(self, 1, checks.MOST, "hidden", "dim")

    def check(self, recipe: Pretraining) -> None:
        check_grid(self.grid, recipe)


class Propagation(nn.Module):
    """y_i = Σ_j max(cos(x_i, x_j), 0)^γ g(x_j) over an image's pixels j, with a linear g (equations 3, 4)."""

    def __init__(self, dim: int, sharpness: float) -> None:
        super().__init__()
        self.transform = nn.Conv2d(dim, dim, 1)
        self.sharpness = sharpness

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, dim, h w) for features (B, dim, h, w)."""
        unit = normalize(features.flatten(2).float(), dim=1)
        with torch.autocast(features.device.type, enabled=False):
            weights = (unit.mT @ unit).clamp(min=0) ** self.sharpness
        values: Tensor = self.transform(features).flatten(2)
        return values @ weights.to(values.dtype)


class Method(contract.Method):
    """The online encoder with its propagation, and the target that follows the encoder."""

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.config, self.total_steps, encoder = config, task.total_steps, build()
        projector = head(encoder.backbone.channels[-1], config.hidden, config.dim)
        self.online = Branch(encoder, projector, config.grid)
        self.propagation = Propagation(config.dim, config.sharpness)
        self.target = teacher.frozen_copy(self.online)

    def training_step(self, views: Views, step: int) -> tuple[Tensor, Logs]:
        """Compare each view's propagated pixels with the other view's target pixels near them."""
        images = coloured(views, self.config)
        near = cell_distances(views, self.config.grid) < self.config.distance
        first, second = (self.propagation(self.online(view)) for view in images)
        with torch.no_grad():
            target_first, target_second = (self.target(view).flatten(2) for view in images)
        loss = pixel_consistency_loss(first, target_second, near)
        loss = loss + pixel_consistency_loss(second, target_first, near.mT)
        return 2 * loss, {"spread": spread(target_first.mT.flatten(0, 1)), "near": near.float().mean()}

    def after_step(self, step: int) -> None:
        momentum = teacher.cosine_decay(step, self.total_steps, self.config.momentum)
        teacher.follow(self.target, self.online, momentum, buffers=False)

    def encoder(self) -> Encoder:
        return self.online.encoder
