"""A method with one network and many small decoders beside it, for tests of the contract."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from semiseg.base.distributed import uniform
from semiseg.base.parameters import Geometry
from semiseg.data.geometry import random_scale_crop_flip
from semiseg.losses import cross_entropy
from semiseg.methods import contract
from semiseg.methods.contract import Build, Labelled, Logs, Rates, Task, Unlabelled, View
from semiseg.models.network import SegmentationNetwork, size_of, upsample

REVISION = 1


@dataclass(frozen=True)
class Config(contract.Config):
    decoders: int = 5


def views(config: Config, geometry: Geometry) -> View:
    return partial(_view, geometry=geometry)


def _view(image: Tensor, generator: torch.Generator, *, geometry: Geometry) -> dict[str, Tensor]:
    crop, _ = random_scale_crop_flip(image, None, geometry, generator)
    return {"image": crop}


class Method(contract.Method):
    """The decoders learn at twice the head's rate, in a group of their own."""

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.main = build()
        channels, classes = self.main.feature_channels, self.main.num_classes
        self.decoders = nn.ModuleList(nn.Conv2d(channels, classes, 1) for _ in range(config.decoders))

    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        assert unlabelled is not None
        images = unlabelled["image"]
        supervised = cross_entropy(self.main(labelled.images), labelled.masks)
        features = self.main.features(images)
        target = upsample(self.main.classify(features), size_of(images)).softmax(1).detach()
        apart = torch.zeros_like(supervised)
        for decoder in self.decoders:
            kept = uniform(*features.shape[:2], device=features.device) < 0.5
            dropped = 2 * features * kept[..., None, None]
            apart = apart + (upsample(decoder(dropped), size_of(images)).softmax(1) - target).square().mean()
        loss = supervised + apart / len(self.decoders)
        return loss, {"supervised": supervised.detach(), "consistency": apart.detach()}

    def networks(self) -> dict[str, SegmentationNetwork]:
        return {"main": self.main}

    def parameter_groups(self, rates: Rates) -> list[contract.ParameterGroup]:
        backbone = contract.trained(self.main.backbone)
        head = contract.trained(self.main.decoder) + contract.trained(self.main.classifier)
        return [
            {"params": backbone, "lr": rates.backbone},
            {"params": head, "lr": rates.head},
            {"params": contract.trained(self.decoders), "lr": 2 * rates.head},
        ]
