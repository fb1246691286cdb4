import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests import miniature


@pytest.fixture(autouse=True)
def no_handler_is_left() -> Iterator[None]:
    """A run that has had SIGTERM keeps its handler, for it ends; here its process goes on."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def mini_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory is a miniature project, and torch computes as a run on the CPU does."""
    monkeypatch.chdir(tmp_path)
    miniature.create(tmp_path)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    yield tmp_path
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)
