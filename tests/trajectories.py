"""Golden trajectories: five steps of each method, so that no result changes unnoticed.

After a change that is meant to alter results, raise the REVISION of the method (semiseg/methods/<method>.py)
or of the loop (semiseg/training/loop.py), then write the trajectories again:

python -m tests.trajectories [<method> ...]
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterable
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
# At the miniature's own rate, ten times this one, rounding grows about tenfold a step: two processors
# disagreed by 1e-3 of a loss and by 0.2 of the gradient's norm.
RATE = 0.001


def trajectory(method: str) -> dict[str, Any]:
    """Train ``method`` for five steps in the miniature project that is the working directory.

    Returns its logs by step, a projection of each network's state, and the revisions that made them.
    """
    config = parameters.load().run(miniature.run(method))
    network = replace(config.protocol.network, backbone="resnet18")
    optimiser = replace(config.protocol.optimiser, learning_rate=RATE)
    protocol = replace(
        config.protocol, network=network, optimiser=optimiser, steps=STEPS, validate_every=STEPS, log_every=1
    )
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
        "projections": {name: projection(state.values()) for name, state in model["last"].items()},
    }


def projection(state: Iterable[torch.Tensor]) -> float:
    """Return the product of all floating-point tensors, as one vector, with a fixed random unit vector.

    Unlike a norm, it shows a small step in any direction: gradients are often orthogonal to weights.
    """
    vector = torch.cat([each.double().flatten() for each in state if each.is_floating_point()])
    drawn = torch.randn(len(vector), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return float(vector @ drawn / drawn.norm())


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
