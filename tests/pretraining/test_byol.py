"""BYOL's step: squared distances of vectors of norm one."""

import pytest

from tests.pretraining.recipes import plain, unit, views


def test_a_step_by_loops() -> None:
    method, batch = plain("byol"), views()
    method.predictor[3].weight.data.mul_(2)  # norms do not matter
    expected = 0.0
    for one, other in (("image1", "image2"), ("image2", "image1")):
        predicted = method.predictor(method.online(batch[one])).flatten(1)
        targets = method.target(batch[other]).flatten(1)
        for prediction, target in zip(predicted, targets, strict=True):
            expected += float(((unit(prediction) - unit(target)) ** 2).sum()) / 4
    loss, _ = method.training_step(batch, 0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
