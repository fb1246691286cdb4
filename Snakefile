# The benchmark as a table of contents: one rule for each stage, one target for each grid of params.yaml.
#   snakemake demo --cores 2                  the demo
#   snakemake --cores 8 --resources gpu=4     the default grids, four runs at a time
import subprocess
import sys
from pathlib import Path

from semiseg import stages
from semiseg.base.errors import UserError
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version, validate

min_version("9.27")


try:
    PARAMS = stages.load(workflow.config_settings.overwrite_config)
except UserError as error:
    raise WorkflowError(str(error)) from None


configfile: "params.yaml"  # after the check, because this answers a broken file with a traceback


validate(config, "pipeline/params.schema.yaml", set_default=False)
STAGES = stages.Stages(PARAMS)


ENVIRONMENT = stages.escaped(str(Path(workflow.basedir, "environment.yaml")))
# Without an environment of their own, stages run under the Python that runs Snakemake, activated or not.
shell.prefix(stages.shell_prefix(workflow.deployment_settings.deployment_method))


wildcard_constraints:
    **stages.WILDCARDS,


# Not a rule, because every rule would depend on it and run again with it.
onstart:
    if subprocess.run([sys.executable, "pipeline/check.py"]).returncode != 0:
        raise WorkflowError("python pipeline/check.py refused params.yaml")


rule all:
    input:
        expand("results/tables/{grid}.csv", grid=PARAMS.default),
        expand("results/figures/{grid}", grid=PARAMS.default),
    localrule: True


for each in PARAMS.grids:

    rule:
        name:
            each
        input:
            f"results/tables/{each}.csv",
            f"results/figures/{each}",
        localrule: True


rule download:
    output:
        update("data/{dataset}/manifest.json"),
    log:
        "logs/download/{dataset}.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        ingredients=STAGES.download,
    shell:
        "python pipeline/download.py {wildcards.dataset} 2>&1 | tee -i {log}"


rule split:
    input:
        manifest=STAGES.manifest,
    output:
        "data/splits/{split}/{seed}/labelled.txt",
        "data/splits/{split}/{seed}/unlabelled.txt",
    log:
        "logs/split/{split}/{seed}.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        ingredients=STAGES.split,
    shell:
        "python pipeline/split.py {wildcards.split} {wildcards.seed} 2>&1 | tee -i {log}"


rule pretrain:
    input:
        manifest=STAGES.pretraining_manifest,
    output:
        weights="runs/pretrained/{pretraining}/backbone.pt",
        record="results/pretraining/{pretraining}/record.json",
        history="results/pretraining/{pretraining}/history.csv",
    log:
        "logs/pretrain/{pretraining}.log",
    conda:
        ENVIRONMENT
    threads: STAGES.threads_of_pretraining
    resources:
        gpu=STAGES.gpus_of_pretraining,
    params:
        ingredients=STAGES.pretrain,
    message:
        "pretrain {wildcards.pretraining}"
    shell:
        "python pipeline/resume.py pipeline/pretrain.py {wildcards.pretraining} 2>&1 | tee -i {log}"


rule train:
    input:
        manifest=STAGES.manifest,
        labelled="data/splits/{split}/{seed}/labelled.txt",
        unlabelled="data/splits/{split}/{seed}/unlabelled.txt",
        pretrained=STAGES.pretrained,
    output:
        model="runs/{recipe}/{split}/{seed}/model.pt",
        history="runs/{recipe}/{split}/{seed}/history.csv",
    log:
        "logs/train/{recipe}/{split}/{seed}.log",
    conda:
        ENVIRONMENT
    threads: STAGES.threads_of_all
    resources:
        gpu=STAGES.gpus,
    params:
        ingredients=STAGES.train,
    message:
        "train {wildcards.recipe} on {wildcards.split}, seed {wildcards.seed}"
    shell:
        "python pipeline/resume.py pipeline/train.py {wildcards.recipe} {wildcards.split} {wildcards.seed} 2>&1 | tee -i {log}"


rule evaluate:
    input:
        manifest=STAGES.manifest,
        labelled="data/splits/{split}/{seed}/labelled.txt",
        model="runs/{recipe}/{split}/{seed}/model.pt",
        history="runs/{recipe}/{split}/{seed}/history.csv",
    output:
        record="results/runs/{recipe}/{split}/{seed}/metrics.json",
        history="results/runs/{recipe}/{split}/{seed}/history.csv",
    log:
        "logs/evaluate/{recipe}/{split}/{seed}.log",
    priority: 1  # before more training: a run's last checkpoint is kept until it is evaluated
    conda:
        ENVIRONMENT
    threads: STAGES.threads
    resources:
        gpu=1,
    params:
        ingredients=STAGES.evaluate,
    message:
        "evaluate {wildcards.recipe} on {wildcards.split}, seed {wildcards.seed}"
    shell:
        "python pipeline/resume.py pipeline/evaluate.py {wildcards.recipe} {wildcards.split} {wildcards.seed} 2>&1 | tee -i {log}"


rule report:
    input:
        records=STAGES.records,
        histories=STAGES.histories,
    output:
        report(
            update(directory("results/figures/{grid}")),
            patterns=["{figure}.png"],
            category="Figures",
            subcategory="{grid}",
        ),
        csv=report("results/tables/{grid}.csv", category="Tables", subcategory="{grid}"),
        tables=expand("results/tables/{{grid}}.{kind}", kind=stages.TABLES[1:]),
        metrics=directory("results/metrics/{grid}"),
        plots=expand("results/plots/{kind}/{{grid}}.csv", kind=["miou", "loss"]),
    log:
        "logs/report/{grid}.log",
    localrule: True
    conda:
        ENVIRONMENT
    params:
        ingredients=STAGES.report,
    message:
        "table and figures of {wildcards.grid}, results/report.html"
    shell:
        "python pipeline/report.py {wildcards.grid} 2>&1 | tee -i {log}"
