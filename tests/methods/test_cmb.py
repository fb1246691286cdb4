import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from semiseg.base import parameters
from semiseg.base.parameters import Geometry, Protocol
from semiseg.methods import cmb
from semiseg.methods.cmb import Config, Method
from semiseg.methods.contract import IGNORE, Labelled, Task
from tests.methods.waits import Waits
from tests.project import ROOT
from tests.tiny import tiny_network

CLASSES, BATCH, CROP = 4, 3, 32
STEP = 150  # after the ramp-up
SMALL = Config(ramp_up_steps=100, memory_lead_steps=50, dim=16, memory_size=8)


def learner(config: Config = SMALL, **changes: Any) -> Method:
    torch.manual_seed(0)
    method = Method(
        lambda: tiny_network(CLASSES), dataclasses.replace(config, **changes), Task(1000, 12, None, 30)
    )
    method.memory.features.copy_(torch.randn(method.memory.features.shape))
    method.memory.count.fill_(method.config.memory_size)
    return method


def batch() -> tuple[Labelled, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(2, BATCH, 3, CROP, CROP, generator=generator)
    masks = torch.randint(CLASSES, (BATCH, CROP // 8, CROP // 8), generator=generator)
    masks = masks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    masks[:, :3] = IGNORE
    padding = torch.zeros(BATCH, CROP, CROP, dtype=torch.uint8)
    padding[:, :, 25:] = 255
    return Labelled(images[0], masks), {"image": images[1], "mask": padding}


def take_step(method: Method, step: int = STEP) -> tuple[Tensor, dict[str, float]]:
    torch.manual_seed(step)
    loss, logs = method.training_step(*batch(), step)
    return loss, {name: float(log) for name, log in logs.items()}


# --- schedules ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "filled", "contrasted"),
    [(49, False, False), (50, True, False), (99, True, False), (100, True, True)],
)
def test_the_memory_fills_before_the_contrast_starts(step: int, filled: bool, contrasted: bool) -> None:
    method = learner(memory_filter=False)
    method.memory.count.zero_()
    _, logs = take_step(method, step)
    assert (logs["memory"] > 0) == filled
    assert (logs["contrast"] > 0) == contrasted


@pytest.mark.parametrize(
    ("step", "filled", "contrasted"),
    [(50, False, False), (51, True, False), (100, True, False), (101, True, True)],
)
def test_the_released_code_starts_everything_a_step_later(step: int, filled: bool, contrasted: bool) -> None:
    method = learner(memory_filter=False, start_late=True)
    method.memory.count.zero_()
    _, logs = take_step(method, step)
    assert (logs["memory"] > 0) == filled
    assert (logs["contrast"] > 0) == contrasted


def protocol(steps: int) -> Protocol:
    return dataclasses.replace(parameters.load(ROOT / "params.yaml").protocols["demo"], steps=steps)


def test_a_ramp_up_that_the_run_does_not_outlive_is_refused_with_both_numbers() -> None:
    SMALL.check(protocol(101))
    with pytest.raises(ValueError, match=r"^ramp_up_steps: 100 .* 100;"):
        SMALL.check(protocol(100))
    with pytest.raises(ValueError, match=r"^ramp_up_steps: 100 .* 101;"):
        dataclasses.replace(SMALL, start_late=True).check(protocol(101))


def test_a_memory_that_would_fill_before_the_run_is_refused_with_both_numbers() -> None:
    dataclasses.replace(SMALL, memory_lead_steps=100).check(protocol(1000))
    with pytest.raises(ValueError, match=r"^memory_lead_steps: 101 .* 100;"):
        dataclasses.replace(SMALL, memory_lead_steps=101).check(protocol(1000))


def test_the_teacher_is_the_student_after_the_first_step_and_the_mean_of_two_after_the_second() -> None:
    method = learner()
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    for step, share in ((0, 1.0), (1, 0.5)):
        before = {name: value.clone() for name, value in method.teacher.state_dict().items()}
        loss, _ = take_step(method, step)
        loss.backward()
        optimiser.step()
        method.after_step(step)
        student = method.student.state_dict()
        for name, value in method.teacher.state_dict().items():
            if value.is_floating_point():
                expected = before[name] + share * (student[name] - before[name])
                assert torch.allclose(value, expected, atol=1e-7), name
    assert not torch.equal(method.teacher.classifier.weight, method.student.classifier.weight)


# --- pseudo-labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [6.0, 0.0])
def test_the_pseudo_label_loss_by_hand(power: float) -> None:
    """Two pixels of probability 1/4 on their pseudo-label, one ignored, one certain: mean of w · log 4."""
    method = learner(confidence_power=power)
    logits = torch.zeros(1, CLASSES, 1, 4)
    logits[0, 2, 0, 3] = 1e4
    pixels = cmb.Pixels(
        torch.zeros(1, 3, 1, 4), torch.tensor([[[0, 1, IGNORE, 2]]]), torch.tensor([[[0.9, 0.5, 0.7, 1.0]]])
    )
    loss = method.pseudo_label_loss(logits, pixels, None)
    expected = (0.9**power + 0.5**power) * math.log(4) / 4
    assert float(loss) == pytest.approx(expected, rel=1e-6)


# --- memory ---------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """A network whose features are its images and whose logits are given."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given

    def features(self, images: Tensor) -> Tensor:
        return images

    def logits(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        return self.given


class First(nn.Module):
    """Returns its input, or its first column as scores."""

    def __init__(self, column: bool) -> None:
        super().__init__()
        self.column = column

    def forward(self, rows: Tensor, which: Tensor) -> Tensor:
        return rows[:, 0] if self.column else rows


# one image of seven pixels, each known by its attention, the first number of its feature
ATTENTION = [0.1, 0.9, 0.5, 0.3, 0.8, 0.7, 0.6]
LABELS = [1, 1, 1, 2, 1, IGNORE, 1]
PREDICTED = [1, 1, 1, 1, 1, 1, 1]
CONFIDENCE = [0.99, 0.99, 0.99, 0.99, 0.90, 0.99, 0.96]


def entered(budget: int, **changes: Any) -> list[float]:
    """Return the contents of class 1's memory after the example's step."""
    method = learner(dim=3, **changes)
    method.memory.count.zero_()
    odds = torch.tensor(CONFIDENCE)
    logits = torch.zeros(1, CLASSES, 1, 7)
    logits[0, torch.tensor(PREDICTED), 0, torch.arange(7)] = torch.log(odds / (1 - odds) * (CLASSES - 1))
    method.teacher, method.teacher_projection = Plain(logits), First(column=False)
    method.teacher_attention = First(column=True)
    method.budget = lambda images: budget
    features = torch.tensor(ATTENTION).view(1, 1, 1, 7).repeat(1, 3, 1, 1)
    pixels = cmb.Pixels(features, torch.tensor(LABELS).view(1, 1, 7), torch.ones(1, 1, 7))
    torch.manual_seed(0)
    method.remember(pixels)
    rows, labels = method.memory.stacked()
    return [round(float(row[0]), 4) for row, label in zip(rows, labels, strict=True) if label == 1]


def test_correct_and_confident_pixels_enter_highest_attention_first() -> None:
    assert entered(9) == [0.9, 0.6, 0.5, 0.1]  # not 0.3 (wrong), 0.8 (unsure), 0.7 (ignored)
    assert entered(2) == [0.9, 0.6]


def test_the_released_code_keeps_the_lowest_attention() -> None:
    assert entered(2, memory_order="lowest") == [0.1, 0.5]


def test_the_released_code_ranks_a_class_only_where_its_pixels_are_too_many() -> None:
    assert entered(4, memory_rank_all=False) == [0.1, 0.9, 0.5, 0.6]  # raster order
    assert entered(3, memory_rank_all=False) == [0.9, 0.6, 0.5]


@pytest.mark.parametrize("training", [False, True])
def test_a_single_good_pixel_is_no_feature_of_a_teacher_in_training_mode(training: bool) -> None:
    """Batch norm would map it to its bias, and the memory would hold a vector that no pixel has."""
    for good, expected in ((1, 0 if training else 1), (2, 2)):
        method = learner(teacher_training_mode=training, memory_filter=False, memory_size=64)
        method.memory.count.zero_()
        labels = torch.full((1, CROP, CROP), IGNORE)
        labels[0, 0, : 4 * good] = 1  # features are four pixels apart
        method.teacher.train(training)
        method.teacher_projection.train(training)
        method.remember(cmb.Pixels(torch.rand(1, 3, CROP, CROP), labels, torch.ones(1, CROP, CROP)))
        assert method.memory.count.tolist() == [0, expected, 0, 0]


def test_without_the_filter_all_labelled_pixels_compete() -> None:
    assert entered(3, memory_filter=False) == [0.9, 0.8, 0.6]


def test_confidence_only_enters_good_pixels_in_any_order() -> None:
    assert sorted(entered(9, memory_order="random")) == [0.1, 0.5, 0.6, 0.9]
    assert set(entered(2, memory_order="random")) < {0.1, 0.5, 0.6, 0.9}


def test_neither_filter_nor_order() -> None:
    assert sorted(entered(9, memory_filter=False, memory_order="random")) == [0.1, 0.5, 0.6, 0.8, 0.9]


@pytest.mark.parametrize(
    ("size", "labelled", "classes_held", "images", "expected"),
    [
        (256, 100, "all", 5, 5 * 3),  # round(2.56)
        (256, 744, "all", 5, 5),  # at least one an image
        (256, 100, "few", 5, 5 * 4),  # int(4 / 3 * 3)
        (256, 8, "few", 2, 2 * 42),  # int(4 / 3 * 32)
        (64, 16, "all", 2, 2 * 4),
    ],
)
def test_the_budget_of_a_step(
    size: int, labelled: int, classes_held: str, images: int, expected: int
) -> None:
    config = Config(memory_size=size, images_hold=classes_held)
    method = Method(lambda: tiny_network(CLASSES), config, Task(1000, labelled, None))
    assert method.budget(images) == expected


# --- gradients ------------------------------------------------------------------------------------------


def reached(method: Method) -> set[str]:
    """Return the submodules that a gradient other than zero reached."""
    return {
        name.split(".")[0]
        for name, parameter in method.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


@pytest.mark.parametrize(
    ("attention", "trained"),
    [
        ("both", {"prediction_attention", "memory_attention"}),
        ("prediction", {"prediction_attention"}),
        ("none", set()),
    ],
)
def test_gradients_reach_what_the_paper_trains_and_nothing_else(attention: str, trained: set[str]) -> None:
    method = learner(attention=attention, memory_order="random")
    loss, _ = take_step(method)
    loss.backward()
    assert reached(method) == {"student", "projection", "prediction"} | trained
    everything = {name.split(".")[0] for name, p in method.named_parameters() if p.requires_grad}
    assert everything == reached(method)


def test_before_the_contrast_only_the_student_trains() -> None:
    method = learner()
    loss, _ = take_step(method, step=60)
    loss.backward()
    assert reached(method) == {"student"}


def test_attention_weighs_features_and_does_not_move_them() -> None:
    """With the attention's scores as constants the features take the same gradient."""
    gradients = []
    for frozen in (False, True):
        method = learner()
        features = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        for attention in (method.prediction_attention, method.memory_attention) if frozen else ():
            attention.requires_grad_(False)
        method.contrast(features, batch()[0].masks[:2])[0].backward()
        gradients.append(features.grad)
    assert gradients[0].any()
    assert torch.equal(*gradients)


def test_ignored_pixels_stay_out_of_the_contrast() -> None:
    features = torch.randn(1, 8, 4, 4)
    labels = torch.randint(CLASSES, (1, 4, 4))
    labels[0, 1] = IGNORE
    changed = features.clone()
    changed[0, :, 1] = 100
    one, other = (learner().contrast(each, labels)[0] for each in (features, changed))
    assert torch.equal(one, other)  # the batch norms of the heads do not see them either


def test_the_spread_of_the_attention_is_that_of_each_classs_weights() -> None:
    labels = torch.tensor([0, 0, 0, 2, 2, 3, 0, IGNORE, -1])
    scores = torch.tensor([0.2, 0.4, 0.9, 0.5, 0.5, 0.7, 0.1, 0.9, 0.1])
    spreads = []
    for each in (0, 2, 3):  # class 1 is absent
        weights = scores[labels == each] / scores[labels == each].mean()
        spreads.append(weights.std(correction=0).item())
    assert spreads[1] == 0
    assert cmb.attention_spread(scores, labels, 4).item() == pytest.approx(sum(spreads) / 3, rel=1e-5)
    nothing = torch.full_like(labels, IGNORE)
    assert cmb.attention_spread(scores, nothing, 4) == 0
    assert cmb.attention_spread(torch.ones(9), labels, 4) == 0
    close = 0.7 + 1e-5 * torch.randn(1000)
    exact = (close.double() / close.double().mean()).std(correction=0).item()
    one_class = torch.zeros(1000, dtype=torch.int64)
    assert cmb.attention_spread(close, one_class, 4).item() == pytest.approx(exact, rel=1e-4)


@pytest.mark.parametrize(
    ("attention", "weighed"),
    [("both", (True, True)), ("prediction", (True, False)), ("none", (False, False))],
)
def test_the_logs_say_which_sides_are_weighed(attention: str, weighed: tuple[bool, bool]) -> None:
    _, logs = take_step(learner(attention=attention, memory_order="random"))
    assert (logs["attention_prediction"] > 0, logs["attention_memory"] > 0) == weighed


# --- switches -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "moved"),
    [
        ({"pseudo_weight": 0.0}, set()),
        ({"entropy_weight": 0.0}, set()),
        ({"contrast_weight": 0.0}, {"contrast"}),
        ({"confidence_power": 0.0}, {"pseudo"}),
        ({"entropy_normalised": True}, {"entropy"}),
        ({"attention": "prediction"}, {"contrast"}),
        ({"attention": "none", "memory_order": "random"}, {"contrast"}),
        ({"mix_unlabelled": 0.0}, {"pseudo", "entropy", "contrast"}),
        ({"mix_extra_classes": 1}, {"supervised", "pseudo", "entropy", "contrast"}),
        ({"teacher_training_mode": True}, {"pseudo", "entropy", "contrast"}),
        ({"teacher_rate": 10.0}, set()),
        ({"class_balance": True}, {"supervised", "pseudo"}),
        ({"memory_filter": False}, {"contrast"}),
        ({"memory_size": 64}, {"contrast"}),
        ({"memory_rank_all": False, "memory_filter": False}, {"contrast"}),
        (
            {"start_late": True, "ramp_up_steps": STEP, "memory_lead_steps": 0},
            {"pseudo", "entropy", "contrast"},
        ),
        ({"strong_first": True}, set()),
        ({"least_features": 9}, {"contrast"}),  # the memory holds eight
        ({"weak_jitter_probability": 1.0}, {"supervised", "contrast"}),
        ({"weak_jitter": (0.0, 0.0, 0.0, 0.0)}, {"supervised", "contrast"}),
        ({"strong_scale": (0.5, 0.5)}, {"pseudo", "entropy", "contrast"}),
        ({"strong_scale_probability": 0.0}, {"pseudo", "entropy", "contrast"}),
        ({"strong_flip_probability": 1.0}, {"pseudo", "entropy", "contrast"}),
        ({"strong_jitter": (0.1, 0.0, 0.0, 0.0)}, {"pseudo", "entropy", "contrast"}),
        ({"strong_jitter_probability": 0.0}, {"pseudo", "entropy", "contrast"}),
        ({"jitter_additive": True}, {"supervised", "pseudo", "entropy", "contrast"}),
        ({"strong_blur_probability": 1.0}, {"pseudo", "entropy", "contrast"}),
    ],
)
def test_a_switch_moves_the_losses_it_names_and_no_other(changes: dict[str, Any], moved: set[str]) -> None:
    (_, before), (_, after) = take_step(learner()), take_step(learner(**changes))
    losses = ("supervised", "pseudo", "entropy", "contrast")
    assert {name for name in losses if before[name] != after[name]} == moved


def test_the_total_is_the_weighted_sum() -> None:
    for weights in ((1, 0.01, 0.1), (0, 0.5, 2), (3, 0, 0), (0, 0, 0)):
        names = ("pseudo_weight", "entropy_weight", "contrast_weight")
        loss, logs = take_step(learner(**dict(zip(names, map(float, weights), strict=True))))
        parts = (logs[name] for name in ("pseudo", "entropy", "contrast"))
        expected = logs["supervised"] + sum(w * part for w, part in zip(weights, parts, strict=True))
        assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_normalised_entropy_is_divided_by_log_c() -> None:
    (_, before), (_, after) = take_step(learner()), take_step(learner(entropy_normalised=True))
    assert after["entropy"] == pytest.approx(before["entropy"] / math.log(CLASSES))


def test_the_teachers_mode_is_its_own_whatever_the_students_is() -> None:
    for training in (False, True):
        method = learner(teacher_training_mode=training).train()
        take_step(method)
        networks = (method.teacher, method.teacher_projection, method.teacher_attention)
        assert all(network.training == training for network in networks)
        assert method.student.training


def test_in_evaluation_mode_the_teachers_statistics_follow_the_students() -> None:
    for training in (False, True):
        method = learner(teacher_training_mode=training)
        take_step(method)
        own = method.teacher.backbone.layers[1].running_mean.clone()
        method.after_step(STEP)
        moved = not torch.equal(method.teacher.backbone.layers[1].running_mean, own)
        assert moved != training


def test_class_weights_by_hand() -> None:
    """Counts 2, 8 and 18 with a class never seen: √(8/2), 1, √(8/18), and the largest for the unseen."""
    weights = cmb.median_frequency_weights(torch.tensor([2.0, 8.0, 18.0]))
    assert torch.allclose(weights, torch.tensor([2.0, 1.0, 2 / 3]))
    weights = cmb.median_frequency_weights(torch.tensor([4.0, 16.0, 4.0, 0.0]))
    assert torch.allclose(weights, torch.tensor([1.0, 0.5, 1.0, 1.0]))


def test_class_balance_waits_for_a_pass_over_the_unlabelled_images() -> None:
    method = learner(class_balance=True, ramp_up_steps=3, memory_lead_steps=1)
    labels = torch.tensor([[[0, 0, 1, IGNORE]]]).expand(BATCH, 1, 4)
    for step in range(10):  # 30 images, 3 a step
        assert method.class_weights(labels, labels, step) is None
    weights = method.class_weights(labels, labels, 10)
    assert torch.equal(method.label_frequencies, torch.tensor([2.0, 1.0, 0.0, 0.0]))
    assert weights[1] / weights[0] == pytest.approx(math.sqrt(2))
    assert weights[2] == weights[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "memory"}, "attention"),
        ({"memory_order": "first"}, "memory_order"),
        ({"images_hold": "some"}, "images_hold"),
        ({"attention": "none"}, "memory_order must be random"),
        ({"pseudo_weight": -1.0}, "pseudo_weight"),
        ({"entropy_weight": math.nan}, "entropy_weight"),
        ({"contrast_weight": math.inf}, "contrast_weight"),
        ({"confidence_power": -0.5}, "confidence_power"),
        ({"ramp_up_steps": -1}, "ramp_up_steps"),
        ({"memory_lead_steps": -1}, "memory_lead_steps"),
        ({"teacher_decay": 1.5}, "teacher_decay"),
        ({"teacher_rate": math.nan}, "teacher_rate"),
        ({"dim": 0}, "dim"),
        ({"memory_size": -3}, "memory_size"),
        ({"least_features": 0}, "least_features"),
        ({"memory_confidence": 1.1}, "memory_confidence"),
        ({"mix_labelled": -0.1}, "mix_labelled"),
        ({"mix_unlabelled": 2.0}, "mix_unlabelled"),
        ({"mix_extra_classes": -1}, "mix_extra_classes"),
        ({"weak_jitter": (0.1, 0.1, -0.1, 0.0)}, "weak_jitter"),
        ({"weak_jitter_probability": math.nan}, "weak_jitter_probability"),
        ({"strong_scale": (1.75, 0.75)}, "strong_scale"),
        ({"strong_scale": (0.0, 1.0)}, "strong_scale"),
        ({"strong_scale_probability": 1.1}, "strong_scale_probability"),
        ({"strong_flip_probability": -0.5}, "strong_flip_probability"),
        ({"strong_jitter": (0.1, 0.1, 0.1, 0.6)}, "strong_jitter"),
        ({"strong_jitter_probability": 8.0}, "strong_jitter_probability"),
        ({"strong_blur": (0.1, math.inf)}, "strong_blur"),
        ({"strong_blur_probability": -1.0}, "strong_blur_probability"),
    ],
)
def test_an_option_that_means_nothing_is_refused_by_its_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config(**changes)


