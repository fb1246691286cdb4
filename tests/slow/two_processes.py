"""Train every method in the miniature project that is the working directory.

As a script: in two processes that share the batches, under torchrun, on a CPU with gloo.
"""

import sys
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from semiseg.base import distributed
from semiseg.base.parameters import Network, RunConfig
from semiseg.models.layers import Dropout
from semiseg.models.network import SegmentationNetwork
from semiseg.models.pixel_heads import ClassAttention
from semiseg.training import launch
from semiseg.training import step as training_step
from tests import miniature
from tests.tiny import tiny_network


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
    "u2pl": {"contrast_weight": 1.0},
    "pixel_contrast": {"weight": 1.0},
}
CASES = {
    **{
        f"{name}-frozen": Case(name, 20, True, SCHEDULES.get(name, {}))
        for name in (*miniature.METHODS, *miniature.WRITTEN)
    },
    "supervised-synchronised": Case("supervised", 5, False),
    "cmb-synchronised": Case(
        "cmb", 5, False,
        {**SCHEDULES["cmb"], "ramp_up_steps": 2, "teacher_training_mode": True, "memory_order": "random"},
    ),
    "dcc-synchronised": Case("dcc", 5, False, {**SCHEDULES["dcc"], "bank_steps": 1, "normalize": "selected"}),
    "dcc-self_training": Case("dcc", 5, False, {"objective": "self_training", **SCHEDULES["dcc"]}),
    "cct-synchronised": Case("cct", 5, False, {"bootstrapped": True}),
    "u2pl-synchronised": Case("u2pl", 5, False, {"start_share": 0.2}),
    "pixel_contrast-synchronised": Case(
        "pixel_contrast", 5, False, {"unlabelled": "fixmatch", "threshold": 0.3}
    ),
    "fixmatch-synchronised": Case(
        "fixmatch", 5, False, {"pseudo_labels": "released", "hard_examples": {"pixels": 100}}
    ),
    "fixmatch-teacher": Case("fixmatch", 5, False, {"pseudo_labels": "teacher"}),
    "cps-synchronised": Case("cps", 5, False, {"pseudo_labels": "eval"}),
    "mean_teacher-synchronised": Case("mean_teacher", 5, False, {"threshold": 0.3}),
    "two_networks-synchronised": Case("two_networks", 5, False),
}  # fmt: skip


def config_of(name: str) -> RunConfig:
    case = CASES[name]
    written = case.method in miniature.WRITTEN
    config = miniature.config(
        "supervised" if written else case.method, steps=case.steps, labelled_batch=4, unlabelled_batch=4,
        log_every=1, validate_every=case.steps,
    )  # fmt: skip
    options = {**config.options, **case.options}
    return replace(config, run=miniature.run(name), method=case.method, options=options)


def frozen(learner: nn.Module, device: torch.device) -> None:
    """Replace synchronise: batch norm stays in evaluation mode, whatever mode is asked for."""
    for module in learner.modules():
        if isinstance(module, _BatchNorm | ClassAttention):
            module.eval()
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]


def small_network(network: Network, num_classes: int) -> SegmentationNetwork:
    """Replace build: the cost of the exchange between processes grows with the parameters."""
    built = tiny_network(num_classes)
    built.classifier = nn.Sequential(Dropout(0.1), built.classifier)
    return built


@mock.patch.object(training_step, "build", small_network)
@mock.patch.dict(sys.modules, {f"semiseg.methods.{name}": each for name, each in miniature.WRITTEN.items()})
def train_all() -> None:
    for name, case in CASES.items():
        exchange = frozen if case.frozen else training_step.synchronise
        with mock.patch.object(training_step, "synchronise", exchange):
            miniature.fit(config_of(name))


def main() -> None:
    if not launch.started():
        launch.start("two processes", 2)
        return
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with launch.one_of_several(), distributed.joined(miniature.CPU):
        train_all()


if __name__ == "__main__":
    main()
