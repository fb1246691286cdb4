"""A trained run becomes a record, predictions and a short history."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from semiseg.base.errors import UserError
from semiseg.base.parameters import RunConfig
from semiseg.base.paths import Run
from semiseg.data import prepared, splits
from semiseg.evaluation import evaluate, record, trained
from semiseg.evaluation.evaluate import condense_history, condensed
from semiseg.evaluation.metrics import FIGURES, Figure, Prediction, confusion_matrix, mean_iou
from semiseg.training import step as training_step
from tests import miniature
from tests.miniature import CPU
from tests.tiny import tiny_network


def history(rows: int, validated: list[int]) -> pd.DataFrame:
    """Return a row every 10 steps whose loss is its number, with mIoU at the rows ``validated``."""
    miou = [row / rows if row in validated else None for row in range(rows)]
    return pd.DataFrame(
        {"step": range(10, 10 * rows + 1, 10), "loss": map(float, range(rows)), "val_miou_student": miou}
    )


def test_a_short_history_stays_as_it_is() -> None:
    whole = history(20, [9, 19])
    pd.testing.assert_frame_equal(condensed(whole, 20), whole)


def test_a_long_history_becomes_means_and_no_validation_moves() -> None:
    whole = history(1000, [299, 599, 604, 999])
    short = condensed(whole, 50)
    assert len(short) <= 50 + 4
    assert short["step"].is_monotonic_increasing
    assert short["step"].iloc[-1] == 10000
    validated = whole.dropna()[["step", "val_miou_student"]].reset_index(drop=True)
    found = short.dropna()[["step", "val_miou_student"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, validated)
    before = 0
    for step, loss in zip(short["step"] // 10, short["loss"], strict=True):
        assert loss == pytest.approx(whole["loss"][before:step].mean())
        before = step


def test_a_history_without_a_validation_is_condensed_too() -> None:
    assert condensed(history(7, []).drop(columns="val_miou_student"), 2)["step"].tolist() == [40, 70]


def test_the_short_history_is_rounded_and_a_missing_one_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run("cmb", "mini", 0)
    with pytest.raises(UserError, match=r"^runs/cmb/mini/0/history\.csv: .*train"):
        condense_history(run)
    run.artefacts.mkdir(parents=True)
    (run.artefacts / "history.csv").write_text("step,loss,val_miou_student\n5,1.23456789,\n10,0.5,0.25\n")
    condense_history(run)
    assert run.history.read_text() == "step,loss,val_miou_student\n5,1.23457,\n10,0.5,0.25\n"


# --- a run's record -----------------------------------------------------------------------------------------


@pytest.fixture
def config(mini_project: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Train a run and return its configuration."""
    for module in (training_step, trained):
        monkeypatch.setattr(module, "build", lambda network, num_classes: tiny_network(num_classes))
    config = miniature.config("cmb")
    miniature.train(config)
    return config


def scored(config: RunConfig, digest: str | None = None, **split: str) -> record.Record:
    dataset = prepared.open_dataset("mini", config.dataset)
    lists = dataclasses.replace(splits.read(config.run.split, 0), **split)
    dataset = dataclasses.replace(dataset, digest=digest or dataset.digest)
    return evaluate.score_run(config, dataset, lists, CPU)


def test_a_record_says_all_that_decided_its_figures(config: RunConfig) -> None:
    result = scored(config)
    origin = result.provenance
    assert origin.config_sha256 == config.digest()
    assert hashlib.sha256(json.dumps(origin.config, sort_keys=True).encode()).hexdigest() == config.digest()
    assert origin.config["revisions"].keys() == {"loop", "method", "source"}
    assert origin.data_sha256 == json.loads(Path("data/mini/manifest.json").read_text())["digest"]
    listed = splits.read(config.run.split, 0)
    assert origin.labelled_sha256 == listed.labelled_sha256
    assert origin.labelled_set_sha256 == splits.ids_sha256(sorted(listed.labelled))
    assert (result.recipe, result.split, result.seed) == ("cmb", "mini-1_4", 0)
    assert (result.method, result.dataset, result.ratio, result.labelled) == ("cmb", "mini", "1/4", 2)
    assert (result.headline, list(result.last.networks)) == ("student", ["student", "teacher"])
    assert result.last.step == miniature.STEPS


