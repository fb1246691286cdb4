"""What the tests of faults share: training in this process, faults at a given step, and comparisons."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from semiseg.base import parameters, paths
from semiseg.data import prepared, splits
from semiseg.methods import supervised
from semiseg.training import checkpoint, loop

RUN = paths.Run("supervised", "mini-1_4", 0)
NAMES = ("supervised", "mini-1_4", 0)
WHERE = str(RUN.checkpoints)


def train(run: paths.Run = RUN, **protocol: object) -> dict:
    """Train in this process, and forget what evaluation would; what is in model.pt."""
    of_run = parameters.load().run(run)
    of_run = replace(of_run, protocol=replace(of_run.protocol, **protocol))
    dataset = prepared.open_dataset(of_run.split.dataset, of_run.dataset)
    loop.train(of_run, dataset, splits.read(run.split, run.seed), torch.device("cpu"))
    checkpoint.forget(run.checkpoints)
    return checkpoint.read(run.artefacts / "model.pt")


def edit(old: str, new: str) -> None:
    """Replace ``old``, which must be there, in params.yaml."""
    text = Path("params.yaml").read_text()
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new))


def same(one: dict, other: dict) -> bool:
    """Whether two model.pt hold the same weights."""
    return one["best_step"] == other["best_step"] and all(
        torch.equal(one[part]["student"][name], other[part]["student"][name])
        for part in ("last", "best")
        for name in one[part]["student"]
    )


@contextmanager
def during_step(step: int, do: Callable[[], None]) -> Iterator[None]:
    """Do something once, as soon as the loss of step ``step`` has been computed."""
    real, done = supervised.Method.training_step, []

    def training_step(self: supervised.Method, labelled: object, unlabelled: object, at: int) -> object:
        result = real(self, labelled, unlabelled, at)
        if at == step and not done:
            done.append(at)
            do()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervised.Method, "training_step", training_step)
        yield


def interrupt() -> None:
    raise KeyboardInterrupt
