import copy
import dataclasses
import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from semiseg.methods import fixmatch
from semiseg.methods.common import CutMix, HardExamples
from semiseg.methods.contract import IGNORE, Labelled
from semiseg.methods.fixmatch import Config, Method
from tests.methods.steps import BATCH, CROP, TASK, Array, batch, boxes, network, probabilities
from tests.methods.waits import Waits
from tests.project import ROOT

UNIMATCH = {"strong_views": 2, "strong_weight": 0.5, "feature_weight": 0.5}
UNIMATCH_V2 = {"strong_views": 2, "pseudo_labels": "teacher", "complementary_dropout": True}
MODES = ("train", "eval", "teacher", "released")


def learner(**changes: Any) -> Method:
    torch.manual_seed(0)
    method = Method(network, dataclasses.replace(Config(threshold=0.6), **changes), TASK).train()
    method.student.backbone.layers[1].running_mean.fill_(0.3)  # evaluation mode differs from training mode
    if method.teacher is not None:
        with torch.no_grad():
            for parameter in method.teacher.parameters():
                parameter.mul_(0.9)
    return method


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record draws, so that the method and the literal computation see the same."""
    views = itertools.count()
    monkeypatch.setattr(fixmatch, "strong_view", lambda images, colours: strong(images, next(views) % 2))
    places = itertools.count()
    monkeypatch.setattr(fixmatch, "cutmix_boxes", lambda images, cutmix: boxes(next(places) % 2))
    monkeypatch.setattr(fixmatch, "channel_dropout", lambda maps, draws, rate: dropped(maps)[:, None])


def strong(images: Tensor, view: int) -> Tensor:
    return images.flip(1) if view else 1 - images


def dropped(maps: Tensor) -> Tensor:
    kept = torch.arange(maps.shape[0] * maps.shape[1]).view(*maps.shape[:2], 1, 1) % 3 > 0
    return maps * kept * 2


# --- the paper's equations, pixel by pixel ----------------------------------------------------------------


def labels_by_hand(found: Array, padding: Array) -> tuple[Array, Array]:
    """Return each pixel's most probable class and its probability, with padding marked."""
    labels, confidence = np.zeros((BATCH, CROP, CROP), int), np.zeros((BATCH, CROP, CROP))
    for i, y, x in np.ndindex(labels.shape):
        labels[i, y, x] = found[i, :, y, x].argmax() if padding[i, y, x] != IGNORE else IGNORE
        confidence[i, y, x] = found[i, :, y, x].max()
    return labels, confidence


def loss_by_hand(found: Array, labels: Array, confidence: Array, threshold: float) -> float:
    """Return Σ 1(confidence ≥ τ) H / number of pixels that are not padding."""
    total, pixels = 0.0, 0
    for i, y, x in np.ndindex(labels.shape):
        if labels[i, y, x] != IGNORE:
            pixels += 1
            if confidence[i, y, x] >= threshold:
                total -= np.log(found[i, labels[i, y, x], y, x])
    return total / pixels


