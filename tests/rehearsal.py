"""The papers' tables rehearsed: the real recipes, splits and grids; stand-ins for data, networks and steps.

    python -m tests.rehearsal                        all of TABLES, by Snakemake and by DVC
    python -m tests.rehearsal --table paper-dcc-voc  one of them, with the rows beside it

Each engine has a copy of the project in a temporary folder. At the end every row that a recipe measures must
be filled in every table, and the tables of both engines must be the same, byte for byte.
"""

import argparse
import copy
import hashlib
import math
import pickle
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchvision
import yaml

from pipeline import dvc_stages
from semiseg.config import DRAWN
from tests import project, releases
from tests.project import ROOT

Tree = dict[str, Any]

TABLES = (
    "voc",
    "cityscapes",
    "paper-cmb-voc",
    "paper-cmb-cityscapes",
    "paper-cmb-losses",
    "paper-dcc-voc",
    "paper-dcc-components",
    "dcc-cityscapes",
    "ablation-cmb-attention",
    "ablation-cmb-memory",
    "ablation-dcc-masks",
    "released-code",
)
SEEDS = (0,)
BATCH = 2
IDS = {"voc": releases.TRAIN, "cityscapes": releases.CITY_TRAIN}
VAL = {"voc": releases.VOC_VAL, "cityscapes": releases.CITY_VAL}
TINY = {
    "geometry": {"base_size": 48, "scale": [0.75, 1.5], "crop": 32},
    "labelled_batch": BATCH,
    "unlabelled_batch": BATCH,
    "steps": 2,
    "precision": "fp32",
    "validate_every": 2,
    "workers": 0,
    "threads": 1,
}
# The schedules cut short, so that the memory is read; what the protocol sets stays.
METHODS: Tree = {"cmb": {"ramp_up_steps": 1, "memory_lead_steps": 1, "memory_confidence": 0.0}}


def weights(backbone: str, pretraining: str) -> str:
    """The file that stands in for a network's weights, and its identity in tables."""
    return f"data/archives/{backbone}-{pretraining}.pth"


def params() -> tuple[Tree, releases.Files]:
    """params.yaml of a rehearsal, and the files that it wants in data/archives/."""
    tree: Tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    files = {**releases.voc_archives(), **releases.cityscapes_archives()}
    tree["downloads"] = {
        name: {"size": len(content), "md5": hashlib.md5(content).hexdigest()}
        for name, content in files.items()
    }
    for name in IDS:
        tree["datasets"][name]["options"] = releases.published(IDS[name], VAL[name])
    for protocol in tree["protocols"].values():
        network = protocol["network"]  # YAML's aliases are one object, so it is not changed in place
        stand_in = weights(network["backbone"], network["weights"])
        protocol["network"] = network | {"backbone": "resnet18", "weights": stand_in, "decoder_channels": 8}
        protocol |= copy.deepcopy(TINY)
        own = protocol.get("methods", {})
        protocol["methods"] = {**own, "cmb": {**own.get("cmb", {}), **METHODS["cmb"]}}
    for split in tree["splits"].values():
        if "count" in split:
            split["count"] = count(split)
    for grid in tree["grids"].values():
        grid["seeds"] = list(SEEDS)
    lists = published_lists(tree)
    for family, texts in lists.items():
        digests = {path: hashlib.sha256(content).hexdigest() for path, content in texts.items()}
        tree["families"][family]["sha256"] = digests
        files |= {f"{family}/{path}": content for path, content in texts.items()}
    return tree, files


def count(split: Tree) -> int:
    """As many labelled images of the stand-in as the share makes, and no fewer than a batch."""
    return max(BATCH, math.ceil(Fraction(split["ratio"]) * len(IDS[split["dataset"]])))


