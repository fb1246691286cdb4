"""PixPro's propagation and its step, pixel by pixel."""

import numpy as np
import pytest
import torch

from semiseg.data.views import cell_distances
from semiseg.pretraining.pixpro import Propagation
from tests.pretraining.recipes import plain, unit, views

GRID = 2


@pytest.mark.parametrize("sharpness", [1.0, 2.0])
def test_propagation_by_loops(sharpness: float) -> None:
    propagation = Propagation(5, sharpness).double()
    features = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    found = propagation(features)
    transformed = propagation.transform(features).flatten(2)
    pixels = features.flatten(2)
    for image in range(2):
        for i in range(6):
            expected = np.zeros(5)
            for j in range(6):
                cosine = float(unit(pixels[image, :, i]) @ unit(pixels[image, :, j]))
                expected += max(cosine, 0.0) ** sharpness * transformed[image, :, j].detach().numpy()
            assert found[image, :, i].detach().numpy() == pytest.approx(expected, rel=1e-5)


def test_a_step_by_loops() -> None:
    method, batch = plain("pixpro", distance=0.6), views()
    near = cell_distances(batch, GRID) < 0.6
    counts = near.sum(dim=(1, 2)).tolist()
    assert min(counts) < max(counts)
    expected = 0.0
    for one, other, pairs in (("image1", "image2", near), ("image2", "image1", near.mT)):
        predicted = method.propagation(method.online(batch[one]))
        targets = method.target(batch[other]).flatten(2)
        for image in range(4):
            cosines = [
                float(unit(predicted[image, :, i]) @ unit(targets[image, :, j]))
                for i in range(GRID**2)
                for j in range(GRID**2)
                if pairs[image, i, j]
            ]
            expected -= 2 * sum(cosines) / max(len(cosines), 1) / 4
    loss, logs = method.training_step(batch, 0)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert float(logs["near"]) == pytest.approx(sum(counts) / near.numel())
