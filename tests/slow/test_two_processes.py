"""Two processes that share every batch train what one trains: real processes, gloo on a CPU."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch

from semiseg.training import checkpoint
from tests import miniature, project
from tests.slow import two_processes

# Columns that may be zero at the last step: the share of pixels that pass a threshold.
SHARES = ("selected", "confident")


def test_two_processes_train_what_one_trains(mini_project: Path) -> None:
    two_processes.train_all()
    shutil.move("runs", "one")
    shutil.rmtree("checkpoints")
    together = subprocess.run(
        [sys.executable, two_processes.__file__],
        env={**os.environ, "PYTHONPATH": str(project.ROOT)},
        capture_output=True,
        text=True,
    )
    assert together.returncode == 0, together.stderr
    for name, case in two_processes.CASES.items():
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
        pd.testing.assert_frame_equal(two[spreads], one[spreads], rtol=0, atol=1e-6, obj=name)
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
