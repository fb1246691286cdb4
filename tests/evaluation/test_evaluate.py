"""What evaluation leaves beside a record."""

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest

from semiseg.base.errors import UserError
from semiseg.base.paths import Run
from semiseg.evaluation import record
from semiseg.evaluation.evaluate import condense_history, condensed

ROOT = Path(__file__).parents[2]


def history(rows: int, validated: list[int]) -> pd.DataFrame:
    """A row every 10 steps whose loss is its number; mIoU at the rows ``validated``."""
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
    with pytest.raises(UserError, match=r"^runs/cmb/mini/0/history\.csv: .*train the run again"):
        condense_history(run)
    run.artefacts.mkdir(parents=True)
    (run.artefacts / "history.csv").write_text("step,loss,val_miou_student\n5,1.23456789,\n10,0.5,0.25\n")
    condense_history(run)
    assert run.history.read_text() == "step,loss,val_miou_student\n5,1.23457,\n10,0.5,0.25\n"


def test_records_hold_counts_in_rows_and_older_ones_none(tmp_path: Path) -> None:
    committed = ROOT / Run("supervised", "camvid_small-1_8", 0).metrics
    tree = json.loads(committed.read_text())
    tree.pop("confusion", None)
    (tmp_path / "old.json").write_text(json.dumps(tree))
    old = record.read(tmp_path / "old.json")
    assert old.confusion is None
    new = dataclasses.replace(old, confusion=((10**12, 2), (0, 4)))
    record.write(new, tmp_path / "new.json")
    assert "[ 1000000000000, 2 ]" in (tmp_path / "new.json").read_text()
    assert record.read(tmp_path / "new.json") == new
