"""A pool of fake device ids, shared by real processes."""

import itertools
import multiprocessing
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
import torch

from semiseg.base.errors import UserError
from semiseg.training import device

FORK = multiprocessing.get_context("fork")  # a process each, without importing torch each time

torch.use_deterministic_algorithms(False)  # the first call imports much: now, not in every process


def hold_several(count: int, ids: str, pool: Path, seconds: float, pipe: Connection) -> None:
    """Act as a run on several devices: claim them, say so, work, say so."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": ids}
    tempfile.tempdir = str(pool)
    with device.claimed_together(count):
        gpus, began = os.environ["CUDA_VISIBLE_DEVICES"], time.monotonic()
        pipe.send((gpus, began))
        time.sleep(seconds)
        pipe.send((gpus, time.monotonic()))


def hold(
    ids: str, pool: Path, seconds: float, more: dict[str, str], worker: bool, user: int, pipe: Connection
) -> None:
    """Act as a run: claim a device, say so, work, say so. Files of ``user`` are closed to others."""
    os.setsid()
    os.umask(0o077)
    if user != os.getuid():
        os.setgid(user)
        os.setuid(user)
    os.environ |= {"CUDA_VISIBLE_DEVICES": ids, "SEMISEG_DEVICE": "cpu", **more}
    tempfile.tempdir = str(pool)
    with device.claimed(1):
        if worker and os.fork() == 0:  # a data worker
            time.sleep(600)
        gpu, began = os.environ["CUDA_VISIBLE_DEVICES"], time.monotonic()
        pipe.send((gpu, began))
        time.sleep(seconds)
        pipe.send((gpu, time.monotonic()))


@dataclass
class Holder:
    """A run of its own process."""

    process: ForkProcess
    pipe: Connection

    def says(self) -> tuple[str, float]:
        assert self.pipe.poll(60), "nothing said for a minute"
        said: tuple[str, float] = self.pipe.recv()
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def start(
    pool: Path, ids: str, seconds: float, worker: bool = False, user: int = os.getuid(), **more: str
) -> Holder:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(ids, pool, seconds, more, worker, user, theirs))
    process.start()
    theirs.close()
    return Holder(process, ours)


def start_several(count: int, pool: Path, ids: str, seconds: float) -> Holder:
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold_several, args=(count, ids, pool, seconds, theirs))
    process.start()
    theirs.close()
    return Holder(process, ours)


def spans(running: Iterable[Holder]) -> dict[str, list[tuple[float, float]]]:
    """Return when each device was held, from and to, in seconds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for each in running:
        (gpu, began), (_, ended) = each.says(), each.says()
        found.setdefault(gpu, []).append((began, ended))
        each.process.join()
        assert each.process.exitcode == 0
    return {gpu: sorted(held) for gpu, held in found.items()}


def never_shared(held: list[tuple[float, float]]) -> bool:
    return all(ended <= began for (_, ended), (began, _) in itertools.pairwise(held))


def test_runs_never_share_a_device(tmp_path: Path) -> None:
    held = spans([start(tmp_path, "4,7", 0.5) for _ in range(4)])
    assert held.keys() == {"4", "7"}
    assert all(map(never_shared, held.values()))


def test_runs_on_several_devices_wait_for_each_other_and_never_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "POLL_SECONDS", 0.05)
    two = [start_several(2, tmp_path, "3,5,7", 0.2) for _ in range(4)]
    held = spans([*two, *(start(tmp_path, "3,5,7", 0.1) for _ in range(4))])
    assert all(len(gpus.split(",")) in (1, 2) for gpus in held)
    assert sum(len(each) for gpus, each in held.items() if "," in gpus) == 4
    for gpu in "357":
        assert never_shared(sorted(span for gpus, each in held.items() if gpu in gpus for span in each))


def test_more_devices_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(UserError, match=r"^gpus: 4 .*\(0, 1\)"), device.claimed_together(4):
        pass


def test_a_job_that_slurm_gave_one_device_uses_it_as_it_is(tmp_path: Path) -> None:
    """Confined to its devices, each of two jobs has a GPU 0 of its own: they must not wait for each other."""
    first = start(tmp_path, "0", 600, SLURM_JOB_ID="11")
    assert first.says()[0] == "0"
    assert spans([start(tmp_path, "0", 0, SLURM_JOB_ID="12")]).keys() == {"0"}
    assert first.process.is_alive()
    first.kill()


def test_a_job_that_slurm_gave_several_devices_shares_them_among_its_runs(tmp_path: Path) -> None:
    other = start(tmp_path, "0,1", 600, SLURM_JOB_ID="12")
    assert other.says()[0] == "0"
    held = spans([start(tmp_path, "0,1", 0.5, SLURM_JOB_ID="11") for _ in range(3)])
    assert other.process.is_alive()
    other.kill()
    assert held.keys() == {"0", "1"}, "the first device of another job is not this job's"
    assert all(map(never_shared, held.values()))


NOBODY = 65534 if os.getuid() == 0 else os.getuid()  # only root can start another user's process


@pytest.mark.parametrize("users", [(os.getuid(), NOBODY), (NOBODY, os.getuid())])
def test_users_share_the_devices_of_a_machine(users: tuple[int, int]) -> None:
    with tempfile.TemporaryDirectory() as place:
        pool = Path(place)
        pool.chmod(0o1777)  # as /tmp is
        first = start(pool, "3", 600, user=users[0], PATH="")
        assert first.says()[0] == "3"
        second = start(pool, "3", 0, user=users[1], PATH="")
        assert spans([start(pool, "3,4", 0, user=users[1], PATH="")]).keys() == {"4"}
        assert not second.pipe.poll(1)
        first.kill()
        assert spans([second]).keys() == {"3"}
        (folder,) = pool.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o777
        locks = {lock.name: stat.S_IMODE(lock.stat().st_mode) for lock in folder.iterdir()}
        assert locks == {"3.lock": 0o666, "4.lock": 0o666}


