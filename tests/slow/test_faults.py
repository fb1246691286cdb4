"""Provoked faults of data, loss and machine: each is one line, and the run goes on exactly."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from semiseg.base.errors import UserError
from semiseg.base.gpu_memory import enough_memory
from semiseg.data import prepared, splits
from semiseg.evaluation.score import Scoring
from semiseg.methods import supervised
from semiseg.training import batches, checkpoint
from semiseg.training import step as training_step
from semiseg.training.divergence import Diverged
from tests import miniature
from tests.project import ROOT
from tests.slow.faults import RUN, during_step, edit, interrupt, same, train
from tests.tiny import tiny_network


@pytest.fixture
def tiny(mini_project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The miniature project with a tiny network, in this process."""
    monkeypatch.setattr(training_step, "build", lambda network, num_classes: tiny_network(num_classes))
    return mini_project


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_checkpoint(tiny: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = train()
    with during_step(5, interrupt), pytest.raises(KeyboardInterrupt):
        train()
    last = RUN.checkpoints / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content[: len(content) // 3] if how == "truncated" else content)
    capsys.readouterr()
    assert same(train(), whole)
    said = capsys.readouterr().err
    assert re.search(r"^checkpoints/.*/last\.pt: .* step 4$", said, re.MULTILINE)


@pytest.mark.parametrize("how", ["deleted", "corrupted"])
def test_an_image_lost_in_mid_training(tiny: Path, how: str) -> None:
    whole = train()
    kept = {path: path.read_bytes() for path in Path("data/mini/JPEGImages").glob("train_*.jpg")}

    def lose() -> None:
        for path, content in kept.items():
            path.write_bytes(content[:200])
            if how == "deleted":
                path.unlink()

    with during_step(4, lose), pytest.raises(UserError) as refused:
        train()
    assert re.match(r"data/mini/JPEGImages/train_\d+\.jpg: ", str(refused.value))
    assert checkpoint.read(RUN.checkpoints / "last.pt")["step"] == 5  # all that was done
    for path, content in kept.items():
        path.write_bytes(content)
    assert same(train(), whole)


def test_an_image_lost_while_validating(tiny: Path) -> None:
    whole = train()
    image = Path("data/mini/JPEGImages/val_0001.jpg")
    content = image.read_bytes()
    with during_step(2, image.unlink), pytest.raises(UserError, match=r"val_0001\.jpg: "):
        train()
    saved = checkpoint.read(RUN.checkpoints / "last.pt")
    assert (saved["step"], saved["best_miou"]) == (3, -1.0)
    image.write_bytes(content)
    assert same(train(), whole)  # validated before the fourth step


def nan(loss: torch.Tensor) -> torch.Tensor:
    return loss * math.nan


def nan_backwards(loss: torch.Tensor) -> torch.Tensor:
    """The same loss, whose gradient is 0 times infinity."""
    return loss + 0 * torch.sqrt(0 * loss)


def spoil(
    monkeypatch: pytest.MonkeyPatch, at: int, spoiled: Callable[[torch.Tensor], torch.Tensor]
) -> dict[int, tuple]:
    """Spoil the loss of step ``at``; the labelled batches of all steps, which none may see twice."""
    real, given = supervised.Method.training_step, {}

    def training_step(self: supervised.Method, labelled: tuple, unlabelled: object, step: int) -> tuple:
        assert step not in given, "trained again"
        given[step] = labelled
        loss, logs = real(self, labelled, unlabelled, step)
        return spoiled(loss) if step == at else loss, logs

    monkeypatch.setattr(supervised.Method, "training_step", training_step)
    return given


@pytest.mark.parametrize(
    ("spoiled", "what"),
    [(nan, "'loss'"), (nan_backwards, "'gradient_norm'")],
    ids=["loss", "gradient"],
)
@pytest.mark.parametrize("clip_norm", [None, 5.0])
def test_a_step_that_is_not_finite_keeps_its_inputs_and_is_not_trained_to_again(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoiled: Callable[[torch.Tensor], torch.Tensor],
    what: str,
    clip_norm: float | None,
) -> None:
    edit("clip_norm: 5.0", f"clip_norm: {'null' if clip_norm is None else clip_norm}")
    given = spoil(monkeypatch, 2, spoiled)
    kept = RUN.checkpoints / "nan-step-2.pt"
    with pytest.raises(Diverged, match=rf"{what}.* 2; .*{kept}") as raised:
        train()
    assert (raised.value.exit_status, raised.value.step) == (3, 2)
    inputs = checkpoint.read(kept)
    assert torch.equal(inputs["images"], given[2].images)
    assert torch.equal(inputs["masks"], given[2].masks)
    assert checkpoint.read(RUN.checkpoints / "last.pt")["step"] == 2
    with pytest.raises(Diverged, match=rf"{kept}") as again:  # as an engine's retry would meet it
        train()
    assert again.value.step == 2
    optimiser = dataclasses.replace(miniature.config().protocol.optimiser, learning_rate=1e-3)
    with pytest.raises(UserError, match=rf"remove {RUN.checkpoints} "):
        train(optimiser=optimiser)
    assert not (RUN.artefacts / "model.pt").exists()


@pytest.mark.parametrize("spoiled", [nan, nan_backwards])
def test_what_is_not_finite_is_never_saved(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, spoiled: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    spoil(monkeypatch, 4, spoiled)
    with pytest.raises(Diverged, match="step 4"):
        train(log_every=100, validate_every=100)
    saved = checkpoint.read(RUN.checkpoints / "last.pt")
    assert saved["step"] == 4
    assert all(torch.isfinite(each).all() for each in saved["method"].values())


def test_a_gpu_that_is_too_small(tiny: Path) -> None:
    def run_out() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    whole = train()
    with during_step(3, run_out), pytest.raises(UserError) as refused:
        train()
    said = str(refused.value)
    assert said.startswith(f"{RUN}: ")
    assert all(key in said for key in ("protocols: mini", "labelled_batch", "crop", "precision"))
    assert same(train(), whole)  # another process has left the GPU meanwhile


def test_a_gpu_that_is_too_small_for_a_batch(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(batches, "on_device", run_out)
    with pytest.raises(UserError, match=r"protocols: mini.*labelled_batch"):
        train()


def test_a_gpu_that_is_too_small_to_score() -> None:
    def run_out(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    network = tiny_network(3)
    network.classifier.register_forward_hook(run_out)
    image = ("one", torch.zeros(3, 4, 6, dtype=torch.uint8), torch.zeros(4, 6, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"6x4.*precision"):
        Scoring(3, miniature.CPU, "fp32").count({"only": network}, [image])
    with pytest.raises(RuntimeError, match="another"), enough_memory("this", "that"):
        raise RuntimeError("another")


def test_a_clock_that_was_set_back(tiny: Path) -> None:
    whole = train()
    with during_step(5, interrupt), pytest.raises(KeyboardInterrupt):
        train()
    config = miniature.config()
    dataset, split = prepared.open_dataset("mini", config.dataset), splits.read(RUN.split, RUN.seed)
    saved = checkpoint.load(RUN.checkpoints, checkpoint.identify(config, dataset, split))
    assert saved is not None
    saved.started = "2999-01-01T00:00:00Z"  # what the clock said before it was set back
    saved.save(RUN.checkpoints)
    again = train()
    assert same(again, whole)
    assert again["finished"] == again["started"] == "2999-01-01T00:00:00Z"
    assert 0 < again["train_seconds"] < 600
    assert again["images_per_second"] > 0


def test_durations_come_from_a_clock_that_nobody_sets() -> None:
    files = [*ROOT.glob("semiseg/**/*.py"), *ROOT.glob("pipeline/*.py")]
    assert len(files) > 50
    asks = [file.name for file in files if re.search(r"time\.time\(|datetime\.now\(", file.read_text())]
    assert asks == ["provenance.py"]


@pytest.mark.parametrize("minutes", [0, 1e9])
def test_when_checkpoints_are_written_changes_no_number(tiny: Path, minutes: float) -> None:
    whole, history = train(), rows()
    with during_step(5, interrupt), pytest.raises(KeyboardInterrupt):
        train(checkpoint_minutes=minutes)
    last = RUN.checkpoints / "last.pt"
    assert checkpoint.read(last)["step"] == 5 if minutes == 0 else not last.exists()
    again = train(checkpoint_minutes=minutes)
    assert same(again, whole)
    assert again["config_sha256"] == whole["config_sha256"]
    assert rows() == history


def rows() -> list[list[str]]:
    """history.csv without the rate."""
    table = [line.split(",") for line in (RUN.artefacts / "history.csv").read_text().splitlines()]
    rate = table[0].index("images_per_second")
    return [row[:rate] + row[rate + 1 :] for row in table]
