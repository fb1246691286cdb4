"""The training loop: schedule and groups by hand, exact resume, what stops a run."""

import math
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from semiseg.base import parameters, paths, provenance
from semiseg.base.parameters import Optimiser
from semiseg.data import prepared, splits
from semiseg.training import checkpoint, loop
from semiseg.training import step as learning
from semiseg.training.divergence import Diverged
from semiseg.training.history import History
from tests import miniature

RUN = paths.Run("supervised", "mini-1_4", 0)
CPU = torch.device("cpu")


def train(run: paths.Run = RUN, **protocol: object) -> Path:
    """Train in this process, and forget what evaluation would."""
    params = parameters.load()
    of_run = params.run(run)
    of_run = replace(of_run, protocol=replace(of_run.protocol, **protocol))
    dataset = prepared.open_dataset(of_run.split.dataset, of_run.dataset)
    loop.train(of_run, dataset, splits.read(run.split, run.seed), CPU)
    checkpoint.forget(run.checkpoints)
    return run.artefacts / "model.pt"


def same_tensors(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_tensors(one[key], other[key]) for key in one)
    return one == other


def test_the_poly_schedule_by_hand() -> None:
    backbone, head = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([{"params": [backbone]}, {"params": [head]}], lr=1.0)
    settings = Optimiser(learning_rate=0.01, backbone_factor=0.1, power=0.9)
    assert learning.set_learning_rate(optimiser, settings, 0.0) == 0.01
    assert learning.set_learning_rate(optimiser, settings, 0.5) == pytest.approx(0.01 * 0.5358867312681466)
    assert [group["lr"] for group in optimiser.param_groups] == pytest.approx(
        [0.0005358867312681466, 0.005358867312681466]
    )


def test_the_optimiser_has_each_trained_parameter_once(mini_project: Path) -> None:
    learner = miniature.learner("cmb")
    optimiser = learning.sgd(learner, Optimiser(learning_rate=0.1))
    backbone, rest = (group["params"] for group in optimiser.param_groups)
    trained = {id(each) for each in learner.parameters() if each.requires_grad}
    assert {id(each) for each in backbone} == {id(each) for each in learner.student.backbone.parameters()}
    assert {id(each) for each in [*backbone, *rest]} == trained
    assert len(backbone) + len(rest) == len(trained)
    assert not trained & {id(each) for each in learner.teacher.parameters()}
    assert not any(group["nesterov"] for group in optimiser.param_groups)


def test_a_step_is_seeded_by_seed_and_step_alone() -> None:
    def draw(seed: int, step: int) -> float:
        learning.seed_everything(seed, step)
        return float(torch.rand(()))

    assert draw(0, 3) == draw(0, 3)
    assert len({draw(0, 3), draw(0, 4), draw(1, 3), draw(1, 2)}) == 4


