"""Trains every method of the library in the working directory's miniature project.

As a script: in two processes that share the batches, under torchrun, on a CPU with gloo.
"""

from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import nn

from semiseg.base import distributed, parameters, paths
from semiseg.base.parameters import Network, RunConfig
from semiseg.data import prepared, splits
from semiseg.models.layers import Dropout
from semiseg.models.network import SegmentationNetwork
from semiseg.models.pixel_heads import ClassAttention
from semiseg.training import launch, loop
from semiseg.training import step as learning
from tests import miniature
from tests.tiny import tiny_network

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A run of ``steps`` steps; ``frozen``: batch norm with the statistics that it starts with."""

    method: str
    steps: int
    frozen: bool
    options: dict[str, Any] = field(default_factory=dict)


SCHEDULES = {
    "cmb": {"ramp_up_steps": 4, "memory_lead_steps": 2, "class_balance": True, "contrast_weight": 1.0},
    "dcc": {"threshold": 0.3, "weight": 1.0},
}
CASES = {
    **{f"{name}-frozen": Case(name, 20, True, SCHEDULES.get(name, {})) for name in miniature.METHODS},
    "supervised-synchronised": Case("supervised", 5, False),
    "cmb-synchronised": Case(
        "cmb", 5, False,
        {**SCHEDULES["cmb"], "ramp_up_steps": 2, "teacher_training_mode": True, "memory_order": "random"},
    ),
    "dcc-synchronised": Case("dcc", 5, False, {**SCHEDULES["dcc"], "bank_steps": 1, "normalize": "selected"}),
    "dcc-self_training": Case("dcc", 5, False, {"objective": "self_training", **SCHEDULES["dcc"]}),
}  # fmt: skip


def run_of(name: str) -> paths.Run:
    return paths.Run(name, "mini-1_4", 0)


def config_of(name: str) -> RunConfig:
    case = CASES[name]
    plain = parameters.load().run(paths.Run(case.method, "mini-1_4", 0))
    protocol = replace(
        plain.protocol, steps=case.steps, labelled_batch=4, unlabelled_batch=4,
        log_every=1, validate_every=case.steps,
    )  # fmt: skip
    options = {**plain.options, **case.options}
    return replace(plain, run=run_of(name), protocol=protocol, options=options)


def frozen(learner: nn.Module, device: torch.device) -> None:
    """In place of synchronise: batch norm stays in evaluation mode, whatever mode is asked for."""
    for module in learner.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm | ClassAttention):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]


def small_network(network: Network, num_classes: int) -> SegmentationNetwork:
    """In place of build: what the exchange between processes costs grows with the parameters."""
    built = tiny_network(num_classes)
    built.classifier = nn.Sequential(Dropout(0.1), built.classifier)
    return built


@mock.patch.object(learning, "build", small_network)
def train_all() -> None:
    for name, case in CASES.items():
        of_run = config_of(name)
        dataset = prepared.open_dataset(of_run.split.dataset, of_run.dataset)
        split = splits.read("mini-1_4", 0)
        with mock.patch.object(learning, "synchronise", frozen if case.frozen else learning.synchronise):
            loop.train(of_run, dataset, split, CPU)


def main() -> None:
    if not launch.started():
        launch.start("two processes", 2)
        return
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with launch.one_of_several(), distributed.joined(CPU):
        train_all()


if __name__ == "__main__":
    main()
