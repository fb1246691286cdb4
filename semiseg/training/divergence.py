"""A loss or gradient that is not finite: its step is refused, and its inputs are kept."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from semiseg.base import distributed
from semiseg.base.errors import UserError
from semiseg.base.paths import PretrainingRun, Run
from semiseg.training import checkpoint


class Diverged(UserError):
    """A loss or the gradient is not finite at ``step``, counted from 0."""

    exit_status = 3

    def __init__(self, said: str, step: int) -> None:
        super().__init__(said)
        self.step = step


def explained(
    run: Run | PretrainingRun, config_sha256: str, error: Diverged, inputs: Mapping[str, Any]
) -> Diverged:
    """Keep the ``inputs`` of the failed step beside the checkpoint, and return the error with what to do."""
    path = run.checkpoints / f"nan-step-{error.step}.pt"
    kept = {"config_sha256": config_sha256, "step": error.step, **_on_the_host(inputs)}
    if distributed.first():
        checkpoint.write(kept, path)
    return Diverged(f"{error}; {_remedy(path)}", error.step)


def _on_the_host(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Copy tensors of the whole batch from the device; ``inputs`` may nest."""
    return {
        name: distributed.gathered(each).cpu() if isinstance(each, Tensor) else _on_the_host(each)
        for name, each in inputs.items()
    }


def refuse_again(run: Run | PretrainingRun, config_sha256: str) -> None:
    """Raise Diverged for a run that diverged before: engines that retry would repeat it again and again."""
    for kept in run.checkpoints.glob("nan-step-*.pt"):
        try:
            found = checkpoint.read(kept)
        except ValueError:  # it was not written whole; training meets the loss again
            continue
        if found["config_sha256"] == config_sha256:
            step = found["step"]
            raise Diverged(f"{run}: diverged at step {step} before; {_remedy(kept)}", step)


def _remedy(kept: Path) -> str:
    return (
        f"the step's inputs are in {kept}; lower learning_rate (or set a protocol's clip_norm), "
        f"then remove {kept.parent} to train from the start (or {kept.name} alone to try once more)"
    )
