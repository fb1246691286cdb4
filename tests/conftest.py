import gc
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from semiseg.training import device
from tests import miniature

device.without_avx512()  # as every run on a CPU, here before the first test has torch compute


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--recordings", help="folder of recordings for tests/methods/test_recordings.py")


def pytest_sessionstart() -> None:
    torch.set_num_threads(1)  # a forked process cannot compute with threads that its parent has started


def pytest_collection() -> None:
    """Collect the tests without looking for garbage, in a quarter less time."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest, so that no process waits for another at the end."""
    items.sort(key=lambda item: "slow" not in item.path.parts)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test begins with the same random numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_handler_is_left() -> Iterator[None]:
    """A run that was told to end keeps its handler of SIGTERM, because its process ends; this one goes on."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def torch_as_in_a_run() -> Iterator[None]:
    """Torch computes as in a run on the CPU; a stage that sets this for its process changes no later test."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.fixture
def mini_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch_as_in_a_run: None) -> Path:
    """The working directory is a miniature project."""
    monkeypatch.chdir(tmp_path)
    miniature.create(tmp_path)
    return tmp_path


@pytest.fixture
def written_methods(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The methods that were written for the tests, as if they lay in semiseg/methods/."""
    for name, module in miniature.WRITTEN.items():
        monkeypatch.setitem(sys.modules, f"semiseg.methods.{name}", module)
    return list(miniature.WRITTEN)
