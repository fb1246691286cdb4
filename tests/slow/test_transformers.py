"""A miniature of voc-classic-dinov2 under both engines: a transformer, DPT, AdamW and UniMatch V2."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from semiseg.base.paths import Run
from semiseg.evaluation import record
from tests import project
from tests.project import succeed

pytestmark = pytest.mark.timeout(1800)
GRID, RECIPES = "voc-classic-dinov2", ["supervised", "unimatch_v2"]


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


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The grid run by each engine in a project of its own."""
    made = []
    for engine in (["snakemake", GRID, "--cores", "1"], ["dvc", "repro", f"pipeline/dvc.yaml:{GRID}"]):
        place = project.copy(tmp_path_factory.mktemp(engine[0]))
        shrink(place / "params.yaml")
        succeed(place, "pipeline.dvc_stages")
        succeed(place, *engine)
        made.append(place)
    return made


def test_both_engines_reach_the_same_table(places: list[Path]) -> None:
    one, other = ((place / f"results/tables/{GRID}.csv").read_bytes() for place in places)
    assert one == other
    table = pd.read_csv(places[0] / f"results/tables/{GRID}.csv")
    assert list(table["recipe"]) == RECIPES
    assert table["miou_mean"].notna().all()


def test_a_record_names_the_architectures_package(
    places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places[0])
    found = record.read(Run("unimatch_v2", "voc_dinov2-1_4", 0).metrics)
    assert {"timm", "torch"} <= found.provenance.packages.keys()
    assert found.provenance.config["protocol"]["optimiser"]["name"] == "adamw"
    assert set(found.last.networks) == {"student", "teacher"}
