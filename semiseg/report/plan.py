"""What the rest of a grid will take, and on what that rests: finished runs, or steps that were measured."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from semiseg.base.parameters import RunConfig, canonical
from semiseg.base.paths import RESULTS, Run
from semiseg.evaluation import record
from semiseg.evaluation.record import Record
from semiseg.report.collect import Results, command
from semiseg.report.tables import runs_of

# Of a protocol: what decides how long a step takes. The number of steps does not.
SPEED = (
    "network",
    "geometry",
    "labelled_batch",
    "unlabelled_batch",
    "precision",
    "compile",
    "threads",
)


@dataclass(frozen=True)
class Estimate:
    """Of one run."""

    seconds: float  # of training steps on one device; validation and scoring come on top
    size: float | None  # bytes under runs/; None where no run that it rests on lies on this machine
    basis: str  # "2 runs of cmb on camvid, NVIDIA H100"; or what was measured


Measured = Mapping[tuple[str, str], Estimate]  # by recipe and protocol
NOTHING: Measured = {}


@dataclass(frozen=True)
class Line:
    """A recipe on a split."""

    recipe: str
    split: str
    done: int
    left: tuple[Run, ...]
    estimate: Estimate | None  # None without anything to judge by, or with nothing left


def lines(results: Results, measured: Measured = NOTHING) -> list[Line]:
    """Of every cell of the grid's table, in its order; ``measured`` is for what no run is like."""
    finished = _finished()
    missing = results.missing()
    found = []
    for recipe in results.recipes:
        for split in results.grid.splits:
            done = len(results.runs(recipe, split))
            left = tuple(run for run in missing if (run.recipe, run.split) == (recipe, split))
            if done or left:
                protocol = results.params.splits[split].protocol
                guess = None
                if left:
                    guess = estimate(results.params.run(left[0]), finished)
                    guess = guess or measured.get((recipe, protocol))
                found.append(Line(recipe, split, done, left, guess))
    return found


def without_estimate(results: Results) -> list[RunConfig]:
    """A run for each recipe and protocol that has runs left and no finished one like them."""
    runs = [line.left[0] for line in lines(results) if line.left and line.estimate is None]
    configs = [results.params.run(run) for run in reversed(runs)]  # so that of a pair the first run stays
    return list({(each.run.recipe, each.protocol_name): each for each in configs}.values())[::-1]


def _finished() -> list[Record]:
    """Every record there is, whichever params.yaml it was made with."""
    return [record.read(path) for path in sorted((RESULTS / "runs").glob("*/*/*/metrics.json"))]


def estimate(config: RunConfig, finished: Iterable[Record]) -> Estimate | None:
    """From the finished runs most like ``config``, on the device that was used last; None if none is alike.

    Alike are, best first: the same recipe, the same method, any method, each at the same speed settings; then
    the same method and any method on the same network and crop, in proportion to the images of a step.
    """
    wanted = json.loads(canonical(config))["protocol"]
    records = [each for each in finished if each.provenance.config.get("protocol")]

    def same_speed(each: Record) -> bool:
        return all(_protocol(each).get(name) == wanted[name] for name in SPEED)

    def same_network(each: Record) -> bool:
        protocol = _protocol(each)
        return (protocol["network"], protocol["geometry"]["crop"]) == (
            wanted["network"],
            wanted["geometry"]["crop"],
        )

    def same_method(each: Record) -> bool:
        return each.method == config.method

    likenesses: Sequence[Callable[[Record], bool]] = (
        lambda each: same_speed(each) and each.recipe == config.run.recipe,
        lambda each: same_speed(each) and same_method(each),
        same_speed,
        lambda each: same_network(each) and same_method(each),
        same_network,
    )
    for alike in likenesses:
        chosen = [each for each in records if alike(each)]
        if chosen:
            return _estimate(wanted, chosen, "" if same_speed(chosen[0]) else ", another protocol")
    return None


