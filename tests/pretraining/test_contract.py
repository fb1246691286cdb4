"""Every self-supervised method keeps the contract that pretraining relies on."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from semiseg.base.errors import UserError
from semiseg.base.paths import PretrainingRun
from semiseg.methods.contract import trained
from semiseg.pretraining import common, contract
from semiseg.pretraining.contract import Config, Logs, Method
from semiseg.training.step import seed_everything
from tests.pretraining import recipes
from tests.pretraining.recipes import METHODS, STEPS, learner, recipe, views


@pytest.fixture(params=METHODS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def take_step(method: Method, step: int, seed: int = 0) -> tuple[torch.Tensor, Logs]:
    seed_everything(seed, step)
    return method.training_step(views(seed=step), step)


def test_a_method_has_its_three_public_names_and_every_option_a_default(name: str) -> None:
    module = contract.module(name)
    assert isinstance(module.REVISION, int)
    assert issubclass(module.Method, Method)
    assert issubclass(module.Config, Config)
    assert dataclasses.is_dataclass(module.Config)
    module.Config()


def test_a_step_gives_a_finite_loss_and_the_same_detached_logs(name: str) -> None:
    method, seen = learner(name), set()
    for step in range(3):
        loss, logs = take_step(method, step)
        assert loss.shape == ()
        assert loss.requires_grad
        assert torch.isfinite(loss)
        assert all(log.shape == () and not log.requires_grad for log in logs.values())
        seen.add(tuple(logs))
        method.after_step(step)
    (names,) = seen
    assert not {"loss", "gradient_norm"} & set(names)  # the loop's own


def test_gradients_reach_all_that_is_trained_and_nothing_that_follows(name: str) -> None:
    method = learner(name)
    loss, _ = take_step(method, 0)
    loss.backward()
    assert all(each.grad is not None for each in trained(method))
    assert all(each.grad is None for each in method.parameters() if not each.requires_grad)
    encoder = {id(each) for each in method.encoder().parameters()}
    assert encoder <= {id(each) for each in trained(method)}


def test_a_step_is_a_function_of_state_seed_and_step_and_a_state_dict_restores_it(
    name: str, tmp_path: Path
) -> None:
    one, other = learner(name), learner(name)
    for step in range(3):
        assert torch.equal(take_step(one, step)[0], take_step(other, step)[0])
        one.after_step(step)
        other.after_step(step)
    torch.save(one.state_dict(), tmp_path / "state.pt")
    restored = learner(name)
    restored.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    expected = take_step(one, 3)[0]
    assert torch.equal(take_step(restored, 3)[0], expected)
    assert not torch.equal(take_step(other, 3, seed=1)[0], expected)


def test_after_a_step_nothing_that_is_trained_has_moved(name: str) -> None:
    method = learner(name)
    before = [each.detach().clone() for each in trained(method)]
    method.after_step(0)
    assert all(map(torch.equal, before, trained(method)))


def test_it_trains_under_bf16_autocast(name: str) -> None:
    method = learner(name)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = take_step(method, 0)
    loss.backward()
    assert torch.isfinite(loss)


def test_a_step_leaves_the_views_as_they_were(name: str) -> None:
    batch = views()
    before = {key: each.clone() for key, each in batch.items()}
    learner(name).training_step(batch, 0)
    assert all(torch.equal(batch[key], before[key]) for key in batch)


@pytest.mark.parametrize("name", ["moco", "byol", "densecl", "pixpro"])
def test_the_follower_is_the_moving_average(name: str) -> None:
    method: Any = learner(name)
    followed, follower = (
        (method.query, method.key) if hasattr(method, "key") else (method.online, method.target)
    )
    with torch.no_grad():
        for each in followed.parameters():
            each.add_(1.0)
    before = [each.clone() for each in follower.parameters()]
    step = STEPS // 2
    method.after_step(step)
    decay = method.config.momentum
    if not hasattr(method, "key"):  # half-way along the cosine
        decay = 1 - (1 - decay) / 2
    for old, new, target in zip(before, followed.parameters(), follower.parameters(), strict=True):
        torch.testing.assert_close(target, decay * old + (1 - decay) * new.detach())


def test_the_spread_is_the_deviation_of_the_directions_also_near_collapse() -> None:
    torch.manual_seed(0)
    assert common.spread(torch.randn(4096, 64)) == pytest.approx(1, abs=0.02)
    assert common.spread(torch.randn(1, 64).expand(512, 64)) < 1e-6
    features = torch.randn(1, 64) + 1e-4 * torch.randn(512, 64)
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    exact = unit.std(dim=0, correction=0).mean() * 8
    assert common.spread(features).item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("simclr", {"options": {"temprature": 1}}, r"^recipe: options: .*'temprature'"),
        ("byol", {"options": {"momentum": 2}}, r"^recipe: options: momentum: 2"),
        ("densecl", {"options": {"grid": 3}}, r"^recipe: options: grid: 3 .* 2 .* 32 .* 16"),
        ("pixpro", {"crop": 16}, r"^recipe: options: grid: 2 .* 1 .* 16 "),
        ("moco", {"options": {"groups": 3}}, r"^recipe: options: groups: 3 "),
        ("moco", {"options": {"groups": 4}}, r"^recipe: options: groups: 4 "),
        ("moco", {"gpus": 2, "options": {"groups": 1}}, r"^recipe: options: groups: 1 .* 2 GPUs"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_its_key(
    method: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        contract.configured(recipe(method, **changes), "recipe")


@pytest.mark.parametrize(("method", "held"), [("simclr", 4), ("moco", 8), ("densecl", 8)])
def test_a_training_list_must_fill_the_batch_and_the_queue(method: str, held: int) -> None:
    chosen = recipe(method)
    options = contract.configured(chosen)
    contract.check_images(chosen, options, held, "recipe")
    with pytest.raises(UserError, match=rf"^recipe: .* {held} images .* {held - 1} "):
        contract.check_images(chosen, options, held - 1, "recipe")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"crop": 40}, "crop: 40"),
        ({"batch": 1}, "batch: 1"),
        ({"gpus": 3}, "gpus: 3"),
        ({"area": [0.5, 1.5]}, "area: 1.5"),
        ({"weights": "pretrained/other"}, "weights: pretrained/other"),
        ({"backbone": "resnet19"}, "backbone: 'resnet19'"),
        ({"precision": "fp16"}, "precision: 'fp16'"),
        ({"optimiser": {**recipes.RECIPE["optimiser"], "warmup_steps": 6}}, "optimiser: warmup_steps: 6"),
        ({"optimiser": {**recipes.RECIPE["optimiser"], "name": "adam"}}, "optimiser: name: 'adam'"),
    ],
)
def test_a_wrong_recipe_is_refused_by_its_key(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(UserError, match=rf"^recipe: {key}"):
        recipe("simclr", **changes)


def test_a_pretraining_is_named_by_its_weights() -> None:
    assert PretrainingRun.named("pretrained/some") == PretrainingRun("some")
    assert str(PretrainingRun("some")) == "pretrained/some"
    for other in ("none", "imagenet", "pretrained", "here/pretrained/some"):
        assert PretrainingRun.named(other) is None
