"""A run of several processes as a user starts it, with two made-up GPUs and gloo on the CPU."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from semiseg.base import parameters
from semiseg.base.errors import EXIT_TRY_AGAIN
from semiseg.training import checkpoint
from tests import miniature, project
from tests.slow.faults import RUN, same

LONG = 100_000  # steps


@contextmanager
def start(folder: Path) -> "Iterator[subprocess.Popen[str]]":
    """Start the run, and end it if the test fails."""
    with subprocess.Popen(
        [sys.executable, miniature.PIPELINE / "train.py", *str(RUN).split("/")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "0,1", "SEMISEG_DEVICE": "cpu", "TMPDIR": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def step_saved() -> int:
    try:
        return torch.load(RUN.checkpoints / "last.pt", weights_only=True)["step"]
    except FileNotFoundError:  # none yet, or the next one is taking its place
        return 0


def wait_for_step(process: "subprocess.Popen[str]", step: int) -> None:
    while step_saved() < step:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.2)


def test_a_dead_process_ends_the_run_and_the_next_start_goes_on(mini_project: Path) -> None:
    project.edit(Path("params.yaml"), "    seeds:", "    gpus: 2\n    seeds:")
    project.edit(Path("params.yaml"), "steps: 6", f"steps: {LONG}")
    project.edit(Path("params.yaml"), "validate_every: 3", f"validate_every: {LONG}")
    project.edit(Path("params.yaml"), "workers: 0", "workers: 1")
    with start(mini_project) as process:
        wait_for_step(process, 2)
        _, second = children(process.pid)
        os.kill(second, signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    (line,) = [each for each in said.splitlines() if each.startswith("error: ")]
    assert re.match(rf"error: {RUN}: .*\d of 2.*SIGKILL", line)
    assert "Traceback" not in said
    assert process.returncode == EXIT_TRY_AGAIN
    reached = step_saved()
    assert reached >= 2

    with start(mini_project) as process:
        wait_for_step(process, reached + 2)
        for _ in range(4):  # asking again must not end it sooner
            process.send_signal(signal.SIGTERM)
            time.sleep(0.05)
        _, said = process.communicate(timeout=120)
    assert re.match(rf"error: {RUN}: .*SIGTERM", said.splitlines()[-1])
    assert "Traceback" not in said
    assert process.returncode == EXIT_TRY_AGAIN
    assert step_saved() > reached
    assert not (RUN.artefacts / "model.pt").exists()
    assert parameters.load().gpus(RUN) == 2


def ended(process: "subprocess.Popen[str]") -> str:
    """Wait for the end, and return its one line."""
    _, said = process.communicate(timeout=240)
    assert "Traceback" not in said, said
    (line,) = [each for each in said.splitlines() if each.startswith("error: ")]
    return line


def to_its_end(folder: Path) -> dict:
    with start(folder) as process:
        _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    checkpoint.forget(RUN.checkpoints)  # as evaluation does
    return checkpoint.read(RUN.artefacts / "model.pt")


def test_if_one_process_cannot_go_on_all_save_and_its_own_line_is_heard(mini_project: Path) -> None:
    for old, new in (
        ("    seeds:", "    gpus: 2\n    seeds:"),
        ("steps: 6", "steps: 30"),
        ("validate_every: 3", "validate_every: 15"),
        ("checkpoint_minutes: 0", "checkpoint_minutes: 60"),
        ("workers: 0", "workers: 1"),
    ):
        project.edit(Path("params.yaml"), old, new)
    whole = to_its_end(mini_project)
    shutil.rmtree(RUN.artefacts)

    with start(mini_project) as process:
        while not (RUN.artefacts / "history.csv").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        _, second = children(process.pid)
        os.kill(children(second)[0], signal.SIGKILL)  # the reader of its labelled images
        assert "read" in ended(process)
    assert process.returncode == 75
    assert 2 <= step_saved() < 30

    image = Path("data/mini/JPEGImages/val_0001.jpg")  # the second process's share
    content = image.read_bytes()
    image.unlink()
    with start(mini_project) as process:
        assert ended(process).startswith(f"error: {image}: ")
    assert process.returncode == 2
    assert step_saved() in (15, 30)
    image.write_bytes(content)
    assert same(to_its_end(mini_project), whole)


def test_a_process_does_not_outlive_the_one_that_started_it(tmp_path: Path) -> None:
    child = (
        "import os, time\n"
        "from semiseg.training import launch\n"
        "with launch.one_of_several():\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent],
        env={**os.environ, "PYTHONPATH": str(project.ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
