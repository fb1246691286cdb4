"""The network that params.yaml describes."""

import dataclasses
import importlib

import torch

from semiseg.base.backbone import ChosenBackbone
from semiseg.base.errors import UserError
from semiseg.base.parameters import Network
from semiseg.base.weights import TIMM
from semiseg.models import weights
from semiseg.models.backbones.efficientnet_lite0 import EfficientNetLite0
from semiseg.models.backbones.from_timm import Pyramid, VisionTransformer
from semiseg.models.backbones.resnet import ResNet
from semiseg.models.network import Backbone, Encoder, SegmentationNetwork


def build(network: Network, num_classes: int) -> SegmentationNetwork:
    """Return a network of ``num_classes`` on the CPU, in training mode, with the weights it asks for.

    A head is a file of semiseg/models/heads/ with a function
    ``network(backbone: Backbone, channels: int, num_classes: int) -> SegmentationNetwork``.
    What is initialised at random draws from torch's default generator. Raises UserError for an unknown head
    and for weights that cannot be obtained or do not fit.
    """
    name = f"semiseg.models.heads.{network.head}"
    try:
        head = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(f"network: head: there is no '{network.head}' in semiseg/models/heads/") from None
    built: SegmentationNetwork = head.network(new_backbone(network), network.decoder_channels, num_classes)
    weights.load(built, network)
    return built


def build_encoder(network: ChosenBackbone) -> Encoder:
    """Return the backbone of ``network`` alone, on the CPU, with the weights it asks for; see ``build``."""
    built = Encoder(new_backbone(network))
    weights.load(built, network)
    return built


def new_backbone(network: ChosenBackbone) -> Backbone:
    """Return the backbone with random weights. Raises UserError for one that timm cannot make."""
    if network.backbone == "efficientnet_lite0":
        return EfficientNetLite0(network.output_stride)
    if not network.backbone.startswith(TIMM):
        return ResNet(network.backbone, network.output_stride)
    architecture = network.backbone.removeprefix(TIMM)
    if network.patch is not None:
        return VisionTransformer(architecture)
    return Pyramid(architecture, network.output_stride)


def shapes(network: Network) -> SegmentationNetwork:
    """Return a network of two classes that has shapes but no numbers. Weights are not read.

    Raises UserError if the backbone, the head or the two together cannot be built.
    """
    with torch.device("meta"):
        built = build(dataclasses.replace(network, weights="none"), num_classes=2)
        if isinstance(built.backbone, Pyramid):
            _try(built.backbone, network.backbone)
    return built


def _try(backbone: Pyramid, name: str) -> None:
    """Raise UserError unless ``backbone`` tells its layers and has maps of the right sizes; timm has many."""
    height, width = 128, 192
    try:
        backbone.parameters_by_layer()
        maps = backbone.eval()(torch.empty(1, 3, height, width))
    except (AssertionError, AttributeError, RuntimeError) as error:
        said = f"{type(error).__name__} {error}".strip()
        raise UserError(f"network: backbone: {name} cannot be used ({said}); choose another") from None
    sizes = [tuple(each.shape[-2:]) for each in maps]
    expected = [(-(-height // stride), -(-width // stride)) for stride in (4, backbone.output_stride)]
    if sizes != expected:
        raise UserError(
            f"network: backbone: {name} gives maps of {sizes} for an image of {(height, width)}, where "
            f"{expected} are needed; choose another"
        )
