"""DeepLabv3+ as the code released with CMB builds it (SemiSeg-Contrastive at dc53c6da)."""

from torch import nn

from semiseg.models.heads import deeplabv3plus
from semiseg.models.network import Backbone, SegmentationNetwork


def network(backbone: Backbone, channels: int, num_classes: int) -> SegmentationNetwork:
    """Return DeepLabv3+ with the release's corners aligned and initialisation.

    Corners are aligned in the decoder and of the logits (model/deeplabv3.py 46; trainSSL.py 471;
    evaluateSSL.py 99), and the convolutions of decoder and classifier begin with N(0, 0.01)
    (model/deeplabv3.py 259-262). Batch norm's scale and shift are trained here; the release fixes those of
    the backbone, not of pyramid and decoder (model/deeplabv3.py 155-167, 212-214, 274-275).
    """
    built = deeplabv3plus.network(backbone, channels, num_classes, align_corners=True)
    for module in (*built.decoder.modules(), *built.classifier.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
    return built
