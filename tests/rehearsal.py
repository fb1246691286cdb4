"""Rehearse the papers' tables: the real recipes and grids, stand-ins for data, networks and steps.

    python -m tests.rehearsal                        train every run once, here; both engines make the tables
    python -m tests.rehearsal --from-nothing         each engine trains every run, in hundreds of processes
    python -m tests.rehearsal --table paper-dcc-voc  one table

At the end every row that a recipe measures must be filled in every table, and the tables of both engines must
be equal, byte for byte.
"""

import argparse
import copy
import hashlib
import math
import pickle
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, chdir, contextmanager
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
from semiseg.base.parameters import DRAWN, FULL
from semiseg.base.tree import fraction, read
from semiseg.data import families, lists
from semiseg.data.archives import Download
from semiseg.data.families import Family, File
from semiseg.data.sources import cityscapes, voc
from tests import project, releases
from tests.project import ROOT

Tree = dict[str, Any]

SEEDS = (0,)
BATCH = 2
IDS = {"voc": releases.TRAIN, "cityscapes": releases.CITY_TRAIN}
VAL = {"voc": releases.VOC_VAL, "cityscapes": releases.CITY_VAL}
ARCHIVES = {"voc": releases.voc_archives(), "cityscapes": releases.cityscapes_archives()}
TINY = {
    "geometry": {"base_size": 48, "scale": [0.75, 1.5], "crop": 32},
    "labelled_batch": BATCH,
    "unlabelled_batch": BATCH,
    "steps": 3,
    "precision": "fp32",
    "validate_every": 3,
    "workers": 0,
    "threads": 1,
    "image_cache_mib": 0,
}
# Schedules cut short, so that the memory is read; the protocol's other options stay.
METHODS: Tree = {"cmb": {"ramp_up_steps": 1, "memory_lead_steps": 1, "memory_confidence": 0.0}}
HARD_PIXELS = 64  # of a crop of 32 x 32


def tables() -> list[str]:
    """Return the grids on VOC and Cityscapes whose runs start from published weights."""
    params = parameters.load(ROOT / "params.yaml")
    return [
        name
        for name, grid in params.grids.items()
        if all(params.protocols[each].dataset in IDS for each in grid.shares_by_protocol)
        and not any(map(params.pretrained, grid.runs()))
    ]


# --- stand-ins ----------------------------------------------------------------------------------------------


def weights(backbone: str, pretraining: str) -> str:
    """Return the file that stands in for a network's weights; tables know the network by it."""
    return f"data/archives/{backbone.replace(':', '-')}-{pretraining}.pth"


def params() -> Tree:
    """Return params.yaml of a rehearsal."""
    tree: Tree = copy.deepcopy(read(ROOT / "params.yaml"))
    tree["grids"] = {name: tree["grids"][name] for name in tables()}
    del tree["starts"], tree["pretraining"]
    tree["default"] = [name for name in tree["default"] if name in tree["grids"]]
    for name in IDS:
        tree["datasets"][name]["options"] = releases.published(IDS[name], VAL[name])
        shares = tree["datasets"][name]["shares"].items()
        tree["datasets"][name]["shares"] = {renamed(share): of(name, share, entry) for share, entry in shares}
    for protocol in tree["protocols"].values():
        network = protocol["network"]  # YAML's aliases are one object, so it is not changed in place
        transformer = network["backbone"].startswith("timm:")
        protocol["network"] = network | {
            "head": "deeplabv3plus" if transformer else network["head"],
            "backbone": "resnet18",
            "weights": weights(network["backbone"], network["weights"]),
            "output_stride": 16 if transformer else network["output_stride"],
            "decoder_channels": 8,
        }
        protocol |= copy.deepcopy(TINY)
        own = protocol["methods"]
        protocol["methods"] = small({**own, "cmb": {**own.get("cmb", {}), **METHODS["cmb"]}})
    tree["recipes"] = small(tree["recipes"])
    for grid in tree["grids"].values():
        grid |= {"seeds": list(SEEDS), "gpus": 1}
        for key in ("shares", "protocols"):
            if key in grid:
                grid[key] = renamed(grid[key])
    return tree


