import pytest
import torch
from torch import nn

from semiseg.base.errors import UserError
from semiseg.base.parameters import Network
from semiseg.models.build import build
from semiseg.models.network import SegmentationNetwork

TRUNK = {"resnet18": 11_176_512, "resnet50": 23_508_032, "resnet101": 42_500_160}
# Pyramid over 2,048 channels: 1x1 and image pooling, three 3x3, projection of 5 x 256; low level; decoder;
# classifier. Batch norm adds two a channel.
DEEPLABV3PLUS = (
    (2048 * 256 + 512) * 2
    + (2048 * 256 * 9 + 512) * 3
    + (5 * 256 * 256 + 512)
    + (256 * 48 + 96)
    + (304 * 256 * 9 + 512)
    + (256 * 256 * 9 + 512)
    + (256 * 21 + 21)
)
DEEPLABV2 = 4 * (2048 * 21 * 9 + 21)
PSPNET = 4 * (2048 * 512 + 1024) + (4096 * 512 * 9 + 1024) + (512 * 21 + 21)


def on_meta(*arguments, num_classes: int = 21) -> SegmentationNetwork:
    """Build a network without values: shapes and counts only."""
    with torch.device("meta"):
        return build(Network(*arguments), num_classes)


@pytest.mark.parametrize(
    ("network", "head"),
    [
        (("deeplabv3plus", "resnet50", "none", 16, 256), DEEPLABV3PLUS),
        (("deeplabv3plus", "resnet101", "none", 8, 256), DEEPLABV3PLUS),
        (("deeplabv3plus_cmb", "resnet50", "none", 16, 256), DEEPLABV3PLUS),
        (("deeplabv3plus_dcc", "resnet50", "none", 16, 256), DEEPLABV3PLUS),
        (("deeplabv3plus_plain", "resnet50", "none", 16, 256), DEEPLABV3PLUS),
        (("deeplabv2", "resnet101", "none", 8, 256), DEEPLABV2),
        (("pspnet", "resnet50", "none", 8, 512), PSPNET),
    ],
)
def test_parameter_counts(network, head):
    built = on_meta(*network)
    assert sum(each.numel() for each in built.backbone.parameters()) == TRUNK[network[1]]
    assert sum(each.numel() for each in built.parameters()) == TRUNK[network[1]] + head


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize(
    ("head", "backbone", "channels", "features"),
    [
        ("deeplabv3plus", "resnet18", 32, (32, 4)),
        ("deeplabv3plus", "resnet50", 256, (256, 4)),
        ("deeplabv2", "resnet18", 256, (512, None)),
        ("pspnet", "resnet18", 512, (512, None)),
    ],
)
def test_shapes(head, backbone, channels, features, output_stride):
    width, stride = features[0], features[1] or output_stride
    built = on_meta(head, backbone, "none", output_stride, channels)
    assert (built.feature_channels, built.feature_stride) == (width, stride)
    for down, across in ((64, 96), (65, 49)):
        images = torch.empty(2, 3, down, across, device="meta")
        assert built.features(images).shape == (2, width, -(-down // stride), -(-across // stride))
        assert built(images).shape == (2, 21, down, across)


@pytest.mark.parametrize(("output_stride", "rates"), [(16, [1, 6, 12, 18]), (8, [1, 12, 24, 36])])
def test_atrous_rates_follow_the_output_stride(output_stride, rates):
    pyramid = on_meta("deeplabv3plus", "resnet18", "none", output_stride, 8).decoder.pyramid
    assert [branch[0].dilation[0] for branch in pyramid.branches] == rates


# --- as released --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["deeplabv3plus_cmb", "deeplabv3plus_dcc", "deeplabv3plus_plain"])
def test_the_released_networks_have_the_weights_names_and_features_of_the_plain_one(head):
    plain, released = (on_meta(each, "resnet18", "none", 16, 8) for each in ("deeplabv3plus", head))
    assert {name: each.shape for name, each in released.state_dict().items()} == {
        name: each.shape for name, each in plain.state_dict().items()
    }


@pytest.mark.parametrize("head", ["deeplabv3plus_cmb", "deeplabv3plus_dcc", "deeplabv3plus_plain"])
def test_the_released_networks_align_corners(head):
    """With aligned corners a corner's logits are those of the corner's feature."""
    torch.manual_seed(0)
    released = build(Network(head, "resnet18", "none", 16, 8), 5).eval()
    images = torch.rand(1, 3, 64, 96)
    features = released.features(images)
    small, large = released.classify(features), released(images)
    assert torch.allclose(
        large[..., [0, 0, -1, -1], [0, -1, 0, -1]], small[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    )
    high, low = (torch.rand(1, channels, *size) for channels, size in ((512, (2, 3)), (64, (5, 7))))
    decoder, given = released.decoder, []
    decoder.refine.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    decoder((low, high))
    assert torch.allclose(given[0][:, :8, 0, 0], decoder.pyramid(high)[..., 0, 0])
    assert torch.allclose(given[0][:, :8, -1, -1], decoder.pyramid(high)[..., -1, -1])


def test_cmbs_released_network_begins_with_small_weights_but_for_the_backbone():
    torch.manual_seed(0)
    released, plain = (
        build(Network(head, "resnet18", "none", 16, 64), 5) for head in ("deeplabv3plus_cmb", "deeplabv3plus")
    )
    for part in ("decoder", "classifier"):
        weights = [m.weight for m in getattr(released, part).modules() if isinstance(m, nn.Conv2d)]
        drawn = torch.cat([weight.flatten() for weight in weights])
        assert drawn.std().item() == pytest.approx(0.01, rel=0.1)
    assert released.backbone.conv1.weight.std() > 0.015
    assert plain.decoder.refine[0][0].weight.std() > 0.03


@pytest.mark.parametrize(("output_stride", "last"), [(16, 2), (8, 4)])
def test_dccs_released_network_has_a_multi_grid_in_the_last_stage(output_stride, last):
    released, plain = (
        on_meta(head, "resnet50", "none", output_stride, 8) for head in ("deeplabv3plus_dcc", "deeplabv3plus")
    )
    assert [block.conv2.dilation[0] for block in released.backbone.layer4] == [last, 2 * last, 4 * last]
    assert [block.conv2.padding[0] for block in released.backbone.layer4] == [last, 2 * last, 4 * last]
    for ours, theirs in zip(released.backbone.layer3, plain.backbone.layer3, strict=True):
        assert ours.conv2.dilation == theirs.conv2.dilation
    images = torch.empty(2, 3, 65, 49, device="meta")
    assert released.backbone(images)[-1].shape == plain.backbone(images)[-1].shape


def test_dccs_released_network_drops_out_between_the_decoders_convolutions():
    torch.manual_seed(0)
    released = build(Network("deeplabv3plus_dcc", "resnet18", "none", 16, 64), 5)
    first, rows = released.decoder.refine[0], torch.ones(1, 64 + 48, 8, 8)
    assert not (first.eval()(rows) == 0).all()
    zeros = (first.train()(torch.randn(4, 64 + 48, 16, 16)) == 0).float().mean()
    assert 0.7 < zeros < 0.8  # half by ReLU, half of the rest by dropout


def test_the_plain_head_drops_nothing_out():
    torch.manual_seed(0)
    features = torch.rand(2, 16, 9, 9)
    for head, same in (("deeplabv3plus_plain", True), ("deeplabv3plus", False)):
        built = build(Network(head, "resnet18", "none", 16, 16), 5).train()
        assert torch.equal(built.classify(features), built.classify(features)) == same
        high = torch.rand(2, 512, 5, 5)
        assert torch.equal(built.decoder.pyramid(high), built.decoder.pyramid(high)) == same


def test_dccs_released_network_needs_a_resnet():
    with pytest.raises(UserError, match="deeplabv3plus_dcc"):
        on_meta("deeplabv3plus_dcc", "efficientnet_lite0", "none", 16, 8)


@pytest.fixture(scope="module", params=["deeplabv3plus", "deeplabv2", "pspnet"])
def small(request) -> SegmentationNetwork:
    torch.manual_seed(0)
    return build(Network(request.param, "resnet18", "none", 16, 16), 5)


def test_every_parameter_learns(small):
    small.train().zero_grad()
    small(torch.rand(2, 3, 64, 64)).square().mean().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_bf16_and_channels_last_stay_close_to_fp32(small):
    small.eval()
    images = torch.rand(2, 3, 47, 66, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = small(images)
        last = small.to(memory_format=torch.channels_last)
        found = last(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            rough = small(images)
    assert rough.dtype == torch.float32
    assert (rough - expected).abs().max() < 0.05 * expected.abs().max() + 0.05
    assert not torch.equal(rough, expected)


def test_images_are_normalised_inside(small):
    seen = []
    hook = small.backbone.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.no_grad():
        small.eval()((mean + 2 * std).expand(1, 3, 32, 32))
    hook.remove()
    torch.testing.assert_close(seen[0], torch.full((1, 3, 32, 32), 2.0), rtol=0, atol=1e-5)


def test_the_classifier_of_deeplabv2_is_the_sum_of_its_four_rates():
    torch.manual_seed(0)
    built = build(Network("deeplabv2", "resnet18", "none", 8, 16), 3)
    branches = built.classifier.branches
    assert [(branch.dilation, branch.padding) for branch in branches] == [
        ((rate, rate), (rate, rate)) for rate in (6, 12, 18, 24)
    ]
    features = torch.randn(1, 512, 9, 9)
    with torch.no_grad():
        expected = torch.stack([branch(features) for branch in branches]).sum(0)
        torch.testing.assert_close(built.classifier(features), expected)


def test_pyramid_pooling_sees_means_of_regions():
    torch.manual_seed(0)
    pooling = build(Network("pspnet", "resnet18", "none", 8, 16), 3).decoder
    assert [region[0].output_size for region in pooling.regions] == [1, 2, 3, 6]
    assert [region[1].out_channels for region in pooling.regions] == [128] * 4
    assert pooling.fuse[0].in_channels == 1024


def test_image_pooling_reaches_every_position():
    torch.manual_seed(0)
    pyramid = build(Network("deeplabv3plus", "resnet18", "none", 16, 8), 3).decoder.pyramid.eval()
    high = torch.randn(1, 512, 60, 60)
    moved = high.clone()
    moved[..., 0, 0] += 100  # further from the last corner than any atrous rate
    with torch.no_grad():
        difference = (pyramid(moved) - pyramid(high))[..., -1, -1]
    assert difference.abs().max() > 1e-3


def test_the_same_seed_gives_the_same_network():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build(Network("deeplabv3plus", "resnet18", "none", 16, 8), 3).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_batch_norm_and_dropout_of_deeplabv3plus():
    built = on_meta("deeplabv3plus", "resnet18", "none", 16, 8)
    rates = [module.p for module in built.modules() if isinstance(module, nn.Dropout)]
    assert rates == [0.5, 0.1]


def test_an_unknown_head_is_refused():
    with pytest.raises(UserError, match="there is no 'unet'"):
        build(Network("unet", "resnet18", "none", 16, 8), 3)
