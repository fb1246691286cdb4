"""What every segmentation network here is: backbone -> decoder -> classifier.

Methods reach the decoder's features, so the three are separate.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class SegmentationNetwork(nn.Module):
    """Backbone -> decoder -> classifier, on RGB images in [0, 1], which it normalises itself.

    ``decoder`` takes the backbone's output and returns features (B, feature_channels, h, w) at
    ``feature_stride`` pixels a position; ``classifier`` is a 1x1 convolution (or a module like it) to
    ``num_classes`` channels.
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

    def features(self, images: Tensor) -> Tensor:
        """Decoder features (B, feature_channels, h, w) of images (B, 3, H, W) float in [0, 1]."""
        features: Tensor = self.decoder(self.backbone((images - self.mean) / self.std))
        return features

    def upsampled(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Class logits (B, C, H, W) float32 of decoder features, bilinearly upsampled to ``size``, (H, W)."""
        return interpolate(self.classifier(features).float(), size, mode="bilinear", align_corners=False)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, C, H, W) float32 at the images' own size."""
        return self.upsampled(self.features(images), (images.shape[-2], images.shape[-1]))
