"""timm's models as backbones: with maps at stride 4 and at the output stride, or vision transformers."""

import difflib
from collections.abc import Mapping
from typing import Any

import timm
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn.functional import interpolate

from semiseg.base.errors import UserError
from semiseg.models.network import Backbone, Maps


class TimmBackbone(Backbone):
    """A model of timm under timm's own names, which normalises images as its configuration says.

    ``architecture`` is timm's name, with the tag of its weights or without; ``options`` are
    timm.create_model's. Raises UserError for a name that timm does not know.
    """

    def __init__(self, architecture: str, **options: Any) -> None:
        super().__init__()
        name = architecture.partition(".")[0]
        if not timm.is_model(name):
            close = ", ".join(difflib.get_close_matches(name, timm.list_models(), 3)) or "none"
            raise UserError(f"network: backbone: timm {timm.__version__} has no '{name}'; similar: {close}")
        try:
            self.model = timm.create_model(architecture, **options)
        except RuntimeError as error:  # timm's error for an unknown tag
            raise UserError(f"network: backbone: {architecture}: {error}") from None
        self.architecture, self.options = architecture, options
        self.mean, self.std = self.model.default_cfg["mean"], self.model.default_cfg["std"]

    def forward(self, images: Tensor) -> Maps:
        """Return the maps of normalised images (B, 3, H, W)."""
        maps = self.model.forward_intermediates(
            images, indices=self.indices, norm=self.norm, intermediates_only=True
        )
        return tuple(maps)

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let timm convert ``tensors``, and leave out what follows the last map.

        timm also reads its authors' own files, such as those of DINOv2. Raises RuntimeError for tensors that
        are not exactly the classifier's.
        """
        overlay = {"state_dict": dict(tensors)}
        classifier = timm.create_model(
            self.architecture, pretrained=True, pretrained_cfg_overlay=overlay, **self.options
        )
        own = self.model.state_dict()
        return {f"model.{name}": tensor for name, tensor in classifier.state_dict().items() if name in own}

    def parameters_by_layer(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the stem and of each block, as timm groups them."""
        own = dict(self.model.named_parameters())
        groups = group_parameters(self.model, self.model.group_matcher())
        return [[own[name] for name in names] for names in groups.values()]


class Pyramid(TimmBackbone):
    """A model whose maps are the first one at stride 4 and the last one at ``output_stride``, 16 or 8.

    Strides beyond it become dilation where timm can do that for the model. Otherwise the stages beyond it are
    left out. Raises UserError for a model without such maps, or for images of one size only.
    """

    def __init__(self, architecture: str, output_stride: int) -> None:
        try:
            super().__init__(architecture, output_stride=output_stride)
        except (TypeError, AssertionError):  # timm's error for a model that cannot be dilated
            super().__init__(architecture)
        strides = [stage["reduction"] for stage in self.model.feature_info]
        if 4 not in strides or output_stride not in strides or self.model.default_cfg["fixed_input_size"]:
            raise UserError(
                f"network: backbone: {architecture} has maps at strides {', '.join(map(str, strides))}; a "
                f"backbone needs them at 4 and {output_stride}, and must take images of any size"
            )
        self.output_stride = output_stride
        last = max(index for index, stride in enumerate(strides) if stride == output_stride)
        self.indices, self.norm = [strides.index(4), last], False
        self.channels = tuple(self.model.feature_info[index]["num_chs"] for index in self.indices)
        self.model.prune_intermediate_layers(self.indices, prune_norm=True, prune_head=True)


class VisionTransformer(TimmBackbone):
    """A vision transformer with four maps, its quarters' normalised outputs, at its patch's stride.

    Position embeddings are interpolated to the image (bicubic). Images whose sides are no multiples of the
    patch are first scaled to the nearest ones, as UniMatch V2 does for whole images. Raises UserError for a
    model that takes images of one size only.
    """

    def __init__(self, architecture: str, **options: Any) -> None:
        try:
            super().__init__(architecture, dynamic_img_size=True, **options)
        except TypeError:
            raise UserError(f"network: backbone: {architecture} takes images of one size only") from None
        blocks = len(self.model.blocks)
        self.indices, self.norm = [blocks * quarter // 4 - 1 for quarter in (1, 2, 3, 4)], True
        self.channels = (self.model.embed_dim,) * 4
        self.output_stride = self.model.patch_embed.patch_size[0]
        self.model.prune_intermediate_layers(self.indices, prune_norm=False, prune_head=True)

    def forward(self, images: Tensor) -> Maps:
        """Return the maps of normalised images (B, 3, H, W)."""
        patch = self.output_stride
        size = tuple(max(1, (length + patch // 2) // patch) * patch for length in images.shape[-2:])
        if size != images.shape[-2:]:
            images = interpolate(images, size, mode="bilinear", align_corners=True)
        return super().forward(images)
