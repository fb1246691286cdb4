"""The inputs of recordings/unimatch.json and recordings/cps.json: a network and drawn batches.

numpy's RandomState gives the same numbers in every version, so the recordings hold results alone.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from semiseg.base.labels import IGNORE
from semiseg.models.network import Backbone, Maps, SegmentationNetwork

CLASSES, BATCH, CROP, STEPS, RATE = 5, 4, 32, 8, 0.01


@dataclass(frozen=True)
class Step:
    """The batches and the draws of a step."""

    images: Tensor  # (B, 3, H, W) in [0, 1], labelled
    masks: Tensor  # (B, H, W) int64 with 255
    weak: Tensor  # (B, 3, H, W), unlabelled
    padding: Tensor  # (B, H, W) uint8, 255 where ``weak`` is padded
    strong: Tensor  # (2, B, 3, H, W), two views of ``weak``
    boxes: Tensor  # (2, B, H, W) bool, what CutMix pastes into each
    kept: tuple[Tensor, Tensor]  # (B, D) bool, the channels of each map that feature perturbation keeps


def steps() -> list[Step]:
    """Return the batches of all steps: images are blocks of noise, and labels follow their colours."""
    random = np.random.RandomState(7)
    return [_step(random) for _ in range(STEPS)]


def _step(random: np.random.RandomState) -> Step:
    def blocks(*shape: int) -> Tensor:
        values = torch.from_numpy(random.random_sample((*shape, CROP // 4, CROP // 4)).astype(np.float32))
        return values.repeat_interleave(4, -1).repeat_interleave(4, -2)

    images, weak = blocks(BATCH, 3), blocks(BATCH, 3)
    masks = (images.mean(dim=1) * CLASSES).long().clamp(max=CLASSES - 1)
    masks[blocks(BATCH) < 0.1] = IGNORE
    padding = torch.zeros(BATCH, CROP, CROP, dtype=torch.uint8)
    padding[1, 24:], padding[2, :, 28:] = IGNORE, IGNORE
    weak = weak.masked_fill((padding == IGNORE)[:, None], 0)
    strong = (weak + 0.2 * (blocks(2, BATCH, 3) - 0.5)).clamp(0, 1)
    boxes = torch.zeros(2, BATCH, CROP, CROP, dtype=torch.bool)
    for view in range(2):
        for i in range(BATCH):
            top, left, height, width = random.randint(0, CROP // 2, 4).tolist()
            boxes[view, i, top : top + height, left : left + width] = random.random_sample() < 0.8
    kept = tuple(torch.from_numpy(random.random_sample((BATCH, size)) < 0.5) for size in (8, 16))
    return Step(images, masks, weak, padding, strong, boxes, (kept[0], kept[1]))


class SmallBackbone(Backbone):
    """Three convolutions with batch norm: maps of 8 channels at stride 4, and of 16 at stride 8."""

    channels = (8, 16)
    output_stride = 8

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        )  # fmt: skip
        self.high = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())

    def forward(self, images: Tensor) -> Maps:
        low = self.low(images)
        return low, self.high(low)


class SmallDecoder(nn.Module):
    """The high map, reduced and brought to the low one's size, beside it; no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.fuse = nn.Conv2d(16, 8, 1), nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, maps: Maps) -> Tensor:
        low, high = maps
        high = nn.functional.interpolate(self.reduce(high), low.shape[-2:], mode="bilinear")
        return torch.relu(self.fuse(torch.cat((low, high), dim=1)))


def network(seed: int) -> SegmentationNetwork:
    """Return the network whose weights RandomState draws from ``seed``, sure enough of some pixels."""
    built = SegmentationNetwork(
        SmallBackbone(),
        SmallDecoder(),
        nn.Conv2d(12, CLASSES, 1),
        num_classes=CLASSES,
        feature_channels=12,
        feature_stride=4,
    )
    random = np.random.RandomState(seed)
    with torch.no_grad():
        for each in built.modules():
            if isinstance(each, nn.Conv2d):
                drawn = random.standard_normal(each.weight.shape) * np.sqrt(2 / each.weight[0].numel())
                each.weight.copy_(torch.from_numpy(drawn.astype(np.float32)))
                each.bias.zero_()
        built.classifier.weight.mul_(2)
    return built.train()


def norms(module: nn.Module) -> dict[str, float]:
    """Return the norm of every parameter and floating-point buffer by name."""
    state = module.state_dict()
    return {name: float(each.double().norm()) for name, each in state.items() if each.is_floating_point()}
