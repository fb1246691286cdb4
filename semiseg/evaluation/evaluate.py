"""Turn a trained run into its record: score the networks of model.pt on the evaluation list.

Beside the record lie a short history and the headline network's prediction for each image.
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
from torch.optim.swa_utils import update_bn

from semiseg.base.errors import UserError
from semiseg.base.files import write_text, written_whole
from semiseg.base.parameters import RunConfig, canonical
from semiseg.base.paths import Run
from semiseg.data import splits
from semiseg.data.palette import voc_palette
from semiseg.data.prepared import PreparedDataset
from semiseg.data.splits import Split
from semiseg.data.streams import Images, evaluation_images, labelled_batches
from semiseg.evaluation.metrics import confusion_matrix, mean_iou
from semiseg.evaluation.record import Provenance, Record, Scores
from semiseg.evaluation.score import Scoring, score
from semiseg.models.build import build
from semiseg.models.network import SegmentationNetwork
from semiseg.training import checkpoint
from semiseg.training.batches import on_device
from semiseg.training.checkpoint import Identity
from semiseg.training.step import seed_everything

REVISION = 1  # raise it when a change alters a record's figures for the same networks
HISTORY_ROWS = 100  # of the short history, and one more for each validation


def score_run(config: RunConfig, dataset: PreparedDataset, split: Split, device: torch.device) -> Record:
    """Score the networks of a run's model.pt, and write the headline network's predictions beside it.

    These are predictions/<id>.png, palette masks of class ids at each image's own size, and images.csv with
    each image's mIoU. Raises UserError if model.pt is absent, unreadable, or of another identity.
    """
    identity = checkpoint.identify(config, dataset, split)
    model = _read_model(config.run.artefacts / "model.pt", identity)
    networks = {
        f"{moment}.{name}": _network(config, state, device)
        for moment in ("last", "best")
        for name, state in model[moment].items()
    }
    if config.protocol.evaluation.recalibrate is not None:
        for network in networks.values():
            recalibrate(network, config, dataset, split, device)
    headline = next(iter(model["last"]))
    num_classes = len(config.dataset.classes)
    mious: dict[str, float] = {}

    def keep(network: str, identifier: str, labels: Tensor, mask: Tensor) -> None:
        if network == f"last.{headline}":
            mious[identifier] = float(mean_iou(confusion_matrix(labels, mask, num_classes)))
            _write_prediction(config.run, identifier, labels)

    listed = config.dataset.evaluate
    images = evaluation_images(dataset, dataset.ids(listed), config.protocol.workers)
    matrices = Scoring.of(config, device).count(networks, images, keep)
    scores = {name: score(matrix, config.dataset.classes) for name, matrix in matrices.items()}
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
            labelled_set_sha256=splits.digest(sorted(split.labelled)),
            config=json.loads(canonical(config)),
            revision=model["revision"],
            packages=model["packages"],
            device=model["device"],
            started=model["started"],
            finished=model["finished"],
            train_seconds=model["train_seconds"],
            images_per_second=model["images_per_second"],
            peak_memory_mib=model["peak_memory_mib"],
        ),
        confusion=tuple(map(tuple, matrices[f"last.{headline}"].tolist())),
    )


def recalibrate(
    network: SegmentationNetwork,
    config: RunConfig,
    dataset: PreparedDataset,
    split: Split,
    device: torch.device,
) -> None:
    """Estimate batch norm's statistics anew, as the mean over the labelled crops of the run's first steps.

    The protocol's evaluation says how many steps. A method whose last batches are not like the images that
    are scored, such as strong views, leaves other statistics behind.
    """
    protocol, steps = config.protocol, config.protocol.evaluation.recalibrate
    assert steps is not None
    crops = labelled_batches(
        Images(dataset), split.labelled, protocol.geometry,
        protocol.labelled_batch, config.run.seed, 0, steps, protocol.workers,
    )  # fmt: skip
    seed_everything(config.run.seed, 0)  # dropout is active, as in training
    with torch.autocast(device.type, torch.bfloat16, enabled=protocol.precision == "bf16"):
        update_bn((on_device(*each, None, device)[0].images for each in crops), network)


def condense_history(run: Run) -> None:
    """Write the run's short history beside its record. Raises UserError if the run has no history."""
    path = run.artefacts / "history.csv"
    try:
        history = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable ({type(error).__name__}); train the run again") from error
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


def _read_model(path: Path, identity: Identity) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: not there; train the run first")
    try:
        model = checkpoint.read(path)
    except ValueError as error:
        raise UserError(f"{path}: not readable ({error}); remove it, train again") from error
    if difference := identity.difference(model):
        raise UserError(f"{path}: trained with {difference}; remove it and train the run again")
    return model


def _network(config: RunConfig, state: Mapping[str, Tensor], device: torch.device) -> SegmentationNetwork:
    # every weight comes from the state dict: no pretrained file is needed
    architecture = dataclasses.replace(config.protocol.network, weights="none")
    network = build(architecture, len(config.dataset.classes))
    network.load_state_dict(state)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _write_prediction(run: Run, identifier: str, labels: Tensor) -> None:
    with written_whole(run.artefacts / "predictions" / f"{identifier}.png") as temporary:
        image = Image.fromarray(labels.to("cpu", torch.uint8).numpy())
        image.putpalette(voc_palette())
        image.save(temporary, format="PNG")
