"""Both engines in one project: their plans, and small projects for them."""

from pathlib import Path
from typing import Any

import yaml
from dvc.repo import Repo
from dvc.repo.reproduce import get_active_graph, plan_repro

from pipeline import dvc_stages
from semiseg.base import parameters, tree
from semiseg.base.paths import Run
from tests import miniature, project
from tests.project import ROOT, snakemake_commands, succeed

PARAMS = parameters.load(ROOT / "params.yaml")
CHECK = "python pipeline/check.py"  # Snakemake runs it as it starts, before any rule
TRAIN = "python pipeline/resume.py pipeline/train.py"
EVALUATE = "python pipeline/resume.py pipeline/evaluate.py"
RUN = Run("supervised", "demo-1_20", 0)
RUN_IN_DVC = "pipeline/dvc.yaml:train_demo@supervised-demo-1_20-0-shapes"


def address(grid: str) -> str:
    """Return the grid's target for DVC."""
    return grid if grid in dvc_stages.target_names(PARAMS) else f"pipeline/dvc.yaml:{grid}"


def planned_by_snakemake(place: Path, *targets: str) -> list[str]:
    """Return the commands that make the targets from nothing."""
    output = succeed(place, "snakemake", *targets, "--dry-run", "--forceall", "--printshellcmds")
    return sorted(snakemake_commands(output))


def planned_by_dvc(repo: Repo, target: str) -> list[str]:
    """Return the commands that make a target from nothing."""
    steps = plan_repro(get_active_graph(repo.index.graph), repo.stage.collect(target))
    return sorted(stage.cmd for stage in steps)


def commands(stage: str, runs: list[Run]) -> list[str]:
    """Return the commands of a stage for runs."""
    return sorted(f"{stage} {run.recipe} {run.split} {run.seed}" for run in runs)


def rewrite(place: Path, params: dict[str, Any]) -> None:
    """Write params.yaml, and DVC's stages that follow from it."""
    (place / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    succeed(place, "pipeline.dvc_stages")


def with_few_grids(place: Path, recipes: list[str]) -> Path:
    """Copy the project with stubs to ``place``: the demo and two grids on CamVid that share runs."""
    project.copy(place, stubs=True)
    params = tree.read(place / "params.yaml")
    grids = {name: params["grids"][name] for name in ("demo", "camvid-small", "ablation-camvid-small")}
    for grid in grids.values():
        grid |= {"recipes": recipes, "seeds": [0]}
        grid.pop("waterfall", None)
    grids["camvid-small"]["recipes"] = [recipe for recipe in recipes if "-" not in recipe]
    rewrite(place, {**params, "default": ["demo"], "grids": grids})
    return place


def small_demo(place: Path, recipes: list[str], steps: int = 4) -> Path:
    """Copy the project to ``place`` with a demo of a few tiny images as its only grid."""
    project.copy(place)
    params = tree.read(place / "params.yaml")
    params["datasets"]["shapes"]["options"] = {"train": 24, "val": 4, "size": 64}
    params["datasets"]["shapes"]["shares"] = {"1/20": {"count": 4}}
    demo = params["protocols"]["demo"]
    small = {"backbone": miniature.BACKBONE, "weights": "none", "decoder_channels": 16}
    demo["network"] = {**demo["network"], **small}
    demo["optimiser"] = {**demo["optimiser"], "learning_rate": 0.05}
    demo["geometry"] = {"base_size": 64, "scale": [0.75, 1.5], "crop": 48}
    demo["methods"] = {"cmb": {"ramp_up_steps": 2, "memory_lead_steps": 1, "memory_confidence": 0.2}}
    demo |= {"labelled_batch": 2, "unlabelled_batch": 2, "steps": steps, "validate_every": 2, "log_every": 2}
    grid = {**params["grids"]["demo"], "recipes": recipes}
    grid.pop("waterfall", None)
    rewrite(place, {**params, "default": ["demo"], "grids": {"demo": grid}})
    return place