def renamed(name: Any) -> Any:
    """Return a share whose name is not a number of images; also within lists and maps of shares."""
    if isinstance(name, list):
        return [renamed(each) for each in name]
    if isinstance(name, dict):
        return {protocol: renamed(shares) for protocol, shares in name.items()}
    return f"of_{name}" if str(name).isdecimal() else name


def of(dataset: str, name: Any, share: Tree) -> Tree:
    """Return a share of the stand-in: its part of the images, but at least a batch."""
    ratio = share.get("ratio") or (1 if name == FULL else name)
    count = math.ceil(fraction(str(ratio)) * len(IDS[dataset]))
    return {**share, "ratio": str(Fraction(str(ratio))), "count": max(BATCH, count)}


def small(options: Any) -> Any:
    """Return options, at any depth, that fit a small crop and few images."""
    if not isinstance(options, dict):
        return options
    fitting = {"pixels": HARD_PIXELS, "recalibrate": 1}
    return {
        key: fitting[key] if key in fitting and value is not None else small(value)
        for key, value in options.items()
    }


def published_lists(tree: Tree) -> tuple[dict[str, Family], releases.Files]:
    """Return stand-ins for the lists that authors published, and their files by path below archives/."""
    found: dict[str, dict[tuple[str, int, int], File]] = {}
    files: releases.Files = {}
    for dataset, ids in IDS.items():
        for share in tree["datasets"][dataset]["shares"].values():
            family = share.get("lists", DRAWN)
            if family == DRAWN:
                continue
            for seed in SEEDS:
                if families.FAMILIES[family].names is None:
                    path = f"{dataset}-{share['count']}-{seed}.txt"
                    content = releases.lines([f"{each}.jpg {each}.png" for each in ids[: share["count"]]])
                else:
                    path = f"split_{seed}.pkl"
                    content = pickle.dumps(np.random.default_rng(seed).permutation(len(ids)))
                files[f"{family}/{path}"] = content
                listed = File(path, hashlib.sha256(content).hexdigest())
                found.setdefault(family, {})[dataset, share["count"], seed] = listed
    stand_ins = {}
    for family, entries in found.items():
        names = families.FAMILIES[family].names
        if names is not None:
            content = releases.lines(IDS["voc"])
            files[f"{family}/{names.path}"] = content
            names = File(names.path, hashlib.sha256(content).hexdigest())
        stand_ins[family] = Family("http://127.0.0.1:9", entries, names)
    return stand_ins, files


def downloads(source: str) -> dict[str, Download]:
    """Return how to recognise the archives that stand in for a dataset's."""
    return {
        name: Download(size=len(content), md5=hashlib.md5(content).hexdigest())
        for name, content in ARCHIVES[source].items()
    }


@contextmanager
def stood_in(tree: Tree) -> Iterator[None]:
    """Let the stages of this process know the stand-ins' digests."""
    known, _ = published_lists(tree)
    with ExitStack() as patches:
        patches.enter_context(patch.object(lists, "FAMILIES", known))
        for module, name in ((voc, "voc"), (cityscapes, "cityscapes")):
            patches.enter_context(patch.object(module, "DOWNLOADS", downloads(name)))
        yield


