import math

import pytest
import torch
from torch import Tensor

from semiseg.losses import entropy_loss


def by_loops(logits: Tensor, valid: Tensor) -> float:
    total, count = 0.0, 0
    batch, classes, height, width = logits.shape
    for b in range(batch):
        for y in range(height):
            for x in range(width):
                if not valid[b, y, x]:
                    continue
                exponents = [math.exp(float(logits[b, c, y, x])) for c in range(classes)]
                p = [value / sum(exponents) for value in exponents]
                total -= sum(value * math.log(value) for value in p)
                count += 1
    return total / count


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 5, 3, 4, generator=generator)
    return logits, torch.rand(2, 3, 4, generator=generator) < 0.6


def test_it_is_the_mean_entropy_of_the_valid_pixels() -> None:
    logits, valid = example()
    assert float(entropy_loss(logits, valid)) == pytest.approx(by_loops(logits, valid), rel=1e-6)
    everywhere = torch.ones_like(valid)
    assert float(entropy_loss(logits)) == pytest.approx(by_loops(logits, everywhere), rel=1e-6)


def test_its_gradient_is_that_of_the_equation() -> None:
    logits, valid = example()
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: entropy_loss(x, valid), logits)


def test_a_uniform_prediction_has_log_c_nats_or_one_when_normalised() -> None:
    logits = torch.full((1, 7, 2, 2), 4.0)
    assert float(entropy_loss(logits)) == pytest.approx(math.log(7))
    assert float(entropy_loss(logits, normalised=True)) == pytest.approx(1)


def test_ignored_pixels_take_no_gradient() -> None:
    logits, valid = example()
    logits.requires_grad_()
    entropy_loss(logits, valid).backward()
    reached = logits.grad.abs().sum(dim=1) > 0
    assert torch.equal(reached, valid)


def test_without_a_valid_pixel_it_is_zero() -> None:
    logits, valid = example()
    logits.requires_grad_()
    loss = entropy_loss(logits, torch.zeros_like(valid))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_confident_bf16_logits_stay_finite() -> None:
    logits = torch.tensor([1e4, -1e4, 0.0], dtype=torch.bfloat16).view(1, 3, 1, 1).requires_grad_()
    loss = entropy_loss(logits)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == 0
    assert torch.isfinite(logits.grad).all()
