"""A method with two networks that label images for each other, for tests of the contract."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from semiseg.base.parameters import Geometry
from semiseg.data.geometry import random_scale_crop_flip
from semiseg.losses import cross_entropy
from semiseg.methods import contract
from semiseg.methods.contract import IGNORE, Build, Labelled, Logs, Task, Unlabelled, View
from semiseg.models.network import SegmentationNetwork

REVISION = 1


@dataclass(frozen=True)
class Config(contract.Config):
    weight: float = 0.5


def views(config: Config, geometry: Geometry) -> View:
    return partial(_view, geometry=geometry)


def _view(image: Tensor, generator: torch.Generator, *, geometry: Geometry) -> dict[str, Tensor]:
    crop, mask = random_scale_crop_flip(image, None, geometry, generator)
    return {"image": crop, "mask": mask}


class Method(contract.Method):
    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.weight = config.weight
        self.left, self.right = build(), build()

    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        assert unlabelled is not None
        supervised = sum(
            (cross_entropy(each(labelled.images), labelled.masks) for each in (self.left, self.right)),
            torch.zeros(()),
        )
        left, right = (each(unlabelled["image"]) for each in (self.left, self.right))
        outside = unlabelled["mask"] == IGNORE
        crossed = cross_entropy(left, right.argmax(1).masked_fill(outside, IGNORE))
        crossed = crossed + cross_entropy(right, left.argmax(1).masked_fill(outside, IGNORE))
        loss = supervised + self.weight * crossed
        return loss, {"supervised": supervised.detach(), "crossed": crossed.detach()}

    def networks(self) -> dict[str, SegmentationNetwork]:
        return {"left": self.left, "right": self.right}
