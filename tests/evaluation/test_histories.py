"""What is no history is refused by name."""

from pathlib import Path

import pytest

from semiseg.base.errors import UserError
from semiseg.evaluation import histories


def test_rows_are_read_and_a_figure_may_be_absent(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("step,loss,val_miou\n2,1.5,\n4,1.25,0.5\n")
    history = histories.read(path, histories.SHORT)
    assert history["step"].tolist() == [2, 4]
    assert history["val_miou"].tolist()[1] == 0.5


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x80", b"[1]\n", b"step,loss\n2,high\n", b"step\n2\n", b"a,b\n1,2\n3,4,5\n"]
)
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"history\.csv: .*; evaluate the run again$"):
        histories.read(path, histories.SHORT, "loss")


def test_an_absent_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone.csv"):
        with pytest.raises(UserError, match=path.name):
            histories.read(path, histories.SHORT)
