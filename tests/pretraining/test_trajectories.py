"""Golden trajectories: no self-supervised method gives other weights unnoticed.

After a change that is meant to alter results, raise the REVISION of the method
(semiseg/pretraining/<method>.py) or of the loop (semiseg/training/pretrain.py), then write the trajectories:

python -m tests.pretraining.test_trajectories
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch

from semiseg.data import prepared
from semiseg.evaluation.probe import Probe
from semiseg.models import weights
from semiseg.training import device, pretrain
from tests import miniature
from tests.miniature import CPU
from tests.pretraining import recipes
from tests.trajectories import projection

FILE = Path(__file__).parents[1] / "golden" / "pretraining.json"
RATE = 0.005  # a tenth of recipes.RECIPE's, for the reason that tests/trajectories.py gives
# With other kernels of torch's, losses and projections differed by at most 3e-5, the gradient's norm by 2e-4.
RELATIVE, GRADIENT, ABSOLUTE = 1e-4, 1e-3, 1e-4


def trajectory(method: str) -> dict[str, Any]:
    """Pretrain a tiny encoder in the miniature project that is the working directory.

    Returns its logs by step, a projection of its weights, and the revisions that made them.
    """
    optimiser = {**recipes.RECIPE["optimiser"], "learning_rate": RATE}
    config = recipes.config(method, log_every=1, optimiser=optimiser)
    dataset = prepared.open_dataset("mini", config.dataset)
    with mock.patch.object(pretrain, "build_encoder", side_effect=lambda recipe: recipes.encoder()):
        pretrain.pretrain(config, dataset, CPU, Probe.of(config, dataset, CPU))
    logs = pd.read_csv(config.run.artefacts / "history.csv").drop(columns=["step", "images_per_second"])
    return {
        "revisions": {name: config.revisions[name] for name in ("loop", "method")},
        "logs": {name: values.dropna().tolist() for name, values in logs.items()},
        "projection": projection(weights.read(config.run.weights).values()),
    }


@pytest.mark.parametrize("method", recipes.METHODS)
def test_a_pretraining_equals_its_golden_trajectory(mini_project: Path, method: str) -> None:
    golden, found = json.loads(FILE.read_text())[method], trajectory(method)
    assert found["revisions"] == golden["revisions"], "a REVISION was raised: write the trajectories again"
    same = found["logs"].keys() == golden["logs"].keys()
    same = same and found["projection"] == pytest.approx(golden["projection"], rel=0, abs=ABSOLUTE)
    for name, values in golden["logs"].items():
        tolerance = GRADIENT if name == "gradient_norm" else RELATIVE
        same = same and found["logs"][name] == pytest.approx(values, rel=tolerance, abs=1e-6)
    assert same, f"results of {method} changed: raise a REVISION if that is meant, and write them again"


def main() -> None:
    device.without_avx512()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        miniature.create(Path(folder))
        written = {method: trajectory(method) for method in recipes.METHODS}
        FILE.write_text(json.dumps(written, indent=1) + "\n")
        os.chdir(FILE.parent)


if __name__ == "__main__":
    main()
