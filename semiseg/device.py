"""One device for one run, or several.

Engines only count GPUs, they hand none out: a run claims its own with a file lock, before CUDA starts. The
lock goes with the process, however that ends. SLURM does hand GPUs out: a job's only one is used as it is,
and several are shared among the job's own runs.

With ``SEMISEG_DEVICE=cpu`` a run holds its GPU and computes on the CPU, to try a scheduler without CUDA.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from semiseg.errors import UserError

POLL_SECONDS = 1.0
COMPUTE_ON = "SEMISEG_DEVICE"


@contextmanager
def claimed(threads: int) -> Iterator[torch.device]:
    """Yield a GPU that no other run of this machine holds, waiting for one; the CPU where there is none.

    ``threads`` is the number of CPU threads that torch may use. Raises UserError where a GPU is visible and
    torch finds no CUDA.
    """
    torch.set_num_threads(threads)
    ids = visible_gpus()
    if not ids:
        print("no GPU on this machine: running on the CPU", file=sys.stderr)
        yield _cpu()
        return
    job = _granting_job()
    if job is not None and len(ids) == 1:
        yield _device(ids[0])
        return
    lock, gpu = _claim(ids, _lock_folder(), prefix=f"slurm-{job}-" if job is not None else "")
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        yield _device(gpu)
    finally:
        lock.release()


@contextmanager
def claimed_together(count: int) -> Iterator[None]:
    """Hold ``count`` GPUs for one run of as many processes, and let those it starts see no other.

    One run at a time collects several, so no two wait for each other's. Raises UserError where there are
    fewer.
    """
    ids = visible_gpus()
    if len(ids) < count:
        there = ", ".join(ids) or "none"
        raise UserError(
            f"gpus: {count} are asked for, and there are {len(ids)} ({there}): lower gpus in params.yaml, "
            "or start the run on a machine that has them"
        )
    job = _granting_job()
    prefix = f"slurm-{job}-" if job is not None else ""
    with ExitStack() as held:
        with FileLock(_lock_folder() / f"{prefix}several.lock", mode=0o666):
            chosen: list[str] = []
            for _ in range(count):
                rest = [gpu for gpu in ids if gpu not in chosen]
                lock, gpu = _claim(rest, _lock_folder(), prefix)
                held.callback(lock.release)
                chosen.append(gpu)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
        yield


def of_process(threads: int) -> torch.device:
    """The device of one of the processes that torchrun has started together."""
    torch.set_num_threads(threads)
    place = int(os.environ["LOCAL_RANK"])
    return _device(visible_gpus()[place], place)


def _cpu() -> torch.device:
    torch.use_deterministic_algorithms(True)
    return torch.device("cpu")


def _device(gpu: str, place: int = 0) -> torch.device:
    """What a run computes on that holds ``gpu``, at ``place`` among those that CUDA may see."""
    if os.environ.get(COMPUTE_ON) == "cpu":
        print(f"{COMPUTE_ON}=cpu: holding GPU {gpu} and running on the CPU", file=sys.stderr)
        return _cpu()
    if not torch.cuda.is_available():
        raise UserError(
            f"GPU {gpu} is named by CUDA_VISIBLE_DEVICES or nvidia-smi, but torch {torch.__version__} finds "
            "no CUDA there: install a torch for this driver, or set CUDA_VISIBLE_DEVICES= to run on the CPU"
        )
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda", place)


def _granting_job() -> str | None:
    """The SLURM job that has granted the visible GPUs, if one has.

    Where SLURM confines a job to its devices, every job's first GPU has the id 0: a lock on the bare id would
    make jobs wait for each other.
    """
    return os.environ.get("SLURM_JOB_ID") if "CUDA_VISIBLE_DEVICES" in os.environ else None


@contextmanager
def enough_memory(what: str, remedy: str) -> Iterator[None]:
    """Turn a GPU's exhausted memory into a UserError: ``what`` did not fit, and the ``remedy``."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(f"{what} did not fit into the GPU's memory; {remedy}, or free the GPU") from None


def visible_gpus() -> list[str]:
    """The ids in CUDA_VISIBLE_DEVICES, else those that nvidia-smi lists, else none.

    Raises UserError where there may be a GPU and nothing tells which: it is not replaced by the CPU.
    """
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
    except FileNotFoundError:
        if torch.cuda.is_available():
            raise UserError(
                "nvidia-smi is not on the path, and torch finds CUDA: set CUDA_VISIBLE_DEVICES to the GPUs' "
                "ids, or to nothing to run on the CPU"
            ) from None
        return []
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(
            f"nvidia-smi fails ({error}): mend the driver, or set CUDA_VISIBLE_DEVICES= to run on the CPU"
        ) from None
    return listing.stdout.split()


def _lock_folder() -> Path:
    """Shared by all users and checkouts of the machine."""
    folder = Path(tempfile.gettempdir(), "semiseg-gpus")
    folder.mkdir(exist_ok=True)
    if folder.stat().st_uid == os.getuid():
        folder.chmod(0o1777)
    return folder


def _claim(ids: list[str], folder: Path, prefix: str) -> tuple[FileLock, str]:
    waiting = False
    while True:
        for gpu in ids:
            lock = FileLock(folder / f"{prefix}{gpu}.lock", mode=0o666)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return lock, gpu
        if not waiting:
            print(f"every GPU ({', '.join(ids)}) is held by another run: waiting", file=sys.stderr)
            waiting = True
        time.sleep(POLL_SECONDS)
