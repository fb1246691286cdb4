"""A stage depends on exactly the numbers, revisions and published figures that decide its result."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from semiseg import stages
from semiseg.base import parameters, tree
from semiseg.base.errors import UserError
from semiseg.base.parameters import Params
from semiseg.stages import Stages, Wildcards
from tests.project import ROOT

ENTRIES: dict[str, Any] = tree.read(ROOT / "params.yaml")
FEW: dict[str, Any] = {  # grids that stand for all
    **ENTRIES,
    "default": ["demo"],
    "grids": {name: ENTRIES["grids"][name] for name in ("demo", "camvid-cmb-losses")},
}


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # results/reference/ lies there


@pytest.fixture(scope="module")
def params() -> Params:
    return parameters.load(ROOT / "params.yaml")


def ingredients(folder: Path, *changes: tuple[tuple[str, ...], object]) -> dict[Path, str]:
    """Return the ingredients of a few grids, with other values in params.yaml."""
    entries = copy.deepcopy(FEW)
    for (*way, last), value in changes:
        place = entries
        for key in way:
            place = place[key]
        place[last] = value
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(entries, sort_keys=False))
    return dict(stages.ingredients(parameters.load(path)))


def different(one: dict[Path, str], other: dict[Path, str]) -> set[Path]:
    return {file for file in one.keys() & other.keys() if one[file] != other[file]}


def test_every_stage_of_every_grid_has_its_ingredients(params: Params) -> None:
    found = list(stages.ingredients(params))
    files = dict(found)
    assert len(files) == len(found)
    expected = {Path("download", f"{name}.json") for name in params.datasets}
    expected |= {Path("pretrain", f"{name}.json") for name in params.pretraining}
    for name, grid in params.grids.items():
        expected.add(Path("report", f"{name}.json"))
        for run in grid.runs():
            expected |= {Path(stage, run.recipe, f"{run.split}.json") for stage in ("train", "evaluate")}
            expected.add(Path("split", f"{run.split}.json"))
    assert files.keys() == expected
    for text in files.values():
        assert isinstance(json.loads(text), dict)


def test_both_engines_read_the_same_text(params: Params) -> None:
    """DVC reads the files; Snakemake passes the wildcards of a job."""
    files, one = dict(stages.ingredients(params)), Stages(params)
    run = params.grids["demo"].runs()[0]
    names = Wildcards(recipe=run.recipe, split=run.split, seed="7")
    assert one.train(names) == files[Path("train", run.recipe, f"{run.split}.json")]
    assert one.evaluate(names) == files[Path("evaluate", run.recipe, f"{run.split}.json")]
    assert one.split(names) == files[Path("split", f"{run.split}.json")]
    assert one.report(Wildcards(grid="demo")) == files[Path("report", "demo.json")]
    assert one.download(Wildcards(dataset="shapes")) == files[Path("download", "shapes.json")]


def test_ingredients_of_stages_that_are_gone_go_and_other_files_stay(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reference").symlink_to(ROOT / "results" / "reference")
    monkeypatch.chdir(tmp_path)
    stages.write_ingredients(params)
    place = tmp_path / "data" / "ingredients"
    written = sorted(place.rglob("*.json"))
    others = [place / "notes.json", place / "train" / "cmb" / "mine.json", place / "binary.json"]
    for path, content in zip(others, [b"[1]\n", b'{"b": 1, "a": 2}\n', b"\xff"], strict=True):
        path.write_bytes(content)
    gone = place / "train" / "cmb" / "gone-1_8.json"
    gone.write_bytes(written[0].read_bytes())
    written[1].write_bytes(b"\xff")
    stages.write_ingredients(params)
    assert not gone.exists()
    assert sorted(place.rglob("*.json")) == sorted([*written, *others])
    assert written[1].read_bytes() != b"\xff"


def test_the_seed_stands_in_no_ingredients(params: Params) -> None:
    one = Stages(params)
    for stage in (one.train, one.evaluate):
        texts = {stage(Wildcards(recipe="cmb", split="camvid-1_8", seed=seed)) for seed in ("0", "1")}
        assert len(texts) == 1


def test_a_run_holds_its_identity_and_a_record_the_evaluations_revision_too(params: Params) -> None:
    one, names = Stages(params), Wildcards(recipe="cmb", split="camvid-1_8")
    trained, evaluated = json.loads(one.train(names)), json.loads(one.evaluate(names))
    assert trained["revisions"].keys() == {"loop", "method", "source"}
    assert trained["weights_sha256"]
    assert trained == {key: value for key, value in evaluated.items() if key != "evaluation"}
    assert evaluated["evaluation"] >= 1


@pytest.mark.parametrize(
    ("keys", "value", "stages_of"),
    [
        (
            ("grids", "camvid-cmb-losses", "waterfall"),
            ["cmb-only_sup", "cmb"],
            {"report/camvid-cmb-losses.json"},
        ),
        (("grids", "demo", "title"), "Another", {"report/demo.json"}),
        (("grids", "demo", "gpus"), 2, set()),
        (("protocols", "demo", "workers"), 3, set()),
        (("protocols", "demo", "image_cache_mib"), 3, set()),
        (("protocols", "demo", "checkpoint_minutes"), 3, set()),
        (
            ("datasets", "shapes", "shares", "1/20"),
            {"count": 9},
            {"split/demo-1_20.json", "*/demo-1_20.json"},
        ),
        (("datasets", "shapes", "shares", "1/7"), {}, set()),
        (("datasets", "shapes", "evaluate"), "test", {"*/demo-1_20.json"}),
        (("datasets", "shapes", "options"), {"train": 99}, {"download/shapes.json", "*/demo-1_20.json"}),
        (("protocols", "demo", "steps"), 121, {"*/demo-1_20.json"}),
        (("recipes", "supervised", "added"), {}, set()),
        (("protocols", "added"), ENTRIES["protocols"]["demo"], set()),
    ],
    ids=lambda each: ".".join(each) if isinstance(each, tuple) else "",
)
def test_a_value_changes_the_stages_that_it_decides(
    tmp_path: Path, keys: tuple[str, ...], value: object, stages_of: set[str]
) -> None:
    before, after = ingredients(tmp_path), ingredients(tmp_path, (keys, value))
    expected = {file for file in before for pattern in stages_of if matches(file, pattern)}
    assert bool(expected) == bool(stages_of)
    assert different(before, after) == expected


def matches(file: Path, pattern: str) -> bool:
    """Return whether ``file`` is ``pattern``; "*/split.json" stands for every run of a split."""
    if pattern.startswith("*/"):
        return file.name == pattern[2:] and file.parts[0] in ("train", "evaluate")
    return file.as_posix() == pattern


def test_a_report_depends_on_the_published_figures_that_it_shows(params: Params) -> None:
    one = Stages(params)
    with_figures = json.loads(one.report(Wildcards(grid="voc")))["published"]
    assert "Alonso 2021" in json.dumps(with_figures)
    without = json.loads(one.report(Wildcards(grid="demo")))["published"]
    assert "2021" not in json.dumps(without)


def test_files_and_resources_of_a_run(params: Params) -> None:
    one = Stages(params)
    names = Wildcards(recipe="cmb", split="camvid-1_8", seed="1")
    assert one.manifest(names) == "data/camvid/manifest.json"
    assert one.threads(names) == params.protocols["camvid"].threads
    assert one.gpus(names) == 1
    assert one.threads_of_all(names) == one.threads(names)
    demo = params.grids["demo"].runs()
    assert one.records(Wildcards(grid="demo")) == [run.metrics.as_posix() for run in demo]
    assert one.histories(Wildcards(grid="demo")) == [run.history.as_posix() for run in demo]


def test_a_run_depends_on_the_recipe_and_the_files_of_the_pretraining_that_it_starts_from(
    tmp_path: Path,
) -> None:
    grid, name = "pretraining", "camvid-small_moco"
    few = {**ENTRIES, "default": [grid], "grids": {grid: ENTRIES["grids"][grid]}}

    def written(entries: dict[str, Any]) -> Params:
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(entries, sort_keys=False))
        return parameters.load(path)

    params = written(few)
    recipe = {**few["pretraining"][name], "steps": 700, "workers": 1}
    changed = written({**few, "pretraining": {**few["pretraining"], name: recipe}})
    assert different(dict(stages.ingredients(params)), dict(stages.ingredients(changed))) == {
        Path("pretrain", f"{name}.json"),
        *(
            Path(stage, run, "camvid-small_moco-1_16.json")
            for stage in ("train", "evaluate")
            for run in few["grids"][grid]["recipes"]
        ),
    }
    one = Stages(params)
    assert one.pretraining_manifest(Wildcards(pretraining=name)) == "data/camvid/manifest.json"
    assert one.gpus_of_pretraining(Wildcards(pretraining=name)) == 1
    assert one.threads_of_pretraining(Wildcards(pretraining=name)) == recipe["threads"]
    started = Wildcards(recipe="cmb", split="camvid-small_moco-1_16")
    made = [f"runs/pretrained/{name}/backbone.pt", f"results/pretraining/{name}/record.json"]
    assert one.pretrained(started) == made
    assert one.pretrained(Wildcards(recipe="cmb", split="camvid-small-1_16")) == []


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("manifest", Wildcards(split="demo-1_3")),
        ("train", Wildcards(recipe="magic", split="demo-1_20")),
        ("download", Wildcards(dataset="magic")),
        ("report", Wildcards(grid="magic")),
        ("pretrain", Wildcards(pretraining="magic")),
    ],
)
def test_an_unknown_name_is_refused(params: Params, stage: str, names: Wildcards) -> None:
    with pytest.raises(UserError, match=r"^params\.yaml: \w+: .*'(magic|demo-1_3)'"):
        getattr(Stages(params), stage)(names)
