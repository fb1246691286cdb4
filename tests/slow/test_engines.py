import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import yaml
from dvc.repo import Repo
from dvc.repo.reproduce import get_active_graph, plan_repro

from pipeline import dvc_stages
from semiseg.base import parameters, paths
from semiseg.training import checkpoint
from tests import project
from tests.project import ROOT, dvc_commands, edit, git, snakemake_commands, succeed
from tests.slow.faults import same

PARAMS = parameters.load(ROOT / "params.yaml")
CHECK = "python pipeline/check.py"  # Snakemake runs it as it starts, before any rule
TRAIN = "python pipeline/resume.py pipeline/train.py"
RUN = paths.Run("supervised", "shapes-1_20", 0)
RUN_IN_DVC = "pipeline/dvc.yaml:train_demo@supervised-shapes-1_20-0-shapes"


def address(grid: str) -> str:
    """The grid's target for DVC."""
    return grid if grid in dvc_stages.TARGETS else f"pipeline/dvc.yaml:{grid}"


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


def planned_by_snakemake(place: Path, *targets: str) -> list[str]:
    output = succeed(place, "snakemake", *targets, "--dry-run", "--forceall", "--printshellcmds")
    return sorted(snakemake_commands(output))


def planned_by_dvc(repo: Repo, target: str) -> list[str]:
    steps = plan_repro(get_active_graph(repo.index.graph), repo.stage.collect(target))
    return sorted(stage.cmd for stage in steps)


def in_table(grid: parameters.Grid) -> list[str]:
    recipes = [*grid.recipes, *grid.beside]
    return sorted(
        f"{recipe} {split} {seed}" for recipe in recipes for split in grid.splits for seed in grid.seeds
    )


@pytest.mark.parametrize("grid", ["demo", "paper-dcc-components", "camvid-dcc-masks"])
def test_both_engines_issue_the_commands_of_a_grid_and_of_the_rows_beside_it(
    grid: str, copied: Path, repo: Repo
) -> None:
    commands = planned_by_snakemake(copied, grid)
    assert planned_by_dvc(repo, address(grid)) == sorted([CHECK, *commands])
    for stage in ("train", "evaluate"):
        prefix = f"python pipeline/resume.py pipeline/{stage}.py "
        runs = [command.removeprefix(prefix) for command in commands if command.startswith(prefix)]
        assert runs == in_table(PARAMS.grids[grid])
    assert f"python pipeline/tables.py {grid}" in commands
    assert f"python pipeline/report.py {grid}" in commands


def test_both_engines_issue_the_commands_of_all_grids(copied: Path, repo: Repo) -> None:
    stages = {stage.cmd for stage in repo.index.stages}
    planned = {CHECK, *planned_by_snakemake(copied, *PARAMS.grids)}
    assert planned <= stages
    # DVC's matrix has a dataset's splits with all of its seeds
    assert all(command.startswith("python pipeline/split.py ") for command in stages - planned)


def test_a_table_reads_the_records_of_its_rows(repo: Repo) -> None:
    read = {stage.cmd: {Path(dep.def_path) for dep in stage.deps} for stage in repo.index.stages}
    for name, grid in PARAMS.grids.items():
        records = {Path("results", "runs", recipe, split) for recipe in grid.rows for split in grid.splits}
        found = {path for path in read[f"python pipeline/tables.py {name}"] if "runs" in path.parts}
        assert found == records


def test_without_a_target_both_run_the_default_grids_and_dvc_the_demo_before(
    copied: Path, repo: Repo
) -> None:
    default = planned_by_snakemake(copied)
    demo = planned_by_snakemake(copied, "demo")
    assert planned_by_dvc(repo, "dvc.yaml") == sorted({CHECK, *default, *demo})
    assert not set(demo) <= set(default)


def test_the_stages_of_dvc_are_those_of_params_yaml() -> None:
    written = {name: (ROOT / name).read_text() for name in ("dvc.yaml", "pipeline/dvc.yaml")}
    expected = {"dvc.yaml": dvc_stages.targets(PARAMS), "pipeline/dvc.yaml": dvc_stages.stages(PARAMS)}
    assert written == expected, "run python pipeline/dvc_stages.py"


