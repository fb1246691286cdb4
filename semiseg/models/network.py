"""The form of every segmentation network: backbone -> decoder -> classifier."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Maps(NamedTuple):
    """The backbone's feature maps that decoders use, for an output stride s."""

    low: Tensor  # (B, low_channels, H/4, W/4), sizes rounded up
    high: Tensor  # (B, high_channels, H/s, W/s), sizes rounded up


class SegmentationNetwork(nn.Module):
    """A segmentation network in three parts that a method can call one by one.

    ``backbone`` maps normalised images to ``Maps``, ``decoder`` maps these to features (B, feature_channels,
    h, w) at ``feature_stride`` pixels a position, and ``classifier`` maps features to ``num_classes``
    channels. Images are RGB in [0, 1]; the network normalises them itself.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        decoder: nn.Module,
        classifier: nn.Module,
        *,
        num_classes: int,
        feature_channels: int,
        feature_stride: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.classifier = classifier
        self.num_classes = num_classes
        self.feature_channels = feature_channels
        self.feature_stride = feature_stride
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def encode(self, images: Tensor) -> Maps:
        """Return the backbone's maps of images (B, 3, H, W) float in [0, 1]."""
        maps: Maps = self.backbone((images - self.mean) / self.std)
        return maps

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

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits (B, C, H, W) float32 at the images' own size."""
        return upsample(self.classify(self.features(images)), size_of(images))


def upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate logits (B, C, h, w) bilinearly to ``size`` (H, W), in float32."""
    return interpolate(logits.float(), size, mode="bilinear", align_corners=False)


def size_of(images: Tensor) -> tuple[int, int]:
    """Return the height and width of images (..., H, W)."""
    return images.shape[-2], images.shape[-1]
