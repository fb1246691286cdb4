"""Eight steps give what the released code gave with the same networks, batches, draws and rates.

recordings/unimatch.json records main() of unimatch.py and of fixmatch.py in LiheYoung/UniMatch at 0324f3dd;
recordings/cps.json records train.py of charlesCXK/TorchSemiSeg at 5e0c29c0, in exp.voc/voc8.res50v3+.CPS and
.CPS+CutMix, and the ProbOhemCrossEntropy2d of both repositories. Networks, loaders and GPUs were stand-ins,
CutMix pasted from the next image of the batch, and weights of all kinds decayed. The inputs are those of
released.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from semiseg.losses import hard_cross_entropy
from semiseg.methods import contract, cps, fixmatch
from semiseg.methods.common import CutMix
from semiseg.methods.contract import Labelled, Method, Rates, Task
from semiseg.models.network import SegmentationNetwork
from tests.methods import released
from tests.methods.released import BATCH, CROP, RATE, STEPS, Step

RECORDINGS = Path(__file__).with_name("recordings")
UNIMATCH = {"strong_views": 2, "strong_weight": 0.5, "feature_weight": 0.5}
TASK = Task(STEPS, labelled_images=BATCH, background=None)
CLOSE = 1e-4


def recording(name: str) -> Any:
    return json.loads((RECORDINGS / f"{name}.json").read_text())


class Draws:
    """The recorded draws of a step, in place of those that a method would make."""

    def __init__(self) -> None:
        self.step, self.views = released.steps()[0], 0

    def begin(self, step: Step) -> None:
        self.step, self.views = step, 0

    def strong_view(self, images: Tensor, colours: object) -> Tensor:
        self.views += 1
        return self.step.strong[self.views - 1]

    def boxes(self, images: Tensor, cutmix: object) -> Tensor:
        return self.step.boxes[max(self.views - 1, 0)]

    def channel_dropout(self, maps: Tensor, draws: Tensor, rate: float) -> Tensor:
        kept = next(each for each in self.step.kept if each.shape == maps.shape[:2])
        return (maps * kept[:, :, None, None] / (1 - rate))[:, None]


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Draws:
    recorded = Draws()
    monkeypatch.setattr(fixmatch, "strong_view", recorded.strong_view)
    monkeypatch.setattr(fixmatch, "channel_dropout", recorded.channel_dropout)
    for method in (fixmatch, cps):
        monkeypatch.setattr(method, "cutmix_boxes", recorded.boxes)
    return recorded


def assert_same_steps(
    method: Method, head: float, draws: Draws, expected: Mapping[str, Any], images: str
) -> None:
    """Train ``method`` at the recorded rates, the head ``head`` times as fast as the backbone."""
    groups: list[dict[str, Any]] = [{**each} for each in method.parameter_groups(Rates(1.0, head))]
    optimiser = torch.optim.SGD(groups, lr=RATE, momentum=0.9, weight_decay=1e-4)
    factors = [group["lr"] for group in groups]
    found: dict[str, list[float]] = {}
    for number, (step, rate) in enumerate(zip(released.steps(), expected["rates"], strict=True)):
        for group, factor in zip(optimiser.param_groups, factors, strict=True):
            group["lr"] = factor * rate
        draws.begin(step)
        unlabelled = {"image": step.weak, "mask": step.padding}
        if images == "strong":
            unlabelled = {"image": step.strong[0], "mask": torch.zeros(BATCH, CROP, CROP)}
        loss, logs = method.training_step(Labelled(step.images, step.masks), unlabelled, number)
        optimiser.zero_grad()
        loss.backward()
        gradients = [each.grad.double() for each in contract.trained(method) if each.grad is not None]
        norm = torch.stack([each.square().sum() for each in gradients]).sum().sqrt()
        optimiser.step()
        method.after_step(number)
        for name, value in {"loss": loss, **logs, "gradient_norms": norm}.items():
            found.setdefault(name, []).append(value.item())
    for name, values in found.items():
        assert values == pytest.approx(expected[name], rel=CLOSE, abs=1e-7), name


def assert_same_weights(
    network: SegmentationNetwork, expected: Mapping[str, float], *, statistics: bool = True
) -> None:
    """Compare the norms of parameters, and if ``statistics`` those of batch norm's running statistics."""
    found = released.norms(network)
    names = [name for name in found if statistics or "running" not in name]
    assert {name: found[name] for name in names} == pytest.approx(
        {name: expected[name] for name in names}, rel=CLOSE, abs=1e-6
    )


@pytest.mark.parametrize(
    ("name", "options"), [("fixmatch", {}), ("unimatch", UNIMATCH), ("unimatch_all", UNIMATCH)]
)
def test_fixmatch_and_unimatch_step_as_released(name: str, options: dict[str, Any], draws: Draws) -> None:
    expected = recording("unimatch")[name]
    config = fixmatch.Config(pseudo_labels="released", threshold=expected["threshold"], **options)
    method = fixmatch.Method(lambda: released.network(0), config, TASK).train()
    assert_same_steps(method, 10.0, draws, expected, "weak")
    assert_same_weights(method.student, expected["final"])


@pytest.mark.parametrize("name", ["cps", "cps_cutmix"])
def test_cps_steps_as_released(name: str, draws: Draws) -> None:
    expected = recording("cps")[name]
    mixes = expected["cutmix"]
    config = cps.Config(
        weight=expected["weight"], labelled=not mixes, cutmix=CutMix(probability=1.0) if mixes else None
    )
    networks = iter((released.network(0), released.network(1)))
    method = cps.Method(lambda: next(networks), config, TASK).train()
    assert_same_steps(method, 1.0, draws, expected, "strong")
    for branch, network in method.networks().items():
        # With CutMix the passes come in another order there, which batch norm's running statistics show.
        assert_same_weights(network, expected["final"][branch], statistics=not mixes)


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("repository", ["unimatch", "torchsemiseg"])
def test_hard_examples_of_an_image_cost_what_they_cost_there(repository: str, place: int) -> None:
    expected = recording("cps")["hard_examples"][place]
    step = released.steps()[0]
    logits = released.network(0)(step.images).detach()
    for i in range(BATCH):
        loss = hard_cross_entropy(
            logits[i : i + 1],
            step.masks[i : i + 1],
            pixels=expected["pixels"],
            threshold=expected["threshold"],
        )
        assert loss.item() == pytest.approx(expected[repository][i], rel=1e-6)
