"""The checks of a pull request with results, in a real repository."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from semiseg.base.errors import UserError
from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.evaluation import record
from semiseg.report import contributed
from tests.project import git
from tests.report.conftest import Finish

RUN = Run("cmb", "small-1_8", 0)


@pytest.fixture
def finished(params: Params, finish: Finish) -> Params:
    """Return a benchmark with one run that is in order."""
    finish(*dataclasses.astuple(RUN), 0.5)
    RUN.history.write_text("step,loss\n10,1.0\n20,0.5\n")
    return params


def edit(change: Callable[[dict[str, Any]], object]) -> None:
    tree = json.loads(RUN.metrics.read_text())
    change(tree)
    RUN.metrics.write_text(json.dumps(tree))


def test_a_result_in_order_has_no_problem(finished: Params) -> None:
    found, problems = contributed.check(finished)
    assert problems == []
    assert found == {RUN: record.read(RUN.metrics)}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (lambda tree: tree["last"]["networks"]["student"].update(miou=0.99), "miou"),
        (lambda tree: tree["provenance"].update(config_sha256="0" * 64), "configuration"),
        (lambda tree: tree["provenance"].update(data_sha256="unknown"), "data_sha256"),
        (lambda tree: tree["provenance"].update(revision="unknown"), "revision"),
        (lambda tree: tree["provenance"].update(revision="f" * 40 + "-modified"), "revision"),
        (lambda tree: tree["provenance"].update(packages={}), "packages"),
        (lambda tree: tree["provenance"].update(started="yesterday"), "started"),
        (lambda tree: tree["provenance"].update(finished="2020-01-01T00:00:00Z"), "finished"),
        (lambda tree: tree["provenance"]["config"].update(method="dcc"), "config"),
    ],
)
def test_a_record_that_is_not_in_order_is_named(
    finished: Params, change: Callable[[dict[str, Any]], object], key: str
) -> None:
    edit(change)
    _, problems = contributed.check(finished)
    assert any(line.startswith(str(RUN.metrics)) and key in line for line in problems)
    assert all("\n" not in line for line in problems)


def test_histories_and_stray_files_are_named(finished: Params) -> None:
    RUN.history.write_text("step,loss\n20,1.0\n10,0.5\n")
    stray = Path("results/runs/cmb/model.pt")
    stray.write_text("")
    _, problems = contributed.check(finished)
    assert [line.partition(":")[0] for line in problems] == [str(stray), str(RUN.history)]
    RUN.history.unlink()
    assert any(line.startswith(str(RUN.history)) for line in contributed.check(finished)[1])


def test_what_is_new_against_the_default_branch(finished: Params, finish: Finish) -> None:
    found, _ = contributed.check(finished)
    with pytest.raises(UserError):
        contributed.new(found)  # no repository
    git(Path(), "init", "--quiet", "--initial-branch=main")
    git(Path(), "add", ".")
    git(Path(), "commit", "--quiet", "--message=results")
    git(Path(), "checkout", "--quiet", "-b", "mine")
    assert contributed.new(found) == ("main", [])
    finish("dcc", "small-1_8", 1, 0.6)
    finish(*dataclasses.astuple(RUN), 0.7)
    branch, lines = contributed.new(contributed.check(finished)[0])
    assert branch == "main"
    assert [line.split()[:2] for line in lines] == [["changed", str(RUN)], ["new", "dcc/small-1_8/1"]]
    RUN.metrics.unlink()
    _, lines = contributed.new(contributed.check(finished)[0])
    assert [line.split()[:2] for line in lines] == [
        ["new", "dcc/small-1_8/1"],
        ["removed", RUN.metrics.as_posix()],
    ]
