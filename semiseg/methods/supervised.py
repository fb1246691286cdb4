"""The supervised baseline: cross-entropy on labelled images."""

from dataclasses import dataclass

from torch import Tensor

from semiseg.base.parameters import Geometry
from semiseg.losses import cross_entropy
from semiseg.methods import contract
from semiseg.methods.contract import Build, Labelled, Logs, Task, Unlabelled
from semiseg.models.network import SegmentationNetwork

REVISION = 1  # raise it when a change alters the numbers of a run


@dataclass(frozen=True)
class Config(contract.Config):
    """The baseline has no hyper-parameters of its own."""


def views(config: Config, geometry: Geometry) -> None:
    """Read no unlabelled images."""


class Method(contract.Method):
    """One network, trained with cross-entropy."""

    def __init__(self, build: Build, config: Config, task: Task) -> None:
        super().__init__()
        self.student = build()

    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        loss = cross_entropy(self.student(labelled.images), labelled.masks)
        return loss, {"supervised": loss.detach()}

    def networks(self) -> dict[str, SegmentationNetwork]:
        return {"student": self.student}
