"""timm's models as backbones: small models of timm, and small configurations of the published classes."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.nn.functional import interpolate

from semiseg.base.errors import UserError
from semiseg.base.parameters import Network
from semiseg.models import build as building
from semiseg.models.backbones.from_timm import Pyramid, TimmBackbone, VisionTransformer
from semiseg.models.build import build
from semiseg.models.heads import dpt
from semiseg.models.network import SegmentationNetwork

SMALL = {"depth": 8, "embed_dim": 48, "num_heads": 3}  # options of a vision transformer
DINOV2, DINOV3 = "vit_small_patch14_dinov2.lvd142m", "vit_small_patch16_dinov3.lvd1689m"
TRANSFORMERS = [(DINOV2, {**SMALL, "img_size": 70}, 14), (DINOV3, SMALL, 16)]


def transformer(name: str, options: dict[str, Any]) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(name, **options)


def segmenter(backbone: TimmBackbone) -> SegmentationNetwork:
    torch.manual_seed(0)
    return dpt.network(backbone, 16, 3)


# --- maps at strides 4 and 16 -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "output_stride", "channels"),
    [
        ("test_convnext", 16, (24, 64)),
        ("test_efficientnet", 16, (24, 64)),
        ("test_resnet", 8, (32, 96)),
        ("test_mambaout", 16, (16, 48)),  # cannot be dilated: its stage at stride 32 is left out
    ],
)
def test_maps_have_the_strides_and_channels_that_are_said(name, output_stride, channels):
    backbone = Pyramid(name, output_stride)
    assert backbone.channels == channels
    for rows, columns in ((64, 96), (66, 49)):
        low, high = backbone(torch.rand(2, 3, rows, columns))
        if (rows, columns) == (64, 96):
            assert low.shape == (2, channels[0], rows // 4, columns // 4)
            assert high.shape == (2, channels[1], rows // output_stride, columns // output_stride)
        assert torch.isfinite(high).all()


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet"])
def test_maps_are_those_of_timms_own_feature_extractor(name):
    torch.manual_seed(0)
    donor = timm.create_model(name).state_dict()
    overlay = {"state_dict": dict(donor)}
    theirs = timm.create_model(
        name, features_only=True, output_stride=16, pretrained=True, pretrained_cfg_overlay=overlay
    ).eval()
    backbone = Pyramid(name, 16).eval()
    backbone.load_state_dict(backbone.translate(donor))
    images = torch.rand(1, 3, 64, 48)
    with torch.no_grad():
        maps = theirs(images)
        low, high = backbone(images)
    assert torch.equal(low, maps[theirs.feature_info.reduction().index(4)])
    assert torch.equal(high, maps[-1])


def test_normalisation_is_the_configurations():
    for name in ("test_convnext", "vit_tiny_patch16_224.augreg_in21k"):
        head = "dpt" if name.startswith("vit") else "deeplabv3plus"
        network = build(Network(head, f"timm:{name}", "none", 16, 8), 3)
        configuration = timm.get_pretrained_cfg(name)
        assert network.mean.flatten().tolist() == pytest.approx(configuration.mean)
        assert network.std.flatten().tolist() == pytest.approx(configuration.std)
    assert network.mean.flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_model", "no_such_model"),
        ("convnext_tinny", "convnext_tiny"),  # similar names are listed
        ("convnext_tiny.no_such_tag", "no_such_tag"),
        ("swin_tiny_patch4_window7_224", "any size"),
        ("vit_tiny_r_s16_p8_224", "4 and 16"),
        ("poolformerv2_s12", "group_matcher"),  # which tells no layers
        ("halonet_h1", "AssertionError"),  # only for images of some sizes
        ("legacy_xception", "(31, 47)"),  # whose first convolutions are not padded
    ],
)
def test_a_model_that_cannot_be_a_backbone_is_refused(name, said):
    with pytest.raises(UserError) as caught:
        building.shapes(Network("deeplabv3plus", f"timm:{name}", "none", 16, 8))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("head", ["deeplabv3plus", "dpt"])
def test_a_head_that_does_not_go_with_the_backbone_is_refused(head):
    backbone = "timm:vit_tiny_patch16_224" if head == "deeplabv3plus" else "timm:test_convnext"
    with pytest.raises(UserError, match="network: head"):
        building.shapes(Network(head, backbone, "none", 16, 8))


# --- vision transformers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options", "patch"), TRANSFORMERS)
def test_a_transformer_gives_four_maps_at_its_patch(name, options, patch):
    network = segmenter(transformer(name, options))
    images = torch.rand(2, 3, 3 * patch, 5 * patch)
    maps = network.encode(images)
    assert [each.shape for each in maps] == [(2, 48, 3, 5)] * 4
    assert network.backbone.output_stride == patch
    assert network.feature_stride == patch / 8
    assert network.decode(maps).shape == (2, 16, 24, 40)
    assert network(images).shape == (2, 3, 3 * patch, 5 * patch)


@pytest.mark.parametrize(("name", "options", "patch"), TRANSFORMERS)
def test_the_maps_are_the_quarters_last_blocks_normalised(name, options, patch):
    backbone = transformer(name, options).eval()
    outputs: list[Tensor] = []
    for block in backbone.model.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 2 * patch, 3 * patch))
        for quarter, found in enumerate(maps):
            tokens = backbone.model.norm(outputs[2 * quarter + 1])[:, -6:]
            torch.testing.assert_close(found, tokens.transpose(1, 2).unflatten(2, (2, 3)))


def test_position_embeddings_are_interpolated_to_the_image():
    backbone = transformer(DINOV2, {**SMALL, "img_size": 70}).eval()
    model, seen = backbone.model, []
    nn.init.normal_(model.pos_embed)
    model.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    for rows, columns in ((5, 5), (3, 7)):
        images = torch.rand(1, 3, 14 * rows, 14 * columns)
        with torch.no_grad():
            backbone(images)
            patches = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
            grid = model.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (5, 5))
            if (rows, columns) != (5, 5):
                grid = interpolate(grid, (rows, columns), mode="bicubic", antialias=True)
        torch.testing.assert_close(seen.pop()[:, 1:], patches + grid.flatten(2).transpose(1, 2))


def test_a_whole_image_is_scaled_to_the_nearest_multiple_of_the_patch():
    network = segmenter(transformer(*TRANSFORMERS[0][:2])).eval()
    images = torch.rand(1, 3, 50, 60)  # 3.6 and 4.3 patches
    normal = (images - network.mean) / network.std
    with torch.no_grad():
        scaled = network.backbone(interpolate(normal, (56, 56), mode="bilinear", align_corners=True))
        for found, expected in zip(network.encode(images), scaled, strict=True):
            torch.testing.assert_close(found, expected)
        assert network(images).shape == (1, 3, 50, 60)


# --- training -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["test_convnext", "test_efficientnet", DINOV2, DINOV3])
def network(request) -> SegmentationNetwork:
    for name, options, _ in TRANSFORMERS:
        if name == request.param:
            return segmenter(transformer(name, options))
    torch.manual_seed(0)
    return build(Network("deeplabv3plus", f"timm:{request.param}", "none", 16, 8), 3)


SIZE = (112, 112)  # a multiple of 14 and 16


def test_every_parameter_learns_and_stands_in_one_layer(network):
    network.train().zero_grad()
    network(torch.rand(2, 3, *SIZE)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    layers = network.backbone.parameters_by_layer()
    listed = [id(each) for layer in layers for each in layer]
    assert sorted(listed) == sorted(map(id, network.backbone.parameters()))
    assert len(layers) > 4


def test_bf16_stays_close_to_fp32(network):
    images = torch.rand(1, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.eval()(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(images)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, expected)
    assert (rough - expected).abs().max() < 0.05 * expected.abs().max() + 0.05


@pytest.mark.parametrize("name", ["test_efficientnet", DINOV2])
def test_the_compiler_captures_a_backbone_whole(name):
    shallow = {**SMALL, "depth": 4, "img_size": 70}
    backbone = transformer(name, shallow) if name == DINOV2 else Pyramid(name, 16)
    images = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(backbone.eval(), backend="eager", fullgraph=True)
    for found, expected in zip(compiled(images), backbone(images), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert found.requires_grad


# --- weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["test_convnext", "vit_tiny_patch16_224.augreg_in21k"])
def test_a_state_dict_that_timm_wrote_loads(tmp_path: Path, name: str, suffix: str) -> None:
    torch.manual_seed(0)
    donor = timm.create_model(name).eval()
    file = tmp_path / f"classifier{suffix}"
    save(donor.state_dict(), file)
    head, stride = ("dpt", 16) if name.startswith("vit") else ("deeplabv3plus", 16)
    backbone = build(Network(head, f"timm:{name}", str(file), stride, 16), 3).backbone.eval()
    state = donor.state_dict()
    names = [name.removeprefix("model.") for name in backbone.state_dict()]
    assert set(names) < set(state)
    for name, value in backbone.state_dict().items():
        assert torch.equal(value, state[name.removeprefix("model.")])


def save(state: dict[str, Tensor], file: Path) -> None:
    if file.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, file)
    else:
        torch.save(state, file)


def test_the_layout_that_dinov2s_authors_released_loads(tmp_path):
    """They have a mask token too, and position embeddings for the images they trained on."""
    donor = transformer(DINOV2, {**SMALL, "img_size": 98}).model
    released = {**donor.state_dict(), "mask_token": torch.zeros(1, 48)}
    backbone = transformer(DINOV2, {**SMALL, "img_size": 70})
    loaded = backbone.translate(released)
    assert loaded.keys() == backbone.state_dict().keys()
    for name, value in loaded.items():
        theirs = released[name.removeprefix("model.")]
        if name == "model.pos_embed":
            theirs = resample_abs_pos_embed(theirs, [5, 5], [7, 7])
        torch.testing.assert_close(value, theirs)


@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen"])
def test_a_state_dict_of_another_model_is_refused(tmp_path: Path, fault: str) -> None:
    state = timm.create_model("test_convnext").state_dict()
    if fault == "missing":
        del state["stem.0.weight"]
    elif fault == "unexpected":
        state["stem.9.weight"] = torch.zeros(1)
    else:
        state["stem.0.weight"] = torch.zeros(1, 3, 4, 4)
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(UserError) as caught:
        build(Network("deeplabv3plus", "timm:test_convnext", str(tmp_path / "odd.pth"), 16, 8), 3)
    message = str(caught.value)
    assert "\n" not in message
    assert "stem." in message
    assert str(tmp_path / "odd.pth") in message
