"""Places of files, relative to the project's folder, which is the working directory of every stage."""

import os
from dataclasses import dataclass
from pathlib import Path

from semiseg.base.errors import UserError

PARAMS = Path("params.yaml")
DATA = Path("data")
ARCHIVES = DATA / "archives"
RESULTS = Path("results")


def dataset(name: str) -> Path:
    """Return the folder of the prepared dataset ``name``, with its manifest.json."""
    return DATA / name


def split(name: str, seed: int) -> Path:
    """Return the folder of a split's labelled.txt and unlabelled.txt for one seed."""
    return DATA / "splits" / name / str(seed)


def archive_folders() -> list[Path]:
    """Return where archives and weights are looked for: data/archives/, and the folder SEMISEG_ARCHIVES.

    Raises UserError if SEMISEG_ARCHIVES names no folder.
    """
    named = os.environ.get("SEMISEG_ARCHIVES")
    if named and not Path(named).is_dir():
        raise UserError(f"SEMISEG_ARCHIVES: {named} is not a folder; correct or unset it")
    return [ARCHIVES, *([Path(named)] if named else [])]


def find_archive(name: str) -> Path | None:
    """Return the archive or weights' file ``name`` on disk, None if there is none."""
    return next((folder / name for folder in archive_folders() if (folder / name).is_file()), None)


@dataclass(frozen=True)
class Run:
    """A recipe on a split with a seed: the unit that is trained, evaluated, resumed and cached."""

    recipe: str
    split: str
    seed: int

    def __str__(self) -> str:
        return f"{self.recipe}/{self.split}/{self.seed}"

    @property
    def artefacts(self) -> Path:
        """model.pt, history.csv and the TensorBoard events: large, not in git."""
        return Path("runs", self.recipe, self.split, str(self.seed))

    @property
    def checkpoints(self) -> Path:
        """last.pt while the run is under way; declared to no engine, so that none deletes it."""
        return Path("checkpoints", self.recipe, self.split, str(self.seed))

    @property
    def metrics(self) -> Path:
        """The run's record, in git."""
        return RESULTS / "runs" / self.recipe / self.split / str(self.seed) / "metrics.json"

    @property
    def history(self) -> Path:
        """The artefacts' history.csv in few rows, in git."""
        return self.metrics.with_name("history.csv")


PRETRAINED = "pretrained"  # of pretrained/<name>, the value of network.weights that names a pretraining


@dataclass(frozen=True)
class PretrainingRun:
    """An entry of params.yaml's pretraining, which is trained once for all runs that start from it."""

    name: str

    def __str__(self) -> str:
        return f"{PRETRAINED}/{self.name}"

    @classmethod
    def named(cls, weights: str) -> "PretrainingRun | None":
        """Return the pretraining that a value of network.weights names, if it names one."""
        prefix, slash, name = weights.partition("/")
        return cls(name) if slash and prefix == PRETRAINED else None

    @property
    def artefacts(self) -> Path:
        """backbone.pt, history.csv and the TensorBoard events: large, not in git."""
        return Path("runs", PRETRAINED, self.name)

    @property
    def weights(self) -> Path:
        """The state dict of the backbone at the last step."""
        return self.artefacts / "backbone.pt"

    @property
    def record(self) -> Path:
        """The identity of the pretraining and the digest of its weights, in git."""
        return RESULTS / "pretraining" / self.name / "record.json"

    @property
    def history(self) -> Path:
        """A copy of the artefacts' history.csv, in git."""
        return self.record.with_name("history.csv")

    @property
    def checkpoints(self) -> Path:
        """last.pt while the pretraining is under way; declared to no engine, so that none deletes it."""
        return Path("checkpoints", PRETRAINED, self.name)
