import math

import pytest
import torch

from semiseg.losses import consistency_loss

CLASSES, SIZE = 5, 6


@pytest.mark.parametrize("cost", ["mse", "squared", "cross_entropy"])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_mean_over_valid_pixels(cost: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, others = 2 * torch.randn(2, 2, CLASSES, SIZE, SIZE, dtype=torch.float64, generator=generator)
    logits.requires_grad_()
    targets = others.softmax(dim=1)
    valid = torch.rand(2, SIZE, SIZE, generator=generator) < 0.7
    costs = []
    for i in range(2):
        for y in range(SIZE):
            for x in range(SIZE):
                if valid[i, y, x]:
                    p, q = torch.softmax(logits[i, :, y, x], 0), targets[i, :, y, x]
                    costs.append(
                        {
                            "mse": sum((p[c] - q[c]) ** 2 for c in range(CLASSES)) / CLASSES,
                            "squared": sum((p[c] - q[c]) ** 2 for c in range(CLASSES)),
                            "cross_entropy": -sum(q[c] * p[c].log() for c in range(CLASSES)),
                        }[cost]
                    )
    expected = sum(costs) / len(costs)
    loss = consistency_loss(logits, targets, valid, cost=cost)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(gradient, torch.autograd.grad(expected, logits)[0], rtol=1e-6, atol=1e-12)


def test_by_hand() -> None:
    """One half on two classes against certainty: squares of a half twice, and the entropy's log 2."""
    logits, targets = torch.zeros(1, 2, 1, 1), torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    for cost, expected in (("mse", 0.25), ("squared", 0.5), ("cross_entropy", math.log(2))):
        assert consistency_loss(logits, targets, valid, cost=cost).item() == pytest.approx(expected)


def test_no_gradient_reaches_the_targets_and_none_comes_of_nothing() -> None:
    logits, targets = torch.randn(2, 1, 3, 2, 2, requires_grad=True)
    loss = consistency_loss(logits, targets.softmax(dim=1), torch.zeros(1, 2, 2, dtype=torch.bool))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, targets, allow_unused=True) == (None,)
