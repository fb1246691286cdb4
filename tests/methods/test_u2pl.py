import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from semiseg.losses import cross_entropy, reliable_cross_entropy
from semiseg.methods.common import CutMix, apart, together
from semiseg.methods.contract import IGNORE, Labelled, Task
from semiseg.methods.u2pl import Config, Method
from semiseg.models import teacher
from tests.methods.waits import Waits
from tests.tiny import tiny_network

CLASSES, BATCH, CROP, STEPS, DIM = 6, 2, 32, 1000, 8
SMALL = Config(
    dim=DIM, bank_size=600, bank_step=500, anchors=400, negatives=4, high_rank=5, confidence=0.17,
    cutmix=CutMix(probability=0.0, area=(0.5, 0.5), aspect=None),
)  # fmt: skip
STEP = 250  # where 15 % of the pixels are unreliable
ROWS = BATCH * (CROP // 4) ** 2


def learner(config: Config = SMALL, **changes: Any) -> Method:
    torch.manual_seed(0)
    task = Task(STEPS, labelled_images=12, background=0, unlabelled_images=30)
    method = Method(lambda: tiny_network(CLASSES), dataclasses.replace(config, **changes), task).train()
    with torch.no_grad():
        method.student.classifier.weight.mul_(3)
        method.teacher.classifier.weight.copy_(method.student.classifier.weight)
    return method


def batch() -> tuple[Labelled, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, BATCH, 3, CROP, CROP, generator=generator)
    masks = torch.randint(CLASSES, (BATCH, CROP // 8, CROP // 8), generator=generator)
    masks = masks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    masks[:, :6] = IGNORE
    padding = torch.zeros(BATCH, CROP, CROP, dtype=torch.uint8)
    padding[:, :, 25:] = 255
    return Labelled(images[0], masks), {"image": images[1], "mask": padding}


def take_step(method: Method, step: int = STEP) -> tuple[Tensor, dict[str, float]]:
    torch.manual_seed(step)
    loss, logs = method.training_step(*batch(), step)
    return loss, {name: float(log) for name, log in logs.items()}


# --- schedules ------------------------------------------------------------------------------------------


def test_the_first_steps_are_supervised() -> None:
    method = learner(start_share=0.05)
    for step, supervised_only in ((0, True), (49, True), (50, False)):
        loss, logs = take_step(method, step)
        assert (loss.item() == logs["supervised"]) == supervised_only
        assert (logs["unsupervised"] == 0) == supervised_only
        assert (logs["bank"] == 0) == supervised_only


def test_the_teacher_is_the_student_until_the_start_and_then_its_average() -> None:
    method = learner(start_share=0.05)
    moved = {}
    for step in (0, 49, 50, 51, 52, 500):
        with torch.no_grad():
            for parameter in (*method.teacher.parameters(), *method.teacher_representation.parameters()):
                parameter.zero_()
            for parameter in (*method.student.parameters(), *method.representation.parameters()):
                parameter.fill_(1.0)
        method.after_step(step)
        pairs = (*method.teacher.parameters(), *method.teacher_representation.parameters())
        values = torch.cat([parameter.flatten() for parameter in pairs])
        assert torch.allclose(values, values[0])
        moved[step] = values[0].item()
    assert moved == pytest.approx({0: 1.0, 49: 1.0, 50: 1.0, 51: 1 / 2, 52: 1 / 3, 500: 0.01})


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_the_teachers_statistics_are_its_own_or_the_students_average(mode: str) -> None:
    method = learner(teacher_mode=mode)
    before = method.teacher.backbone.layers[1].running_mean.clone()
    take_step(method)
    own = method.teacher.backbone.layers[1].running_mean.clone()
    assert torch.equal(before, own) == (mode == "eval")
    method.after_step(STEP)
    assert torch.equal(own, method.teacher.backbone.layers[1].running_mean) == (mode == "train")


@pytest.mark.parametrize("step", [20, 250, 500, 999])
def test_the_share_of_reliable_pixels_rises_to_all(step: int) -> None:
    _, logs = take_step(learner(), step)
    assert logs["reliable"] == pytest.approx(1 - 0.2 * (1 - step / STEPS), abs=1e-3)


def test_the_total_is_the_weighted_sum() -> None:
    for weight in (0.0, 0.1, 1.0):
        loss, logs = take_step(learner(contrast_weight=weight))
        expected = logs["supervised"] + logs["unsupervised"] + weight * logs["contrast"]
        assert logs["contrast"] > 0
        assert loss.item() == pytest.approx(expected, rel=1e-6)


# --- a step, position by position -----------------------------------------------------------------------


class Plain(nn.Module):
    """A representation head that changes nothing."""

    def forward(self, features: Tensor) -> Tensor:
        return features


@dataclasses.dataclass
class Seen:
    """The expected values at every position of the labelled images, then of the unlabelled ones."""

    rows: list[Tensor]  # representations
    p: list[list[float]]
    labels: list[int]
    reliable: list[bool]
    unreliable: list[bool]
    unsupervised: float
    supervised: float

    def labelled(self, i: int) -> bool:
        return i < ROWS


def seen(method: Method) -> Seen:
    """Return those of a step without CutMix, whose teacher still equals the student."""
    labelled, unlabelled = batch()
    images, mask = unlabelled["image"], unlabelled["mask"]
    labeller = teacher.frozen_copy(method.student).eval()
    labels = labeller(images).argmax(dim=1).masked_fill(mask == 255, IGNORE)
    with torch.no_grad():
        features = method.student.features(together(labelled.images, images))
        logits = method.student.classify(features)
    parts = [apart(values, BATCH, BATCH) for values in (features, logits)]
    large = [interpolate(each, (CROP, CROP), mode="bilinear").double() for each in parts[1]]
    p = large[1].softmax(dim=1)
    entropy = -(p * p.log()).sum(dim=1)
    known = labels != IGNORE
    share = 0.2 * (1 - STEP / STEPS)
    limit = np.percentile(entropy[known].numpy(), 100 * (1 - share))
    reliable, unreliable = known & (entropy < limit), known & (entropy >= limit)

    def small(values: Tensor) -> list[Any]:
        return (
            interpolate(values[:, None].float(), features.shape[-2:])[:, 0]
            .flatten()
            .to(values.dtype)
            .tolist()
        )

    nothing = [False] * ROWS
    return Seen(
        rows=[row for part in parts[0] for row in part.permute(0, 2, 3, 1).flatten(0, 2)],
        p=[
            row for part in parts[1] for row in part.softmax(dim=1).permute(0, 2, 3, 1).flatten(0, 2).tolist()
        ],
        labels=small(labelled.masks) + small(labels),
        reliable=nothing + small(reliable),
        unreliable=nothing + small(unreliable),
        unsupervised=reliable_cross_entropy(large[1], labels, reliable).item(),
        supervised=cross_entropy(large[0], labelled.masks).item(),
    )


def is_anchor(of: Seen, i: int, c: int, confidence: float) -> bool:
    return of.labels[i] == c and of.p[i][c] > confidence and (of.labelled(i) or of.reliable[i])


def is_negative(of: Seen, i: int, c: int, config: Config) -> bool:
    rank = sorted(range(CLASSES), key=lambda k: -of.p[i][k]).index(c)
    if of.labelled(i):
        return of.labels[i] != IGNORE and of.labels[i] != c and rank < config.low_rank
    return of.unreliable[i] and config.low_rank <= rank < config.high_rank


def plain(**changes: Any) -> Method:
    method = learner(**changes)
    method.representation, method.teacher_representation = Plain(), Plain()
    return method


def test_the_supervised_losses_are_those_of_the_equations() -> None:
    expected = seen(plain())
    _, logs = take_step(plain())
    assert logs["supervised"] == pytest.approx(expected.supervised, rel=1e-5)
    assert logs["unsupervised"] == pytest.approx(expected.unsupervised, rel=1e-5)


@pytest.mark.parametrize(("low_rank", "high_rank"), [(3, 5), (1, 6), (0, 6), (2, 2)])
def test_the_bank_takes_the_negatives_of_each_class(low_rank: int, high_rank: int) -> None:
    method = plain(low_rank=low_rank, high_rank=high_rank)
    of = seen(method)
    take_step(method)
    for c in range(CLASSES):
        expected = [
            normalize(of.rows[i], dim=0) for i in range(2 * ROWS) if is_negative(of, i, c, method.config)
        ]
        assert method.bank.count[c] == len(expected)
        held = method.bank.features[c, : len(expected)].tolist()
        in_order = sorted([round(value, 4) for value in row.tolist()] for row in expected)
        assert np.allclose(sorted([round(value, 4) for value in row] for row in held), in_order, atol=2e-4)
    assert method.bank.count.sum() > 0


def test_a_step_enters_at_most_so_many_negatives_of_a_class() -> None:
    method = plain(bank_step=5)
    take_step(method)
    assert method.bank.count.max() == 5
    take_step(method, STEP + 1)
    assert method.bank.count.max() == 10


@pytest.mark.parametrize("centre", ["anchors", "all"])
@pytest.mark.parametrize("class_mean", ["all", "present"])
def test_the_contrast_is_that_of_the_equation(
    centre: str, class_mean: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = plain(centre=centre, class_mean=class_mean)
    of, config = seen(method), method.config
    negatives = torch.randn(CLASSES, 1, config.negatives, DIM, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(method.bank, "drawn", lambda rows, each: negatives.expand(CLASSES, rows, each, DIM))
    _, logs = take_step(method)

    def similarity(one: Tensor, other: Tensor) -> float:
        return math.exp(float(one @ other / (one.norm() * other.norm())) / config.temperature)

    total, present = 0.0, 0
    for c in range(CLASSES):
        present += any(is_anchor(of, i, c, -1) for i in range(2 * ROWS))  # candidates, however likely
        anchors = [of.rows[i] for i in range(2 * ROWS) if is_anchor(of, i, c, config.confidence)]
        if not anchors or not any(is_negative(of, i, c, config) for i in range(2 * ROWS)):
            continue
        limit = config.confidence if centre == "anchors" else -1
        centred = [of.rows[i] for i in range(2 * ROWS) if is_anchor(of, i, c, limit)]
        positive = torch.stack(centred).mean(dim=0)
        for anchor in anchors:
            near = similarity(anchor, positive)
            far = sum(similarity(anchor, negative) for negative in negatives[c, 0])
            total -= math.log(near / (near + far)) / len(anchors)
    assert total > 0
    expected = total / (CLASSES if class_mean == "all" else present)
    assert logs["contrast"] == pytest.approx(expected, rel=1e-5)


class Watched(nn.Module):
    """A representation head that changes nothing and keeps its output."""

    def forward(self, features: Tensor) -> Tensor:
        self.given = features * 1
        self.given.retain_grad()
        return self.given


@pytest.mark.parametrize(("pixels", "share"), [("reliable", 0.85), ("most_reliable", 0.15)])
def test_anchors_are_the_reliable_or_the_most_reliable_of_the_unlabelled(pixels: str, share: float) -> None:
    method = plain(anchor_pixels=pixels, confidence=0.0)
    method.representation = Watched()
    labelled, unlabelled = batch()
    nothing = labelled._replace(masks=torch.full_like(labelled.masks, IGNORE))
    method.training_step(nothing, unlabelled, STEP)[0].backward()
    of_labelled, of_unlabelled = apart(method.representation.given.grad.any(dim=1), BATCH, BATCH)
    assert not of_labelled.any()
    known = of_unlabelled[:, :, :6]  # the rest is padding
    assert not of_unlabelled[:, :, 7:].any()
    assert known.float().mean().item() == pytest.approx(share, abs=0.1)


# --- gradients ------------------------------------------------------------------------------------------


def test_gradients_reach_the_student_and_its_representation() -> None:
    method = learner()
    loss, _ = take_step(method)
    loss.backward()
    reached = {name.split(".")[0] for name, each in method.named_parameters() if each.grad is not None}
    assert reached == {"student", "representation"}


def test_cutmix_moves_the_loss_of_pseudo_labels_alone() -> None:
    mixed = CutMix(probability=1.0, area=(0.5, 0.5), aspect=None)
    (_, before), (_, after) = take_step(learner()), take_step(learner(cutmix=mixed))
    assert before["unsupervised"] != after["unsupervised"]


@pytest.mark.parametrize(
    "options", [{}, {"anchor_pixels": "most_reliable", "teacher_mode": "eval", "centre": "all"}]
)
def test_a_step_never_waits_for_the_device(options: dict[str, Any]) -> None:
    method = learner(**options)
    take_step(method)
    with Waits() as waits:
        loss, _ = method.training_step(*batch(), STEP)
        loss.backward()
        method.after_step(STEP)
    assert waits.found == set()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("contrast_weight", -1.0),
        ("start_share", 2.0),
        ("unreliable_share", 1.5),
        ("temperature", 0.0),
        ("anchors", 0),
        ("teacher_mode", "both"),
        ("anchor_pixels", "all"),
        ("centre", "median"),
        ("class_mean", "some"),
        ("bank_step", 30_001),
        ("low_rank", 21),
    ],
)
def test_an_option_out_of_range_is_refused_by_its_name(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{option}"):
        Config(**{option: value})
