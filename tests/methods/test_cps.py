import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from semiseg.methods import cps
from semiseg.methods.common import CutMix, HardExamples
from semiseg.methods.contract import IGNORE, Labelled, Rates
from semiseg.methods.cps import Config, Method
from tests.methods.steps import BATCH, CROP, TASK, Array, batch, boxes, network, probabilities
from tests.methods.waits import Waits

CUTMIX = {
    "weight": 1.0,
    "labelled": False,
    "cutmix": CutMix(probability=1.0, area=(0.25, 0.5), aspect=None, boxes=3),
}
MODES = ("train", "eval", "teacher")


def learner(**changes: Any) -> Method:
    torch.manual_seed(0)
    method = Method(network, dataclasses.replace(Config(), **changes), TASK).train()
    for student in (method.first, method.second):
        student.backbone.layers[1].running_mean.fill_(0.3)  # evaluation mode differs from training mode
    for each in (method.first_teacher, method.second_teacher):
        if each is not None:
            with torch.no_grad():
                each.classifier.weight.add_(0.5 * torch.randn(each.classifier.weight.shape))
    return method


# --- the paper's equations, pixel by pixel ----------------------------------------------------------------


def cross_entropy_by_hand(found: Array, labels: Array) -> float:
    """Return the mean of −log p over the pixels that have a label."""
    places = [place for place in np.ndindex(labels.shape) if labels[place] != IGNORE]
    return -sum(np.log(found[i, labels[i, y, x], y, x]) for i, y, x in places) / len(places)


def literal(method: Method, labelled: Labelled, unlabelled: dict[str, Tensor]) -> tuple[float, float]:
    """Return L_s = ℓ(p1, y) + ℓ(p2, y) and L_cps = ℓ(p1, ŷ2) + ℓ(p2, ŷ1) of a step of ``method``."""
    config = method.config
    students = [copy.deepcopy(each) for each in (method.first, method.second)]
    labellers = [copy.deepcopy(each) for each in (method.first, method.second)]
    if config.pseudo_labels == "teacher":
        labellers = [copy.deepcopy(each) for each in (method.first_teacher, method.second_teacher)]
    for labeller in labellers:
        labeller.train(config.pseudo_labels == "train")
    images, padding = unlabelled["image"].clone(), unlabelled["mask"].numpy().copy()
    labels = [probabilities(each, images).argmax(axis=1) for each in labellers]
    if config.cutmix is not None:
        unmixed = images.clone(), padding.copy(), copy.deepcopy(labels)
        for i, y, x in np.ndindex(BATCH, CROP, CROP):
            if boxes(0)[i, y, x]:
                after = (i + 1) % BATCH
                images[i, :, y, x], padding[i, y, x] = unmixed[0][after, :, y, x], unmixed[1][after, y, x]
                for k in range(2):
                    labels[k][i, y, x] = unmixed[2][k][after, y, x]
    for k in range(2):
        labels[k][padding == IGNORE] = IGNORE

    of_labelled = [probabilities(each, labelled.images) for each in students]
    of_unlabelled = [probabilities(each, images) for each in students]
    if config.labelled:
        more = [probabilities(each, labelled.images).argmax(axis=1) for each in labellers]
        labels = [np.concatenate(pair) for pair in zip(more, labels, strict=True)]
        crossing = [np.concatenate(pair) for pair in zip(of_labelled, of_unlabelled, strict=True)]
    else:
        crossing = of_unlabelled
    supervised = sum(cross_entropy_by_hand(each, labelled.masks.numpy()) for each in of_labelled)
    crossed = cross_entropy_by_hand(crossing[0], labels[1]) + cross_entropy_by_hand(crossing[1], labels[0])
    return supervised, crossed


