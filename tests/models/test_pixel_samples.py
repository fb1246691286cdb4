import itertools

import pytest
import torch
from torch import Tensor

from semiseg.models.pixel_samples import hard_and_easy, sampled, shuffled

CLASSES = 5


# --- places ---------------------------------------------------------------------------------------------


def test_places_are_a_permutation_of_each_group() -> None:
    torch.manual_seed(0)
    groups = torch.randint(CLASSES + 1, (200,))
    groups[groups == 2] = 3  # a group without rows
    place, size = shuffled(groups, CLASSES)
    assert size.tolist() == [int((groups == group).sum()) for group in range(CLASSES)]
    for group in range(CLASSES + 1):
        members = place[groups == group]
        assert members.sort().values.tolist() == list(range(len(members)))


def test_every_row_has_every_place_equally_often() -> None:
    torch.manual_seed(0)
    groups = torch.tensor([0, 1, 0, 0])
    places = torch.stack([shuffled(groups, 2)[0] for _ in range(3000)])
    for row in (0, 2, 3):
        counts = torch.bincount(places[:, row], minlength=3) / 3000
        assert counts.tolist() == pytest.approx([1 / 3] * 3, abs=0.04)
    assert not places[:, 1].any()


def test_rows_are_laid_out_at_their_slots_with_their_gradient() -> None:
    rows = torch.randn(4, 3, requires_grad=True)
    out = sampled(rows, torch.tensor([2, -1, 0, 5]), 5)
    assert torch.equal(out, torch.stack((rows[2], *[torch.zeros(3)] * 1, rows[0], *[torch.zeros(3)] * 2)))
    out.sum().backward()
    assert rows.grad is not None
    assert rows.grad.any(dim=1).tolist() == [True, False, True, False]


# --- hard and easy pixels -------------------------------------------------------------------------------


def quota(hard: int, easy: int, views: int) -> tuple[int, int]:
    """Return how many of each the released code takes (lib/loss/loss_contrast.py, 63-74)."""
    if hard >= views / 2 and easy >= views / 2:
        return views // 2, views - views // 2
    if hard >= views / 2:
        return views - easy, easy
    assert easy >= views / 2
    return hard, views - hard


def example(seed: int, pixels: int = 300) -> tuple[Tensor, Tensor]:
    """Draw images whose classes are rare, often predicted wrongly, or always rightly."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(3, CLASSES, generator=generator) ** 3 + 0.01
    labels = torch.multinomial(shares, pixels, replacement=True, generator=generator)
    right = torch.rand(3, CLASSES, generator=generator).round(decimals=1).gather(1, labels)
    predicted = torch.where(
        torch.rand(labels.shape, generator=generator) < right, labels, (labels + 1) % CLASSES
    )
    labels[0, ::7] = 255
    return labels, predicted


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("max_samples", "max_views"), [(200, 20), (64, 30), (1024, 100), (7, 10), (301, 1)])
def test_classes_share_the_samples_half_hard_and_half_easy(
    seed: int, max_samples: int, max_views: int
) -> None:
    labels, predicted = example(seed)
    torch.manual_seed(seed)
    slots = hard_and_easy(labels, predicted, CLASSES, max_samples, max_views)
    pairs = [
        (b, c)
        for b, c in itertools.product(range(3), range(CLASSES))
        if int((labels[b] == c).sum()) > max_views
    ]
    views = min(max_samples // len(pairs), max_views) if pairs else 0
    for b, c in itertools.product(range(3), range(CLASSES)):
        of_class = labels[b] == c
        hard, easy = of_class & (predicted[b] != c), of_class & (predicted[b] == c)
        expected = quota(int(hard.sum()), int(easy.sum()), views) if (b, c) in pairs else (0, 0)
        chosen = slots[b] < max_samples
        assert (int((chosen & hard).sum()), int((chosen & easy).sum())) == expected
        if (b, c) in pairs:
            first = pairs.index((b, c)) * views
            assert sorted(slots[b, chosen & of_class].tolist()) == list(range(first, first + views))
    assert (slots[labels == 255] == max_samples).all()


def test_the_sample_is_random() -> None:
    labels, predicted = torch.zeros(1, 40, dtype=torch.int64), torch.zeros(1, 40, dtype=torch.int64)
    predicted[0, :20] = 1
    torch.manual_seed(0)
    chosen = torch.stack([hard_and_easy(labels, predicted, 2, 10, 10)[0] < 10 for _ in range(1000)])
    assert (chosen.sum(dim=1) == 10).all()
    assert chosen.float().mean(dim=0).tolist() == pytest.approx([10 / 40] * 40, abs=0.06)


def test_without_a_known_label_nothing_is_chosen() -> None:
    labels = torch.full((2, 30), 255)
    assert (hard_and_easy(labels, labels, CLASSES, 16, 4) == 16).all()
