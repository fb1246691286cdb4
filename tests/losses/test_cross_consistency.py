import math

import pytest
import torch

from semiseg.losses import cross_consistency_loss


def test_it_is_the_mean_squared_difference_of_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    batch, decoders, classes, height, width = 2, 3, 4, 3, 2
    logits = torch.randn(batch, decoders, classes, height, width, generator=generator)
    target = torch.softmax(torch.randn(batch, classes, height, width, generator=generator), dim=1)
    of_decoders = []
    for k in range(decoders):
        total = 0.0
        for b in range(batch):
            for y in range(height):
                for x in range(width):
                    exponents = [math.exp(float(value)) for value in logits[b, k, :, y, x]]
                    for c in range(classes):
                        total += (exponents[c] / sum(exponents) - float(target[b, c, y, x])) ** 2
        of_decoders.append(total / (batch * classes * height * width))
    expected = sum(of_decoders) / decoders
    assert cross_consistency_loss(logits, target).item() == pytest.approx(expected, rel=1e-6)


def test_two_opposite_certainties_cost_the_most() -> None:
    logits = torch.tensor([50.0, -50.0]).view(1, 1, 2, 1, 1)
    target = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    assert cross_consistency_loss(logits, target).item() == pytest.approx(2 / 2)
    assert cross_consistency_loss(-logits, target).item() == pytest.approx(0)


def test_only_the_auxiliary_decoders_take_a_gradient() -> None:
    logits = torch.randn(2, 3, 4, 2, 2, requires_grad=True)
    main = torch.randn(2, 4, 2, 2, requires_grad=True)
    cross_consistency_loss(logits, main.softmax(dim=1)).backward()
    assert logits.grad.any()
    assert main.grad is None