def published_lists(tree: Tree) -> dict[str, releases.Files]:
    """What the papers' authors published, for the stand-ins' images: by family and path."""
    lists: dict[str, releases.Files] = {"cmb": {"train_aug.txt": releases.lines(IDS["voc"])}, "dcc": {}}
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(len(IDS["voc"]))
        lists["cmb"][f"split_{seed}.pkl"] = pickle.dumps(order)
        for split in tree["splits"].values():
            if split.get("family", DRAWN) == "dcc":
                folder = {"voc": "voc_splits", "cityscapes": "city_splits"}[split["dataset"]]
                ids = IDS[split["dataset"]][seed : seed + split["count"]]
                text = [f"/JPEGImages/{each}.jpg /SegmentationClassAug/{each}.png" for each in ids]
                path = f"{folder}{seed}/{split['count']}_train_supervised.txt"
                lists["dcc"][path] = releases.lines(text)
    return lists


def stage(place: Path) -> Path:
    """A copy of the project in ``place`` with everything that a rehearsal needs and nothing run."""
    project.copy(place)
    tree, files = params()
    (place / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    project.succeed(place, "pipeline.dvc_stages")
    for name, content in files.items():
        file = place / "data" / "archives" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    reference = place / "results" / "reference"
    reference.mkdir(parents=True)
    (reference / "tables.yaml").write_text((ROOT / "results/reference/tables.yaml").read_text())
    figures = pd.read_csv(ROOT / "results/reference/paper_results.csv", keep_default_na=False)
    figures["pretraining"] = list(map(weights, figures["backbone"], figures["pretraining"]))
    figures["backbone"] = "resnet18"
    figures.to_csv(reference / "paper_results.csv", index=False)
    for number, name in enumerate(
        sorted({each["network"]["weights"] for each in tree["protocols"].values()})
    ):
        torch.manual_seed(number)
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), place / name)
    return place


def commands(engine: str, names: list[str]) -> list[str]:
    """The command that makes the tables ``names`` and all that they need."""
    if engine == "snakemake":
        return ["snakemake", *names, "--cores", "2", "--quiet", "rules"]
    targets = [name if name in dvc_stages.TARGETS else f"pipeline/dvc.yaml:{name}" for name in names]
    return ["dvc", "repro", *targets]


def empty_cells(place: Path, name: str) -> list[str]:
    """The cells of a table that a recipe measures and no run has filled."""
    frame = pd.read_csv(place / "results" / "tables" / f"{name}.csv")
    measured = frame[frame["recipe"].notna()]
    assert len(measured), f"{name} has no row that a recipe measures"
    empty = measured[(measured["seeds"] != len(SEEDS)) | measured["miou_mean"].isna()]
    return [f"{name}: {row.recipe}, {row.ratio}, {row.split}" for row in empty.itertuples()]


def different(one: Path, other: Path, names: list[str]) -> list[str]:
    """The files of tables that differ between two projects."""
    files = [f"results/tables/{name}.{kind}" for name in names for kind in ("csv", "md", "tex")]
    return [file for file in files if (one / file).read_bytes() != (other / file).read_bytes()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", choices=TABLES, action="append", help="may be given more than once")
    names = parser.parse_args().table or list(TABLES)
    with tempfile.TemporaryDirectory() as folder:
        places = {}
        for engine in ("snakemake", "dvc"):
            place = places[engine] = stage(Path(folder, engine))
            started = time.monotonic()
            project.succeed(place, *commands(engine, names))
            runs = len(list((place / "results" / "runs").glob("*/*/*/metrics.json")))
            print(
                f"{engine}: {runs} runs, {len(names)} tables, {time.monotonic() - started:.0f} s", flush=True
            )
        faults = [cell for place in places.values() for name in names for cell in empty_cells(place, name)]
        faults += different(places["snakemake"], places["dvc"], names)
    if faults:
        raise SystemExit("\n".join(["empty cells, or tables that differ:", *faults]))
    print("All rows are filled, and both engines' tables are the same.")


if __name__ == "__main__":
    main()
