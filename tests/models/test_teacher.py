import math

import pytest
import torch
from torch import nn

from semiseg.models import teacher


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.0),  # the true average of one: the student itself
        (1, 1 / 2),
        (2, 2 / 3),
        (199, 0.995),  # 1 - 1/200; the cosine is above it by 1.2e-9
        (50_000, 0.9975),  # half-way: 1 - 0.005 / 2
        (75_000, 1 - 0.005 * (1 - math.sqrt(0.5)) / 2),
        (100_000, 1 - 1 / 100_001),  # the cosine has arrived at 1
    ],
)
def test_the_decay_starts_as_the_true_average_and_ends_at_one(step: int, expected: float) -> None:
    assert teacher.decay(step, 100_000) == pytest.approx(expected, abs=1e-8)


def test_the_released_codes_average_leaves_its_start_ten_times_faster() -> None:
    assert teacher.decay(1, 100_000, rate=10) == pytest.approx(10 / 11)


def test_the_decay_never_falls() -> None:
    decays = [teacher.decay(step, 500) for step in range(500)]
    assert decays == sorted(decays)


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    student = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    follower = teacher.frozen_copy(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    student(torch.randn(4, 2))  # moves the student's statistics
    return student, follower


def test_parameters_and_statistics_move_towards_the_student() -> None:
    student, follower = networks()
    before = {name: value.clone() for name, value in follower.state_dict().items()}
    teacher.follow(follower, student, 0.75)
    for name, value in follower.state_dict().items():
        ours = student.state_dict()[name]
        if name.endswith("num_batches_tracked"):
            assert torch.equal(value, ours)
        else:
            assert torch.allclose(value, 0.75 * before[name] + 0.25 * ours), name


def test_statistics_can_be_left_alone() -> None:
    student, follower = networks()
    before = {name: value.clone() for name, value in follower.named_buffers()}
    teacher.follow(follower, student, 0.5, buffers=False)
    assert all(torch.equal(value, before[name]) for name, value in follower.named_buffers())
    assert not torch.equal(follower[0].weight, student[0].weight)


def test_decay_zero_makes_the_student_and_one_keeps_the_teacher() -> None:
    student, follower = networks()
    before = follower[0].weight.clone()
    teacher.follow(follower, student, 1.0)
    assert torch.equal(follower[0].weight, before)
    teacher.follow(follower, student, 0.0)
    assert torch.equal(follower[0].weight, student[0].weight)


def test_the_copy_takes_no_gradient_and_leaves_the_student_trainable() -> None:
    student, follower = networks()
    assert not any(parameter.requires_grad for parameter in follower.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
