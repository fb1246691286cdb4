"""What only a GPU can show, on whichever is there; skipped without one."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from semiseg.base import parameters, paths
from semiseg.base.errors import UserError
from semiseg.base.parameters import Geometry, RunConfig
from semiseg.data import prepared, splits
from semiseg.data.streams import evaluation_images
from semiseg.evaluation.score import confusion
from semiseg.models.build import build
from semiseg.report import throughput
from semiseg.training import checkpoint, loop
from semiseg.training import step as learning
from semiseg.training.checkpoint import Checkpoint, Networks
from tests import miniature, project

GPU, CPU = torch.device("cuda"), torch.device("cpu")
STEPS, STOPPED = 20, 10

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def as_a_run_computes(mini_project: Path) -> None:
    torch.use_deterministic_algorithms(False)


def run_of(recipe: str, **protocol: object) -> RunConfig:
    of_run = parameters.load().run(paths.Run(recipe, "mini-1_4", 0))
    return replace(of_run, protocol=replace(of_run.protocol, **protocol))


def train(of_run: RunConfig, device: torch.device = GPU) -> Networks:
    """Train, and forget what evaluation would; the networks after the last step."""
    dataset = prepared.open_dataset(of_run.split.dataset, of_run.dataset)
    loop.train(of_run, dataset, splits.read(of_run.run.split, of_run.run.seed), device)
    checkpoint.forget(of_run.run.checkpoints)
    last: Networks = checkpoint.read(of_run.run.artefacts / "model.pt")["last"]
    return last


def distance(one: Networks, other: Networks) -> float:
    """Between the floating-point numbers of two runs' networks, as a share of their length."""
    first, second = (
        torch.cat(
            [each.double().flatten() for network in networks.values() for each in network.values()
             if each.is_floating_point()]
        )
        for networks in (one, other)
    )  # fmt: skip
    return float((first - second).norm() / first.norm())


def stopped(of_run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until the checkpoint behind step STOPPED is written."""
    save = Checkpoint.save

    def save_and_die(state: Checkpoint, folder: Path) -> None:
        save(state, folder)
        if state.step == STOPPED:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save_and_die)
        with pytest.raises(KeyboardInterrupt):
            train(of_run)


def lose_momentum(of_run: RunConfig) -> None:
    last = of_run.run.checkpoints / checkpoint.LAST
    state = checkpoint.read(last)
    state["optimiser"]["state"] = {}
    checkpoint.write(state, last)


@pytest.mark.parametrize("recipe", miniature.METHODS)
def test_a_resumed_run_is_within_the_noise_of_those_that_were_not(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_run = run_of(recipe, steps=STEPS, validate_every=STEPS)
    one, *others = [train(of_run) for _ in range(4)]
    noise = max(distance(one, other) for other in others)
    allowed = 3 * noise + 1e-6
    stopped(of_run, monkeypatch)
    assert distance(one, train(of_run)) <= allowed
    stopped(of_run, monkeypatch)
    lose_momentum(of_run)
    assert distance(one, train(of_run)) > allowed, "the noise hides what a checkpoint could lose"


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
    """The whole of it: both passes, the optimiser, the teacher, memory and bank."""
    taken: list[dict[str, torch.Tensor]] = []

    def learn(*arguments: object) -> None:
        with nothing_waits():
            taken.append(learning.learn(*arguments))

    monkeypatch.setattr(throughput, "learn", learn)
    estimate = throughput.measure(run_of(recipe, precision=precision), GPU)
    assert len(taken) == throughput.WARM_UP + throughput.STEPS
    assert all(torch.isfinite(value) for logs in taken for value in logs.values())
    assert f"{torch.cuda.get_device_name()} (" in estimate.basis
    assert "MiB)" in estimate.basis


def test_too_small_a_gpu_is_one_line_and_a_smaller_step_goes_on() -> None:
    large = run_of("supervised", geometry=Geometry(base_size=2048, scale=(1.0, 1.0), crop=2048))
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(GPU).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**28) / total)
    try:
        with pytest.raises(UserError, match=r"2 labelled crops of 2048 pixels in fp32") as refused:
            train(large)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "lower labelled_batch, unlabelled_batch or crop" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert train(run_of("supervised"))


def test_the_same_network_scores_the_same_on_both() -> None:
    of_run = run_of("supervised")
    student = train(of_run)["student"]
    classes = len(of_run.dataset.classes)
    dataset = prepared.open_dataset(of_run.split.dataset, of_run.dataset)
    matrices = []
    for device in (CPU, GPU):
        network = build(of_run.protocol.network, classes)
        network.load_state_dict(student)
        images = evaluation_images(dataset, dataset.ids("val"), 0)
        matrices.append(
            confusion({"student": network.to(device)}, images, classes, device, "fp32")["student"]
        )
    moved = (matrices[0] - matrices[1]).abs().sum() / 2
    assert moved <= 0.005 * matrices[0].sum()


def stage(script: str, of_run: RunConfig, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, miniature.PIPELINE / f"{script}.py", *str(of_run.run).split("/")],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_the_stages_claim_a_gpu_and_the_record_names_it() -> None:
    of_run = run_of("dcc")
    for script in ("train", "evaluate"):
        stage(script, of_run)
    provenance = json.loads(of_run.run.metrics.read_text())["provenance"]
    assert provenance["device"] == torch.cuda.get_device_name()
    assert provenance["peak_memory_mib"] > 1
    assert not of_run.run.checkpoints.exists()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("recipe", miniature.METHODS)
def test_two_gpus_train_as_one_does(recipe: str) -> None:
    """With synchronised batch norm, by NCCL, through the stage itself.

    For so few steps: later a rounding has moved a pixel over CMB's threshold. test_distributed.py takes 20.
    """
    project.edit(Path("params.yaml"), "log_every: 2", "log_every: 1")
    of_run = run_of(recipe)

    def losses() -> pd.Series:
        stage("train", of_run, NVIDIA_TF32_OVERRIDE="0")
        checkpoint.forget(of_run.run.checkpoints)
        return pd.read_csv(of_run.run.artefacts / "history.csv")["loss"]

    one, again = losses(), losses()
    project.edit(Path("params.yaml"), "    seeds:", "    gpus: 2\n    seeds:")
    two = losses()
    assert len(two) == miniature.STEPS
    assert (two - one).abs().max() <= 3 * (again - one).abs().max() + 1e-5 * one.max()
