"""A run is held by one process, and is free as soon as that ends, however it ends."""

import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from semiseg.base import locks
from semiseg.base.errors import UserError, one_line_errors
from semiseg.base.paths import Run

RUN = Run("supervised", "mini-1_4", 0)

HOLD = """
import sys, time
from semiseg.base import locks
from semiseg.base.paths import Run
with locks.held(Run("supervised", "mini-1_4", 0)):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_held_run_names_its_process_and_is_free_when_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UserError, match=rf"^{RUN}: .*\b{process.pid}\b"), locks.held(RUN):
            pass
        process.kill()
    killed = time.monotonic()
    with locks.held(RUN):
        assert time.monotonic() - killed < 1


NOBODY = 65534 if os.getuid() == 0 else os.getuid()  # only root can start another user's process


def ended_as(user: int) -> tuple[int, str]:
    """Hold the run for a moment in a process of ``user``; return its exit status and output."""
    reading, writing = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=hold_as, args=(user, writing))
    process.start()
    os.close(writing)
    process.join(60)
    assert process.exitcode is not None
    with os.fdopen(reading) as said:
        return process.exitcode, said.read()


def hold_as(user: int, output: int) -> None:
    sys.stderr = os.fdopen(output, "w")
    if user != os.getuid():
        os.setuid(user)  # the group stays: it is the checkout's
    with one_line_errors(), locks.held(RUN):
        pass


def test_users_of_one_checkout_take_over_what_another_users_killed_run_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tempfile.TemporaryDirectory() as place:
        monkeypatch.chdir(place)
        Path(place).chmod(0o2775)
        umask = os.umask(0o002)
        try:
            with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                process.stdout.readline()
                status, said = ended_as(NOBODY)
                assert status == 2
                assert re.fullmatch(rf"error: {RUN}: .*\b{process.pid}\b.*\n", said)
                process.kill()
            assert Path("checkpoints/locks/supervised--mini-1_4--0.pid").exists()
            assert ended_as(NOBODY) == (0, "")
        finally:
            os.umask(umask)


def test_a_lock_that_cannot_be_opened_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as place:
        monkeypatch.chdir(place)
        Path(place).chmod(0o755)
        folder = Path("checkpoints", "locks").absolute()
        folder.mkdir(parents=True)
        folder.chmod(0o555)
        status, said = ended_as(NOBODY)
        assert (status, said.count("\n")) == (2, 1)
        assert said.startswith(f"error: {folder}/supervised--mini-1_4--0.lock: Permission denied")
