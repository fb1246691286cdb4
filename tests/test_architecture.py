"""The rules of docs/design.md that an import statement or a line of YAML could break."""

import ast
import sys
from pathlib import Path

import pytest

from semiseg import config, ingredients

ROOT = Path(__file__).parents[1]
LIBRARY = sorted(path.relative_to(ROOT) for path in (ROOT / "semiseg").rglob("*.py"))
SCRIPTS = sorted(path.relative_to(ROOT) for path in (ROOT / "pipeline").glob("*.py"))
METHODS = sorted(
    path for path in LIBRARY if path.parent == Path("semiseg/methods") and path.stem != "__init__"
)

THIRD_PARTY = {
    "torch", "torchvision", "numpy", "pandas", "matplotlib", "yaml", "tqdm",
    "filelock", "scipy", "PIL", "jinja2", "tabulate", "tensorboard",
}  # fmt: skip


def imported(file: Path) -> set[str]:
    """The dotted names that ``file`` imports anywhere, ``from a import b`` as a.b."""
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
    assert "semiseg.losses.cross_entropy" in imported(Path("semiseg/methods/supervised.py"))
    assert len(SCRIPTS) >= 7


@pytest.mark.parametrize("file", LIBRARY, ids=str)
def test_the_library_imports_what_it_may(file: Path) -> None:
    outside = {name.partition(".")[0] for name in imported(file)} - set(sys.stdlib_module_names) - {"semiseg"}
    if file == Path("semiseg/losses/directional_kernel.py"):
        outside -= {"triton"}  # comes with torch where there is a GPU
    assert outside <= THIRD_PARTY  # neither pipeline nor an engine


@pytest.mark.parametrize("file", METHODS, ids=str)
def test_a_method_imports_no_other_and_not_what_trains_it(file: Path) -> None:
    assert not imports_from(file, "semiseg.methods")
    assert not imports_from(
        file,
        *(
            f"semiseg.{name}"
            for name in ("engine", "learning", "scoring", "evaluate", "metrics", "record", "report")
        ),
    )


@pytest.mark.parametrize(
    ("importer", "forbidden"),
    [
        ("losses", ("methods", "engine", "data", "models", "config", "report")),
        ("models", ("methods", "engine", "data.prepared", "data.splits", "data.streams", "report", "record")),
        ("data", ("methods", "engine", "models", "losses", "report", "record")),
        ("report", ("methods", "engine", "models", "losses", "scoring", "throughput")),
        ("engine.py", ("methods", "report", "record", "scoring", "throughput")),
        ("learning.py", ("engine", "methods", "report", "record", "scoring", "throughput", "data")),
        ("throughput.py", ("methods", "record", "scoring")),
        ("metrics.py", ("methods", "engine", "data", "report", "record")),
        ("record.py", ("methods", "engine", "data", "models", "report")),
        ("tree.py", ("config", "paths")),
        ("config.py", ("engine", "data", "models", "report", "record", "method")),
    ],
)
def test_imports_run_one_way(importer: str, forbidden: tuple[str, ...]) -> None:
    place = Path("semiseg", importer)
    files = [file for file in LIBRARY if file == place or place in file.parents]
    assert files
    for file in files:
        assert not imports_from(file, *(f"semiseg.{name}" for name in forbidden)), file


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_scripts_do_not_import_each_other(script: Path) -> None:
    assert not {name.partition(".")[0] for name in imported(script)} & {each.stem for each in SCRIPTS}


@pytest.mark.parametrize("stage", ["download", "split", "tables", "report", "dvc_stages"])
def test_a_stage_without_a_network_does_not_wait_for_torch(stage: str) -> None:
    """plan.py imports it where it measures alone: test_throughput.py."""
    files = ingredients.closure([Path("pipeline", f"{stage}.py")])
    assert len(files) > 3
    assert not [file for file in files if imports_from(file, "torch", "torchvision")]


def test_every_entry_of_params_yaml_is_used() -> None:
    params = config.load(ROOT / "params.yaml")
    splits = {split for grid in params.grids.values() for split in grid.splits}
    assert splits == set(params.splits)
    assert {recipe for grid in params.grids.values() for recipe in grid.recipes} == set(params.recipes)
    assert {params.splits[split].protocol for split in splits} == set(params.protocols)
    assert {params.splits[split].dataset for split in splits} == set(params.datasets)