UUIDS = ("GPU-5a1f0c3e-0000-0000-0000-000000000000", "GPU-5b90d2aa-0000-0000-0000-000000000001")


@pytest.fixture
def nvidia_smi(tmp_path: Path) -> Path:
    """Return a folder for PATH in which nvidia-smi lists two GPUs."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    rows = "".join(f"{index}, {uuid}\\n" for index, uuid in enumerate(UUIDS))
    program.write_text(f"#!/bin/sh\n[ \"$1\" = --query-gpu=index,uuid ] && printf '{rows}'\n")
    program.chmod(0o755)
    return program.parent


def test_a_device_of_two_names_is_held_once(tmp_path: Path, nvidia_smi: Path) -> None:
    names = ["0", UUIDS[0], "GPU-5a", "0", "GPU-5a1f0c3e"]
    held = spans([start(tmp_path, name, 0.3, PATH=str(nvidia_smi)) for name in names])
    assert held.keys() == set(names)
    assert never_shared(sorted(span for each in held.values() for span in each))
    first = start(tmp_path, "1", 600, PATH=str(nvidia_smi))
    assert first.says()[0] == "1"
    # A name of no single GPU, or of none that nvidia-smi lists, stands for itself.
    others = ["GPU-5", "MIG-5b90d2aa", "0"]
    assert spans(
        [start(tmp_path, f"{UUIDS[1]},{name}", 0, PATH=str(nvidia_smi)) for name in others]
    ).keys() == {*others}
    first.kill()


def test_a_device_of_two_names_is_not_two(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(nvidia_smi))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"0,{UUIDS[0]}")
    with pytest.raises(UserError, match=r"^gpus: 2 "), device.claimed_together(2):
        pass


def test_an_nvidia_smi_that_fails_is_not_passed_over(
    tmp_path: Path, nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (nvidia_smi / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    monkeypatch.setenv("PATH", str(nvidia_smi))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with device.claimed_together(2):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert capsys.readouterr().err.startswith("nvidia-smi fails (")


def test_a_killed_run_frees_its_device(tmp_path: Path) -> None:
    first = start(tmp_path, "3", 600)
    first.says()
    second = start(tmp_path, "3", 0)
    assert not second.pipe.poll(1)
    first.kill()
    killed = time.monotonic()
    _, claimed = second.says()
    assert 0 <= claimed - killed < 5
    second.process.join()


def test_a_killed_run_frees_its_device_though_its_data_workers_live_on(tmp_path: Path) -> None:
    first = start(tmp_path, "3", 600, worker=True)
    first.says()
    first.kill()
    assert first.process.pid is not None
    try:
        os.killpg(first.process.pid, 0)  # the worker is there
        assert spans([start(tmp_path, "3", 0)]).keys() == {"3"}
        os.killpg(first.process.pid, 0)
    finally:
        os.killpg(first.process.pid, signal.SIGKILL)


def test_a_run_that_waits_says_for_what(tmp_path: Path) -> None:
    code = "from semiseg.training import device\nwith device.claimed(1): pass"
    first = start(tmp_path, "3", 600)
    first.says()
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "3",
        "SEMISEG_DEVICE": "cpu",
        "TMPDIR": str(tmp_path),
    }
    second = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True
    )
    assert second.stderr is not None
    assert "(3)" in second.stderr.readline()
    first.kill()
    _, said = second.communicate(timeout=60)
    assert said.count("\n") == 1
    assert "GPU 3" in said
    assert second.returncode == 0


def test_a_device_that_torch_cannot_use_is_refused(tmp_path: Path) -> None:
    code = (
        "from semiseg.base.errors import one_line_errors\n"
        "from semiseg.training import device\n"
        "with one_line_errors(), device.claimed(1): pass"
    )
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "99", "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"error: GPU 99 .*CUDA_VISIBLE_DEVICES.*\n", done.stderr)


def test_without_a_gpu_the_cpu_is_used_and_said_to_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with device.claimed(1) as chosen:
            assert chosen == torch.device("cpu")
            assert torch.get_num_threads() == 1
            assert torch.are_deterministic_algorithms_enabled()
            assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # indices count as nvidia-smi's
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    assert "CPU" in capsys.readouterr().err


def test_a_stage_computes_without_avx512() -> None:
    code = """if True:
        import os, torch
        from semiseg.evaluation import evaluate, predict, probe
        from semiseg.training import device, loop, pretrain
        with device.claimed(1):
            print(torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA"))
    """
    chosen = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    torch_uses, onednn_may_use = done.stdout.split()
    assert torch_uses != "AVX512"
    assert onednn_may_use == ("AVX2" if torch.cpu._is_avx512_supported() else "None")


def test_the_ids_come_from_the_environment_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-1a")
    assert device.visible_gpus() == ["2", "GPU-1a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert device.visible_gpus() == []


def test_the_ids_come_from_nvidia_smi_otherwise(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(nvidia_smi))
    assert device.visible_gpus() == ["0", "1"]
    listing = nvidia_smi / "nvidia-smi"
    listing.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(UserError, match="nvidia-smi fails"):
        device.visible_gpus()
    listing.unlink()
    assert device.visible_gpus() == []
