"""Provoked faults of disk and readers, and signals, on real stages: one line and the right status."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from semiseg.base import locks
from semiseg.base.errors import INTERRUPTED
from semiseg.training import checkpoint
from tests import miniature, processes
from tests.kill_often import Ending, ending
from tests.slow.faults import NAMES, RUN, edit


@pytest.fixture
def evaluated(mini_project: Path) -> Path:
    """The miniature project with one run trained and evaluated."""
    to_its_end()
    return mini_project


@pytest.mark.parametrize(
    ("script", "arguments", "file_size", "named", "gone"),
    [
        ("train", NAMES, 4000, f"{RUN.checkpoints}/next.pt", RUN.artefacts / "model.pt"),
        (
            "train",
            NAMES,
            300,
            f"({RUN.artefacts}/history.csv|the working folder)",
            RUN.artefacts / "model.pt",
        ),
        ("evaluate", NAMES, 1000, str(RUN.metrics), RUN.metrics),
        ("tables", ("mini",), 150, "results/tables/mini.csv", None),
    ],
)
def test_a_disk_without_room(
    evaluated: Path, script: str, arguments: tuple, file_size: int, named: str, gone: Path | None
) -> None:
    if "history" in named:  # is written before the first checkpoint
        edit("checkpoint_minutes: 0", "checkpoint_minutes: 60")
    if gone is not None:
        gone.unlink()
    before = set(evaluated.rglob("*"))
    status, stage = processes.run(script, *arguments, file_size=file_size, tiny=True)
    assert status == 2, stage.said()
    assert re.match(rf"error: {named}: File too large", stage.error())
    new = [path for path in set(evaluated.rglob("*")) - before if path.is_file()]
    assert not [path for path in new if path.suffix in (".pt", ".partial", ".json", ".md", ".tex")], new
    assert processes.run(script, *arguments, tiny=True)[0] == 0


def test_read_only_results(evaluated: Path) -> None:
    whole = RUN.metrics.read_bytes()
    folders = [Path("results"), *(path for path in Path("results").rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    for script, arguments in (("tables", ("mini",)), ("report", ("mini",))):
        done = subprocess.run(
            [sys.executable, miniature.PIPELINE / f"{script}.py", *arguments],
            capture_output=True,
            text=True,
            preexec_fn=obey_modes,
        )
        assert done.returncode == 2, done.stderr
        assert re.search(r"^error: results/.*: Permission denied", done.stderr, re.M)
        assert "Traceback" not in done.stderr
    for folder in folders:
        folder.chmod(0o755)
    assert RUN.metrics.read_bytes() == whole
    assert processes.run("tables", "mini")[0] == 0


def obey_modes() -> None:
    """Give up root's right to write into read-only folders, before the stage is loaded."""
    ctypes.CDLL(None).prctl(24, 1)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE; other users have neither


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def expected(mini_project: Path) -> Ending:
    """Set two readers and 30 steps, and return the ending of such a run."""
    edit("workers: 0", "workers: 2")
    edit("steps: 6", "steps: 30")
    edit("validate_every: 3", "validate_every: 30")
    found = to_its_end()
    (RUN.artefacts / "model.pt").unlink()
    (RUN.artefacts / "history.csv").unlink()
    return found


def to_its_end() -> Ending:
    for script in ("train", "evaluate"):
        status, stage = processes.run(script, *NAMES, tiny=True)
        assert status == 0, stage.said()
    return ending(RUN)


def under_way() -> processes.Stage:
    """Start training, and wait for its first rows of history."""
    stage = processes.start("train", *NAMES, tiny=True)
    stage.wait_for((RUN.artefacts / "history.csv").exists)
    return stage


def test_a_killed_reader(expected: Ending) -> None:
    stage = under_way()
    os.kill(children(stage.pid)[0], signal.SIGKILL)
    assert stage.ended() == 75
    assert "read" in stage.error()
    assert checkpoint.read(RUN.checkpoints / "last.pt")["step"] > 0
    assert expected.differs(to_its_end()) == []


def test_a_network_that_is_gone_before_it_was_evaluated_is_written_again(mini_project: Path) -> None:
    """An engine that takes training and evaluation for one job removes the network."""
    whole = to_its_end()
    assert not RUN.checkpoints.exists()
    assert processes.run("train", *NAMES, tiny=True)[0] == 0
    edit("background: 0", "background: null")
    assert processes.run("evaluate", *NAMES, tiny=True)[0] == 2
    edit("background: null", "background: 0")
    (RUN.artefacts / "model.pt").unlink()
    (RUN.artefacts / "history.csv").unlink()
    status, stage = processes.run("train", *NAMES, tiny=True)
    assert status == 0
    assert stage.said().count(f"{RUN}: ") == 1
    assert "step 6/6" not in stage.said()
    assert processes.run("evaluate", *NAMES, tiny=True)[0] == 0
    assert whole.differs(ending(RUN)) == []
    assert not RUN.checkpoints.exists()


