"""The contract between a self-supervised method and its training.

A method is one file in semiseg/pretraining/, which holds three public names: ``REVISION`` (an integer),
``Config`` (a frozen dataclass of its hyper-parameters) and ``Method``.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from semiseg.base.errors import UserError
from semiseg.base.parameters import Params
from semiseg.base.pretraining import Pretraining
from semiseg.base.tree import from_tree
from semiseg.methods.common import Colours
from semiseg.methods.contract import Logs as Logs
from semiseg.models.build import new_backbone
from semiseg.models.network import Encoder

Build = Callable[[], Encoder]
"""Returns a new encoder with the weights to start from."""

Views = Mapping[str, Tensor]
"""A batch of the outputs of ``data.views.resized_crops`` on the device; images are float32 in [0, 1]."""

VIEW = Colours(jitter=(0.4, 0.4, 0.4, 0.1))  # of MoCo v2


@dataclass(frozen=True)
class Task:
    """The facts about its training that a method may use."""

    total_steps: int


@dataclass(frozen=True)
class Config:
    """Base of every method's hyper-parameters."""

    first: Colours = VIEW  # of an image's first view
    second: Colours = VIEW

    def check(self, recipe: Pretraining) -> None:
        """Raise ValueError if the options cannot be trained under ``recipe``, such as a grid finer than the
        features of a crop."""

    def held(self, recipe: Pretraining) -> int:
        """Return the images that a step compares; more than the training list has would repeat some."""
        return recipe.batch


class Method(nn.Module, ABC):
    """An encoder and everything that is trained with it.

    What semiseg.methods.contract.Method says of submodules, buffers and random numbers holds here too.
    """

    @abstractmethod
    def training_step(self, views: Views, step: int) -> tuple[Tensor, Logs]:
        """Return the loss (a scalar with gradient) of step ``step``, counted from 0, and its logs.

        Must not wait for the device. Every step logs the same names.
        """

    def after_step(self, step: int) -> None:
        """Run after the optimiser's step ``step``; update moving averages here."""

    @abstractmethod
    def encoder(self) -> Encoder:
        """Return the encoder whose backbone is kept at the end."""

    def forward(self, views: Views, step: int) -> tuple[Tensor, Logs]:
        """Call ``training_step``; DistributedDataParallel wraps this name."""
        return self.training_step(views, step)


def module(name: str) -> ModuleType:
    """Import semiseg/pretraining/<name>.py."""
    return importlib.import_module(f"semiseg.pretraining.{name}")


def configured(recipe: Pretraining, key: str = "params.yaml: pretraining") -> Config:
    """Return the Config of a recipe's method, checked against the recipe.

    ``key`` says in errors where the recipe stands. Raises UserError for an unknown option, a value out of
    range, and one that does not fit the recipe.
    """
    config: Config = from_tree(module(recipe.method).Config, recipe.options, f"{key}: options")
    try:
        config.check(recipe)
    except ValueError as error:
        raise UserError(f"{key}: options: {error}") from None
    return config


def check_images(recipe: Pretraining, config: Config, images: int, key: str) -> None:
    """Raise UserError if a training list of ``images`` is too short for the recipe's batch and queue."""
    held = config.held(recipe)
    if held > images:
        both = held > recipe.batch
        raise UserError(
            f"{key}: its {'batch and queue hold' if both else 'batch holds'} {held:,} images at a time, and "
            f"{recipe.dataset} has {images:,} training images, so that some would be there twice; lower batch"
            f"{' or options: queue' if both else ''}"
        )


def build(name: str, encoder: Build, config: Config, task: Task) -> Method:
    """Return the method ``name`` with encoders from ``encoder``."""
    method: Method = module(name).Method(encoder, config, task)
    return method


def check_options(params: Params) -> None:
    """Build the Config and the backbone of every pretraining, to refuse bad options early."""
    backbones = {}
    for name, recipe in params.pretraining.items():
        configured(recipe, f"params.yaml: pretraining: {name}")
        backbones[recipe.backbone, recipe.output_stride] = recipe
    with torch.device("meta"):  # shapes alone
        for recipe in backbones.values():
            new_backbone(recipe)
