"""A trained run -> its record: the networks of model.pt on the evaluation list, and where they come from."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from semiseg import checkpoint
from semiseg.config import RunConfig, canonical
from semiseg.data.prepared import PreparedDataset
from semiseg.data.splits import Split
from semiseg.data.streams import evaluation_images
from semiseg.errors import UserError
from semiseg.evaluate import confusion, predictions, score
from semiseg.files import written_whole
from semiseg.models.build import build
from semiseg.models.network import SegmentationNetwork
from semiseg.record import Provenance, Record, Scores

PREDICTIONS = 4  # how many images of the evaluation list are kept as predicted masks, for the report


def score_run(config: RunConfig, dataset: PreparedDataset, split: Split, device: torch.device) -> Record:
    """Evaluate the networks of a run's model.pt and write the predictions of the first images beside it.

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
    matrices = confusion(networks, images, len(config.dataset.classes), device, config.protocol.precision)
    scores = {name: score(matrix, config.dataset.classes) for name, matrix in matrices.items()}
    _write_predictions(config, dataset, networks[f"last.{model['headline']}"], device)
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
    )


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


def _write_predictions(
    config: RunConfig, dataset: PreparedDataset, network: SegmentationNetwork, device: torch.device
) -> None:
    """runs/<run>/predictions/<id>.png: greyscale masks of class ids."""
    folder = config.run.artefacts / "predictions"
    ids = dataset.ids(config.dataset.evaluate)[:PREDICTIONS]
    for identifier, image, _ in evaluation_images(dataset, ids, workers=0):
        predicted = predictions(network, image)
        with written_whole(folder / f"{identifier}.png") as temporary:
            Image.fromarray(predicted.numpy()).save(temporary, format="PNG")
