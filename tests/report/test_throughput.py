"""Steps measured on random images: the whole objective, the size of model.pt, and nothing left behind."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from semiseg.base import parameters
from semiseg.base.parameters import RunConfig
from semiseg.data import prepared, splits
from semiseg.evaluation.score import Scoring
from semiseg.report import throughput
from semiseg.training import loop, step
from tests import miniature

CPU = torch.device("cpu")


def run(method: str) -> RunConfig:
    return parameters.load().run(miniature.run(method))


def plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the stage, which prints at its end whether torch was imported."""
    code = (
        "import atexit, runpy, sys; "
        "atexit.register(lambda: print('torch' in sys.modules)); "
        f"sys.argv = ['plan.py', {', '.join(map(repr, arguments))}]; "
        f"runpy.run_path({str(miniature.PIPELINE / 'plan.py')!r}, run_name='__main__')"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("method", ["supervised", "cmb", "cps"])  # one network, a memory too, two networks
def test_the_size_is_that_of_the_model_which_a_run_writes(mini_project: Path, method: str) -> None:
    config = run(method)
    # The miniature's network is so small that the headers in model.pt take more than one per cent of it.
    network = dataclasses.replace(config.protocol.network, backbone="resnet18")
    config = dataclasses.replace(config, protocol=dataclasses.replace(config.protocol, network=network))
    found = throughput.measure(config, CPU)
    dataset = prepared.open_dataset("mini", config.dataset)
    loop.train(config, dataset, splits.read(miniature.SPLIT, 0), CPU, Scoring.of(config, CPU))
    assert found.size == pytest.approx((config.run.artefacts / "model.pt").stat().st_size, rel=0.01)


def test_hours_are_the_steps_of_a_run_at_the_measured_speed(
    mini_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((10.0, 20.0))  # five steps in ten seconds
    monkeypatch.setattr(throughput, "_now", lambda device: next(clock))
    found = throughput.measure(run("cmb"), CPU)
    assert found.seconds == 2.0 * miniature.STEPS
    # two labelled images and two unlabelled
    assert found.basis.startswith("5 steps of random images measured now, 2.00 images/s, ")
    assert found.basis.endswith("CPU, 1 thread(s); reading not included")


def test_of_several_gpus_one_share_is_measured_and_all_are_counted(
    mini_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((10.0, 20.0))
    monkeypatch.setattr(throughput, "_now", lambda device: next(clock))
    config = miniature.config("supervised", labelled_batch=4)  # and two unlabelled, which are no two shares
    found = throughput.measure(config, CPU, gpus=2)
    assert found.seconds == 2 * 2.0 * miniature.STEPS
    assert "1.00 images/s" in found.basis  # two of the four images in each of five steps
    assert "one of 2 GPUs' share" in found.basis


@pytest.mark.parametrize(("method", "late"), [("cmb", "contrast"), ("dcc", "consistency")])
def test_what_begins_late_in_a_run_is_measured(
    mini_project: Path, method: str, late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs: list[dict[str, float]] = []

    def take_step(*arguments):
        logged = step.take_step(*arguments)
        logs.append({name: float(value) for name, value in logged.items()})
        return logged

    monkeypatch.setattr(throughput, "take_step", take_step)
    throughput.measure(run(method), CPU)
    assert len(logs) == throughput.WARM_UP + throughput.STEPS
    assert all(each[late] > 0 for each in logs[throughput.WARM_UP :])
    if method == "dcc":  # its masks select: what they leave out costs nothing
        assert all(each["selected"] > 0.1 for each in logs)


def test_weights_are_not_fetched(mini_project: Path) -> None:
    config = run("supervised")
    network = dataclasses.replace(config.protocol.network, weights="absent.pth")
    config = dataclasses.replace(config, protocol=dataclasses.replace(config.protocol, network=network))
    assert throughput.measure(config, CPU).seconds > 0


def test_the_stage_measures_only_when_asked_and_writes_nothing(mini_project: Path) -> None:
    recipes = ["supervised", "dcc"]
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["grids"]["mini"]["recipes"] = recipes
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    before = {path: path.stat().st_mtime_ns for path in mini_project.rglob("*")}
    plain = plan("mini")
    assert plain.returncode == 0, plain.stderr
    assert "Measure some steps for an estimate: python pipeline/plan.py mini --measure" in plain.stdout
    assert plain.stdout.endswith("False\n")  # torch was not imported
    measured = plan("mini", "--measure")
    assert measured.returncode == 0, measured.stderr
    assert measured.stdout.count("5 steps of random images measured now") == len(recipes)
    assert "device-hours of training" in measured.stdout
    assert "cannot be estimated" not in measured.stdout
    assert [line for line in measured.stderr.splitlines() if line.startswith("measuring")] == [
        f"measuring {method} under mini" for method in recipes
    ]
    assert {path: path.stat().st_mtime_ns for path in mini_project.rglob("*")} == before
