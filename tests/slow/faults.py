"""What the tests of faults share: a run, faults at one of its steps, and comparisons."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from semiseg.methods import supervised
from semiseg.training import checkpoint
from tests import miniature

RUN = miniature.run("supervised")
NAMES = (RUN.recipe, RUN.split, RUN.seed)


def train(**protocol: Any) -> dict[str, Any]:
    """Train RUN in this process as evaluation leaves it, and return what its model.pt holds."""
    model = miniature.train(miniature.config(**protocol))
    checkpoint.forget(RUN.checkpoints)
    return model


def edit(old: str, new: str) -> None:
    """Replace ``old``, which must be there, in params.yaml."""
    text = Path("params.yaml").read_text()
    assert old in text
    Path("params.yaml").write_text(text.replace(old, new))


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two model.pt hold the same networks, to the last bit."""
    return one["best_step"] == other["best_step"] and all(
        torch.equal(tensor, other[moment][network][key])
        for moment in ("last", "best")
        for network, tensors in one[moment].items()
        for key, tensor in tensors.items()
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
