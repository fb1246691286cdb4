import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from semiseg.base import parallel
from semiseg.base.errors import UserError

MANY = range(parallel.FEW)
SLOW = """
import os, signal, time
from semiseg.base import parallel

def slow(number):
    open(f"{os.getpid()}.pid", "w").close()
    time.sleep(0.05)

if __name__ == "__main__":
    parallel.cores = lambda: 2
    for number, _ in enumerate(parallel.mapped(slow, range(parallel.FEW), "slow")):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def square(number: int) -> int:
    return number * number


def process(number: int) -> int:
    return os.getpid()


def refuse_100(number: int) -> int:
    if number == 100:
        raise UserError("100 is refused")
    return number


def die_at_100(number: int) -> int:
    if number == 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def runs(number: int) -> bool:
    """Return whether such a process exists and has not ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "cores", lambda: 2)


@pytest.mark.parametrize("count", [0, 1, parallel.FEW, parallel.FEW + 37])
def test_results_come_in_the_order_of_their_items(count: int) -> None:
    assert list(parallel.mapped(square, range(count), "square")) == [n * n for n in range(count)]


def test_few_items_are_done_here_and_many_by_other_processes() -> None:
    assert set(parallel.mapped(process, range(5), "few")) == {os.getpid()}
    found = set(parallel.mapped(process, MANY, "many"))
    assert os.getpid() not in found
    assert len(found) <= 2


@pytest.mark.parametrize("items", [range(101), MANY])
def test_an_error_of_an_item_is_raised_here(items: range) -> None:
    with pytest.raises(UserError, match="100 is refused"):
        list(parallel.mapped(refuse_100, items, "refuse"))


def test_a_killed_process_is_said_in_one_line() -> None:
    with pytest.raises(UserError, match="was killed"):
        list(parallel.mapped(die_at_100, MANY, "die"))


def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "slow.py"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    )
    assert done.returncode == -signal.SIGKILL
    numbers = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(numbers) in (1, 2)
    deadline = time.monotonic() + 20
    while any(map(runs, numbers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, numbers))
