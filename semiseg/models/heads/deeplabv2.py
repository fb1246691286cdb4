"""DeepLabv2 (Chen et al., TPAMI 2018) at one scale: four atrous classifiers summed, no decoder."""

from torch import Tensor, nn

from semiseg.models.backbones.resnet import ResNet
from semiseg.models.network import Maps, SegmentationNetwork

RATES = (6, 12, 18, 24)


def network(backbone: ResNet, channels: int, num_classes: int) -> SegmentationNetwork:
    """Features are layer4's output, (B, high_channels, H/s, W/s); the paper has ResNet-101 and s = 8.

    There is no decoder whose width ``channels`` could set. The code released with CMB sums the first two
    rates only (SemiSeg-Contrastive model/deeplabv2.py, Classifier_Module.forward returns inside its loop) and
    keeps batch norm's affine parameters fixed; here all four are summed, and they are trained.
    """
    return SegmentationNetwork(
        backbone,
        LayerFour(),
        AtrousClassifiers(backbone.high_channels, num_classes),
        num_classes=num_classes,
        feature_channels=backbone.high_channels,
        feature_stride=backbone.output_stride,
    )


class LayerFour(nn.Module):
    def forward(self, maps: Maps) -> Tensor:
        return maps.high


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
