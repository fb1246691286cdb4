"""DeepLabv3+ as the code released with DCC builds it (Context-Aware-Consistency at a7cd9b4a)."""

from torch import nn

from semiseg.base.errors import UserError
from semiseg.models.backbones.resnet import ResNet
from semiseg.models.heads import deeplabv3plus
from semiseg.models.network import Backbone, SegmentationNetwork

MULTI_GRID = (1, 2, 4)


def network(backbone: Backbone, channels: int, num_classes: int) -> SegmentationNetwork:
    """Return DeepLabv3+ with the release's corners aligned, dropout, multi-grid and initialisation.

    Dropout of 0.5 stands between the decoder's convolutions, corners are aligned (models/modeling/decoder.py
    25, 39; models/model.py 79, 97), the last stage has a multi-grid of 1, 2 and 4
    (models/modeling/backbone/resnet.py 55, 109-114), and the classifier begins with He's initialisation
    (models/model.py 41-43). Raises UserError for a backbone that is no ResNet.
    """
    if not isinstance(backbone, ResNet):
        raise UserError(
            "network: head: deeplabv3plus_dcc dilates the blocks of a ResNet; choose one as backbone"
        )
    backbone.set_multi_grid(MULTI_GRID)
    built = deeplabv3plus.network(backbone, channels, num_classes, decoder_dropout=0.5, align_corners=True)
    for module in built.classifier.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return built