def test_each_image_has_a_prediction_and_its_miou(config: RunConfig) -> None:
    result = scored(config)
    images = pd.read_csv(config.run.artefacts / "images.csv", index_col="id")["miou"]
    files = sorted((config.run.artefacts / "predictions").glob("*.png"))
    assert [file.stem for file in files] == sorted(images.index)
    counts = torch.zeros(3, 3, dtype=torch.int64)
    for file in files:
        masks = (file, Path("data/mini/SegmentationClass") / file.name)
        predicted, target = (torch.from_numpy(np.array(Image.open(each))) for each in masks)
        matrix = confusion_matrix(predicted, target, 3)
        assert images[file.stem] == pytest.approx(mean_iou(matrix).item())
        counts += matrix
    assert result.confusion == tuple(map(tuple, counts.tolist()))
    assert result.miou == pytest.approx(mean_iou(counts).item())


def test_the_last_figures_are_those_of_the_last_validation(config: RunConfig) -> None:
    result = scored(config)  # this dataset is validated and scored on the same list
    last = pd.read_csv(config.run.artefacts / "history.csv").iloc[-1]
    for name, figures in result.last.networks.items():
        assert figures.miou == pytest.approx(last[f"val_miou_{name}"])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda config: scored(dataclasses.replace(config, weights_sha256="0" * 64)), "configuration"),
        (lambda config: scored(config, digest="0" * 64), "images"),
        (lambda config: scored(config, labelled_sha256="0" * 64), "labelled"),
    ],
)
def test_a_network_of_another_identity_is_refused_with_what_to_do(
    config: RunConfig, change: Callable[[RunConfig], object], named: str
) -> None:
    model = config.run.artefacts / "model.pt"
    with pytest.raises(UserError, match=f"^{model}: .*{named}.*train") as refusal:
        change(config)
    assert "\n" not in str(refusal.value)
    assert model.exists()


def test_a_network_that_is_absent_or_broken_is_named(config: RunConfig) -> None:
    model = config.run.artefacts / "model.pt"
    content = model.read_bytes()
    model.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"^{model}: .*train"):
        scored(config)
    model.unlink()
    with pytest.raises(UserError, match=f"^{model}: .*train"):
        scored(config)


# --- further figures ----------------------------------------------------------------------------------------


def test_every_network_has_the_further_figures(config: RunConfig) -> None:
    result = scored(config)
    for scores in (result.last, result.best):
        for figures in scores.networks.values():
            assert figures.figures.keys() == FIGURES.keys()
            assert all(0 <= value <= 1 for value in figures.figures.values() if value is not None)
    record.write(result, config.run.metrics)
    assert record.read(config.run.metrics) == result
    tree = json.loads(config.run.metrics.read_text())
    for moment in ("last", "best"):
        for network in tree[moment]["networks"].values():
            del network["figures"]
    config.run.metrics.write_text(json.dumps(tree))
    assert record.read(config.run.metrics).score(result.last).miou == result.miou


def test_a_figure_is_added_without_training_again(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def right(prediction: Prediction) -> torch.Tensor:
        return torch.stack(((prediction.labels == prediction.mask).sum(), (prediction.mask != 255).sum()))

    before = (config.run.artefacts / "model.pt").read_bytes()
    monkeypatch.setitem(FIGURES, "accuracy", Figure(right, lambda counts: counts[0] / counts[1]))
    result = scored(config)
    diagonal = sum(row[place] for place, row in enumerate(result.confusion))
    accuracy = result.score(result.last).figures["accuracy"]
    assert accuracy == pytest.approx(diagonal / sum(map(sum, result.confusion)))
    assert (config.run.artefacts / "model.pt").read_bytes() == before