def test_sigterm_again_and_again_leaves_the_status(mini_project: Path) -> None:
    """In a process of its own, because the end of Python is a part of it."""
    edit("steps: 6", "steps: 3000")
    with subprocess.Popen(
        [sys.executable, miniature.PIPELINE / "train.py", *map(str, NAMES)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    ) as process:
        while not (RUN.artefacts / "history.csv").exists():
            assert process.poll() is None
            time.sleep(0.01)
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(0.005)
        assert process.stderr is not None
        said = process.stderr.read()
    assert process.returncode == 75, said
    assert re.match(rf"error: {RUN}: .* step \d+", said.splitlines()[-1])
    assert checkpoint.read(RUN.checkpoints / "last.pt")["step"] > 0


def test_a_killed_run_takes_its_readers_and_its_lock_with_it(expected: Ending) -> None:
    stage = under_way()
    readers = children(stage.pid)
    assert len(readers) == 2
    stage.process.kill()
    assert stage.ended() == -signal.SIGKILL
    until = time.monotonic() + 2  # torch's own watchdog looks every 5 seconds
    while any(map(is_running, readers)):
        assert time.monotonic() < until
        time.sleep(0.01)
    assert expected.differs(to_its_end()) == []


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_to_the_run_and_its_readers(expected: Ending, number: signal.Signals, status: int) -> None:
    stage = under_way()
    os.killpg(stage.pid, number)
    assert stage.ended() == status
    assert re.search(rf"^error: {RUN}: .* step \d+", stage.error())
    assert expected.differs(to_its_end()) == []


def test_sigterm_to_all_that_an_engine_has_started_is_not_answered_by_a_new_start(mini_project: Path) -> None:
    edit("steps: 6", "steps: 100000")
    train = f"python {miniature.PIPELINE}/resume.py {miniature.PIPELINE}/train.py {' '.join(map(str, NAMES))}"
    tee = "tee() { trap '' INT TERM; command tee \"$@\"; }"  # as in the Snakefile
    command = f"set -euo pipefail; trap : INT TERM; {tee}; {train} 2>&1 | tee -i log"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(["bash", "-c", command], start_new_session=True, env=environment) as shell:
        while not (RUN.artefacts / "history.csv").exists():
            assert shell.poll() is None
            time.sleep(0.05)
        os.killpg(shell.pid, signal.SIGTERM)
    assert shell.returncode == 75
    assert checkpoint.read(RUN.checkpoints / "last.pt")["step"] > 0
    assert "ended with 75" not in Path("log").read_text()
    with locks.held(RUN):
        pass


def test_a_log_without_a_reader_costs_nothing(mini_project: Path) -> None:
    """A terminal's ctrl-C ends the reader of the log, too."""
    edit("steps: 6", "steps: 100000")
    command = f"set -o pipefail; python {miniature.PIPELINE}/train.py {' '.join(map(str, NAMES))} 2>&1 | cat"
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
    }
    with subprocess.Popen(["bash", "-c", command], start_new_session=True, env=environment) as shell:
        while not (RUN.artefacts / "history.csv").exists():
            assert shell.poll() is None
            time.sleep(0.05)
        os.killpg(shell.pid, signal.SIGINT)
    assert shell.returncode in (130, -signal.SIGINT)
    assert checkpoint.read(RUN.checkpoints / "last.pt")["step"] > 0


@pytest.mark.parametrize(
    ("script", "arguments", "file"),
    [
        ("check", (), "params.yaml"),
        ("download", ("mini",), "data/mini/manifest.json"),
        ("split", ("mini-1_4", 0), "data/mini/manifest.json"),
        ("train", NAMES, "data/splits/mini-1_4/0/labelled.txt"),
        ("evaluate", NAMES, "data/splits/mini-1_4/0/labelled.txt"),
        ("tables", ("mini",), str(RUN.metrics)),
        ("report", ("mini",), str(RUN.metrics)),
    ],
)
def test_ctrl_c_at_every_stage(mini_project: Path, script: str, arguments: tuple, file: str) -> None:
    """Each is interrupted while it waits for a file that never arrives."""
    path = Path(file)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    before = {each for each in mini_project.rglob("*") if each.is_file()}
    stage = processes.start(script, *arguments)
    opened: list[int] = []
    stage.wait_for(lambda: opened.extend(opened_for_writing(path)) or bool(opened))
    time.sleep(0.1)
    os.kill(stage.pid, signal.SIGINT)
    assert stage.ended() == 130
    os.close(opened[0])
    assert stage.error() == f"error: {INTERRUPTED}"
    after = {each for each in mini_project.rglob("*") if each.is_file() and not each.name.endswith(".said")}
    assert {each.name for each in after - before} <= {".mini.lock", "supervised--mini-1_4--0.lock"}


@pytest.mark.parametrize(
    ("script", "arguments", "library"),
    [
        ("check", (), "libtorch_cpu"),
        ("train", NAMES, "libtorch_cpu"),
        ("evaluate", NAMES, "libtorch_cpu"),
        ("tables", ("mini",), "pandas/_libs"),
        ("report", ("mini",), "pandas/_libs"),
        ("plan", ("mini",), "numpy/_core"),
    ],
)
def test_ctrl_c_while_a_stage_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, arguments: tuple, library: str
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("params.yaml")  # so that it does not end before it is told to
    command = [sys.executable, miniature.PIPELINE / f"{script}.py", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as stage:
        try:
            until = time.monotonic() + 60
            while library not in Path(f"/proc/{stage.pid}/maps").read_text():
                assert stage.poll() is None
                assert time.monotonic() < until, f"{script} reads params.yaml before it loads {library}"
                time.sleep(0.001)
            stage.send_signal(signal.SIGINT)
            _, said = stage.communicate(timeout=60)
        finally:
            stage.kill()  # else it waits for params.yaml for ever
    assert (stage.returncode, said) == (130, f"error: {INTERRUPTED}\n")


def test_ctrl_c_while_a_module_is_loaded_that_swallows_it(tmp_path: Path) -> None:
    (tmp_path / "swallows.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )
    code = "from semiseg.base.errors import one_line_errors\nwith one_line_errors():\n    import swallows"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{miniature.PIPELINE.parent}"}
    stage = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (stage.returncode, stage.stderr) == (130, f"error: {INTERRUPTED}\n")


def opened_for_writing(fifo: Path) -> list[int]:
    """Return a file number as soon as another process reads."""
    try:
        return [os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)]
    except OSError:
        return []
