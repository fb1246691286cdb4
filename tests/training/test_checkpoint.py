"""Checkpoints: whole or not there, the one before kept, and no damage taken for weights."""

import dataclasses
import os
import random
from pathlib import Path

import pytest
import torch

from semiseg.base.errors import UserError
from semiseg.training import checkpoint
from semiseg.training.checkpoint import Checkpoint, Identity

OURS = Identity(config_sha256="c", data_sha256="d", labelled_sha256="l")


def state(step: int, identity: Identity = OURS) -> Checkpoint:
    return dataclasses.replace(
        Checkpoint.new(identity, "2026-01-31T12:00:00Z"),
        step=step,
        method={"w": torch.arange(200.0) + step, "n": torch.tensor(step)},
        history=[{"step": 1.0}],
        unwritten=[{"loss": 2.0}],
        best_miou=0.5,
        best_step=1,
        seconds=1.5,
    )


def is_state(found: Checkpoint, step: int) -> bool:
    expected = state(step)
    tensors = all(torch.equal(found.method[key], value) for key, value in expected.method.items())
    plain = [{**vars(each), "method": list(each.method)} for each in (found, expected)]
    return tensors and plain[0] == plain[1]


def test_the_last_checkpoint_is_read_and_the_one_before_kept(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path, OURS) is None
    for step in (1, 2, 3):
        state(step).save(tmp_path)
        assert is_state(checkpoint.load(tmp_path, OURS), step)
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
    assert is_state(checkpoint.load(tmp_path, OURS), 2)


@pytest.mark.parametrize("present", [("previous.pt", "next.pt"), ("previous.pt",)])
def test_a_kill_between_two_renames_loses_one_checkpoint(tmp_path: Path, present: tuple[str, ...]) -> None:
    for step in (1, 2):
        state(step).save(tmp_path)
    (tmp_path / "last.pt").rename(tmp_path / "previous.pt")
    if "next.pt" in present:
        checkpoint.write(vars(state(3)), tmp_path / "next.pt")
    assert is_state(checkpoint.load(tmp_path, OURS), 2)
    state(3).save(tmp_path)
    assert is_state(checkpoint.load(tmp_path, OURS), 3)
    assert is_state(Checkpoint(**checkpoint.read(tmp_path / "previous.pt")), 2)


def test_a_finished_run_keeps_its_last_one_until_it_is_forgotten(tmp_path: Path) -> None:
    for step in (1, 2):
        state(step).save(tmp_path)
    checkpoint.finish(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["finished.pt"]
    assert is_state(checkpoint.load(tmp_path, OURS), 2)
    checkpoint.finish(tmp_path)  # of a run that was started again
    assert is_state(checkpoint.load(tmp_path, OURS), 2)
    checkpoint.forget(tmp_path)
    assert not tmp_path.exists()
    checkpoint.forget(tmp_path)


def test_forgetting_leaves_a_run_under_way_alone(tmp_path: Path) -> None:
    state(1).save(tmp_path)
    checkpoint.forget(tmp_path)
    assert is_state(checkpoint.load(tmp_path, OURS), 1)


def test_a_finished_runs_damaged_one_is_refused_and_named(tmp_path: Path) -> None:
    state(2).save(tmp_path)
    checkpoint.finish(tmp_path)
    finished = tmp_path / "finished.pt"
    finished.write_bytes(finished.read_bytes()[:-100])
    with pytest.raises(UserError, match=f"^{finished}: .*remove {tmp_path}"):
        checkpoint.load(tmp_path, OURS)
    assert finished.exists()


def test_a_finished_runs_damaged_one_gives_way_to_the_one_before(tmp_path: Path) -> None:
    state(1).save(tmp_path)
    state(2).save(tmp_path)
    (tmp_path / "last.pt").replace(tmp_path / "finished.pt")  # killed before it removed the others
    finished = tmp_path / "finished.pt"
    finished.write_bytes(finished.read_bytes()[:-100])
    assert is_state(checkpoint.load(tmp_path, OURS), 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["broken.pt", "previous.pt"]
    assert is_state(checkpoint.load(tmp_path, OURS), 1)


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
    assert is_state(checkpoint.load(tmp_path, OURS), 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/last.pt: ")
    assert "broken.pt" in line
    assert line.endswith("step 1")
    # the good one is not what the next save throws away
    state(2).save(tmp_path)
    assert is_state(Checkpoint(**checkpoint.read(tmp_path / "previous.pt")), 1)
    assert is_state(checkpoint.load(tmp_path, OURS), 2)
    assert capsys.readouterr().err == ""
    damage(tmp_path / "last.pt", how)
    damage(tmp_path / "previous.pt", "truncated")
    with pytest.raises(UserError, match=rf"last\.pt: .*previous\.pt: .*remove {tmp_path} "):
        checkpoint.load(tmp_path, OURS)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize(
    ("name", "named"),
    [("config_sha256", "params.yaml"), ("data_sha256", "images or masks"), ("labelled_sha256", "labelled")],
)
def test_a_checkpoint_of_another_identity_is_refused_with_what_to_do(
    tmp_path: Path, name: str, named: str, finished: bool
) -> None:
    state(1).save(tmp_path)
    state(2, dataclasses.replace(OURS, **{name: "theirs"})).save(tmp_path)
    if finished:
        checkpoint.finish(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UserError, match=rf"^{tmp_path}/\w+\.pt: .*{named}.*remove {tmp_path} ") as refusal:
        checkpoint.load(tmp_path, OURS)
    assert "\n" not in str(refusal.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_identity_tells_what_differs_and_needs_all_three() -> None:
    assert OURS.difference(vars(OURS)) is None
    for name in vars(OURS):
        assert OURS.difference({**vars(OURS), name: "theirs"})
        assert OURS.difference({key: value for key, value in vars(OURS).items() if key != name})


class Malice:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("taken",)


def test_a_checkpoint_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"config_sha256": Malice()}, "last.pt")
    with pytest.raises(UserError, match=r"last\.pt: "):
        checkpoint.load(Path(), OURS)
    assert not Path("taken").exists()