def stage(place: Path) -> Path:
    """Copy the project to ``place``, with everything that a rehearsal needs and nothing run."""
    project.copy(place)
    tree = params()
    (place / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    known, files = published_lists(tree)
    library = place / "semiseg" / "data"
    for module, text in {
        library / "families.py": f"FAMILIES = {known!r}\n",
        **{library / "sources" / f"{name}.py": f"DOWNLOADS = {downloads(name)!r}\n" for name in IDS},
    }.items():
        module.write_text(f"{module.read_text()}\n{text}")
    project.succeed(place, "pipeline.dvc_stages")
    for name, content in {**files, **ARCHIVES["voc"], **ARCHIVES["cityscapes"]}.items():
        file = place / "data" / "archives" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    reference = place / "results" / "reference"
    reference.mkdir(parents=True)
    for name in ("tables.yaml", "peer_logs.csv"):
        (reference / name).write_text((ROOT / "results" / "reference" / name).read_text())
    figures = pd.read_csv(ROOT / "results/reference/paper_results.csv", keep_default_na=False)
    figures["pretraining"] = list(map(weights, figures["backbone"], figures["pretraining"]))
    figures["backbone"] = "resnet18"
    figures.to_csv(reference / "paper_results.csv", index=False)
    names = sorted({each["network"]["weights"] for each in tree["protocols"].values()})
    for number, name in enumerate(names):
        torch.manual_seed(number)
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), place / name)
    return place


# --- runs and tables ----------------------------------------------------------------------------------------


def train(names: list[str]) -> int:
    """Train and evaluate all runs of the tables ``names`` of the project that is the working directory."""
    params = parameters.load()
    runs = list(dict.fromkeys(run for name in names for run in params.grids[name].runs()))
    with stood_in(read(Path("params.yaml"))):
        project.stage("check")
        for dataset in dict.fromkeys(params.splits[run.split].dataset for run in runs):
            project.stage("download", dataset)
        for split, seed in dict.fromkeys((run.split, run.seed) for run in runs):
            project.stage("split", split, str(seed))
        for run in runs:
            for script in ("train", "evaluate"):
                project.stage(script, run.recipe, run.split, str(run.seed))
            (run.artefacts / "model.pt").unlink()  # the tables need its record alone, and all fill 100 GB
    return len(runs)


def commands(engine: str, place: Path, names: list[str], *, trained: bool) -> list[str]:
    """Return the command that makes the tables ``names``, and the runs unless all are ``trained`` already."""
    if engine == "snakemake":
        return ["snakemake", *names, "--cores", "2", "--printshellcmds"]
    root = dvc_stages.target_names(parameters.load(place / "params.yaml"))
    targets = [name if name in root else f"pipeline/dvc.yaml:{name}" for name in names]
    # DVC has not seen the runs that were trained without it.
    return ["dvc", "repro", *(["--single-item"] if trained else []), *targets]


def make(engine: str, place: Path, names: list[str], *, trained: bool) -> dict[str, bytes]:
    """Let an engine make the tables ``names``; return their files, and remove these.

    Raises AssertionError if it fails, trains runs that are ``trained``, or leaves a cell of a recipe empty.
    """
    output = project.succeed(place, *commands(engine, place, names, trained=trained))
    assert not (trained and "pipeline/train.py" in output), f"{engine} trains again"
    empty = [cell for name in names for cell in empty_cells(place, name)]
    assert not empty, "\n".join([f"{engine} leaves cells empty:", *empty])
    files = [f"results/tables/{name}.{kind}" for name in names for kind in ("csv", "md", "tex")]
    made = {file: (place / file).read_bytes() for file in files}
    for file in files:
        (place / file).unlink()
    return made


def empty_cells(place: Path, name: str) -> list[str]:
    """Return the cells of a table that a recipe measures and no run has filled."""
    frame = pd.read_csv(place / "results" / "tables" / f"{name}.csv")
    measured = frame[frame["recipe"].notna()]
    assert len(measured), f"{name} has no row that a recipe measures"
    empty = measured[(measured["seeds"] != len(SEEDS)) | measured["miou_mean"].isna()]
    return [f"{name}: {row.recipe}, {row.ratio}, {row.split}" for row in empty.itertuples()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", choices=tables(), action="append", help="may be given more than once")
    parser.add_argument("--from-nothing", action="store_true", help="each engine trains every run, too")
    arguments = parser.parse_args()
    names, trained = arguments.table or tables(), not arguments.from_nothing
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
