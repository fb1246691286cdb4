"""Two processes that share every batch train what one trains: real processes, gloo on a CPU."""

import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from torch import distributed as torch_distributed
from torch import multiprocessing, nn
from torch.nn.modules.batchnorm import _BatchNorm

from semiseg.base.parameters import Network, RunConfig
from semiseg.models.layers import Dropout
from semiseg.models.network import SegmentationNetwork
from semiseg.models.pixel_heads import ClassAttention
from semiseg.training import checkpoint
from semiseg.training import step as training_step
from tests import miniature
from tests.tiny import tiny_network

# Columns that may be zero at the last step: the share of pixels that pass a threshold.
SHARES = ("selected", "confident")


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


def share(rank: int, folder: Path) -> None:
    torch_distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    train_all()
    torch_distributed.destroy_process_group()


def test_two_processes_train_what_one_trains(mini_project: Path) -> None:
    train_all()
    shutil.move("runs", "one")
    shutil.rmtree("checkpoints")
    multiprocessing.start_processes(share, args=(mini_project,), nprocs=2, start_method="fork")
    for name, case in CASES.items():
        folder = miniature.run(name).artefacts
        one_folder = Path("one", *folder.parts[1:])
        one, two = (
            pd.read_csv(place / "history.csv").drop(columns="images_per_second")
            for place in (one_folder, folder)
        )
        assert len(one) == case.steps
        losses = one.columns[~one.columns.str.contains("|".join(SHARES))]
        assert (one.iloc[-1][losses] != 0).all(), (name, one.iloc[-1])  # every loss has set in
        spreads = [each for each in one if each.startswith("attention_")]  # one minus almost one
        pd.testing.assert_frame_equal(two[spreads], one[spreads], rtol=0, atol=2e-7, obj=name)
        rest = one.columns.difference(spreads)
        pd.testing.assert_frame_equal(two[rest], one[rest], rtol=1e-5, atol=1e-7, obj=name)
        ours, theirs = (checkpoint.read(place / "model.pt") for place in (folder, one_folder))
        assert ours["device"].startswith("2 x ")
        assert ours["last"].keys() == theirs["last"].keys()
        for network, tensors in theirs["last"].items():
            for key, tensor in tensors.items():
                if not key.endswith("num_batches_tracked"):  # each process counts alone; nothing reads it
                    torch.testing.assert_close(
                        ours["last"][network][key],
                        tensor,
                        rtol=1e-4,
                        atol=1e-5,
                        msg=lambda said, place=(name, network, key): f"{place}: {said}",
                    )
