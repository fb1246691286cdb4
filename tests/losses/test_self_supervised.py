"""The self-supervised losses against loops over images and pixels, in float64."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from semiseg.losses import info_nce_loss, negative_cosine_loss, nt_xent_loss, pixel_consistency_loss

Array = NDArray[np.float64]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(row: Tensor) -> Array:
    values = row.detach().numpy()
    return np.asarray(values / np.sqrt((values**2).sum()))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_by_loops(temperature: float) -> None:
    first, second = drawn(5, 7, seed=1), drawn(5, 7, seed=2)
    rows = [unit(row) for row in (*first, *second)]
    expected = 0.0
    for i, row in enumerate(rows):
        similar = {k: math.exp(float(row @ other) / temperature) for k, other in enumerate(rows) if k != i}
        expected -= math.log(similar[(i + 5) % 10] / sum(similar.values())) / 10
    assert float(nt_xent_loss(first, second, temperature=temperature)) == pytest.approx(expected, rel=1e-10)


def test_nt_xent_is_lightlys() -> None:
    loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=0.1)
    first, second = drawn(6, 8, seed=1).float(), drawn(6, 8, seed=2).float()
    assert torch.allclose(nt_xent_loss(first, second, temperature=0.1), loss(first, second))


def test_info_nce_by_loops_and_only_of_queries_that_count() -> None:
    queries, keys, negatives = drawn(6, 4, seed=1), drawn(6, 4, seed=2), drawn(9, 4, seed=3)
    negatives = torch.nn.functional.normalize(negatives)
    costs = []
    for query, key in zip(queries, keys, strict=True):
        scores = [float(unit(query) @ other) / 0.2 for other in (unit(key), *negatives.numpy())]
        costs.append(-math.log(math.exp(scores[0]) / sum(map(math.exp, scores))))
    found = info_nce_loss(queries, keys, negatives, temperature=0.2)
    assert float(found) == pytest.approx(np.mean(costs), rel=1e-10)
    counted = torch.tensor([True, False, True, True, False, False])
    found = info_nce_loss(queries, keys, negatives, temperature=0.2, counted=counted)
    assert float(found) == pytest.approx(np.mean([costs[0], costs[2], costs[3]]), rel=1e-10)
    none = info_nce_loss(queries, keys, negatives, temperature=0.2, counted=counted & False)
    assert float(none) == 0


def test_negative_cosine_by_loops() -> None:
    predictions, targets = drawn(5, 4, seed=1), drawn(5, 4, seed=2)
    expected = -np.mean([unit(one) @ unit(other) for one, other in zip(predictions, targets, strict=True)])
    assert float(negative_cosine_loss(predictions, targets)) == pytest.approx(expected, rel=1e-10)
    assert float(negative_cosine_loss(targets, 3 * targets)) == pytest.approx(-1)


def test_negative_cosine_is_lightlys() -> None:
    loss = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    first, second = drawn(6, 8, seed=1).float(), drawn(6, 8, seed=2).float()
    assert torch.allclose(negative_cosine_loss(first, second), loss(first, second))


def test_pixel_consistency_by_loops() -> None:
    predictions, targets = drawn(3, 4, 6, seed=1), drawn(3, 4, 6, seed=2)
    positive = drawn(3, 6, 6, seed=3) > 0.5
    positive[2] = False  # views that do not overlap
    expected = 0.0
    for image in range(3):
        cosines = [
            unit(predictions[image, :, i]) @ unit(targets[image, :, j])
            for i in range(6)
            for j in range(6)
            if positive[image, i, j]
        ]
        expected -= sum(cosines) / max(len(cosines), 1) / 3
    found = pixel_consistency_loss(predictions, targets, positive)
    assert float(found) == pytest.approx(expected, rel=1e-10)


def test_targets_and_keys_take_no_gradient() -> None:
    own, other = drawn(4, 6).requires_grad_(), drawn(4, 6, seed=1).requires_grad_()
    maps = own[None].expand(2, -1, -1), other[None].expand(2, -1, -1)
    losses = (
        negative_cosine_loss(own, other),
        info_nce_loss(own, other, drawn(3, 6), temperature=0.2),
        pixel_consistency_loss(*maps, torch.ones(2, 6, 6, dtype=torch.bool)),
    )
    for loss in losses:
        loss.backward()
        assert own.grad is not None
        assert own.grad.abs().sum() > 0
    assert other.grad is None