def test_an_overlay_that_no_stage_would_see_is_refused(copied: Path) -> None:
    done = project.run(copied, "snakemake", "demo", "--dry-run", "--config", "steps=3")
    assert done.returncode == 1
    assert "change params.yaml instead" in done.stdout


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("grids:\n", "grid:\n", "grid"),
        ("    seeds: [0]\n", "    seeds: [zero]\n", "zero"),
        ("    steps: 120\n", "    steps: 120\n    step: 1\n", "unknown key 'step'"),
    ],
)
def test_a_wrong_params_yaml_is_refused_before_anything_runs(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    place = project.copy(tmp_path, stubs=True)
    edit(place / "params.yaml", old, new)
    done = project.run(place, "snakemake", "demo", "--cores", "2")
    assert done.returncode == 1
    assert message in done.stdout
    assert not (place / "data").exists()


def test_check_refuses_a_wrong_option_in_one_line(tmp_path: Path) -> None:
    place = project.copy(tmp_path, stubs=True)
    edit(
        place / "params.yaml",
        "  supervised:\n    method: supervised\n",
        "  supervised:\n    method: supervised\n    options: {gamma: 1}\n",
    )
    done = project.run(place, "snakemake", "demo", "--cores", "2")
    assert done.returncode == 1
    assert re.search(
        r"^error: params.yaml: recipes: supervised: options.* 'gamma'", done.stdout, re.MULTILINE
    )
    assert not (place / "data" / "ingredients").exists()
    assert not (place / "runs").exists()


def adopt(place: Path) -> None:
    """Let Snakemake record what DVC has run; otherwise it is blind to later changes."""
    succeed(place, "snakemake", "demo", "--touch", "--forceall", "--cores", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo finished, each stage a stub."""
    place = project.copy(tmp_path_factory.mktemp("finished"), stubs=True)
    succeed(place, "dvc", "repro", "demo")
    adopt(place)
    return place


def rerun(place: Path) -> tuple[list[str], list[str]]:
    """What each engine would run now; then it is run, so that both are up to date again."""
    by_snakemake = snakemake_commands(succeed(place, "snakemake", "demo", "--dry-run", "--printshellcmds"))
    by_dvc = dvc_commands(succeed(place, "dvc", "repro", "demo"))
    adopt(place)
    return sorted(by_snakemake), sorted(by_dvc)


def trained(commands: list[str]) -> list[str]:
    return [command for command in commands if command.startswith(TRAIN)]


def test_nothing_is_run_twice(finished: Path) -> None:
    assert rerun(finished) == ([], [])


def test_a_change_runs_again_what_it_touches_and_nothing_else(finished: Path) -> None:
    options = "    options: {attention: none, "
    edit(finished / "params.yaml", options, f"{options}contrast_weight: 0.2, ")
    with (finished / "semiseg/methods/dcc.py").open("a") as file:
        file.write("\nUNUSED = 1\n")
    with (finished / "semiseg/methods/cmb.py").open("a") as file:
        file.write("\n# A remark.\n")
    of_dcc = {each for each in PARAMS.grids["demo"].recipes if PARAMS.recipes[each].method == "dcc"}
    assert of_dcc
    expected = [f"{TRAIN} {recipe} shapes-1_20 0" for recipe in sorted({"cmb-no_attention", *of_dcc})]
    assert [trained(commands) for commands in rerun(finished)] == [expected, expected]


def test_dvc_adopts_what_snakemake_has_run(tmp_path: Path) -> None:
    place = project.copy(tmp_path, stubs=True)
    succeed(place, "snakemake", "demo", "--cores", "2")
    succeed(place, "pipeline.check")
    succeed(place, "dvc", "commit", "--force", "--with-deps", "demo")
    assert dvc_commands(succeed(place, "dvc", "repro", "demo")) == []
    options = "    options: {attention: none, "
    edit(place / "params.yaml", options, f"{options}contrast_weight: 0.2, ")
    runs = trained(dvc_commands(succeed(place, "dvc", "repro", "demo")))
    assert runs == [f"{TRAIN} cmb-no_attention shapes-1_20 0"]


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


def test_a_stage_that_fails_is_seen_through_its_log(tmp_path: Path) -> None:
    place = project.copy(tmp_path, stubs=True)
    (place / "fail").write_text("train")
    done = project.run(place, "snakemake", "demo", "--cores", "2")
    assert done.returncode == 1
    assert not (place / "results").exists()
    assert "train fails" in (place / "logs/train/supervised/shapes-1_20/0.log").read_text()
    (place / "fail").unlink()
    succeed(place, "snakemake", "demo", "--cores", "2")  # the same command goes on


def shrink(params_file: Path) -> None:
    """The demo with three recipes, a few tiny images and four steps; few grids beside it."""
    tree = yaml.safe_load(params_file.read_text())
    tree["datasets"]["shapes"]["options"] = {"train": 24, "val": 4, "size": 64}
    tree["splits"]["shapes-1_20"]["ratio"] = "1/6"
    demo = tree["protocols"]["demo"]
    demo["network"]["decoder_channels"] = 16
    demo["geometry"] |= {"base_size": 64}
    demo |= {"labelled_batch": 2, "unlabelled_batch": 2, "steps": 4, "validate_every": 2, "log_every": 2}
    tree["grids"]["demo"]["recipes"] = ["supervised", "cmb", "dcc"]
    tree["grids"] = {name: tree["grids"][name] for name in dvc_stages.TARGETS}  # DVC reads all that there is
    params_file.write_text(yaml.safe_dump(tree, sort_keys=False))


def test_a_second_start_names_the_process_that_holds_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = project.copy(tmp_path)
    shrink(place / "params.yaml")
    succeed(place, "pipeline.dvc_stages")
    monkeypatch.chdir(place)
    with checkpoint.held(RUN):
        by_snakemake = project.run(place, "snakemake", str(RUN.artefacts / "model.pt"), "--cores", "1")
        by_dvc = project.run(place, "dvc", "repro", RUN_IN_DVC)
    for ended in (by_snakemake, by_dvc):
        assert ended.returncode != 0
        assert f"error: {RUN}: being trained by process {os.getpid()}; wait for it or stop it" in ended.stdout
    assert not RUN.artefacts.exists()


def test_under_both_engines_a_run_that_alone_is_told_to_end_goes_on_to_the_same_figures(
    tmp_path: Path,
) -> None:
    ends = []
    for engine in (
        ["snakemake", str(RUN.artefacts / "model.pt"), "--cores", "1"],
        ["dvc", "repro", RUN_IN_DVC],
        ["pipeline.train", *str(RUN).split("/")],  # nobody disturbs it
    ):
        place = project.copy(tmp_path / engine[0])
        shrink(place / "params.yaml")
        edit(place / "params.yaml", "steps: 4", "steps: 40")
        succeed(place, "pipeline.dvc_stages")
        if engine[0] == "pipeline.train":
            for stage in (["download", "shapes"], ["split", "shapes-1_20", "0"]):
                succeed(place, f"pipeline.{stage[0]}", *stage[1:])
            succeed(place, *engine)
        else:
            said = ended_once(place, *engine)
            assert len(re.findall(r"saved after step \d+; start it again", said)) == 1
            assert len(re.findall(r"ended with 75; start 2 of at most 5", said)) == 1
        ends.append((place, checkpoint.read(place / RUN.artefacts / "model.pt")))
    (_, one), (_, other), (_, whole) = ends
    assert same(one, whole)
    assert same(other, whole)
    histories = [pd.read_csv(place / RUN.artefacts / "history.csv") for place, _ in ends]
    for history in histories[:2]:
        pd.testing.assert_frame_equal(
            history.drop(columns="images_per_second"), histories[2].drop(columns="images_per_second")
        )


def ended_once(place: Path, *command: str) -> str:
    """Run an engine, and tell the process that trains to end once that is under way; what is said."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=place,
        env=project.environment(place) | {"CUDA_VISIBLE_DEVICES": ""},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as engine:
        while not (place / RUN.artefacts / "history.csv").exists():
            assert engine.poll() is None, engine.stdout.read()
            time.sleep(0.02)
        (holder,) = (place / "checkpoints" / "locks").glob("*.pid")
        os.kill(int(holder.read_text()), signal.SIGTERM)
        said, _ = engine.communicate(timeout=300)
    assert engine.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo in miniature, run by each engine in a project of its own."""
    places = {}
    for engine in (["snakemake", "demo", "--cores", "2"], ["dvc", "repro", "demo"]):
        place = places[engine[0]] = project.copy(tmp_path_factory.mktemp(engine[0]))
        shrink(place / "params.yaml")
        succeed(place, "pipeline.dvc_stages")
        succeed(place, *engine)
    return places


def numbers(place: Path) -> dict[str, bytes]:
    """The files under results/ that hold figures of the whole grid."""
    folders = [place / "results" / name for name in ("tables", "metrics", "plots")]
    files = [file for folder in folders for file in folder.rglob("*.*") if not file.name.startswith(".")]
    return {file.relative_to(place / "results").as_posix(): file.read_bytes() for file in files}


def table(place: Path) -> pd.DataFrame:
    return pd.read_csv(place / "results/tables/demo.csv")


def test_both_engines_reach_the_same_tables(demos: dict[str, Path]) -> None:
    made = numbers(demos["snakemake"])
    assert made == numbers(demos["dvc"])
    assert set(made) == {
        *(f"tables/demo.{kind}" for kind in ("csv", "md", "tex")),
        *(f"metrics/demo/shapes-1_20/{recipe}.json" for recipe in ("supervised", "cmb", "dcc")),
        *(f"plots/{kind}/demo.csv" for kind in ("miou", "loss")),
    }
    rows = made["tables/demo.csv"].decode().splitlines()
    assert len(rows) == 4
    assert all(re.search(r"0\.\d+", row) for row in rows[1:])
    for place in demos.values():
        assert (place / "results" / "report.html").exists()
        assert (place / "results" / "figures" / "demo" / "miou.png").exists()


@pytest.mark.parametrize("engine", ["snakemake", "dvc"])
def test_dvc_shows_the_figures_of_the_table_and_complains_of_nothing(
    engine: str, demos: dict[str, Path]
) -> None:
    shown = json.loads(succeed(demos[engine], "dvc", "metrics", "show", "--json"))
    columns = {"miou_mean": "miou", "miou_std": "std", "gain_mean": "gain", "seeds": "seeds"}
    cells = table(demos[engine]).rename(columns=columns)
    expected = {
        f"results/metrics/demo/{cell['split']}/{cell['recipe']}.json": {
            "data": {name: cell[name] for name in columns.values() if pd.notna(cell[name])}
        }
        for cell in cells.to_dict("records")
    }
    assert shown == {"": {"data": expected}}


def test_dvc_names_the_numbers_that_have_changed(demos: dict[str, Path], tmp_path: Path) -> None:
    place = Path(shutil.copytree(demos["dvc"], tmp_path / "project"))
    git(place, "add", "--force", "--", "results", *project.FILES, "dvc.lock", "pipeline")
    git(place, "commit", "--quiet", "--message", "The demo, finished")
    before = table(place).set_index("recipe")["miou_mean"]
    record = place / "results/runs/dcc/shapes-1_20/0/metrics.json"
    found = json.loads(record.read_text())
    found["last"][found["headline"]]["miou"] = 0.5
    record.write_text(json.dumps(found))
    succeed(place, "pipeline.tables", "demo")
    changed = json.loads(succeed(place, "dvc", "metrics", "diff", "--json"))
    assert list(changed) == ["results/metrics/demo/shapes-1_20/dcc.json"]
    assert changed["results/metrics/demo/shapes-1_20/dcc.json"] == {
        "miou": {"old": before["dcc"], "new": 0.5, "diff": pytest.approx(0.5 - before["dcc"])},
        "gain": {
            "old": pytest.approx(before["dcc"] - before["supervised"], abs=2e-6),
            "new": pytest.approx(0.5 - before["supervised"], abs=2e-6),
            "diff": pytest.approx(0.5 - before["dcc"], abs=2e-6),
        },
    }
    tree = yaml.safe_load((place / "params.yaml").read_text())
    steps = tree["protocols"]["demo"]["steps"]
    tree["protocols"]["demo"]["steps"] = steps + 1
    (place / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    changed = json.loads(succeed(place, "dvc", "params", "diff", "--json"))
    assert changed == {"params.yaml": {"protocols.demo.steps": {"old": steps, "new": steps + 1, "diff": 1}}}


def test_dvc_draws_miou_and_losses(demos: dict[str, Path], tmp_path: Path) -> None:
    said = succeed(demos["dvc"], "dvc", "plots", "show", "--out", str(tmp_path))
    page = tmp_path / "index.html"
    assert said.strip() == page.as_uri()
    specs = [json.loads(each) for each in re.findall(r"var spec = (.*);", page.read_text())]
    assert "<DVC_METRIC" not in str(specs)
    miou, loss = (spec["data"]["values"] for spec in specs)
    means = table(demos["dvc"]).set_index("recipe")["miou_mean"]
    assert {row["recipe"]: float(row["miou"]) for row in miou} == dict(means)
    for recipe in means.index:
        history = pd.read_csv(demos["dvc"] / f"results/runs/{recipe}/shapes-1_20/0/history.csv")
        drawn = {int(row["step"]): float(row["loss"]) for row in loss if row["recipe"] == recipe}
        assert drawn == pytest.approx(dict(zip(history["step"], history["loss"], strict=True)), abs=1e-6)


def test_the_report_of_snakemake_holds_the_table(demos: dict[str, Path], tmp_path: Path) -> None:
    succeed(demos["snakemake"], "snakemake", "demo", "--report", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    held = re.findall(r"data:text/csv;[^,]*base64,([\w+/=]+)", page)
    table_file = demos["snakemake"] / "results/tables/demo.csv"
    assert [base64.b64decode(each) for each in held] == [table_file.read_bytes()]
    assert "filename=miou.png" in page
