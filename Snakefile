# The benchmark as a table of contents: one rule a stage, one target a grid of params.yaml.
#   snakemake demo --cores 2                  the demo
#   snakemake --cores 8 --resources gpu=4     the papers' grids, four runs at a time
import subprocess
import sys
from pathlib import Path

from semiseg.base import parameters
from semiseg import ingredients
from semiseg.base.errors import UserError
from semiseg.base.paths import Run
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version, validate

min_version("9.27")


configfile: "params.yaml"


# What `snakemake` and `dvc repro` run when no grid is named (dvc.yaml lists the same).
DEFAULT_GRIDS = ["voc", "cityscapes"]

if workflow.config_settings.overwrite_config:
    raise WorkflowError(
        "--config and --configfile do not reach the stages, which read params.yaml themselves: "
        "change params.yaml instead"
    )
try:
    PARAMS = parameters.load(Path("params.yaml"))
except UserError as error:
    raise WorkflowError(str(error)) from None
validate(config, "pipeline/params.schema.yaml", set_default=False)

# A failed stage is not hidden by tee. A signal that reaches the whole job is the stage's to answer, which may save its
# work and say so: the shell waits for it, and tee writes until nobody speaks.
shell_prefix = "set -euo pipefail; trap : INT TERM; tee() {{ trap '' INT TERM; command tee \"$@\"; }}; "
if not workflow.deployment_settings.deployment_method:
    # The stages run under the Python that runs Snakemake, activated or not.
    shell_prefix += f"PATH='{Path(sys.executable).parent}':$PATH; "
shell.prefix(shell_prefix)


def run_of(wildcards):
    return Run(wildcards.recipe, wildcards.split, int(wildcards.seed))


def dataset_of(wildcards):
    return PARAMS.splits[wildcards.split].dataset


def manifest_of(wildcards):
    return f"data/{dataset_of(wildcards)}/manifest.json"


def threads_of(wildcards):
    return PARAMS.run(run_of(wildcards)).protocol.threads


def gpus_of(wildcards):
    return PARAMS.gpus(run_of(wildcards))


def threads_together(wildcards):
    return gpus_of(wildcards) * threads_of(wildcards)


def records_of(wildcards):
    """Of the grid's runs, and of those of other grids that stand in its table."""
    return [str(run.metrics) for run in PARAMS.grids[wildcards.grid].table()]


def histories_of(wildcards):
    return [str(run.history) for run in PARAMS.grids[wildcards.grid].table()]


def results_of(grid):
    return expand(
        "results/tables/{grid}.{kind}", grid=grid, kind=["csv", "md", "tex"]
    ) + [f"results/metrics/{grid}", f"results/figures/{grid}"]


wildcard_constraints:
    dataset="[^/]+",
    recipe="[^/]+",
    split="[^/]+",
    seed=r"\d+",
    grid="[^/]+",


# The first stage, which refuses a wrong params.yaml, is no rule: every other would depend on it and be run anew with
# it. What a stage's result depends on is compared run by run instead, by the parameter `ingredients` of its rule.
onstart:
    checked = subprocess.run([sys.executable, "pipeline/check.py"])
    if checked.returncode != 0:
        raise WorkflowError("python pipeline/check.py refused params.yaml")


rule all:
    input:
        [results_of(grid) for grid in DEFAULT_GRIDS],
    localrule: True


for each in PARAMS.grids:

    rule:
        name:
            each
        input:
            results_of(each),
        localrule: True


rule download:
    output:
        update("data/{dataset}/manifest.json"),
    log:
        "logs/download/{dataset}.log",
    localrule: True
    conda:
        "environment.yaml"
    params:
        ingredients=lambda wildcards: ingredients.text(
            ingredients.download(PARAMS, wildcards.dataset)
        ),
    message:
        "prepare {wildcards.dataset}"
    shell:
        "python pipeline/download.py {wildcards.dataset} 2>&1 | tee -i {log}"


