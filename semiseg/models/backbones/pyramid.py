"""timm's backbones with maps at stride 4 and at the output stride, without their classifier."""

from collections.abc import Mapping

import timm
from timm.models import group_parameters
from torch import Tensor, nn

from semiseg.models.network import Backbone, Maps


class Pyramid(Backbone):
    """One of timm's backbones under timm's own names; images are normalised as its configuration says.

    ``architecture`` is timm's name; the strides beyond ``output_stride``, 16 or 8, become dilation. The maps
    are the first one at stride 4 and the last one, before any final convolution of the classifier.
    """

    def __init__(self, architecture: str, output_stride: int) -> None:
        super().__init__()
        self.model = timm.create_model(architecture, output_stride=output_stride)
        configuration = self.model.default_cfg
        self.mean, self.std = configuration["mean"], configuration["std"]
        self.output_stride = output_stride
        strides = [stage["reduction"] for stage in self.model.feature_info]
        self.indices = [strides.index(4), len(strides) - 1]
        self.channels = tuple(self.model.feature_info[index]["num_chs"] for index in self.indices)
        self.model.prune_intermediate_layers(self.indices, prune_norm=True)

    def forward(self, images: Tensor) -> Maps:
        """Return the maps of normalised images (B, 3, H, W)."""
        return tuple(self.model.forward_intermediates(images, indices=self.indices, intermediates_only=True))

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Leave out what follows the last map."""
        own = self.state_dict()
        return {f"model.{name}": tensor for name, tensor in tensors.items() if f"model.{name}" in own}

    def parameters_by_layer(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the stem and of each block, as timm groups them."""
        own = dict(self.model.named_parameters())
        groups = group_parameters(self.model, self.model.group_matcher(), reverse=False)
        return [[own[name] for name in names] for names in groups.values()]
