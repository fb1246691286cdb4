"""DeepLabv3+ (Chen et al., ECCV 2018): atrous pyramid with image pooling, and a decoder at stride 4."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from semiseg.base.errors import UserError
from semiseg.models.layers import Dropout, convolution
from semiseg.models.network import Backbone, Maps, SegmentationNetwork

LOW_LEVEL_CHANNELS = 48
RATES = {16: (6, 12, 18), 8: (12, 24, 36)}  # output stride -> atrous rates


def network(
    backbone: Backbone,
    channels: int,
    num_classes: int,
    *,
    decoder_dropout: float = 0.0,
    align_corners: bool = False,
) -> SegmentationNetwork:
    """Return DeepLabv3+; features are (B, channels, H/4, W/4), sizes rounded up, and 256 wide in the paper.

    The paper does not mention dropout. It follows the code released with CMB and with DCC: 0.5 behind the
    pyramid, 0.1 before the classifier (SemiSeg-Contrastive model/deeplabv3.py 35, 106;
    Context-Aware-Consistency models/modeling/aspp.py 62, models/model.py 40). Only DCC's has
    ``decoder_dropout``, between the decoder's convolutions.

    Raises UserError for a vision transformer, which has no map at stride 4.
    """
    if backbone.output_stride not in RATES or len(backbone.channels) != 2:
        raise UserError("network: head: deeplabv3plus needs maps at two strides; take dpt for a transformer")
    return SegmentationNetwork(
        backbone,
        Decoder(backbone, channels, decoder_dropout, align_corners),
        nn.Sequential(Dropout(0.1), nn.Conv2d(channels, num_classes, 1)),
        num_classes=num_classes,
        feature_channels=channels,
        feature_stride=4,
        align_corners=align_corners,
    )


class Decoder(nn.Module):
    """Joins the pyramid's output with the map at stride 4: (B, channels, H/4, W/4)."""

    def __init__(
        self, backbone: Backbone, channels: int, dropout: float = 0.0, align_corners: bool = False
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.pyramid = AtrousPyramid(backbone.channels[-1], channels, RATES[backbone.output_stride])
        self.low_level = convolution(backbone.channels[0], LOW_LEVEL_CHANNELS)
        first = convolution(channels + LOW_LEVEL_CHANNELS, channels, 3)
        if dropout:
            first.append(Dropout(dropout))
        self.refine = nn.Sequential(first, convolution(channels, channels, 3))

    def forward(self, maps: Maps) -> Tensor:
        low = self.low_level(maps[0])
        high = interpolate(
            self.pyramid(maps[-1]), low.shape[-2:], mode="bilinear", align_corners=self.align_corners
        )
        features: Tensor = self.refine(torch.cat([high, low], dim=1))
        return features


class AtrousPyramid(nn.Module):
    """Parallel 1x1, three atrous 3x3 and the image's mean, projected to (B, outputs, h, w)."""

    def __init__(self, inputs: int, outputs: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [convolution(inputs, outputs), *(convolution(inputs, outputs, 3, rate) for rate in rates)]
        )
        self.image_pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), *convolution(inputs, outputs))
        self.project = nn.Sequential(*convolution((len(rates) + 2) * outputs, outputs), Dropout(0.5))

    def forward(self, high: Tensor) -> Tensor:
        parts = [branch(high) for branch in self.branches]
        parts.append(self.image_pooling(high).expand(-1, -1, *high.shape[-2:]))
        projected: Tensor = self.project(torch.cat(parts, dim=1))
        return projected
