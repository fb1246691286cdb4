"""Write dvc.yaml and pipeline/dvc.yaml from params.yaml: python pipeline/dvc_stages.py.

DVC cannot compute a list, so the records that a grid's table reads are written out here. Two of its stages
cannot own one file either: a run that several tables show belongs to the first of their grids.
"""

import argparse
import json
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from semiseg.base import parameters
from semiseg.base.errors import one_line_errors
from semiseg.base.files import write_text
from semiseg.base.parameters import Grid, Params
from semiseg.base.paths import PretrainingRun, Run
from semiseg.data import sources
from semiseg.report.markup import one_line

DEMO = "demo"  # a target of dvc.yaml beside the default grids

TARGETS_HEAD = """\
# Written by `python pipeline/dvc_stages.py` from params.yaml: what DVC runs, by name.
#   dvc repro demo                               the demo
#   dvc repro --keep-going                       all of this file: the demo, then the default grids
#   dvc repro pipeline/dvc.yaml:camvid-small     a grid that is not in this file
# A stage here is the last one of its grid; pipeline/dvc.yaml has those that lead to it. With --keep-going, a
# dataset that cannot be obtained stops only its own runs.

params:
  - params.yaml

# Folders, because DVC complains of every file named here that no run has written yet.
metrics:
  - results/metrics

plots:
  - results/plots/miou:
      {template: miou, x: miou, y: recipe}
  - results/plots/loss:
      {template: loss, x: step, y: loss}

stages:"""

HEAD = """\
# Written by `python pipeline/dvc_stages.py` from params.yaml: the benchmark's stages, with the Snakefile's
# commands. ../dvc.yaml says how to run them.
#
# A stage depends on the files that it reads and on data/ingredients/..., where `check` notes the numbers and
# revisions that decide its result. Two stages cannot own one file: a run that several tables show belongs to
# the first of their grids.

stages:
  check:
    desc: Refuse a wrong params.yaml; note what decides each stage's result
    wdir: ..
    cmd: python pipeline/check.py
    deps:
      - params.yaml
      - semiseg
      - pipeline/check.py
    outs:
      - data/ingredients
"""

DOWNLOAD = """
  download_{dataset}:
    desc: Fetch, verify and prepare a dataset
    wdir: ..
    cmd: python pipeline/download.py {dataset}
    deps:
      - data/ingredients/download/{dataset}.json{own}
    outs:
      - data/{dataset}: {{persist: true}}
"""

SPLIT = """\
    desc: Lists of labelled and unlabelled images
    wdir: ..
    cmd: python pipeline/split.py ${item.split} ${item.seed}
    deps:
      - data/ingredients/split/${item.split}.json
      - data/${item.dataset}/manifest.json
    outs:
      - data/splits/${item.split}/${item.seed}/labelled.txt
      - data/splits/${item.split}/${item.seed}/unlabelled.txt
"""

PRETRAIN = """\
    desc: Pretrain one backbone without masks
    wdir: ..
    cmd: python pipeline/resume.py pipeline/pretrain.py ${item.pretraining}
    deps:
      - data/ingredients/pretrain/${item.pretraining}.json
      - data/${item.dataset}/manifest.json
    outs:
      - runs/pretrained/${item.pretraining}/backbone.pt
      - results/pretraining/${item.pretraining}/record.json: {cache: false}
      - results/pretraining/${item.pretraining}/history.csv: {cache: false}
"""

TRAIN = """\
    desc: Train one run
    wdir: ..
    cmd: python pipeline/resume.py pipeline/train.py ${item.recipe} ${item.split} ${item.seed}
    deps:
      - data/ingredients/train/${item.recipe}/${item.split}.json
      - data/${item.dataset}/manifest.json
      - data/splits/${item.split}/${item.seed}/labelled.txt
      - data/splits/${item.split}/${item.seed}/unlabelled.txt
    outs:
      - runs/${item.recipe}/${item.split}/${item.seed}/model.pt
      - runs/${item.recipe}/${item.split}/${item.seed}/history.csv
"""

TRAIN_PRETRAINED = TRAIN.replace(
    "    outs:\n",
    "      - runs/pretrained/${item.pretraining}/backbone.pt\n"
    "      - results/pretraining/${item.pretraining}/record.json\n"
    "    outs:\n",
)

