"""PSPNet (Zhao et al., CVPR 2017) without its auxiliary loss: pyramid pooling of the last map."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from semiseg.models.layers import convolution
from semiseg.models.network import Backbone, Maps, SegmentationNetwork

BINS = (1, 2, 3, 6)


def network(backbone: Backbone, channels: int, num_classes: int) -> SegmentationNetwork:
    """Return PSPNet; features are (B, channels, H/s, W/s).

    The paper has ResNet-50, s = 8 and a width of 512. The head is that of the code released with DCC
    (Context-Aware-Consistency models/encoder.py 12-38); the backbone begins with torchvision's 7x7
    convolution, not with three of 3x3.
    """
    return SegmentationNetwork(
        backbone,
        PyramidPooling(backbone.channels[-1], channels),
        nn.Conv2d(channels, num_classes, 1),
        num_classes=num_classes,
        feature_channels=channels,
        feature_stride=backbone.output_stride,
    )


class PyramidPooling(nn.Module):
    """Join the last map with its means over 1x1, 2x2, 3x3 and 6x6 regions by a 3x3 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        width = inputs // len(BINS)
        self.regions = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(bins), *convolution(inputs, width)) for bins in BINS
        )
        self.fuse = convolution(inputs + len(BINS) * width, outputs, 3)

    def forward(self, maps: Maps) -> Tensor:
        high = maps[-1]
        size = high.shape[-2:]
        parts = [high]
        for region in self.regions:
            parts.append(interpolate(region(high), size, mode="bilinear", align_corners=False))
        features: Tensor = self.fuse(torch.cat(parts, dim=1))
        return features
