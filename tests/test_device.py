"""A pool of fake device ids, shared by real processes."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from semiseg import device

HOLD = """
import os, sys, time
from semiseg import device
with device.claimed(1):
    gpu = os.environ["CUDA_VISIBLE_DEVICES"]
    print(gpu, time.monotonic(), flush=True)
    time.sleep(float(sys.argv[1]))
    print(gpu, time.monotonic(), flush=True)
"""


def start(pool: Path, ids: str, seconds: float) -> "subprocess.Popen[str]":
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ids, "TMPDIR": str(pool)}
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(seconds)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_runs_never_share_a_device(tmp_path: Path) -> None:
    running = [start(tmp_path, "4,7", 0.5) for _ in range(4)]
    spans: dict[str, list[tuple[float, float]]] = {}
    for process in running:
        output, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        (gpu, began), (_, ended) = (line.split() for line in output.splitlines())
        spans.setdefault(gpu, []).append((float(began), float(ended)))
    assert spans.keys() == {"4", "7"}
    for each in spans.values():
        ordered = sorted(each)
        for (_, ended), (began, _) in itertools.pairwise(ordered):
            assert ended <= began


def test_a_killed_run_frees_its_device(tmp_path: Path) -> None:
    first = start(tmp_path, "3", 600)
    assert first.stdout is not None
    first.stdout.readline()
    second = start(tmp_path, "3", 0)
    assert second.stderr is not None
    assert "every GPU (3) is held by another run: waiting" in second.stderr.readline()
    first.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    output, _ = second.communicate(timeout=60)
    assert second.returncode == 0
    assert float(output.split()[1]) - killed < 10
    first.communicate()


def test_without_a_gpu_it_says_that_it_uses_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with device.claimed(1) as chosen:
            assert chosen == torch.device("cpu")
            assert torch.get_num_threads() == 1
            assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    assert capsys.readouterr().err == "no GPU on this machine: running on the CPU\n"


def test_the_ids_come_from_the_environment_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-1a")
    assert device.visible_gpus() == ["2", "GPU-1a"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert device.visible_gpus() == []


def test_the_ids_come_from_nvidia_smi_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    listing = tmp_path / "nvidia-smi"
    listing.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    listing.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.visible_gpus() == ["0", "1"]
    listing.unlink()
    assert device.visible_gpus() == []
