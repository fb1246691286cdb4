"""Claim the device, or the devices, of a run.

Engines count GPUs but do not hand them out, so a run claims its own with a file lock before CUDA starts. The
lock ends with the process. It is named by the GPU's UUID, because one run may name a GPU by its UUID and
another by its index. SLURM does hand out GPUs: a job's only GPU is used without a lock, and several are
shared among the job's own runs.

With ``SEMISEG_DEVICE=cpu`` a run holds its GPU but computes on the CPU, to try a scheduler without CUDA.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from semiseg.base.errors import UserError

POLL_SECONDS = 1.0
COMPUTE_ON = "SEMISEG_DEVICE"


@contextmanager
def claimed(threads: int) -> Iterator[torch.device]:
    """Wait for a GPU that no other run on this machine holds, and yield it; without any GPU, yield the CPU.

    ``threads`` is the number of CPU threads that torch may use. Raises UserError if a GPU is visible but
    torch finds no CUDA.
    """
    torch.set_num_threads(threads)
    _count_as_nvidia_smi()
    ids = visible_gpus()
    if not ids:
        print("no GPU on this machine: running on the CPU", file=sys.stderr)
        yield _cpu()
        return
    job = _granting_job()
    if job is not None and len(ids) == 1:
        yield _device(ids[0])
        return
    lock, gpu = _claim(_by_uuid(ids), _lock_folder(), prefix=f"slurm-{job}-" if job is not None else "")
    os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        yield _device(gpu)
    finally:
        lock.release()


@contextmanager
def claimed_together(count: int) -> Iterator[None]:
    """Hold ``count`` GPUs for a run of as many processes, and hide all others from these.

    Only one run at a time collects several GPUs, so that no two wait for each other. Raises UserError if
    there are fewer GPUs.
    """
    _count_as_nvidia_smi()
    gpus = _by_uuid(visible_gpus())
    if len(gpus) < count:
        there = ", ".join(gpus.values()) or "none"
        raise UserError(
            f"gpus: {count} are asked for, and there are {len(gpus)} ({there}): lower gpus in params.yaml, "
            "or start the run on a machine that has them"
        )
    job = _granting_job()
    prefix = f"slurm-{job}-" if job is not None else ""
    with ExitStack() as held:
        with FileLock(_lock_folder() / f"{prefix}several.lock", mode=0o666):
            chosen: list[str] = []
            for _ in range(count):
                rest = {name: gpu for name, gpu in gpus.items() if gpu not in chosen}
                lock, gpu = _claim(rest, _lock_folder(), prefix)
                held.callback(lock.release)
                chosen.append(gpu)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
        yield


def of_process(threads: int) -> torch.device:
    """Return the device of this process, one of those that torchrun started together."""
    torch.set_num_threads(threads)
    _count_as_nvidia_smi()
    place = int(os.environ["LOCAL_RANK"])
    return _device(visible_gpus()[place], place)


def _count_as_nvidia_smi() -> None:
    """Make CUDA's indices those of nvidia-smi; by default they begin with the fastest GPU."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def without_avx512() -> None:
    """Leave AVX-512 out of torch's and oneDNN's kernels, whose wider registers add up in another order.

    AMD's processors with and without it then give the same digits; Intel's, where MKL still uses it, give
    others. Call it before torch's first operation in the process; after that it has no effect.
    """
    if torch.cpu._is_avx512_supported():
        os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX2")


def _cpu() -> torch.device:
    without_avx512()
    torch.use_deterministic_algorithms(True)
    return torch.device("cpu")


def _device(gpu: str, place: int = 0) -> torch.device:
    """Return the device of a run that holds ``gpu``, at ``place`` among the GPUs that CUDA may see."""
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
    """Return the SLURM job that granted the visible GPUs, if there is one.

    If SLURM confines jobs to their devices, every job's first GPU has the id 0, and a lock on the bare id
    would make jobs wait for each other.
    """
    return os.environ.get("SLURM_JOB_ID") if "CUDA_VISIBLE_DEVICES" in os.environ else None


def visible_gpus() -> list[str]:
    """Return the ids in CUDA_VISIBLE_DEVICES, or those that nvidia-smi lists, or none.

    Raises UserError if there may be a GPU that nothing names: the CPU must not replace it silently.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    try:
        listed = _listed()
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
    return list(listed)


def _listed() -> dict[str, str]:
    """Return each GPU's UUID by its index, from nvidia-smi. Raises OSError or SubprocessError."""
    listing = subprocess.run(
        ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    rows = (line.partition(",") for line in listing.stdout.splitlines())
    return {index.strip(): uuid.strip() for index, _, uuid in rows}


def _by_uuid(ids: list[str]) -> dict[str, str]:
    """Return the ``ids`` by the UUIDs of their GPUs; one that nvidia-smi does not know stands for itself."""
    try:
        listed = _listed()
    except FileNotFoundError:
        listed = {}
    except (OSError, subprocess.SubprocessError) as error:
        print(
            f"nvidia-smi fails ({error}): all runs must name a GPU alike, or two may share it",
            file=sys.stderr,
        )
        listed = {}
    return {_uuid(gpu, listed): gpu for gpu in ids}


def _uuid(gpu: str, listed: Mapping[str, str]) -> str:
    """Return the UUID of a GPU that is named by its index, its UUID, or the unique beginning of its UUID."""
    begun = [uuid for uuid in listed.values() if uuid.startswith(gpu)]
    return listed.get(gpu) or (begun[0] if len(begun) == 1 else gpu)


def _lock_folder() -> Path:
    """Return the folder of locks that all users and checkouts of the machine share."""
    folder = Path(tempfile.gettempdir(), "semiseg-gpus")
    folder.mkdir(exist_ok=True)
    if folder.stat().st_uid == os.getuid():
        # No sticky bit: with it the kernel may refuse to open another user's lock (fs.protected_regular).
        folder.chmod(0o777)
    return folder


def _claim(gpus: Mapping[str, str], folder: Path, prefix: str) -> tuple[FileLock, str]:
    """Wait for one of the ``gpus``, ids by the names of their locks; return its held lock and its id."""
    waiting = False
    while True:
        for name, gpu in gpus.items():
            lock = FileLock(folder / f"{prefix}{name}.lock", mode=0o666)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            return lock, gpu
        if not waiting:
            print(f"every GPU ({', '.join(gpus.values())}) is held by another run: waiting", file=sys.stderr)
            waiting = True
        time.sleep(POLL_SECONDS)
