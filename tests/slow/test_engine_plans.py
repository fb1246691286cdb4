"""Both engines plan the same commands from params.yaml, and refuse a wrong one before any work."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo

from pipeline import dvc_stages
from tests import project
from tests.project import ROOT, edit
from tests.slow.engines import (
    CHECK,
    EVALUATE,
    PARAMS,
    TRAIN,
    address,
    commands,
    planned_by_dvc,
    planned_by_snakemake,
    small_demo,
)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as it stands, in which nothing is run."""
    return project.copy(tmp_path_factory.mktemp("copied"))


@pytest.fixture(scope="module")
def repo(copied: Path) -> Iterator[Repo]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copied)
        patch.setenv("DVC_SITE_CACHE_DIR", str(copied / ".dvc" / "tmp" / "site"))
        with Repo(str(copied)) as opened:
            yield opened


@pytest.mark.parametrize("grid", ["demo", "paper-cmb-cityscapes", "camvid-dcc-masks"])
def test_both_engines_issue_the_commands_of_a_grid(grid: str, copied: Path, repo: Repo) -> None:
    """One grid has several protocols, and the runs of the other stand in other tables too."""
    planned = planned_by_snakemake(copied, grid)
    assert planned_by_dvc(repo, address(grid)) == sorted([CHECK, *planned])
    for stage in (TRAIN, EVALUATE):
        found = [command for command in planned if command.startswith(stage)]
        assert found == commands(stage, PARAMS.grids[grid].runs())
    assert planned.count(f"python pipeline/report.py {grid}") == 1


def test_both_engines_issue_the_commands_of_all_grids_and_each_once(copied: Path, repo: Repo) -> None:
    planned = planned_by_snakemake(copied, *PARAMS.grids)
    stages = [stage.cmd for stage in repo.index.stages]
    assert len(planned) == len(set(planned))
    assert len(stages) == len(set(stages))
    assert {CHECK, *planned} <= set(stages)
    # DVC's matrix combines a dataset's splits with all of its seeds.
    assert all(each.startswith("python pipeline/split.py ") for each in set(stages) - {CHECK, *planned})
    runs = {run for grid in PARAMS.grids.values() for run in grid.runs()}
    assert sum(len(grid.runs()) for grid in PARAMS.grids.values()) > len(runs)
    assert [each for each in planned if each.startswith(TRAIN)] == commands(TRAIN, list(runs))
    pretrain = "python pipeline/resume.py pipeline/pretrain.py"
    expected = sorted(f"{pretrain} {name}" for name in PARAMS.pretraining)
    assert [each for each in planned if each.startswith(pretrain)] == expected


def test_a_report_reads_the_records_of_its_rows(repo: Repo) -> None:
    read = {stage.cmd: {Path(dep.def_path) for dep in stage.deps} for stage in repo.index.stages}
    runs = {run for grid in PARAMS.grids.values() for run in grid.runs()}
    for name, grid in PARAMS.grids.items():
        folders = {path for path in read[f"python pipeline/report.py {name}"] if "runs" in path.parts}
        assert {run for run in runs if folders & set(run.metrics.parents)} == set(grid.runs())


def test_without_a_target_both_run_the_default_grids_and_dvc_also_the_demo(copied: Path, repo: Repo) -> None:
    default = planned_by_snakemake(copied)
    demo = planned_by_snakemake(copied, "demo")
    assert planned_by_dvc(repo, "dvc.yaml") == sorted({CHECK, *default, *demo})
    runs = [run for name in PARAMS.default for run in PARAMS.grids[name].runs()]
    assert [each for each in default if each.startswith(TRAIN)] == commands(TRAIN, runs)


def test_the_stages_of_dvc_are_those_of_params_yaml() -> None:
    written = {name: (ROOT / name).read_text() for name in ("dvc.yaml", "pipeline/dvc.yaml")}
    expected = {"dvc.yaml": dvc_stages.targets(PARAMS), "pipeline/dvc.yaml": dvc_stages.stages(PARAMS)}
    assert written == expected, "run python pipeline/dvc_stages.py"


def test_an_overlay_that_no_stage_would_see_is_refused(copied: Path) -> None:
    done = project.run(copied, "snakemake", "demo", "--dry-run", "--config", "steps=3")
    assert done.returncode == 1
    assert "params.yaml" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("grids:\n", "grid:\n", "'grid'"),
        ("    seeds: [0]\n", "    seeds: [zero]\n", "grids: demo: seeds: 0: "),
        ("    steps: 400\n", "    steps: 400\n    step: 1\n", "protocols: demo: unknown key 'step'"),
    ],
)
def test_a_wrong_params_yaml_is_refused_before_anything_runs(
    old: str, new: str, key: str, tmp_path: Path
) -> None:
    place = project.copy(tmp_path, stubs=True)
    edit(place / "params.yaml", old, new)
    done = project.run(place, "snakemake", "demo", "--cores", "2")
    assert done.returncode == 1
    assert key in done.stdout
    assert not (place / "data").exists()


def test_both_engines_refuse_a_wrong_option_in_one_line(tmp_path: Path) -> None:
    place = small_demo(tmp_path, ["cmb"])
    edit(place / "params.yaml", "memory_lead_steps: 1", "gamma: 1")
    for engine in (["snakemake", "demo", "--cores", "2"], ["dvc", "repro", "demo"]):
        done = project.run(place, *engine)
        assert done.returncode != 0
        assert re.search(r"^error: params\.yaml: recipes: cmb .*'gamma'", done.stdout, re.MULTILINE)
        assert not (place / "data" / "ingredients").exists()
        assert not (place / "runs").exists()
