"""Locks that end with the process that holds them, however it ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from semiseg.base.errors import UserError
from semiseg.base.files import write_text
from semiseg.base.paths import PretrainingRun, Run


@contextmanager
def held(run: Run | PretrainingRun) -> Iterator[None]:
    """Hold ``run`` while it trains. Raises UserError naming the process that already holds it."""
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
        write_text(holder, f"{os.getpid()}\n")  # a new file: a killed run's may belong to another user
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
