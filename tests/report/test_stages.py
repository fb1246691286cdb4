"""The two stages as commands."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from semiseg.base.parameters import Params
from semiseg.evaluation.record import Record

Finish = Callable[..., Record]
ROOT = Path(__file__).parents[2]


def stage(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "pipeline" / f"{name}.py", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_tables_are_written_and_printed(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.4)
    done = stage("tables", "main")
    assert (done.returncode, done.stderr) == (0, "")
    assert ["supervised", "40.0", "(1)", "–"] in [line.split() for line in done.stdout.splitlines()]
    assert {path.name for path in Path("results/tables").iterdir()} == {"main.csv", "main.md", "main.tex"}


def test_a_papers_table_is_written_and_printed(params: Params, finish: Finish, printed: Path) -> None:
    finish("cmb", "small-1_8", 0, 0.7)
    done = stage("tables", "ablation")
    assert (done.returncode, done.stderr) == (0, "")
    assert ["all", "71.0", "70.0", "(1)", "-1.0"] in [line.split() for line in done.stdout.splitlines()]
    assert {path.suffix for path in Path("results/tables").glob("ablation.*")} == {
        ".csv",
        ".md",
        ".tex",
    }


def test_report_draws_a_grid_or_rebuilds_the_page_alone(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.4)
    assert stage("report").returncode == 0
    page = Path("results/report/main.html")
    assert "<img" not in page.read_text()
    assert stage("report", "main").returncode == 0
    assert page.read_text().count("<img") == 3


def test_a_stale_record_ends_both_with_one_line_and_status_two(params: Params, finish: Finish) -> None:
    finish("supervised", "small-1_8", 0, 0.4, config_sha256="0" * 64)
    for name in ("tables", "report"):
        done = stage(name, "main")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("error: results/runs/supervised/small-1_8/0/metrics.json: ")
    assert not Path("results/tables").exists()
    assert not Path("results/report.html").exists()
