import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from semiseg.base import parameters
from semiseg.base.errors import UserError
from semiseg.base.parameters import Network, Optimiser
from semiseg.methods import contract, supervised
from semiseg.methods.contract import Task
from semiseg.models.build import build
from semiseg.models.network import Backbone
from semiseg.training.step import new_optimiser
from tests import miniature

SGD = Optimiser(
    name="sgd",
    learning_rate=0.1,
    backbone_factor=0.5,
    head_factor=2.0,
    layer_decay=1.0,
    momentum=0.9,
    weight_decay=0.01,
    power=0.9,
    clip_norm=None,
)
ADAMW = dataclasses.replace(SGD, name="adamw", momentum=0.8)


def learner(backbone: str = "resnet18") -> contract.Method:
    torch.manual_seed(0)
    network = Network("deeplabv3plus", backbone, "none", 16, 8)
    return supervised.Method(lambda: build(network, 3), supervised.Config(), Task(10, 2, 0, 6))


def rates_of(method: contract.Method, optimiser: torch.optim.Optimizer) -> dict[str, float]:
    """Return the learning rate of each parameter by its name, after checking that it is in one group."""
    groups = optimiser.param_groups
    rates = {id(each): group["lr"] for group in groups for each in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups)
    return {name: rates[id(each)] for name, each in method.named_parameters()}


@pytest.mark.parametrize("settings", [SGD, ADAMW], ids=lambda settings: settings.name)
def test_backbone_and_head_have_their_multiples_of_the_rate(settings: Optimiser) -> None:
    method = learner()
    for name, rate in rates_of(method, new_optimiser(method, settings)).items():
        assert rate == pytest.approx(0.05 if ".backbone." in name else 0.2)


def test_layers_lose_rate_towards_the_image() -> None:
    method = learner()
    found = rates_of(method, new_optimiser(method, dataclasses.replace(SGD, layer_decay=0.5)))
    layers = {"conv1": 4, "bn1": 4, "layer1": 3, "layer2": 2, "layer3": 1, "layer4": 0}
    for name, rate in found.items():
        _, part, layer, *_ = name.split(".")
        assert rate == pytest.approx(0.05 * 0.5 ** layers[layer] if part == "backbone" else 0.2), name


@pytest.mark.parametrize("backbone", ["resnet18", "efficientnet_lite0"])
def test_layers_hold_each_parameter_once(backbone: str) -> None:
    built: Backbone = build(Network("deeplabv3plus", backbone, "none", 16, 8), 3).backbone
    layers = built.parameters_by_layer()
    assert len(layers) > 4
    assert sorted(id(each) for layer in layers for each in layer) == sorted(map(id, built.parameters()))
    assert layers[0][0] is next(built.parameters())


def test_the_optimisers_are_those_of_their_papers() -> None:
    """A step of each on one weight, against its update rule by hand."""
    for settings in (SGD, ADAMW):
        weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        holder = Holder(weight)
        optimiser = new_optimiser(holder, settings)
        w, velocity, m, v, lr = 2.0, 0.0, 0.0, 0.0, 0.2
        for step, gradient in enumerate([0.5, -3.0, 1.0], 1):
            weight.grad = torch.tensor([gradient], dtype=torch.float64)
            optimiser.step()
            if settings.name == "sgd":
                velocity = 0.9 * velocity + gradient + 0.01 * w
                w -= lr * velocity
            else:
                w -= lr * 0.01 * w
                m, v = 0.8 * m + 0.2 * gradient, 0.999 * v + 0.001 * gradient**2
                w -= lr * (m / (1 - 0.8**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
            assert weight.item() == pytest.approx(w, rel=1e-12)


class Holder(contract.Method):
    """One weight of the head."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def training_step(self, labelled, unlabelled, step):
        raise NotImplementedError

    def networks(self):
        return {}


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "adam"), ("head_factor", 0), ("layer_decay", 1.1), ("layer_decay", 0), ("backbone_factor", -1)],
)
def test_a_wrong_optimiser_is_refused(tmp_path: Path, key: str, value: object) -> None:
    tree = yaml.safe_load(yaml.safe_dump(miniature.PARAMS))
    tree["protocols"]["mini"]["optimiser"][key] = value
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree))
    with pytest.raises(UserError) as caught:
        parameters.load(tmp_path / "params.yaml")
    assert f"protocols: mini: optimiser: {key}: " in str(caught.value)
