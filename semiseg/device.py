"""One device for one run.

Engines only count GPUs, they hand none out: a run claims its own with a file lock, before CUDA starts. The
lock goes with the process, however that ends.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

POLL_SECONDS = 1.0


@contextmanager
def claimed(threads: int) -> Iterator[torch.device]:
    """Yield a GPU that no other run of this machine holds, waiting for one; the CPU where there is none.

    ``threads`` is the number of CPU threads that torch may use.
    """
    torch.set_num_threads(threads)
    ids = visible_gpus()
    if not ids:
        print("no GPU on this machine: running on the CPU", file=sys.stderr)
        torch.use_deterministic_algorithms(True)
        yield torch.device("cpu")
        return
    lock, gpu = _claim(ids, _lock_folder())
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        torch.backends.cudnn.benchmark = True
        yield torch.device("cuda", 0)
    finally:
        lock.release()


def visible_gpus() -> list[str]:
    """The ids in CUDA_VISIBLE_DEVICES, else those that nvidia-smi lists, else none."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    try:
        listing = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return listing.stdout.split()


def _lock_folder() -> Path:
    """Shared by all users and checkouts of the machine."""
    folder = Path(tempfile.gettempdir(), "semiseg-gpus")
    folder.mkdir(exist_ok=True)
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o1777)
    return folder


def _claim(ids: list[str], folder: Path) -> tuple[FileLock, str]:
    waiting = False
    while True:
        for gpu in ids:
            lock = FileLock(folder / f"{gpu}.lock", mode=0o666)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return lock, gpu
        if not waiting:
            print(f"every GPU ({', '.join(ids)}) is held by another run: waiting", file=sys.stderr)
            waiting = True
        time.sleep(POLL_SECONDS)
