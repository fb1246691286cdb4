"""Stages as processes of their own, forked from a server that has imported torch: they start in a second.

A forked process runs the stage's script from its first line to its last.
"""

import multiprocessing
import os
import resource
import runpy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from semiseg.evaluation import trained
from semiseg.training import step as training_step
from tests.miniature import METHODS, PIPELINE
from tests.tiny import tiny_network

DEFAULT = multiprocessing.get_start_method()
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["semiseg.training.loop", "semiseg.evaluation.evaluate", "semiseg.models.heads.deeplabv3plus"]
    + [f"semiseg.methods.{name}" for name in METHODS]
)


@dataclass(frozen=True)
class Stage:
    """A running stage, the leader of a process group of its own."""

    process: ForkServerProcess
    output: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def ended(self, timeout: float = 120) -> int:
        """Return its exit status, negative for a signal's number."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, self.said()
        return self.process.exitcode

    def said(self) -> str:
        """Return what it has printed so far."""
        return self.output.read_text() if self.output.exists() else ""

    def error(self) -> str:
        """Return the one line that it ended in."""
        assert "Traceback" not in self.said(), self.said()
        (line,) = [line for line in self.said().splitlines() if line.startswith("error: ")]
        return line

    def wait_for(self, what: Callable[[], bool], seconds: float = 120) -> None:
        """Wait until ``what`` returns true, which must happen while the stage runs."""
        until = time.monotonic() + seconds
        while not what():
            assert self.process.is_alive(), self.said()
            assert time.monotonic() < until, self.said()
            time.sleep(0.002)


def start(script: str, *arguments: object, file_size: int | None = None, tiny: bool = False) -> Stage:
    """Start a stage in the working directory; ``file_size`` bounds the files that it can write, in bytes.

    With ``tiny`` its network is that of tests/tiny.py, and each flush to disk takes 20 ms longer, so that
    writes last about as long as a large network's.
    """
    output = Path(f".{script}.{time.monotonic_ns()}.said").absolute()
    command = [str(PIPELINE / f"{script}.py"), *map(str, arguments)]
    process = SERVER.Process(target=_run, args=(Path.cwd(), command, output, file_size, tiny))
    process.start()
    return Stage(process, output)


def run(
    script: str, *arguments: object, file_size: int | None = None, tiny: bool = False
) -> tuple[int, Stage]:
    """Run a stage to its end; return its exit status and the stage."""
    stage = start(script, *arguments, file_size=file_size, tiny=tiny)
    return stage.ended(), stage


def _run(place: Path, command: list[str], output: Path, file_size: int | None, tiny: bool) -> None:
    os.setsid()
    multiprocessing.set_start_method(DEFAULT, force=True)  # for its readers: as in a process of its own
    os.chdir(place)
    number = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(number, 1)
    os.dup2(number, 2)
    os.environ |= {"CUDA_VISIBLE_DEVICES": ""}
    if file_size is not None:
        sys.dont_write_bytecode = True  # Python would leave compiled modules that are cut off
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if tiny:
        training_step.build = trained.build = lambda network, num_classes: tiny_network(num_classes)
        flush = os.fsync
        os.fsync = lambda number: (time.sleep(0.02), flush(number))[1]
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")
