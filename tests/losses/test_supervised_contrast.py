import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from semiseg.losses import supervised_contrastive_loss

DIM = 6


def example(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a case: class 0 has one valid row, class 1 two, class 2 four, class 3 none."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([2, 1, 0, 2, 3, 2, 1, 2, 1, -1])
    valid = torch.tensor([1, 1, 1, 1, 0, 1, 1, 1, 0, 0], dtype=torch.bool)
    return normalize(torch.randn(len(labels), DIM, generator=generator), dim=1).to(dtype), labels, valid


def by_loops(z: Tensor, labels: Tensor, valid: Tensor, temperature: float, denominator: str) -> Tensor:
    """Compute both papers' losses, one anchor and one positive at a time."""
    rows = [i for i in range(len(labels)) if valid[i]]
    total = torch.zeros((), dtype=torch.float64)
    for i in rows:
        others = [a for a in rows if a != i]
        positives = [p for p in others if labels[p] == labels[i]]
        for p in positives:
            against = (
                others if denominator == "others" else [p, *(a for a in others if labels[a] != labels[i])]
            )
            below = sum((z[i] @ z[a] / temperature).exp() for a in against)
            total = total - ((z[i] @ z[p] / temperature).exp() / below).log() / len(positives)
    return total / len(rows)


@pytest.mark.parametrize("denominator", ["others", "negatives"])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_value_and_gradient_are_those_of_the_equations(denominator: str, temperature: float) -> None:
    features, labels, valid = example()
    reference = features.double().requires_grad_()
    expected = by_loops(reference, labels, valid, temperature, denominator)
    expected.backward()
    features.requires_grad_()
    loss = supervised_contrastive_loss(
        features, labels, valid, temperature=temperature, denominator=denominator
    )
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(features.grad.double(), reference.grad, rtol=1e-4, atol=1e-5)
    exact = supervised_contrastive_loss(
        reference.detach(), labels, valid, temperature=temperature, denominator=denominator
    )
    assert exact.item() == pytest.approx(expected.item(), rel=1e-12)


def test_three_rows_by_hand() -> None:
    """Rows at 0°, 90° and 180°, the first two alike, at τ = 1: similarities 0, −1 and 0."""
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    labels, valid = torch.tensor([0, 0, 1]), torch.ones(3, dtype=torch.bool)
    expected = (math.log(1 + math.exp(-1)) + math.log(2)) / 3
    for denominator in ("others", "negatives"):  # the same for two rows of a class
        loss = supervised_contrastive_loss(features, labels, valid, temperature=1.0, denominator=denominator)
        assert loss.item() == pytest.approx(expected)


def test_the_own_positives_stay_out_of_the_denominator_of_negatives() -> None:
    """Four rows of one class: nothing to repel, but for SupCon three others share the probability."""
    features = normalize(torch.ones(4, DIM), dim=1)
    labels, valid = torch.zeros(4, dtype=torch.int64), torch.ones(4, dtype=torch.bool)
    found = [
        supervised_contrastive_loss(features, labels, valid, temperature=0.1, denominator=each).item()
        for each in ("others", "negatives")
    ]
    assert found == pytest.approx([math.log(3), 0.0], abs=1e-6)


@pytest.mark.parametrize("denominator", ["others", "negatives"])
@pytest.mark.parametrize("case", ["no valid row", "one valid row", "no two alike"])
def test_without_a_positive_it_is_zero_and_so_is_its_gradient(denominator: str, case: str) -> None:
    features, _, valid = example()
    labels = torch.arange(len(features))
    if case != "no two alike":
        valid = torch.zeros_like(valid)
        valid[0] = case == "one valid row"
    features.requires_grad_()
    loss = supervised_contrastive_loss(features, labels, valid, temperature=0.07, denominator=denominator)
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()


def test_rows_that_do_not_count_take_no_gradient() -> None:
    features, labels, valid = example()
    features.requires_grad_()
    supervised_contrastive_loss(features, labels, valid, temperature=0.1).backward()
    assert torch.equal(features.grad.any(dim=1), valid)


def test_bf16_features_are_compared_in_float32() -> None:
    features, labels, valid = example(torch.bfloat16)
    loss = supervised_contrastive_loss(features, labels, valid, temperature=0.07)
    expected = by_loops(features.double(), labels, valid, 0.07, "others")
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
