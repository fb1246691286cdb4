"""Pretraining: exact resume, the optimisers and their schedule, what comes out, and what is refused."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import nn

from semiseg.base import files, parameters
from semiseg.base.errors import UserError
from semiseg.base.parameters import PretrainingConfig
from semiseg.data import prepared
from semiseg.evaluation.probe import Probe
from semiseg.models import weights
from semiseg.models.build import build
from semiseg.pretraining import simclr
from semiseg.pretraining.contract import Logs, Views
from semiseg.training import checkpoint, pretrain
from semiseg.training.checkpoint import Checkpoint
from semiseg.training.divergence import Diverged
from semiseg.training.lars import LARS
from tests import miniature
from tests.miniature import CPU
from tests.pretraining import recipes


@pytest.fixture
def tiny(mini_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretraining builds tiny encoders."""
    monkeypatch.setattr(pretrain, "build_encoder", lambda recipe: recipes.encoder())


def fit(config: PretrainingConfig) -> dict[str, torch.Tensor]:
    """Pretrain to the end in this process, and return the weights."""
    dataset = prepared.open_dataset("mini", config.dataset)
    pretrain.pretrain(config, dataset, CPU, Probe.of(config, dataset, CPU))
    return weights.read(config.run.weights)


def history(config: PretrainingConfig) -> pd.DataFrame:
    return pd.read_csv(config.run.artefacts / "history.csv").drop(columns="images_per_second")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("method", recipes.METHODS)
def test_a_stopped_pretraining_goes_on_bit_for_bit(
    tiny: None, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimiser = {**recipes.RECIPE["optimiser"], "name": "lars" if method == "byol" else "sgd"}
    config = recipes.config(method, optimiser=optimiser)
    whole, rows = fit(config), history(config)
    assert rows["val_miou_backbone"].notna().tolist() == [False, True, False, True]
    assert not config.run.checkpoints.exists()
    save = Checkpoint.save

    def save_and_die(state: Checkpoint, folder: Path) -> None:
        save(state, folder)
        if state.step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            fit(config)
    assert same(fit(config), whole)
    pd.testing.assert_frame_equal(history(config), rows)


def test_the_seed_and_the_options_decide_what_comes_out(tiny: None) -> None:
    plain, digests = fit(recipes.config("simclr")), {recipes.config("simclr").digest()}
    for changes in ({"seed": 1}, {"options": {"temperature": 0.5}}, {"area": [0.2, 1.0]}):
        config = recipes.config("simclr", **changes)
        digests.add(config.digest())
        assert not same(fit(config), plain)
    assert len(digests) == 4
    same_result = recipes.config("simclr", workers=3, checkpoint_minutes=1.0, gpus=2)
    assert same_result.digest() in digests


def test_the_weights_are_those_of_a_backbone_that_a_network_takes(mini_project: Path) -> None:
    short = {"steps": 1, "batch": 2, "optimiser": {**recipes.RECIPE["optimiser"], "warmup_steps": 0}}
    recipe = recipes.recipe("simclr", **short)
    params = dataclasses.replace(parameters.load(), pretraining={"some": recipe})
    config = params.pretraining_config("some")
    tensors = fit(config)
    network = dataclasses.replace(miniature.config().protocol.network, weights="pretrained/some")
    built = build(network, 3)
    for name, each in built.backbone.state_dict().items():
        assert torch.equal(each, tensors[f"backbone.{name}"])
    assert len(tensors) == len(built.backbone.state_dict())
    record = json.loads(config.run.record.read_text())
    assert record["config_sha256"] == config.digest()
    assert record["weights_sha256"] == files.file_sha256(config.run.weights)
    assert config.run.history.read_bytes() == (config.run.artefacts / "history.csv").read_bytes()
    # A run takes them, by name or as a file, and its record says which they were.
    protocol = dataclasses.replace(miniature.config().protocol, network=network, steps=1)
    tree = dataclasses.replace(params, protocols={"mini": protocol})
    run = tree.run(miniature.run("supervised"))
    assert run.weights_sha256 == config.digest()
    assert pretrain.weights_sha256(run) == record["weights_sha256"]
    assert miniature.train(run)["pretrained_sha256"] == record["weights_sha256"]
    file = dataclasses.replace(network, weights=str(config.run.weights))
    name, loaded = next(iter(build(file, 3).backbone.state_dict().items()))
    assert torch.equal(loaded, tensors[f"backbone.{name}"])
    # It is refused once it is not what the recipe gives.
    changed = dataclasses.replace(params, pretraining={"some": recipes.recipe("byol")})
    other = dataclasses.replace(changed, protocols={"mini": protocol}).run(miniature.run("supervised"))
    with pytest.raises(UserError, match=r"^runs/pretrained/some/backbone\.pt: .*pretrain\.py some"):
        pretrain.weights_sha256(other)
    config.run.weights.write_bytes(b"other")
    with pytest.raises(UserError, match=r"^runs/pretrained/some/backbone\.pt: .*remove runs/pretrained/some"):
        pretrain.weights_sha256(run)
    config.run.weights.unlink()
    with pytest.raises(UserError, match=r"^runs/pretrained/some/backbone\.pt: not there.*pretrain\.py some"):
        pretrain.weights_sha256(run)
    with pytest.raises(UserError, match=r"^network: weights: .*pretrain\.py some"):
        build(network, 3)


def test_a_pretraining_of_another_backbone_is_refused_before_any_work(mini_project: Path) -> None:
    params = parameters.load()
    network = dataclasses.replace(params.protocols["mini"].network, weights="pretrained/some")
    changed = dataclasses.replace(
        params,
        protocols={"mini": dataclasses.replace(params.protocols["mini"], network=network)},
        pretraining={"some": recipes.recipe("simclr", backbone="resnet50")},
    )
    with pytest.raises(
        UserError, match=r"^params\.yaml: .*pretrained/some is a resnet50, not a timm:test_resnet"
    ):
        changed.run(miniature.run("supervised"))


def test_a_file_of_another_backbone_is_refused_before_any_step(mini_project: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(3)}, "other.pt")
    config = recipes.config("simclr", weights="other.pt")
    with pytest.raises(UserError, match=r"^other\.pt: does not fit"):
        fit(config)
    assert not config.run.artefacts.exists()


