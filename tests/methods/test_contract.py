"""What the engine relies on, for every file of semiseg/methods/."""

from pathlib import Path

import pytest
import torch

from semiseg.base.parameters import Geometry
from semiseg.methods import contract
from semiseg.methods.contract import Labelled, Method, Task, Unlabelled
from semiseg.training import step as learning
from tests.miniature import METHODS
from tests.tiny import tiny_network

CLASSES, BATCH, CROP = 4, 2, 32
STEPS = 10_000
MOMENTS = (0, 1_500, 2_500, 9_999)  # before, while and after the schedules of the papers set in
GEOMETRY = Geometry(base_size=40, scale=(0.8, 1.5), crop=CROP)


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def build(name: str) -> Method:
    torch.manual_seed(0)
    student = tiny_network(CLASSES, 8, 4)
    config = contract.module(name).Config()
    return contract.build(name, student, config, Task(STEPS, 4, background=0))


def batch(name: str) -> tuple[Labelled, Unlabelled | None]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(BATCH, 3, CROP, CROP, generator=generator)
    masks = torch.randint(CLASSES, (BATCH, CROP, CROP), generator=generator)
    masks[:, :4] = contract.IGNORE
    view = contract.views(name, contract.module(name).Config(), GEOMETRY)
    if view is None:
        return Labelled(images, masks), None
    raw = torch.randint(256, (BATCH, 3, 36, 40), dtype=torch.uint8, generator=generator)
    views = [view(image, generator) for image in raw]
    stacked = {key: torch.stack([each[key] for each in views]) for key in views[0]}
    return Labelled(images, masks), {
        key: each.float() / 255 if each.dtype == torch.uint8 and each.ndim == 4 else each
        for key, each in stacked.items()
    }


def take_step(learner: Method, name: str, step: int) -> tuple[torch.Tensor, contract.Logs]:
    labelled, unlabelled = batch(name)
    learning.seed_everything(0, step)
    return learner.training_step(labelled, unlabelled, step)


def test_a_step_gives_a_finite_loss_and_the_same_detached_logs(name: str) -> None:
    learner, seen = build(name), set()
    for step in MOMENTS:
        loss, logs = take_step(learner, name, step)
        assert loss.shape == ()
        assert torch.isfinite(loss)
        assert loss.requires_grad
        for log in logs.values():
            assert log.shape == ()
            assert not log.requires_grad
            assert torch.isfinite(log)
        seen.add(tuple(logs))
        learner.after_step(step)
    assert len(seen) == 1
    assert "loss" not in seen.pop()  # the engine's own


def test_gradients_reach_the_whole_student_and_never_the_teacher(name: str) -> None:
    learner = build(name)
    for step in MOMENTS:
        learner.zero_grad(set_to_none=True)
        loss, _ = take_step(learner, name, step)
        loss.backward()
        for key, parameter in learner.student.named_parameters():
            assert parameter.grad is not None, key
        for parameter in learner.teacher.parameters() if learner.teacher else ():
            assert not parameter.requires_grad
            assert parameter.grad is None


def test_a_step_is_a_function_of_state_seed_and_step(name: str) -> None:
    one, other = build(name), build(name)
    for step in MOMENTS:
        loss, _ = take_step(one, name, step)
        again, _ = take_step(other, name, step)
        assert torch.equal(loss, again)


def test_a_state_dict_restores_everything(name: str, tmp_path: Path) -> None:
    learner = build(name)
    for step in MOMENTS[:-1]:
        take_step(learner, name, step)
        learner.after_step(step)
    torch.save(learner.state_dict(), tmp_path / "state.pt")
    restored = build(name)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected, _ = take_step(learner, name, MOMENTS[-1])
    loss, _ = take_step(restored, name, MOMENTS[-1])
    assert torch.equal(loss, expected)


def test_after_a_step_only_the_teacher_has_moved(name: str) -> None:
    learner = build(name)
    before = {key: value.clone() for key, value in learner.student.state_dict().items()}
    learner.after_step(0)
    after = learner.student.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_predictor_is_one_of_the_scored_networks(name: str) -> None:
    learner = build(name)
    assert learning.headline(learner) in learning.networks(learner)


def test_it_trains_under_bf16_autocast(name: str) -> None:
    learner = build(name)
    for step in MOMENTS:
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = take_step(learner, name, step)
        loss.backward()
        assert torch.isfinite(loss)
