import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.evaluation.record import Record
from semiseg.report import dvc
from semiseg.report.collect import collect

Finish = Callable[..., Record]
FOLDER = Path("results/metrics/main")


def files(folder: Path) -> dict[str, dict[str, float]]:
    found = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): json.loads(file.read_text()) for file in found}


def test_a_cell_with_runs_has_a_file_of_its_figures(params: Params, finish: Finish) -> None:
    for seed, (supervised, cmb) in enumerate([(0.40, 0.43), (0.42, 0.44)]):
        finish("supervised", "small-1_8", seed, supervised)
        finish("cmb", "small-1_8", seed, cmb)
    finish("dcc", "small-full", 2, 0.7)  # has no baseline to gain over
    assert dvc.write_metrics(collect(params, "main")) == FOLDER
    assert files(FOLDER) == {
        "small-1_8/supervised.json": {"miou": 0.41, "std": 0.014142, "seeds": 2},
        "small-1_8/cmb.json": {"miou": 0.435, "std": 0.007071, "gain": 0.025, "seeds": 2},
        "small-full/dcc.json": {"miou": 0.7, "seeds": 1},
    }


def test_a_cell_whose_runs_are_gone_has_none(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.4)
    finish("cmb", "small-1_8", 0, 0.5)
    dvc.write_metrics(collect(params, "main"))
    Run("cmb", "small-1_8", 0).metrics.unlink()
    dvc.write_metrics(collect(params, "main"))
    assert list(files(FOLDER)) == ["small-1_8/supervised.json"]
    Run("supervised", "small-1_8", 0).metrics.unlink()
    dvc.write_metrics(collect(params, "main"))
    assert files(FOLDER) == {}


def test_a_file_that_the_suite_did_not_write_stays(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.4)
    others = {
        FOLDER / "small-1_8" / "mine.json": '{"miou": 0.9, "note": "by hand"}',
        FOLDER / "notes/x.json": "x",
    }
    for path, text in others.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    dvc.write_metrics(collect(params, "main"))
    assert {path: path.read_text() for path in others} == others


def test_plots_have_error_bars_and_every_runs_loss(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.4)
    for seed, miou in enumerate([0.5, 0.6]):
        finish("cmb", "small-1_8", seed, miou)
        history = pd.DataFrame({"step": [10, 20], "learning_rate": 0.1, "loss": [2.5 + seed, 0.5]})
        history.to_csv(Run("cmb", "small-1_8", seed).history, index=False)
    miou, loss = (pd.read_csv(path) for path in dvc.write_plots(collect(params, "main")))
    assert list(miou["recipe"]) == ["supervised", "cmb"]
    assert list(miou["seeds"]) == [1, 2]
    assert list(miou["low"]) == pytest.approx([0.4, 0.55 - 0.070711])
    assert list(miou["miou"]) == pytest.approx([0.4, 0.55])
    assert list(miou["high"]) == pytest.approx([0.4, 0.55 + 0.070711])
    assert loss.values.tolist() == [
        ["cmb", "small-1_8", 0, 10, 2.5],
        ["cmb", "small-1_8", 0, 20, 0.5],
        ["cmb", "small-1_8", 1, 10, 3.5],
        ["cmb", "small-1_8", 1, 20, 0.5],
    ]


def test_nothing_run_is_nothing_shown(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.4)  # a record alone: it has no losses
    [miou] = dvc.write_plots(collect(params, "main"))
    assert miou == Path("results/plots/miou/main.csv")
    Run("supervised", "small-1_8", 0).metrics.unlink()
    dvc.write_metrics(collect(params, "main"))
    assert files(FOLDER) == {}
    assert dvc.write_plots(collect(params, "main")) == []
    assert not miou.exists()
