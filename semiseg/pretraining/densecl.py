"""DenseCL: MoCo v2 for whole images and, beside it, for each cell of a grid of features.

Wang et al., "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", CVPR 2021.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize

from semiseg.base import checks
from semiseg.base.pretraining import Pretraining
from semiseg.data.views import cell_distances
from semiseg.losses import info_nce_loss
from semiseg.models import teacher
from semiseg.models.network import Encoder
from semiseg.pretraining import contract
from semiseg.pretraining.common import (
    Queue,
    check_grid,
    check_groups,
    coloured,
    head,
    restored,
    shuffled,
    split_norm,
    spread,
)
from semiseg.pretraining.contract import Build, Logs, Task, Views

REVISION = 2  # raise it when a change alters the pretrained weights


@dataclass(frozen=True)
class Config(contract.Config):
    """DenseCL's hyper-parameters."""

    dense_weight: float = 0.5  # λ: the whole images have 1 − λ
    match: str = "features"  # a cell's key: the most similar features, or "geometry", the nearest centre
    distance: float = 0.7  # geometry: centres at most so far apart, in diagonals of the larger cell
    grid: int = 7  # cells a side
    temperature: float = 0.2
    momentum: float = 0.999  # of the key encoder
    queue: int = 65536  # keys, and as many of pooled cells
    groups: int = 8  # of a batch that batch norm sees one by one; see MoCo
    hidden: int = 2048  # channels of both heads
    dim: int = 128  # of the compared features

    def __post_init__(self) -> None:
        checks.one_of(self, "match", "features", "geometry")
        checks.within(self, 0, 1, "dense_weight", "momentum")
        checks.positive(self, "temperature", "distance")
        checks.at_least(self, 1, "queue", "groups", "grid")
        checks.within(self, 1, checks.MOST, "hidden", "dim")

    def check(self, recipe: Pretraining) -> None:
        check_groups(self.groups, recipe)
        check_grid(self.grid, recipe)

    def held(self, recipe: Pretraining) -> int:
        return recipe.batch + self.queue


class Branches(nn.Module):
    """An encoder with a head on its pooled features and one on its cells."""

    def __init__(self, encoder: Encoder, config: Config) -> None:
        super().__init__()
        channels = encoder.backbone.channels[-1]
        self.encoder, self.grid = encoder, config.grid
        self.whole = head(channels, config.hidden, config.dim, norm=False)
        self.dense = head(channels, config.hidden, config.dim, norm=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features of images (B, dim), of cells (B, dim, P), and the backbone's of cells (B, D, P)."""
        features = self.encoder.encode(images)[-1]
        cells = adaptive_avg_pool2d(features, self.grid)
        whole = self.whole(adaptive_avg_pool2d(features, 1))
        return whole.flatten(1), self.dense(cells).flatten(2), cells.flatten(2)


class Method(contract.Method):
    """A query encoder, the key encoder that follows it, and two queues: of images and of their mean cells."""

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.config = config
        self.query = Branches(build(), config)
        split_norm(self.query, config.groups)
        self.key = teacher.frozen_copy(self.query)
        self.queue, self.dense_queue = Queue(config.queue, config.dim), Queue(config.queue, config.dim)

    def training_step(self, views: Views, step: int) -> tuple[Tensor, Logs]:
        """Contrast images and cells with their keys and the queues, which then take the keys."""
        config = self.config
        first, second = coloured(views, config)
        query, cells, features = self.query(first)
        with torch.no_grad():
            images, order = shuffled(second)
            key, key_cells, key_features = (restored(each, order) for each in self.key(images))
            if config.match == "features":
                nearest, counted = most_similar(features.detach(), key_features), None
            else:
                distance, nearest = cell_distances(views, config.grid).min(dim=2)
                counted = (distance < config.distance).flatten()
            matched = key_cells.gather(2, nearest[:, None].expand(-1, config.dim, -1))
        whole = info_nce_loss(query, key, self.queue.keys, temperature=config.temperature)
        dense = info_nce_loss(
            cells.mT.flatten(0, 1), matched.mT.flatten(0, 1), self.dense_queue.keys,
            temperature=config.temperature, counted=counted,
        )  # fmt: skip
        self.queue.add(key)
        self.dense_queue.add(key_cells.float().mean(dim=2))
        loss = (1 - config.dense_weight) * whole + config.dense_weight * dense
        return loss, {"whole": whole.detach(), "dense": dense.detach(), "spread": spread(query)}

    def after_step(self, step: int) -> None:
        teacher.follow(self.key, self.query, self.config.momentum, buffers=False)

    def encoder(self) -> Encoder:
        return self.query.encoder


def most_similar(features: Tensor, keys: Tensor) -> Tensor:
    """Return for each of P positions of features (B, D, P) that of the most similar keys: (B, P) int64."""
    with torch.autocast(features.device.type, enabled=False):  # bf16 would tie cosines near one
        return (normalize(features.float(), dim=1).mT @ normalize(keys.float(), dim=1)).argmax(dim=2)
