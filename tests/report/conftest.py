"""A project folder with a params.yaml and records that no training made."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from semiseg.base.parameters import Params
from semiseg.base.paths import Run
from semiseg.base.tree import from_tree
from semiseg.evaluation import record
from semiseg.evaluation.record import Provenance, Record, Score, Scores

PARAMS = """
datasets:
  shapes: {source: shapes, classes: [background, disc, square], evaluate: test, background: 0}
protocols:
  small:
    network: {head: deeplabv3plus, backbone: resnet18, weights: none}
    geometry: {base_size: 96, scale: [0.75, 1.5], crop: 64}
    optimiser: {learning_rate: 0.05}
    labelled_batch: 4
    unlabelled_batch: 6
    steps: 1500
splits:
  shapes-1_8: {dataset: shapes, protocol: small, ratio: 1/8}
  shapes-full: {dataset: shapes, protocol: small, ratio: 1}
recipes:
  supervised: {method: supervised}
  cmb: {method: cmb}
  dcc: {method: dcc}
  cmb-no_attention: {method: cmb}
grids:
  main:
    title: Shapes, all of them
    recipes: [supervised, cmb, dcc]
    splits: [shapes-1_8, shapes-full]
    seeds: [0, 1, 2]
  ablation:
    title: Without attention
    recipes: [cmb-no_attention]
    splits: [shapes-1_8]
    seeds: [0, 1]
    beside: [supervised, cmb, dcc]
"""

Finish = Callable[..., Record]


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Params:
    """The benchmark above in an empty folder, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(PARAMS)
    return from_tree(Params, yaml.safe_load(PARAMS), "params.yaml")


@pytest.fixture
def finish(params: Params) -> Finish:
    """Write the record of a run: ``finish("cmb", "shapes-1_8", 0, 0.5)``."""

    def write(recipe: str, split: str, seed: int, miou: float, best: float | None = None, **origin) -> Record:
        made = fabricate(params, Run(recipe, split, seed), miou, best, **origin)
        record.write(made, Run(recipe, split, seed).metrics)
        return made

    return write


def fabricate(
    params: Params, run: Run, miou: float, best: float | None = None, headline: str = "student", **origin
) -> Record:
    """A record whose predictor has ``miou`` at the last step and ``best`` at the best."""
    decided = params.run(run)

    def scores(step: int, value: float) -> Scores:
        spread = [0.1 * (place % 3 - 1) for place in range(len(decided.dataset.classes))]
        classes = dict(zip(decided.dataset.classes, (value + each for each in spread), strict=True))
        score = Score(value, classes)
        other = Score(value - 0.05, {name: iou - 0.05 for name, iou in classes.items()})
        return Scores(step, other, score) if headline == "teacher" else Scores(step, score)

    provenance = {
        "config_sha256": decided.digest(),
        "config": {},
        "split_sha256": f"{run.seed}1" * 32,
        "data_sha256": "d" * 64,
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
    steps = decided.protocol.steps
    return Record(
        recipe=run.recipe,
        method=decided.method,
        split=run.split,
        dataset=decided.split.dataset,
        ratio=str(decided.split.ratio),
        labelled=decided.split.labelled_count(160),
        seed=run.seed,
        evaluated_on=decided.dataset.evaluate,
        headline=headline,
        last=scores(steps, miou),
        best=scores(steps // 2, miou if best is None else best),
        provenance=Provenance(**provenance),
    )


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


@pytest.fixture
def printed(params: Params) -> Path:
    """results/reference/ beside the benchmark above, with figures that no paper prints."""
    folder = Path("results/reference")
    folder.mkdir(parents=True)
    (folder / "paper_results.csv").write_text(PRINTED)
    (folder / "tables.yaml").write_text(PRINTED_TABLES)
    return folder
