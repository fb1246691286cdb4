"""The contract between a method and the training loop.

A method is one file in semiseg/methods/, which holds four public names: ``REVISION`` (an integer), ``Config``
(a frozen dataclass of its hyper-parameters), ``views`` and ``Method``.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, ClassVar, NamedTuple, TypedDict

from torch import Tensor, nn

from semiseg.base.errors import UserError
from semiseg.base.labels import IGNORE as IGNORE
from semiseg.base.parameters import Geometry, Network, Options, Params, Protocol
from semiseg.base.tree import from_tree
from semiseg.data.streams import View as View
from semiseg.models.build import shapes
from semiseg.models.network import SegmentationNetwork

Build = Callable[[], SegmentationNetwork]
"""Returns a new network of the protocol: the same pretrained backbone, the rest drawn anew."""


class Labelled(NamedTuple):
    """A batch of labelled crops on the device."""

    images: Tensor  # (B, 3, H, W) float32 in [0, 1]
    masks: Tensor  # (B, H, W) int64, class ids and IGNORE


Unlabelled = Mapping[str, Tensor]
"""A batch of the tensors that ``views`` returns, on the device; uint8 images arrive as float32 in [0, 1].

Where pseudo-labels are judged, TRUTH is the view's hidden mask: (B, H, W) uint8, class ids and IGNORE.
"""

TRUTH = "truth"
COUNTED = "pixels_"  # begins the logs that count pseudo-labels against the truth

Logs = dict[str, Tensor]
"""Scalars by name, detached and still on the device. Every step logs the same names."""


@dataclass(frozen=True)
class Task:
    """The facts about its run that a method may use."""

    total_steps: int
    labelled_images: int  # in the labelled list, not in the batch
    background: int | None  # the class that mixing never pastes
    unlabelled_images: int = 0  # in the unlabelled list


@dataclass(frozen=True)
class Rates:
    """Learning rates at the first step."""

    backbone: float  # rate of its last layer
    head: float
    layer_decay: float = 1.0  # rate of a layer of the backbone as a multiple of the next layer's


class ParameterGroup(TypedDict):
    """Parameters that are trained at one rate."""

    params: list[nn.Parameter]
    lr: float


@dataclass(frozen=True)
class Config:
    """Base of every method's hyper-parameters."""

    # Whether a batch may be trained in parts (Protocol.accumulate): true if the loss is a mean over images or
    # pixels. Batch norm, and what is pasted from one image into another, then see a part.
    by_parts: ClassVar[bool] = False
    # Whether the method makes pseudo-labels of common.weak_view, which the protocol may have judged.
    labels_weak_view: ClassVar[bool] = False

    def check(self, protocol: Protocol) -> None:
        """Raise ValueError if the options cannot be trained under ``protocol``, such as a ramp-up that is
        longer than the run."""

    def check_network(self, network: SegmentationNetwork, background: int | None) -> None:
        """Raise ValueError if the options cannot be trained with ``network``, such as a stride that its
        features do not have, or on a dataset with that ``background`` class (None: it has none)."""


