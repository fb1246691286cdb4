"""The optimiser's groups, its schedule and a step's seed, by hand and against torch."""

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from semiseg.base.parameters import Protocol
from semiseg.base.tree import from_tree
from semiseg.methods.contract import Labelled, Logs, Task
from semiseg.training import step
from tests import miniature
from tests.methods import many_decoders, two_networks
from tests.tiny import tiny_network

PROTOCOL: Protocol = from_tree(Protocol, miniature.PROTOCOL, "mini")
SGD = PROTOCOL.optimiser


def with_groups(rates: list[float]) -> torch.optim.SGD:
    """Return SGD with one parameter at each rate, as step.new_optimiser prepares it."""
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": rate, "initial_lr": rate} for rate in rates]
    return torch.optim.SGD(groups, lr=1.0)


def rates(optimiser: torch.optim.SGD) -> list[float]:
    return [group["lr"] for group in optimiser.param_groups]


def test_the_poly_schedule_by_hand() -> None:
    optimiser, protocol = with_groups([0.001, 0.01]), dataclasses.replace(PROTOCOL, steps=10)
    schedule = step.poly(optimiser, protocol, 0)
    assert rates(optimiser) == [0.001, 0.01]
    for _ in range(5):
        optimiser.step()
        schedule.step()
    half = 0.5358867312681466  # 0.5 ** 0.9
    assert rates(optimiser) == pytest.approx([0.001 * half, 0.01 * half], rel=1e-12)
    assert schedule.get_last_lr() == rates(optimiser)


@pytest.mark.parametrize("initial", [[0.1], [0.01, 0.1], [0.3, 0.2, 0.1, 0.05, 0.025]])
@pytest.mark.parametrize("stopped", [1, 4, 9])
def test_a_schedule_that_goes_on_is_one_that_was_not_stopped(initial: list[float], stopped: int) -> None:
    protocol = dataclasses.replace(PROTOCOL, steps=10)
    whole = with_groups(initial)
    expected = LambdaLR(whole, lambda taken: (1 - taken / 10) ** SGD.power)
    first, last = with_groups(initial), with_groups(initial)
    schedule = step.poly(first, protocol, 0)
    for taken in range(10):
        if taken == stopped:  # the optimiser's state is all that a checkpoint holds of it
            last.load_state_dict(first.state_dict())
            schedule = step.poly(last, protocol, taken)
            first = last
        assert rates(first) == pytest.approx(rates(whole), rel=1e-12)
        for optimiser, each in ((whole, expected), (first, schedule)):
            optimiser.step()
            each.step()
    assert rates(first) == [0.0] * len(initial)


def test_both_backbones_of_two_networks_learn_at_the_backbones_rate() -> None:
    learner = two_networks.Method(lambda: tiny_network(3), two_networks.Config(), Task(10, 2, None, 6))
    backbone, rest = step.new_optimiser(learner, SGD).param_groups
    assert (backbone["lr"], rest["lr"]) == (0.001, 0.01)
    networks = learner.networks().values()
    expected = {id(each) for network in networks for each in network.backbone.parameters()}
    assert {id(each) for each in backbone["params"]} == expected
    assert {id(each) for each in rest["params"]} == {id(each) for each in learner.parameters()} - expected


def test_the_rate_reaches_the_weights() -> None:
    """A constant gradient of one moves every weight by its own group's rate."""
    learner = many_decoders.Method(lambda: tiny_network(3), many_decoders.Config(), Task(10, 2, None, 6))
    plain = dataclasses.replace(SGD, momentum=0.0, weight_decay=0.0)
    optimiser = step.new_optimiser(learner, plain)
    before = {name: each.detach().clone() for name, each in learner.named_parameters()}
    for parameter in learner.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    moved = {name: before[name] - each.detach() for name, each in learner.named_parameters()}
    expected = {"main.backbone": 0.001, "main.": 0.01, "decoders.": 0.02}
    for name, distance in moved.items():
        rate = next(rate for prefix, rate in expected.items() if name.startswith(prefix))
        torch.testing.assert_close(distance, torch.full_like(distance, rate), rtol=1e-4, atol=1e-7)


def test_a_teacher_is_not_trained() -> None:
    learner = miniature.learner("cmb")
    trained = {
        id(each) for group in step.new_optimiser(learner, SGD).param_groups for each in group["params"]
    }
    networks = learner.networks()
    assert not trained & {id(each) for each in networks["teacher"].parameters()}
    assert trained >= {id(each) for each in networks["student"].parameters()}


def test_a_step_is_seeded_by_seed_and_step_alone() -> None:
    def draw(seed: int, number: int) -> float:
        step.seed_everything(seed, number)
        return float(torch.rand(()))

    drawn = {place: draw(*place) for place in itertools.product(range(4), range(-1, 5))}
    assert len(set(drawn.values())) == len(drawn)
    assert all(draw(*place) == value for place, value in drawn.items())


@pytest.mark.parametrize("clip_norm", [None, 1e-3, 1e3])
def test_the_gradients_norm_is_of_all_parameters_before_it_is_clipped(
    mini_project: Path, clip_norm: float | None
) -> None:
    def taken(clip_norm: float | None) -> tuple[Logs, float]:
        """Return the logs of a step, and the norm of the gradients that the optimiser took."""
        config = miniature.config(optimiser=dataclasses.replace(SGD, clip_norm=clip_norm))
        torch.manual_seed(0)
        learner = two_networks.Method(lambda: tiny_network(3), two_networks.Config(), Task(10, 2, None, 6))
        optimiser = step.new_optimiser(learner, config.protocol.optimiser)
        images, masks = torch.rand(2, 3, 16, 16), torch.randint(3, (2, 16, 16))
        unlabelled = {"image": torch.rand(2, 3, 16, 16), "mask": torch.zeros(2, 16, 16, dtype=torch.uint8)}
        logs = step.take_step(config, learner, learner, optimiser, Labelled(images, masks), unlabelled, 0)
        gradients = [each.grad.double() for each in learner.parameters() if each.grad is not None]
        return logs, math.sqrt(sum(float(each.square().sum()) for each in gradients))

    _, norm = taken(None)
    logs, left = taken(clip_norm)
    assert float(logs["gradient_norm"]) == pytest.approx(norm, rel=1e-5)
    assert left == pytest.approx(min(norm, clip_norm or math.inf), rel=1e-2)
    assert set(logs) == {"loss", "supervised", "crossed", "gradient_norm"}
    assert not any(log.requires_grad for log in logs.values())
