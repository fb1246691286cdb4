"""Compute, without a GPU, the memory that a training step takes, and what makes it fit a smaller card.

A step is taken on fake tensors, which have shapes and no numbers, and the bytes of all tensors that are alive
at once are added up: parameters, gradients, the optimiser's state, activations and batches. The result is the
least that torch's allocator must hold. CUDA itself, cuDNN's workspaces and gaps between allocations add to
it; ``needed`` allows for them by assumption, not by measurement.
"""

import dataclasses
import math
import sys
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, nn

# No public module of torch has these; torch.compile is built on them.
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from semiseg.base.errors import UserError
from semiseg.base.parameters import Params, RunConfig
from semiseg.losses import directional_blocks
from semiseg.methods import contract
from semiseg.methods.contract import Labelled, Method
from semiseg.report.throughput import on_one_card, random_batch, untrained_learner
from semiseg.training.step import new_optimiser, poly, seed_everything, take_step

CPU = torch.device("cpu")
GIB = 2**30
SPARE_SHARE, SPARE = 0.1, 1 * GIB  # assumed: gaps between allocations; CUDA and workspaces
MULTIPLE = 16  # pixels: of a suggested crop
# In the order in which to try them: the first leaves the numbers as they are (docs/one-small-gpu.md).
CHANGES: tuple[Mapping[str, Any], ...] = (
    {"checkpoint_activations": True},
    {"accumulate": 2},
    {"accumulate": 4},
    {"accumulate": 4, "checkpoint_activations": True},
)


class PeakMemory(TorchDispatchMode):
    """While active, add up the bytes of the tensors that are alive, in ``now`` and, at most, ``peak``.

    Every storage counts once, however many tensors view it, from the operation that returns it until it is
    freed. What an operation uses inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._counted: dict[int, int] = {}

    def count(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that were there before."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._counted:
                self._counted[key] = size
                self.now += size
                weakref.finalize(storage, self._freed, key)
        self.peak = max(self.peak, self.now)

    def _freed(self, key: int) -> None:
        self.now -= self._counted.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        self.count(each for each in tree_leaves(found) if isinstance(each, Tensor))
        return found


class _WithoutNumbers(PeakMemory):
    """The same for fake tensors, which cannot tell the few numbers that a step asks for."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        aten = torch.ops.aten
        drawn = func is aten.randperm.default  # an order, drawn for the host
        read = func is aten._local_scalar_dense.default and not isinstance(args[0], FakeTensor)
        if drawn or read:
            with unset_fake_temporarily():
                return func(*args, **(kwargs or {}))
        if func is aten.nonzero.default:  # DCC's anchors: of one block as of all; a GPU's takes 128 MiB more
            rows = min(args[0].numel(), directional_blocks.SIDE)
            return args[0].new_empty((rows, args[0].dim()), dtype=torch.int64)
        return super().__torch_dispatch__(func, types, args, kwargs)


def of_step(config: RunConfig) -> int:
    """Return the bytes of all tensors of a training step at its peak; nothing is computed.

    It is the run's last step, in which every loss takes part, after one that made the optimiser's state.
    """
    protocol = dataclasses.replace(config.protocol, compile=False)
    config = dataclasses.replace(config, protocol=protocol)
    options = contract.configured(config.method, config.options, protocol)
    view = contract.views(config.method, options, protocol.geometry)
    labelled, unlabelled = random_batch(config, view, CPU)
    learner = untrained_learner(config, options, CPU)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        _replace_tensors(learner, fake)
        labelled = Labelled(*map(fake.from_tensor, labelled))
        if unlabelled is not None:
            unlabelled = {name: fake.from_tensor(tensor) for name, tensor in unlabelled.items()}
        with _WithoutNumbers() as memory:
            memory.count([*learner.parameters(), *learner.buffers(), *labelled, *(unlabelled or {}).values()])
            optimiser = new_optimiser(learner, protocol.optimiser)
            poly(optimiser, protocol, protocol.steps - 1)
            for repetition in range(2):
                memory.peak = memory.now
                seed_everything(repetition, protocol.steps - 1)
                take_step(config, learner, learner, optimiser, labelled, unlabelled, protocol.steps - 1)
    return memory.peak


