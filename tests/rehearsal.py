"""The papers' tables rehearsed: the real recipes, splits and grids; stand-ins for data, networks and steps.

    python -m tests.rehearsal                        all of TABLES: every run is trained once, here,
                                                     and both engines make the tables of the runs
    python -m tests.rehearsal --from-nothing         each engine trains every run as well: some 500 processes
    python -m tests.rehearsal --table paper-dcc-voc  one of them, with the rows beside it

At the end every row that a recipe measures must be filled in every table, and the tables of both engines must
be the same, byte for byte.
"""

import argparse
import copy
import hashlib
import math
import pickle
import runpy
import sys
import tempfile
import time
from contextlib import chdir
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
import torchvision
import yaml

from pipeline import dvc_stages
from semiseg.base import parameters
from semiseg.base.parameters import DRAWN
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
    for name in ("tables.yaml", "peer_logs.csv"):
        (reference / name).write_text((ROOT / "results/reference" / name).read_text())
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


def in_this_process(script: str, *arguments: object) -> None:
    """A stage, without a process of its own, which would load torch again."""
    file = ROOT / "pipeline" / f"{script}.py"
    with patch.object(sys, "argv", [str(file), *map(str, arguments)]):
        runpy.run_path(str(file), run_name="__main__")


def train(names: list[str]) -> int:
    """Train and evaluate all runs of the tables ``names`` of the project that is the working directory."""
    params = parameters.load()
    runs = list(dict.fromkeys(run for name in names for run in params.grids[name].table()))
    in_this_process("check")
    for dataset in dict.fromkeys(params.splits[run.split].dataset for run in runs):
        in_this_process("download", dataset)
    for split, seed in dict.fromkeys((run.split, run.seed) for run in runs):
        in_this_process("split", split, seed)
    for run in runs:
        for script in ("train", "evaluate"):
            in_this_process(script, run.recipe, run.split, run.seed)
    return len(runs)


def commands(engine: str, names: list[str], *, trained: bool) -> list[str]:
    """What makes the tables ``names``, and what they need unless all runs are ``trained`` already."""
    if engine == "snakemake":
        return ["snakemake", *names, "--cores", "2", "--printshellcmds"]
    targets = [name if name in dvc_stages.TARGETS else f"pipeline/dvc.yaml:{name}" for name in names]
    if not trained:
        return ["dvc", "repro", *targets]
    # DVC has not seen the runs that lead here.
    tables = [f"pipeline/dvc.yaml:tables_{name}" for name in names]
    return ["dvc", "repro", "--single-item", *tables, *targets]


def make(engine: str, place: Path, names: list[str], *, trained: bool) -> dict[str, bytes]:
    """The files of the tables ``names``, as an engine makes them, and no longer there.

    Raises AssertionError where it fails, trains what is ``trained``, or leaves a cell of a recipe empty.
    """
    output = project.succeed(place, *commands(engine, names, trained=trained))
    assert not (trained and "pipeline/train.py" in output), f"{engine} trains what is trained"
    empty = [cell for name in names for cell in empty_cells(place, name)]
    assert not empty, "\n".join([f"{engine} leaves cells empty:", *empty])
    files = [f"results/tables/{name}.{kind}" for name in names for kind in ("csv", "md", "tex")]
    made = {file: (place / file).read_bytes() for file in files}
    for file in files:
        (place / file).unlink()
    return made


def empty_cells(place: Path, name: str) -> list[str]:
    """The cells of a table that a recipe measures and no run has filled."""
    frame = pd.read_csv(place / "results" / "tables" / f"{name}.csv")
    measured = frame[frame["recipe"].notna()]
    assert len(measured), f"{name} has no row that a recipe measures"
    empty = measured[(measured["seeds"] != len(SEEDS)) | measured["miou_mean"].isna()]
    return [f"{name}: {row.recipe}, {row.ratio}, {row.split}" for row in empty.itertuples()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", choices=TABLES, action="append", help="may be given more than once")
    parser.add_argument("--from-nothing", action="store_true", help="each engine trains every run, too")
    arguments = parser.parse_args()
    names, trained = arguments.table or list(TABLES), not arguments.from_nothing
    made = []
    with tempfile.TemporaryDirectory() as folder:
        place = stage(Path(folder, "once"))
        if trained:
            started = time.monotonic()
            with chdir(place):
                runs = train(names)
            print(f"{runs} runs trained: {time.monotonic() - started:.0f} s", flush=True)
        for engine in ("snakemake", "dvc"):
            started = time.monotonic()
            own = place if trained else stage(Path(folder, engine))
            made.append(make(engine, own, names, trained=trained))
            print(f"{engine}: {len(names)} tables, {time.monotonic() - started:.0f} s", flush=True)
    different = [file for file in made[0] if made[0][file] != made[1][file]]
    if different:
        raise SystemExit("\n".join(["both engines made these, but not alike:", *different]))
    print("All rows are filled, and both engines' tables are the same.")


if __name__ == "__main__":
    main()
