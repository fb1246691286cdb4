"""A loss or gradient that is not finite: its step is refused, and its inputs are kept."""

from pathlib import Path

from semiseg.base import distributed
from semiseg.base.errors import UserError
from semiseg.base.parameters import RunConfig
from semiseg.training import checkpoint
from semiseg.training.batches import Batch


class Diverged(UserError):
    """A loss or the gradient is not finite at ``step``, counted from 0."""

    exit_status = 3

    def __init__(self, said: str, step: int) -> None:
        super().__init__(said)
        self.step = step


def explained(config: RunConfig, error: Diverged, batch: Batch) -> Diverged:
    """Keep the ``batch`` of the failed step beside the checkpoint, and return the error with what to do."""
    labelled, unlabelled = batch
    inputs = {
        "config_sha256": config.digest(),
        "step": error.step,
        "images": distributed.gathered(labelled.images).cpu(),
        "masks": distributed.gathered(labelled.masks).cpu(),
        "views": {name: distributed.gathered(view).cpu() for name, view in (unlabelled or {}).items()},
    }
    path = config.run.checkpoints / f"nan-step-{error.step}.pt"
    if distributed.first():
        checkpoint.write(inputs, path)
    return Diverged(f"{error}; {_remedy(path)}", error.step)


def refuse_again(config: RunConfig) -> None:
    """Raise Diverged for a run that diverged before: engines that retry would repeat it again and again."""
    for kept in config.run.checkpoints.glob("nan-step-*.pt"):
        try:
            found = checkpoint.read(kept)
        except ValueError:  # it was not written whole; training meets the loss again
            continue
        if found["config_sha256"] == config.digest():
            step = found["step"]
            raise Diverged(f"{config.run}: diverged at step {step} before; {_remedy(kept)}", step)


def _remedy(kept: Path) -> str:
    return (
        f"the step's inputs are in {kept}; lower learning_rate or set clip_norm in the protocol, "
        f"then remove {kept.parent} to train from the start (or {kept.name} alone to try once more)"
    )
