import math

import pytest
import torch
from torch import Tensor

from semiseg.base.labels import IGNORE
from semiseg.losses import bootstrapped_cross_entropy, cross_entropy
from semiseg.losses.bootstrapped import bootstrap_threshold

CLASSES = 5


def example(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(2, CLASSES, 4, 3, generator=generator)).to(dtype)
    labels = torch.randint(CLASSES, (2, 4, 3), generator=generator)
    labels[0, 1] = IGNORE
    return logits, labels


def by_loops(logits: Tensor, labels: Tensor, threshold: float) -> tuple[Tensor, int, int]:
    """Return the sum of −log p over pixels with p < η, their number, and that of all labelled pixels."""
    total, kept, labelled = torch.zeros((), dtype=torch.float64), 0, 0
    for b, y, x in torch.cartesian_prod(*map(torch.arange, labels.shape)).tolist():
        if labels[b, y, x] == IGNORE:
            continue
        labelled += 1
        exponents = logits[b, :, y, x].double().exp()
        p = exponents[labels[b, y, x]] / exponents.sum()
        if p < threshold:
            total, kept = total - p.log(), kept + 1
    return total, kept, labelled


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("mean_over", ["labelled", "kept"])
def test_value_and_gradient_are_those_of_the_equation(threshold: float, mean_over: str) -> None:
    logits, labels = example()
    reference = logits.double().requires_grad_()
    total, kept, labelled = by_loops(reference, labels, threshold)
    assert 0 < kept <= labelled
    expected = total / (kept if mean_over == "kept" else labelled)
    expected.backward()
    logits.requires_grad_()
    loss = bootstrapped_cross_entropy(logits, labels, threshold, mean_over=mean_over)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.allclose(logits.grad.double(), reference.grad, rtol=1e-5, atol=1e-8)


def test_a_threshold_of_one_is_cross_entropy() -> None:
    logits, labels = example()
    loss = bootstrapped_cross_entropy(logits, labels, 1.0)
    assert loss.item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-6)


@pytest.mark.parametrize("mean_over", ["labelled", "kept"])
def test_when_the_network_is_sure_of_every_pixel_nothing_is_learned(mean_over: str) -> None:
    labels = torch.tensor([[[0, 1, IGNORE]]])
    logits = torch.stack((torch.tensor([9.0, -9.0, 0.0]), torch.tensor([-9.0, 9.0, 0.0])))[None, :, None]
    logits.requires_grad_()
    loss = bootstrapped_cross_entropy(logits, labels, 0.9, mean_over=mean_over)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_without_a_labelled_pixel_it_is_zero() -> None:
    logits, labels = example()
    assert bootstrapped_cross_entropy(logits, torch.full_like(labels, IGNORE), 0.9).item() == 0


def test_the_threshold_rises_from_chance_and_levels_off_before_its_end() -> None:
    first, last = 1 / CLASSES, 0.9
    for step, expected in (
        (0, 0.0),
        (20, 1 - math.exp(-1)),
        (50, 1 - math.exp(-2.5)),
        (100, 1 - math.exp(-5)),
    ):
        found = bootstrap_threshold(step, 100, CLASSES)
        assert found == pytest.approx(first + (last - first) * expected, rel=1e-12)
    assert bootstrap_threshold(5000, 100, CLASSES) == bootstrap_threshold(100, 100, CLASSES)
    assert bootstrap_threshold(0, 0, CLASSES) == bootstrap_threshold(100, 100, CLASSES)
    rising = [bootstrap_threshold(step, 100, 21, 0.7) for step in range(101)]
    assert rising == sorted(rising)
    assert rising[0] == pytest.approx(1 / 21)
    assert 0.69 < rising[-1] < 0.7