EVALUATE = """\
    desc: Score one run and write its record and short history
    wdir: ..
    cmd: python pipeline/resume.py pipeline/evaluate.py ${item.recipe} ${item.split} ${item.seed}
    deps:
      - data/ingredients/evaluate/${item.recipe}/${item.split}.json
      - data/${item.dataset}/manifest.json
      - data/splits/${item.split}/${item.seed}/labelled.txt
      - runs/${item.recipe}/${item.split}/${item.seed}/model.pt
      - runs/${item.recipe}/${item.split}/${item.seed}/history.csv
    outs:
      - results/runs/${item.recipe}/${item.split}/${item.seed}/metrics.json: {cache: false}
      - results/runs/${item.recipe}/${item.split}/${item.seed}/history.csv: {cache: false}
"""

REPORT = """
  {grid}:
    desc: {desc}
    wdir: {folder}
    cmd: python pipeline/report.py {grid}
    deps:
{deps}
    outs:
      - results/tables/{grid}.csv: {{cache: false}}
      - results/tables/{grid}.md: {{cache: false}}
      - results/tables/{grid}.tex: {{cache: false}}
      - results/metrics/{grid}: {{cache: false}}
      - results/figures/{grid}: {{cache: false, persist: true}}
      - results/plots/miou/{grid}.csv: {{cache: false}}
      - results/plots/loss/{grid}.csv: {{cache: false}}
"""


def targets(params: Params) -> str:
    """Return the text of dvc.yaml."""
    return TARGETS_HEAD + "".join(report(params, name, ".") for name in target_names(params))


def target_names(params: Params) -> list[str]:
    """Return the grids of dvc.yaml, which plain `dvc repro` runs."""
    return list(dict.fromkeys([*([DEMO] if DEMO in params.grids else []), *params.default]))


def stages(params: Params) -> str:
    """Return the text of pipeline/dvc.yaml."""
    owned = list(runs(params))
    text = HEAD + "".join(download(params, name) for name in params.datasets)
    text += matrices("split", SPLIT, splits(params))
    text += matrices("pretrain", PRETRAIN, pretrainings(params))
    text += matrices("train", TRAIN, [each for each in owned if "pretraining" not in each[1]])
    pretrained = [each for each in owned if "pretraining" in each[1]]
    text += matrices("train", TRAIN_PRETRAINED, pretrained, anchor="train_pretrained")
    text += matrices("evaluate", EVALUATE, [(name, without_pretraining(each)) for name, each in owned])
    others = [name for name in params.grids if name not in target_names(params)]
    return text + "".join(report(params, name, "..") for name in others)


def download(params: Params, name: str) -> str:
    """Return the stage that prepares a dataset; it depends on the files of a user's own folder."""
    folder = sources.user_folder(params.datasets[name])
    own = "" if folder is None else f"\n      - {quoted(folder.as_posix())}"
    return DOWNLOAD.format(dataset=name, own=own)


def report(params: Params, name: str, folder: str) -> str:
    """Return a grid's last stage; ``folder`` is the way to the project's folder."""
    grid = params.grids[name]
    desc = quoted(f"{one_line(grid.title)}: table and figures")
    deps = wrapped([f"data/ingredients/report/{name}.json", *record_folders(params, grid)])
    return REPORT.format(grid=name, desc=desc, folder=folder, deps=deps)


def record_folders(params: Params, grid: Grid) -> list[str]:
    """Return the folders that hold the records of a grid's runs, and no other grid's runs of more seeds."""
    elsewhere = {run for other in params.grids.values() for run in other.runs()} - set(grid.runs())
    shared = {run.metrics.parents[1] for run in elsewhere}
    folders = dict.fromkeys(
        run.metrics.parents[run.metrics.parents[1] not in shared].as_posix() for run in grid.runs()
    )
    return list(folders)


def quoted(text: str) -> str:
    """Return a YAML string that DVC reads as ``text``; it would replace ``${...}`` by a value."""
    return json.dumps(text, ensure_ascii=False).replace("${", "\\\\${")


Matrix = tuple[str, dict[str, str]]
"""The end of a stage's name, and the values of its matrix."""


