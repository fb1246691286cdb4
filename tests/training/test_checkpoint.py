"""Checkpoints: whole or not there, the one before kept, and no damage taken for weights."""

import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch

from semiseg.base import paths
from semiseg.base.errors import UserError, one_line_errors
from semiseg.training import checkpoint
from semiseg.training.checkpoint import Checkpoint

RUN = paths.Run("supervised", "mini-1_4", 0)


def state(step: int, config_sha256: str = "ours") -> Checkpoint:
    weights = {"w": torch.arange(200.0) + step, "n": torch.tensor(step)}
    return Checkpoint(
        config_sha256, step, weights, {}, [{"step": 1.0}], 0.5, 1, {}, "2026", 1.5, [{"loss": 2.0}]
    )


def is_state(found: Checkpoint, step: int) -> bool:
    expected = state(step)
    tensors = all(torch.equal(found.method[key], value) for key, value in expected.method.items())
    plain = [{**vars(each), "method": list(each.method)} for each in (found, expected)]
    return tensors and plain[0] == plain[1]


def test_the_last_checkpoint_is_read_and_the_one_before_kept(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, "ours") is None
    for step in (1, 2, 3):
        state(step).save(tmp_path)
        assert is_state(checkpoint.load(tmp_path, "ours"), step)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "previous.pt"]
    assert checkpoint.read(tmp_path / "previous.pt")["step"] == 2


def test_a_save_that_fails_leaves_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state(1).save(tmp_path)
    state(2).save(tmp_path)

    def fail(number: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left on device"):
            state(3).save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "previous.pt"]
    assert is_state(checkpoint.load(tmp_path, "ours"), 2)


@pytest.mark.parametrize("present", [("previous.pt", "next.pt"), ("previous.pt",)])
def test_a_kill_between_two_renames_loses_one_checkpoint(tmp_path: Path, present: tuple[str, ...]) -> None:
    for step in (1, 2):
        state(step).save(tmp_path)
    (tmp_path / "last.pt").rename(tmp_path / "previous.pt")
    if "next.pt" in present:
        checkpoint.write(vars(state(3)), tmp_path / "next.pt")
    assert is_state(checkpoint.load(tmp_path, "ours"), 2)
    state(3).save(tmp_path)
    assert is_state(checkpoint.load(tmp_path, "ours"), 3)
    assert is_state(Checkpoint(**checkpoint.read(tmp_path / "previous.pt")), 2)