def _estimate(wanted: Mapping[str, Any], records: Sequence[Record], remark: str) -> Estimate:
    device = max(records, key=lambda each: each.provenance.finished).provenance.device
    records = [each for each in records if each.provenance.device == device]
    seconds = [
        each.provenance.train_seconds
        / (_protocol(each)["steps"] * _images(_protocol(each)))
        * (wanted["steps"] * _images(wanted))
        for each in records
    ]
    folders = [Run(each.recipe, each.split, each.seed).artefacts for each in records]
    sizes = [_size(folder) for folder in folders if folder.exists()]
    recipes, datasets = (
        ", ".join(sorted({getattr(each, name) for each in records})) for name in ("recipe", "dataset")
    )
    return Estimate(
        seconds=math.fsum(seconds) / len(seconds),
        size=math.fsum(sizes) / len(sizes) if sizes else None,
        basis=f"{runs_of(len(records))} of {recipes} on {datasets}{remark}, {device}",
    )


def _protocol(of: Record) -> Mapping[str, Any]:
    protocol: Mapping[str, Any] = of.provenance.config["protocol"]
    return protocol


def _images(protocol: Mapping[str, Any]) -> int:
    """Of a step."""
    return int(protocol["labelled_batch"] + protocol["unlabelled_batch"])


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def terminal(results: Results, measured: Measured = NOTHING) -> str:
    """The plan for a terminal."""
    plan = lines(results, measured)
    rows = [
        (
            line.recipe,
            line.split,
            line.done,
            len(line.left),
            "" if line.estimate is None else hours(line.estimate.seconds),
            "" if line.estimate is None else hours(len(line.left) * line.estimate.seconds),
            _basis(line),
        )
        for line in plan
    ]
    head = ("recipe", "split", "done", "left", "hours each", "hours left", "estimated from")
    sides = ("left", "left", "right", "right", "right", "right", "left")
    drawn = tabulate(rows, head, tablefmt="simple", disable_numparse=True, colalign=sides)
    return "\n".join([results.grid.title, "", drawn, "", *totals(results, plan)])


def _basis(line: Line) -> str:
    if not line.left:
        return ""
    return "nothing alike was run: no estimate" if line.estimate is None else line.estimate.basis


def totals(results: Results, plan: Sequence[Line]) -> list[str]:
    """The runs, hours and bytes left, as far as they can be told, the free disk, and the command."""
    done, left = sum(line.done for line in plan), sum(len(line.left) for line in plan)
    said = [f"Runs: {done} done, {left} left."]
    if not left:
        return said
    timed = [(len(line.left), line.estimate) for line in plan if line.left and line.estimate is not None]
    sized = [(count, guess.size) for count, guess in timed if guess.size is not None]
    said.append(
        _total("Time", left, timed, lambda: hours(math.fsum(n * guess.seconds for n, guess in timed)))
        + (" device-hours of training; validation and scoring come on top." if timed else "")
    )
    said.append(
        _total("Disk", left, sized, lambda: f"{math.fsum(n * size for n, size in sized) / 2**30:.2f}")
        + (" GiB under runs/, and a checkpoint for each run under way." if sized else "")
        + f" Free here: {shutil.disk_usage('.').free / 2**30:.1f} GiB."
    )
    if any(line.left and line.estimate is None for line in plan):
        said.append(f"Measure some steps for an estimate: python pipeline/plan.py {results.name} --measure")
    return [*said, f"Run {command(results.name)}"]


def _total(what: str, left: int, known: Sequence[tuple[int, Any]], amount: Callable[[], str]) -> str:
    counted = sum(count for count, _ in known)
    if not counted:
        return f"{what}: cannot be estimated, for no run like these has finished here."
    return f"{what}: {amount()}" if counted == left else f"{what} ({counted} of {runs_of(left)}): {amount()}"


def hours(seconds: float) -> str:
    """ "12.3", and two digits more below one hour."""
    return f"{seconds / 3600:.1f}" if seconds >= 3600 else f"{seconds / 3600:.3f}"
