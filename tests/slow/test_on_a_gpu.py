"""What only a GPU can show; skipped on a machine without one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from semiseg.base.errors import UserError
from semiseg.base.parameters import Geometry, RunConfig
from semiseg.data import prepared
from semiseg.data.streams import evaluation_images
from semiseg.evaluation.score import Scoring
from semiseg.models.build import build
from semiseg.pretraining import contract
from semiseg.report import throughput
from semiseg.training import checkpoint, pretrain
from semiseg.training import step as training_step
from semiseg.training.checkpoint import Checkpoint, Networks
from tests import miniature, project
from tests.miniature import CPU
from tests.pretraining import recipes

GPU = torch.device("cuda")
STEPS, STOPPED = 20, 10

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def as_a_run_computes(mini_project: Path) -> None:
    torch.use_deterministic_algorithms(False)


def train(config: RunConfig) -> Networks:
    """Train as evaluation leaves a run, and return the networks after the last step."""
    last: Networks = miniature.train(config, GPU)["last"]
    checkpoint.forget(config.run.checkpoints)
    return last


def distance(one: Networks, other: Networks) -> float:
    """Return the distance of two runs' floating-point numbers, as a share of their length."""
    first, second = (
        torch.cat(
            [each.double().flatten() for network in networks.values() for each in network.values()
             if each.is_floating_point()]
        )
        for networks in (one, other)
    )  # fmt: skip
    return float((first - second).norm() / first.norm())


def stopped(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until the checkpoint behind step STOPPED is written."""
    save = Checkpoint.save

    def save_and_die(state: Checkpoint, folder: Path) -> None:
        save(state, folder)
        if state.step == STOPPED:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(config)


def lose_momentum(config: RunConfig) -> None:
    last = config.run.checkpoints / checkpoint.LAST
    state = checkpoint.read(last)
    state["optimiser"]["state"] = {}
    checkpoint.write(state, last)


@pytest.mark.parametrize("recipe", miniature.METHODS)
def test_a_resumed_run_is_within_the_noise_of_undisturbed_runs(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = miniature.config(recipe, steps=STEPS, validate_every=STEPS)
    one, *others = [train(config) for _ in range(4)]
    noise = max(distance(one, other) for other in others)
    allowed = 3 * noise + 1e-6
    stopped(config, monkeypatch)
    assert distance(one, train(config)) <= allowed
    stopped(config, monkeypatch)
    lose_momentum(config)
    assert distance(one, train(config)) > allowed, "the noise hides what a checkpoint could lose"


@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recipe", miniature.METHODS)
def test_a_step_never_waits_for_the_gpu(recipe: str, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a pass, nor in the optimiser, nor in a teacher, memory or bank."""
    taken: list[dict[str, torch.Tensor]] = []

    def take_step(*arguments: Any) -> None:
        with nothing_waits():
            taken.append(training_step.take_step(*arguments))

    monkeypatch.setattr(throughput, "take_step", take_step)
    estimate = throughput.measure(miniature.config(recipe, precision=precision), GPU)
    assert len(taken) == throughput.WARM_UP + throughput.STEPS
    assert all(torch.isfinite(value) for logs in taken for value in logs.values())
    assert f"{torch.cuda.get_device_name()} (" in estimate.basis
    assert "MiB)" in estimate.basis


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", recipes.METHODS)
def test_a_step_of_pretraining_never_waits_for_the_gpu(method: str, precision: str) -> None:
    optimiser = {**recipes.RECIPE["optimiser"], "name": "lars"}
    config = recipes.config(method, precision=precision, optimiser=optimiser)
    learner = pretrain.new_learner(config.recipe, contract.configured(config.recipe), GPU)
    taken = pretrain.new_optimiser(learner, config.recipe)
    views = {name: each.to(GPU) for name, each in recipes.views().items()}
    for step in range(3):
        training_step.seed_everything(0, step)
        with nothing_waits():
            logs = pretrain.take_step(config, learner, learner, taken, views, step)
        assert all(torch.isfinite(value) for value in logs.values())


def test_too_small_a_gpu_is_one_line_and_a_smaller_step_goes_on() -> None:
    large = miniature.config("supervised", geometry=Geometry(base_size=2048, scale=(1.0, 1.0), crop=2048))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
    try:
        with pytest.raises(UserError, match=r"\b2048 pixels.*labelled_batch.*crop") as refused:
            train(large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "\n" not in str(refused.value)
    assert train(miniature.config("supervised"))


def test_the_same_network_scores_the_same_on_both() -> None:
    config = miniature.config()
    student = train(config)["student"]
    dataset = prepared.open_dataset(config.dataset_name, config.dataset)
    matrices = []
    for device in (CPU, GPU):
        network = build(config.protocol.network, len(config.dataset.classes))
        network.load_state_dict(student)
        images = evaluation_images(dataset, dataset.ids("val"), 0)
        counts = Scoring.of(config, device).count({"student": network.to(device)}, images)
        matrices.append(counts["student"])
    moved = (matrices[0] - matrices[1]).abs().sum() / 2
    assert moved <= 0.005 * matrices[0].sum()


def stage(script: str, config: RunConfig, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, miniature.PIPELINE / f"{script}.py", *str(config.run).split("/")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_stages_claim_a_gpu_and_the_record_names_it() -> None:
    config = miniature.config("dcc")
    for script in ("train", "evaluate"):
        stage(script, config)
    provenance = json.loads(config.run.metrics.read_text())["provenance"]
    assert provenance["device"] == torch.cuda.get_device_name()
    assert provenance["peak_memory_mib"] > 1
    assert not config.run.checkpoints.exists()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("recipe", miniature.METHODS)
def test_two_gpus_train_as_one_does(recipe: str) -> None:
    """With synchronised batch norm, by NCCL, through the stage itself.

    Later than these few steps, a rounding has moved a pixel over CMB's threshold. test_two_processes.py takes
    20 steps on the CPU.
    """
    project.edit(Path("params.yaml"), "log_every: 2", "log_every: 1")
    config = miniature.config(recipe)

    def losses() -> pd.Series:
        stage("train", config, NVIDIA_TF32_OVERRIDE="0")
        checkpoint.forget(config.run.checkpoints)
        return pd.read_csv(config.run.artefacts / "history.csv")["loss"]

    one, again = losses(), losses()
    project.edit(Path("params.yaml"), "    seeds:", "    gpus: 2\n    seeds:")
    two = losses()
    assert len(two) == miniature.STEPS
    assert (two - one).abs().max() <= 3 * (again - one).abs().max() + 1e-5 * one.max()
