"""The supervised baseline: cross-entropy on labelled images."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from semiseg.base.parameters import Geometry, Protocol
from semiseg.methods import contract
from semiseg.methods.common import HardExamples, supervised_loss
from semiseg.methods.contract import Build, Labelled, Logs, Task, Unlabelled
from semiseg.models.network import SegmentationNetwork

REVISION = 1  # raise it when a change alters the numbers of a run


@dataclass(frozen=True)
class Config(contract.Config):
    """The baseline's only hyper-parameter."""

    by_parts: ClassVar[bool] = True

    hard_examples: HardExamples | None = None  # learn these alone, instead of all labelled pixels

    def check(self, protocol: Protocol) -> None:
        if self.hard_examples is not None:
            self.hard_examples.check(protocol)


def views(config: Config, geometry: Geometry) -> None:
    """Return None: no unlabelled image is read."""


class Method(contract.Method):
    """One network, trained with cross-entropy."""

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.student = build()
        self.hard_examples = config.hard_examples

    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        """Return the loss of the labelled images."""
        logits = self.student(labelled.images)
        loss = supervised_loss(logits, labelled.masks, self.hard_examples)
        return loss, {"supervised": loss.detach()}

    def networks(self) -> dict[str, SegmentationNetwork]:
        return {"student": self.student}
