"""A project folder with a params.yaml and records that no training made."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from semiseg.base import parameters
from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.evaluation import record
from semiseg.evaluation.record import Provenance, Record, Score, Scores
from tests.pretraining.recipes import tree

PARAMS = """
default: [main]
grids:
  main:
    title: Shapes, all of them
    protocol: small
    shares: [1/8, full]
    recipes: [supervised, cmb, dcc]
    seeds: [0, 1, 2]
  ablation:
    title: Without attention
    protocol: small
    shares: [1/8]
    recipes: [supervised, cmb, dcc, cmb-no_attention]
    seeds: [0, 1]
recipes:
  supervised: {}
  cmb: {no_attention: {attention: none}}
  dcc: {}
protocols:
  small: &small
    dataset: shapes
    network: {head: deeplabv3plus, backbone: resnet18, weights: none, output_stride: 16, decoder_channels: 32}
    geometry: {base_size: 96, scale: [0.75, 1.5], crop: 64}
    optimiser:
      {name: sgd, learning_rate: 0.05, backbone_factor: 1, head_factor: 1, layer_decay: 1, momentum: 0.9,
       weight_decay: 0, power: 0.9, clip_norm: null}
    evaluation: {long_side: null, window: null, stride: null, flip: false, recalibrate: null}
    labelled_batch: 4
    unlabelled_batch: 6
    accumulate: 1
    checkpoint_activations: false
    steps: 1500
    precision: fp32
    compile: false
    validate_every: 500
    checkpoint_minutes: 15
    log_every: 50
    judge_pseudo_labels: false
    workers: 0
    threads: 1
    image_cache_mib: 0
    methods: {}
datasets:
  shapes:
    source: shapes
    classes: [background, disc, square]
    evaluate: test
    background: 0
    shares: {1/8: {}, full: {}}
"""
SPREAD = 0.1  # between the IoUs of neighbouring classes
DATA = "d" * 64  # digest of the dataset that the runs were trained on
ERRORS = 10**9  # pixels of each class that are taken for the next one

Finish = Callable[..., Record]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Return the benchmark above, in an empty folder that is the working directory."""
    monkeypatch.chdir(tmp_path)
    return edited(PARAMS)


def edited(text: str) -> Params:
    """Write params.yaml into the working directory, and read it."""
    Path("params.yaml").write_text(text)
    return parameters.load()


@pytest.fixture
def starts(params: Params) -> Params:
    """Return a benchmark whose splits start from random weights and from two pretrainings."""
    recipes = {
        "plain": tree("simclr", dataset="shapes", backbone="resnet18"),
        "more": tree("moco", dataset="shapes", backbone="resnet18", weights="imagenet"),
    }
    changed = yaml.safe_load(PARAMS)
    small = changed["protocols"]["small"]
    for name in recipes:
        network = {**small["network"], "weights": f"pretrained/{name}"}
        changed["protocols"][f"small_{name}"] = {**small, "network": network}
    changed["grids"]["main"] = {
        "title": "Starts",
        "protocols": {"small": ["1/8"], "small_plain": ["1/8"], "small_more": ["1/8"]},
        "recipes": ["supervised"],
        "seeds": [0],
    }
    return edited(yaml.safe_dump({**changed, "pretraining": recipes}, sort_keys=False))


@pytest.fixture
def finish(params: Params) -> Finish:
    """Return a function that writes the record of a run: ``finish("cmb", "small-1_8", 0, 0.5)``."""

    def write(recipe: str, split: str, seed: int, miou: float, **fields: Any) -> Record:
        made = fabricate(params, Run(recipe, split, seed), miou, **fields)
        record.write(made, Run(recipe, split, seed).metrics)
        return made

    return write