def test_a_finished_run_keeps_its_last_one_until_it_is_forgotten(tmp_path: Path) -> None:
    for step in (1, 2):
        state(step).save(tmp_path)
    checkpoint.finish(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["finished.pt"]
    assert is_state(checkpoint.load(tmp_path, "ours"), 2)
    checkpoint.finish(tmp_path)  # of a run that was started again
    assert is_state(checkpoint.load(tmp_path, "ours"), 2)
    checkpoint.forget(tmp_path)
    assert not tmp_path.exists()
    checkpoint.forget(tmp_path)


def test_forgetting_leaves_a_run_under_way_alone(tmp_path: Path) -> None:
    state(1).save(tmp_path)
    checkpoint.forget(tmp_path)
    assert is_state(checkpoint.load(tmp_path, "ours"), 1)


def test_a_finished_run_stands_in_no_other_configuration_s_way(tmp_path: Path) -> None:
    state(2, "theirs").save(tmp_path)
    checkpoint.finish(tmp_path)
    assert checkpoint.load(tmp_path, "ours") is None
    assert not list(tmp_path.iterdir())


def test_a_finished_run_s_damaged_one_is_named_and_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state(2).save(tmp_path)
    checkpoint.finish(tmp_path)
    finished = tmp_path / "finished.pt"
    finished.write_bytes(finished.read_bytes()[:-100])
    assert checkpoint.load(tmp_path, "ours") is None
    assert not finished.exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{finished}: not a readable checkpoint (")


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    checkpoint.write(vars(state(7)), path)
    whole = path.read_bytes()
    draw = random.Random(0)
    noticed = 0
    for place in draw.sample(range(len(whole)), 600):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            found = checkpoint.read(path)
        except ValueError:
            noticed += 1
            continue
        assert is_state(Checkpoint(**found), 7), f"byte {place}"
    path.write_bytes(whole)
    assert noticed > 100
    assert is_state(Checkpoint(**checkpoint.read(path)), 7)
    # and the check is needed: torch itself reads on
    place = whole.index(torch.arange(7.0, 10.0).numpy().tobytes())
    path.write_bytes(whole[:place] + b"\xff" + whole[place + 1 :])
    taken_by_torch = torch.load(path, weights_only=True)
    assert not torch.equal(taken_by_torch["method"]["w"], state(7).method["w"])


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    cut = len(whole) // 2
    path.write_bytes(
        {
            "truncated": whole[:cut],
            "flipped": whole[:cut] + bytes([whole[cut] ^ 1]) + whole[cut + 1 :],
            "empty": b"",
            "zeros": bytes(len(whole)),
        }[how]
    )


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "zeros"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    state(1).save(tmp_path)
    state(2).save(tmp_path)
    damage(tmp_path / "last.pt", how)
    assert is_state(checkpoint.load(tmp_path, "ours"), 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "last.pt: not a readable checkpoint" in line
    assert line.endswith("now broken.pt: going on from the one before it, step 1")
    # the good one is not what the next save throws away
    state(2).save(tmp_path)
    assert is_state(Checkpoint(**checkpoint.read(tmp_path / "previous.pt")), 1)
    assert is_state(checkpoint.load(tmp_path, "ours"), 2)
    assert capsys.readouterr().err == ""
    damage(tmp_path / "last.pt", how)
    damage(tmp_path / "previous.pt", "truncated")
    with pytest.raises(UserError, match=r"last\.pt: not a.*previous\.pt: not a.*to train from the start"):
        checkpoint.load(tmp_path, "ours")


def test_a_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    state(1, "ours").save(tmp_path)
    state(2, "theirs").save(tmp_path)
    with pytest.raises(UserError, match=r"last\.pt: belongs to another configuration"):
        checkpoint.load(tmp_path, "ours")


class Malice:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("taken",)


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"config_sha256": Malice()}, "last.pt")
    with pytest.raises(UserError, match="not a readable checkpoint"):
        checkpoint.load(Path(), "ours")
    assert not Path("taken").exists()


HOLD = """
import sys, time
from semiseg.training import checkpoint
from semiseg.base import paths
with checkpoint.held(paths.Run("supervised", "mini-1_4", 0)):
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
        said = rf"{RUN}: being trained by process {process.pid}; wait for it or stop it"
        with pytest.raises(UserError, match=said), checkpoint.held(RUN):
            pass
        process.kill()
    killed = time.monotonic()
    with checkpoint.held(RUN):
        assert time.monotonic() - killed < 1


NOBODY = 65534 if os.getuid() == 0 else os.getuid()  # only root can start what is another user's


def ended_as(user: int) -> tuple[int, str]:
    """The exit status of a process of ``user`` that holds the run for a moment, and what it says."""
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
        os.setuid(user)  # who keeps his group, the one that the checkout belongs to
    with one_line_errors(), checkpoint.held(RUN):
        pass


def test_users_of_one_checkout_take_over_what_another_s_killed_run_left(
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
                said = f"error: {RUN}: being trained by process {process.pid}; wait for it or stop it\n"
                assert ended_as(NOBODY) == (2, said)
                process.kill()
            assert Path("checkpoints/locks/supervised--mini-1_4--0.pid").exists()
            assert ended_as(NOBODY) == (0, "")
        finally:
            os.umask(umask)


def test_a_lock_that_cannot_be_opened_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as place:
        monkeypatch.chdir(place)
        Path(place).chmod(0o755)
        locks = Path("checkpoints", "locks")
        locks.mkdir(parents=True)
        locks.chmod(0o555)
        lock = locks / "supervised--mini-1_4--0.lock"
        status, line = ended_as(NOBODY)
        assert (status, line.count("\n")) == (2, 1)
        assert line.startswith(
            f"error: {lock.absolute()}: Permission denied; free space or change permissions"
        )
