"""DeepLabv2 (Chen et al., TPAMI 2018) at one scale: four atrous classifiers summed, no decoder."""

from torch import Tensor, nn

from semiseg.models.network import Backbone, Maps, SegmentationNetwork

RATES = (6, 12, 18, 24)


def network(backbone: Backbone, channels: int, num_classes: int) -> SegmentationNetwork:
    """Return DeepLabv2; features are the backbone's last map, (B, channels, H/s, W/s).

    The paper has ResNet-101 and s = 8. ``channels`` is not used, because there is no decoder. The code
    released with CMB (SemiSeg-Contrastive) sums the first two rates only, because it returns within its loop
    (model/deeplabv2.py 90-94, model/deeplabv2_imagenet.py 86-90), and fixes batch norm's scale and shift
    (model/deeplabv2.py 39-51, 107-108, 166-167); here all four are summed, and scale and shift are trained.
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
    """The backbone's last map, in place of a decoder."""

    def forward(self, maps: Maps) -> Tensor:
        return maps[-1]


class AtrousClassifiers(nn.Module):
    """Sum of a 3x3 convolution for each rate: (B, num_classes, h, w) of (B, inputs, h, w)."""

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
