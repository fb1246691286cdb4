"""Both engines pretrain before they train: Snakemake up to a grid's table, DVC up to the same network."""

import json
from pathlib import Path
from typing import Any

from semiseg.base import files, tree
from semiseg.base.paths import PretrainingRun, Run
from semiseg.training import checkpoint
from tests import project
from tests.pretraining import recipes
from tests.project import dvc_commands, snakemake_commands, succeed
from tests.slow.engines import TRAIN, rewrite, small_demo
from tests.slow.faults import same

GRID, NAME = "pretraining", "demo_moco"
RUN = Run("supervised", f"{NAME}-1_20", 0)
PRETRAIN = f"python pipeline/resume.py pipeline/pretrain.py {NAME}"


def pretraining_demo(place: Path) -> Path:
    """Copy the project to ``place`` with one grid, of one run from a pretraining."""
    small_demo(place, ["supervised"], steps=2)
    params: dict[str, Any] = tree.read(place / "params.yaml")
    recipe = recipes.tree("moco", dataset="shapes", batch=4, steps=3, validate_every=3)
    grid = {"title": "Starts", "protocol": NAME, "shares": ["1/20"], "recipes": ["supervised"], "seeds": [0]}
    changes = {
        "default": [GRID],
        "grids": {GRID: grid},
        "protocols": {"demo": params["protocols"]["demo"]},
        "starts": {"demo": {"moco": f"pretrained/{NAME}"}},
        "pretraining": {NAME: recipe},
    }
    rewrite(place, {**params, **changes})
    (place / "pipeline/check.py").write_text(project.CHECK_STUB)
    return place


def test_both_engines_pretrain_once_and_then_train_the_same_network(tmp_path: Path) -> None:
    one, other = (pretraining_demo(tmp_path / engine) for engine in ("snakemake", "dvc"))
    said = succeed(one, "snakemake", GRID, "--cores", "2", "--printshellcmds")
    target = f"pipeline/dvc.yaml:train_{GRID}@supervised-{RUN.split}-0-shapes-{NAME}"
    for commands in (snakemake_commands(said), dvc_commands(succeed(other, "dvc", "repro", target))):
        train = f"{TRAIN} {RUN.recipe} {RUN.split} {RUN.seed}"
        assert commands.count(PRETRAIN) == commands.count(train) == 1
        assert commands.index(PRETRAIN) < commands.index(train)
    models = [checkpoint.read(place / RUN.artefacts / "model.pt") for place in (one, other)]
    assert same(*models)
    pretraining = PretrainingRun(NAME)
    made = json.loads((one / pretraining.record).read_text())
    for place, model in zip((one, other), models, strict=True):
        assert (place / "results/pretraining" / NAME / "history.csv").exists()
        assert model["pretrained_sha256"] == files.file_sha256(place / pretraining.weights)
        assert model["pretrained_sha256"] == made["weights_sha256"]
    record = json.loads((one / RUN.metrics).read_text())
    assert record["provenance"]["pretrained_sha256"] == made["weights_sha256"]
    assert record["provenance"]["config"]["weights_sha256"] == made["config_sha256"]
    assert "1/20 from moco after random weights" in (one / f"results/tables/{GRID}.md").read_text()
