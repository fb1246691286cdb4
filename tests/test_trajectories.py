"""No result changes unnoticed: five steps of each method against a committed trajectory."""

import json
from pathlib import Path

import pytest

from tests import miniature, trajectories

TOLERANCE = 1e-4  # relative; processors differ in their last digits


@pytest.mark.parametrize("method", miniature.METHODS)
def test_five_steps_equal_the_golden_trajectory(mini_project: Path, method: str) -> None:
    golden = json.loads((trajectories.FOLDER / f"{method}.json").read_text())
    found = trajectories.trajectory(method)
    same = found["norms"] == pytest.approx(golden["norms"], rel=TOLERANCE)
    same = same and found["logs"].keys() == golden["logs"].keys()
    for name, values in golden["logs"].items():
        same = same and found["logs"][name] == pytest.approx(values, rel=TOLERANCE, abs=1e-7)
    if found["revisions"] != golden["revisions"]:
        pytest.fail(f"a REVISION was raised: write it again with: python -m tests.trajectories {method}")
    if not same:
        pytest.fail(
            f"results of {method} changed: if that is meant, raise REVISION in semiseg/methods/{method}.py "
            "(or in semiseg/training/loop.py, if every method changed), then run: "
            f"python -m tests.trajectories {method}"
        )
