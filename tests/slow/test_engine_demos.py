"""A small demo run by each engine in a project of its own: the same numbers, also after a signal."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from semiseg.base import locks, tree
from semiseg.training import checkpoint
from tests import project
from tests.project import git, succeed
from tests.slow.engines import RUN, RUN_IN_DVC, rewrite, small_demo
from tests.slow.faults import same

RECIPES = ["supervised", "dcc"]


def quickly_checked(place: Path) -> Path:
    """Return ``place``, whose params.yaml is right, so that no engine need wait for its check."""
    (place / "pipeline/check.py").write_text(project.CHECK_STUB)
    return place


def test_a_second_start_names_the_process_that_holds_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = quickly_checked(small_demo(tmp_path, ["supervised"]))
    monkeypatch.chdir(place)
    with locks.held(RUN):
        by_snakemake = project.run(place, "snakemake", str(RUN.artefacts / "model.pt"), "--cores", "1")
        by_dvc = project.run(place, "dvc", "repro", RUN_IN_DVC)
    for ended in (by_snakemake, by_dvc):
        assert ended.returncode != 0
        assert re.search(rf"^error: {RUN}: .*\b{os.getpid()}\b", ended.stdout, re.MULTILINE)
    assert not RUN.artefacts.exists()


def test_under_both_engines_a_run_that_alone_is_told_to_end_goes_on_to_the_same_figures(
    tmp_path: Path,
) -> None:
    ends = []
    for engine in (
        ["snakemake", str(RUN.artefacts / "model.pt"), "--cores", "1"],
        ["dvc", "repro", RUN_IN_DVC],
        ["pipeline.train", *str(RUN).split("/")],  # undisturbed
    ):
        place = quickly_checked(small_demo(tmp_path / engine[0], ["supervised"], steps=40))
        if engine[0] == "pipeline.train":
            for stage in (["download", "shapes"], ["split", RUN.split, "0"]):
                succeed(place, f"pipeline.{stage[0]}", *stage[1:])
            succeed(place, *engine)
        else:
            said = ended_once(place, *engine)
            assert len(re.findall(rf"^error: {RUN}: .* step \d+", said, re.MULTILINE)) == 1
            assert len(re.findall(r"2 of at most 5", said)) == 1
        ends.append((place, checkpoint.read(place / RUN.artefacts / "model.pt")))
    (_, one), (_, other), (_, whole) = ends
    assert same(one, whole)
    assert same(other, whole)
    histories = [
        pd.read_csv(place / RUN.artefacts / "history.csv").drop(columns="images_per_second")
        for place, _ in ends
    ]
    for history in histories[:2]:
        pd.testing.assert_frame_equal(history, histories[2])


def ended_once(place: Path, *command: str) -> str:
    """Run an engine, send SIGTERM to the training process once it is under way, and return the output."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=place,
        env=project.environment(place) | {"CUDA_VISIBLE_DEVICES": ""},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as engine:
        assert engine.stdout is not None
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
    """The small demo, run by each engine in a project of its own."""
    places = {}
    for engine in (["snakemake", "demo", "--cores", "2"], ["dvc", "repro", "demo"]):
        place = places[engine[0]] = small_demo(tmp_path_factory.mktemp(engine[0]), RECIPES)
        succeed(place, *engine)
    return places


def numbers(place: Path) -> dict[str, bytes]:
    """Return the files under results/ that hold figures of the whole grid."""
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
        *(f"metrics/demo/demo-1_20/{recipe}.json" for recipe in RECIPES),
        *(f"plots/{kind}/demo.csv" for kind in ("miou", "loss")),
    }
    rows = made["tables/demo.csv"].decode().splitlines()
    assert len(rows) == 1 + len(RECIPES)
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
    exchange_records(place, *RECIPES)
    succeed(place, "pipeline.tables", "demo")
    after = table(place).set_index("recipe")["miou_mean"]
    assert after.to_dict() == {"supervised": before["dcc"], "dcc": before["supervised"]}
    changed = json.loads(succeed(place, "dvc", "metrics", "diff", "--json"))
    assert set(changed) == {f"results/metrics/demo/demo-1_20/{recipe}.json" for recipe in RECIPES}
    for recipe in RECIPES:
        assert changed[f"results/metrics/demo/demo-1_20/{recipe}.json"]["miou"] == {
            "old": before[recipe],
            "new": after[recipe],
            "diff": pytest.approx(after[recipe] - before[recipe]),
        }
    params = tree.read(place / "params.yaml")
    steps = params["protocols"]["demo"]["steps"]
    params["protocols"]["demo"]["steps"] = steps + 1
    rewrite(place, params)
    changed = json.loads(succeed(place, "dvc", "params", "diff", "--json"))
    assert changed == {"params.yaml": {"protocols.demo.steps": {"old": steps, "new": steps + 1, "diff": 1}}}


def exchange_records(place: Path, one: str, other: str) -> None:
    """Give the runs of two recipes each other's figures."""
    paths = [place / f"results/runs/{recipe}/demo-1_20/0/metrics.json" for recipe in (one, other)]
    trees = [json.loads(path.read_text()) for path in paths]
    for path, own, theirs in zip(paths, trees, trees[::-1], strict=True):
        figures = {name: theirs[name] for name in ("headline", "last", "best", "confusion")}
        path.write_text(json.dumps(own | figures))


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
        history = pd.read_csv(demos["dvc"] / f"results/runs/{recipe}/demo-1_20/0/history.csv")
        drawn = {int(row["step"]): float(row["loss"]) for row in loss if row["recipe"] == recipe}
        assert drawn == pytest.approx(dict(zip(history["step"], history["loss"], strict=True)), abs=1e-6)


def test_the_report_of_snakemake_holds_the_table(demos: dict[str, Path], tmp_path: Path) -> None:
    succeed(demos["snakemake"], "snakemake", "demo", "--report", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    held = re.findall(r"data:text/csv;[^,]*base64,([\w+/=]+)", page)
    table_file = demos["snakemake"] / "results/tables/demo.csv"
    assert [base64.b64decode(each) for each in held] == [table_file.read_bytes()]
    assert "filename=miou.png" in page