def _replace_tensors(learner: Method, fake: FakeTensorMode) -> None:
    """Let fake tensors take the place of a learner's parameters and buffers."""
    for module in learner.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            replaced = fake.from_tensor(parameter.detach())
            setattr(module, name, nn.Parameter(replaced, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, fake.from_tensor(buffer))


def needed(peak: float) -> float:
    """Return the bytes that a card must have for a step whose tensors take ``peak`` bytes."""
    return peak * (1 + SPARE_SHARE) + SPARE


@dataclasses.dataclass(frozen=True)
class Fit:
    """The memory of a step as it is, and the first change with which it fits a card."""

    peak: int  # bytes of tensors, as it is
    change: Mapping[str, Any] | None  # {}: none is needed; None: not even the last one is enough
    changed: float  # bytes of tensors after the change


def fit(config: RunConfig, card: float) -> Fit:
    """Find the first of CHANGES, or else the largest crop, that makes a step fit a card of ``card`` bytes."""
    as_is = of_step(config)
    if needed(as_is) <= card:
        return Fit(as_is, {}, as_is)
    for change in CHANGES:
        changed = _changed(config, change)
        if changed is not None and needed(found := of_step(changed)) <= card:
            return Fit(as_is, change, found)
    return _smaller_crop(config, as_is, card)


def _changed(config: RunConfig, change: Mapping[str, Any]) -> RunConfig | None:
    """Return a run with other values in its protocol; None if its method or its batches do not allow them."""
    try:
        protocol = dataclasses.replace(config.protocol, **change)
        contract.configured(config.method, config.options, protocol)
    except (UserError, ValueError):
        return None
    return dataclasses.replace(config, protocol=protocol)


def _smaller_crop(config: RunConfig, as_is: int, card: float) -> Fit:
    """Find a crop, taking memory to grow with its area, from a step as it is and one with half the crop."""
    geometry = config.protocol.geometry
    side = config.protocol.network.patch or MULTIPLE
    half = max(side, geometry.crop // 2 // side * side)
    halved = _changed(config, {"geometry": dataclasses.replace(geometry, crop=half)})
    if halved is None or half == geometry.crop or (smaller := of_step(halved)) >= as_is:
        return Fit(as_is, None, as_is)
    by_area = (as_is - smaller) / (geometry.crop**2 - half**2)
    constant = as_is - by_area * geometry.crop**2
    room = (card - SPARE) / (1 + SPARE_SHARE) - constant
    crop = math.floor(math.sqrt(max(0, room) / by_area) / side) * side
    if crop < 2 * side or _changed(config, {"geometry": dataclasses.replace(geometry, crop=crop)}) is None:
        return Fit(as_is, None, as_is)
    return Fit(as_is, {"geometry": {"crop": crop}}, constant + by_area * crop**2)


def terminal(params: Params, grid: str, card: float) -> str:
    """Write for a terminal whether a grid's recipes fit a card of ``card`` GiB, or with which change."""
    rows = []
    for recipe in params.grids[grid].recipes:
        for protocol in dict.fromkeys(params.splits[split].protocol for split in params.grids[grid].splits):
            run = next(
                run
                for run in params.grids[grid].runs()
                if run.recipe == recipe and params.splits[run.split].protocol == protocol
            )
            print(f"computing {recipe} under {protocol}", file=sys.stderr)
            found = fit(on_one_card(params.run(run), params.gpus(run)), card * GIB)
            rows.append((recipe, protocol, f"{found.peak / GIB:.1f}", _said(found)))
    table = tabulate(
        rows,
        ("recipe", "protocol", "GiB", f"on a card of {card:g} GiB"),
        tablefmt="simple",
        disable_numparse=True,
        colalign=("left", "left", "right", "left"),
    )
    return (
        f"{table}\n\n"
        "GiB: all tensors at the peak of a training step, computed from their shapes without a GPU; those\n"
        f"of a smaller crop are interpolated. Fits: with {SPARE_SHARE:.0%} and {SPARE / GIB:g} GiB more for "
        "CUDA and gaps, which is\nassumed, not measured. What each change means: docs/one-small-gpu.md"
    )


def _said(found: Fit) -> str:
    if found.change is None:
        return "does not fit: lower labelled_batch and unlabelled_batch too"
    if not found.change:
        return "fits"
    named = ", ".join(
        f"crop: {value['crop']}" if isinstance(value, Mapping) else f"{name}: {str(value).lower()}"
        for name, value in found.change.items()
    )
    return f"fits with {named} ({found.changed / GIB:.1f} GiB)"
