"""A trained run -> its record: the networks of model.pt on the evaluation list, and where they come from.

Beside the record: the run's history in few rows, and what its predictor makes of each image.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from semiseg.base.errors import UserError
from semiseg.base.files import write_text, written_whole
from semiseg.base.parameters import RunConfig, canonical
from semiseg.base.paths import Run
from semiseg.data.prepared import PreparedDataset
from semiseg.data.splits import Split
from semiseg.data.streams import evaluation_images
from semiseg.evaluation.metrics import confusion_matrix, mean_iou
from semiseg.evaluation.record import Provenance, Record, Scores
from semiseg.evaluation.score import confusion, score
from semiseg.models.build import build
from semiseg.models.network import SegmentationNetwork
from semiseg.training import checkpoint

HISTORY_ROWS = 100  # of a run's history beside its record, and one more for each validation


def score_run(config: RunConfig, dataset: PreparedDataset, split: Split, device: torch.device) -> Record:
    """Evaluate the networks of a run's model.pt, and write beside it what its predictor makes of each image.

    That is predictions/<id>.png, greyscale masks of class ids, and images.csv: each image's mIoU.
    Raises UserError when model.pt is absent, unreadable or of another configuration.
    """
    model = _read_model(config.run.artefacts / "model.pt", config.digest())
    networks = {
        f"{moment}.{name}": _network(config, state, device)
        for moment in ("last", "best")
        for name, state in model[moment].items()
    }
    listed = config.dataset.evaluate
    images = evaluation_images(dataset, dataset.ids(listed), config.protocol.workers)
    predictor, num_classes = f"last.{model['headline']}", len(config.dataset.classes)
    mious: dict[str, float] = {}

    def keep(network: str, identifier: str, labels: Tensor, mask: Tensor) -> None:
        if network == predictor:
            mious[identifier] = float(mean_iou(confusion_matrix(labels, mask, num_classes)))
            _write_prediction(config.run, identifier, labels)

    matrices = confusion(networks, images, num_classes, device, config.protocol.precision, keep)
    scores = {name: score(matrix, config.dataset.classes) for name, matrix in matrices.items()}
    each_image = pd.DataFrame(mious.items(), columns=["id", "miou"])
    write_text(config.run.artefacts / "images.csv", each_image.to_csv(index=False, lineterminator="\n"))
    return Record(
        recipe=config.run.recipe,
        method=config.method,
        split=config.run.split,
        dataset=config.split.dataset,
        ratio=str(config.split.ratio),
        labelled=len(split.labelled),
        seed=config.run.seed,
        evaluated_on=listed,
        headline=model["headline"],
        last=Scores(model["last_step"], scores["last.student"], scores.get("last.teacher")),
        best=Scores(model["best_step"], scores["best.student"], scores.get("best.teacher")),
        provenance=Provenance(
            config_sha256=config.digest(),
            config=json.loads(canonical(config)),
            split_sha256=split.sha256,
            data_sha256=dataset.digest,
            revision=model["revision"],
            packages=model["packages"],
            device=model["device"],
            started=model["started"],
            finished=model["finished"],
            train_seconds=model["train_seconds"],
            images_per_second=model["images_per_second"],
            peak_memory_mib=model["peak_memory_mib"],
            labelled_sha256=split.labelled_sha256,
        ),
        confusion=tuple(map(tuple, matrices[predictor].tolist())),
    )


def condense_history(run: Run) -> None:
    """Write a run's history in few rows beside its record. Raises UserError where there is none."""
    path = run.artefacts / "history.csv"
    try:
        history = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({type(error).__name__}); train the run again") from error
    write_text(run.history, condensed(history).to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def condensed(history: pd.DataFrame, rows: int = HISTORY_ROWS) -> pd.DataFrame:
    """Means of neighbouring rows at the last step of each; a row that holds a validation ends its group.

    At most ``rows`` rows, and one more for each validation.
    """
    validated = history.filter(like="val_").notna().any(axis=1)
    stretch = validated.shift(fill_value=False).cumsum()
    group = history.groupby(stretch).cumcount() // -(-len(history) // rows)
    steps = history["step"].groupby([stretch, group]).last()
    return history.groupby([stretch, group]).mean().assign(step=steps).reset_index(drop=True)


def _read_model(path: Path, digest: str) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: not there; train the run first")
    try:
        model = checkpoint.read(path)
    except ValueError as error:
        raise UserError(f"{path}: not readable ({error}); remove it, train again") from error
    if model["config_sha256"] != digest:
        raise UserError(f"{path}: trained with another configuration; remove it and train the run again")
    return model


def _network(config: RunConfig, state: Mapping[str, Tensor], device: torch.device) -> SegmentationNetwork:
    # every weight comes from the state dict, so no pretrained file is asked for
    architecture = dataclasses.replace(config.protocol.network, weights="none")
    network = build(architecture, len(config.dataset.classes))
    network.load_state_dict(state)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _write_prediction(run: Run, identifier: str, labels: Tensor) -> None:
    with written_whole(run.artefacts / "predictions" / f"{identifier}.png") as temporary:
        Image.fromarray(labels.to("cpu", torch.uint8).numpy()).save(temporary, format="PNG")
