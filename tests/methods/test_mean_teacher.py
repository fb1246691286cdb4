import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from semiseg.base.parameters import Protocol
from semiseg.base.tree import from_tree
from semiseg.methods import mean_teacher
from semiseg.methods.common import Colours, CutMix, HardExamples
from semiseg.methods.contract import IGNORE, Labelled
from semiseg.methods.mean_teacher import Config, Method
from tests import miniature
from tests.methods.steps import BATCH, CLASSES, CROP, TASK, batch, boxes, network, probabilities
from tests.methods.waits import Waits

CUTMIX_SEG = {
    "weight": 1.0,
    "cost": "squared",
    "labelled": False,
    "threshold": 0.6,
    "teacher_training_mode": False,
    "cutmix": CutMix(probability=1.0, area=(0.5, 0.5), aspect=None),
}


def learner(**changes: Any) -> Method:
    torch.manual_seed(0)
    method = Method(network, dataclasses.replace(Config(), **changes), TASK).train()
    method.teacher.backbone.layers[1].running_mean.fill_(0.3)  # evaluation mode differs from training mode
    with torch.no_grad():
        method.teacher.classifier.weight.add_(0.5 * torch.randn(method.teacher.classifier.weight.shape))
    return method


# --- the papers' equations, pixel by pixel ----------------------------------------------------------------


def literal(method: Method, labelled: Labelled, unlabelled: dict[str, Tensor]) -> dict[str, float]:
    """Return the terms of a step of ``method``, which stays unchanged."""
    config, student = method.config, copy.deepcopy(method.student)
    teacher = copy.deepcopy(method.teacher).train(config.teacher_training_mode)
    images, padding = unlabelled["image"].clone(), unlabelled["mask"].clone()
    targets = probabilities(teacher, images)
    if config.cutmix is not None:
        unmixed = images.clone(), padding.clone(), targets.copy()
        for i, y, x in np.ndindex(BATCH, CROP, CROP):
            if boxes(0)[i, y, x]:
                after = (i + 1) % BATCH
                images[i, :, y, x], padding[i, y, x] = unmixed[0][after, :, y, x], unmixed[1][after, y, x]
                targets[i, :, y, x] = unmixed[2][after, :, y, x]
    of_labelled = probabilities(student, labelled.images)
    pairs = [(probabilities(student, images), targets, padding)]
    if config.labelled:
        pairs.append((of_labelled, probabilities(teacher, labelled.images), torch.zeros_like(padding)))

    supervised, costs, confident = [], [], []
    for i, y, x in np.ndindex(BATCH, CROP, CROP):
        if labelled.masks[i, y, x] != IGNORE:
            supervised.append(-np.log(of_labelled[i, labelled.masks[i, y, x], y, x]))
        for found, wanted, outside in pairs:
            if outside[i, y, x] == IGNORE:
                continue
            p, q = found[i, :, y, x], wanted[i, :, y, x]
            confident.append(q.max() >= config.threshold)
            if config.cost == "cross_entropy":
                costs.append(-sum(q[c] * np.log(p[c]) for c in range(CLASSES)))
            else:
                squares = sum((p[c] - q[c]) ** 2 for c in range(CLASSES))
                costs.append(squares / CLASSES if config.cost == "mse" else squares)
    share = float(np.mean(confident))
    return {
        "supervised": float(np.mean(supervised)),
        "consistency": share * float(np.mean(costs)),
        "confident": share,
    }


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"teacher_training_mode": False},
        {"labelled": False},
        {"cost": "squared"},
        {"cost": "cross_entropy", "weight": 1.0},
        CUTMIX_SEG,
        {**CUTMIX_SEG, "labelled": True, "cost": "cross_entropy", "threshold": 0.8},
    ],
)
def test_every_term_is_the_papers(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mean_teacher, "cutmix_boxes", lambda images, cutmix: boxes(0))
    method = learner(**options)
    labelled, unlabelled = batch()
    expected = literal(method, labelled, unlabelled)
    loss, logs = method.training_step(labelled, unlabelled, 500)
    assert {name: log.item() for name, log in logs.items()} == pytest.approx(expected, rel=1e-6)
    total = expected["supervised"] + method.config.weight * expected["consistency"]
    assert loss.item() == pytest.approx(total, rel=1e-6)
    assert 0 < expected["confident"] < 1 or method.config.threshold == 0


