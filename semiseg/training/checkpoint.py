"""Everything a run needs to go on exactly where it stopped, in one file that is whole or absent.

The one before it is kept, for a disk that gives back other bytes than it was given. Random states are not in
it: the engine seeds every step, and the data streams every image, from the run's seed and the position alone.
"""

import io
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from semiseg.base import paths
from semiseg.base.errors import UserError
from semiseg.base.files import flush_folder, write_text, written_whole

LAST, PREVIOUS = "last.pt", "previous.pt"
NEXT, BROKEN = "next.pt", "broken.pt"  # one that is whole but not yet the last; one set aside
FINISHED = "finished.pt"  # of the last step, until the run's record is written

Networks = dict[str, dict[str, torch.Tensor]]
"""State dicts by "student" and, for a method that has one, "teacher"."""


@dataclass
class Checkpoint:
    """The state of a run between two steps."""

    config_sha256: str
    step: int  # steps taken
    method: dict[str, Any]
    optimiser: dict[str, Any]
    history: list[dict[str, float]]
    best_miou: float  # of the predictor on the val list; -1 before the first validation
    best_step: int
    best: Networks
    started: str
    seconds: float  # training time of all sittings, without validation
    unwritten: list[dict[str, float]] = field(default_factory=list)  # losses of steps behind the last row
    revision: str = "unknown"  # of the code that took the last step
    peak_memory_mib: float | None = None  # on a GPU, of all sittings

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
    """What ``write`` wrote, on the CPU. Raises ValueError for a file that is not as it was written.

    ``torch.load`` takes flipped bytes for weights, so every record's check sum is compared first;
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


def load(folder: Path, config_sha256: str) -> Checkpoint | None:
    """The last checkpoint of ``folder``, or the previous one if that is broken; None where there is none.

    A broken one is set aside, in one line on stderr. Raises UserError when no readable one is left, or when
    it belongs to another configuration; a finished run's is removed then.
    """
    if finished := _finished(folder, config_sha256):
        return finished
    refused = []
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            checkpoint = Checkpoint(**read(path))
        except (ValueError, TypeError) as error:
            refused.append(f"{path}: not a readable checkpoint ({error})")
            continue
        if checkpoint.config_sha256 != config_sha256:
            raise UserError(
                f"{path}: belongs to another configuration of this run; "
                f"restore params.yaml to go on with it, or remove {folder} to train from the start"
            )
        if refused:
            (folder / LAST).replace(folder / BROKEN)
            print(
                f"{refused[0]}, now {BROKEN}: going on from the one before it, step {checkpoint.step}",
                file=sys.stderr,
            )
        return checkpoint
    if refused:
        raise UserError(f"{'; '.join(refused)}; remove {folder} to train from the start")
    return None


def _finished(folder: Path, config_sha256: str) -> Checkpoint | None:
    path = folder / FINISHED
    if not path.exists():
        return None
    try:
        checkpoint = Checkpoint(**read(path))
    except (ValueError, TypeError) as error:
        print(f"{path}: not a readable checkpoint ({error}), removed", file=sys.stderr)
    else:
        if checkpoint.config_sha256 == config_sha256:
            return checkpoint
    path.unlink()
    return None


def finish(folder: Path) -> None:
    """Keep only the last checkpoint of ``folder``, under another name, until ``forget``.

    An engine may remove a network that was trained because of what came after it; then it is written again.
    """
    if (folder / LAST).exists():
        (folder / LAST).replace(folder / FINISHED)
    for path in folder.iterdir():
        if path.name != FINISHED:
            path.unlink()


def forget(folder: Path) -> None:
    """Remove what ``finish`` has kept, if it can be removed."""
    with suppress(OSError):
        (folder / FINISHED).unlink(missing_ok=True)
        folder.rmdir()


@contextmanager
def held(run: paths.Run) -> Iterator[None]:
    """Hold the run while it trains. Raises UserError naming the process that holds it already."""
    folder = Path("checkpoints", "locks")
    folder.mkdir(parents=True, exist_ok=True)
    name = str(run).replace("/", "--")
    holder = folder / f"{name}.pid"
    lock = FileLock(folder / f"{name}.lock", mode=0o666)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = holder.read_text().strip() if holder.exists() else "unknown"
        raise UserError(f"{run}: being trained by process {pid}; wait for it or stop it") from None
    try:
        # A new file in place of what a killed run left, which may be another user's.
        write_text(holder, f"{os.getpid()}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
