"""Everything a run needs to go on exactly where it stopped, in one file that is whole or absent.

Random states are not in it: the engine seeds every step, and the data streams every image, from the run's
seed and the position alone.
"""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from semiseg import paths
from semiseg.errors import UserError
from semiseg.files import written_whole

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

    def save(self, path: Path) -> None:
        write(vars(self), path)


def write(state: Mapping[str, Any], path: Path) -> None:
    """Save ``state`` at ``path``, whole or not at all."""
    buffer = io.BytesIO()  # a full disk is then an OSError, not one of torch's own
    torch.save(dict(state), buffer)
    with written_whole(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load(path: Path, config_sha256: str) -> Checkpoint | None:
    """The checkpoint at ``path``, on the CPU; None where there is none.

    Raises UserError when it belongs to another configuration or cannot be read. ``weights_only`` keeps a
    checkpoint from running code.
    """
    if not path.exists():
        return None
    try:
        checkpoint = Checkpoint(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise UserError(
            f"{path}: not a readable checkpoint ({type(error).__name__}); remove it to train from the start"
        ) from error
    if checkpoint.config_sha256 != config_sha256:
        raise UserError(
            f"{path}: belongs to another configuration of this run; "
            "restore params.yaml to go on with it, or remove it to train from the start"
        )
    return checkpoint


@contextmanager
def held(run: paths.Run) -> Iterator[None]:
    """Hold the run while it trains. Raises UserError naming the process that holds it already."""
    folder = Path("checkpoints", "locks")
    folder.mkdir(parents=True, exist_ok=True)
    name = str(run).replace("/", "--")
    holder = folder / f"{name}.pid"
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        pid = holder.read_text().strip() if holder.exists() else "unknown"
        raise UserError(f"{run}: being trained by process {pid}; wait for it or stop it") from None
    try:
        holder.write_text(f"{os.getpid()}\n")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
