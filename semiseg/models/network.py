"""The form of every segmentation network: backbone -> decoder -> classifier."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Maps = tuple[Tensor, ...]
"""A backbone's feature maps (B, channels, h, w) for the decoder, from the first layers to the last."""


class Backbone(nn.Module):
    """Base of the backbones: turns normalised images (B, 3, H, W) into ``Maps`` and describes them.

    A convolutional backbone returns two maps: one at stride 4, and its last one at ``output_stride``, with
    sizes rounded up. A vision transformer returns four at the stride of its patch.
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN  # RGB in [0, 1], as the weights were trained
    std: tuple[float, float, float] = IMAGENET_STD
    channels: tuple[int, ...]  # channels of each map
    output_stride: int  # pixels a position of the last map

    def translate(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of this backbone, under its own names, in the state dict of a classifier."""
        raise NotImplementedError

    def parameters_by_layer(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each layer, from the first to the last, for layer-wise learning rates."""
        return [list(self.parameters())]


class Encoder(nn.Module):
    """A ``backbone`` that takes RGB images in [0, 1] and normalises them as its weights want them."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1), persistent=False)

    def encode(self, images: Tensor) -> Maps:
        """Return the backbone's maps of images (B, 3, H, W) float in [0, 1]."""
        maps: Maps = self.backbone((images - self.mean) / self.std)
        return maps


class SegmentationNetwork(Encoder):
    """A segmentation network in three parts that a method can call one by one.

    ``backbone`` maps normalised images to ``Maps``, ``decoder`` maps these to features (B, feature_channels,
    h, w) at ``feature_stride`` pixels a position, and ``classifier`` maps features to ``num_classes``
    channels. ``align_corners`` says how it interpolates.
    """

    def __init__(
        self,
        backbone: Backbone,
        decoder: nn.Module,
        classifier: nn.Module,
        *,
        num_classes: int,
        feature_channels: int,
        feature_stride: float,
        align_corners: bool = False,
    ) -> None:
        super().__init__(backbone)
        self.decoder = decoder
        self.classifier = classifier
        self.num_classes = num_classes
        self.feature_channels = feature_channels
        self.feature_stride = feature_stride
        self.align_corners = align_corners

    def decode(self, maps: Maps) -> Tensor:
        """Return features (B, feature_channels, h, w)."""
        features: Tensor = self.decoder(maps)
        return features

    def classify(self, features: Tensor) -> Tensor:
        """Return class logits (B, C, h, w) at the features' resolution."""
        logits: Tensor = self.classifier(features)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return the decoder's features (B, feature_channels, h, w) of images (B, 3, H, W)."""
        return self.decode(self.encode(images))

    def logits(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Return class logits (B, C, H, W) float32 of features, interpolated to ``size`` (H, W)."""
        return upsample(self.classify(features), size, self.align_corners)

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits (B, C, H, W) float32 at the images' own size."""
        return self.logits(self.features(images), size_of(images))


def upsample(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Interpolate logits (B, C, h, w) bilinearly to ``size`` (H, W), in float32."""
    return interpolate(logits.float(), size, mode="bilinear", align_corners=align_corners)


def size_of(images: Tensor) -> tuple[int, int]:
    """Return the height and width of images (..., H, W)."""
    return images.shape[-2], images.shape[-1]
