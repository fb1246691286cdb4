"""The fields by which a network and a pretraining describe their backbone."""

import re

from semiseg.base import checks, weights

BACKBONES = ("resnet18", "resnet50", "resnet101", "efficientnet_lite0")


class ChosenBackbone:
    """Fields of a dataclass that chooses a backbone; docs/networks.md says what can be named."""

    backbone: str  # one of BACKBONES, or "timm:" and timm's name of a model
    weights: str  # imagenet, coco, hub, none, the path of a file, or pretrained/<name>
    output_stride: int  # 8 or 16; of a vision transformer: its patch

    def check_backbone(self) -> None:
        """Raise ValueError for a backbone, weights or a stride that does not exist."""
        if not self.backbone.startswith(weights.TIMM):
            checks.one_of(self, "backbone", *BACKBONES)
        if not weights.known(self.weights, self.backbone):
            raise ValueError(f"weights: there are no {self.weights} weights of {self.backbone}")
        checks.one_of(self, "output_stride", *((8, 16) if self.patch is None else (self.patch,)))

    @property
    def patch(self) -> int | None:
        """Side in pixels of a vision transformer's patch, which timm has in its name; else None."""
        found = re.match(rf"{weights.TIMM}\w+_patch(\d\d)_", self.backbone)
        return int(found[1]) if found else None

    @property
    def package(self) -> str:
        """The package that the backbone's architecture comes from."""
        return "torchvision" if self.backbone.startswith("resnet") else "timm"
