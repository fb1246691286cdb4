"""Write dvc.yaml and pipeline/dvc.yaml after a change of grids: python pipeline/dvc_stages.py.

DVC cannot compute a list, so somebody has to write which records a grid's table reads.
"""

import argparse
from pathlib import Path

from semiseg.base import parameters
from semiseg.base.errors import one_line_errors
from semiseg.base.files import write_text
from semiseg.base.parameters import Grid, Params

# The grids of dvc.yaml: `dvc repro <grid>` runs one of them, `dvc repro` alone all. So the demo and the
# Snakefile's DEFAULT_GRIDS are here; every other grid is run as `dvc repro pipeline/dvc.yaml:<grid>`.
TARGETS = ("demo", "voc", "cityscapes")

TARGETS_HEAD = """\
# Written by `python pipeline/dvc_stages.py` from params.yaml: what DVC runs, by name.
#   dvc repro demo                               the demo
#   dvc repro --keep-going                       all of this file: the demo, then the papers' grids
#   dvc repro pipeline/dvc.yaml:camvid-small     a grid that is not in this file
# A stage here is the last one of its grid; those that lead to it are in pipeline/dvc.yaml. With --keep-going,
# a dataset that cannot be had stops its own runs alone.

params:
  - params.yaml

# Folders, for DVC complains of every file named here that no run has made yet.
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
# commands. ../dvc.yaml says how they are run.
#
# A stage depends on the files that it reads and on data/ingredients/..., where `check` notes the numbers of
# params.yaml and the code that decide its result: a change runs again what it touches, and only that.
# Two stages may not own one file, so no run belongs to two grids: an ablation holds its variants alone, and
# its table reads the other rows from the grids that have them (beside, in params.yaml).

vars:
  - ../params.yaml

stages:
  check:
    desc: Refuse a wrong params.yaml; note what decides each stage's result
    wdir: ..
    cmd: python pipeline/check.py
    deps:
      - params.yaml
      - semiseg
      - pipeline/check.py
      - pipeline/download.py
      - pipeline/split.py
      - pipeline/train.py
      - pipeline/evaluate.py
      - pipeline/tables.py
      - pipeline/report.py
    outs:
      - data/ingredients

  download:
    desc: Fetch, verify and prepare a dataset; its manifest stands for it
    wdir: ..
    matrix:
      dataset: [{datasets}]
    cmd: python pipeline/download.py ${{item.dataset}}
    deps:
      - data/ingredients/download/${{item.dataset}}.json
    outs:
      - data/${{item.dataset}}: {{persist: true}}
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

TABLES = """
  tables_{grid}:
    desc: "Table: {title}"
    wdir: ..
    cmd: python pipeline/tables.py {grid}
    deps:
      - data/ingredients/tables/{grid}.json
{records}
    outs:
      - results/tables/{grid}.csv: {{cache: false}}
      - results/tables/{grid}.md: {{cache: false}}
      - results/tables/{grid}.tex: {{cache: false}}
      - results/metrics/{grid}: {{cache: false}}
"""

REPORT = """
  {grid}:
    desc: "{title}, from data to figures"
    wdir: {folder}
    cmd: python pipeline/report.py {grid}
    deps:
      - data/ingredients/report/{grid}.json
      - results/tables/{grid}.csv
{records}
    outs:
      - results/figures/{grid}: {{cache: false, persist: true}}
      - results/plots/miou/{grid}.csv: {{cache: false}}
      - results/plots/loss/{grid}.csv: {{cache: false}}
"""


def targets(params: Params) -> str:
    """The text of dvc.yaml."""
    return TARGETS_HEAD + "".join(report(params, name, ".") for name in TARGETS)


def stages(params: Params) -> str:
    """The text of pipeline/dvc.yaml."""
    text = HEAD.format(datasets=", ".join(params.datasets))
    text += matrices("split", SPLIT, splits(params))
    text += matrices("train", TRAIN, runs(params))
    text += matrices("evaluate", EVALUATE, runs(params))
    for name, grid in params.grids.items():
        text += TABLES.format(grid=name, title=grid.title, records=records(grid))
        if name not in TARGETS:
            text += report(params, name, "..")
    return text


def report(params: Params, name: str, folder: str) -> str:
    """A grid's last stage; ``folder`` is the way to the project's."""
    grid = params.grids[name]
    return REPORT.format(grid=name, title=grid.title, folder=folder, records=records(grid))


def matrices(stage: str, body: str, entries: dict[str, dict[str, str]]) -> str:
    """A stage for each entry; the first one holds the body that all share."""
    text = ""
    for place, (name, matrix) in enumerate(entries.items()):
        shared = f"    <<: *{stage}\n" if place else body
        anchor = "" if place else f" &{stage}"
        rows = "".join(f"      {key}: {value}\n" for key, value in matrix.items())
        text += f"\n  {stage}_{name}:{anchor}\n{shared}    matrix:\n{rows}"
    return text


def splits(params: Params) -> dict[str, dict[str, str]]:
    """By dataset, every split of its grids with every seed of theirs; what no target needs is not run."""
    entries = {}
    for dataset in params.datasets:
        of_dataset = [name for name, split in params.splits.items() if split.dataset == dataset]
        grids = [grid for grid in params.grids.values() if set(grid.splits) & set(of_dataset)]
        used = [name for name in of_dataset if any(name in grid.splits for grid in grids)]
        seeds = sorted({seed for grid in grids for seed in grid.seeds})
        if used:
            entries[dataset] = {"split": listed(used), "seed": listed(seeds), "dataset": listed([dataset])}
    return entries


def runs(params: Params) -> dict[str, dict[str, str]]:
    """Each grid's runs; where a grid spans datasets, an entry for each."""
    entries = {}
    for name, grid in params.grids.items():
        datasets = dict.fromkeys(params.splits[split].dataset for split in grid.splits)
        for dataset in datasets:
            here = [split for split in grid.splits if params.splits[split].dataset == dataset]
            entries[name if len(datasets) == 1 else f"{name}_{dataset}"] = {
                "recipe": f"${{grids.{name}.recipes}}",
                "split": listed(here),
                "seed": f"${{grids.{name}.seeds}}",
                "dataset": listed([dataset]),
            }
    return entries


def records(grid: Grid) -> str:
    """A line for each folder of records in the grid's table, those of other grids included."""
    folders = dict.fromkeys(run.metrics.parents[1] for run in grid.table())
    return "\n".join(f"      - {folder.as_posix()}" for folder in folders)


def listed(values: list[str] | list[int]) -> str:
    return f"[{', '.join(map(str, values))}]"


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    params = parameters.load()
    write_text(Path("dvc.yaml"), targets(params))
    write_text(Path("pipeline", "dvc.yaml"), stages(params))


if __name__ == "__main__":
    with one_line_errors():
        main()