class Method(nn.Module, ABC):
    """One or more segmentation networks and everything that is trained with them.

    Heads, teachers and memories are submodules and buffers: the optimiser trains every parameter that
    requires a gradient, and ``state_dict`` carries the rest.

    Random numbers in a step come from torch's default generators, which the loop seeds anew for each step:
    ``distributed.uniform`` on the device, torch's own functions on the host. Both are the same for any number
    of processes.
    """

    @abstractmethod
    def training_step(
        self, labelled: Labelled, unlabelled: Unlabelled | None, step: int
    ) -> tuple[Tensor, Logs]:
        """Return the loss (a scalar with gradient) of step ``step``, counted from 0, and its logs.

        Must not wait for the device. ``unlabelled`` is None if ``views`` returned None.
        """

    def after_step(self, step: int) -> None:
        """Run after the optimiser's step ``step``; update moving averages here."""

    @abstractmethod
    def networks(self) -> dict[str, SegmentationNetwork]:
        """Return the networks to score, by name. The first one gives the method's headline."""

    def parameter_groups(self, rates: Rates) -> list[ParameterGroup]:
        """Return every parameter that requires a gradient once, with its rate.

        The default trains the backbone of every SegmentationNetwork at the backbone's rates and all else at
        the head's.
        """
        groups: dict[float, list[nn.Parameter]] = {}
        for network in self.modules():
            if isinstance(network, SegmentationNetwork):
                for later, layer in enumerate(reversed(network.backbone.parameters_by_layer())):
                    rate = rates.backbone * rates.layer_decay**later
                    groups.setdefault(rate, []).extend(each for each in layer if each.requires_grad)
        known = {id(each) for group in groups.values() for each in group}
        rest = [each for each in trained(self) if id(each) not in known]
        backbones = [ParameterGroup(params=group, lr=rate) for rate, group in groups.items()]
        return [*backbones, ParameterGroup(params=rest, lr=rates.head)]

    def forward(self, labelled: Labelled, unlabelled: Unlabelled | None, step: int) -> tuple[Tensor, Logs]:
        """Call ``training_step``; DistributedDataParallel wraps this name."""
        return self.training_step(labelled, unlabelled, step)


def trained(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of ``module`` that require a gradient."""
    return [each for each in module.parameters() if each.requires_grad]


def module(name: str) -> ModuleType:
    """Import semiseg/methods/<name>.py."""
    return importlib.import_module(f"semiseg.methods.{name}")


def configured(name: str, options: Options, protocol: Protocol, key: str = "params.yaml: options") -> Config:
    """Return the Config of method ``name`` with ``options``, checked against ``protocol``.

    ``key`` says in errors where the options stand. Raises UserError for an unknown option, a value out of
    range, a schedule that does not fit, and a batch in parts if the method needs it whole.
    """
    config: Config = from_tree(module(name).Config, options, key)
    if protocol.accumulate > 1 and not config.by_parts:
        raise UserError(
            f"{key}: {name} compares or remembers images of a whole batch, which the protocol's accumulate: "
            f"{protocol.accumulate} would split; set it to 1"
        )
    try:
        config.check(protocol)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None
    return config


def views(name: str, config: Config, geometry: Geometry) -> View | None:
    """Return the transform of unlabelled images of method ``name``; None if it uses labelled images only."""
    view: View | None = module(name).views(config, geometry)
    return view


def build(name: str, network: Build, config: Config, task: Task) -> Method:
    """Return the method ``name`` with networks from ``network``, each checked against ``config``."""

    def checked() -> SegmentationNetwork:
        built = network()
        _check_network(config, built, task.background, f"params.yaml: {name}")
        return built

    method: Method = module(name).Method(checked, config, task)
    return method


def _check_network(config: Config, network: SegmentationNetwork, background: int | None, key: str) -> None:
    try:
        config.check_network(network, background)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None


def check_options(params: Params) -> None:
    """Build the network, the Config and the views of every run of every grid, to refuse bad options early.

    Missing weights and data stop only the runs that need them.
    """
    seen: set[Any] = set()
    networks: dict[Network, SegmentationNetwork] = {}
    for grid in params.grids.values():
        for run in grid.runs():
            config = params.run(run)
            if (run.recipe, config.protocol_name) in seen:
                continue
            seen.add((run.recipe, config.protocol_name))
            key = f"params.yaml: recipes: {run.recipe} (under protocols: {config.protocol_name})"
            options = configured(config.method, config.options, config.protocol, key)
            views(config.method, options, config.protocol.geometry)
            network = replace(config.protocol.network, weights="none")
            if network not in networks:
                networks[network] = shapes(network)
            _check_network(options, networks[network], config.dataset.background, key)
