"""The schema of a run's metrics.json: its figures, and where they come from."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semiseg.base.errors import UserError
from semiseg.base.files import write_text
from semiseg.base.tree import from_tree


@dataclass(frozen=True)
class Score:
    """Of one network on the evaluation list. A class that is in neither prediction nor truth has no IoU."""

    miou: float  # in [0, 1], the mean over the classes that have an IoU
    iou: Mapping[str, float | None]  # class name -> IoU in [0, 1]


@dataclass(frozen=True)
class Scores:
    """The student's score and, for a method that has one, the teacher's."""

    step: int  # how many optimiser steps the networks had taken
    student: Score
    teacher: Score | None = None


@dataclass(frozen=True)
class Provenance:
    """Everything needed to say where a number came from, and to get it again."""

    config_sha256: str
    config: Mapping[str, Any]
    split_sha256: str  # of labelled.txt, its first line included
    data_sha256: str  # the manifest's digest over ids and labels
    revision: str  # git commit, "-modified" behind it when tracked code differed; "unknown" outside git
    packages: Mapping[str, str]
    device: str
    started: str  # UTC, ISO 8601, seconds
    finished: str
    train_seconds: float  # all sittings of a resumed run together
    images_per_second: float  # training images, labelled and unlabelled
    peak_memory_mib: float | None  # of the accelerator; None on a CPU
    labelled_sha256: str | None = None  # of the labelled ids alone; None in older records


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
    headline: str  # student or teacher: the method's predictor
    last: Scores
    best: Scores  # at the step whose predictor scored highest on the val list during training
    provenance: Provenance
    # Pixels of the evaluation list by truth (rows) and the predictor's class at the last step, (C, C); None
    # in records that were written before it was kept.
    confusion: tuple[tuple[int, ...], ...] | None = None

    @property
    def miou(self) -> float:
        """The headline: the predictor's mIoU at the last step, in [0, 1]."""
        return self.score(self.last).miou

    def score(self, scores: Scores) -> Score:
        """The predictor's among ``scores``."""
        score = scores.teacher if self.headline == "teacher" else scores.student
        if score is None:
            raise ValueError(f"{self.recipe}/{self.split}/{self.seed}: headline is a missing teacher")
        return score


def write(record: Record, path: Path) -> None:
    """Write ``record`` as indented JSON, a row of numbers on one line, whole or not at all."""
    text = json.dumps(dataclasses.asdict(record), indent=2, allow_nan=False)
    write_text(path, re.sub(r"\[[\s\d,]+\]", lambda row: " ".join(row[0].split()), text) + "\n")


def read(path: Path) -> Record:
    """Read a record. Raises UserError for a file that is not one."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a record ({error}); remove it and evaluate the run again") from None
    record: Record = from_tree(Record, tree, str(path))
    return record