rule split:
    input:
        manifest=manifest_of,
    output:
        "data/splits/{split}/{seed}/labelled.txt",
        "data/splits/{split}/{seed}/unlabelled.txt",
    log:
        "logs/split/{split}/{seed}.log",
    localrule: True
    conda:
        "environment.yaml"
    params:
        ingredients=lambda wildcards: ingredients.text(
            ingredients.split(PARAMS, wildcards.split)
        ),
    message:
        "draw {wildcards.split}, seed {wildcards.seed}"
    shell:
        "python pipeline/split.py {wildcards.split} {wildcards.seed} 2>&1 | tee -i {log}"


rule train:
    input:
        manifest=manifest_of,
        labelled="data/splits/{split}/{seed}/labelled.txt",
        unlabelled="data/splits/{split}/{seed}/unlabelled.txt",
    output:
        model="runs/{recipe}/{split}/{seed}/model.pt",
        history="runs/{recipe}/{split}/{seed}/history.csv",
    log:
        "logs/train/{recipe}/{split}/{seed}.log",
    benchmark:
        "logs/train/{recipe}/{split}/{seed}.benchmark.tsv"
    conda:
        "environment.yaml"
    threads: threads_together
    resources:
        gpu=gpus_of,
    params:
        ingredients=lambda wildcards: ingredients.text(
            ingredients.train(PARAMS, run_of(wildcards))
        ),
    message:
        "train {wildcards.recipe} on {wildcards.split}, seed {wildcards.seed}"
    shell:
        "python pipeline/resume.py pipeline/train.py {wildcards.recipe} {wildcards.split} {wildcards.seed} 2>&1 | tee -i {log}"


rule evaluate:
    input:
        manifest=manifest_of,
        labelled="data/splits/{split}/{seed}/labelled.txt",
        model="runs/{recipe}/{split}/{seed}/model.pt",
        history="runs/{recipe}/{split}/{seed}/history.csv",
    output:
        record="results/runs/{recipe}/{split}/{seed}/metrics.json",
        history="results/runs/{recipe}/{split}/{seed}/history.csv",
    log:
        "logs/evaluate/{recipe}/{split}/{seed}.log",
    priority: 1  # before further training: until then a run's last checkpoint is kept
    conda:
        "environment.yaml"
    threads: threads_of
    resources:
        gpu=1,
    params:
        ingredients=lambda wildcards: ingredients.text(
            ingredients.evaluate(PARAMS, run_of(wildcards))
        ),
    message:
        "evaluate {wildcards.recipe} on {wildcards.split}, seed {wildcards.seed}"
    shell:
        "python pipeline/resume.py pipeline/evaluate.py {wildcards.recipe} {wildcards.split} {wildcards.seed} 2>&1 | tee -i {log}"


rule tables:
    input:
        records=records_of,
    output:
        csv=report("results/tables/{grid}.csv", category="Tables", subcategory="{grid}"),
        markdown="results/tables/{grid}.md",
        latex="results/tables/{grid}.tex",
        metrics=directory("results/metrics/{grid}"),
    log:
        "logs/tables/{grid}.log",
    localrule: True
    conda:
        "environment.yaml"
    params:
        ingredients=lambda wildcards: ingredients.text(
            ingredients.tables(PARAMS, wildcards.grid)
        ),
    message:
        "tables of {wildcards.grid}"
    shell:
        "python pipeline/tables.py {wildcards.grid} 2>&1 | tee -i {log}"


rule report:
    input:
        records=records_of,
        histories=histories_of,
        table="results/tables/{grid}.csv",
    output:
        report(
            update(directory("results/figures/{grid}")),
            patterns=["{figure}.png"],
            category="Figures",
            subcategory="{grid}",
        ),
        miou="results/plots/miou/{grid}.csv",
        loss="results/plots/loss/{grid}.csv",
    log:
        "logs/report/{grid}.log",
    localrule: True
    conda:
        "environment.yaml"
    params:
        ingredients=lambda wildcards: ingredients.text(
            ingredients.report(PARAMS, wildcards.grid)
        ),
    message:
        "figures of {wildcards.grid}, results/report.html"
    shell:
        "python pipeline/report.py {wildcards.grid} 2>&1 | tee -i {log}"
