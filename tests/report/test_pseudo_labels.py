"""The table of judged pseudo-labels, from histories."""

from collections.abc import Callable
from pathlib import Path

from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.evaluation.record import Record
from semiseg.report import page, pseudo_labels
from semiseg.report.collect import collect

Finish = Callable[..., Record]
CLASSES = 3
HEAD = ",".join(f"pixels_{kind}_{c}" for kind in ("true", "labelled", "right") for c in range(CLASSES))
# The first row is before the last third of the steps; the second is a mean over twice as many as the third.
JUDGED = f"step,supervised,{HEAD}\n60,1,9,9,9,9,9,9,0,0,0\n80,1,10,4,0,5,4,0,4,1,0\n90,1,10,4,0,2,1,0,2,1,0\n"


def keep(finish: Finish, recipe: str, seed: int, text: str) -> None:
    finish(recipe, "small-1_8", seed, 0.5)
    Run(recipe, "small-1_8", seed).history.write_text(text)


def test_a_cell_holds_accuracy_and_coverage_of_the_last_steps(params: Params, finish: Finish) -> None:
    keep(finish, "cmb", 0, JUDGED)
    keep(finish, "dcc", 0, "step,supervised\n90,1\n")
    table = pseudo_labels.table(collect(params, "main"))
    assert table is not None
    assert table.head == ("recipe", "share", "all", "background", "disc")
    # background: 12 of 30 labelled, 10 of them right; disc: 9 of 12, 3 right; no square is seen
    assert [row[2:] for row in table.rows] == [("62 (50)", "83 (40)", "33 (75)")]
    assert table.rows[0][0] == "cmb"


def test_seeds_are_summed(params: Params, finish: Finish) -> None:
    keep(finish, "cmb", 0, JUDGED)
    keep(finish, "cmb", 1, f"step,supervised,{HEAD}\n90,1,0,0,1,0,0,0,0,0,0\n")
    table = pseudo_labels.table(collect(params, "main"))
    assert table is not None
    assert table.head[-1] == "square"
    assert table.rows[0][-1] == "– (0)"


def test_the_page_shows_the_table_only_of_judged_runs(params: Params, finish: Finish) -> None:
    finish("cmb", "small-1_8", 0, 0.5)
    page.write(params)
    written = Path("results/report/main.html")
    assert "Pseudo-labels" not in written.read_text()
    keep(finish, "cmb", 0, JUDGED)
    page.write(params)
    assert "62 (50)" in written.read_text()