def test_the_strong_views_are_blurred_by_axis_on_request() -> None:
    """Deviation 0.1 down columns leaves them alone; 1.5 along rows does not."""
    config = {
        "strong_scale_probability": 0.0,
        "strong_flip_probability": 0.0,
        "strong_jitter_probability": 0.0,
    }
    method = learner(**config, strong_blur_probability=1.0, blur_by_axis=True)
    stripes = (torch.arange(CROP) % 2.0).expand(1, 3, CROP, CROP)
    for images, kept in ((stripes, False), (stripes.mT, True)):
        anchor = cmb.Pixels(images, torch.zeros(1, CROP, CROP, dtype=torch.int64), torch.ones(1, CROP, CROP))
        view = method.strong_view(anchor, step=0)
        assert torch.allclose(view.images, images, atol=1e-4) == kept


def test_statistics_end_with_the_second_pass_of_the_student() -> None:
    """Momentum 0.1: after two passes the running mean holds 0.1 of the second and 0.09 of the first."""
    found = []
    for first in (False, True):
        method = learner(strong_first=first).train()
        seen: list[Tensor] = []
        convolution, norm = method.student.backbone.layers[:2]
        convolution.register_forward_hook(lambda module, given, output, seen=seen: seen.append(output))
        take_step(method)
        one, two = (each.detach().mean(dim=(0, 2, 3)) for each in seen)
        assert torch.allclose(norm.running_mean, 0.09 * one + 0.1 * two, atol=1e-6)
        found.append([len(each) for each in seen])
    assert found == [[BATCH, 2 * BATCH], [2 * BATCH, BATCH]]


# --- views and speed ------------------------------------------------------------------------------------


def test_the_weak_view_marks_its_padding() -> None:
    view = cmb.views(Config(), Geometry(base_size=20, scale=(1.0, 1.0), crop=32))
    views = view(torch.full((3, 20, 15), 7, dtype=torch.uint8), torch.Generator().manual_seed(0))
    assert views["image"].shape == (3, 32, 32)
    assert views["mask"].shape == (32, 32)
    valid = views["mask"] == 0
    assert int(valid.sum()) == 20 * 15
    assert (views["image"][:, valid] == 7).all()
    assert (views["mask"][~valid] == 255).all()


def test_a_step_never_waits_for_the_device() -> None:
    for changes in ({}, {"class_balance": True, "teacher_training_mode": True}):
        method = learner(**changes)
        with Waits() as waits:
            torch.manual_seed(0)
            loss, _ = method.training_step(*batch(), STEP)
            loss.backward()
            method.after_step(STEP)
        assert waits.found == set()
