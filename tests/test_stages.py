import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from semiseg import ingredients
from semiseg.base import parameters
from semiseg.base.paths import Run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def params() -> parameters.Params:
    return parameters.load(ROOT / "params.yaml")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A library of its own: semiseg/a.py imports the package b and, through it, b/c.py."""
    files = {
        "semiseg/a.py": "import os\nfrom semiseg.b import name\nfrom semiseg import missing\n",
        "semiseg/b/__init__.py": "from semiseg.b.c import name\n",
        "semiseg/b/c.py": "import semiseg.a\nname = 1\n",
        "semiseg/b/d.py": "other = 2\n",
        "semiseg/__init__.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(ingredients, "ROOT", tmp_path)
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    ingredients.imports.cache_clear()
    ingredients.digest.cache_clear()


def test_closure_follows_imports_and_no_further(library: Path) -> None:
    assert {str(file) for file in ingredients.closure([Path("semiseg/a.py")])} == {
        "semiseg/a.py",
        "semiseg/b/__init__.py",
        "semiseg/b/c.py",
        "semiseg/__init__.py",
    }


@pytest.mark.parametrize(
    "same",
    [
        "def f(x):\n    return x + 1\n",
        '"""What this is."""\n\n# Why.\ndef f(x):\n    """What f is."""\n    return (x +\n            1)\n',
        'def f(x):\n    return x + 1\n\n"""A remark."""\n',
    ],
)
def test_digest_sees_code_only(same: str, library: Path) -> None:
    digests = []
    for text in ("def f(x):\n    return x + 1\n", same, "def f(x):\n    return x + 2\n"):
        (library / "semiseg/a.py").write_text(text)
        forget()
        digests.append(ingredients.digest(Path("semiseg/a.py")))
    assert digests[0] == digests[1] != digests[2]


def test_digest_of_a_function_that_is_only_a_docstring(library: Path) -> None:
    (library / "semiseg/a.py").write_text('class A:\n    """Only this."""\n')
    forget()
    assert len(ingredients.digest(Path("semiseg/a.py"))) == 64


def test_a_run_depends_on_its_own_method_and_the_loop(params: parameters.Params) -> None:
    code = {
        recipe: ingredients.train(params, Run(recipe, "shapes-1_20", 0))["code"]
        for recipe in ("supervised", "cmb", "dcc")
    }
    for recipe, files in code.items():
        methods = {Path(file).stem for file in files if file.startswith("semiseg/methods/")}
        assert methods == {recipe}
        assert {"pipeline/train.py", "semiseg/engine.py", "semiseg/models/heads/deeplabv3plus.py"} <= set(
            files
        )
        assert not any(file.startswith("semiseg/report/") for file in files)


def test_ingredients_of_a_run_do_not_name_its_seed(params: parameters.Params) -> None:
    first, second = (ingredients.train(params, Run("cmb", "camvid-1_8", seed)) for seed in (0, 1))
    assert first == second


def test_a_run_does_not_depend_on_the_memory_for_its_images(params: parameters.Params) -> None:
    run = Run("cmb", "camvid-1_8", 0)
    before = ingredients.train(params, run)
    protocol = params.protocols["camvid"]
    other = dataclasses.replace(protocol, image_cache_mib=protocol.image_cache_mib + 1)
    protocols = {**params.protocols, "camvid": other}
    assert ingredients.train(dataclasses.replace(params, protocols=protocols), run) == before


def test_a_waterfall_decides_the_figures_of_its_grid_and_nothing_else(params: parameters.Params) -> None:
    name = "camvid-cmb-losses"
    turned = dataclasses.replace(params.grids[name], waterfall=params.grids[name].waterfall[::-1])
    other = dataclasses.replace(params, grids={**params.grids, name: turned})
    before, after = (dict(ingredients.everything(each)) for each in (params, other))
    assert {file for file in before if before[file] != after[file]} == {Path("report", f"{name}.json")}


def test_a_split_does_not_depend_on_the_protocol(params: parameters.Params) -> None:
    moved = dataclasses.replace(params.splits["camvid-1_8"], protocol="demo")
    other = dataclasses.replace(params, splits={**params.splits, "camvid-1_8": moved})
    assert ingredients.split(other, "camvid-1_8") == ingredients.split(params, "camvid-1_8")


def test_every_stage_of_every_grid_has_its_ingredients(params: parameters.Params) -> None:
    files = dict(ingredients.everything(params))
    for name, grid in params.grids.items():
        assert Path("tables", f"{name}.json") in files
        assert Path("report", f"{name}.json") in files
        for run in grid.runs():
            assert files[Path("train", run.recipe, f"{run.split}.json")] == ingredients.text(
                ingredients.train(params, run)
            )
            assert Path("evaluate", run.recipe, f"{run.split}.json") in files


def test_a_table_depends_on_the_published_figures_beside_it(
    params: parameters.Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    beside = ingredients.tables(params, "voc")["numbers"]["published"]
    assert beside["cmb/voc-1_50"]["source"] == "Alonso 2021 Table 3"
    assert beside["dcc/voc-1_16"]["miou"] == pytest.approx(0.701)
    assert "cmb/voc-1_16" not in beside  # not in print
    assert ingredients.report(params, "camvid")["numbers"]["published"] == {}
