"""The schema of a run's metrics.json: its figures, and where they come from."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semiseg.base.errors import UserError
from semiseg.base.files import write_text
from semiseg.base.tree import from_tree

TOLERANCE = 1e-9  # largest difference of figures that must follow from each other


@dataclass(frozen=True)
class Score:
    """A network's score on the evaluation list; a class in neither prediction nor truth has no IoU."""

    miou: float  # in [0, 1], the mean over the classes that have an IoU
    iou: Mapping[str, float | None]  # class name -> IoU in [0, 1]
    # semiseg.evaluation.metrics.FIGURES by name; None: no value. Records of before they were added have none.
    figures: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """The scores of a run's networks at one moment."""

    step: int  # optimiser steps that the networks had taken
    networks: Mapping[str, Score]  # by the names that the method gives them; the first is the headline


@dataclass(frozen=True)
class Provenance:
    """Everything needed to say where a number came from, and to get it again."""

    config_sha256: str
    config: Mapping[str, Any]
    data_sha256: str  # digest of the prepared dataset: ids, images and masks
    labelled_sha256: str  # digest of the labelled ids, one a line, in the list's order
    labelled_set_sha256: str  # digest of the sorted labelled ids: equal for lists of the same images
    revision: str  # git commit, "-modified" behind it when tracked code differed; "unknown" outside git
    packages: Mapping[str, str]
    device: str
    started: str  # UTC, ISO 8601, seconds
    finished: str
    train_seconds: float  # all sittings of a resumed run together
    images_per_second: float  # training images, labelled and unlabelled
    peak_memory_mib: float | None  # on the accelerator; None on a CPU
    pretrained_sha256: str | None = None  # digest of the pretrained weights that it began with

    @property
    def devices(self) -> int:
        """How many devices trained the run together, which ``device`` begins with: "4 x …"."""
        several = re.match(r"(\d+) x ", self.device)
        return int(several[1]) if several else 1

    @property
    def device_seconds(self) -> float:
        """The seconds of training of all devices."""
        return self.devices * self.train_seconds


@dataclass(frozen=True)
class Record:
    """One run."""

    recipe: str
    method: str
    split: str
    dataset: str
    ratio: str  # "1/8"
    labelled: int  # images
    seed: int
    evaluated_on: str  # val or test
    headline: str  # the name of the network whose figures are the run's
    last: Scores
    best: Scores  # at the step whose headline network scored highest on the val list during training
    provenance: Provenance
    # Pixels of the evaluation list by true class (rows) and class predicted by the headline network at the
    # last step: (C, C).
    confusion: tuple[tuple[int, ...], ...]
    published_at: str | None = None  # address or DOI of the packed run (pipeline/export_run.py)

    @property
    def miou(self) -> float:
        """The mIoU of the headline network at the last step, in [0, 1]."""
        return self.score(self.last).miou

    def score(self, scores: Scores) -> Score:
        """Return the headline network's score among ``scores``."""
        return scores.networks[self.headline]


def write(record: Record, path: Path) -> None:
    """Write ``record`` as indented JSON, a row of numbers on one line, whole or not at all."""
    text = json.dumps(dataclasses.asdict(record), indent=2, allow_nan=False)
    write_text(path, re.sub(r"\[[\s\d,]+\]", lambda row: " ".join(row[0].split()), text) + "\n")


def read(path: Path) -> Record:
    """Read and check a record.

    Raises UserError for a file that is not a record, lies at another run's path, or has figures that do not
    follow from each other and from the confusion matrix.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a record ({error}); remove it and evaluate the run again") from None
    try:
        record: Record = from_tree(Record, tree, str(path))
        _check_place(record, path)
        _check_figures(record, path)
    except UserError as error:
        raise UserError(f"{error}; remove the file and evaluate the run again") from None
    return record


def _check_place(record: Record, path: Path) -> None:
    recipe, split, seed = path.parts[-4:-1]
    for name, found, expected in (
        ("recipe", record.recipe, recipe),
        ("split", record.split, split),
        ("seed", str(record.seed), seed),
    ):
        if found != expected:
            raise UserError(f"{path}: {name}: is {found}, but the file lies at {expected}")


def _check_figures(record: Record, path: Path) -> None:
    """Refuse figures that were edited by hand."""
    if record.published_at is not None and not re.match(r"(https?://|doi:)\S+$", record.published_at):
        raise UserError(f"{path}: published_at: '{record.published_at}' is not https://… or doi:…")
    for moment, scores in (("last", record.last), ("best", record.best)):
        if record.headline not in scores.networks:
            raise UserError(f"{path}: {moment}: has no network '{record.headline}', the headline")
        for name, score in scores.networks.items():
            known = [value for value in score.iou.values() if value is not None]
            if not all(0 <= value <= 1 for value in known):
                raise UserError(f"{path}: {moment}: {name}: iou: a value is outside [0, 1]")
            if not known or not math.isclose(score.miou, math.fsum(known) / len(known), abs_tol=TOLERANCE):
                raise UserError(f"{path}: {moment}: {name}: miou is not the mean of iou")
    score = record.score(record.last)
    lengths = {len(record.confusion), *map(len, record.confusion)}
    if lengths != {len(score.iou)} or min(map(min, record.confusion)) < 0:
        raise UserError(f"{path}: confusion: not {len(score.iou)} rows and columns, one for each class")
    for (label, value), expected in zip(score.iou.items(), _iou(record.confusion), strict=True):
        if (value is None) != (expected is None) or not math.isclose(
            value or 0, expected or 0, abs_tol=TOLERANCE
        ):
            raise UserError(f"{path}: last: iou: {label} does not follow from confusion")


def _iou(matrix: Sequence[Sequence[int]]) -> list[float | None]:
    """Return each class's intersection over union; None for a class in neither rows nor columns."""
    values: list[float | None] = []
    for place, row in enumerate(matrix):
        union = sum(row) + sum(each[place] for each in matrix) - row[place]
        values.append(row[place] / union if union else None)
    return values
