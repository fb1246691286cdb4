"""What a method is: a student, what it learns from a step's images, and the network that is evaluated.

A method is one file of semiseg/methods/, named after the method, with three names in it: ``Config`` (a frozen
dataclass that holds the defaults), ``views`` and ``Method`` (a subclass of the one here).
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semiseg.base.parameters import Geometry, Params
from semiseg.base.tree import from_tree
from semiseg.data.decoding import IGNORE as IGNORE
from semiseg.models.network import SegmentationNetwork

View = Callable[[Tensor, torch.Generator], dict[str, Tensor]]
"""The transform of one unlabelled image (3, H, W) uint8 into named tensors of fixed shapes, in a worker."""


class Labelled(NamedTuple):
    """A batch of labelled crops on the device."""

    images: Tensor  # (B, 3, H, W) float32 in [0, 1]
    masks: Tensor  # (B, H, W) int64, class ids and IGNORE


Unlabelled = Mapping[str, Tensor]
"""A batch of what ``views`` returns, on the device; every uint8 (B, 3, H, W) tensor is float32 in [0, 1]."""

Logs = dict[str, Tensor]
"""Scalars by name, detached and still on the device: the engine reads them every ``log_every`` steps."""


@dataclass(frozen=True)
class Task:
    """What a method may know about the run that it is trained in."""

    total_steps: int
    labelled_images: int  # in the split, not in the batch
    background: int | None  # the class that mixing never pastes
    unlabelled_images: int = 0  # in the split


class Method(nn.Module, ABC):
    """A student and everything that trains with it.

    Extra heads, a teacher and memories are submodules and buffers, so that the optimiser finds the parameters
    that require a gradient and ``state_dict`` carries everything. All randomness inside a step comes from
    torch's default generators, which the engine seeds anew for every step.
    """

    student: SegmentationNetwork
    teacher: SegmentationNetwork | None

    def __init__(self, student: SegmentationNetwork) -> None:
        super().__init__()
        self.student = student
        self.teacher = None  # not a class attribute: that would hide the submodule

    @abstractmethod
    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        """The loss of step ``step`` (from 0) and what to log of it. No host synchronisation."""

    def forward(self, labelled: Labelled, unlabelled: Unlabelled | None, step: int) -> tuple[Tensor, Logs]:
        """``training_step``, under the name that DistributedDataParallel calls."""
        return self.training_step(labelled, unlabelled, step)

    def after_step(self, step: int) -> None:
        """Called after the optimiser's step: the teacher's moving average."""

    def predictor(self) -> SegmentationNetwork:
        """The network whose mIoU is the method's headline: the student, unless a method says otherwise."""
        return self.student


def module(name: str) -> ModuleType:
    """The file semiseg/methods/<name>.py."""
    return importlib.import_module(f"semiseg.methods.{name}")


def views(name: str, config: Any, geometry: Geometry) -> View | None:
    """The method's transform of unlabelled images; None for a method that uses labelled images only."""
    view: View | None = module(name).views(config, geometry)
    return view


def build(name: str, student: SegmentationNetwork, config: Any, task: Task) -> Method:
    """The method ``name`` around ``student``."""
    method: Method = module(name).Method(student, config, task)
    return method


def check_options(params: Params) -> None:
    """Build every recipe's Config and the views of every run of a grid, so that what cannot work is refused
    before any run starts.

    Weights and data that are not there stop the runs that need them, and no others.
    """
    for name, recipe in params.recipes.items():
        file = module(recipe.method)
        for protocol_name, protocol in params.protocols.items():
            options = {**protocol.methods.get(recipe.method, {}), **recipe.options}
            key = f"params.yaml: recipes: {name}: options (with protocols: {protocol_name}: methods)"
            config = from_tree(file.Config, options, key)
            if any(
                params.splits[split].protocol == protocol_name
                for grid in params.grids.values()
                for split in grid.splits
                if name in grid.recipes
            ):
                file.views(config, protocol.geometry)
