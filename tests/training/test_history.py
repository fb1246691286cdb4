"""history.csv holds means of all steps; a log that is not finite ends the run by its name and step."""

import math
from pathlib import Path

import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from semiseg.training import history as history_module
from semiseg.training.divergence import Diverged
from semiseg.training.history import History


def test_a_row_holds_means_rates_and_validation(tmp_path: Path) -> None:
    with History(tmp_path, "a/b/0", 0, 4, [], []) as history:
        for step, loss in enumerate((1.0, 3.0)):
            history.add(step, {"loss": torch.tensor(loss)})
        history.flush(0.1, 4)
        history.validated({"val_miou_left": 0.25, "val_miou_right": 0.5})
        assert history.is_validated(2)
        for step, loss in enumerate((5.0, 6.0), start=2):
            history.add(step, {"loss": torch.tensor(loss)})
        history.flush(0.05, 4)
        assert not history.is_validated(4)
    table = pd.read_csv(tmp_path / "history.csv")
    assert table["step"].tolist() == [2, 4]
    assert table["loss"].tolist() == [2.0, 5.5]
    assert table["learning_rate"].tolist() == [0.1, 0.05]
    assert table["val_miou_left"].tolist()[0] == 0.25
    assert table["val_miou_right"].isna().tolist() == [False, True]
    assert (table["images_per_second"] > 0).all()
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_the_file_is_written_at_first_then_every_so_often_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written() -> list[int]:
        return pd.read_csv(tmp_path / "history.csv")["step"].tolist()

    with History(tmp_path, "a/b/0", 0, 4, [], []) as history:
        for step, seconds, expected in (
            (0, 60.0, [1]),
            (1, 60.0, [1]),
            (2, 0.0, [1, 2, 3]),
            (3, 60.0, [1, 2, 3]),
        ):
            monkeypatch.setattr(history_module, "WRITE_SECONDS", seconds)
            history.add(step, {"loss": torch.tensor(1.0)})
            history.flush(0.1, 4)
            assert written() == expected
    assert written() == [1, 2, 3, 4]


def test_a_checkpoint_between_two_rows_leaves_no_trace(tmp_path: Path) -> None:
    with History(tmp_path / "whole", "a/b/0", 0, 4, [], []) as whole:
        for step in range(4):
            whole.add(step, {"loss": torch.tensor(float(step))})
        whole.flush(0.1, 4)
    with History(tmp_path / "parts", "a/b/0", 0, 4, [], []) as first:
        for step in range(3):
            first.add(step, {"loss": torch.tensor(float(step))})
        first.read()
        assert len(first.unwritten) == 3
    with History(tmp_path / "parts", "a/b/0", 3, 4, first.rows, first.unwritten) as second:
        second.add(3, {"loss": torch.tensor(3.0)})
        second.flush(0.1, 4)
    one, other = (pd.read_csv(tmp_path / name / "history.csv") for name in ("whole", "parts"))
    pd.testing.assert_frame_equal(
        one.drop(columns="images_per_second"), other.drop(columns="images_per_second")
    )


def test_tensorboard_keeps_the_row_that_a_run_goes_on_from(tmp_path: Path) -> None:
    rows: list[dict[str, float]] = []
    for first in (0, 2):
        with History(tmp_path, "a/b/0", first, 4, rows, []) as history:
            for step in (first, first + 1):
                history.add(step, {"loss": torch.tensor(float(step))})
            history.flush(0.1, 4)
            rows = history.rows
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named_with_its_step(tmp_path: Path, value: float) -> None:
    with History(tmp_path, "a/b/0", 0, 10, [], []) as history:
        history.add(4, {"supervised": torch.tensor(1.0), "contrast": torch.tensor(2.0)})
        history.add(5, {"supervised": torch.tensor(1.0), "contrast": torch.tensor(value)})
        with pytest.raises(Diverged, match=r"^a/b/0: .*'contrast'.* 5") as raised:
            history.flush(0.1, 1)
    assert raised.value.step == 5
    assert raised.value.exit_status == 3
    assert not (tmp_path / "history.csv").exists()
