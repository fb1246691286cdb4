"""All that a run needs to go on exactly where it stopped, in one file that is whole or absent.

The checkpoint before it is kept, in case the disk returns other bytes than were written. No random state is
stored: the loop seeds every step, and the streams every image, from the run's seed and the position alone.
"""

import io
import sys
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from semiseg.base.errors import UserError
from semiseg.base.files import flush_folder, written_whole
from semiseg.base.parameters import RunConfig
from semiseg.data.prepared import PreparedDataset
from semiseg.data.splits import Split

LAST, PREVIOUS = "last.pt", "previous.pt"
NEXT, BROKEN = "next.pt", "broken.pt"  # written but not yet the last; broken and set aside
FINISHED = "finished.pt"  # after the last step, until the run's record is written

Networks = dict[str, dict[str, torch.Tensor]]
"""State dicts by the names that the method gives its networks."""


@dataclass(frozen=True)
class Identity:
    """The digests that say which run, on which data, a file belongs to."""

    config_sha256: str
    data_sha256: str  # digest of the prepared dataset: ids, images and masks
    labelled_sha256: str  # digest of the labelled ids

    def difference(self, found: Mapping[str, Any]) -> str | None:
        """Return how ``found``, the contents of a file, differs; None if it belongs here."""
        for name, what in (
            ("config_sha256", "another configuration in params.yaml"),
            ("data_sha256", "other images or masks"),
            ("labelled_sha256", "another list of labelled images"),
        ):
            if found.get(name) != getattr(self, name):
                return what
        return None


def identify(config: RunConfig, dataset: PreparedDataset, split: Split) -> Identity:
    """Return the identity of a run on the data and the list that are prepared now."""
    return Identity(config.digest(), dataset.digest, split.labelled_sha256)


@dataclass
class Checkpoint:
    """The state of a run between two steps."""

    config_sha256: str
    data_sha256: str
    labelled_sha256: str
    started: str
    step: int = 0  # steps taken
    method: dict[str, Any] = field(default_factory=dict)
    optimiser: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    unwritten: list[dict[str, float]] = field(default_factory=list)  # logs of the steps since the last row
    best_miou: float = -1.0  # the headline's on the val list, a pretraining's last one; -1: none yet
    best_step: int = 0
    best: Networks = field(default_factory=dict)
    seconds: float = 0.0  # of all sittings, checkpoints included, validation not
    revision: str = "unknown"  # revision of the code that took the last step
    peak_memory_mib: float | None = None  # on a GPU, of all sittings
    pretrained_sha256: str | None = None  # digest of the pretrained weights that it began with

    @classmethod
    def new(cls, identity: Identity, started: str) -> "Checkpoint":
        """Return the state before the first step."""
        return cls(**asdict(identity), started=started)

    def save(self, folder: Path) -> None:
        """Write the checkpoint of ``folder``; the one that was there becomes the previous one."""
        write(vars(self), folder / NEXT)
        if (folder / LAST).exists():
            (folder / LAST).replace(folder / PREVIOUS)
        (folder / NEXT).replace(folder / LAST)
        flush_folder(folder)


def write(state: Mapping[str, Any], path: Path) -> None:
    """Save ``state`` at ``path``, whole or not at all."""
    buffer = io.BytesIO()  # a full disk is then an OSError, not one of torch's own
    torch.save(dict(state), buffer)
    with written_whole(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def read(path: Path) -> dict[str, Any]:
    """Return what ``write`` saved, on the CPU. Raises ValueError for a file that was changed since.

    ``torch.load`` does not notice flipped bytes, so the archive's check sums are compared first.
    ``weights_only`` keeps the file from running code.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            return state
    except (MemoryError, PermissionError, FileNotFoundError):
        raise
    except Exception as error:  # damaged bytes can look like anything
        raise ValueError(type(error).__name__) from error
    raise ValueError(f"{damaged} has another check sum")


def load(folder: Path, identity: Identity) -> Checkpoint | None:
    """Return the newest readable checkpoint in ``folder``; None if there is none.

    A broken one is set aside, with a line on stderr, and the one before it is returned. Raises UserError if
    all are broken, or if the checkpoint belongs to another identity.
    """
    broken: dict[Path, str] = {}
    for path in (folder / FINISHED, folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            checkpoint = Checkpoint(**read(path))
        except (ValueError, TypeError) as error:
            broken[path] = f"{path}: not a readable checkpoint ({error})"
            continue
        if difference := identity.difference(vars(checkpoint)):
            raise UserError(
                f"{path}: belongs to {difference}; restore what it was trained with to go on, or remove "
                f"{folder} to train from the start"
            )
        for damaged, said in broken.items():
            damaged.replace(folder / BROKEN)
            print(
                f"{said}, now {BROKEN}: going on from the one before it, step {checkpoint.step}",
                file=sys.stderr,
            )
        return checkpoint
    if broken:
        raise UserError(f"{'; '.join(broken.values())}; remove {folder} to train from the start")
    return None


def finish(folder: Path) -> None:
    """Keep only the last checkpoint of ``folder``, under another name, until ``forget``.

    An engine may remove the trained network before it is scored; the checkpoint then writes it again.
    """
    if (folder / LAST).exists():
        (folder / LAST).replace(folder / FINISHED)
    for name in (PREVIOUS, NEXT, BROKEN):
        (folder / name).unlink(missing_ok=True)
    for path in folder.glob("nan-step-*.pt"):
        path.unlink()


def forget(folder: Path) -> None:
    """Remove the checkpoint that ``finish`` kept, if it can be removed."""
    with suppress(OSError):
        (folder / FINISHED).unlink(missing_ok=True)
        folder.rmdir()