def matrices(stage: str, body: str, entries: list[Matrix], anchor: str | None = None) -> str:
    """Return a stage for each entry; the first one holds the body that all share, at ``anchor``."""
    text, anchor = "", anchor or stage
    for place, (name, matrix) in enumerate(entries):
        shared = f"    <<: *{anchor}\n" if place else body
        mark = "" if place else f" &{anchor}"
        rows = "".join(f"      {key}: {value}\n" for key, value in matrix.items())
        text += f"\n  {stage}_{name}:{mark}\n{shared}    matrix:\n{rows}"
    return text


def splits(params: Params) -> list[Matrix]:
    """Return, for each dataset, its splits in any grid with all seeds of these grids."""
    entries: list[Matrix] = []
    for dataset in params.datasets:
        grids = [
            grid
            for grid in params.grids.values()
            if any(params.splits[split].dataset == dataset for split in grid.splits)
        ]
        names = dict.fromkeys(
            split for grid in grids for split in grid.splits if params.splits[split].dataset == dataset
        )
        seeds = sorted({seed for grid in grids for seed in grid.seeds})
        if names:
            matrix = {"split": listed(names), "seed": listed(seeds), "dataset": listed([dataset])}
            entries.append((dataset, matrix))
    return entries


def pretrainings(params: Params) -> list[Matrix]:
    """Return the pretrainings of each dataset."""
    names: dict[str, list[str]] = {}
    for name, recipe in params.pretraining.items():
        names.setdefault(recipe.dataset, []).append(name)
    return [
        (dataset, {"pretraining": listed(each), "dataset": listed([dataset])})
        for dataset, each in names.items()
    ]


def runs(params: Params) -> Iterator[Matrix]:
    """Yield the runs of each grid that no earlier grid has, as rectangles of recipes, splits and seeds.

    Runs that start from a pretraining have its name as well.
    """
    known: set[Run] = set()
    for name, grid in params.grids.items():
        for place, (recipes, names, seeds, pretraining) in enumerate(rectangles(params, grid, known)):
            (dataset,) = {params.splits[split].dataset for split in names}
            matrix = {
                "recipe": listed(recipes),
                "split": listed(names),
                "seed": listed(seeds),
                "dataset": listed([dataset]),
            }
            if pretraining is not None:
                matrix["pretraining"] = listed([pretraining.name])
            yield (f"{name}_{place + 1}" if place else name), matrix
        known.update(grid.runs())


def without_pretraining(matrix: dict[str, str]) -> dict[str, str]:
    """Return the matrix of a run's evaluation, which reads what was trained alone."""
    return {key: value for key, value in matrix.items() if key != "pretraining"}


Rectangle = tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...], PretrainingRun | None]
"""Recipes, splits and seeds: all their combinations, which start from one pretraining, or from none."""


def rectangles(params: Params, grid: Grid, known: set[Run]) -> list[Rectangle]:
    """Return the runs of ``grid`` that are not ``known``, as few rectangles."""
    splits: dict[tuple[str, tuple[int, ...], PretrainingRun | None], list[str]] = {}
    for recipe in grid.recipes:
        for split in grid.splits:
            seeds = tuple(seed for seed in grid.seeds if Run(recipe, split, seed) not in known)
            if seeds:
                start = params.pretrained(Run(recipe, split, seeds[0]))
                splits.setdefault((recipe, seeds, start), []).append(split)
    recipes: dict[tuple[tuple[str, ...], tuple[int, ...], PretrainingRun | None], list[str]] = {}
    for (recipe, seeds, start), names in splits.items():
        recipes.setdefault((tuple(names), seeds, start), []).append(recipe)
    return [(tuple(each), *key) for key, each in recipes.items()]


def wrapped(values: list[str]) -> str:
    """Return a YAML list of several values a line."""
    wrapper = textwrap.TextWrapper(
        118,
        initial_indent=" " * 6,
        subsequent_indent=" " * 7,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.fill(f"[{', '.join(values)}]")


def listed(values: Iterable[str] | Iterable[int]) -> str:
    return f"[{', '.join(map(str, values))}]"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    params = parameters.load()
    sources.check_options(params.datasets)
    write_text(Path("dvc.yaml"), targets(params))
    write_text(Path("pipeline", "dvc.yaml"), stages(params))


if __name__ == "__main__":
    with one_line_errors():
        main()
