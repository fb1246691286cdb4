"""Kill runs with SIGKILL at random points, and compare their endings with undisturbed runs, bit for bit.

python -m tests.kill_often --times 200            each start is a fresh `python pipeline/train.py`
python -m tests.kill_often --times 20 --tiny      forked, with a tiny network, as in the tests
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
import yaml

from semiseg.base import paths
from semiseg.training import checkpoint
from tests import miniature, processes

STEPS = 12


class Running(Protocol):
    """The part of a process that subprocess and multiprocessing have in common."""

    def kill(self) -> None: ...


Start = Callable[..., tuple[Running, Callable[[], int | None]]]
"""(script, *arguments) -> the process, and a function that returns its exit status, None while it runs."""


def as_processes(script: str, *arguments: object) -> tuple[Running, Callable[[], int | None]]:
    command = [sys.executable, str(miniature.PIPELINE / f"{script}.py"), *map(str, arguments)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, **quiet)
    return process, process.poll


def forked(script: str, *arguments: object) -> tuple[Running, Callable[[], int | None]]:
    process = processes.start(script, *arguments, tiny=True).process
    return process, lambda: process.exitcode


@dataclass(frozen=True)
class Ending:
    """The ending of a run: all that another one must have, too."""

    model: dict[str, Any]
    history: pd.DataFrame
    figures: dict[str, Any]

    def differs(self, other: "Ending") -> list[str]:
        """Return the parts that differ in any bit."""
        parts = [part for part in self.model if not _same(self.model[part], other.model[part])]
        parts += [] if self.history.equals(other.history) else ["history.csv"]
        return parts + ([] if self.figures == other.figures else ["metrics.json"])


def ending(run: paths.Run) -> Ending:
    model = checkpoint.read(run.artefacts / "model.pt")
    figures = json.loads(run.metrics.read_text())
    return Ending(
        {part: model[part] for part in ("last", "last_step", "best", "best_step", "config_sha256")},
        pd.read_csv(run.artefacts / "history.csv").drop(columns="images_per_second"),
        {part: figures[part] for part in ("last", "best", "headline", "labelled")},
    )


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and one.keys() == other.keys()
            and all(_same(one[key], other[key]) for key in one)
        )
    return one == other


def to_its_end(start: Start, script: str, run: paths.Run) -> float:
    """Run a stage without disturbing it, and return the seconds that it took."""
    began = time.monotonic()
    _, status = start(script, *str(run).split("/"))
    while status() is None:
        time.sleep(0.01)
    assert status() == 0, f"{script} {run}: exit status {status()}"
    return time.monotonic() - began


def killed(start: Start, run: paths.Run, seconds: float, draw: random.Random) -> str | None:
    """Start training, kill it and return where that was; None if the run ended before.

    Half of the kills come after a random time, half at a random write of a checkpoint.
    """
    leftover = _next(run)  # of an earlier kill
    process, status = start("train", *str(run).split("/"))
    at_a_write = draw.random() < 0.5
    until = time.monotonic() + draw.uniform(0, seconds)
    writes = draw.randrange(4)  # that go well before
    writing = False
    while status() is None:
        found = _is_writing(run)
        writes -= found and not writing
        writing = found
        if writes < 0 if at_a_write else time.monotonic() >= until:
            break
        time.sleep(0.001)
    if at_a_write:
        time.sleep(draw.uniform(0, 0.03))
    process.kill()
    while status() is None:
        time.sleep(0.001)
    if status() == 0:
        return None
    assert status() == -9, f"{run}: exit status {status()}"
    if _is_writing(run):
        return "in the midst of a checkpoint"
    if _next(run) not in (None, leftover):
        return "between two renames"
    if (run.checkpoints / checkpoint.LAST).exists():
        return "behind a checkpoint"
    return "before the first checkpoint"


def _next(run: paths.Run) -> int | None:
    """Return the time (ns) of a checkpoint that is whole but not yet the last one."""
    with suppress(FileNotFoundError):  # renamed or removed at this very moment, too
        return (run.checkpoints / checkpoint.NEXT).stat().st_mtime_ns
    return None


def _is_writing(run: paths.Run) -> bool:
    with suppress(FileNotFoundError):  # the folder is removed as the run ends
        return any(run.checkpoints.glob(".*.partial"))
    return False


def kill(start: Start, recipe: str, times: int, draw: random.Random) -> Counter[str]:
    """Kill a recipe's run ``times`` times, across as many runs as that takes; count where the kills were.

    Raises AssertionError if one of these runs ends differently from the undisturbed one.
    """
    run = miniature.run(recipe)
    seconds = to_its_end(start, "train", run)
    to_its_end(start, "evaluate", run)
    expected, where = ending(run), Counter[str]()
    while where.total() < times:
        (run.artefacts / "model.pt").unlink()
        (run.artefacts / "history.csv").unlink()
        while where.total() < times:
            place = killed(start, run, seconds, draw)
            if place is None:
                break
            where[place] += 1
        else:
            to_its_end(start, "train", run)
        to_its_end(start, "evaluate", run)
        assert expected.differs(ending(run)) == [], f"{run} ended differently after kills {dict(where)}"
        assert not run.checkpoints.exists()
        assert not list(run.artefacts.glob(".*.partial"))
    return where


def create(folder: Path) -> None:
    """Write the miniature project, with 12 steps, into ``folder``, the working directory."""
    miniature.create(folder)
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["protocols"]["mini"]["steps"] = STEPS
    Path("params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20, help="kills, of all methods together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="fork, with a tiny network")
    arguments = parser.parse_args()
    draw, methods = random.Random(arguments.seed), miniature.METHODS
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        create(Path(folder))
        for place, recipe in enumerate(methods):
            times = arguments.times * (place + 1) // len(methods) - arguments.times * place // len(methods)
            where = kill(forked if arguments.tiny else as_processes, recipe, times, draw)
            said = ", ".join(f"{count} {name}" for name, count in sorted(where.items()))
            print(f"{recipe}: {times} kills ({said}); weights, history and metrics the same", flush=True)
        os.chdir("/")


if __name__ == "__main__":
    main()
