"""Targets of the Makefile: the command that each starts, with a stand-in for Python."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.project import ROOT

PYTHON = """#!/bin/sh
for each; do echo "<$each>"; done
echo "$PATH"
"""


def make(place: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make where .venv is ready, and its python prints its arguments and then the PATH."""
    (place / ".venv/bin").mkdir(parents=True)
    (place / ".venv/bin/python").write_text(PYTHON)
    (place / ".venv/bin/python").chmod(0o755)
    for name in ("constraints.txt", "pyproject.toml", ".venv/.ready"):
        (place / name).touch()
    command = ["make", "--makefile", str(ROOT / "Makefile"), *arguments]
    # `make test` runs these tests too: its level and flags would have the inner make print its folder
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(command, cwd=place, env=outer | environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["new-dataset", "PATH=../mine"], ["pipeline/new_dataset.py", "../mine"]),
        (["PATH=/a", "WRITE=1", "new-dataset"], ["pipeline/new_dataset.py", "/a", "--write"]),
        (
            ["new-dataset", "PATH=my 'own' $photos \"2\""],
            ["pipeline/new_dataset.py", "my 'own' $photos \"2\""],
        ),
        (["check-results"], ["pipeline/check_results.py"]),
        (["export-run", "RUN=cmb/camvid-1_8/0"], ["pipeline/export_run.py", "cmb/camvid-1_8/0"]),
        (["plan", "GRID=voc"], ["pipeline/plan.py", "voc"]),
        (
            ["plan", "GRID=voc", "MEASURE=1", "CARD=24"],
            ["pipeline/plan.py", "voc", "--measure", "--card", "24"],
        ),
    ],
    ids=" ".join,
)
def test_a_target_starts_its_script(arguments: list[str], command: list[str], tmp_path: Path) -> None:
    done = make(tmp_path, *arguments)
    assert done.returncode == 0, done.stderr
    *given, path = done.stdout.splitlines()
    assert given == [f"<{each}>" for each in command]
    # The programs are found as without a PATH among the arguments
    assert path == f"{tmp_path}/.venv/bin:{os.environ['PATH']}"


@pytest.mark.parametrize("target", ["new-dataset", "export-run", "plan"])
def test_a_target_without_its_argument_says_which(target: str, tmp_path: Path) -> None:
    done = make(tmp_path, target, NEW_DATASET="elsewhere")
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"make {target} " in done.stderr
