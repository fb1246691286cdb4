"""DeepLabv2 (Chen et al., TPAMI 2018) at one scale: four atrous classifiers summed, no decoder."""

from torch import Tensor, nn

from semiseg.models.network import Backbone, Maps, SegmentationNetwork

RATES = (6, 12, 18, 24)


def network(backbone: Backbone, channels: int, num_classes: int) -> SegmentationNetwork:
    """Features are the backbone's last map, (B, channels, H/s, W/s); the paper has ResNet-101 and s = 8.

    There is no decoder whose width ``channels`` could set. The code released with CMB sums the first two
    rates only (SemiSeg-Contrastive model/deeplabv2.py, Classifier_Module.forward returns inside its loop) and
    keeps batch norm's affine parameters fixed; here all four are summed, and they are trained.
    """
    return SegmentationNetwork(
        backbone,
        LastMap(),
        AtrousClassifiers(backbone.channels[-1], num_classes),
        num_classes=num_classes,
        feature_channels=backbone.channels[-1],
        feature_stride=backbone.output_stride,
    )


class LastMap(nn.Module):
    def forward(self, maps: Maps) -> Tensor:
        return maps[-1]


class AtrousClassifiers(nn.Module):
    """(B, inputs, h, w) -> (B, num_classes, h, w), the sum of a 3x3 convolution for each rate."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        branches = [nn.Conv2d(inputs, num_classes, 3, padding=rate, dilation=rate) for rate in RATES]
        for branch in branches:
            nn.init.normal_(branch.weight, std=0.01)
        self.branches = nn.ModuleList(branches)

    def forward(self, features: Tensor) -> Tensor:
        first, *others = self.branches
        logits: Tensor = first(features)
        for branch in others:
            logits = logits + branch(features)
        return logits