def test_a_run_is_the_same_with_and_without_kept_images(
    mini_project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, short = paths.Run("cmb", "mini-1_4", 0), {"steps": 3, "validate_every": 3}
    plain = torch.load(train(run, **short), weights_only=True)
    capfd.readouterr()
    kept = torch.load(train(run, **short, image_cache_mib=1), weights_only=True)
    said = "cmb/mini-1_4/0: decoded images are kept in at most 1 MiB\n"
    assert capfd.readouterr().err.count(said) == 1
    assert same_tensors(plain["last"], kept["last"])
    assert plain["config_sha256"] == kept["config_sha256"]


def test_a_model_names_the_revision_that_the_sitting_of_its_last_step_began_with(
    mini_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revisions = iter(("first", "second"))
    monkeypatch.setattr(provenance, "revision", lambda: next(revisions))
    monkeypatch.setattr(checkpoint, "forget", lambda folder: None)
    for _ in range(2):  # the second sitting takes no step
        assert torch.load(train(steps=2), weights_only=True)["revision"] == "first"
    assert not list(revisions)


@pytest.mark.parametrize("recipe", miniature.METHODS)
def test_a_stopped_run_goes_on_bit_for_bit(
    mini_project: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = replace(RUN, recipe=recipe)
    whole = torch.load(train(run), weights_only=True)
    history = pd.read_csv(run.artefacts / "history.csv")

    real_save = checkpoint.Checkpoint.save

    def save_and_die(state: checkpoint.Checkpoint, folder: Path) -> None:
        real_save(state, folder)
        if state.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.Checkpoint, "save", save_and_die)
    with pytest.raises(KeyboardInterrupt):
        train(run)
    monkeypatch.setattr(checkpoint.Checkpoint, "save", real_save)
    resumed = torch.load(train(run), weights_only=True)
    for part in ("last", "best", "best_step", "last_step"):
        assert same_tensors(whole[part], resumed[part]), part
    again = pd.read_csv(run.artefacts / "history.csv")
    pd.testing.assert_frame_equal(
        history.drop(columns="images_per_second"), again.drop(columns="images_per_second")
    )
    assert not run.checkpoints.exists()


def test_sigterm_saves_and_asks_to_be_started_again(
    mini_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mini_project / "params.yaml").write_text(
        (mini_project / "params.yaml").read_text().replace("steps: 6", "steps: 100000")
    )
    command = [sys.executable, miniature.PIPELINE / "train.py", *str(RUN).split("/")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mini_project.name)  # one GPU: the second must not wait
    monkeypatch.setenv("SEMISEG_DEVICE", "cpu")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (RUN.artefacts / "history.csv").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        second = subprocess.run(command, capture_output=True, text=True)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert second.returncode == 2
    assert f"being trained by process {process.pid}" in second.stderr
    assert process.returncode == loop.Interrupted.exit_status
    assert "start it again to go on" in said.splitlines()[-1]
    saved = torch.load(RUN.checkpoints / "last.pt", weights_only=True)
    assert saved["step"] > 0
    assert not (RUN.artefacts / "model.pt").exists()


def test_a_loss_that_is_not_finite_stops_with_its_step_and_name(tmp_path: Path) -> None:
    with History(tmp_path, "a/b/0", 0, 10, [], []) as history:
        history.add(4, {"supervised": torch.tensor(1.0), "contrast": torch.tensor(2.0)})
        history.add(5, {"supervised": torch.tensor(1.0), "contrast": torch.tensor(math.nan)})
        with pytest.raises(Diverged, match=r"a/b/0: loss 'contrast' is nan at step 5"):
            history.flush(0.1, 1)


def test_history_holds_means_rates_and_validation(tmp_path: Path) -> None:
    with History(tmp_path, "a/b/0", 0, 4, [], []) as history:
        for step, loss in enumerate((1.0, 3.0)):
            history.add(step, {"loss": torch.tensor(loss)})
        history.flush(0.1, 4)
        history.validated({"val_miou_student": 0.25})
        for step, loss in enumerate((5.0, 6.0), start=2):
            history.add(step, {"loss": torch.tensor(loss)})
        history.flush(0.05, 4)
    table = pd.read_csv(tmp_path / "history.csv")
    assert table["step"].tolist() == [2, 4]
    assert table["loss"].tolist() == [2.0, 5.5]
    assert table["learning_rate"].tolist() == [0.1, 0.05]
    assert table["val_miou_student"].tolist()[0] == 0.25
    assert table["val_miou_student"].isna().tolist() == [False, True]
    assert (table["images_per_second"] > 0).all()
    assert list(tmp_path.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("clip_norm", [None, 1e-3])
def test_the_gradient_s_norm_is_all_parameters_before_it_is_clipped(
    mini_project: Path, clip_norm: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: list[float] = []
    clip = nn.utils.clip_grad_norm_

    def by_hand(parameters: Iterable[nn.Parameter], most: float) -> torch.Tensor:
        given = list(parameters)
        gradients = [each.grad for each in given if each.grad is not None]
        expected.append(math.sqrt(sum(float(each.double().square().sum()) for each in gradients)))
        norm = clip(given, most)
        left = math.sqrt(sum(float(each.double().square().sum()) for each in gradients))
        assert left == pytest.approx(min(expected[-1], clip_norm or math.inf), rel=1e-2)
        return norm

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", by_hand)
    train(steps=2, log_every=1, optimiser=Optimiser(learning_rate=1e-3, clip_norm=clip_norm))
    history = pd.read_csv(RUN.artefacts / "history.csv")
    assert history["gradient_norm"].tolist() == pytest.approx(expected, rel=1e-5)


def test_a_diverging_run_leaves_no_model(mini_project: Path) -> None:
    optimiser = Optimiser(learning_rate=1e30)
    with pytest.raises(Diverged, match="loss 'loss' is nan at step"):
        train(optimiser=optimiser, validate_every=100)
    assert not (RUN.artefacts / "model.pt").exists()
