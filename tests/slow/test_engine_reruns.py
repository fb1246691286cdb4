"""Both engines run again exactly the stages that a change touches, and nothing else."""

import re
from pathlib import Path

import pytest
from dvc.repo import Repo
from dvc.repo.reproduce import get_active_graph, plan_repro

from semiseg.base import parameters, tree
from semiseg.base.paths import Run
from tests import project
from tests.project import dvc_commands, edit, snakemake_commands, succeed
from tests.slow.engines import CHECK, EVALUATE, TRAIN, commands, rewrite, with_few_grids

GRIDS = ("demo", "camvid-small", "ablation-camvid-small")
IN_DVC = ("demo", *(f"pipeline/dvc.yaml:{name}" for name in GRIDS[1:]))
RECIPES = ["supervised", "cmb", "cmb-no_attention", "dcc"]


def adopt(place: Path) -> None:
    """Let Snakemake record what DVC has run; otherwise it is blind to later changes."""
    succeed(place, "snakemake", *GRIDS, "--touch", "--forceall", "--cores", "1")


def runs(place: Path) -> list[Run]:
    """Return every run once, whichever tables show it."""
    grids = parameters.load(place / "params.yaml").grids
    return list(dict.fromkeys(run for grid in grids.values() for run in grid.runs()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three grids finished, each stage a stub. A test leaves them up to date."""
    place = with_few_grids(tmp_path_factory.mktemp("finished"), RECIPES)
    made = dvc_commands(succeed(place, "dvc", "repro", *IN_DVC))
    trained = [command for command in made if command.startswith(TRAIN)]
    assert sorted(trained) == commands(TRAIN, runs(place))  # a run that two tables show is trained once
    assert len(trained) == len(RECIPES) * 2
    adopt(place)
    return place


def rerun(place: Path) -> tuple[list[str], list[str]]:
    """Return what each engine would run now; then run it, so that both are up to date again."""
    by_snakemake = snakemake_commands(succeed(place, "snakemake", *GRIDS, "--dry-run", "--printshellcmds"))
    by_dvc = [each for each in dvc_commands(succeed(place, "dvc", "repro", *IN_DVC)) if each != CHECK]
    if by_dvc or by_snakemake:
        adopt(place)
    return sorted(by_snakemake), sorted(by_dvc)


def of_runs(all_commands: list[str]) -> list[str]:
    """Return the commands that train and evaluate."""
    return [command for command in all_commands if command.startswith((TRAIN, EVALUATE))]


def train_and_evaluate(again: list[Run]) -> list[str]:
    """Return the commands that train and evaluate these runs."""
    return sorted([*commands(TRAIN, again), *commands(EVALUATE, again)])


ADDED = {
    "semiseg/base/files.py": "\n\ndef added() -> int:\n    return 1\n",
    "semiseg/training/loop.py": "\n\ndef added() -> int:\n    return 1\n",
    "semiseg/methods/added.py": "REVISION = 1\n",
    "semiseg/data/archives.py": "\nADDED = 'https://example.org'\n",
    "semiseg/report/figures/added.py": "def draw() -> None: ...\n",
    "semiseg/methods/cmb.py": "\n# A remark.\n",
    "pipeline/train.py": "\n# A remark.\n",
}


def test_nothing_is_run_twice_nor_for_changes_that_alter_no_result(finished: Path) -> None:
    for file, text in ADDED.items():
        with (finished / file).open("a") as opened:
            opened.write(text)
    edit(finished / "params.yaml", "image_cache_mib: 16\n", "image_cache_mib: 17\n")
    assert rerun(finished) == ([], [])


def raise_revision(file: Path) -> None:
    number = parameters.revision(file)
    parameters.revision.cache_clear()
    edit(file, f"\nREVISION = {number}", f"\nREVISION = {number + 1}")


def test_a_raised_revision_of_a_method_trains_exactly_its_runs_again(finished: Path) -> None:
    raise_revision(finished / "semiseg/methods/cmb.py")
    again = [run for run in runs(finished) if run.recipe.startswith("cmb")]
    by_snakemake, by_dvc = rerun(finished)
    assert of_runs(by_snakemake) == of_runs(by_dvc) == train_and_evaluate(again)


def test_a_raised_revision_of_the_evaluation_scores_all_again_and_trains_none(finished: Path) -> None:
    raise_revision(finished / "semiseg/evaluation/evaluate.py")
    by_snakemake, by_dvc = rerun(finished)
    assert of_runs(by_snakemake) == of_runs(by_dvc) == commands(EVALUATE, runs(finished))


def test_an_option_trains_its_variant_again_and_a_title_writes_its_report(finished: Path) -> None:
    edit(finished / "params.yaml", "attention: none", "contrast_weight: 0.2\n      attention: none")
    edit(finished / "params.yaml", "title: Demo", "title: The demo")
    again = [run for run in runs(finished) if run.recipe == "cmb-no_attention"]
    by_snakemake, by_dvc = rerun(finished)
    assert of_runs(by_snakemake) == of_runs(by_dvc) == train_and_evaluate(again)
    assert "python pipeline/report.py demo" in by_snakemake
    assert "python pipeline/report.py demo" in by_dvc


def test_a_new_share_grid_and_variant_train_only_the_new_runs(finished: Path) -> None:
    params = tree.read(finished / "params.yaml")
    params["datasets"]["shapes"]["shares"]["1/3"] = {}
    params["recipes"]["supervised"] = {"added": {}}
    demo = params["grids"]["demo"]
    params["grids"]["new"] = {
        **demo, "title": "New", "shares": ["1/20", "1/3"], "recipes": ["supervised", "supervised-added"],
    }  # fmt: skip
    rewrite(finished, params)
    assert rerun(finished) == ([], [])
    by_snakemake = succeed(finished, "snakemake", "new", "--dry-run", "--printshellcmds")
    by_dvc = succeed(finished, "dvc", "repro", "pipeline/dvc.yaml:new")
    new = [Run("supervised-added", "demo-1_20", 0)]
    new += [Run(recipe, "demo-1_3", 0) for recipe in ("supervised", "supervised-added")]
    expected = train_and_evaluate(new)
    assert of_runs(sorted(snakemake_commands(by_snakemake))) == expected
    assert of_runs(sorted(dvc_commands(by_dvc))) == expected
    succeed(finished, "snakemake", "new", "--touch", "--forceall", "--cores", "1")


def test_prepared_data_that_changed_trains_again_in_both(finished: Path) -> None:
    """Another image is another digest in the manifest, once the dataset is prepared again."""
    (finished / "data_holds").write_text("other images")
    succeed(finished, "pipeline.download", "camvid")
    again = [run for run in runs(finished) if run.split == "camvid-small-1_16"]
    by_snakemake, by_dvc = rerun(finished)
    assert of_runs(by_snakemake) == of_runs(by_dvc) == train_and_evaluate(again)


def test_both_engines_read_the_same_files(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = succeed(finished, "snakemake", "demo", "--detailed-summary", "--quiet", "all")
    rows = [line.split("\t") for line in summary.splitlines() if line.count("\t") == 7]
    header, *body = rows
    by_snakemake = {}
    for row in (dict(zip(header, row, strict=True)) for row in body):
        command = row["shellcmd"].partition(" 2>&1")[0]
        files = set(row["input-file(s)"].split(",")) - {""}
        by_snakemake[command] = {re.sub(r"(results/runs/[^/]+/[^/]+)/.*", r"\1", file) for file in files}
    monkeypatch.chdir(finished)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(finished / ".dvc" / "tmp" / "site"))
    with Repo(str(finished)) as repo:
        steps = plan_repro(get_active_graph(repo.index.graph), repo.stage.collect("demo"))
        by_dvc = {
            stage.cmd: {
                dep.def_path for dep in stage.deps if not dep.def_path.startswith("data/ingredients/")
            }
            for stage in steps
            if stage.cmd != CHECK
        }
    assert by_dvc == by_snakemake


def test_dvc_adopts_what_snakemake_has_run(tmp_path: Path) -> None:
    place = with_few_grids(tmp_path, ["supervised", "cmb-no_attention"])
    made = snakemake_commands(succeed(place, "snakemake", *GRIDS, "--cores", "2", "--printshellcmds"))
    assert sorted(each for each in made if each.startswith(TRAIN)) == commands(TRAIN, runs(place))
    succeed(place, "pipeline.check")
    succeed(place, "dvc", "commit", "--force", "--with-deps", "demo")
    assert dvc_commands(succeed(place, "dvc", "repro", "demo")) == []
    edit(place / "params.yaml", "attention: none", "contrast_weight: 0.2\n      attention: none")
    again = of_runs(dvc_commands(succeed(place, "dvc", "repro", "demo")))
    assert again == [f"{stage} cmb-no_attention demo-1_20 0" for stage in (TRAIN, EVALUATE)]


def test_a_stage_that_fails_is_seen_through_its_log(tmp_path: Path) -> None:
    place = with_few_grids(tmp_path, ["supervised"])
    (place / "fail").write_text("train")
    done = project.run(place, "snakemake", "demo", "--cores", "2")
    assert done.returncode == 1
    assert not (place / "results").exists()
    assert "train fails" in (place / "logs/train/supervised/demo-1_20/0.log").read_text()
    (place / "fail").unlink()
    succeed(place, "snakemake", "demo", "--cores", "2")  # the same command goes on
