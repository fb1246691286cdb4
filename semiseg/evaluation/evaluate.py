"""Turn a trained run into its record: score the networks of model.pt on the evaluation list.

Beside the record lie a short history and the headline network's prediction for each image.
"""

import dataclasses
import json
import math
from collections.abc import Mapping

import pandas as pd
import torch
from torch import Tensor

from semiseg.base.errors import UserError
from semiseg.base.files import write_text
from semiseg.base.parameters import RunConfig, canonical
from semiseg.base.paths import Run
from semiseg.data.prepared import PreparedDataset
from semiseg.data.splits import Split
from semiseg.data.streams import evaluation_images
from semiseg.evaluation import histories, trained
from semiseg.evaluation.metrics import FIGURES, Prediction, confusion_matrix, mean_iou
from semiseg.evaluation.predict import write_mask
from semiseg.evaluation.record import Provenance, Record, Scores
from semiseg.evaluation.score import Scoring, score
from semiseg.training import checkpoint

REVISION = 2  # raise it when a change alters a record's figures for the same networks
HISTORY_ROWS = 100  # rows of the short history, and one more for each validation


def score_run(config: RunConfig, dataset: PreparedDataset, split: Split, device: torch.device) -> Record:
    """Score the networks of a run's model.pt, and write the headline network's predictions beside it.

    These are predictions/<id>.png, palette masks of class ids at each image's own size, and images.csv with
    each image's mIoU. Raises UserError if model.pt is absent, unreadable, or of another identity.
    """
    identity = checkpoint.identify(config, dataset, split)
    path = config.run.artefacts / "model.pt"
    model = trained.read(path)
    if difference := identity.difference(model):
        raise UserError(f"{path}: trained with {difference}; remove it and train the run again")
    networks = {
        f"{moment}.{name}": trained.network(config, state, device)
        for moment in ("last", "best")
        for name, state in model[moment].items()
    }
    if config.protocol.evaluation.recalibrate is not None:
        for network in networks.values():
            trained.recalibrate(network, config, dataset, split, device)
    headline = next(iter(model["last"]))
    num_classes = len(config.dataset.classes)
    mious: dict[str, float] = {}
    counted = {name: dict.fromkeys(FIGURES, torch.zeros((), dtype=torch.int64)) for name in networks}

    def keep(network: str, identifier: str, prediction: Prediction) -> None:
        for name, figure in FIGURES.items():
            counted[network][name] = counted[network][name] + figure.counts(prediction)
        if network == f"last.{headline}":
            counts = confusion_matrix(prediction.labels, prediction.mask, num_classes)
            mious[identifier] = float(mean_iou(counts))
            write_mask(prediction.labels, config.run.artefacts / "predictions" / f"{identifier}.png")

    listed = config.dataset.evaluate
    images = evaluation_images(dataset, dataset.ids(listed), config.protocol.workers)
    matrices = Scoring.of(config, device).count(networks, images, keep)
    scores = {
        name: dataclasses.replace(score(matrix, config.dataset.classes), figures=_figures(counted[name]))
        for name, matrix in matrices.items()
    }
    each_image = pd.DataFrame(mious.items(), columns=["id", "miou"])
    write_text(config.run.artefacts / "images.csv", each_image.to_csv(index=False, lineterminator="\n"))
    return Record(
        recipe=config.run.recipe,
        method=config.method,
        split=config.run.split,
        dataset=config.dataset_name,
        ratio=str(config.share.ratio),
        labelled=len(split.labelled),
        seed=config.run.seed,
        evaluated_on=listed,
        headline=headline,
        last=Scores(model["last_step"], {name: scores[f"last.{name}"] for name in model["last"]}),
        best=Scores(model["best_step"], {name: scores[f"best.{name}"] for name in model["best"]}),
        provenance=Provenance(
            **dataclasses.asdict(identity),
            labelled_set_sha256=split.labelled_set_sha256,
            config=json.loads(canonical(config)),
            revision=model["revision"],
            packages=model["packages"],
            device=model["device"],
            started=model["started"],
            finished=model["finished"],
            train_seconds=model["train_seconds"],
            images_per_second=model["images_per_second"],
            peak_memory_mib=model["peak_memory_mib"],
            pretrained_sha256=model.get("pretrained_sha256"),  # absent in files from before pretraining
        ),
        confusion=tuple(map(tuple, matrices[f"last.{headline}"].tolist())),
    )


def _figures(counts: Mapping[str, Tensor]) -> dict[str, float | None]:
    """Return the value of each of FIGURES; None for one that has none."""
    values = {name: float(FIGURES[name].value(count.cpu())) for name, count in counts.items()}
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def condense_history(run: Run) -> None:
    """Write the run's short history beside its record. Raises UserError if the run has no history."""
    history = histories.read(run.artefacts / "history.csv", "train the run again")
    write_text(run.history, condensed(history).to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def condensed(history: pd.DataFrame, rows: int = HISTORY_ROWS) -> pd.DataFrame:
    """Return the means of groups of neighbouring rows, each at the step of its last row.

    A row with a validation ends its group. There are at most ``rows`` groups, and one more a validation.
    """
    validated = history.filter(like="val_").notna().any(axis=1)
    stretch = validated.shift(fill_value=False).cumsum()
    group = history.groupby(stretch).cumcount() // -(-len(history) // rows)
    steps = history["step"].groupby([stretch, group]).last()
    return history.groupby([stretch, group]).mean().assign(step=steps).reset_index(drop=True)
