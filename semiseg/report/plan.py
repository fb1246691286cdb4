"""Estimate what the rest of a grid will take, from finished runs or from steps that were measured."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from semiseg.base.errors import UserError
from semiseg.base.parameters import RunConfig, canonical
from semiseg.base.paths import RESULTS, Run
from semiseg.evaluation import record
from semiseg.evaluation.record import Record
from semiseg.report.collect import Results
from semiseg.report.foot import runs_of
from semiseg.report.markup import one_line
from semiseg.report.trust import command

# Fields of a protocol that decide how long a step takes.
SPEED = (
    "network",
    "geometry",
    "labelled_batch",
    "unlabelled_batch",
    "accumulate",
    "precision",
    "compile",
    "threads",
)


@dataclass(frozen=True)
class Estimate:
    """Time and disk that one run takes."""

    seconds: float  # for training steps on one device; validation and scoring come on top
    size: float | None  # bytes under runs/; None if no run that it rests on lies on this machine
    basis: str  # "2 runs of cmb on camvid, NVIDIA H100"; or what was measured


Measured = Mapping[tuple[str, str], Estimate]  # by recipe and protocol
NOTHING: Measured = {}


@dataclass(frozen=True)
class Line:
    """Runs done and left of a recipe on a split."""

    recipe: str
    split: str
    done: int
    left: tuple[Run, ...]
    estimate: Estimate | None  # None with nothing to judge by, or nothing left


def lines(results: Results, measured: Measured = NOTHING) -> list[Line]:
    """Plan every cell of the grid's table, in its order; ``measured`` helps where no run is alike."""
    records = finished()
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
                    guess = estimate(results.params.run(left[0]), records)
                    guess = guess or measured.get((recipe, protocol))
                found.append(Line(recipe, split, done, left, guess))
    return found


def without_estimate(results: Results) -> list[RunConfig]:
    """Return a run for each recipe and protocol that has runs left and no finished one like them."""
    runs = [line.left[0] for line in lines(results) if line.left and line.estimate is None]
    configs = [results.params.run(run) for run in reversed(runs)]  # so that of a pair the first run stays
    return list({(each.run.recipe, each.protocol_name): each for each in configs}.values())[::-1]


def finished() -> list[Record]:
    """Read every record that can be read, whichever params.yaml it was made with."""
    records = []
    for path in sorted((RESULTS / "runs").glob("*/*/*/metrics.json")):
        with suppress(UserError):  # a table that needs it refuses it
            records.append(record.read(path))
    return records


def estimate(config: RunConfig, records: Iterable[Record]) -> Estimate | None:
    """Estimate a run from the finished runs most like it, on the device that was used last.

    Alike are, best first: the same recipe, the same method, any method, each at the same speed settings; then
    the same method and any method on the same network and crop, in proportion to the images of a step.
    Returns None if none is alike.
    """
    wanted = json.loads(canonical(config))["protocol"]
    records = [each for each in records if "protocol" in each.provenance.config]

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
        each.provenance.device_seconds
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
    """Return the images of a step."""
    return int(protocol["labelled_batch"] + protocol["unlabelled_batch"])


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def terminal(results: Results, refused: Mapping[Run, str], measured: Measured = NOTHING) -> str:
    """Write the plan for a terminal; ``refused`` gives the reasons why records do not count."""
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
    said = [one_line(results.grid.title), "", drawn, "", *totals(results, plan)]
    if refused:
        paths = " ".join(run.metrics.as_posix() for run in refused)
        said += [
            "",
            f"Refused, and so left ({runs_of(len(refused))}):",
            *(f"  {each}" for each in refused.values()),
        ]
        said += [f"Run rm {paths}; {command(results.name)}"]
    return "\n".join(said)


def _basis(line: Line) -> str:
    if not line.left:
        return ""
    return "nothing alike was run: no estimate" if line.estimate is None else line.estimate.basis


def totals(results: Results, plan: Sequence[Line]) -> list[str]:
    """Say how many runs, hours and bytes are left, how much disk is free, and which command goes on."""
    done, left = sum(line.done for line in plan), sum(len(line.left) for line in plan)
    said = [f"Runs: {done} done, {left} left."]
    if not left:
        return said
    starts = dict.fromkeys(results.params.pretrained(run) for line in plan for run in line.left)
    if lacking := [start.name for start in starts if start is not None and not start.record.exists()]:
        said.append(f"Pretrainings before them, not in the time below: {', '.join(lacking)}.")
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
        return f"{what}: cannot be estimated: no run like these has finished here."
    return f"{what}: {amount()}" if counted == left else f"{what} ({counted} of {runs_of(left)}): {amount()}"


def hours(seconds: float) -> str:
    """Write hours, "12.3", with two more digits below one hour."""
    return f"{seconds / 3600:.1f}" if seconds >= 3600 else f"{seconds / 3600:.3f}"
