import math

import numpy as np
import pytest
import torch
from torch import Tensor

from semiseg.base.labels import IGNORE
from semiseg.losses import anchor_contrastive_loss, cross_entropy, reliable_cross_entropy
from semiseg.losses.unreliable import quantile

# --- the threshold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 0.873, 1.0])
@pytest.mark.parametrize("number", [1, 2, 3, 100, 1001])
def test_it_is_numpys_percentile_of_the_valid_values(share: float, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    values = torch.rand(2, number, 3, generator=generator)
    valid = torch.rand(values.shape, generator=generator) < 0.7
    valid[0, 0, 0] = True
    expected = np.percentile(values[valid].double().numpy(), 100 * share)
    assert quantile(values, valid, share).item() == pytest.approx(expected, rel=1e-6)


def test_without_a_valid_value_nothing_is_above_it() -> None:
    values = torch.rand(5)
    assert quantile(values, torch.zeros(5, dtype=torch.bool), 0.8).item() == math.inf


# --- cross-entropy of the reliable ----------------------------------------------------------------------


def example() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, generator=generator)
    labels = torch.randint(4, (2, 3, 5), generator=generator)
    labels[0, 0] = IGNORE
    return logits, labels, torch.rand(labels.shape, generator=generator) < 0.6


def test_reliable_pixels_count_for_the_others() -> None:
    logits, labels, reliable = example()
    total, kept, known = 0.0, 0, 0
    for b, y, x in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
        if labels[b, y, x] == IGNORE:
            continue
        known += 1
        if reliable[b, y, x]:
            exponents = [math.exp(float(value)) for value in logits[b, :, y, x]]
            total -= math.log(exponents[int(labels[b, y, x])] / sum(exponents))
            kept += 1
    assert 0 < kept < known
    expected = (known / kept) * total / kept
    assert reliable_cross_entropy(logits, labels, reliable).item() == pytest.approx(expected, rel=1e-6)


def test_where_all_are_reliable_it_is_cross_entropy_and_where_none_is_zero() -> None:
    logits, labels, reliable = example()
    everywhere = torch.ones_like(reliable)
    found = reliable_cross_entropy(logits, labels, everywhere).item()
    assert found == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-6)
    assert reliable_cross_entropy(logits, labels, ~everywhere).item() == 0


# --- contrast with anchors ------------------------------------------------------------------------------

CLASSES, ANCHORS, NEGATIVES, DIM = 4, 3, 5, 6


def contrast_example() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw a case: class 0 has all anchors, class 1 one, class 2 none."""
    generator = torch.Generator().manual_seed(0)
    anchors = 3 * torch.randn(CLASSES, ANCHORS, DIM, generator=generator)
    valid = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
    positives = torch.randn(CLASSES, DIM, generator=generator)
    return anchors, valid, positives, torch.randn(CLASSES, ANCHORS, NEGATIVES, DIM, generator=generator)


def by_loops(
    anchors: Tensor, valid: Tensor, positives: Tensor, negatives: Tensor, temperature: float, classes: int
) -> Tensor:
    def similarity(z: Tensor, other: Tensor) -> Tensor:
        return ((z @ other) / (z.norm() * other.norm()) / temperature).exp()

    total = torch.zeros((), dtype=torch.float64)
    for c in range(len(anchors)):
        drawn = [m for m in range(anchors.shape[1]) if valid[c, m]]
        for m in drawn:
            near = similarity(anchors[c, m], positives[c])
            far = sum(similarity(anchors[c, m], negative) for negative in negatives[c, m])
            total = total - (near / (near + far)).log() / len(drawn)
    return total / classes


@pytest.mark.parametrize(
    ("present", "classes"),
    [(None, CLASSES), ([True, True, False, True], 3), ([True, True, True, True], 4)],  # 2 has no anchor
)
@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_value_and_gradient_are_those_of_the_equation(
    present: list[bool] | None, classes: int, temperature: float
) -> None:
    anchors, valid, positives, negatives = contrast_example()
    reference = anchors.double().requires_grad_()
    expected = by_loops(reference, valid, positives.double(), negatives.double(), temperature, classes)
    expected.backward()
    anchors.requires_grad_()
    loss = anchor_contrastive_loss(
        anchors,
        valid,
        positives,
        negatives,
        temperature=temperature,
        present=None if present is None else torch.tensor(present),
    )
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(anchors.grad.double(), reference.grad, rtol=1e-4, atol=1e-6)
    assert torch.equal(anchors.grad.any(dim=2), valid)


def test_equal_similarities_cost_the_logarithm_of_their_number() -> None:
    ones = torch.ones(1, 1, DIM)
    loss = anchor_contrastive_loss(
        ones,
        torch.ones(1, 1, dtype=torch.bool),
        ones[0],
        ones[:, :, None].expand(1, 1, NEGATIVES, DIM),
        temperature=0.5,
    )
    assert loss.item() == pytest.approx(math.log(1 + NEGATIVES))


@pytest.mark.parametrize("present", [None, torch.zeros(CLASSES, dtype=torch.bool)])
def test_without_an_anchor_it_is_zero(present: Tensor | None) -> None:
    anchors, valid, positives, negatives = contrast_example()
    loss = anchor_contrastive_loss(
        anchors.requires_grad_(),
        torch.zeros_like(valid),
        torch.zeros_like(positives),
        torch.zeros_like(negatives),
        temperature=0.5,
        present=present,
    )
    loss.backward()
    assert loss.item() == 0
    assert not anchors.grad.any()
