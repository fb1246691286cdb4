"""DeepLabv3+ without dropout, as the code released with UniMatch and with CPS builds it."""

from semiseg.models.heads import deeplabv3plus
from semiseg.models.layers import Dropout
from semiseg.models.network import Backbone, SegmentationNetwork


def network(backbone: Backbone, channels: int, num_classes: int) -> SegmentationNetwork:
    """Return DeepLabv3+ with corners aligned and no dropout.

    Corners are aligned in the decoder and of the logits (UniMatch at 0324f3dd, model/semseg/deeplabv3plus.py
    38-68; TorchSemiSeg at 5e0c29c0, exp.voc/voc8.res50v3+.CPS/network.py 56, 177). Pseudo-labels of a network
    in training mode then differ from those of evaluation mode by batch norm alone. Not
    here: a stem of three convolutions (UniMatch, model/backbone/resnet.py 79-87; TorchSemiSeg), and of
    TorchSemiSeg blocks of layer4 dilated by 2, 4 and 8, leaky ReLU in the pyramid, and the image's mean added
    behind its projection (31-38, 77-129).
    """
    built = deeplabv3plus.network(backbone, channels, num_classes, align_corners=True)
    for module in built.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    return built
