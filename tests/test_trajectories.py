"""No result changes unnoticed: five steps of each method against a committed trajectory."""

import json
from pathlib import Path

import pytest

from tests import miniature, trajectories

# With other kernels of torch's (AVX-512, no oneDNN, MKL_CBWR=COMPATIBLE) losses differed by at most 1e-5 and
# projections by 4e-8; the gradient's norm, mostly of channels that hardly vary in a batch, by 2e-3.
RELATIVE, GRADIENT, ABSOLUTE = 5e-5, 2e-2, 1.5e-7


@pytest.mark.parametrize("method", miniature.METHODS)
def test_five_steps_equal_the_golden_trajectory(mini_project: Path, method: str) -> None:
    golden = json.loads((trajectories.FOLDER / f"{method}.json").read_text())
    found = trajectories.trajectory(method)
    same = found["projections"] == pytest.approx(golden["projections"], rel=0, abs=ABSOLUTE)
    same = same and found["logs"].keys() == golden["logs"].keys()
    for name, values in golden["logs"].items():
        tolerance = GRADIENT if name == "gradient_norm" else RELATIVE
        same = same and found["logs"][name] == pytest.approx(values, rel=tolerance, abs=1e-7)
    if found["revisions"] != golden["revisions"]:
        pytest.fail(f"a REVISION was raised: write it again with: python -m tests.trajectories {method}")
    if not same:
        pytest.fail(
            f"results of {method} changed: if that is meant, raise REVISION in semiseg/methods/{method}.py "
            "(or in semiseg/training/loop.py, if every method changed), then run: "
            f"python -m tests.trajectories {method}"
        )
