"""DenseCL's step: its whole and its dense part, with both ways to match cells."""

import math

import numpy as np
import pytest

from semiseg.data.views import cell_distances
from tests.pretraining.recipes import plain, unit, views

GRID = 2


@pytest.mark.parametrize("match", ["features", "geometry"])
def test_a_step_by_loops(match: str) -> None:
    method, batch = plain("densecl", match=match, dense_weight=0.3, queue=5, distance=0.5), views()
    queue, dense_queue = (each.keys.double().numpy() for each in (method.queue, method.dense_queue))
    query, cells, features = method.query(batch["image1"])
    key, key_cells, key_features = method.key(batch["image2"])
    distances = cell_distances(batch, GRID)

    def cost(one: np.ndarray, other: np.ndarray, negatives: np.ndarray) -> float:
        scores = [math.exp(float(one @ each) / 0.2) for each in (other, *negatives)]
        return -math.log(scores[0] / sum(scores))

    whole = np.mean([cost(unit(one), unit(other), queue) for one, other in zip(query, key, strict=True)])
    costs = []
    for image in range(4):
        for i in range(GRID**2):
            similar = [
                float(unit(features[image, :, i]) @ unit(key_features[image, :, j])) for j in range(GRID**2)
            ]
            far = distances[image, i].tolist()
            if match == "features":
                j = int(np.argmax(similar))
            elif min(far) < 0.5:
                j = int(np.argmin(far))
            else:
                continue
            costs.append(cost(unit(cells[image, :, i]), unit(key_cells[image, :, j]), dense_queue))
    loss, logs = method.training_step(batch, 0)
    assert float(logs["whole"]) == pytest.approx(whole, rel=1e-4)
    assert float(logs["dense"]) == pytest.approx(np.mean(costs), rel=1e-4)
    assert float(loss.detach()) == pytest.approx(0.7 * whole + 0.3 * np.mean(costs), rel=1e-4)
    assert match == "features" or 0 < len(costs) < 4 * GRID**2
    pooled = [image.mean(axis=1) for image in key_cells]
    expected = np.stack([each / np.sqrt((each**2).sum()) for each in pooled])
    assert method.dense_queue.keys[:4].numpy() == pytest.approx(expected, abs=1e-5)
    assert method.queue.keys[:4].numpy() == pytest.approx(np.stack([unit(row) for row in key]), abs=1e-5)
