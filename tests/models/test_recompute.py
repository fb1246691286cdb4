"""Blocks that compute their activations twice: the same bits from less memory."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from semiseg.base.parameters import Network
from semiseg.models.build import build
from semiseg.models.network import SegmentationNetwork
from semiseg.models.recompute import recompute

BACKBONES = {  # with the most of a plain pass's activations that may be kept
    "resnet18": 0.6,
    "efficientnet_lite0": 0.6,
    "timm:convnext_atto": 0.6,
    "timm:test_resnet": 0.75,  # whose wide stem, of single layers, keeps all of its own
    "timm:hrnet_w18_small": 0.6,
}


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def networks(backbone: str) -> tuple[SegmentationNetwork, SegmentationNetwork]:
    """Return two equal networks, of which the second one keeps fewer activations."""
    network = Network("deeplabv3plus", backbone, "none", 16, 8)
    plain = build(network, 3).train()
    other = copy.deepcopy(plain)
    recompute(other.backbone)
    return plain, other


def trained(network: SegmentationNetwork, images: Tensor, steps: int = 3) -> list[Tensor]:
    """Train a few steps of two passes each; return losses, gradients, weights and statistics."""
    optimiser = torch.optim.SGD(network.parameters(), 0.01)
    seen: list[Tensor] = []
    for step in range(steps):
        torch.manual_seed(step)
        loss = network(images).square().mean() + network(images.flip(3)).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        seen += [
            loss.detach(),
            *(each.grad.clone() for each in network.parameters() if each.grad is not None),
        ]
        optimiser.step()
    return [*seen, *(each.clone() for each in network.state_dict().values())]


def test_steps_are_the_same_to_the_bit(networks: tuple[SegmentationNetwork, SegmentationNetwork]) -> None:
    images = torch.rand(2, 3, 64, 64)
    plain, other = (trained(each, images) for each in networks)
    assert len(plain) == len(other)
    assert all(map(torch.equal, plain, other))
    assert networks[0].state_dict().keys() == networks[1].state_dict().keys()


def kept_bytes(run: Callable[[], object]) -> int:
    """Return how many bytes of activations ``run`` keeps for the backward pass."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = run()  # noqa: F841, kept alive while storages are told apart by their address
    return sum(storages.values())


def test_fewer_activations_are_kept(
    backbone: str, networks: tuple[SegmentationNetwork, SegmentationNetwork]
) -> None:
    images = torch.rand(2, 3, 96, 96)
    plain, other = (kept_bytes(lambda each=each: each.backbone(images)) for each in networks)  # type: ignore[misc]
    assert other < BACKBONES[backbone] * plain


def test_a_pass_without_gradients_is_as_it_was(
    networks: tuple[SegmentationNetwork, SegmentationNetwork],
) -> None:
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        plain, other = (each.eval()(images) for each in networks)
    assert torch.equal(plain, other)
