"""A run of several processes as a person starts it, with two made-up GPUs and gloo on the CPU."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from semiseg import config, engine, paths
from tests import miniature, project

RUN = paths.Run("supervised", "mini-1_4", 0)
LONG = 100_000  # steps


def start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, miniature.PIPELINE / "train.py", *str(RUN).split("/")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "0,1", "SEMISEG_DEVICE": "cpu", "TMPDIR": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def children(process: "subprocess.Popen[str]") -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(each) for each in listed.split()]


def step_saved() -> int:
    saved = RUN.checkpoints / "last.pt"
    return torch.load(saved, weights_only=True)["step"] if saved.exists() else 0


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
        _, second = children(process)
        os.kill(second, signal.SIGKILL)
        _, said = process.communicate(timeout=120)
    (line,) = [each for each in said.splitlines() if each.startswith("error: ")]
    assert f"error: {RUN}: process " in line
    assert "of 2 was killed (SIGKILL); start the run again" in line
    assert "Traceback" not in said
    assert process.returncode == engine.Interrupted.exit_status
    reached = step_saved()
    assert reached >= 2

    with start(mini_project) as process:
        wait_for_step(process, reached + 2)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert f"error: {RUN}: stopped by SIGTERM; start it again" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert process.returncode == engine.Interrupted.exit_status
    assert step_saved() > reached
    assert not (RUN.artefacts / "model.pt").exists()
    assert config.load().gpus(RUN) == 2


def test_a_process_does_not_outlive_the_one_that_started_it(tmp_path: Path) -> None:
    child = (
        "import os, time\n"
        "from semiseg import launch\n"
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
