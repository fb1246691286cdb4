import math

import pytest
import torch

from semiseg.base.labels import IGNORE
from semiseg.losses import confident_cross_entropy

CLASSES, SIZE = 5, 7


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_divided_by_all_pixels_that_are_not_padding(seed: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, CLASSES, SIZE, SIZE, dtype=torch.float64, generator=generator)
    labels = torch.randint(CLASSES, (2, SIZE, SIZE), generator=generator)
    labels[:, SIZE - 2 :] = IGNORE
    confidence = torch.rand(2, SIZE, SIZE, generator=generator)
    total, pixels = 0.0, 0
    for i in range(2):
        for y in range(SIZE):
            for x in range(SIZE):
                if labels[i, y, x] == IGNORE:
                    continue
                pixels += 1
                if confidence[i, y, x] >= threshold:
                    total -= float(torch.log_softmax(logits[i, :, y, x], 0)[labels[i, y, x]])
    loss = confident_cross_entropy(logits, labels, confidence, threshold)
    assert pixels == 2 * SIZE * (SIZE - 2)
    assert loss.item() == pytest.approx(total / pixels, rel=1e-6)


def test_by_hand() -> None:
    """Four pixels of probability 1/5 each: one is padding, one below the threshold, two count of three."""
    labels = torch.tensor([[[0, 1, 2, IGNORE]]])
    confidence = torch.tensor([[[0.95, 0.99, 0.9, 1.0]]])
    loss = confident_cross_entropy(torch.zeros(1, CLASSES, 1, 4), labels, confidence, 0.95)
    assert loss.item() == pytest.approx(2 / 3 * math.log(CLASSES))


@pytest.mark.parametrize(("label", "confidence"), [(IGNORE, 1.0), (0, 0.5)])
def test_it_is_zero_where_nothing_counts(label: int, confidence: float) -> None:
    logits = torch.zeros(1, CLASSES, 2, 2, requires_grad=True)
    loss = confident_cross_entropy(
        logits, torch.full((1, 2, 2), label), torch.full((1, 2, 2), confidence), 0.95
    )
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()
