"""A miniature of voc-classic-dinov2: a transformer, DPT, AdamW and UniMatch V2."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from semiseg.base.paths import Run
from semiseg.evaluation import record
from tests import project

GRID, RECIPES, SPLIT = "voc-classic-dinov2", ["supervised", "unimatch_v2"], "voc_dinov2-1_4"
STAGES = [
    ("check",),
    ("download", "shapes"),
    ("split", SPLIT, "0"),
    *((stage, recipe, SPLIT, "0") for recipe in RECIPES for stage in ("train", "evaluate")),
    ("tables", GRID),
]


def shrink(params_file: Path) -> None:
    """Keep two recipes, a few drawn images, four steps and a small transformer with random weights."""
    tree = yaml.safe_load(params_file.read_text())
    tree["grids"] = {
        GRID: {**tree["grids"][GRID], "recipes": RECIPES, "shares": ["1/4"], "gpus": 1},
        "demo": tree["grids"]["demo"],
    }
    tree["default"] = ["demo"]
    del tree["starts"], tree["pretraining"]
    tree["protocols"] = {name: tree["protocols"][name] for name in ("voc_dinov2", "demo")}
    protocol = tree["protocols"]["voc_dinov2"]
    protocol["dataset"] = "shapes"
    protocol["network"] |= {"backbone": "timm:vit_tiny_patch16_224", "weights": "none", "output_stride": 16}
    protocol["network"] |= {"decoder_channels": 8}
    protocol["geometry"] |= {"base_size": 48, "crop": 32}
    protocol |= {"labelled_batch": 2, "unlabelled_batch": 2, "steps": 4, "validate_every": 4, "log_every": 2}
    protocol |= {"workers": 0, "threads": 1}
    shapes = tree["datasets"]["shapes"]
    shapes |= {"options": {"train": 8, "val": 2, "size": 48}, "shares": {"1/4": {}, "1/20": {}}}
    tree["datasets"] = {"shapes": shapes}
    params_file.write_text(yaml.safe_dump(tree, sort_keys=False))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_as_in_a_run: None) -> Path:
    """A project in which the grid has been run."""
    place = project.copy(tmp_path)
    shrink(place / "params.yaml")
    monkeypatch.chdir(place)
    for stage in STAGES:
        project.stage(*stage)
    return place


def test_every_recipe_has_a_figure_and_its_record_names_the_architectures_package(place: Path) -> None:
    table = pd.read_csv(place / f"results/tables/{GRID}.csv")
    assert list(table["recipe"]) == RECIPES
    assert table["miou_mean"].notna().all()
    found = record.read(Run("unimatch_v2", SPLIT, 0).metrics)
    assert {"timm", "torch"} <= found.provenance.packages.keys()
    assert found.provenance.config["protocol"]["optimiser"]["name"] == "adamw"
    assert set(found.last.networks) == {"student", "teacher"}
