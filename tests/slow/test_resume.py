"""pipeline/resume.py starts a stage again if it may go on, and never once it was told to end."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import miniature, project

# A stage that notes each start, and ends with the next of the given statuses, or by a signal.
STAGE = """
import os, signal, sys, time
from pathlib import Path

notes, ends = Path(sys.argv[1]), sys.argv[2].split(",")


def end(number, frame):
    signal.signal(number, signal.SIG_IGN)  # as in a real stage: another may come while Python ends
    sys.exit(75 if number == signal.SIGTERM else 130)


for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, end)
with notes.open("a") as file:
    file.write(f"{os.getpid()}\\n")
told = ends[len(notes.read_text().splitlines()) - 1]
while told == "wait":
    time.sleep(0.05)  # a signal that comes just before a long sleep would be answered after it
if told == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(told))
"""


def start(folder: Path, ends: str) -> "subprocess.Popen[str]":
    stage = folder / "stage.py"
    stage.write_text(STAGE)
    return subprocess.Popen(
        [sys.executable, miniature.PIPELINE / "resume.py", str(stage), str(folder / "notes"), ends],
        env={**os.environ, "PYTHONPATH": str(project.ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def starts(folder: Path) -> list[int]:
    """Return the ids of all processes of the stage."""
    notes = folder / "notes"
    return [int(line) for line in notes.read_text().splitlines()] if notes.exists() else []


def wait_for_starts(folder: Path, count: int) -> int:
    """Wait until the stage has started ``count`` times, and return its last process."""
    while len(starts(folder)) < count:
        time.sleep(0.01)
    return starts(folder)[-1]


@pytest.mark.parametrize(
    ("ends", "status", "count"),
    [
        ("0", 0, 1),
        ("75,75,0", 0, 3),
        ("75,3", 3, 2),
        ("75,75,75,75,75,0", 75, 5),
        ("1", 1, 1),
        ("2", 2, 1),
        ("3", 3, 1),
        ("130", 130, 1),
        ("killed", 137, 1),
    ],
)
def test_only_a_stage_that_may_go_on_is_started_again_and_not_for_ever(
    tmp_path: Path, ends: str, status: int, count: int
) -> None:
    process = start(tmp_path, ends)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, len(starts(tmp_path))) == (status, count)
    lines = said.splitlines()
    assert len(lines) == count - 1
    for start_again, line in enumerate(lines, start=2):
        assert line.startswith(f"{tmp_path}/stage.py {tmp_path}/notes {ends}: ")
        assert re.search(rf"\b75\b.*\b{start_again} of at most 5", line)


def test_a_stage_that_alone_was_told_to_end_is_started_again(tmp_path: Path) -> None:
    process = start(tmp_path, "wait,0")
    os.kill(wait_for_starts(tmp_path, 1), signal.SIGTERM)
    process.communicate(timeout=60)
    assert (process.returncode, len(starts(tmp_path))) == (0, 2)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_group_that_was_told_to_end_is_not_started_again(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    process = start(tmp_path, "75,wait,0")
    wait_for_starts(tmp_path, 2)
    os.killpg(process.pid, number)
    process.communicate(timeout=60)
    assert (process.returncode, len(starts(tmp_path))) == (status, 2)


def test_sigterm_is_handed_on(tmp_path: Path) -> None:
    process = start(tmp_path, "wait,0")
    wait_for_starts(tmp_path, 1)
    process.terminate()
    process.communicate(timeout=60)
    assert (process.returncode, len(starts(tmp_path))) == (75, 1)


def test_a_stage_does_not_outlive_its_parent(tmp_path: Path) -> None:
    process = start(tmp_path, "wait,0")
    stage = Path("/proc", str(wait_for_starts(tmp_path, 1)))
    process.kill()
    process.communicate(timeout=60)
    until = time.monotonic() + 30
    while stage.exists() and (stage / "cmdline").read_bytes():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert len(starts(tmp_path)) == 1
