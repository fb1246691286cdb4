"""A paper's table from nothing to both engines' files, in miniature; all of them: make rehearse."""

import runpy
import sys
from pathlib import Path

import pytest

from semiseg import config
from tests import project, rehearsal

TABLE = "paper-cmb-cityscapes"  # four runs: two networks, three shares


def stage(name: str, *arguments: object) -> None:
    """A stage in this process: a process of its own would load torch again for each run."""
    file = project.ROOT / "pipeline" / f"{name}.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(file), *map(str, arguments)])
        runpy.run_path(str(file), run_name="__main__")


def test_a_papers_table_is_filled_and_the_same_by_both_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = rehearsal.stage(tmp_path)
    monkeypatch.chdir(place)
    grid = config.load().grids[TABLE]
    stage("check")
    stage("download", "cityscapes")
    for split in grid.splits:
        stage("split", split, 0)
    for run in grid.table():
        for name in ("train", "evaluate"):
            stage(name, run.recipe, run.split, run.seed)
    tables = []
    for command in (
        ["snakemake", TABLE, "--cores", "1"],  # finds all runs done
        ["dvc", "repro", "--single-item", f"pipeline/dvc.yaml:tables_{TABLE}", f"pipeline/dvc.yaml:{TABLE}"],
    ):
        output = project.succeed(place, *command)
        assert "pipeline/train.py" not in output
        assert rehearsal.empty_cells(place, TABLE) == []
        made = [place / "results" / "tables" / f"{TABLE}.{kind}" for kind in ("csv", "md", "tex")]
        tables.append([file.read_bytes() for file in made])
        assert list((place / "results" / "figures" / TABLE).iterdir())
        for file in made:
            file.unlink()
    assert tables[0] == tables[1]
    published, measured = b" 59.4 |", b" (1) |"
    assert tables[0][1].count(published) == 1
    assert tables[0][1].count(measured) == len(grid.table()) == 4