def fabricate(
    params: Params,
    run: Run,
    miou: float,
    *,
    best: float | None = None,
    headline: str = "student",
    iou: Sequence[float | None] | None = None,
    figures: Mapping[str, float | None] | None = None,
    **origin: Any,
) -> Record:
    """Return a record whose headline network has ``miou`` at the last step and ``best`` at the best one.

    ``iou`` gives the IoU of each class at the last step instead, ``figures`` further figures; ``origin``
    replaces fields of the provenance.
    """
    config = params.run(run)
    classes = config.dataset.classes
    confusion = confused(iou or around(miou, len(classes)))

    def scores(step: int, values: Sequence[float | None]) -> Scores:
        own = dataclasses.replace(score(classes, values), figures=figures or {})
        other = score(classes, [None if value is None else value - 0.05 for value in values])
        named = {headline: own} if headline == "student" else {headline: own, "student": other}
        return Scores(step, named)

    last = intersection_over_union(confusion)
    provenance = {
        "config_sha256": config.digest(),
        "config": json.loads(parameters.canonical(config)),
        "data_sha256": DATA,
        "labelled_sha256": f"{run.seed}1" * 32,
        "labelled_set_sha256": f"{run.seed}2" * 32,
        "revision": "0123456789abcdef0123456789abcdef01234567",
        "packages": {"torch": "2.11.0"},
        "device": "One CPU, 2 thread(s)",
        "started": "2026-03-01T10:00:00Z",
        "finished": "2026-03-01T11:30:00Z",
        "train_seconds": 5400.0,
        "images_per_second": 12.34,
        "peak_memory_mib": None,
        **origin,
    }
    steps = config.protocol.steps
    return Record(
        recipe=run.recipe,
        method=config.method,
        split=run.split,
        dataset=config.dataset_name,
        ratio=str(config.share.ratio),
        labelled=config.share.labelled_count(160),
        seed=run.seed,
        evaluated_on=config.dataset.evaluate,
        headline=headline,
        last=scores(steps, last),
        best=scores(steps // 2, last if best is None else around(best, len(classes))),
        provenance=Provenance(**provenance),
        confusion=confusion,
    )


def around(miou: float, classes: int) -> list[float]:
    """Return IoUs of ``classes`` classes in [0, 1] with the mean ``miou``."""
    spread = min(SPREAD, miou / 2, (1 - miou) / 2)
    whole = classes // 3 * 3  # three at a time, so that deviations add up to zero
    return [miou + (spread * (place % 3 - 1) if place < whole else 0) for place in range(classes)]


def score(classes: Sequence[str], values: Sequence[float | None]) -> Score:
    """Return the score with these IoUs."""
    known = [value for value in values if value is not None]
    return Score(math.fsum(known) / len(known), dict(zip(classes, values, strict=True)))


def confused(iou: Sequence[float | None]) -> tuple[tuple[int, ...], ...]:
    """Return counts of pixels (C, C) with nearly these IoUs: each class errs into the next one that is there.

    An IoU of one, or a single class that is there, is not possible.
    """
    there = [place for place, value in enumerate(iou) if value is not None]
    counts = [[0] * len(iou) for _ in iou]
    for place, following in zip(there, [*there[1:], there[0]], strict=True):
        value = iou[place]
        assert value is not None
        counts[place][following] = ERRORS
        counts[place][place] = round(2 * ERRORS * value / (1 - value))
    return tuple(map(tuple, counts))


def intersection_over_union(counts: Sequence[Sequence[int]]) -> list[float | None]:
    """Return each class's IoU; None for a class that is not there."""
    unions = [sum(row) + sum(each[place] for each in counts) - row[place] for place, row in enumerate(counts)]
    return [row[place] / unions[place] if unions[place] else None for place, row in enumerate(counts)]


PRINTED = """\
table,dataset,network,backbone,pretraining,method,variant,ratio,miou,source
main-rows,shapes,deeplabv3+,resnet18,none,supervised,,1/8,61.5,A 2021 Table 1
main-rows,shapes,deeplabv3+,resnet18,none,others,,1/8,70.0,A 2021 Table 1
main-rows,shapes,deeplabv3+,resnet18,none,others,,full,80.0,A 2021 Table 1
main-rows,shapes,deeplabv3+,resnet18,none,dcc,,1/8,72.4,B 2021 Table 2
main-rows,shapes,deeplabv3+,resnet18,none,dcc,,1/4,74.0,B 2021 Table 2
ablation-rows,shapes,deeplabv3+,resnet18,none,cmb,no attention,1/8,69.0,A 2021 ablation
ablation-rows,shapes,deeplabv3+,resnet18,none,cmb,all,1/8,71.0,A 2021 ablation
main-rows,shapes,pspnet,resnet50,imagenet,dcc,,full,76.4,B 2021 Table 2
"""

PRINTED_TABLES = """\
recipes: {supervised: supervised, dcc: dcc, cmb: cmb}
tables:
  main: {title: The main table, rows: main-rows}
  ablation:
    title: The ablation
    rows: ablation-rows
    note: Inferred.
    recipes: {no attention: cmb-no_attention, all: cmb}
"""


LOGGED_HEAD = (
    "dataset,lists,labelled,network,backbone,crop,method,evaluation,validations,miou_last,miou_best,source\n"
)
LOGGED = """\
shapes,drawn,1/8,deeplabv3plus,resnet18,64,supervised,original,80,60.0,64.0,someone/logs@1234 a.log
shapes,drawn,1/8,deeplabv3plus,resnet18,64,supervised,original,80,63.0,66.0,someone/logs@1234 b.log
shapes,others,1/8,deeplabv3plus,resnet18,64,supervised,original,80,10.0,11.0,someone/logs@1234 c.log
shapes,drawn,1/8,deeplabv3plus,resnet50,64,supervised,original,80,12.0,13.0,someone/logs@1234 d.log
shapes,others,all,deeplabv3plus,resnet18,64,dcc,original,80,80.5,81.0,someone/logs@1234 e.log
"""


@pytest.fixture
def printed(params: Params) -> Path:
    """Write results/reference/ for the benchmark above, with figures that no paper prints."""
    return refer(PRINTED, LOGGED_HEAD, PRINTED_TABLES)


@pytest.fixture
def logged(params: Params) -> Path:
    """Write results/reference/ for the benchmark above, with logs alone."""
    return refer(
        PRINTED.partition("\n")[0] + "\n",
        LOGGED_HEAD + LOGGED,
        "recipes: {supervised: supervised, dcc: dcc}\ntables: {}\n",
    )


def refer(printed: str, logged: str, tables: str) -> Path:
    """Write results/reference/, and return it."""
    folder = Path("results/reference")
    folder.mkdir(parents=True)
    (folder / "paper_results.csv").write_text(printed)
    (folder / "peer_logs.csv").write_text(logged)
    (folder / "tables.yaml").write_text(tables)
    return folder
