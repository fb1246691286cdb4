"""MoCo v2: a view's query finds the key of the other view among those of a queue.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, with the head,
temperature and views of Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from semiseg.base import checks
from semiseg.base.pretraining import Pretraining
from semiseg.losses import info_nce_loss
from semiseg.models import teacher
from semiseg.models.network import Encoder
from semiseg.pretraining import contract
from semiseg.pretraining.common import (
    Branch,
    Queue,
    check_groups,
    coloured,
    head,
    restored,
    shuffled,
    split_norm,
    spread,
)
from semiseg.pretraining.contract import Build, Logs, Task, Views

REVISION = 1  # raise it when a change alters the pretrained weights


@dataclass(frozen=True)
class Config(contract.Config):
    """MoCo's hyper-parameters."""

    temperature: float = 0.2
    momentum: float = 0.999  # of the key encoder
    queue: int = 65536  # keys
    groups: int = 8  # of a batch that batch norm sees one by one; the release has one on each of 8 GPUs
    hidden: int = 2048  # channels of the head
    dim: int = 128  # of the compared features

    def __post_init__(self) -> None:
        checks.positive(self, "temperature")
        checks.within(self, 0, 1, "momentum")
        checks.at_least(self, 1, "queue", "groups")
        checks.within(self, 1, checks.MOST, "hidden", "dim")

    def check(self, recipe: Pretraining) -> None:
        check_groups(self.groups, recipe)

    def held(self, recipe: Pretraining) -> int:
        return recipe.batch + self.queue


class Method(contract.Method):
    """A query encoder, the key encoder that follows it, and the queue of keys.

    The key encoder sees the batch in another order, so that batch norm's groups do not tell the key away.
    """

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.config, encoder = config, build()
        projector = head(encoder.backbone.channels[-1], config.hidden, config.dim, norm=False)
        self.query = Branch(encoder, projector)
        split_norm(self.query, config.groups)
        self.key = teacher.frozen_copy(self.query)
        self.queue = Queue(config.queue, config.dim)

    def training_step(self, views: Views, step: int) -> tuple[Tensor, Logs]:
        """Contrast the queries with their keys and the queue, which then takes the keys."""
        first, second = coloured(views, self.config)
        queries = self.query(first).flatten(1)
        with torch.no_grad():
            images, order = shuffled(second)
            keys = restored(self.key(images).flatten(1), order)
        loss = info_nce_loss(queries, keys, self.queue.keys, temperature=self.config.temperature)
        self.queue.add(keys)
        return loss, {"spread": spread(queries)}

    def after_step(self, step: int) -> None:
        teacher.follow(self.key, self.query, self.config.momentum, buffers=False)

    def encoder(self) -> Encoder:
        return self.query.encoder
