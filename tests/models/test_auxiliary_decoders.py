import pytest
import torch
from torch.nn.functional import conv2d, pixel_shuffle, relu

from semiseg.models.auxiliary_decoders import AuxiliaryDecoders, GroupedConvolution

COUNT, CHANNELS, CLASSES, SIZE = 3, 8, 5, (4, 6)


def features(count: int = COUNT) -> torch.Tensor:
    return torch.randn(2, count, CHANNELS, *SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("doublings", [0, 1, 3])
def test_each_decoder_is_a_small_network_of_its_own(doublings: int) -> None:
    torch.manual_seed(1)
    decoders = AuxiliaryDecoders(COUNT, CHANNELS, CLASSES, doublings)
    for parameter in decoders.parameters():
        torch.nn.init.normal_(parameter)
    found = decoders(features())
    assert found.shape == (2, COUNT, CLASSES, *(side * 2**doublings for side in SIZE))
    for k in range(COUNT):
        first = decoders.classifier
        bias = None if first.bias is None else first.bias[k].flatten()
        expected = conv2d(features()[:, k], first.weight[k, :, :, None, None], bias)
        for stage in decoders.upsampling:
            wide = conv2d(expected, stage.weight[k, :, :, None, None], stage.bias[k].flatten())
            expected = pixel_shuffle(relu(wide), 2)
        assert torch.allclose(found[:, k], expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("doublings", [0, 2])
def test_some_of_the_decoders_can_be_asked_alone(doublings: int) -> None:
    decoders = AuxiliaryDecoders(COUNT, CHANNELS, CLASSES, doublings)
    both = decoders(features())[:, 1:]
    assert torch.allclose(decoders(features()[:, 1:], slice(1, None)), both, atol=1e-5)


def test_it_is_torchs_grouped_convolution() -> None:
    torch.manual_seed(0)
    layer = GroupedConvolution(COUNT, CHANNELS, CLASSES)
    torch.nn.init.normal_(layer.bias)
    weight = layer.weight.reshape(COUNT * CLASSES, CHANNELS, 1, 1)
    expected = conv2d(features().flatten(1, 2), weight, layer.bias.flatten(), groups=COUNT)
    assert torch.allclose(layer(features()).flatten(1, 2), expected, atol=1e-5)


def test_decoders_start_apart_and_sub_pixels_together() -> None:
    torch.manual_seed(0)
    decoders = AuxiliaryDecoders(COUNT, CHANNELS, CLASSES, 1)
    weight = decoders.upsampling[0].weight
    assert not torch.equal(weight[0], weight[1])
    assert torch.equal(weight[:, ::4], weight[:, 3::4])
    pixels = decoders(features())
    assert torch.equal(pixels[..., ::2, ::2], pixels[..., 1::2, 1::2])


def test_the_initial_weights_have_hes_variance() -> None:
    torch.manual_seed(0)
    weight = GroupedConvolution(50, 64, 20).weight
    assert weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.02)
