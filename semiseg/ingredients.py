"""What decides the result of a stage besides the files that it reads: numbers of params.yaml, and code.

Both engines run a stage again when its ingredients change, and only then: Snakemake compares them itself, DVC
by the files that ``pipeline/check.py`` writes under data/ingredients/. Code counts as what it does: comments,
docstrings and layout may change without a run being trained anew.
"""

import ast
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from semiseg.base import paths
from semiseg.base.parameters import Params, RunConfig, canonical, look_up
from semiseg.report import published

ROOT = Path(__file__).parents[1]

# They carry, guard and log what others compute; what they pass on is compared as numbers or files itself.
CARRIERS = frozenset(
    Path("semiseg", f"{name}.py")
    for name in (
        "checkpoint",
        "config",
        "device",
        "errors",
        "files",
        "history",
        "launch",
        "paths",
        "processes",
        "provenance",
        "record",
        "tree",
    )
)


def download(params: Params, dataset: str) -> dict[str, Any]:
    """Of the prepared dataset."""
    entry = look_up(params.datasets, dataset, "datasets")
    return _of(
        "download", dataclasses.asdict(entry), [Path("semiseg", "data", "sources", f"{entry.source}.py")]
    )


def split(params: Params, name: str) -> dict[str, Any]:
    """Of a split's lists: all but the protocol that its runs are trained under."""
    entry = dataclasses.asdict(look_up(params.splits, name, "splits"))
    del entry["protocol"]
    if entry["family"] in params.families:
        entry["published"] = dataclasses.asdict(params.families[entry["family"]])
    return _of("split", entry, [])


def train(params: Params, run: paths.Run) -> dict[str, Any]:
    """Of a run, its seed apart: its configuration, the loop, the method's file and the network's."""
    config = params.run(run)
    head = config.protocol.network.head
    return _of(
        "train",
        _without_seed(config),
        [Path("semiseg", "methods", f"{config.method}.py"), Path("semiseg", "models", "heads", f"{head}.py")],
    )


def evaluate(params: Params, run: paths.Run) -> dict[str, Any]:
    """Of a run's record, its seed apart."""
    return _of("evaluate", _without_seed(params.run(run)), [])


def tables(params: Params, grid: str) -> dict[str, Any]:
    """Of a grid's table."""
    numbers = _grid(params, grid)
    del numbers["waterfall"]  # it is drawn
    return _of("tables", numbers, [])


def report(params: Params, grid: str) -> dict[str, Any]:
    """Of a grid's figures."""
    return _of("report", _grid(params, grid), [])


def _grid(params: Params, name: str) -> dict[str, Any]:
    """A grid and the published figures beside it."""
    grid, reference = look_up(params.grids, name, "grids"), published.load()
    beside = reference.beside(params, grid.rows, grid.splits)
    figures = {f"{recipe}/{split}": dataclasses.asdict(each) for (recipe, split), each in beside.items()}
    numbers = {**dataclasses.asdict(grid), "published": figures, "paper": reference.numbers(name)}
    del numbers["gpus"]  # they change no result
    return numbers


def text(ingredients: dict[str, Any]) -> str:
    """Canonical JSON: equal ingredients, equal text."""
    return json.dumps(ingredients, sort_keys=True, indent=1, default=str) + "\n"


def everything(params: Params) -> Iterator[tuple[Path, str]]:
    """The file under data/ingredients/ and its text, for every stage of every grid."""
    for name in params.datasets:
        yield Path("download", f"{name}.json"), text(download(params, name))
    for name in params.splits:
        yield Path("split", f"{name}.json"), text(split(params, name))
    pairs = {(run.recipe, run.split): run for grid in params.grids.values() for run in grid.runs()}
    for (recipe, split_name), run in pairs.items():
        yield Path("train", recipe, f"{split_name}.json"), text(train(params, run))
        yield Path("evaluate", recipe, f"{split_name}.json"), text(evaluate(params, run))
    for name in params.grids:
        yield Path("tables", f"{name}.json"), text(tables(params, name))
        yield Path("report", f"{name}.json"), text(report(params, name))


def _without_seed(config: RunConfig) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(canonical(config))
    del tree["run"]
    return tree


def _of(stage: str, numbers: dict[str, Any], named: Iterable[Path]) -> dict[str, Any]:
    """``named``: files that the stage imports by a name in params.yaml, which no import statement shows."""
    files = closure([Path("pipeline", f"{stage}.py"), *named]) - CARRIERS
    return {"numbers": numbers, "code": {file.as_posix(): digest(file) for file in files}}


def closure(files: Iterable[Path]) -> set[Path]:
    """``files`` and every file of the library that they import, directly or not."""
    found: set[Path] = set()
    waiting = list(files)
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting.extend(imports(file))
    return found


@functools.cache
def imports(file: Path) -> tuple[Path, ...]:
    """The library's files that the import statements of ``file`` name, a package's __init__.py among them."""
    found: list[Path | None] = []
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.Import):
            found += [_file_of(alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found += [
                _file_of(f"{node.module}.{alias.name}") or _file_of(node.module) for alias in node.names
            ]
    return tuple(dict.fromkeys(path for path in found if path is not None))


def _file_of(module: str) -> Path | None:
    place = Path(*module.split("."))
    candidates = [place.with_suffix(".py"), place / "__init__.py"]
    if place.parts[0] != "semiseg":
        return None
    return next((each for each in candidates if (ROOT / each).is_file()), None)


@functools.cache
def digest(file: Path) -> str:
    """sha256 (hex) of the code of ``file`` without comments, docstrings and layout."""
    tree = _tree(file)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            # Every expression statement that is only a string: docstrings, and those below an assignment.
            kept = [each for each in body if not _is_string(each)]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.unparse(ast.fix_missing_locations(tree)).encode()).hexdigest()


def _is_string(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _tree(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"), filename=str(file))
