"""A segmentation network of a few convolutions, for tests of the code around a network."""

from torch import Tensor, nn

from semiseg.models.network import Backbone, Maps, SegmentationNetwork


class TinyBackbone(Backbone):
    """Convolution, batch norm, ReLU at ``stride`` pixels a position; both maps are the same."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels = (channels, channels)
        self.output_stride = stride
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, stride + 1, stride, stride // 2), nn.BatchNorm2d(channels), nn.ReLU()
        )

    def forward(self, images: Tensor) -> Maps:
        features = self.layers(images)
        return features, features


class Decoder(nn.Module):
    """One convolution of the last map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())

    def forward(self, maps: Maps) -> Tensor:
        features: Tensor = self.layers(maps[-1])
        return features


def tiny_network(num_classes: int, feature_channels: int = 8, stride: int = 4) -> SegmentationNetwork:
    """Return a network with ``feature_channels`` channels in every map, ``stride`` pixels a position."""
    return SegmentationNetwork(
        TinyBackbone(feature_channels, stride),
        Decoder(feature_channels),
        nn.Conv2d(feature_channels, num_classes, 1),
        num_classes=num_classes,
        feature_channels=feature_channels,
        feature_stride=stride,
    )