def literal(method: Method, labelled: Labelled, unlabelled: dict[str, Tensor]) -> dict[str, float]:
    """Return the terms of a step of ``method``, which stays unchanged."""
    config, student = method.config, copy.deepcopy(method.student)
    images, padding = unlabelled["image"], unlabelled["mask"].numpy()
    labeller = copy.deepcopy(student if method.teacher is None else method.teacher).eval()
    in_evaluation = labels_by_hand(probabilities(labeller, images), padding)

    weak_too = config.pseudo_labels in ("train", "released") or config.feature_weight > 0
    first = torch.cat((labelled.images, images)) if weak_too else labelled.images
    with torch.no_grad():
        maps = student.encode(first)
    found = probabilities(student, first)
    in_training = labels_by_hand(found[BATCH:], padding) if weak_too else in_evaluation
    own = in_training if config.pseudo_labels in ("train", "released") else in_evaluation
    pasted = in_training if config.pseudo_labels == "train" else in_evaluation

    supervised = [
        -np.log(found[i, labelled.masks[i, y, x], y, x])
        for i, y, x in np.ndindex(BATCH, CROP, CROP)
        if labelled.masks[i, y, x] != IGNORE
    ]
    views, labels, confidences = [], [], []
    for view in range(config.strong_views):
        images_of_view, (label, confidence) = strong(images, view).clone(), (own[0].copy(), own[1].copy())
        for i, y, x in np.ndindex(BATCH, CROP, CROP):
            if boxes(view)[i, y, x]:
                after = (i + 1) % BATCH
                images_of_view[i, :, y, x] = strong(images, view)[after, :, y, x]
                label[i, y, x], confidence[i, y, x] = pasted[0][after, y, x], pasted[1][after, y, x]
        views.append(images_of_view)
        labels.append(label)
        confidences.append(confidence)
    strong_found = probabilities(student, torch.cat(views))
    losses = [
        loss_by_hand(strong_found[BATCH * k : BATCH * (k + 1)], labels[k], confidences[k], config.threshold)
        for k in range(config.strong_views)
    ]
    feature = 0.0
    if config.feature_weight > 0:
        with torch.no_grad():
            features = student.decode(tuple(dropped(each[BATCH:]) for each in maps))
            logits = torch.nn.functional.interpolate(
                student.classify(features), (CROP, CROP), mode="bilinear", align_corners=False
            )
        perturbed = logits.double().softmax(dim=1).numpy()
        feature = loss_by_hand(perturbed, *own, config.threshold)
    inside = own[0] != IGNORE
    return {
        "supervised": float(np.mean(supervised)),
        "strong": float(np.mean(losses)),
        "feature": feature,
        "confident": float((own[1][inside] >= config.threshold).mean()),
    }


@pytest.mark.parametrize("pseudo_labels", MODES)
@pytest.mark.parametrize("options", [{}, UNIMATCH, {"threshold": 0.0}, {"threshold": 0.5}])
@pytest.mark.usefixtures("recorded")
def test_every_term_is_the_papers(options: dict[str, Any], pseudo_labels: str) -> None:
    method = learner(pseudo_labels=pseudo_labels, **options)
    labelled, unlabelled = batch()
    expected = literal(method, labelled, unlabelled)
    loss, logs = method.training_step(labelled, unlabelled, 0)
    assert {name: log.item() for name, log in logs.items()} == pytest.approx(expected, rel=1e-6)
    total = expected["supervised"] + method.config.strong_weight * expected["strong"]
    total += method.config.feature_weight * expected["feature"]
    assert loss.item() == pytest.approx(total / 2, rel=1e-6)
    assert 0 < expected["confident"] < 1 or method.config.threshold == 0
    assert (expected["feature"] > 0) == ("feature_weight" in options)


@pytest.mark.usefixtures("recorded")
def test_the_modes_label_apart() -> None:
    found = {
        mode: learner(pseudo_labels=mode).training_step(*batch(), 0)[1]["strong"].item() for mode in MODES
    }
    assert len(set(found.values())) == len(MODES)


# --- draws ------------------------------------------------------------------------------------------------


def test_strong_views_have_draws_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    method = learner(**UNIMATCH, cutmix=CutMix(probability=1.0))
    monkeypatch.setattr(
        fixmatch, "confident_cross_entropy", lambda logits, labels, *_: seen.append(labels) or logits.sum()
    )
    torch.manual_seed(0)
    method.training_step(*batch(), 0)
    one, two, own = seen
    assert not torch.equal(one, two)
    assert not torch.equal(one, own)


def test_half_of_the_channels_of_every_map_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen = learner(**UNIMATCH), []
    decode = method.student.decode
    monkeypatch.setattr(method.student, "decode", lambda maps: seen.append(maps) or decode(maps))
    torch.manual_seed(0)
    method.training_step(*batch(), 0)
    for maps in seen[0]:
        assert len(maps) == 3 * BATCH
        labelled, weak, perturbed = maps.view(BATCH, 3, *maps.shape[1:]).unbind(dim=1)
        off = ~perturbed.flatten(2).any(dim=2)
        assert 0.2 < off.double().mean() < 0.8
        assert torch.allclose(perturbed[~off], 2 * weak[~off])
        assert not torch.equal(labelled, weak)


