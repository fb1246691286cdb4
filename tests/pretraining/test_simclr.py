"""SimCLR's step, from the features of both views."""

import math

import pytest

from tests.pretraining.recipes import plain, unit, views


def test_a_step_by_loops() -> None:
    method, batch = plain("simclr", temperature=0.3), views()
    rows = [unit(row) for name in ("1", "2") for row in method.online(batch[f"image{name}"]).flatten(1)]
    expected = 0.0
    for i, row in enumerate(rows):
        similar = {k: math.exp(float(row @ other) / 0.3) for k, other in enumerate(rows) if k != i}
        expected -= math.log(similar[(i + 4) % 8] / sum(similar.values())) / 8
    loss, logs = method.training_step(batch, 0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert float(logs["spread"]) > 0
