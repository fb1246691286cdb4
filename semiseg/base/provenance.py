"""The origin of a number: the revision of the code, the packages, the machine."""

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

from semiseg.base import distributed

PACKAGES = ("torch", "torchvision", "numpy", "pillow")
CODE = ("semiseg", "pipeline", "params.yaml")  # modified files here mark a revision


def revision() -> str:
    """Return the git commit of the working folder, with "-modified" if tracked code differs from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        modified = _git("status", "--porcelain", "--untracked-files=no", "--", *CODE)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-modified" if modified else commit


def packages(architecture: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that compute the numbers.

    ``architecture`` is the package that the network's backbone comes from.
    """
    versions = {name: importlib.metadata.version(name) for name in dict.fromkeys([*PACKAGES, architecture])}
    return {"python": platform.python_version(), **versions}


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor with its threads, and how many train together."""
    together = f"{distributed.size()} x " if distributed.size() > 1 else ""
    if device.type == "cuda":
        return together + torch.cuda.get_device_name(device)
    return f"{together}{_processor()}, CPU, {torch.get_num_threads()} thread(s)"


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
