"""torchvision's ResNets without their classifier, at output stride 16 or 8."""

from collections.abc import Mapping, Sequence

import torchvision
from torch import Tensor, nn

from semiseg.models.network import Backbone, Maps

NAMES = ("resnet18", "resnet50", "resnet101")


class ResNet(Backbone):
    """conv1 to layer4 under torchvision's own names, so that its state dicts load.

    ``name`` is one of NAMES; ``output_stride`` is 16 or 8: the strides beyond it become dilation (DeepLab).
    The maps are the outputs of layer1 and layer4. Raises ValueError for another stride.
    """

    def __init__(self, name: str, output_stride: int) -> None:
        super().__init__()
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride: {output_stride} is neither 8 nor 16")
        resnet = getattr(torchvision.models, name)(weights=None)
        self.name = name
        self.output_stride = output_stride
        self.channels = (resnet.layer2[0].conv1.in_channels, resnet.fc.in_features)
        self.conv1, self.bn1, self.relu, self.maxpool = resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            resnet.layer1,
            resnet.layer2,
            resnet.layer3,
            resnet.layer4,
        )
        if output_stride == 8:
            _dilate(self.layer3, 1)
        _dilate(self.layer4, 16 // output_stride)

    def forward(self, images: Tensor) -> Maps:
        """Return the maps of normalised images (B, 3, H, W)."""
        low = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images)))))
        return low, self.layer4(self.layer3(self.layer2(low)))

    def set_multi_grid(self, rates: Sequence[int]) -> None:
        """Multiply the dilation of the blocks of layer4 by ``rates`` (Chen et al., DeepLabv3, 2017).

        A ResNet-18 has two blocks there, and takes the first two rates.
        """
        for block, rate in zip(self.layer4, rates, strict=False):
            _set_dilation(block, rate * 32 // self.output_stride)

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave out the classifier fc."""
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("fc.")}

    def parameters_by_layer(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the first convolution with its batch norm, and of layer1 to layer4."""
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        return [
            [*self.conv1.parameters(), *self.bn1.parameters()],
            *(list(stage.parameters()) for stage in stages),
        ]


def _dilate(stage: nn.Module, dilation: int) -> None:
    """Replace the stride of ``stage``, which is reached at ``dilation``, by twice the dilation after it.

    The convolution that had the stride still sees the grid before it. So the dense output, read at every
    second position, is what the strided stage gives.
    """
    for convolution in stage.modules():
        if not isinstance(convolution, nn.Conv2d):
            continue
        strided = convolution.stride == (2, 2)
        convolution.stride = (1, 1)
        _set_dilation(convolution, dilation if strided else 2 * dilation)


def _set_dilation(module: nn.Module, dilation: int) -> None:
    """Dilate every 3x3 convolution of ``module`` and keep the size of its output."""
    for convolution in module.modules():
        if isinstance(convolution, nn.Conv2d) and convolution.kernel_size == (3, 3):
            convolution.dilation = convolution.padding = (dilation, dilation)
