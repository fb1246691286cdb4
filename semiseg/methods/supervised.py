"""The supervised baseline: cross-entropy on the labelled images, the unlabelled ones unused."""

from dataclasses import dataclass

from torch import Tensor

from semiseg.base.parameters import Geometry
from semiseg.losses import cross_entropy
from semiseg.methods import contract
from semiseg.methods.contract import Labelled, Logs, Task, Unlabelled
from semiseg.models.network import SegmentationNetwork


@dataclass(frozen=True)
class Config:
    """The baseline has no hyper-parameters of its own."""


def views(config: Config, geometry: Geometry) -> None:
    """No unlabelled images."""
    return None


class Method(contract.Method):
    def __init__(self, student: SegmentationNetwork, config: Config, task: Task) -> None:
        super().__init__(student)

    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        logits = self.student(labelled.images)
        loss = cross_entropy(logits, labelled.masks)
        return loss, {"supervised": loss.detach()}