@pytest.mark.parametrize(("step", "risen"), [(0, np.exp(-5)), (50, np.exp(-1.25)), (100, 1.0), (900, 1.0)])
def test_the_consistency_is_ramped_up(step: int, risen: float) -> None:
    loss, logs = learner(ramp_up_steps=100).training_step(*batch(), step)
    expected = logs["supervised"] + 100 * risen * logs["consistency"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_only_the_student_sees_other_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen = learner(colours=Colours(), labelled=False), {}
    monkeypatch.setattr(mean_teacher, "strong_view", lambda images, colours: 1 - images)
    for name in ("teacher", "student"):
        encode = getattr(method, name).encode

        def noted(images: Tensor, name: str = name, encode: Any = encode) -> Any:
            seen.setdefault(name, []).append(images)
            return encode(images)

        monkeypatch.setattr(getattr(method, name), "encode", noted)
    labelled, unlabelled = batch()
    method.training_step(labelled, unlabelled, 0)
    (of_teacher,), of_student = seen["teacher"], seen["student"]
    assert torch.equal(of_teacher, unlabelled["image"])
    assert torch.equal(of_student[0], labelled.images)
    assert torch.equal(of_student[1], 1 - unlabelled["image"])


# --- teacher ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training_mode", [True, False])
@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (1, 0.5), (900, 0.1)])
def test_the_teacher_follows_the_student(step: int, share: float, training_mode: bool) -> None:
    method = learner(teacher_training_mode=training_mode, teacher_decay=0.9)
    before, student = copy.deepcopy(method.teacher.state_dict()), method.student.state_dict()
    method.after_step(step)
    parameters = {name for name, _ in method.teacher.named_parameters()}
    for name, value in method.teacher.state_dict().items():
        moved = share if name in parameters or not training_mode else 0.0
        if value.is_floating_point():
            assert torch.allclose(value, before[name] + moved * (student[name] - before[name]), atol=1e-6)


@pytest.mark.parametrize("headline", ["teacher", "student"])
def test_both_are_scored_and_the_headline_first(headline: str) -> None:
    method = learner(headline=headline)
    networks = method.networks()
    assert next(iter(networks)) == headline
    assert networks["teacher"] is method.teacher
    assert networks["student"] is method.student


# --- options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"cost": "l1"},
        {"headline": "both"},
        {"weight": -1.0},
        {"ramp_up_steps": -1},
        {"threshold": 1.1},
        {"teacher_decay": -0.1},
    ],
)
def test_an_option_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Config(**changes)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"ramp_up_steps": miniature.STEPS + 1}, "ramp_up_steps"),
        ({"hard_examples": HardExamples(pixels=32 * 32 + 1)}, "hard_examples"),
    ],
)
def test_what_does_not_fit_the_protocol_is_refused(changes: dict[str, Any], key: str) -> None:
    protocol = from_tree(Protocol, miniature.PROTOCOL, "mini")
    Config(ramp_up_steps=miniature.STEPS, hard_examples=HardExamples(pixels=32 * 32)).check(protocol)
    with pytest.raises(ValueError, match=key):
        Config(**changes).check(protocol)


@pytest.mark.parametrize("options", [{}, {**CUTMIX_SEG, "colours": Colours()}])
def test_a_step_never_waits_for_the_device(options: dict[str, Any]) -> None:
    method, batches = learner(hard_examples=HardExamples(pixels=20), **options), batch()
    with Waits() as waits:
        loss, _ = method.training_step(*batches, 0)
        loss.backward()
        method.after_step(0)
    assert waits.found == set()
