"""Check the rules of docs/design.md that an import statement or a line of YAML could break."""

import ast
import sys
from pathlib import Path

import pytest

from semiseg.base import parameters

ROOT = Path(__file__).parents[1]
LIBRARY = sorted(path.relative_to(ROOT) for path in (ROOT / "semiseg").rglob("*.py"))
SCRIPTS = sorted(path.relative_to(ROOT) for path in (ROOT / "pipeline").glob("*.py"))
SHARED = ("__init__", "contract", "common")  # among the methods, but no method


def methods(folder: str) -> list[Path]:
    return sorted(path for path in LIBRARY if path.parent == Path(folder) and path.stem not in SHARED)


METHODS = methods("semiseg/methods")
PRETRAINING = methods("semiseg/pretraining")

THIRD_PARTY = {
    "torch", "torchvision", "timm", "numpy", "pandas", "matplotlib", "yaml", "tqdm",
    "filelock", "scipy", "PIL", "jinja2", "tabulate", "tensorboard",
}  # fmt: skip


def imported(file: Path) -> set[str]:
    """Return the dotted names that ``file`` imports anywhere, ``from a import b`` as a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imports_from(file: Path, *packages: str) -> set[str]:
    return {name for name in imported(file) for package in packages if f"{name}.".startswith(f"{package}.")}


def test_there_is_something_to_check() -> None:
    assert Path("semiseg/methods/supervised.py") in METHODS
    assert "semiseg.methods.common.supervised_loss" in imported(Path("semiseg/methods/supervised.py"))
    assert len(SCRIPTS) >= 7


@pytest.mark.parametrize("file", LIBRARY, ids=str)
def test_the_library_imports_what_it_may(file: Path) -> None:
    outside = {name.partition(".")[0] for name in imported(file)} - set(sys.stdlib_module_names) - {"semiseg"}
    assert outside <= THIRD_PARTY  # neither pipeline nor an engine


@pytest.mark.parametrize("file", METHODS, ids=str)
def test_the_front_door_of_a_method_is_documented(file: Path) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    named = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    for name in ("Config", "Method", "views", "training_step"):
        (found,) = [node for node in named if node.name == name]
        assert ast.get_docstring(found), name


@pytest.mark.parametrize("file", [*METHODS, *PRETRAINING], ids=str)
def test_a_method_imports_no_other(file: Path) -> None:
    others = {".".join(each.with_suffix("").parts) for each in (*METHODS, *PRETRAINING)}
    assert not {name for name in imported(file) for other in others if f"{name}.".startswith(f"{other}.")}


ROOMS = ("base", "data", "losses", "models", "methods", "pretraining", "training", "evaluation", "report")


def room(name: str) -> str:
    """Return the room of a dotted name or path below semiseg."""
    return name.removeprefix("semiseg").lstrip("./").replace("/", ".").partition(".")[0]


def test_every_room_has_a_floor() -> None:
    found = {path.parent.name for path in ROOT.glob("semiseg/*/__init__.py")}
    assert found <= set(ROOMS)
    assert len(list(ROOT.glob("semiseg/*.py"))) <= 4


@pytest.mark.parametrize("file", [file for file in LIBRARY if len(file.parts) > 2], ids=str)
def test_a_room_imports_only_from_those_below_it(file: Path) -> None:
    floor = ROOMS.index(room(str(file)))
    for name in imports_from(file, "semiseg"):
        assert room(name) in ROOMS[: floor + 1], name


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_scripts_do_not_import_each_other(script: Path) -> None:
    assert not {name.partition(".")[0] for name in imported(script)} & {each.stem for each in SCRIPTS}


def closure(file: Path) -> set[Path]:
    """Return ``file`` and every file of the library that it imports, directly or not."""
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        for name in imports_from(file, "semiseg"):
            parts = name.split(".")
            for place in (Path(*parts), Path(*parts[:-1])):
                waiting += [
                    each
                    for each in (place.with_suffix(".py"), place / "__init__.py")
                    if (ROOT / each).is_file()
                ]
    return found


@pytest.mark.parametrize("stage", ["new_dataset", "download", "split", "tables", "report", "dvc_stages"])
def test_a_stage_without_a_network_does_not_wait_for_torch(stage: str) -> None:
    files = closure(Path("pipeline", f"{stage}.py"))
    assert len(files) > 3
    assert not [file for file in files if imports_from(file, "torch", "torchvision", "timm")]


def test_planning_does_not_wait_for_torch() -> None:
    files = closure(Path("semiseg", "stages.py"))
    assert len(files) > 3
    assert not [
        file for file in files if imports_from(file, "torch", "torchvision", "timm", "pandas", "matplotlib")
    ]


def test_every_entry_of_params_yaml_is_used() -> None:
    params = parameters.load(ROOT / "params.yaml")
    grids = params.grids.values()
    starts = {params.pretrained(run) for grid in grids for run in grid.runs()} - {None}
    assert {start.name for start in starts} == set(params.pretraining)
    used = {params.splits[split] for grid in grids for split in grid.splits}
    assert {recipe for grid in grids for recipe in grid.recipes} == set(params.recipes)
    assert {split.protocol for split in used} == set(params.protocols)
    assert {(split.dataset, split.share) for split in used} == {
        (name, share) for name, dataset in params.datasets.items() for share in dataset.shares
    }