@pytest.mark.parametrize("pseudo_labels", MODES)
@pytest.mark.parametrize(
    "options", [{}, CUTMIX, {"labelled": False}, {**CUTMIX, "labelled": True}, {"weight": 0.0}]
)
def test_the_cross_term_is_the_papers(
    options: dict[str, Any], pseudo_labels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cps, "cutmix_boxes", lambda images, cutmix: boxes(0))
    method = learner(pseudo_labels=pseudo_labels, **options)
    labelled, unlabelled = batch()
    supervised, crossed = literal(method, labelled, unlabelled)
    loss, logs = method.training_step(labelled, unlabelled, 0)
    assert logs["supervised"].item() == pytest.approx(supervised, rel=1e-6)
    assert logs["crossed"].item() == pytest.approx(crossed, rel=1e-6)
    assert loss.item() == pytest.approx(supervised + method.config.weight * crossed, rel=1e-6)


def test_the_modes_and_cutmix_label_apart() -> None:
    found = set()
    for mode in MODES:
        for options in ({}, CUTMIX):
            torch.manual_seed(0)
            loss, _ = learner(pseudo_labels=mode, **options).training_step(*batch(), 0)
            found.add(loss.item())
    assert len(found) == 2 * len(MODES)


def test_a_network_learns_from_the_others_labels_and_never_through_them() -> None:
    """Gradients of one network's cross term reach that network alone."""
    method = learner(weight=1.0, labelled=False)
    labelled, unlabelled = batch()
    labelled.masks.fill_(IGNORE)  # no supervised term
    crossed, _ = method.training_step(labelled, unlabelled, 0)
    crossed.backward()
    gradients = [each.classifier.weight.grad.clone() for each in (method.first, method.second)]
    method.zero_grad()
    found = method.first(unlabelled["image"])
    outside = unlabelled["mask"] == IGNORE
    labels = method.second(unlabelled["image"]).argmax(dim=1).masked_fill(outside, IGNORE)
    torch.nn.functional.cross_entropy(found, labels, ignore_index=IGNORE).backward()
    assert torch.allclose(method.first.classifier.weight.grad, gradients[0], rtol=1e-4, atol=1e-7)
    assert method.second.classifier.weight.grad is None
    assert gradients[1].any()


# --- two networks -------------------------------------------------------------------------------------------


def test_the_networks_differ_and_each_trains_at_both_rates() -> None:
    method = learner()
    assert list(method.networks()) == ["first", "second"]
    assert not torch.equal(method.first.classifier.weight, method.second.classifier.weight)
    backbone, rest = method.parameter_groups(Rates(backbone=0.1, head=1.0))
    assert (backbone["lr"], rest["lr"]) == (0.1, 1.0)
    for student in (method.first, method.second):
        held = {id(each) for each in backbone["params"]}
        assert {id(each) for each in student.backbone.parameters()} <= held
        assert not held & {id(each) for each in student.classifier.parameters()}


def test_teachers_are_kept_if_they_label() -> None:
    method = learner(pseudo_labels="teacher", teacher_decay=0.75)
    assert list(method.networks()) == ["first", "second", "first_teacher", "second_teacher"]
    assert method.first_teacher is not None
    before, student = method.first_teacher.classifier.weight.clone(), method.first.classifier.weight
    method.after_step(900)
    assert torch.allclose(method.first_teacher.classifier.weight, before + 0.25 * (student - before))


# --- options ------------------------------------------------------------------------------------------------


def test_hard_examples_reach_the_supervised_loss_alone() -> None:
    plain, hard = (
        learner(hard_examples=each).training_step(*batch(), 0)[1]
        for each in (None, HardExamples(pixels=20, threshold=0.1))
    )
    assert hard["supervised"] > plain["supervised"]
    assert hard["crossed"] == plain["crossed"]


@pytest.mark.parametrize("changes", [{"pseudo_labels": "released"}, {"weight": -1.0}, {"teacher_decay": 1.1}])
def test_an_option_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Config(**changes)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_never_waits_for_the_device(mode: str) -> None:
    method, batches = learner(pseudo_labels=mode, hard_examples=HardExamples(pixels=20), **CUTMIX), batch()
    with Waits() as waits:
        loss, _ = method.training_step(*batches, 0)
        loss.backward()
        method.after_step(0)
    assert waits.found == set()