def test_too_few_images_are_refused_before_any_step(tiny: None) -> None:
    config = recipes.config("moco", options={"queue": 9})
    with pytest.raises(UserError, match=r"^params\.yaml: pretraining: moco: .* 13 images .* 8 "):
        fit(config)
    assert not config.run.artefacts.exists()


def test_a_step_that_is_not_finite_keeps_its_views_and_is_not_taken_again(
    tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real = recipes.config("simclr"), simclr.Method.training_step

    def spoiled(self: simclr.Method, views: Views, step: int) -> tuple[torch.Tensor, Logs]:
        loss, logs = real(self, views, step)
        return loss * (math.nan if step == 2 else 1), logs

    monkeypatch.setattr(simclr.Method, "training_step", spoiled)
    kept = config.run.checkpoints / "nan-step-2.pt"
    for _ in range(2):  # the second start does not come so far
        with pytest.raises(Diverged, match=rf"'?loss'?.*{kept}|at step 2 before; .*{kept}") as raised:
            fit(config)
        assert raised.value.step == 2
    inputs = checkpoint.read(kept)
    assert inputs["image1"].shape == inputs["image2"].shape == (4, 3, 32, 32)
    assert not config.run.weights.exists()


def groups(values: list[float], gradient: list[float]) -> list[dict[str, Any]]:
    """Return a matrix and a bias with the same values and gradients."""
    matrix = nn.Parameter(torch.tensor([values], dtype=torch.float64))
    bias = nn.Parameter(torch.tensor(values, dtype=torch.float64))
    matrix.grad, bias.grad = torch.tensor([gradient], dtype=torch.float64), torch.tensor(gradient).double()
    return [{"params": [matrix, bias]}]


def test_two_steps_of_lars_by_hand() -> None:
    (group,) = groups([3.0, 4.0], [0.6, 0.8])
    optimiser = LARS([group], lr=0.5, momentum=0.9, weight_decay=0.1, trust=0.01)
    matrix, bias = group["params"]
    weight, velocity = 5.0, 0.0  # along the gradient, which is parallel to the weight
    plain, plain_velocity = 5.0, 0.0
    for _ in range(2):
        optimiser.step()
        decayed = 1.0 + 0.1 * weight
        velocity = 0.9 * velocity + 0.01 * weight / decayed * decayed
        weight -= 0.5 * velocity
        plain_velocity = 0.9 * plain_velocity + 1.0
        plain -= 0.5 * plain_velocity
    assert float(matrix.detach().norm()) == pytest.approx(weight)
    assert float(bias.detach().norm()) == pytest.approx(plain)


def test_lars_moves_a_weight_of_norm_zero() -> None:
    (group,) = groups([0.0, 0.0], [1.0, 0.0])
    LARS([group], lr=0.5, momentum=0.0, weight_decay=0.1).step()
    assert group["params"][0].tolist() == [[-0.5, 0.0]]


def test_the_schedule_by_hand_and_from_any_step() -> None:
    recipe = recipes.recipe("simclr", steps=10)  # two steps of warm-up
    optimiser = LARS([{**groups([1.0], [0.0])[0], "initial_lr": 0.4}], 0.4, 0.9, 0.0)
    schedule, rates = pretrain.cosine(optimiser, recipe, 0), []
    for _ in range(10):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    cosines = [0.2 * (1 + math.cos(math.pi * taken / 8)) for taken in range(8)]
    assert rates == pytest.approx([0.2, 0.4, *cosines])
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0)
    pretrain.cosine(optimiser, recipe, 5)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(rates[5])
