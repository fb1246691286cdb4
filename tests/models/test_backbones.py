import pytest
import torch
import torchvision
from torch import nn

from semiseg.models.backbones.resnet import NAMES, ResNet


def torchvision_twin(backbone: ResNet) -> nn.Module:
    """Return torchvision's network with the backbone's weights and batch norm statistics that matter."""
    generator = torch.Generator().manual_seed(1)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    twin = getattr(torchvision.models, backbone.name)(weights=None).double()
    state = {name: value for name, value in twin.state_dict().items() if name.startswith("fc.")}
    twin.load_state_dict({**state, **backbone.state_dict()})  # strict: the names are torchvision's
    return twin.eval()


def stages(resnet: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    output = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    outputs = [output]
    for stage in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        outputs.append(output := stage(output))
    return outputs


@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize(("name", "size"), [("resnet18", (65, 97)), ("resnet50", (64, 46))])
def test_dense_output_read_at_the_stride_is_torchvisions(name, size, output_stride):
    torch.manual_seed(0)
    backbone = ResNet(name, output_stride).eval().double()
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = stages(torchvision_twin(backbone), images)
        low, high = backbone(images)
        found = stages(backbone, images)
    for stage in range(3):  # conv1, layer1 and layer2 are torchvision's own
        assert torch.equal(found[stage], expected[stage])
    assert torch.equal(low, expected[1])
    assert torch.equal(high, found[4])
    step = 32 // output_stride
    torch.testing.assert_close(high[..., ::step, ::step], expected[4], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output_stride", [16, 8])
def test_resolution_and_dilation(name, output_stride):
    with torch.device("meta"):
        backbone = ResNet(name, output_stride)
        low, high = backbone(torch.empty(2, 3, 128, 96))
    assert low.shape == (2, backbone.channels[0], 32, 24)
    assert high.shape == (2, backbone.channels[1], 128 // output_stride, 96 // output_stride)

    def last_dilation(stage: nn.Module) -> tuple[int, ...]:
        return [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)][
            -1
        ].dilation

    rates = [last_dilation(stage)[0] for stage in (backbone.layer2, backbone.layer3, backbone.layer4)]
    assert rates == ([1, 1, 2] if output_stride == 16 else [1, 2, 4])


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_torchvisions_without_its_classifier(name):
    with torch.device("meta"):
        twin = getattr(torchvision.models, name)(weights=None)
        backbone = ResNet(name, 16)
    names = {key: value.shape for key, value in twin.named_parameters() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in backbone.named_parameters()} == names


def test_an_unknown_stride_is_refused():
    with pytest.raises(ValueError, match="output_stride"):
        ResNet("resnet18", 32)