def test_two_views_have_complementary_channels_or_all(monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen, encoded = learner(**UNIMATCH_V2), [], []
    decode, encode = method.student.decode, method.student.encode
    monkeypatch.setattr(method.student, "decode", lambda maps: seen.append(maps) or decode(maps))
    monkeypatch.setattr(
        method.student, "encode", lambda images: encoded.append(encode(images)) or encoded[-1]
    )
    for seed in range(5):
        torch.manual_seed(seed)
        method.training_step(*batch(), 0)
        untouched = []
        for maps, before in zip(seen[-1], encoded[-1], strict=True):  # of the strong views
            pairs = (each.view(BATCH, 2, *each.shape[1:]).unbind(dim=1) for each in (maps, before))
            (one, two), (whole_one, whole_two) = pairs
            kept = one.flatten(2).any(dim=2), two.flatten(2).any(dim=2)
            same = [
                torch.equal(one[i], whole_one[i]) and torch.equal(two[i], whole_two[i]) for i in range(BATCH)
            ]
            alone = torch.tensor(same)
            untouched.append(alone)
            for i in range(BATCH):
                if not alone[i]:
                    assert torch.equal(kept[0][i], ~kept[1][i])
                    assert torch.allclose(one[i][kept[0][i]], 2 * whole_one[i][kept[0][i]])
                    assert torch.allclose(two[i][kept[1][i]], 2 * whole_two[i][kept[1][i]])
            assert alone.sum() == BATCH // 2
        assert all(torch.equal(each, untouched[0]) for each in untouched)


# --- teacher ------------------------------------------------------------------------------------------------


def test_only_a_labelling_teacher_is_kept_and_scored() -> None:
    for mode in MODES:
        method = learner(pseudo_labels=mode)
        expected = ["student", "teacher"] if mode == "teacher" else ["student"]
        assert list(method.networks()) == expected


@pytest.mark.parametrize(("step", "share"), [(0, 1.0), (1, 0.5), (3, 0.25), (900, 0.1)])
def test_the_teacher_is_the_true_average_until_the_decay_is_reached(step: int, share: float) -> None:
    method = learner(pseudo_labels="teacher", teacher_decay=0.9)
    assert method.teacher is not None
    before = copy.deepcopy(method.teacher.state_dict())
    method.after_step(step)
    student = method.student.state_dict()
    for name, value in method.teacher.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value, before[name] + share * (student[name] - before[name]), atol=1e-6)


# --- options ------------------------------------------------------------------------------------------------


def test_hard_examples_reach_the_supervised_loss_alone() -> None:
    def logs(**options: Any) -> dict[str, float]:
        torch.manual_seed(0)
        return {name: log.item() for name, log in learner(**options).training_step(*batch(), 0)[1].items()}

    plain, hard = logs(), logs(hard_examples=HardExamples(pixels=20, threshold=0.1))
    assert {name for name in plain if plain[name] != hard[name]} == {"supervised"}
    assert hard["supervised"] > plain["supervised"]


@pytest.mark.parametrize(
    "changes",
    [
        {"pseudo_labels": "best"},
        {"threshold": 1.5},
        {"strong_views": 0},
        {"strong_weight": -1.0},
        {"feature_weight": -1.0},
        {"feature_dropout": 1.0},
        {"teacher_decay": 1.1},
        {"complementary_dropout": True},  # of one view
    ],
)
def test_an_option_out_of_range_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Config(**changes)


@pytest.mark.parametrize("options", [*({"pseudo_labels": mode, **UNIMATCH} for mode in MODES), UNIMATCH_V2])
def test_a_step_never_waits_for_the_device(options: dict[str, Any]) -> None:
    method = learner(hard_examples=HardExamples(pixels=20), **options)
    batches = batch()
    with Waits() as waits:
        loss, _ = method.training_step(*batches, 0)
        loss.backward()
        method.after_step(0)
    assert waits.found == set()


# --- documentation ------------------------------------------------------------------------------------------


def test_the_walk_through_quotes_this_file() -> None:
    page = (ROOT / "docs" / "adding-a-method.md").read_text()
    source = (ROOT / "semiseg" / "methods" / "fixmatch.py").read_text()
    quotes = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(quotes) > 5
    for quote in quotes:
        assert quote in source
