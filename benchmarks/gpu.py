"""Measure all that a GPU can show, in one command: python -m benchmarks.gpu --minutes 9 --out FOLDER

Needs PyTorch's stack and pytest, but no engine and no network; CamVid's archive is in SEMISEG_ARCHIVES.
Each part is a process of its own with a limit that covers its start, the most important first, and its
output is in FOLDER as soon as it ends. A part that FOLDER has already is not measured again. For the time
that is left the grid `camvid` trains, several runs side by side. FOLDER takes their records and
checkpoints, from which the next start goes on. --tiny tries the command itself: small networks, one step
each and no grid, on any device.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from semiseg.base import parameters
from semiseg.base.paths import Run

GRID = "camvid"
TO_SAVE = 20  # seconds in which a run saves its checkpoint
TESTS = (
    "tests/slow/test_on_a_gpu.py",
    "tests/methods/test_recordings.py",
    "tests/losses/test_directional_on_a_gpu.py",
)


@dataclass(frozen=True)
class Part:
    """Arguments of Python, and the seconds that they may take."""

    name: str
    arguments: tuple[str, ...]
    seconds: float


def parts(tiny: bool) -> Iterator[Part]:
    """Yield what is measured, the most important first."""
    small = ("--tiny",) if tiny else ()
    step = (*small, "--steps", "1") if tiny else ()
    tests = ("--collect-only",) if tiny else ()
    for form in ("bf16", "plain"):
        for recipe in ("dcc", "cmb", "supervised"):
            yield Part(f"steps-{recipe}-{form}", ("-m", "benchmarks.steps", recipe, form, *step), 75)
    yield Part("tests", ("-m", "pytest", "-q", *tests, *TESTS), 150)
    for recipe in ("dcc", "cmb"):
        yield Part(f"steps-{recipe}-without", ("-m", "benchmarks.steps", recipe, "without", *step), 75)
    if not tiny:
        for recipe in ("dcc", "cmb", "supervised"):
            yield Part(f"steps-{recipe}-graph", ("-m", "benchmarks.steps", recipe, "graph"), 75)
        yield Part("losses", ("-m", "benchmarks.losses", "--device", "cuda"), 120)
    images = ("--images", "4") if tiny else ()
    yield Part("scoring", ("-m", "benchmarks.scoring", *small, *images), 75)
    if tiny:
        return  # compiling takes minutes on a CPU
    for recipe in ("dcc", "cmb", "supervised"):
        yield Part(f"steps-{recipe}-compiled", ("-m", "benchmarks.steps", recipe, "compiled"), 120)
    yield Part("reading", ("-m", "benchmarks.data", "--workers", "4", "8", "16", "--repeats", "1"), 90)


def measure(part: Part, out: Path, until: float) -> None:
    """Run a part, and keep its output; one that failed or was cut off is measured again by the next start."""
    seconds = min(part.seconds, until - time.monotonic())
    if (out / f"{part.name}.txt").exists() or seconds < part.seconds / 2:
        return
    print(f"{part.name}: at most {seconds:.0f} s", flush=True)
    kept = out / f"{part.name}.partial"
    with kept.open("w") as file:
        try:
            command = [sys.executable, *part.arguments]
            done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=seconds)
        except subprocess.TimeoutExpired:
            print(f"{part.name}: cut off", flush=True)
            return
    if done.returncode == 0:
        kept.rename(kept.with_suffix(".txt"))
    print(f"{part.name}: exit status {done.returncode}", flush=True)


def table(out: Path) -> str:
    """Return the steps that were measured as a Markdown table, each recipe's beside its plain form."""
    rows = [json.loads(file.read_text().splitlines()[-1]) for file in sorted(out.glob("steps-*.txt"))
            if file.read_text().strip().endswith("}")]  # fmt: skip
    plain = {row["recipe"]: row["ms"] for row in rows if row["form"] == "plain"}
    lines = [
        "| recipe | form | ms a step | host, ms | kernels, ms (number) | images/s | peak, MiB | x plain |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        kernels = f"{row['kernel_ms']} ({row['kernels']:,})" if "kernels" in row else ""
        faster = f"{plain[row['recipe']] / row['ms']:.2f}" if row["recipe"] in plain else ""
        cells = (row["recipe"], row["form"], row["ms"], row["host_ms"], kernels, row["images_per_s"])
        lines.append("| " + " | ".join(map(str, (*cells, row.get("peak_mib", ""), faster))) + " |")
    return "\n".join(lines) + "\n"


def train(out: Path, until: float, lanes: int) -> None:
    """Train and score runs of the grid until time is up, ``lanes`` of them side by side."""
    grid = parameters.load().grids[GRID]
    runs = sorted(grid.runs(), key=lambda run: run.seed)
    kept = [place for run in runs for place in (run.checkpoints, run.artefacts, run.metrics.parent)]
    for place in kept:
        if (out / "grid" / place).exists() and not place.exists():
            shutil.copytree(out / "grid" / place, place)
    waiting = iter([run for run in runs if not run.metrics.exists()])
    subprocess.run([sys.executable, "pipeline/download.py", "camvid"], check=True)
    lock = threading.Lock()

    def lane(place: int) -> None:
        with tempfile.TemporaryDirectory() as own:  # a lane claims the GPU by itself
            while until - time.monotonic() > 2 * TO_SAVE:
                with lock:
                    run = next(waiting, None)
                if run is None or not trained(run, {**os.environ, "TMPDIR": own}, until):
                    return

    threads = [threading.Thread(target=lane, args=(place,)) for place in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in kept:
        if place.exists():
            shutil.copytree(place, out / "grid" / place, dirs_exist_ok=True)


def trained(run: Run, environment: dict[str, str], until: float) -> bool:
    """Split, train and score a run; return whether it has its record. One without time saves a checkpoint."""
    for script, names in (
        ("split", (run.split, str(run.seed))),
        ("train", tuple(str(run).split("/"))),
        ("evaluate", tuple(str(run).split("/"))),
    ):
        command = [sys.executable, f"pipeline/{script}.py", *names]
        with subprocess.Popen(command, env=environment) as stage:
            try:
                stage.wait(max(1.0, until - TO_SAVE - time.monotonic()))
            except subprocess.TimeoutExpired:
                stage.send_signal(signal.SIGTERM)
        if stage.returncode != 0:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lanes", type=int, default=8, help="runs of the grid side by side; 0: none")
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    arguments.out.mkdir(parents=True, exist_ok=True)
    for part in parts(arguments.tiny):
        measure(part, arguments.out, until)
        (arguments.out / "steps.md").write_text(table(arguments.out))
    if arguments.lanes and not arguments.tiny:
        train(arguments.out, until, arguments.lanes)
    print((arguments.out / "steps.md").read_text())


if __name__ == "__main__":
    main()
