import math

import pytest
import torch
from torch import Tensor

from semiseg.base.labels import IGNORE
from semiseg.losses import cross_entropy, hard_cross_entropy

CLASSES, SIZE = 4, 6


def batch(seed: int, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, CLASSES, SIZE, SIZE, dtype=torch.float64, generator=generator)
    labels = torch.randint(CLASSES, (3, SIZE, SIZE), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORE
    return logits.requires_grad_(), labels


def literal(logits: Tensor, labels: Tensor, pixels: int, threshold: float) -> Tensor:
    """Sort each image's labelled pixels by the probability of their label, and walk up the list."""
    kept = []
    for image, mask in zip(logits, labels, strict=True):
        found = []
        for y in range(SIZE):
            for x in range(SIZE):
                if mask[y, x] != IGNORE:
                    found.append(torch.softmax(image[:, y, x], 0)[mask[y, x]])
        found.sort(key=lambda p: p.item())
        kept += [p for place, p in enumerate(found) if place < pixels or p <= threshold]
    return -sum(p.log() for p in kept) / len(kept)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("pixels", "threshold"), [(1, 0.0), (5, 0.0), (5, 0.3), (20, 0.7), (30, 0.1)])
def test_it_is_the_mean_over_each_images_hard_pixels(seed: int, pixels: int, threshold: float) -> None:
    logits, labels = batch(seed)
    loss = hard_cross_entropy(logits, labels, pixels=pixels, threshold=threshold)
    expected = literal(logits, labels, pixels, threshold)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.allclose(gradient, torch.autograd.grad(expected, logits)[0], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("pixels", "threshold"), [(SIZE**2, 0.0), (10**6, 0.0), (1, 1.0)])
def test_where_every_pixel_is_kept_it_is_the_cross_entropy(pixels: int, threshold: float) -> None:
    logits, labels = batch(0)
    loss = hard_cross_entropy(logits, labels, pixels=pixels, threshold=threshold)
    assert loss.item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-12)


def test_an_image_with_fewer_labelled_pixels_keeps_them_all() -> None:
    logits, labels = batch(0)
    labels[0] = IGNORE
    labels[0, 0, :2] = 1
    loss = hard_cross_entropy(logits[:1], labels[:1], pixels=3, threshold=0.0)
    assert loss.item() == pytest.approx(cross_entropy(logits[:1], labels[:1]).item(), rel=1e-12)


def test_of_equal_pixels_all_count() -> None:
    logits = torch.zeros(1, CLASSES, 2, 2)
    loss = hard_cross_entropy(logits, torch.zeros(1, 2, 2, dtype=torch.int64), pixels=1, threshold=0.0)
    assert loss.item() == pytest.approx(math.log(CLASSES))


def test_without_a_labelled_pixel_it_is_zero() -> None:
    logits, labels = batch(0, ignored=1.1)
    loss = hard_cross_entropy(logits, labels, pixels=5, threshold=0.7)
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, logits)[0].any()
