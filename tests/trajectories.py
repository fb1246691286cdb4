"""Golden trajectories: five steps of each method, so that no result changes unnoticed.

After a change that is meant to alter results, raise the REVISION of the method (semiseg/methods/<method>.py)
or of the loop (semiseg/training/loop.py), then write the trajectories again:

python -m tests.trajectories [<method> ...]
"""

import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from semiseg.base import parameters
from semiseg.data import prepared, splits
from semiseg.evaluation.score import Scoring
from semiseg.training import device, loop
from tests import miniature

FOLDER = Path(__file__).with_name("golden")
STEPS = 5


def trajectory(method: str) -> dict[str, Any]:
    """Train ``method`` for five steps in the miniature project that is the working directory.

    Returns its logs by step, the norm of each network's parameters, and the revisions that made them.
    """
    config = parameters.load().run(miniature.run(method))
    network = replace(config.protocol.network, backbone="resnet18")
    protocol = replace(config.protocol, network=network, steps=STEPS, validate_every=STEPS, log_every=1)
    config = replace(config, protocol=protocol)
    dataset = prepared.open_dataset(config.dataset_name, config.dataset)
    cpu = torch.device("cpu")
    loop.train(config, dataset, splits.read(miniature.SPLIT, 0), cpu, Scoring.of(config, cpu))
    history = pd.read_csv(config.run.artefacts / "history.csv")
    model = torch.load(config.run.artefacts / "model.pt", weights_only=True)
    logs = history.drop(columns=["step", "images_per_second", *history.filter(like="val_")])
    return {
        "revisions": {name: config.revisions[name] for name in ("loop", "method")},
        "logs": {name: logs[name].tolist() for name in logs},
        "norms": {name: _norm(state) for name, state in model["last"].items()},
    }


def _norm(state: dict[str, torch.Tensor]) -> float:
    """Return the norm of all floating-point tensors of a state dict."""
    squares = [each.double().square().sum() for each in state.values() if each.is_floating_point()]
    return float(torch.stack(squares).sum().sqrt())


def main(methods: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    device.without_avx512()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for method in methods or miniature.METHODS:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            miniature.create(Path(folder))
            text = json.dumps(trajectory(method), indent=1)
        (FOLDER / f"{method}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
