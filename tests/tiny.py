"""A segmentation network of two convolutions, for tests of what stands around a network."""

from torch import nn

from semiseg.models.network import SegmentationNetwork


def tiny_network(num_classes: int, feature_channels: int = 8, stride: int = 4) -> SegmentationNetwork:
    """Convolution - batch norm - ReLU at ``stride`` pixels a position, a convolution, a classifier."""
    backbone = nn.Sequential(
        nn.Conv2d(3, feature_channels, stride + 1, stride, stride // 2),
        nn.BatchNorm2d(feature_channels),
        nn.ReLU(),
    )
    return SegmentationNetwork(
        backbone=backbone,
        decoder=nn.Sequential(nn.Conv2d(feature_channels, feature_channels, 3, padding=1), nn.ReLU()),
        classifier=nn.Conv2d(feature_channels, num_classes, 1),
        num_classes=num_classes,
        feature_channels=feature_channels,
        feature_stride=stride,
    )
